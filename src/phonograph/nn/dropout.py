"""Dropout that draws its mask by the word on a processor, where torch draws it by the element."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Dropout", "dropout"]

_DRAWS = 2**16  # of which each element takes one


def dropout(x: Tensor, p: float) -> Tensor:
    """Elements set to 0 with the probability `p`, the others over 1 - p; on a processor `p` is rounded to 1 / 65,536.

    Each 64 random bits of torch's generator decide on four elements, in a quarter of `torch.nn.functional.dropout`'s time.

    Args:
        x: any shape, of a floating dtype.
        p: 0 to 1.
    """
    dropped = round(p * _DRAWS)
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not 0 < dropped < _DRAWS:
        return F.dropout(x, p) if p > 0 else x
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    draws = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = (draws >= dropped - _DRAWS // 2).to(x.dtype)
    return x * kept.mul_(_DRAWS / (_DRAWS - dropped))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, drawn by `dropout`. Training may change its `p` from step to step."""

    @property
    def now(self) -> float:
        """The probability as things are: 0 in evaluation."""
        return self.p if self.training else 0.0

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name that torch.nn.Dropout gives it)
        """Any shape -> the same shape."""
        return dropout(input, self.now)
