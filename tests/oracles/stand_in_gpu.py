"""A stand-in for a GPU on a machine without one: the device type "gpu", whose tensors are kept in the processor's memory.

    with StandInGpu() as gpu:
        model = gpu.move(model)
        loss = model(waveforms.to("gpu")).loss
        loss.backward()
    gpu.waits      # what a GPU would have made the processor wait for, and where
    gpu.kernels    # operators that a GPU would have been asked for, by name

Numbers are true, so results can be held to those of a CPU. Code that asks for the device's type takes the branch of a GPU.
Operators whose tensors are on two devices are refused as CUDA refuses them; autocast has CUDA's policy. Every wait is noted:

- "read": a value goes back to the processor (`.item()`, `bool()`, `.tolist()`, `.cpu()`, `torch.equal`).
- "upload": a copy from the processor's memory that is not `non_blocking`, `torch.tensor(..., device=...)` among them.
- "shape": the shape of a result depends on values (`nonzero`, masks as indices, `bincount`).
- "ctc": torch's CTC loss, which copies lengths and offsets to the device itself, forward and backward.

What it can't see: the numbers and the speed of a GPU's own kernels, what they refuse (types, alignment, sizes), memory, pinned
memory, streams, CUDA graphs (see stand_in_graph.py), random generators of the device, several devices.

The device type is registered in the whole process and stays there, and autograd learns of it only before its first use:
use it in a process of its own, as tests/test_stand_in_gpu.py does.
"""

import functools
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._foreach_utils import _foreach_supported_types
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

__all__ = ["DEVICE", "StandInGpu", "Wait"]

M = TypeVar("M", bound=nn.Module)
aten = torch.ops.aten


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("gpu", _Backend())
DEVICE = torch.device("gpu", 0)


@dataclass(frozen=True)
class Wait:
    """What is waited for, the operator, and the line of the package that called it; in a backward pass that is "elsewhere"."""

    kind: str
    operator: str
    where: str

    def __str__(self) -> str:
        return f"{self.kind} by {self.operator} at {self.where}"


class _OnDevice(Tensor):
    """A tensor of the device, which holds one of the processor."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "_OnDevice":
        made: _OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        super().__init__()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"on_device({self.held})"

    def tolist(self) -> Any:
        _note("read", "tolist")
        return self.held.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _enter_no_grad(self: Any) -> None:
    self.stand_in = torch.set_grad_enabled(not self.mode and torch.is_grad_enabled())
    self.stand_in.__enter__()


def _leave_no_grad(self: Any, *exception: Any) -> None:
    self.stand_in.__exit__(*exception)


# In inference mode tensors such as these have neither views nor versions; what else it forbids is seen on a CPU.
torch.inference_mode.__enter__ = _enter_no_grad  # type: ignore[method-assign]
torch.inference_mode.__exit__ = _leave_no_grad  # type: ignore[method-assign]
_foreach_supported_types.append(_OnDevice)


class StandInGpu(TorchDispatchMode):
    """The device, as long as the block runs.

    Attributes:
        waits: in their order.
        kernels: how often each operator that computes or copies was called.
        uploads: copies to the device that nothing waits for.
    """

    current: "StandInGpu | None" = None

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        self.forget()

    def forget(self) -> None:
        """Count from nothing again."""
        self.waits: list[Wait] = []
        self.kernels: Counter[str] = Counter()
        self.uploads: list[Wait] = []

    @property
    def kinds(self) -> Counter[str]:
        """Waits by kind."""
        return Counter(wait.kind for wait in self.waits)

    def __enter__(self) -> "StandInGpu":
        self._depth += 1
        StandInGpu.current = self
        torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device=...) makes its copy in sight
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._depth -= 1
        if not self._depth:
            torch._C._set_only_lift_cpu_tensors(False)
            StandInGpu.current = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @staticmethod
    def move(module: M) -> M:
        """The module with its parameters and buffers on the device; what was one parameter stays one."""
        moved: dict[int, Tensor] = {}
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and parameter.device != DEVICE:
                    there = nn.Parameter(_OnDevice(parameter.detach().clone()), parameter.requires_grad)
                    part._parameters[name] = moved.setdefault(id(parameter), there)  # type: ignore[assignment]
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.device != DEVICE:
                    part._buffers[name] = moved.setdefault(id(buffer), _OnDevice(buffer.clone()))
        return module


# ------------------------------------------------------------------------------------------------------------------ waits

_SHAPES = {
    aten.nonzero,
    aten.masked_select,
    aten.unique_dim,
    aten.unique_consecutive,
    aten._unique2,
    aten.bincount,
    aten.repeat_interleave,
}
_READS = {aten._local_scalar_dense, aten.equal, aten.is_nonzero}
_CTC = {aten._ctc_loss, aten._ctc_loss_backward}
_INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
_COPIES = {aten._to_copy, aten.copy_}
_FREE = ("empty", "detach", "alias", "lift", "set_", "_record_function", "_local_scalar", "_unsafe_view")


def _note(kind: str, operator: str) -> None:
    if StandInGpu.current is not None:
        StandInGpu.current.waits.append(Wait(kind, operator, _where()))


def _where() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("phonograph."):
            path = module.removeprefix("phonograph.").replace(".", "/")
            return f"{path}.py:{frame.f_lineno} {frame.f_code.co_name}"
        if module == "lightning_fabric.utilities.apply_func":
            return "loop"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _note_waits(func: Any, args: Any, kwargs: Any) -> None:
    packet, here = func.overloadpacket, isinstance(args[0], _OnDevice) if args else False
    name = str(packet).removeprefix("aten.")
    if packet in _READS:
        _note("read", name)
    elif packet in _CTC:
        lengths = [
            value for value in args if isinstance(value, _OnDevice) and value.dim() == 1 and not value.is_floating_point()
        ]
        for _ in lengths:
            _note("read", name)
        _note("ctc", name)
    elif packet in _SHAPES and kwargs.get("output_size") is None:
        _note("shape", name)
    elif packet in _INDEXED:
        _note_indices(name, args)
    elif packet is aten.copy_ and here != isinstance(args[1], _OnDevice):
        _note_copy(name, upload=here, asynchronous=(args[2] if len(args) > 2 else kwargs.get("non_blocking")))
    elif packet is aten._to_copy and (target := kwargs.get("device")) is not None and here != (target.type == "gpu"):
        _note_copy(name, upload=not here, asynchronous=kwargs.get("non_blocking"))


def _note_copy(name: str, *, upload: bool, asynchronous: Any) -> None:
    if upload and asynchronous and StandInGpu.current is not None:
        StandInGpu.current.uploads.append(Wait("upload", name, _where()))
    else:
        _note("upload" if upload else "read", name)


def _note_indices(name: str, args: Any) -> None:
    indices = [index for index in args[1] if index is not None]
    masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
    filled = "put" in name and len(masks) == len(indices) and args[2].numel() == 1 and not (len(args) > 3 and args[3])
    if masks and not filled:
        _note("shape", name)
    for index in indices:
        if not isinstance(index, _OnDevice):
            _note("upload", name)


# -------------------------------------------------------------------------------------------------------------- operators


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operator on the tensors held, its result on the device that it belongs to."""
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    there = any(isinstance(value, _OnDevice) for value in given)
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    onto = device is not None and device.type == "gpu"
    if not there and not onto:
        return func(*args, **kwargs)
    _check_devices(func, args, given, there)
    _note_waits(func, args, kwargs)
    _count(func)
    held_kwargs = tree_map(_held, kwargs)
    if onto:
        held_kwargs["device"] = torch.device("cpu")
    out = func(*tree_map(_held, args), **held_kwargs)
    if device is not None and not onto:
        return out
    if func.overloadpacket is aten.copy_ and not isinstance(args[0], _OnDevice):
        return args[0]
    out = tree_map(lambda value: _OnDevice(value) if isinstance(value, Tensor) else value, out)
    if torch.Tag.inplace_view in func.tags:
        return return_and_correct_aliasing(func, args, kwargs, out)
    return _written(func, args, kwargs, out)


