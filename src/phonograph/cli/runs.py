"""What every command over many files does: one bad file does not stop the others, and all of it is reported.

It knows files, progress and refusals, nothing of what is done with a file.
"""

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import typer

from phonograph.cli.console import Progress, error_line, print_json, progress, standard_output
from phonograph.cli.paths import STANDARD, Job
from phonograph.errors import ConfigError, OutputError, PhonographError

if TYPE_CHECKING:
    from phonograph.audio import Audio

__all__ = [
    "Ended",
    "Run",
    "binary_output",
    "check_stdout",
    "groups_of_short",
    "known_suffix",
    "load_together",
    "run_over",
    "seconds_of",
    "standard_input_file",
    "use_threads",
]

_LONGEST_IN_BATCH_SECONDS = 30.0


class Ended(SystemExit):
    """^C or `kill`: all that had come was worked through, and nothing was lost."""


@dataclass
class Run:
    """One command over many files: what was done, what was refused, and how that is told."""

    progress: Progress
    several: bool
    quiet: bool
    as_json: bool
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def attempt(self, source: str) -> Iterator[None]:
        """Among several files, report what this one is refused for and go on; an output that fails ends them all."""
        try:
            yield
        except OutputError:
            raise
        except PhonographError as error:
            if not self.several:
                raise
            self.refuse(source, error)

    def refuse(self, source: str | None, error: PhonographError) -> None:
        """Report one refusal: of a file, or of a folder or pattern that has none."""
        self.progress.note(error_line(error))
        self.errors.append({"in": source, "error": str(error)})
        if source is not None:
            self.progress.finish()

    def done(self, job: Job, seconds: float, elapsed: float, details: dict[str, Any], summary: str) -> None:
        """Report one file that is finished: `seconds` of audio in `elapsed` seconds.

        Args:
            details: more about it for --json.
            summary: the same for people.
        """
        self.progress.finish()
        self.files[job.source] = {
            "in": job.source,
            "out": job.output,
            "seconds": round(seconds, 6),
            **details,
            "rtf": round(elapsed / max(seconds, 1e-9), 6),
        }
        if self.progress.visible and not self.quiet:
            speed = seconds / max(elapsed, 1e-9)
            self.progress.note(f"{job.source} -> {job.output}: {seconds:.2f} s, {summary}, {speed:.1f}x real time")

    def finish(self, jobs: Sequence[Job]) -> None:
        """Print the JSON if it is wanted; refusals make the exit code 2."""
        if self.as_json:
            files = [self.files[job.source] for job in jobs if job.source in self.files]
            print_json({"files": files, "errors": self.errors})
        if self.errors:
            raise typer.Exit(2)


@contextlib.contextmanager
def run_over(jobs: Sequence[Job], refused: Sequence[PhonographError], quiet: bool, as_json: bool) -> Iterator[Run]:
    """A run over these jobs, which begins with the refusals there are already and ends with its report."""
    with progress(quiet, len(jobs)) as bars:
        run = Run(bars, len(jobs) + len(refused) > 1, quiet, as_json)
        for error in refused:
            run.refuse(None, error)
        yield run
    run.finish(jobs)


def check_stdout(jobs: Sequence[Job], as_json: bool) -> None:
    """Refuse a result and a report that would both go to stdout.

    Raises:
        ConfigError: so it is.
    """
    if as_json and any(job.output == STANDARD for job in jobs):
        raise ConfigError("expected stdout for the result or for --json, got both; pass -o FILE")


def seconds_of(path: str) -> float | None:
    """Length of an audio file, None where its header does not tell, or can't be read."""
    from phonograph import audio

    # What is wrong with a file is said when its turn comes.
    with contextlib.suppress(PhonographError):
        return audio.info(path).duration_seconds
    return None


def groups_of_short(jobs: Sequence[Job], batch_size: int) -> Iterator[list[Job]]:
    """Short files of similar length together; long ones alone, as those are streamed in bounded memory."""
    if batch_size == 1:
        yield from ([job] for job in jobs)
        return
    lengths = {job: None if job.source == STANDARD else seconds_of(job.source) for job in jobs}
    short = [job for job, length in lengths.items() if length is not None and length <= _LONGEST_IN_BATCH_SECONDS]
    short.sort(key=lambda job: lengths[job] or 0.0)
    yield from ([job] for job in jobs if job not in set(short))
    for start in range(0, len(short), batch_size):
        yield short[start : start + batch_size]


def use_threads(threads: int | None) -> None:
    """What --threads asks for; None leaves PyTorch's choice."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def known_suffix(file_format: str, suffixes: Sequence[str]) -> str:
    """The suffix of a --format.

    Raises:
        ConfigError: it is none of these.
    """
    suffix = "." + file_format.lower().removeprefix(".")
    if suffix not in suffixes:
        names = ", ".join(name[1:] for name in suffixes)
        raise ConfigError(f"expected --format to be one of {names}, got {file_format!r}; choose one of these")
    return suffix


def load_together(group: Sequence[Job], run: Run, **how: Any) -> "tuple[dict[Job, Audio], float]":
    """The clips of a group by `audio.load` and their seconds in all; progress begins, files that can't be read are reported."""
    from phonograph import audio

    clips: dict[Job, Audio] = {}
    for job in group:
        with run.attempt(job.source):
            clips[job] = audio.load(job.source, **how)
    total = sum(clip.duration_seconds for clip in clips.values())
    if clips:
        run.progress.start(f"{len(clips)} files together", total)
    return clips, total


def standard_input_file() -> io.BytesIO:
    """All that stdin gives."""
    file = io.BytesIO(sys.stdin.buffer.read())
    file.name = "standard input"  # what messages call it
    return file


@contextlib.contextmanager
def binary_output() -> Iterator[BinaryIO]:
    """stdout for a result that is no text.

    Raises:
        OutputError: it is a terminal, or the disk behind it is full.
    """
    if sys.stdout.isatty():
        raise OutputError("expected a file or a program behind stdout, got a terminal, which can't show this; pass -o FILE")
    with standard_output() as file:
        yield file.buffer
