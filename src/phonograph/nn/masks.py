"""Which steps of a padded batch belong to its items."""

import torch
from torch import Tensor

__all__ = ["inside"]


def inside(lengths: Tensor, steps: int) -> Tensor:
    """(B,) lengths -> (B, steps) bool, true before each item's end."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]
