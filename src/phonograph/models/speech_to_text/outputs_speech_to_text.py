"""The typed results of Speech2Text, with the ecosystem's names and order.

Shapes: B batch, S encoder steps, T target tokens, d width, H heads, V vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor

from phonograph.models.base import ModelOutput
from phonograph.models.speech_to_text.stepping_speech_to_text import Speech2TextDecoderState

__all__ = [
    "BaseModelOutput",
    "BaseModelOutputWithPastAndCrossAttentions",
    "Seq2SeqLMOutput",
    "Seq2SeqModelOutput",
]

Tensors = tuple[Tensor, ...]


@dataclass
class BaseModelOutput(ModelOutput):
    """Encoder steps (B, S, d); where asked for, the input and output of each layer, and its attention (B, H, S, S)."""

    last_hidden_state: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """Decoder steps (B, T, d) and what it remembers; attention over tokens (B, H, T, T) and over encoder steps (B, H, T, S)."""

    last_hidden_state: Tensor | None = None
    past_key_values: Speech2TextDecoderState | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass
class Seq2SeqModelOutput(ModelOutput):
    """The decoder's output, then the encoder's."""

    last_hidden_state: Tensor | None = None
    past_key_values: Speech2TextDecoderState | None = None
    decoder_hidden_states: Tensors | None = None
    decoder_attentions: Tensors | None = None
    cross_attentions: Tensors | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: Tensors | None = None
    encoder_attentions: Tensors | None = None


@dataclass
class Seq2SeqLMOutput(ModelOutput):
    """The loss where labels were given, logits (B, T, V), then as `Seq2SeqModelOutput`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Speech2TextDecoderState | None = None
    decoder_hidden_states: Tensors | None = None
    decoder_attentions: Tensors | None = None
    cross_attentions: Tensors | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: Tensors | None = None
    encoder_attentions: Tensors | None = None
