"""Convolutions over time: plain, and causal ones that run in one pass or in a stream.

Shapes: B batch, T time, C channels. Activations are (B, T, C), contiguous: the channels-last order in which the convolution
kernels of CPUs and GPUs are fastest, so that no layer copies its input into another order. Weights keep the shape and the
name of `torch.nn.Conv1d` and `ConvTranspose1d`, so that checkpoints load without renaming; only their strides are
channels-last.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.errors import ConfigError, StreamError
from phonograph.nn.activations import ACTIVATIONS
from phonograph.nn.linear import linear
from phonograph.nn.masks import inside
from phonograph.nn.packed import (
    Convolution,
    Derived,
    fast_path,
    has_kernels,
    pack_linear,
    packed_conv,
    packed_conv_transpose,
    packed_linear,
)
from phonograph.nn.state import State, remember

__all__ = [
    "Conv1d",
    "Conv1dState",
    "ConvTranspose1dState",
    "StreamingConv1d",
    "StreamingConvTranspose1d",
    "ceil_div",
    "channels_last_",
    "convolve",
]


_FEWEST_INPUTS = 256


@dataclass
class Conv1dState(State):
    """The last `kernel - stride` inputs (B, kernel - stride, C); for replicate padding also whether there were any, (B,)."""

    past: Tensor
    started: Tensor


@dataclass
class ConvTranspose1dState(State):
    """The part of the last outputs that further inputs still add to, without bias, (B, kernel - stride, C)."""

    tail: Tensor


def ceil_div(lengths: Tensor, divisor: int) -> Tensor:
    """Lengths (any shape, int) divided and rounded up."""
    return torch.div(lengths + divisor - 1, divisor, rounding_mode="floor")


def channels_last_(module: nn.Conv1d | nn.ConvTranspose1d) -> None:
    """Lay a convolution's weight (O, I, K) out as (O, K, I) in memory; its shape stays."""
    weight = module.weight
    weight.data = weight.data.transpose(1, 2).contiguous().transpose(1, 2)


def convolve(x: Tensor, conv: Convolution, padding: int, packed: Derived | None, activation: str | None = None) -> Tensor:
    """(B, T, C_in) -> (B, T', C_out) by the weight of `conv`, `padding` zeros on both sides, and a name in ACTIVATIONS.

    Args:
        packed: keeps the weight in the order of the kernels made for inference; None does without those.
    """
    image = x.transpose(1, 2).unsqueeze(2)  # a 2-d convolution of height one: the 1-d entry points copy into channels-first
    if packed is not None:
        return packed_conv(image, conv, padding, packed, activation).squeeze(2).transpose(1, 2)
    if padding == 0 and _is_faster_as_product(x, conv):
        y = _convolve_by_product(x, conv)
    else:
        stride, dilation = (1, conv.stride[0]), (1, conv.dilation[0])
        y = F.conv2d(image, conv.weight.unsqueeze(2), conv.bias, stride, (0, padding), dilation, conv.groups)
        y = y.squeeze(2).transpose(1, 2)
    return y if activation is None else ACTIVATIONS[activation](y)


def _is_faster_as_product(x: Tensor, conv: Convolution) -> bool:
    """Whether oneDNN's gradients of a convolution take longer than gathering its windows: wide, strided ones in float32."""
    _, inputs, kernel = conv.weight.shape
    plain = conv.groups == 1 and conv.dilation[0] == 1
    pays = inputs >= _FEWEST_INPUTS and kernel <= min(2 * conv.stride[0], x.shape[1])
    return plain and pays and x.dtype is torch.float32 and torch.is_grad_enabled() and has_kernels(x)


def _convolve_by_product(x: Tensor, conv: Convolution) -> Tensor:
    outputs, _, kernel = conv.weight.shape
    stride, last = conv.stride[0], x.shape[1] - kernel
    windows = torch.cat([x[:, tap : last + tap + 1 : stride] for tap in range(kernel)], dim=-1)
    y = linear(windows.flatten(0, 1), conv.weight.transpose(1, 2).flatten(1), conv.bias)
    return y.view(x.shape[0], -1, outputs)


