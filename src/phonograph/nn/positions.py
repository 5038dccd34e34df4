"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-split order of the hub's checkpoints.

Shapes: B batch, H heads, T time, D head size. Positions are integers of any size: angles are computed in float64, so a stream
that has run for days is placed as exactly as its first second.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from phonograph.errors import ConfigError

__all__ = ["apply_rotary", "inverse_frequencies", "rotary_angles"]


def inverse_frequencies(rope_parameters: Mapping[str, Any], head_dim: int) -> Tensor:
    """(D / 2,) float64 radians per step, the fastest first.

    Raises:
        ConfigError: a rope type that no published checkpoint of these families uses.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = float(rope_parameters["rope_theta"]) ** -exponent
    rope_type = rope_parameters["rope_type"]
    if rope_type == "default":
        return frequencies
    if rope_type == "linear":
        return frequencies / float(rope_parameters["factor"])
    raise ConfigError(f"expected rope_type 'default' or 'linear' to build a model, got {rope_type!r}; change rope_parameters")


def rotary_angles(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each (..., T, D / 2) in `dtype`, for integer positions (..., T)."""
    angles = positions.to(torch.float64)[..., None] * frequencies.to(positions.device)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, H, T, D): element i is paired with element i + D / 2; cos and sin broadcast to (B, H, T, D / 2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