def _written(func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    """The results, or in the place of those that are arguments written to, these arguments."""
    if not func._schema.is_mutable:
        return out
    given = {argument.name: kwargs.get(argument.name) for argument in func._schema.arguments}
    given |= dict(zip(given, args, strict=False))
    places = {
        alias: given[argument.name]
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for alias in argument.alias_info.before_set
    }
    several = len(func._schema.returns) > 1
    results = [
        value if returned.alias_info is None else places[next(iter(returned.alias_info.before_set))]
        for returned, value in zip(func._schema.returns, out if several else [out], strict=False)
    ]
    return tuple(results) if several else results[0] if results else out


def _held(value: Any) -> Any:
    return value.held if isinstance(value, _OnDevice) else value


def _check_devices(func: Any, args: Any, given: list[Tensor], there: bool) -> None:
    packet = func.overloadpacket
    if not there or packet in _COPIES | _CTC:
        return
    numbers = torch.Tag.pointwise in func.tags or packet in _INDEXED  # these take a CPU's tensor of one number as a number
    brought = args[1] if packet in _INDEXED and isinstance(args[0], _OnDevice) else []  # indices are copied there
    strangers = [
        value
        for value in given
        if not isinstance(value, _OnDevice) and not (numbers and value.dim() == 0) and not any(value is one for one in brought)
    ]
    if strangers:
        shapes = ", ".join(str(tuple(value.shape)) for value in strangers)
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {packet} got tensors of shape {shapes} on the cpu and "
            f"others on {DEVICE}, at {_where()}"
        )


def _count(func: Any) -> None:
    name = _kernel(func)
    if StandInGpu.current is not None and name is not None:
        StandInGpu.current.kernels[name] += 1


@functools.cache
def _kernel(func: Any) -> str | None:
    """The name of an operator that computes or copies; None for views and for memory."""
    name = str(func.overloadpacket).removeprefix("aten.")
    view = any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns)
    return None if view or name.startswith(_FREE) or func.namespace != "aten" else name


