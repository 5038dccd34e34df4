"""Activation functions under the names that config.json files use."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.nn.packed import fast_path

__all__ = ["ACTIVATIONS", "ELU"]

_gelu_tanh = partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}
"""`hidden_act` -> function."""

_ELU_VALUES = 1 << 18
"""Values at a time: what is worked in stays in the cache, and is memory that malloc has at hand."""


class ELU(nn.Module):
    """Exponential linear unit, x or exp(x) - 1 where that is larger.

    Args:
        inplace: the input may be overwritten.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        if not fast_path(x, self) or not x.is_contiguous():
            return F.elu(x, inplace=self.inplace)
        out = x if self.inplace else torch.empty_like(x)
        below = x.new_empty(min(x.numel(), _ELU_VALUES), dtype=torch.float32)
        wide = None if x.dtype is torch.float32 else torch.empty_like(below)
        values, results = x.view(-1), out.view(-1)
        if x.numel() <= _ELU_VALUES:
            _elu(values, below, wide, results)
            return out
        for value, result in zip(values.split(_ELU_VALUES), results.split(_ELU_VALUES), strict=True):
            _elu(value, below[: len(value)], None if wide is None else wide[: len(value)], result)
        return out


def _elu(x: Tensor, below: Tensor, wide: Tensor | None, out: Tensor) -> None:
    """ELU of `x` into `out`, which may be `x`; `below` and `wide` are float32 memory to work in, the latter for other types."""
    values = x if wide is None else wide.copy_(x)
    # In float32 torch vectorises exp2 about five times better than elu; through it the two differ by one rounding.
    torch.clamp_max(values, 0, out=below).mul_(math.log2(math.e)).exp2_().sub_(1)
    if wide is None:
        torch.maximum(values, below, out=out)
    else:
        out.copy_(torch.maximum(values, below, out=below))
