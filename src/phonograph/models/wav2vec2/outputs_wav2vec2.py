"""What the models of Wav2Vec2 return.

Shapes: B batch, T steps, C channels of the convolutions, H hidden size, N heads, V tokens or classes, D width of a vector.
"""

from dataclasses import dataclass

from torch import Tensor

from phonograph.models.base import ModelOutput

__all__ = [
    "CausalLMOutput",
    "SequenceClassifierOutput",
    "TokenClassifierOutput",
    "Wav2Vec2BaseModelOutput",
    "Wav2Vec2ForPreTrainingOutput",
    "XVectorOutput",
]


@dataclass
class Wav2Vec2BaseModelOutput(ModelOutput):
    """States (B, T, H), normed features (B, T, C), and where wanted every layer's states and attention (B, N, T, T)."""

    last_hidden_state: Tensor | None = None
    extract_features: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class _Classified(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class CausalLMOutput(_Classified):
    """Loss where labels were given, logits (B, T, V), and where wanted every layer's states and attention."""


class SequenceClassifierOutput(_Classified):
    """Loss where labels were given, logits (B, V), and where wanted every layer's states and attention."""


class TokenClassifierOutput(_Classified):
    """Loss where labels were given, logits (B, T, V), and where wanted every layer's states and attention."""


@dataclass
class XVectorOutput(ModelOutput):
    """Loss where labels were given, logits and x-vectors (B, D), and where wanted every layer's states and attention."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    embeddings: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class Wav2Vec2ForPreTrainingOutput(ModelOutput):
    """Predictions and targets (B, T, D), the codebooks' perplexity, and, where negatives were given, the losses."""

    loss: Tensor | None = None
    projected_states: Tensor | None = None
    projected_quantized_states: Tensor | None = None
    codevector_perplexity: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    contrastive_loss: Tensor | None = None
    diversity_loss: Tensor | None = None
