"""A training task small enough to compute by hand: linear regression, with whatever a test of the loop needs to go wrong."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from phonograph.configuration import Rule
from phonograph.loading.weights import save_tensors
from phonograph.training import Losses, ParameterGroup, RunContext


@dataclass(frozen=True)
class LinearOptions:
    """What the task does besides being learnt."""

    items: Annotated[int, Rule("items of data", minimum=1)] = 12
    batch: Annotated[int, Rule("items of a micro-batch", minimum=1)] = 4
    shuffle: Annotated[bool, Rule("another order each epoch")] = True
    noise: Annotated[float, Rule("random numbers added to the inputs")] = 0.0
    masked: Annotated[bool, Rule("items count by how many of their targets are known")] = False
    critic: Annotated[bool, Rule("a second optimiser for what judges the first one's output")] = False
    critic_every: Annotated[int, Rule("steps between those of the critic", minimum=1)] = 1
    nan_steps: Annotated[list[int], Rule("steps whose loss is not finite")] = field(default_factory=list)
    signal_step: Annotated[int, Rule("step in which the process sends itself SIGTERM")] = -1
    frozen_steps: Annotated[int, Rule("steps in which the bias is frozen", minimum=0)] = 0
    hidden: Annotated[bool, Rule("a layer that no loss uses")] = False
    init: Annotated[str | None, Rule("folder of a result to start from")] = None


class Batches:
    """Item numbers, epoch after epoch; rank r gets items r, r + world, ... of each joined batch."""

    def __init__(self, options: LinearOptions, rank: int, world: int, seed: int) -> None:
        self.options, self.rank, self.world, self.seed = options, rank, world, seed
        self.position = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        size = self.options.batch * self.world
        per_epoch = self.options.items // size
        epoch, place = divmod(self.position, per_epoch)
        order = torch.arange(self.options.items)
        if self.options.shuffle:
            order = torch.randperm(self.options.items, generator=torch.Generator().manual_seed(self.seed + epoch))
        self.position += 1
        return {"items": order[place * size : (place + 1) * size][self.rank :: self.world], "seconds": 1.5}

    def state(self) -> dict[str, Any]:
        return {"position": self.position}

    def restore(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class LinearTask:
    """y = x W + b for 3 inputs and 2 outputs."""

    Options = LinearOptions

    def __init__(self, options: LinearOptions, context: RunContext) -> None:
        self.options, self.context = options, context
        self.modules = nn.ModuleDict({"model": nn.Linear(3, 2)})
        if options.init is not None:
            self.modules["model"].load_state_dict(load_file(Path(options.init) / "model.safetensors"))
        if options.critic:
            self.modules["critic"] = nn.Linear(2, 1)
        if options.hidden:
            self.modules["hidden"] = nn.Linear(2, 2)
        data = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(options.items, 3, generator=data)
        self.targets = torch.randn(options.items, 2, generator=data)
        self.known = torch.rand(options.items, 2, generator=data) < 0.6
        self.known[:, 0] = True

    def parameter_groups(self) -> list[ParameterGroup]:
        model = self.modules["model"]
        groups = [
            ParameterGroup("main", [model.weight], "weight"),
            ParameterGroup("main", [model.bias], "bias", lr_factor=0.5, frozen_steps=self.options.frozen_steps),
        ]
        if self.options.hidden:
            groups.append(ParameterGroup("main", list(self.modules["hidden"].parameters()), "hidden"))
        if self.options.critic:
            groups.append(ParameterGroup("critic", list(self.modules["critic"].parameters()), "critic", ema=False))
        return groups

    def batches(self, rank: int, world: int, seed: int) -> Batches:
        return Batches(self.options, rank, world, seed)

    def losses(self, batch: dict[str, Any], step: int) -> Iterator[Losses]:
        if step == self.options.signal_step:
            os.kill(os.getpid(), signal.SIGTERM)
        inputs = self.inputs[batch["items"]]
        output = self.modules["model"](inputs + self.options.noise * torch.randn_like(inputs))
        known = self.known[batch["items"]] if self.options.masked else torch.ones_like(output, dtype=torch.bool)
        loss = ((output - self.targets[batch["items"]]) ** 2)[known].mean()
        if step in self.options.nan_steps:
            loss = loss * float("nan")
        total = loss
        if self.options.critic:
            total = loss - 0.1 * self.modules["critic"](output).expand_as(output)[known].mean()
        yield Losses("main", total, {"squared": loss}, known.sum())
        if self.options.critic and step % self.options.critic_every == 0:
            judged = self.modules["critic"](output.detach()) - self.modules["critic"](self.targets[batch["items"]])
            yield Losses("critic", (judged**2 + judged).mean(), weight=len(inputs))

    def evaluate(self, step: int) -> dict[str, float]:
        assert not self.modules.training
        torch.rand(3)  # an evaluation that draws random numbers changes nothing
        error = ((self.modules["model"](self.inputs) - self.targets) ** 2).mean()
        return {"all/error": float(error), "all/step": float(step)}

    def save(self, folder: Path) -> None:
        save_tensors(folder / "model.safetensors", self.modules["model"].state_dict())

    def describe(self) -> dict[str, Any]:
        return {"data": {"items": self.options.items}}


def gradients_of(task: LinearTask, items: Tensor) -> dict[str, Tensor]:
    """The gradient of the mean loss over all of these items, by plain autograd in float64."""
    model = nn.Linear(3, 2).double()
    model.load_state_dict({name: value.double() for name, value in task.modules["model"].state_dict().items()})
    known = task.known[items] if task.options.masked else torch.ones(len(items), 2, dtype=torch.bool)
    ((model(task.inputs[items].double()) - task.targets[items].double()) ** 2)[known].mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}
