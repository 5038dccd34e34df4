"""`phonograph train`: a recipe, run here or under torchrun; what it printed at the end is the result's held-out table."""

import contextlib
import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phonograph.cli.console import print_json, print_lines, print_table, say
from phonograph.cli.options import AsJson, Quiet, Threads
from phonograph.cli.runs import Ended, use_threads
from phonograph.errors import ConfigError

if TYPE_CHECKING:
    from phonograph.training import Outcome

__all__ = ["train"]


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe of the package.")],
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="FOLDER", help="Speech to train on, for recipes that name none.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="The run's folder; runs/NAME OF THE RECIPE by default."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint there, if there is one.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value in the recipe, such as loop.steps=100; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Three steps on a little data, an evaluation and a checkpoint; kept with -o only.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="Where to compute: auto, cpu, cuda, cuda:1, mps.")] = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train or fine-tune what a recipe says.

    The folder gets checkpoints, a log (log.jsonl), samples and, at the end, model/ with its card. ^C and `kill` end a run
    after the step at hand with a checkpoint, from which --resume goes on. For several processes run it by torchrun --no-python.
    """
    overrides = dict(_change(text) for text in changes or [])
    use_threads(threads)
    from phonograph.training import RunOptions, read_recipe
    from phonograph.training import train as run_recipe

    checked = read_recipe(recipe, overrides)
    with _output_folder(recipe, out, dry_run) as folder:
        run = RunOptions(folder, None if data is None else Path(data), device, resume, dry_run, quiet)
        outcome = run_recipe(checked, run)
        if os.environ.get("RANK", "0") == "0":
            _tell(outcome, folder, as_json, quiet, kept=out is not None or not dry_run)
    if outcome.signal is not None:
        raise Ended(128 + outcome.signal)


def _change(text: str) -> tuple[str, Any]:
    from phonograph.training.recipe import parse_value

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"expected --set KEY=VALUE, got {text!r}; write it like --set loop.steps=100")
    return key, parse_value(value)


@contextlib.contextmanager
def _output_folder(recipe: str, out: str | None, dry_run: bool) -> Iterator[Path]:
    if out is not None or not dry_run:
        yield Path(out or Path("runs") / Path(recipe).stem)
        return
    with tempfile.TemporaryDirectory(prefix="phonograph-dry-run-") as folder:
        yield Path(folder)


def _tell(outcome: "Outcome", folder: Path, as_json: bool, quiet: bool, kept: bool) -> None:
    from phonograph.training.card import figure_table

    if as_json:
        model = str(outcome.model) if kept and outcome.model is not None else None
        figures = {name: value if math.isfinite(value) else None for name, value in outcome.figures.items()}
        print_json({**dataclasses.asdict(outcome), "figures": figures, "model": model, "output": str(folder) if kept else None})
    elif outcome.signal is None:
        columns, rows = figure_table(outcome.figures)
        if rows:
            print_table(columns, rows, title="Held out", right=columns[1:])
        print_lines(f"{outcome.model} is trained" if kept else "the recipe runs; nothing was kept")
    if outcome.skipped:
        say(f"{outcome.skipped} steps changed nothing: their gradients were not finite")
    if outcome.signal is not None and not quiet:
        say(f"stopped after step {outcome.step}; go on with --resume -o {folder}")
