"""What changes the weights: one AdamW for each optimiser of a task, and averaged weights.

    part = TrainedPart("main", groups, OptimizerOptions(lr=5e-4), total_steps=10000)
    part.activate(step, True)
    ...  # backward of losses times their weights, perhaps several times
    part.apply(step, scale=1 / sum_of_weights)

It never waits for the device: gradients that are not finite make the optimiser skip its step there, and counters tell later.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from phonograph.training.recipe import OptimizerOptions
from phonograph.training.schedules import factor
from phonograph.training.task import ParameterGroup

__all__ = ["EMA", "TrainedPart", "assign_full", "local"]

_CLIP_MARGIN = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that FSDP has sharded; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def assign_full(target: Tensor, full: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded over processes."""
    if isinstance(target, DTensor):
        full = distribute_tensor(full.to(target.device), target.device_mesh, target.placements)
    target.copy_(full)


class TrainedPart:
    """The parameters of one optimiser, from gradients to steps.

    Attributes:
        time_gone: share of the run's time, 0 to 1, for schedules that must be complete when it is over.
        counters: (3,) int64 on the device: steps skipped as their gradients were not finite, those in a row up to now, and the
            longest such row since it was last set to 0.
        grad_norm: () float32, of the last step before clipping.
    """

    def __init__(self, name: str, groups: Sequence[ParameterGroup], options: OptimizerOptions, total_steps: int) -> None:
        self.name = name
        self.options = options
        self.total_steps = total_steps
        self.groups = [(group, [p for p in group.parameters if p.requires_grad]) for group in groups]
        self.parameters = [parameter for _, parameters in self.groups for parameter in parameters]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": parameters, "weight_decay": _own(group.weight_decay, options.weight_decay)}
                for group, parameters in self.groups
            ],
            lr=options.lr,
            betas=(options.betas[0], options.betas[1]),
            eps=options.eps,
            fused=True,
        )
        device = self.parameters[0].device
        self.time_gone = 0.0
        self.counters = torch.zeros(3, dtype=torch.int64, device=device)
        self.grad_norm = torch.zeros((), device=device)

    def lr(self, step: int) -> float:
        """The learning rate of a step, without the groups' own factors."""
        return self.options.lr * factor(self.options.schedule, step, self.total_steps, self.time_gone)

    def activate(self, step: int, wanted: bool) -> None:
        """Let the parameters collect gradients, those of groups that are still frozen excepted, or let none of them."""
        for group, parameters in self.groups:
            for parameter in parameters:
                parameter.requires_grad_(wanted and step >= group.frozen_steps)

    @torch.no_grad()
    def apply(self, step: int, scale: Tensor) -> None:
        """Multiply the gradients by `scale`, clip them, make a step with them if they are finite, and forget them."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            return
        norm = torch.nn.utils.get_total_norm(gradients)
        self.grad_norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).float() * scale
        finite = torch.isfinite(self.grad_norm)
        if self.options.clip_norm is not None:
            scale = scale * (self.options.clip_norm / (self.grad_norm + _CLIP_MARGIN)).clamp(max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients], scale)
        for (group, _), values in zip(self.groups, self.optimizer.param_groups, strict=True):
            values["lr"] = self.lr(step) * group.lr_factor
        # As torch.amp.GradScaler tells a fused optimiser, on the device, that its step is not to be made.
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        # The fused step writes unseen by autograd's counter, which tells layers that what they keep of their weights is old.
        torch.autograd.graph.increment_version(self.parameters)
        self.optimizer.zero_grad()
        self._count(~finite)

    def _count(self, skipped: Tensor) -> None:
        total, row, longest = self.counters.unbind()
        row = (row + 1) * skipped
        self.counters = torch.stack([total + skipped, row, torch.maximum(longest, row)])

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: plain tensors and numbers, of this process's shards."""
        moments = {
            number: {name: local(value).cpu() for name, value in values.items()}
            for number, values in self.optimizer.state_dict()["state"].items()
        }
        return {"moments": moments, "counters": self.counters.cpu()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state()` gave of the same parameters."""
        moments = {
            number: {name: _like(value, self.parameters[number]) for name, value in values.items()}
            for number, values in state["moments"].items()
        }
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.counters = state["counters"].to(self.counters.device)
        self.counters[2] = 0  # who goes on after too long a row has mended what was wrong


def _own(value: float | None, default: float) -> float:
    return default if value is None else value


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A moment, sharded as its parameter is; the count of steps is one number."""
    if isinstance(parameter, DTensor) and value.dim():
        value = value.to(parameter.device)
        return DTensor.from_local(
            value, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
        )
    return value


class EMA:
    """Exponential moving averages of parameters: average += (1 - d) * (parameter - average) after each step.

    d is min(decay, (1 + n) / (10 + n)) for the n-th update from 0 on, so that the first steps are soon forgotten.

    Args:
        parameters: by name; the averages start at their values.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._parameters = dict(parameters)
        self.averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after `step` + 1 steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local(average) for average in self.averages.values()]
        torch._foreach_lerp_(averages, [local(p) for p in self._parameters.values()], 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages as the parameters' values, as long as the block runs."""
        kept = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._fill(self.averages)
        try:
            yield
        finally:
            self._fill(kept)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
