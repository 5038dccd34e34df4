"""Small random Speech2Texts in which every weight matters, ours and transformers' with the same weights.

A freshly initialised model hides faults: its biases are zero, its norms the identity, its logits nearly equal.
"""

from typing import Any, NamedTuple

import torch
from peers import peer
from torch import Tensor

from phonograph.models.speech_to_text.configuration_speech_to_text import Speech2TextConfig
from phonograph.models.speech_to_text.modeling_speech_to_text import Speech2TextForConditionalGeneration

TINY: dict[str, Any] = {
    "vocab_size": 50,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "conv_channels": 24,
    "input_feat_per_channel": 10,
    "max_source_positions": 100,
    "max_target_positions": 40,
}

ODD: dict[str, dict[str, Any]] = {
    "untied head": TINY | {"tie_word_embeddings": False},
    "unscaled embeddings, gelu": TINY | {"scale_embedding": False, "activation_function": "gelu"},
    "one convolution, wide kernel": TINY | {"num_conv_layers": 1, "conv_kernel_sizes": [7]},
    "three convolutions": TINY | {"num_conv_layers": 3, "conv_kernel_sizes": [3, 5, 3]},
    "two channels, heads of their own": TINY
    | {"input_channels": 2, "input_feat_per_channel": 6, "encoder_attention_heads": 2, "decoder_attention_heads": 8},
    "odd width": TINY | {"d_model": 33, "encoder_attention_heads": 3, "decoder_attention_heads": 1},
    "longer than the tables": TINY | {"max_source_positions": 3, "max_target_positions": 3},
    "other special tokens": TINY
    | {
        "pad_token_id": 7,
        "eos_token_id": 3,
        "decoder_start_token_id": 4,
        "bos_token_id": 5,
        "max_target_positions": 60,
    },
}
CONFIGS = {"tiny": TINY, **ODD}


class Pair(NamedTuple):
    """The same weights twice, in evaluation mode."""

    ours: Speech2TextForConditionalGeneration
    theirs: Any


@torch.no_grad()
def random_speech_to_text(seed: int = 0, spread: float = 1.0, **fields: Any) -> Speech2TextForConditionalGeneration:
    """A model in evaluation mode; `spread` scales its logits."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Speech2TextForConditionalGeneration(Speech2TextConfig(**fields)).eval()
    for name, parameter in model.named_parameters():
        scale = 0.1 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
        if name.endswith(("q_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight")):
            scale *= 3  # what a token becomes depends on those before it more than on itself
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    # Signs by chance: a tied head would otherwise find every token likeliest to follow itself.
    norm = model.model.decoder.layer_norm.weight
    norm.copy_(spread * torch.randn(norm.shape, generator=generator))
    return model


def random_pair(seed: int = 0, spread: float = 1.0, **fields: Any) -> Pair:
    """The model and transformers' with its weights."""
    transformers = peer("transformers")
    ours = random_speech_to_text(seed, spread, **fields)
    theirs = transformers.Speech2TextForConditionalGeneration(transformers.Speech2TextConfig(**fields)).eval()
    theirs.load_state_dict(ours.state_dict())
    return Pair(ours, theirs)


def features(model: Any, batch: int, frames: int, seed: int = 0) -> Tensor:
    """(batch, frames, bins), normally distributed."""
    bins = model.config.input_feat_per_channel * model.config.input_channels
    return torch.randn(batch, frames, bins, generator=torch.Generator().manual_seed(seed))


def tokens(model: Any, batch: int, length: int, seed: int = 0) -> Tensor:
    """(batch, length) int64, no padding among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8, model.config.vocab_size, (batch, length), generator=generator)


def padded(clips: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Clips (frames, bins) -> (batch, longest, bins) filled with sevens, and the mask (batch, longest)."""
    longest = max(map(len, clips))
    batch = torch.stack([torch.nn.functional.pad(clip, (0, 0, 0, longest - len(clip)), value=7.0) for clip in clips])
    return batch, torch.stack([(torch.arange(longest) < len(clip)).long() for clip in clips])


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Equal shapes, and values within `tolerance` of the largest, or of 1 where all are smaller."""
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach(), theirs.detach()
    gap, peak = (ours - theirs).abs().max(), max(1.0, float(theirs.abs().max()))
    assert gap <= tolerance * peak, f"{gap / peak:.1e} of the largest value apart"