class _Attention(torch.autograd.Function):
    """One kernel each way, as on a GPU, and not what a CPU would make of it."""

    @staticmethod
    def forward(ctx: Any, attend: Callable[..., Tensor], *given: Tensor | None) -> Tensor:
        ctx.attend = attend
        ctx.save_for_backward(*given)
        _count(aten.scaled_dot_product_attention.default)
        return _OnDevice(attend(*(None if value is None else value.held for value in given)))

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        _count(aten.scaled_dot_product_attention.default)
        wanted = ctx.needs_input_grad[1:]
        values = [None if value is None else value.held.detach() for value in ctx.saved_tensors]
        with torch.enable_grad():
            values = [value.requires_grad_() if needed else value for value, needed in zip(values, wanted, strict=True)]
            out = ctx.attend(*values)
        sources = [value for value, needed in zip(values, wanted, strict=True) if needed]
        found = iter(torch.autograd.grad(out, sources, gradient.held))
        return None, *(_OnDevice(next(found)) if needed else None for needed in wanted)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    given = [tensor for tensor in (query, key, value, attn_mask) if tensor is not None]
    _check_devices(aten.scaled_dot_product_attention.default, (), given, True)
    seed = int(torch.randint(2**31, ())) if dropout_p else 0

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        with torch.random.fork_rng([], enabled=dropout_p > 0):
            if dropout_p > 0:
                torch.manual_seed(seed)  # backward drops what forward dropped
            return nn.functional.scaled_dot_product_attention(
                q, k, v, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )

    return _Attention.apply(attend, query, key, value, attn_mask)  # type: ignore[no-untyped-call]


_AUTOGRAD = torch.library.Library("aten", "IMPL", "AutogradPrivateUse1")
_AUTOGRAD.impl("scaled_dot_product_attention", _attention)


# --------------------------------------------------------------------------------------------------------------- autocast

# The lists of https://docs.pytorch.org/docs/stable/amp.html for CUDA, as far as they are of use to speech.
_NARROWED = (
    "addmm addbmm addmv addr baddbmm bmm chain_matmul conv1d conv2d conv3d conv_transpose1d conv_transpose2d convolution "
    "linear matmul mm mv prelu scaled_dot_product_attention"
)
_WIDENED = (
    "cosine_similarity exp expm1 group_norm hinge_embedding_loss l1_loss layer_norm log log10 log1p log2 logsumexp mse_loss "
    "native_layer_norm nll_loss norm.Scalar pow.Tensor_Scalar pow.Scalar pow.Tensor_Tensor reciprocal rsqrt smooth_l1_loss "
    "softplus stft"
)
_WIDE_RESULT = "cumprod.default cumsum.default linalg_vector_norm log_softmax.int prod softmax.int sum sum.dim_IntList"
_PROMOTED = "addcdiv addcmul atan2 bilinear cat cross dot index_put scatter_add stack tensordot"
_narrow_weights: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    found = getattr(aten, packet)
    return getattr(found, overload or ("default" if "default" in found.overloads() else found.overloads()[0]))


def _narrowed(value: Any) -> Any:
    dtype = torch.get_autocast_dtype("gpu")
    if not isinstance(value, Tensor) or value.dtype is not torch.float32 or not isinstance(value, _OnDevice):
        return value
    if not (value.is_leaf and value.requires_grad and torch.is_autocast_cache_enabled()):
        return value.to(dtype)
    kept = _narrow_weights.get((id(value), value._version))
    if kept is None or kept[0] is not value:
        kept = _narrow_weights[id(value), value._version] = (value, value.to(dtype))
    return kept[1]


def _widened(value: Any) -> Any:
    narrow = isinstance(value, _OnDevice) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if narrow else value


def _as_it_is(value: Any) -> Any:
    return value


def _with_policy(operator: Any, policy: str) -> Callable[..., Any]:
    names = [argument.name for argument in operator._schema.arguments]

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            change = {"narrowed": _narrowed, "widened": _widened}.get(policy, _as_it_is)
            if policy == "wide result":
                given = dict(zip(names, args, strict=False)) | kwargs
                if given.get("dtype") is None and args[0].dtype in (torch.bfloat16, torch.float16):
                    return operator(**given | {"dtype": torch.float32})
            if policy == "promoted":
                types = {value.dtype for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
                change = _widened if torch.float32 in types else _as_it_is
            return operator(*tree_map(change, args), **tree_map(change, kwargs))

    return call


_FALLTHROUGH = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_FALLTHROUGH.fallback(torch.library.fallthrough_kernel)
_AUTOCAST = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
_POLICIES = {"narrowed": _NARROWED, "widened": _WIDENED, "wide result": _WIDE_RESULT, "promoted": _PROMOTED}
for _policy, _names in _POLICIES.items():
    for _name in _names.split():
        _operator = _overload(_name)
        _AUTOCAST.impl(_operator, _with_policy(_operator, _policy))

_clear_cache = torch.clear_autocast_cache


def _clear_narrow_weights() -> None:
    _narrow_weights.clear()
    _clear_cache()


torch.clear_autocast_cache = _clear_narrow_weights  # at the end of each autocast, as the cache of CUDA's
