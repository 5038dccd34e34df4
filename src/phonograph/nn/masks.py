"""Which steps of a padded batch belong to its items."""

import torch
from torch import Tensor

from phonograph.errors import AudioError

__all__ = ["can_look", "inside", "lengths_of"]


def inside(lengths: Tensor, steps: int) -> Tensor:
    """(B,) lengths -> (B, steps) bool, true before each item's end."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def can_look(tensor: Tensor) -> bool:
    """Whether its values may be asked for: that would stall a GPU, and a compiled graph can't."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def lengths_of(mask: Tensor, name: str) -> Tensor:
    """Mask (B, T) of ones, then zeros -> true lengths (B,) int64.

    Args:
        name: of the mask in messages, with its article.

    Raises:
        AudioError: padding that is not on the right, where values can be looked at.
    """
    lengths = mask.long().sum(-1)
    if can_look(mask) and not torch.equal(mask.bool(), inside(lengths, mask.shape[1])):
        raise AudioError(f"expected {name} of ones, then zeros, got padding elsewhere; pad on the right")
    return lengths
