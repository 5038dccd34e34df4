"""A matrix product that takes the faster of two kernels, forth and back.

In float32 on a CPU oneDNN's products reach twice the rate of the BLAS behind `torch.nn.functional.linear` (docs/log.md); the
two agree to rounding. In every other case this is `torch.nn.functional.linear`.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.nn.activations import ACTIVATIONS
from phonograph.nn.packed import Derived, fast_path, has_kernels, pack_linear, packed_linear

__all__ = ["Linear", "linear", "linear_together"]

_FEWEST_ROWS = 16


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

    if torch.is_grad_enabled():  # each would be launched, and under autocast convert x, by itself
        matrix, bias = joined()
        return linear(x.flatten(0, 1), matrix, bias).view(*x.shape[:2], -1)
    if not fast_path(x, parts[0]):
        return torch.cat([part(x) for part in parts], dim=-1)

    def pack() -> tuple[Tensor, Tensor | None]:
        matrix, bias = joined()
        return pack_linear(matrix), None if bias is None else bias.detach()

    matrix, bias = packed.get(pack, *(tensor for part in parts for tensor in part.parameters()))
    return packed_linear(x.flatten(0, 1), matrix, bias).view(*x.shape[:2], -1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, I) rows, (O, I) weight, (O,) bias -> (N, O)."""
    if x.dtype is not torch.float32 or x.shape[0] < _FEWEST_ROWS or not has_kernels(x):
        return F.linear(x, weight, bias)
    return cast(Tensor, _Product.apply(x, weight, bias))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """oneDNN's product, whose gradients are products of the same kind."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return packed_linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            linear(gradient, weight.t()) if to_x else None,
            linear(gradient.t(), x.t()) if to_weight else None,
            gradient.sum(0) if to_bias else None,
        )
