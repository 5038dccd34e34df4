"""Random Wav2Vec2s in which every weight matters, in ours and in transformers, and what both are compared by.

A freshly initialised model hides faults: its biases are zero, its norms the identity.
"""

from typing import Any

import torch
from torch import Tensor, nn

from phonograph.models.wav2vec2 import modeling_wav2vec2
from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from phonograph.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2PreTrainedModel

TINY: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16, 16, 24],
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 2],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_codevectors_per_group": 8,
    "codevector_dim": 16,
    "proj_codevector_dim": 12,
    "num_negatives": 5,
    "tdnn_dim": [16, 16, 24],
    "tdnn_kernel": [3, 2, 1],
    "tdnn_dilation": [1, 2, 1],
    "xvector_output_dim": 12,
    "classifier_proj_size": 20,
    "mask_time_length": 3,
    "mask_feature_length": 4,
    "num_labels": 5,
}
"""Steps of 20 samples, each seeing 30."""

STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}

FAMILIES: dict[str, dict[str, Any]] = {
    "group": TINY,
    "layer": TINY | STABLE,
    "layer, post-norm, odd kernel": TINY
    | {"feat_extract_norm": "layer", "num_conv_pos_embeddings": 15, "hidden_act": "relu", "feat_extract_activation": "silu"},
    "group, stable": TINY | {"do_stable_layer_norm": True, "hidden_act": "gelu_new"},
    "language adapters": TINY | STABLE | {"adapter_attn_dim": 6},
    "deep": TINY
    | {
        "num_hidden_layers": 4,
        "conv_dim": [12] * 7,
        "conv_stride": [5, 2, 2, 2, 1, 1, 1],
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    },
}
"""Configurations that every class can be built from."""

WITH_ADAPTER: dict[str, dict[str, Any]] = {
    "adapter": TINY | {"add_adapter": True},
    "adapter of another width": TINY
    | STABLE
    | {"add_adapter": True, "output_hidden_size": 20, "num_adapter_layers": 2, "adapter_attn_dim": 6},
    "adapter of another stride": TINY | {"add_adapter": True, "adapter_stride": 1, "num_adapter_layers": 1},
}
"""Configurations of the base model and CTC."""

CLASSES = (
    "Wav2Vec2Model",
    "Wav2Vec2ForCTC",
    "Wav2Vec2ForPreTraining",
    "Wav2Vec2ForSequenceClassification",
    "Wav2Vec2ForAudioFrameClassification",
    "Wav2Vec2ForXVector",
)

LENGTHS = (1003, 640, 997, 525)
"""Samples of the items of `ragged_batch`."""


@torch.no_grad()
def shake_(model: nn.Module, seed: int = 0) -> None:
    """Move every parameter, so that none is the identity."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        spread = 0.1 if parameter.dim() == 1 else 0.05
        parameter.add_(spread * torch.randn(parameter.shape, generator=generator))


def random_wav2vec2(name: str = "Wav2Vec2Model", seed: int = 0, **fields: Any) -> Wav2Vec2PreTrainedModel:
    """A model of the class of that name in evaluation mode."""
    torch.manual_seed(seed)
    model: Wav2Vec2PreTrainedModel = getattr(modeling_wav2vec2, name)(Wav2Vec2Config(**fields)).eval()
    shake_(model, seed)
    return model


def ragged_batch(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise (B, S) with zeros after each item's end, and its mask (B, S)."""
    audio = torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return audio * mask, mask


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    """Equal shapes, and values within `tolerance` of the largest."""
    assert ours.shape == theirs.shape
    gap, peak = (ours - theirs).abs().max(), theirs.abs().max()
    assert gap <= tolerance * peak + 1e-12, f"{gap / peak:.1e} of the largest value apart"
