"""What a training task is: the protocol between the loop and everything that knows speech.

The loop (`phonograph.training.loop`) knows optimisers, processes, checkpoints and logs, and nothing of models or audio. A task
owns its modules, makes batches, computes losses and judges the result. Each class named in `phonograph.training.recipe.TASKS`
is built as `TaskClass(options, context)`, where `options` is an instance of the dataclass `TaskClass.Options` that the recipe's
`options:` section fills (see `recipe.typed`), and `context` says where the run takes place.

One step is `accumulate` micro-batches. Of each, the loop takes the phases that `losses` yields, one for each optimiser in turn:

    for batch in micro_batches:
        for losses in task.losses(batch, step):  # generator, then discriminator
            (losses.total * losses.weight).backward()
            # Of the last micro-batch: divide by the sum of weights, clip and step this optimiser; then ask for the next phase.

Rules for a task:

- Phases come in the order in which their optimisers first appear in `parameter_groups()`, at most one each; the last ones may
  be left out. While a phase is computed only the parameters of its own optimiser require gradients. So a GAN's generator comes
  first, and its discriminator judges the same output, detached, in the second phase.
- All that needs gradients is computed within `losses`, on the modules in `modules`, called in any way. The loop wraps it all
  for autocast, DDP and FSDP; a task sees its own modules only.
- `total` is a mean over `weight` terms (utterances, frames, tokens: whatever it is a mean of). The step's gradient is the mean
  over all terms of all micro-batches and processes, so that neither accumulation nor the number of processes changes it.
- Nothing may read a value back from the device in `losses` (`.item()`, `.cpu()`); the loop reads the figures now and then.
- Randomness comes from torch's global generators, Python's `random` and numpy's legacy generator, which checkpoints hold; or
  from the step, or from what `state()` of the batches tells.
- What a task remembers between steps other than in modules goes into registered buffers of `modules`. On several processes it
  keeps them equal itself: what moves them is summed over all (`torch.distributed.all_reduce`), or the first one's draw sent.
- A step whose gradients are not finite changes no parameter. A task that updates buffers in `losses` (batch norm, EMA
  codebooks) has to keep them finite itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Batch", "Losses", "ParameterGroup", "ResumableIterator", "RunContext", "Task"]

Batch = dict[str, Any]
"""Tensors by name, on the CPU or the device (the loop moves them), and whatever else the task needs.

`seconds`, if it is there, is the audio in the batch as a number, for the rate that is shown.
"""


@dataclass(frozen=True)
class RunContext:
    """Where a run takes place, as a task is told when it is built.

    Args:
        folder: the run's folder; samples and reports go below it, written by rank 0 only.
        data: the folder with speech given by `--data`; None when the recipe names its own.
        device: where modules and batches are to be; the loop moves both there.
        rank: of this process, from 0.
        world: number of processes.
        seed: of the run; the same on every rank.
        dry_run: a small subset of the data is enough, and a few steps follow.
    """

    folder: Path
    data: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world: int = 1
    seed: int = 0
    dry_run: bool = False


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained alike.

    Args:
        optimizer: the name of the optimiser, a key of the recipe's `optimizers:` section.
        parameters: no parameter occurs in two groups; those that need no gradient are left out by the loop.
        name: for logs and errors.
        lr_factor: multiplies the optimiser's learning rate.
        weight_decay: in place of the optimiser's; None for the optimiser's.
        frozen_steps: steps at the start in which these parameters neither collect gradients nor change.
        ema: the averaged weights, if there are any, hold these too.
    """

    optimizer: str
    parameters: list[nn.Parameter]
    name: str = "all"
    lr_factor: float = 1.0
    weight_decay: float | None = None
    frozen_steps: int = 0
    ema: bool = True


@dataclass
class Losses:
    """The losses of one phase.

    Args:
        optimizer: whose parameters get the gradient of `total`.
        total: scalar, a mean over `weight` terms.
        parts: scalars to log under their names, without a gradient or detached by the loop.
        weight: the number of terms that `total` is a mean of; a tensor on the device (no gradient) or a number.
    """

    optimizer: str
    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    weight: Tensor | float = 1.0


class ResumableIterator(Protocol):
    """Batches without end: epoch after epoch, each shuffled by seed and epoch."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def state(self) -> dict[str, Any]:
        """The position after the batches handed out so far (not those read ahead): numbers, strings, lists, dicts, tensors."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a position: the next batch is the one that followed when `state()` was called."""


class Task(Protocol):
    """What is trained and how it is judged; see the module's docstring for the rules."""

    modules: nn.ModuleDict
    """Everything that has parameters or buffers worth saving."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """All that is trained. Called once `modules` are on the device, so that it must not keep parameters of before."""

    def batches(self, rank: int, world: int, seed: int) -> ResumableIterator:
        """The training batches of one process. No batch is seen by two of them; all processes have as many."""

    def losses(self, batch: Batch, step: int) -> Iterator[Losses]:
        """The phases of one micro-batch, on the device. `step` counts optimiser steps done before this one."""

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out figures, with the EMA weights in place when there are any; called on rank 0, without gradients.

        Samples (wav, spectrogram png) go below `context.folder / "samples"`. Modules come in eval mode. A figure's name may be
        "row/column", such as "test-other/wer": the model card has a table of rows then. The recipe's `loop.best` names one.
        """

    def save(self, folder: Path) -> None:
        """Write what `from_pretrained` loads here and in transformers into a folder that exists; called on rank 0."""

    def describe(self) -> dict[str, Any]:
        """For the model card: `data` (what it was trained on, hours, licences), `model` (sizes), anything else worth a row."""
