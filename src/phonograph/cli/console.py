"""What commands say and where: results on stdout, all else on stderr, and progress only to a person at a terminal.

It knows streams and terminals, no audio and no tokens. rich is imported only where something is drawn.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from phonograph.files import output_error

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

__all__ = [
    "Progress",
    "error_line",
    "one_line",
    "print_json",
    "print_lines",
    "print_table",
    "progress",
    "say",
    "say_error",
    "standard_output",
]

_WIDTH_IN_FILES = 150


def one_line(message: object) -> str:
    """The text of an error or a name without line breaks."""
    return " ".join(str(message).split())


def say(line: str) -> None:
    """A line to the person at the terminal."""
    with contextlib.suppress(OSError):  # nobody can be told that nobody can be told
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def say_error(message: object) -> None:
    """The one line that every refusal is."""
    say(error_line(message))


def error_line(message: object) -> str:
    """What `say_error` says."""
    return f"error: {one_line(message)}"


@contextlib.contextmanager
def standard_output() -> Iterator[TextIO]:
    """stdout, flushed at the end; that it can't be written to is an OutputError, save for a reader that has gone.

    Raises:
        OutputError: the disk behind it is full, or the like.
    """
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise output_error("standard output", error) from error


def print_lines(*lines: str) -> None:
    """Lines of a result."""
    with standard_output() as file:
        file.write("".join(line + "\n" for line in lines))


def print_json(value: Any) -> None:
    """A result for programs: one JSON value."""
    print_lines(json.dumps(value, indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", right: Sequence[str] = ()) -> None:
    """A result for people; the columns named in `right` hold numbers and are aligned so, and unnamed columns have no head."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    table.title = Text(title) if title else None
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    # A file or a pipe has no width of its own, and what reads it can do without wrapping.
    with standard_output() as file:
        Console(file=file, width=None if file.isatty() else _WIDTH_IN_FILES).print(table)


class Progress:
    """Progress over files and over the seconds of audio in each; this one shows nothing."""

    visible = False

    def start(self, name: str, seconds: float | None) -> None:
        """Begin with a file that holds so many seconds, or nobody knows how many."""

    def advance(self, seconds: float) -> None:
        """So many more seconds of audio are done."""

    def finish(self) -> None:
        """The file is done, or was given up."""

    def note(self, line: str) -> None:
        """Say a line beside the progress."""
        say(line)


class _VisibleProgress(Progress):
    visible = True

    def __init__(self, bars: "Bars", num_files: int) -> None:
        self._bars = bars
        self._num_files = num_files
        self._files_done = 0
        self._all = bars.add_task("files", total=num_files, shown=f"0/{num_files}", visible=num_files > 1)
        self._file = bars.add_task("", total=None, shown="")
        self._started = time.perf_counter()
        self._seconds, self._total = 0.0, ""

    def start(self, name: str, seconds: float | None) -> None:
        self._started, self._seconds = time.perf_counter(), 0.0
        self._total = "" if seconds is None else f"/{seconds:.1f}"
        self._bars.reset(self._file, total=seconds, description=name if len(name) <= 40 else f"...{name[-37:]}", shown="")

    def advance(self, seconds: float) -> None:
        self._seconds += seconds
        speed = self._seconds / max(time.perf_counter() - self._started, 1e-9)
        shown = f"{self._seconds:.1f}{self._total} s, {speed:.1f}x real time"
        self._bars.update(self._file, completed=self._seconds, shown=shown)

    def finish(self) -> None:
        self._files_done += 1
        self._bars.update(self._all, completed=self._files_done, shown=f"{self._files_done}/{self._num_files}")

    def note(self, line: str) -> None:
        self._bars.console.print(line, soft_wrap=True, markup=False, highlight=False)


@contextlib.contextmanager
def progress(quiet: bool, num_files: int) -> Iterator[Progress]:
    """Bars on stderr while the block runs, if it is a terminal and nobody asked for quiet."""
    if quiet or not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[shown]}", markup=False))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _VisibleProgress(bars, num_files)
