"""The training loop: steps, evaluations, checkpoints and how they end, for any task.

    outcome = train(read_recipe("ctc.yaml"), RunOptions(output=Path("run"), data=Path("speech")))
    outcome.model  # the folder that from_pretrained loads

The run's folder gets recipe.yaml, log.jsonl, samples, checkpoints/ and, at the end, model/ with its card. A run that was
stopped goes on from its newest checkpoint with `resume=True` and then has the losses of a run that was never stopped. What a
task is, and how its losses are weighted, is said in `phonograph.training.task`; how processes share the work in `.engine`.
"""

import contextlib
import dataclasses
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from phonograph.errors import CheckpointError, ConfigError, DivergedError
from phonograph.files import atomic_write, make_folder
from phonograph.training import checkpoints
from phonograph.training.card import CardFacts, model_card
from phonograph.training.engine import Engine
from phonograph.training.optimizers import EMA, TrainedPart, assign_full
from phonograph.training.progress import Report, report_to
from phonograph.training.recipe import LoopOptions, OptimizerOptions, Recipe
from phonograph.training.task import Batch, Losses, ParameterGroup, RunContext, Task

__all__ = ["Outcome", "RunOptions", "Trainer", "train"]

RECIPE_NAME = "recipe.yaml"
CARD_NAME = "README.md"
_DRY_RUN_STEPS = 3
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_QUESTION_SECONDS = 5.0  # well below the 30 that torchrun leaves its processes to end in


