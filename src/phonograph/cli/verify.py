"""`phonograph verify`: how much codes depend on precision, chunks, batches and threads, on the user's own recordings.

phonograph.verify compares; here recordings are found and the results shown.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from phonograph.cli.console import print_json, print_lines, print_table, progress
from phonograph.cli.options import AsJson, Device, Quiet
from phonograph.cli.paths import AUDIO_SUFFIXES, STANDARD, find_inputs
from phonograph.errors import ConfigError

if TYPE_CHECKING:
    from phonograph.audio import Audio
    from phonograph.models.mimi.modeling_mimi import MimiModel
    from phonograph.verify import Comparison

__all__ = ["verify"]

_EXIT_ABOVE = 1
_CHECKED = ("streaming | one pass", "batched | alone", "threads 1 | 2")


def verify(
    speech: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SPEECH]...", help="Audio files, folders, patterns; the bundled recordings by default."),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Bundled name, folder or hub id of a codec.")] = "mimi-mini",
    codebooks: Annotated[int | None, typer.Option("--codebooks", "-q", help="Codebooks to compare; all by default.")] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Only the first so many of each recording, all by default.")
    ] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(
            "--fail-above",
            metavar="RATE",
            help="Exit with 1 if streaming, batched or threads change more than this share of the codes.",
        ),
    ] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure how much codes depend on precision, chunks, batches and threads.

    Each recording is encoded in several ways, and the codes that differ are counted; for the way back, the largest difference
    of a sample is given.
    """
    from phonograph import api
    from phonograph import verify as comparing

    if seconds is not None and seconds <= 0:
        raise ConfigError(f"expected --seconds above 0, got {seconds:g}; leave it out for all")
    if fail_above is not None and not 0 <= fail_above <= 1:
        raise ConfigError(f"expected --fail-above from 0 to 1, got {fail_above:g}; pass a share of the codes")
    paths = _paths(speech)
    codec = api.load_codec(model, device=device)
    codec.check_num_quantizers(codebooks)
    clips = [_load(path, codec, seconds) for path in paths]
    with progress(quiet, len(comparing.COMPARISONS)) as bars:
        results = []
        samples = [clip.samples for clip in clips]
        for result in comparing.verify(codec, samples, codebooks, on_begin=lambda name: bars.start(name, None)):
            results.append(result)
            bars.finish()
    total = sum(clip.duration_seconds for clip in clips)
    if as_json:
        print_json({"model": model, "files": len(clips), "seconds": round(total, 6), "comparisons": _as_json(results)})
    else:
        _print(results, model, len(clips), total)
    if fail_above is not None and any(result.mismatch > fail_above for result in results if result.name in _CHECKED):
        raise typer.Exit(_EXIT_ABOVE)


def _paths(speech: Sequence[str] | None) -> list[str]:
    from phonograph.loading.hub import BUNDLED_SPEECH

    inputs, refused = find_inputs(speech or [str(BUNDLED_SPEECH)], AUDIO_SUFFIXES)
    if refused:
        raise refused[0]
    if any(item.source == STANDARD for item in inputs):
        raise ConfigError("expected names of files, got - (stdin); save it to a file first")
    return [item.source for item in inputs]


def _load(path: str, codec: "MimiModel", seconds: float | None) -> "Audio":
    from phonograph import audio

    config = codec.config
    return audio.load(path, sampling_rate=config.sampling_rate, mono=config.audio_channels == 1, duration_seconds=seconds)


def _as_json(results: "Sequence[Comparison]") -> list[dict[str, object]]:
    return [
        {**asdict(result), "mismatch": result.mismatch, "semantic_mismatch": result.semantic_mismatch} for result in results
    ]


def _print(results: "Sequence[Comparison]", model: str, files: int, seconds: float) -> None:
    from phonograph.verify import COMPARISONS

    columns = ("compared", "what it is", "codes that differ", "semantic", "of codes", "samples differ by")
    rows = [
        (
            result.name,
            COMPARISONS[result.name],
            f"{result.mismatch:.4%}",
            f"{result.semantic_mismatch:.4%}",
            str(result.codes),
            f"{result.sample_difference:.1e}",
        )
        for result in results
    ]
    recordings = "recording" if files == 1 else "recordings"
    print_table(columns, rows, title=f"{model}, {files} {recordings}, {seconds:.1f} s", right=columns[2:])
    print_lines("Samples differ by at most this part of the largest sample, where both sides decode the same codes.")