class Conv1d(nn.Conv1d):
    """`torch.nn.Conv1d` over (B, T, C), padded by zeros."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        channels_last_(self)
        self._packed = Derived()

    def forward(self, x: Tensor, activation: str | None = None) -> Tensor:
        """(B, T, C_in) -> (B, (T + 2 padding - kernel) // stride + 1, C_out), through a name in ACTIVATIONS."""
        return convolve(x, self, int(self.padding[0]), self._packed if fast_path(x, self) else None, activation)

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """Steps that come out for `lengths` (any shape, int) steps in."""
        reach = self.kernel_size[0] - 2 * int(self.padding[0])
        return torch.div(lengths - reach, self.stride[0], rounding_mode="floor") + 1


def _mask_after(x: Tensor, lengths: Tensor, pad_mode: str) -> Tensor:
    """Replace what lies after each item's own end by what padding the item alone would put there."""
    kept = inside(lengths, x.shape[1])[..., None]
    if pad_mode == "constant":
        return x.masked_fill(~kept, 0)
    if pad_mode == "replicate":
        last = (lengths - 1).clamp_min(0)[:, None, None].expand(-1, 1, x.shape[2])
        return torch.where(kept, x, x.gather(1, last).masked_fill((lengths == 0)[:, None, None], 0))
    raise ConfigError(
        f"expected pad_mode 'constant' or 'replicate' for a padded batch, got {pad_mode!r}; encode the items one by one"
    )


def _pad_time(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """Pad (B, T, C) along T. Reflection needs more samples than it adds, so a short input is first extended by zeros."""
    if left == 0 and right == 0:
        return x
    if mode == "constant":
        return F.pad(x, (0, 0, left, right))
    if mode == "replicate":
        first, last = x[:, :1].expand(-1, left, -1), x[:, -1:].expand(-1, right, -1)
        return torch.cat([first, x, last], dim=1)
    extra = max(0, max(left, right) - x.shape[1] + 1)
    padded = F.pad(F.pad(x, (0, 0, 0, extra)).transpose(1, 2), (left, right), mode=mode).transpose(1, 2)
    return padded[:, : padded.shape[1] - extra]


class StreamingConv1d(nn.Module):
    """`Conv1d` over (B, T, C) that pads like a causal stream and can be one.

    In one pass (state None) `kernel - stride` steps are padded on the left and the end is padded until the last window is
    whole: ceil(T / stride) steps come out. With a state the left padding is what came before and T must be whole strides.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        causal: bool = True,
        pad_mode: str = "constant",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, dilation=dilation, bias=bias)
        channels_last_(self.conv)
        self.stride = stride
        self.dilation = dilation
        self.context = (kernel_size - 1) * dilation + 1 - stride
        self.pointwise = kernel_size == stride == 1
        self.causal = causal
        self.pad_mode = pad_mode
        self._packed = Derived()

    def new_state(self, batch_size: int) -> Conv1dState:
        """A state in which nothing came before.

        Raises:
            StreamError: the convolution looks ahead, so it cannot run on a stream.
        """
        if not self.causal or self.pad_mode == "reflect":
            raise StreamError(
                f"expected causal convolutions padded by 'constant' or 'replicate' for a stream, got causal={self.causal}, "
                f"pad_mode={self.pad_mode!r}; run this model in one pass"
            )
        weight = self.conv.weight
        past = weight.new_zeros(batch_size, self.context, self.conv.in_channels)
        return Conv1dState(past, torch.zeros(batch_size, dtype=torch.bool, device=weight.device))

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """Steps that come out for `lengths` steps in."""
        return ceil_div(lengths, self.stride)

    def add_to(self, residual: Tensor, x: Tensor, state: Conv1dState | None, active: Tensor | None) -> Tensor:
        """residual (B, T, C_out) + forward(x), for a stride of one, in one kernel where there is one."""
        if not (self.pointwise and fast_path(x, self)):
            return residual + self.forward(x, state, None, active)
        rows = residual.reshape(-1, self.conv.out_channels)
        return packed_linear(x.flatten(0, 1), self._packed_matrix(), self.conv.bias, rows).view(residual.shape)

    def forward(
        self,
        x: Tensor,
        state: Conv1dState | None = None,
        lengths: Tensor | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C_in) -> (B, ceil(T / stride), C_out).

        Args:
            state: what came before; updated in place. None: nothing did, and nothing is written.
            active: (B,) bool, the streams whose state moves on; None is all.
            lengths: (B,) true lengths of the items; the result up to `out_lengths` is then that of each item alone.
        """
        if lengths is not None and (self.stride > 1 or not self.causal):
            x = _mask_after(x, lengths, self.pad_mode)
        if state is not None:
            assert x.shape[1] % self.stride == 0, "a stream is fed in whole strides"
            return self._convolve(self._prepend(x, state, active))
        if self.causal and self.pad_mode == "constant" and self.context >= self.stride - 1:
            # The kernel's own zero padding copies nothing; of what it adds on the right only the last window is wanted.
            return self._convolve(x, self.context)[:, : self._windows(x)]
        return self._convolve(self._pad(x))

    def _packed_matrix(self) -> Tensor:
        weight = self.conv.weight
        matrix: Tensor = self._packed.get(lambda: pack_linear(weight.squeeze(2)), weight)
        return matrix

    def _windows(self, x: Tensor) -> int:
        return math.ceil(x.shape[1] / self.stride)

    def _pad(self, x: Tensor) -> Tensor:
        extra = self._windows(x) * self.stride - x.shape[1]
        right = 0 if self.causal else self.context // 2
        return _pad_time(x, self.context - right, right + extra, self.pad_mode)

    def _prepend(self, x: Tensor, state: Conv1dState, active: Tensor | None) -> Tensor:
        if self.context == 0:
            return x
        past = state.past
        if self.pad_mode == "replicate":
            past = torch.where(state.started[:, None, None], past, x[:, :1])
            remember(state.started, torch.ones_like(state.started), active)
        x = torch.cat([past, x], dim=1)
        remember(state.past, x[:, -self.context :], active)
        return x

    def _convolve(self, x: Tensor, padding: int = 0) -> Tensor:
        fast = fast_path(x, self)
        if fast and self.pointwise:  # a matrix product, whose packed weight serves any number of steps
            return packed_linear(x.flatten(0, 1), self._packed_matrix(), self.conv.bias).view(*x.shape[:2], -1)
        return convolve(x, self.conv, padding, self._packed if fast else None)


class StreamingConvTranspose1d(nn.Module):
    """`ConvTranspose1d` over (B, T, C) that gives stride x T steps and can run on a stream.

    The last `kernel - stride` steps, to which further inputs would add, are dropped in one pass (`trim_right_ratio` of them
    on the right, the rest on the left) and kept in the state of a stream.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        groups: int = 1,
        bias: bool = True,
        causal: bool = True,
        trim_right_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias)
        channels_last_(self.conv)
        self.stride = stride
        self.overlap = kernel_size - stride
        self.trim_right = math.ceil(self.overlap * trim_right_ratio) if causal else self.overlap // 2
        self._packed = Derived()

    def new_state(self, batch_size: int) -> ConvTranspose1dState:
        """A state in which nothing came before.

        Raises:
            StreamError: part of the trimming is on the left, so outputs depend on later inputs.
        """
        if self.trim_right != self.overlap:
            raise StreamError(
                "expected causal convolutions and trim_right_ratio=1.0 for a stream, got a transposed convolution trimmed by "
                f"{self.overlap - self.trim_right} steps on the left; run this model in one pass"
            )
        return ConvTranspose1dState(self.conv.weight.new_zeros(batch_size, self.overlap, self.conv.out_channels))

    def forward(self, x: Tensor, state: ConvTranspose1dState | None = None, active: Tensor | None = None) -> Tensor:
        """(B, T, C_in) -> (B, stride * T, C_out); `state` is updated in place, in the `active` (B,) streams or all."""
        y = self._convolve(x)
        if state is None:
            return y[:, self.overlap - self.trim_right : y.shape[1] - self.trim_right]
        if self.overlap == 0:
            return y
        if torch.is_grad_enabled():
            y = y.clone()  # the tail is added in place, to what backward may need as it was
        y[:, : self.overlap] += state.tail
        tail, bias = y[:, -self.overlap :].detach(), self.conv.bias
        remember(state.tail, tail if bias is None else tail - bias, active)
        return y[:, : -self.overlap]

    def _convolve(self, x: Tensor) -> Tensor:
        image = x.transpose(1, 2).unsqueeze(2)
        if fast_path(x, self):
            y = packed_conv_transpose(image, self.conv, self._packed)
        else:
            weight, stride = self.conv.weight.unsqueeze(2), (1, self.stride)
            y = F.conv_transpose2d(image, weight, self.conv.bias, stride, groups=self.conv.groups)
        return y.squeeze(2).transpose(1, 2)