@dataclass(frozen=True)
class RunOptions:
    """Where a run takes place.

    Args:
        output: the run's folder.
        data: a folder with speech for the task; None when the recipe names its own.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        resume: go on from the newest checkpoint in `output`, if there is one.
        dry_run: three steps on a small subset, one evaluation, one checkpoint.
        quiet: no bar.
    """

    output: Path
    data: Path | None = None
    device: str = "auto"
    resume: bool = False
    dry_run: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        step: steps done, in all.
        signal: the number of the signal that stopped it, None when it came to its end.
        figures: held-out figures of the result.
        model: the result's folder; None when it was stopped.
        skipped: steps that changed nothing, as their gradients were not finite.
    """

    step: int
    signal: int | None
    figures: dict[str, float]
    model: Path | None
    skipped: int


def train(recipe: Recipe, run: RunOptions) -> Outcome:
    """Train what a recipe says, to its end or until SIGINT or SIGTERM, which end it after the current step with a checkpoint.

    Raises:
        ConfigError: the folder holds another run and `resume` is not set; the task refuses its options or its data.
        CheckpointError: the checkpoint to go on from is of another recipe, or damaged.
        DivergedError: gradients were not finite for `loop.max_nonfinite` steps in a row.
        MissingExtraError: an optional package is missing.
        OutputError: the folder can't be written.
    """
    return Trainer(recipe, run).fit()


class Trainer:
    """One run: a task and all that changes while it is trained.

    Args:
        recipe: what is trained.
        run: where.

    Raises:
        As `train`, before anything is trained.
    """

    def __init__(self, recipe: Recipe, run: RunOptions) -> None:
        self.recipe = recipe
        self.loop = _dry(recipe.loop) if run.dry_run else recipe.loop
        self.engine = Engine(self.loop, run.device)
        # The first process's folder is everyone's, and it alone looks there, as others may see new files later.
        self.run = run = dataclasses.replace(run, output=self.engine.fabric.broadcast(run.output))
        self._resumed: Path | None = self.engine.fabric.broadcast(_newest(run.output))
        if self._resumed is not None and not run.resume:
            raise ConfigError(
                f"expected a new folder for the run, got {run.output}, which has {self._resumed.name}; "
                "go on with it (--resume) or choose another"
            )
        _seed(self.loop.seed)
        self.task: Task = recipe.build(self._context())
        self._load_weights()
        self.task.modules.train()
        self.engine.set_up(self.task.modules)
        self.parts = _parts(self.task, recipe.optimizers, recipe.loop, self.engine.sharded)
        self.ema = self._make_ema()
        self.batches = self.task.batches(self.engine.rank, self.engine.world, self.loop.seed)
        _seed(self.loop.seed + self.engine.rank)
        self.step = 0
        self.seconds = 0.0
        self.figures: dict[str, float] = {}
        self._evaluated = self._saved = -1
        self._sums = _Sums(self.engine)
        self._restore()

    def _context(self) -> RunContext:
        if self.engine.rank == 0:
            make_folder(self.run.output)
        engine = self.engine
        return RunContext(
            self.run.output, self.run.data, engine.device, engine.rank, engine.world, self.loop.seed, self.run.dry_run
        )

    # ------------------------------------------------------------------------------------------------------------- steps

    def fit(self) -> Outcome:
        """Train to the end, or to a signal.

        Raises:
            DivergedError: gradients were not finite for too many steps in a row.
            OutputError: the folder can't be written.
        """
        with self._report() as report, _interrupts() as received:
            report.event("start", step=self.step, resumed=self._resumed is not None, processes=self.engine.world)
            begun = _Clock(self.seconds)
            questions = _Questions(self.step)
            self._tell_schedules()
            stopped: int | None = None
            while self.step < self.loop.steps:
                self.train_step()
                self.seconds = begun.seconds
                report.advance(self.step)
                boundary = self.step % self.loop.log_every == 0 or self.step == self.loop.steps
                if boundary:
                    self._tell(report)
                    self._tell_schedules()
                if _due(self.loop.evaluate_every, self.step):
                    self._evaluate(report)
                # Several processes agree every few seconds only: asking each other makes them wait for their devices.
                if boundary or self.engine.world == 1 or self.step >= questions.next_step:
                    stopped, over, save = self._agree(received, begun, questions)
                    if stopped is not None or over or self.step == self.loop.steps:
                        break
                else:
                    save = False
                if save or _due(self.loop.save_every, self.step) or self._evaluated == self.step:
                    self._save(report)
                    begun.saved()
            outcome = self._finish(report) if stopped is None else self._stop(report, stopped)
            model = None if outcome.model is None else str(outcome.model)
            report.event("end", **{**dataclasses.asdict(outcome), "model": model, "figures": _finite(outcome.figures)})
        return outcome

    def train_step(self) -> None:
        """One optimiser step of each part."""
        weights = {part.name: torch.zeros((), device=self.engine.device) for part in self.parts}
        for micro in range(self.loop.accumulate):
            last = micro == self.loop.accumulate - 1
            batch: Batch = self.engine.fabric.to_device(next(self.batches))
            self._sums.add_audio(batch.get("seconds"))
            with self.engine.unsynchronised(not last):
                iterator = self.task.losses(batch, self.step)
                for part in self.parts:
                    for each in self.parts:
                        each.activate(self.step, each is part)
                    losses = self.engine.compute(iterator)
                    if losses is None:
                        break
                    if losses.optimizer != part.name:
                        raise ConfigError(
                            f"expected the losses of {part.name!r}, got those of {losses.optimizer!r}; keep the order"
                        )
                    self.engine.backward(losses)
                    weights[part.name] += losses.weight
                    self._sums.add(losses, prefix=f"{part.name}/" if len(self.parts) > 1 else "")
                    if last:
                        # DDP and FSDP have taken the mean over processes, which is to be one over terms.
                        part.apply(self.step, self.engine.world / self.engine.sum(weights[part.name]))
                if next(iterator, None) is not None:
                    raise ConfigError(f"expected losses for {len(self.parts)} optimisers at most, got more; yield one for each")
        if self.ema is not None:
            self.ema.update(self.step)
        self.step += 1
        self._sums.steps += 1

    def _tell(self, report: Report) -> None:
        values = self._sums.means()
        for part in self.parts:
            name = f"/{part.name}" if len(self.parts) > 1 else ""
            skipped, _, longest = part.counters.tolist()
            values |= {
                f"lr{name}": part.lr(self.step - 1),
                f"grad_norm{name}": part.grad_norm.item(),
                f"skipped{name}": skipped,
            }
            if longest >= self.loop.max_nonfinite:
                report.event("diverged", step=self.step, optimizer=part.name, **_finite(values))
                raise DivergedError(
                    f"expected finite gradients, got {longest} steps in a row without for the optimiser {part.name!r} before "
                    f"step {self.step} ({skipped} in all, loss {values['loss']:.4g}); they changed nothing: lower its lr or "
                    "clip_norm, or look at the data, and go on from the last checkpoint with --resume"
                )
        report.steps_done(self.step, _finite(values))

    def _tell_schedules(self) -> None:
        """How much of the time is gone, at the log's steps only: the first process's clock has to become everyone's."""
        if self.loop.max_minutes is not None:
            gone = self.engine.fabric.broadcast(self.seconds / (60 * self.loop.max_minutes))
            for part in self.parts:
                part.time_gone = min(gone, 1.0)

    def _agree(self, received: list[int], begun: "_Clock", questions: "_Questions") -> tuple[int | None, bool, bool]:
        """The signal that any process has got, whether the time is over, and whether it is time for a checkpoint."""
        over = self.loop.max_minutes is not None and self.seconds >= 60 * self.loop.max_minutes
        save = self.loop.save_minutes is not None and begun.seconds_unsaved >= 60 * self.loop.save_minutes
        flags = [*(number in received for number in _SIGNALS), over, save]
        if self.engine.world > 1:
            said = torch.tensor([*flags, questions.seconds], device=self.engine.device)
            *counts, seconds = self.engine.sum(said).tolist()
            questions.answered(self.step, seconds / self.engine.world)
            flags = [count > 0 for count in counts]
        stopped = next((int(number) for number, flag in zip(_SIGNALS, flags[:2], strict=True) if flag), None)
        return stopped, flags[2], flags[3]

    # ------------------------------------------------------------------------------------- evaluations and checkpoints

    def _evaluate(self, report: Report) -> None:
        """Held-out figures, which leave neither weights nor random generators changed."""
        with self._averaged(), self.engine.gathered():
            if self.engine.rank == 0:
                random_state = checkpoints.capture_random(self.engine.device)
                with _eval_mode(self.task.modules), torch.no_grad():
                    self.figures = self.task.evaluate(self.step)
                checkpoints.restore_random(random_state, self.engine.device)
            self.figures = self.engine.fabric.broadcast(self.figures)
        self._evaluated = self.step
        self._saved = -1  # a checkpoint of this step has no figures yet
        if self.loop.best is not None and self.loop.best not in self.figures:
            raise ConfigError(f"expected loop.best to be one of {', '.join(self.figures)}, got {self.loop.best!r}")
        report.figures(self.step, _finite(self.figures))

    def _save(self, report: Report) -> None:
        if self._saved == self.step:
            return
        if self.engine.rank == 0:
            checkpoints.begin(self.run.output, self.step)
        self.engine.fabric.barrier()
        part = checkpoints.part_of(self.run.output, self.step)
        checkpoints.save_state(part / f"rank-{self.engine.rank}.pt", self._process_state())
        with self.engine.gathered():
            if self.engine.rank == 0:
                checkpoints.save_weights(part / checkpoints.WEIGHTS_NAME, self.task.modules.state_dict())
        with self._averaged(), self.engine.gathered():
            if self.engine.rank == 0:
                self._save_result(part)
        self.engine.fabric.barrier()
        if self.engine.rank == 0:
            figures = self.figures if self._evaluated == self.step else {}
            meta = {"step": self.step, "figures": figures, "seconds": self.seconds, "processes": self.engine.world}
            checkpoints.write_meta(part, meta)
            checkpoints.commit(self.run.output, self.step)
            best = checkpoints.best_of(self.run.output, self.loop.best, self.loop.best_is)
            checkpoints.prune(self.run.output, self.loop.keep, best)
        self.engine.fabric.barrier()
        self._saved = self.step
        report.event("checkpoint", step=self.step)

    def _save_result(self, part: Path) -> None:
        """With the averaged weights in place."""
        if self.ema is not None:
            whole = dict(self.task.modules.named_parameters())
            checkpoints.save_weights(part / checkpoints.EMA_NAME, {name: whole[name] for name in self.ema.averages})
        make_folder(part / checkpoints.MODEL_NAME)
        with _eval_mode(self.task.modules):
            self.task.save(part / checkpoints.MODEL_NAME)

    def _process_state(self) -> dict[str, Any]:
        return {
            "parts": {part.name: part.state() for part in self.parts},
            "random": checkpoints.capture_random(self.engine.device),
            "batches": self.batches.state(),
            "sums": self._sums.state(),
        }

    def _load_weights(self) -> None:
        """Before FSDP shards them."""
        if self._resumed is not None:
            weights = checkpoints.load_weights(self._resumed / checkpoints.WEIGHTS_NAME, self.task.modules.state_dict())
            self.task.modules.load_state_dict(weights)

    def _restore(self) -> None:
        if self._resumed is None:
            return
        meta = checkpoints.read_meta(self._resumed)
        if meta["processes"] != self.engine.world:
            raise CheckpointError(
                f"expected {meta['processes']} processes, as the run in {self.run.output} had, got {self.engine.world}; "
                "start as many"
            )
        state = checkpoints.load_state(self._resumed / f"rank-{self.engine.rank}.pt")
        if state["parts"].keys() != {part.name for part in self.parts}:
            raise CheckpointError(
                f"expected the optimisers {', '.join(state['parts'])} in the recipe to resume, got other ones; "
                "resume with the recipe that the run was begun with"
            )
        for part in self.parts:
            part.restore(state["parts"][part.name])
        if self.ema is not None:
            saved = checkpoints.load_weights(self._resumed / checkpoints.EMA_NAME, self.ema.averages)
            for name, average in self.ema.averages.items():
                assign_full(average, saved[name])
        self.batches.restore(state["batches"])
        self._sums.restore(state["sums"])
        checkpoints.restore_random(state["random"], self.engine.device)
        self.step = self._saved = meta["step"]
        self.seconds, self.figures = meta["seconds"], meta["figures"]
        self._evaluated = self.step if self.figures else -1

    def _make_ema(self) -> EMA | None:
        if self.loop.ema_decay is None:
            return None
        left_out = {id(p) for part in self.parts for group, ps in part.groups if not group.ema for p in ps}
        trained = {id(p) for part in self.parts for p in part.parameters} - left_out
        named = {name: p for name, p in self.task.modules.named_parameters() if id(p) in trained}
        return EMA(named, self.loop.ema_decay)

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.ema is None else self.ema.in_place()

    # --------------------------------------------------------------------------------------------------------------- end

    def _stop(self, report: Report, number: int) -> Outcome:
        self._save(report)
        return Outcome(self.step, number, self.figures, None, self._skipped())

    def _finish(self, report: Report) -> Outcome:
        if self.loop.average > 1:
            self._save(report)
            self._average()
        if self._evaluated != self.step or self.loop.average > 1:
            self._evaluate(report)
        if self.loop.average == 1:
            self._save(report)
        model = self.run.output / checkpoints.MODEL_NAME
        figures = self.figures
        if self.engine.rank == 0:
            figures = self._publish(model)
        self.engine.fabric.barrier()
        return Outcome(self.step, None, figures, model, self._skipped())

    def _average(self) -> None:
        """The mean of checkpoints as the weights; the run's own weights are in its last checkpoint."""
        weights = checkpoints.average_checkpoints(self.run.output, self.loop.average)
        for name, target in self.task.modules.state_dict().items():
            assign_full(target, weights[name])
        self.ema = None

    def _publish(self, model: Path) -> dict[str, float]:
        """Put the result in its place, with its card; the figures of the result."""
        part = self.run.output / f".{checkpoints.MODEL_NAME}.part"
        shutil.rmtree(part, ignore_errors=True)
        newest = checkpoints.find_checkpoints(self.run.output)[-1]
        source = checkpoints.best_of(self.run.output, self.loop.best, self.loop.best_is) or newest
        meta = checkpoints.read_meta(source)
        figures = meta["figures"]
        result = f"step {meta['step']}" + (f", the best {self.loop.best}" if self.loop.best else "")
        if self.loop.average > 1:
            make_folder(part)
            with _eval_mode(self.task.modules):
                self.task.save(part)
            figures, result = self.figures, f"the mean of {self.loop.average} checkpoints"
        else:
            checkpoints.copy_folder(source / checkpoints.MODEL_NAME, part)
        facts = CardFacts(
            self.task.describe(), figures, self.recipe.to_yaml(), self.step, self.seconds, self.engine.description(), result
        )
        with atomic_write(part / CARD_NAME) as file:
            file.write(model_card(facts).encode())
        checkpoints.replace_folder(part, model)
        return dict(figures)

    def _skipped(self) -> int:
        return sum(int(part.counters[0]) for part in self.parts)

    @contextlib.contextmanager
    def _report(self) -> Iterator[Report]:
        if self.engine.rank:
            yield Report()
            return
        with atomic_write(self.run.output / RECIPE_NAME) as file:
            file.write(self.recipe.to_yaml().encode())
        trackers = self.loop.trackers
        with report_to(self.run.output, self.loop.steps, self.recipe.values, trackers, self.run.quiet) as report:
            yield report


