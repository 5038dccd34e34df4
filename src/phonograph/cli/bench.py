"""`phonograph bench`: this library beside the peers that are installed, on the user's machine.

phonograph.benchmarks measures; here options are checked and the table is shown.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from phonograph.cli.console import print_json, print_lines, print_table
from phonograph.cli.options import AsJson, Threads
from phonograph.errors import ConfigError

if TYPE_CHECKING:
    from phonograph.benchmarks import Report

__all__ = ["bench", "print_report"]


def bench(
    seconds: Annotated[float, typer.Option("--seconds", help="Length of the clip.")] = 10.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns that each takes; a time is their median.")] = 5,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Bundled name, folder or hub id; random weights of the full size by default."),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Streams, 80 ms at a time, instead of a clip.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Ours with compiled steps too; takes a minute more.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Compare the speed with transformers, moshi and rustymimi here.

    Those that are installed take turns with this library, with the same weights, in a process of their own.
    """
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"expected --seconds above 0, got {seconds:g}; 10 is usual")
    from phonograph import api
    from phonograph.benchmarks import Options, run

    codec = None if model is None else api.load_codec(model)
    if codec is not None and codec.config.audio_channels != 1:
        raise ConfigError(f"expected a codec of one channel to compare, got {codec.config.audio_channels}; choose another")
    report = run(Options(live, seconds, rounds, threads, compiled), codec)
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report)


def print_report(report: "Report") -> None:
    """One line a contestant, the fastest first."""
    unit, scale = ("ms", 1000) if report.benchmark == "mimi live" else ("s", 1)
    encode, decode, equal = report.seconds["encode"], report.seconds["decode"], report.seconds.get("codes_equal")
    columns = ["", f"encode {unit}", "times", f"decode {unit}", "times ", *(["codes equal"] if equal else [])]
    rows = []
    for name in sorted(encode, key=lambda name: encode[name] + decode[name]):
        row = [name]
        for times in (encode, decode):
            row += [f"{times[name] * scale:.3f}", f"{times[report.reference] / times[name]:.2f}"]
        rows.append(row + ([f"{equal[name]:.3%}"] if equal else []))
    print_table(columns, rows, title=f"{report.benchmark}, {report.seconds_of_audio:g} s", right=columns[1:])
    missing = [name for name, found in report.versions.items() if found is None]
    print_lines(
        f"{report.threads} threads, medians of {report.rounds} rounds; times: as fast as {report.reference}.",
        *([f"Not installed: {', '.join(missing)}."] if missing else []),
    )
