"""What a run tells while it lasts: a bar in a terminal, a log of JSON lines, and TensorBoard or Weights & Biases if asked for.

    with report_to(folder, RunShape(...), trackers=["tensorboard"]) as report:
        report.steps_done(100, {"loss": 0.31, "steps_per_second": 4.2})

`run/log.jsonl` has one object a line, with `event` ("start", "steps", "figures", "checkpoint", ...) and, where it applies,
`step`. It knows numbers and their names only.
"""

import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phonograph.errors import MissingExtraError
from phonograph.files import make_folder, output_error

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

__all__ = ["Report", "report_to"]

LOG_NAME = "log.jsonl"


class Report:
    """Tells nobody; what all processes but the first have."""

    def event(self, event: str, **values: Any) -> None:
        """A line of the log."""

    def steps_done(self, step: int, values: Mapping[str, float]) -> None:
        """Means over the steps since the last call; `loss` and `steps_per_second` are shown beside the bar."""

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Held-out figures."""

    def advance(self, step: int) -> None:
        """So many steps are done."""


class _Logged(Report):
    def __init__(self, log: io.FileIO, trackers: "Sequence[_Tracker]", bar: "_Bar | None") -> None:
        self._log = log
        self._trackers = trackers
        self._bar = bar

    def event(self, event: str, **values: Any) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n"
        try:
            self._log.write(line.encode())
        except OSError as error:
            raise output_error(self._log.name, error) from error

    def steps_done(self, step: int, values: Mapping[str, float]) -> None:
        self.event("steps", step=step, **values)
        self._track(step, {f"train/{name}": value for name, value in values.items()})
        if self._bar is not None:
            self._bar.show(values)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        self.event("figures", step=step, **values)
        self._track(step, {f"held-out/{name}": value for name, value in values.items()})
        if self._bar is not None:
            self._bar.note(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.advance(step)

    def _track(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, values)


class _Bar:
    def __init__(self, bars: "Bars", total_steps: int) -> None:
        self._bars = bars
        self._task = bars.add_task("steps", total=total_steps, shown="")

    def advance(self, step: int) -> None:
        self._bars.update(self._task, completed=step)

    def show(self, values: Mapping[str, float]) -> None:
        shown = f"loss {values['loss']:.4g}, {values['steps_per_second']:.2f} steps/s"
        if "audio_per_second" in values:
            shown += f", {values['audio_per_second']:.0f}x real time"
        self._bars.update(self._task, shown=shown)

    def note(self, line: str) -> None:
        self._bars.console.print(line, soft_wrap=True, markup=False, highlight=False)


class _Tracker:
    def log(self, step: int, values: Mapping[str, float]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _TensorBoard(_Tracker):
    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("logging to TensorBoard", "tensorboard", "trackers") from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb(_Tracker):
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtraError("logging to Weights & Biases", "wandb", "trackers") from error
        self._run: Any = wandb.init(project="phonograph", name=folder.name, dir=str(folder), config=dict(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


@contextlib.contextmanager
def report_to(
    folder: Path, total_steps: int, config: Mapping[str, Any], trackers: Sequence[str] = (), quiet: bool = False
) -> Iterator[Report]:
    """A report into the run's folder while the block runs, with a bar if stderr is a terminal and nobody asked for quiet.

    Raises:
        MissingExtraError: a tracker is not installed.
        OutputError: the log can't be written.
    """
    make_folder(folder)
    with contextlib.ExitStack() as stack:
        used: list[_Tracker] = []
        for name in trackers:
            used.append(_TensorBoard(folder) if name == "tensorboard" else _Wandb(folder, config))
            stack.callback(used[-1].close)
        try:
            # Without a buffer, which would be written again, and refused again, when it is closed.
            log = stack.enter_context((folder / LOG_NAME).open("ab", buffering=0))
        except OSError as error:
            raise output_error(folder / LOG_NAME, error) from error
        bar = None if quiet or not sys.stderr.isatty() else _Bar(stack.enter_context(_bars()), total_steps)
        yield _Logged(log, used, bar)


def _bars() -> "Bars":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[shown]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    return Bars(*columns, console=Console(stderr=True))
