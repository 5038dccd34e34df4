"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-split order of the hub's checkpoints.

Shapes: B batch, H heads, T time, D head size. Positions are integers of any size: angles are computed in float64, so a stream
that has run for days is placed as exactly as its first second.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["apply_rotary", "inverse_frequencies", "rotary_angles"]


def inverse_frequencies(rope_parameters: Mapping[str, Any], head_dim: int) -> Tensor:
    """(D / 2,) float64 radians per step, the fastest first.

    `rope_type` is default or linear, which configurations check before a model is built.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = float(rope_parameters["rope_theta"]) ** -exponent
    scaled = rope_parameters["rope_type"] == "linear"
    return frequencies / float(rope_parameters["factor"]) if scaled else frequencies


def rotary_angles(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines, and sines with the sign of their half, each (..., T, D) in `dtype`, for integer positions (..., T)."""
    angles = positions.to(torch.float64)[..., None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, H, T, D): element i is paired with element i + D / 2; cos and sin broadcast to (B, H, T, D)."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