# -------------------------------------------------------------------------------------------------------------------- parts


class _Sums:
    """Weighted sums of losses on the device, until they are told."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._clear()

    def _clear(self) -> None:
        self.steps = 0
        self._audio = 0.0
        self._started = time.perf_counter()
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add_audio(self, seconds: Any) -> None:
        self._audio += float(seconds or 0.0)

    def add(self, losses: Losses, prefix: str) -> None:
        """What is not finite is left out, as its step is."""
        names = (f"{prefix}loss", *(prefix + name for name in losses.parts))
        values = torch.stack([losses.total.detach().float(), *(value.detach().float() for value in losses.parts.values())])
        known = torch.isfinite(values)
        weighted = torch.stack([torch.where(known, values, 0.0), known.float()]) * losses.weight
        self._sums[names] = self._sums[names] + weighted if names in self._sums else weighted

    def state(self) -> list[tuple[tuple[str, ...], Tensor]]:
        """What has not been told yet, without how fast it went."""
        return [(names, sums.cpu()) for names, sums in self._sums.items()]

    def restore(self, state: Sequence[tuple[tuple[str, ...], Tensor]]) -> None:
        """Go back to what `state()` gave."""
        self._sums = {names: sums.to(self._engine.device) for names, sums in state}

    def means(self) -> dict[str, float]:
        """By name, over all steps, micro-batches and processes since the last time, and how fast they went."""
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        values: dict[str, float] = {}
        for names, sums in self._sums.items():
            total, weight = self._engine.sum(sums).tolist()
            values |= {
                name: value / count if count else float("nan") for name, value, count in zip(names, total, weight, strict=True)
            }
        first = next(iter(values.values()), float("nan"))
        values = {"loss": first, **values, "steps_per_second": self.steps / elapsed}
        if self._audio:
            values["audio_per_second"] = self._audio * self._engine.world / elapsed
        self._clear()
        return values


class _Clock:
    """Seconds trained, with those before the run was resumed, and seconds since the last checkpoint."""

    def __init__(self, before: float) -> None:
        self._start = time.perf_counter() - before
        self.saved()

    def saved(self) -> None:
        self._saved_at = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def seconds_unsaved(self) -> float:
        return time.perf_counter() - self._saved_at


class _Questions:
    """When processes ask each other next: after some seconds, at a step that all of them work out alike.

    Attributes:
        next_step: ask once so many steps are done.
    """

    def __init__(self, step: int) -> None:
        self.next_step = step + 1
        self._step, self._start = step, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the last answer, on this process's clock."""
        return time.perf_counter() - self._start

    def answered(self, step: int, seconds: float) -> None:
        """All have been told that the steps since the last answer took `seconds`."""
        steps = _QUESTION_SECONDS * (step - self._step) / seconds
        self.next_step = step + max(1, int(steps))
        self._step, self._start = step, time.perf_counter()


