"""Random Mimis in which every weight matters, and the check that two lists of codes differ only in ties.

A freshly initialised model hides faults: its layer scales are 0.01, its norms the identity, its codebooks far from the latents.
"""

from typing import Any

import torch
from torch import Tensor

from phonograph import MimiConfig, MimiModel

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_filters": 4,
    "codebook_size": 64,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 4,
    "upsample_groups": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "sliding_window": 10,
    "upsampling_ratios": [4, 3, 2],
}
"""Frames of 48 samples; a window of 10 steps is 5 frames."""

ODD: dict[str, dict[str, Any]] = {
    "grouped heads, shortcut, two residual layers": TINY
    | {
        "num_key_value_heads": 2,
        "upsampling_ratios": [5, 2],
        "sampling_rate": 8000,
        "use_conv_shortcut": True,
        "num_residual_layers": 2,
        "upsample_groups": 8,
    },
    "wide kernels, head size of its own": TINY
    | {
        "head_dim": 6,
        "kernel_size": 5,
        "last_kernel_size": 5,
        "residual_kernel_size": 5,
        "dilation_growth_rate": 3,
        "num_residual_layers": 3,
        "compress": 4,
        "hidden_act": "silu",
    },
    "even kernels": TINY | {"kernel_size": 6, "last_kernel_size": 4, "residual_kernel_size": 2},
    "stereo, attention bias, two semantic": TINY
    | {"audio_channels": 2, "attention_bias": True, "num_semantic_quantizers": 2, "num_quantizers": 5},
    "replicate": TINY | {"pad_mode": "replicate", "use_conv_shortcut": True},
    "linear rope, four to one": TINY
    | {
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
        "sampling_rate": 4800,
        "frame_rate": 50.0,
    },
}
"""Configurations that can stream."""

LOOKING_AHEAD: dict[str, dict[str, Any]] = {
    "reflect": TINY | {"pad_mode": "reflect"},
    "half trimmed": TINY | {"trim_right_ratio": 0.5},
    "not causal": TINY | {"use_causal_conv": False, "num_residual_layers": 2},
    "not causal, reflect": TINY | {"use_causal_conv": False, "num_residual_layers": 2, "pad_mode": "reflect"},
    "not causal, replicate, even kernels": TINY
    | {
        "use_causal_conv": False,
        "pad_mode": "replicate",
        "kernel_size": 6,
        "last_kernel_size": 4,
        "residual_kernel_size": 2,
        "upsample_groups": 16,
    },
}
"""Configurations that work in one pass only."""


def noise(batch: int, channels: int, samples: int, seed: int = 0) -> Tensor:
    """(batch, channels, samples), quiet."""
    return 0.1 * torch.randn(batch, channels, samples, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def random_mimi(seed: int = 0, **fields: Any) -> MimiModel:
    """A model in evaluation mode whose codebooks lie where its latents of noise do."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = MimiModel(MimiConfig(**fields)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".scale"):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        elif parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    latents = model.encode_latents(noise(1, model.config.audio_channels, 20 * model.frame_samples, seed))
    for part in _parts(model):
        spread = part._project_in(latents).std()
        for depth, codebook in enumerate(part.codebooks(len(part.layers))):
            usage = 0.5 + torch.rand(codebook.cluster_usage.shape, generator=generator)
            usage[0] = 0  # an entry that training never used
            centroids = 0.8**depth * spread * torch.randn(codebook.embed_sum.shape, generator=generator)
            codebook.cluster_usage.copy_(usage)
            codebook.embed_sum.copy_(centroids * usage.clamp_min(1e-5)[:, None])
            codebook.initialized.fill_(1)
    return model


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Equal shapes, and values within `tolerance` of the largest."""
    assert ours.shape == theirs.shape
    gap, peak = (ours - theirs).abs().max(), theirs.abs().max()
    assert gap <= tolerance * peak, f"{gap / peak:.1e} of the largest value apart"


@torch.no_grad()
def assert_same_codes(model: MimiModel, audio: Tensor, ours: Tensor, theirs: Tensor) -> int:
    """Codes (B, Q, F) are equal, save where a frame parts at a tie within rounding; how many of them are equal."""
    assert ours.shape == theirs.shape
    equal = int((ours == theirs).sum())
    if equal == ours.numel():
        return equal
    latents = model.encode_latents(audio)
    split = model.config.num_semantic_quantizers
    for part, mine, other in zip(_parts(model), _split(ours, split), _split(theirs, split), strict=True):
        residual = part._project_in(latents).double().view(*latents.shape[:2], -1)
        apart = torch.zeros(mine.shape[0], mine.shape[2], dtype=torch.bool)
        for depth, codebook in enumerate(part.codebooks(mine.shape[1])):
            centroids = codebook.embed_sum.double() / codebook.cluster_usage.clamp_min(codebook.epsilon)[:, None]
            parting = (mine[:, depth] != other[:, depth]) & ~apart
            for item, frame in parting.nonzero().tolist():
                distances = (residual[item, frame] - centroids).square().sum(-1)
                scale = residual[item, frame].square().sum() + centroids.square().sum(-1).mean()
                for code in (mine[item, depth, frame], other[item, depth, frame]):
                    gap = distances[code] - distances.min()
                    assert gap <= 1e-5 * scale, f"codebook {depth}, frame {frame}: {code} is no tie ({gap / scale:.1e})"
            apart |= parting
            residual = residual - centroids[mine[:, depth]]
    return equal


def _split(codes: Tensor, semantic: int) -> tuple[Tensor, ...]:
    return codes.split([semantic, codes.shape[1] - semantic], 1)


def _parts(model: MimiModel) -> list[Any]:
    quantizer = model.quantizer
    return [quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer]
