"""Processes and devices, by Lightning Fabric: one process, or several that torchrun has started, with DDP or FSDP.

    engine = Engine(LoopOptions(...), device="cuda")
    engine.set_up(task.modules)
    losses = engine.compute(iterator)  # next(iterator), under autocast and seen by DDP or FSDP
    engine.backward(losses)

DDP and FSDP act where a module's forward is called. The forward here is `next` on a task's generator of losses, so that
whatever the task calls in whatever way is covered, and tasks see their own modules only. FSDP shards parameters, gradients,
moments and averages between steps, and gathers the parameters for each step.
"""

import atexit
import contextlib
import dataclasses
import datetime
import functools
import inspect
import logging
import os
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from phonograph.errors import ConfigError, MissingExtraError
from phonograph.training.recipe import LoopOptions
from phonograph.training.task import Losses

__all__ = ["Engine", "Phases"]

_PATIENCE = datetime.timedelta(days=1)
"""How long processes wait for one another: for as long as the first one judges. One that has died is noticed by torchrun."""
# Its name in newer versions of torch and in older ones.
_DDP_OPTIONS = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
_BUFFERS_ARE_SENT = "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers"


class _NoMorePhasesError(Exception):
    """DDP expects a backward pass after a forward that returns, but not after one that raises."""


class Phases(nn.Module):
    """The task's modules and the one forward that is called of them.

    Args:
        unused: hold a parameter that no loss uses. DDP looks for such ones, and warns where the first step has none.
        complete: give a gradient of 0 to parameters that a loss doesn't use, such as those of a layer that is dropped. FSDP
            needs the same ones to have gradients on all processes.
    """

    losses: Losses

    def __init__(self, modules: nn.ModuleDict, *, unused: bool = False, complete: bool = False) -> None:
        super().__init__()
        self.complete = complete
        self.trained = modules
        if unused:
            self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, iterator: Iterator[Losses]) -> Tensor:
        losses = next(iterator, None)
        if losses is None:
            raise _NoMorePhasesError
        self.losses = losses
        if not self.complete:
            return losses.total
        trained = [parameter.sum() for parameter in self.trained.parameters() if parameter.requires_grad]
        return losses.total + 0.0 * torch.stack(trained).sum()


class Engine:
    """Where a run is computed.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1" or "mps"; under torchrun without a number.

    Raises:
        ConfigError: there is no such device. MissingExtraError: lightning-fabric is not installed.
    """

    def __init__(self, options: LoopOptions, device: str = "auto") -> None:
        try:
            from lightning_fabric import Fabric
        except ImportError as error:
            raise MissingExtraError("training", "lightning-fabric", "train") from error
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.sharded = options.distributed == "fsdp" and self.world > 1
        kind, devices = _devices(device)
        self.fabric = Fabric(
            accelerator=kind,
            devices=devices,
            num_nodes=max(self.world // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1),
            strategy=self._strategy(),
            precision="bf16-mixed" if options.precision == "bfloat16" else "32-true",
        )
        self.fabric.launch()
        if self.world > 1:
            atexit.register(_leave)
        self.rank = self.fabric.global_rank
        self.device = self.fabric.device

    def _strategy(self) -> Any:
        from lightning_fabric.strategies.ddp import DDPStrategy
        from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

        if self.world == 1:
            return "auto"
        if self.sharded:
            return ModelParallelStrategy(_shard, data_parallel_size=self.world, tensor_parallel_size=1, timeout=_PATIENCE)
        # Whether there were parameters without a gradient depends on the step: layers are dropped, parts are frozen.
        # Buffers are equal on all processes, as `Task` wants them, and need not be sent before each phase.
        buffers: dict[str, Any] = {_BUFFERS_ARE_SENT: False}
        return DDPStrategy(find_unused_parameters=True, timeout=_PATIENCE, **buffers)

    def set_up(self, modules: nn.ModuleDict) -> None:
        """Move the modules to the device and wrap them; under FSDP their parameters are other objects from then on."""
        by_ddp = self.world > 1 and not self.sharded
        self._phases = Phases(modules, unused=by_ddp, complete=self.sharded)
        self._wrapped = self.fabric.setup_module(self._phases)
        if by_ddp:
            for parameter in modules.parameters():
                if parameter.requires_grad:
                    parameter.register_hook(functools.partial(_laid_out, strides=parameter.stride()))

    def compute(self, iterator: Iterator[Losses]) -> Losses | None:
        """The next phase's losses, None after the last."""
        try:
            total = self._wrapped(iterator)
        except _NoMorePhasesError:
            return None
        # What the wrappers return carries their hooks.
        return dataclasses.replace(self._phases.losses, total=total)

    def backward(self, losses: Losses) -> None:
        """Add the gradient of `total * weight`; several processes' gradients become their mean at the last micro-batch."""
        self.fabric.backward(losses.total * losses.weight)

    def unsynchronised(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        """Keep each process's gradients to itself while the block runs."""
        if not wanted or self.world == 1:
            return contextlib.nullcontext()
        return self.fabric.no_backward_sync(self._wrapped)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return cast(Tensor, self.fabric.all_reduce(values, reduce_op="sum")) if self.world > 1 else values

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Whole parameters in the modules, for reading, while the block runs; entered by all processes."""
        sharded = [
            (module, name, parameter)
            for module in self._phases.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if isinstance(parameter, DTensor)
        ]
        whole = {parameter: nn.Parameter(parameter.full_tensor(), parameter.requires_grad) for _, _, parameter in sharded}
        for module, name, parameter in sharded:
            module.register_parameter(name, whole[parameter])
        try:
            yield
        finally:
            for module, name, parameter in sharded:
                module.register_parameter(name, parameter)

    def description(self) -> str:
        """Number and name of the devices."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{self.world} x {name}"


def _leave() -> None:
    """Before Python ends: the threads of a group that is still there may wake up after it and abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _laid_out(gradient: Tensor, strides: tuple[int, ...]) -> Tensor:
    """With its parameter's strides, in which DDP sends it, and without which it warns; convolutions give others."""
    if gradient.stride() == strides:
        return gradient
    return torch.empty_strided(gradient.shape, strides, dtype=gradient.dtype, device=gradient.device).copy_(gradient)


def _shard(module: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP takes no others, and convolutions keep channels last
    fully_shard(module, mesh=mesh["data_parallel"])
    return module


def _devices(device: str) -> tuple[str, Any]:
    kind, _, number = device.partition(":")
    if "WORLD_SIZE" in os.environ:
        if number:
            raise ConfigError(f"expected --device cpu or cuda under torchrun, which numbers them itself, got {device}")
        return kind, int(os.environ["LOCAL_WORLD_SIZE"])
    available = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(kind, False) or (number and (kind != "cuda" or int(number) >= torch.cuda.device_count())):
        raise ConfigError(f"expected --device auto, cpu, or a cuda or mps device that is here, got {device}; choose another")
    return kind, [int(number)] if number else 1
