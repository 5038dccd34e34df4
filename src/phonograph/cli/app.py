"""The commands by name, and the one place where a command ends: exit codes, one line an error, interrupts, closed pipes."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from phonograph import __version__
from phonograph.cli.bench import bench
from phonograph.cli.codec import decode, encode
from phonograph.cli.config import config_app
from phonograph.cli.console import say_error
from phonograph.cli.demo import demo
from phonograph.cli.inspect import info, models
from phonograph.cli.runs import Ended
from phonograph.cli.stream import stream_app
from phonograph.cli.text import align, transcribe, translate
from phonograph.cli.train import train
from phonograph.cli.verify import verify
from phonograph.errors import PhonographError

__all__ = ["app", "main"]

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM

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
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold bytes that are no text
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries are no news: our one line says what failed
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(arguments)
    finally:
        _drop_unwritable_output()
        signal.signal(signal.SIGTERM, previous)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app(args=None if arguments is None else list(arguments), prog_name="phonograph")
    except PhonographError as error:
        say_error(error)
        return EXIT_REFUSED
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code in (EXIT_INTERRUPTED, EXIT_TERMINATED) and not isinstance(end, Ended):
            say_error("interrupted; files that were not finished have been removed, run it again for the rest")
        return code
    return 0


def _drop_unwritable_output() -> None:
    """What could not be written is still held by the stream, and the interpreter would try, and complain, again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: object) -> NoReturn:
    """`kill` and `timeout` unwind the stack as ^C does, so that temporary files go."""
    raise SystemExit(EXIT_TERMINATED)
