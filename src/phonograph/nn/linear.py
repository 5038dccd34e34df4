"""A matrix product that takes the faster of two kernels.

In float32 on a CPU the convolution kernels of oneDNN reach up to twice the rate of the BLAS behind
`torch.nn.functional.linear`, for some dozens to some hundreds of rows (docs/log.md); the two agree to rounding. In every other
case this is `torch.nn.functional.linear`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.nn.packed import Derived, fast_path, pack_linear, packed_linear

__all__ = ["Linear", "linear"]

_FEWEST_ROWS = 16
_MOST_ROWS = 512


class Linear(nn.Linear):
    """`torch.nn.Linear` over (B, T, in_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self._packed = Derived()

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, in_features) -> (B, T, out_features)."""
        rows = x.flatten(0, 1)
        if fast_path(x, self):
            packed = self._packed.get(lambda: pack_linear(self.weight), self.weight)
            out = packed_linear(rows, packed, self.bias)
        else:
            out = linear(rows, self.weight, self.bias)
        return out.view(*x.shape[:2], -1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, I) rows, (O, I) weight, (O,) bias -> (N, O)."""
    if x.dtype is not torch.float32 or x.device.type != "cpu" or x.shape[0] < _FEWEST_ROWS:
        return F.linear(x, weight, bias)
    if x.shape[0] <= _MOST_ROWS:
        return _pointwise_convolution(x, weight, bias)
    return torch.cat([_pointwise_convolution(rows, weight, bias) for rows in x.split(_MOST_ROWS)])


def _pointwise_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    image = x.t()[None, :, None]  # (1, I, 1, N), channels last in memory
    return F.conv2d(image, weight[:, :, None, None], bias)[0, :, 0].t()
