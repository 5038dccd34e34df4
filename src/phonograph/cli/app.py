"""The commands by name, and the one place where a command ends: exit codes, one line an error, interrupts, closed pipes."""

import errno
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, NoReturn, TextIO, cast

import typer

from phonograph import __version__
from phonograph.cli.bench import bench
from phonograph.cli.codec import decode, encode
from phonograph.cli.config import config_app
from phonograph.cli.console import one_line, say, say_error
from phonograph.cli.demo import demo
from phonograph.cli.inspect import info, models
from phonograph.cli.runs import Ended
from phonograph.cli.stream import stream_app
from phonograph.cli.text import align, transcribe, translate
from phonograph.cli.train import train
from phonograph.cli.verify import verify
from phonograph.errors import PhonographError
from phonograph.files import output_error

__all__ = ["app", "main"]

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM
_WRITE_ERRORS = (errno.ENOSPC, errno.EBADF, errno.EIO)
# typer names no base of these, and which click it is built on depends on its version.
_UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])

app = typer.Typer(
    help="Speech to tokens and text, and tokens back to speech.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich takes longer to load than all of this takes to run
    pretty_exceptions_enable=False,
)
for command in (encode, decode, transcribe, translate, align, train, info, models, demo, verify, bench):
    app.command()(command)
app.add_typer(config_app, name="config")
app.add_typer(stream_app, name="stream")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default the process's own, and return its exit code.

    0: done. 1: whoever read the output went away. 2: something was refused, and a line on stderr says what was expected, what
    came and what to do. 130, 143: interrupted, terminated.
    """
    _replace_closed_streams()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold bytes that are no text
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries are no news: our one line says what failed
    previous, show = signal.signal(signal.SIGTERM, _terminate), warnings.showwarning
    warnings.showwarning = _say_warning
    try:
        return _run(arguments)
    finally:
        _drop_unwritable_output()
        warnings.showwarning = show
        signal.signal(signal.SIGTERM, previous)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        return _ended(_run_command(arguments))
    except (PhonographError, MemoryError, RuntimeError) as error:
        if not isinstance(error, PhonographError) and not _lacks_memory(error):
            raise
        short = "expected enough memory for this, got too little; lower --batch-size or --beams, or shorten the recording"
        say_error(error if isinstance(error, PhonographError) else short)
    except OSError as error:  # files that can't be written are OutputErrors by now; this is --help and the like
        if error.errno not in _WRITE_ERRORS:
            raise
        say_error(output_error("standard output", error))
    except Ended as end:
        return int(str(end.code))
    except SystemExit as end:
        return _ended(end.code if isinstance(end.code, int) else int(end.code is not None))
    return EXIT_REFUSED


def _run_command(arguments: Sequence[str] | None) -> int:
    """The exit code of what was asked for; what is no command or option is a refusal like any other."""
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="phonograph", standalone_mode=False)
    except typer.Abort:  # how some versions of typer pass ^C on
        return EXIT_INTERRUPTED
    except _UsageError as error:
        help_is_all = type(error).__name__ == "NoArgsIsHelpError"
        asked = getattr(error, "ctx", None)
        hint = f"; see {asked.command_path} --help" if asked is not None else ""
        message: str = error.format_message()  # type: ignore[attr-defined]
        say(message) if help_is_all else say_error(f"{message.rstrip('.')}{hint}")
        return EXIT_REFUSED
    return code if isinstance(code, int) else 0


def _ended(code: int) -> int:
    if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
        say_error("interrupted; files that were not finished have been removed, run it again for the rest")
    return code


def _lacks_memory(error: Exception) -> bool:
    """PyTorch has a class of its own for it only on GPUs."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


def _say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Without the place in the source, which is no user's business."""
    say(f"warning: {one_line(message)}")


def _replace_closed_streams() -> None:
    """`<&-` and `>&-` leave no stream at all: reading then finds the end at once, and writing a result is an error."""
    for name, mode, flags in (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode))


def _drop_unwritable_output() -> None:
    """What could not be written is still held by the stream, and the interpreter would try, and complain, again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: object) -> NoReturn:
    """`kill` and `timeout` unwind the stack as ^C does, so that temporary files go."""
    raise SystemExit(EXIT_TERMINATED)
