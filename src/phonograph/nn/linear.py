"""A matrix product that takes the faster of two kernels.

In float32 on a CPU the convolution kernels of oneDNN reach up to twice the rate of the BLAS behind
`torch.nn.functional.linear`, for some dozens to some hundreds of rows (docs/log.md); the two agree to rounding. In every other
case this is `torch.nn.functional.linear`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.nn.activations import ACTIVATIONS
from phonograph.nn.packed import Derived, fast_path, pack_linear, packed_linear

__all__ = ["Linear", "linear", "linear_together"]

_FEWEST_ROWS = 16
_MOST_ROWS = 512


class Linear(nn.Linear):
    """`torch.nn.Linear` over (..., in_features), with what follows it in the same kernel where there is one."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self._packed = Derived()

    def forward(self, x: Tensor, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        """(..., in_features) -> (..., out_features).

        Args:
            activation: name in ACTIVATIONS of what the result goes through.
            residual: (..., out_features), added to the result; not beside an activation.
        """
        assert activation is None or residual is None, "one of them can share the product's kernel"
        rows = x.reshape(-1, self.in_features)
        shape = (*x.shape[:-1], self.out_features)
        if fast_path(x, self):
            packed = self._packed.get(lambda: pack_linear(self.weight), self.weight)
            added = None if residual is None else residual.reshape(-1, self.out_features)
            return packed_linear(rows, packed, self.bias, added, activation).view(shape)
        out = linear(rows, self.weight, self.bias).view(shape)
        if residual is not None:
            return residual + out
        return out if activation is None else ACTIVATIONS[activation](out)


def linear_together(x: Tensor, parts: Sequence[Linear], packed: Derived) -> Tensor:
    """(B, T, I) -> (B, T, sum of all O): several layers over the same input, where it pays in one product."""

    def joined() -> tuple[Tensor, Tensor | None]:
        biases: list[Tensor] = [part.bias for part in parts if part.bias is not None]
        weights: list[Tensor] = [part.weight for part in parts]
        return torch.cat(weights), torch.cat(biases) if biases else None

    if x.device.type != "cpu" and torch.is_grad_enabled():  # each would be launched, and under autocast convert x, by itself
        return F.linear(x, *joined())
    if not fast_path(x, parts[0]):
        return torch.cat([part(x) for part in parts], dim=-1)

    def pack() -> tuple[Tensor, Tensor | None]:
        matrix, bias = joined()
        return pack_linear(matrix), None if bias is None else bias.detach()

    matrix, bias = packed.get(pack, *(tensor for part in parts for tensor in part.parameters()))
    return packed_linear(x.flatten(0, 1), matrix, bias).view(*x.shape[:2], -1)


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