def _parts(task: Task, optimizers: Mapping[str, OptimizerOptions], loop: LoopOptions, sharded: bool) -> list[TrainedPart]:
    groups: dict[str, list[ParameterGroup]] = {}
    for group in task.parameter_groups():
        groups.setdefault(group.optimizer, []).append(group)
    if groups.keys() != optimizers.keys():
        raise ConfigError(f"expected the optimisers {', '.join(groups)} in the recipe, got {', '.join(optimizers)}; name these")
    if sharded and (len(groups) > 1 or any(group.frozen_steps for every in groups.values() for group in every)):
        raise ConfigError(
            "expected one optimiser and nothing frozen for a while with distributed: fsdp, got more; set it to ddp"
        )
    return [TrainedPart(name, every, optimizers[name], loop.steps) for name, every in groups.items()]


def _newest(folder: Path) -> Path | None:
    found = checkpoints.find_checkpoints(folder)
    return found[-1] if found else None


def _dry(loop: LoopOptions) -> LoopOptions:
    changed = {"steps": min(loop.steps, _DRY_RUN_STEPS), "log_every": 1, "evaluate_every": None, "save_every": None}
    return dataclasses.replace(loop, **changed, average=1, trackers=[])  # type: ignore[arg-type]


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (other packages draw from it)


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _finite(values: Mapping[str, float]) -> dict[str, Any]:
    """JSON has no NaN; what is not finite is null."""
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


@contextlib.contextmanager
def _eval_mode(modules: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in modules.modules()]
    modules.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """SIGINT and SIGTERM noted while the block runs; the second one does what it would do anyway."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
