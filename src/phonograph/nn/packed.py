"""Weights in the blocked order that oneDNN's CPU kernels compute in, made once instead of in every call.

A convolution or matrix product called through `torch.nn.functional` reorders its weight each time, which for the 80 ms of a
live frame costs more than the arithmetic (docs/log.md). Here a module keeps the reordered copy beside its weight and makes it
again when the weight has changed. Used on CPUs, in evaluation mode and without gradients; everywhere else, and inside
`reference_path()`, the plain functions run. Both give the same numbers up to the order of summation.

The operators are those that torch.compile emits for frozen weights; where a build of torch lacks them nothing is packed.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = [
    "FUSED",
    "Convolution",
    "Derived",
    "fast_path",
    "has_kernels",
    "pack_linear",
    "packed_conv",
    "packed_conv_transpose",
    "packed_linear",
    "reference_path",
]

FUSED: dict[str | None, tuple[str, str]] = {
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "swish": ("swish", ""),
}
"""`activation` -> what oneDNN calls it: it is computed before the results leave the registers."""

_reference = contextvars.ContextVar("reference", default=False)


@contextlib.contextmanager
def reference_path() -> Iterator[None]:
    """Run everything inside by the plain functions of torch: what fast paths are checked against."""
    token = _reference.set(True)
    try:
        yield
    finally:
        _reference.reset(token)


class Derived:
    """A value computed from tensors, kept until one of them changes.

    A change is seen when it goes through the tensor (an optimiser's step, load_state_dict, `.to(...)`); one made through
    `.data` in place is not.
    """

    def __init__(self) -> None:
        self._key: list[object] | None = None
        self._storages: list[StorageWeakRef] = []  # while these are held, no other storage gets the address of one of them
        self._value: Any = None

    def get(self, make: Callable[[], Any], *sources: Tensor, dtype: torch.dtype | None = None) -> Any:
        """The value, from `make` if there is none of these very sources in this `dtype`."""
        if torch.compiler.is_compiling():
            return make()  # a compiled graph can't look at storages
        key: list[object] = [dtype]
        for source in sources:
            version = 0 if source.is_inference() else source._version
            key += (source.untyped_storage()._cdata, version, source.dtype, source.shape, source.device)
        if self._key != key:
            self._value, self._key = make(), key
            self._storages = [StorageWeakRef(source.untyped_storage()) for source in sources]
        return self._value

    def __reduce__(self) -> tuple[type["Derived"], tuple[()]]:
        return Derived, ()  # a copied or pickled module derives its own; packed weights can't be copied


class Convolution(Protocol):
    """What is read of a convolution: `torch.nn.Conv1d`, or anything with a weight (O, I / groups, K) of its own making."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    bias: Any  # Tensor | None; torch declares it a Parameter, which mypy takes as invariant

    @property
    def weight(self) -> Tensor:
        """(O, I / groups, K)."""


def _available(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


_AVAILABLE: dict[torch.dtype, bool] = {}


def _keep_freed_memory() -> None:
    """Have glibc keep what activations free for the next ones, instead of fetching fresh pages from the system each time.

    It keeps up to twice the largest mapped block freed so far, at most 64 MB (mallopt(3), M_TRIM_THRESHOLD). This one is
    never touched, so it takes no memory.
    """
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)


def fast_path(x: Tensor, module: nn.Module | None = None) -> bool:
    """Whether this call, of a module in evaluation mode or of a function, may take the paths made for inference on a CPU."""
    training = module is not None and module.training
    return not training and not torch.is_grad_enabled() and has_kernels(x)


def has_kernels(x: Tensor) -> bool:
    """Whether oneDNN's operators may be called by name for this input; they have no gradients of their own."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if torch.is_autocast_enabled("cpu"):
        return False  # these kernels take one type for all
    if _reference.get():  # last: a compiled graph can't read it
        return False
    if x.dtype not in _AVAILABLE:
        _AVAILABLE[x.dtype] = _available(x.dtype)
        _keep_freed_memory()
    return _AVAILABLE[x.dtype]


def pack_linear(weight: Tensor) -> Tensor:
    """(O, I) weight -> the same for `packed_linear`."""
    reordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
    return reordered


def packed_linear(
    x: Tensor, packed: Tensor, bias: Tensor | None, residual: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """(N, I) rows, a weight from `pack_linear` or a plain one (O, I), (O,) bias -> (N, O), added to (N, O) or activated."""
    out: Tensor
    if residual is None:
        name, variant = FUSED[activation]
        out = torch.ops.mkldnn._linear_pointwise(x, packed, bias, name, [], variant)
    else:
        out = torch.ops.mkldnn._linear_pointwise.binary(x, residual, packed, bias, "add")
    return out


def packed_conv(x: Tensor, conv: Convolution, padding: int, packed: Derived, activation: str | None = None) -> Tensor:
    """(B, I, 1, T), channels last -> (B, O, 1, T'), through an activation of FUSED."""
    stride, dilation = [1, conv.stride[0]], [1, conv.dilation[0]]
    name, variant = FUSED[activation]
    source = conv.weight

    def make() -> Tensor:
        reordered: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            source.detach().unsqueeze(2), [0, padding], stride, dilation, conv.groups, list(x.shape)
        )
        return reordered

    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, packed.get(make, source), conv.bias, [0, padding], stride, dilation, conv.groups, name, [], variant
    )
    return out


def packed_conv_transpose(x: Tensor, conv: nn.ConvTranspose1d, packed: Derived) -> Tensor:
    """(B, I, 1, T), channels last -> (B, O, 1, T')."""
    none, one, stride = [0, 0], [1, 1], [1, conv.stride[0]]

    def make() -> Tensor:
        weight = conv.weight.detach().unsqueeze(2)
        reordered: Tensor = torch.ops.mkldnn._reorder_convolution_transpose_weight(
            weight, none, none, stride, one, conv.groups, list(x.shape)
        )
        return reordered

    out: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
        x, packed.get(make, conv.weight), conv.bias, none, none, stride, one, conv.groups, "none", [], ""
    )
    return out
