"""`phonograph demo`: the bundled recordings through the codec and back at several bitrates, measured, heard and seen.

Encoding is done once at the highest bitrate: fewer codebooks are the first of those.
"""

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phonograph.cli.console import Progress, print_json, print_lines, print_table, progress, say
from phonograph.cli.options import AsJson, Device, Dtype, Quiet, Threads
from phonograph.errors import ConfigError, MissingExtraError
from phonograph.files import make_folder

if TYPE_CHECKING:
    from phonograph.audio import Audio
    from phonograph.audio.quality import Quality
    from phonograph.models.mimi.modeling_mimi import MimiModel
    from phonograph.tokens import SpeechTokens

__all__ = ["demo"]

_PICTURED = "ljspeech_LJ002-0045"
_FORMATS = {"STOI": "{:.3f}", "PESQ": "{:.2f}", "mel distance": "{:.2f} dB"}


@dataclass(frozen=True)
class _Trial:
    """One clip at one bitrate, with its measures; speeds in seconds of audio a second."""

    clip: str
    codebooks: int
    bitrate: float
    encode_seconds: float
    decode_seconds: float
    seconds: float
    quality: "Quality"
    speech: "Audio"


@dataclass(frozen=True)
class _Clip:
    name: str
    original: "Audio"
    tokens: "SpeechTokens"
    trials: "list[_Trial]"


def demo(
    out: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="Where the results go; it is made.")
    ] = "demo-output",
    model: Annotated[str, typer.Option("--model", "-m", help="Bundled name, folder or hub id of a codec.")] = "mimi-mini",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Try the codec on bundled recordings.

    Six of them are encoded and decoded at several bitrates; speed and quality are measured. The folder gets, for each
    recording, the original and the reconstructions as WAV and the token file, and one picture, demo.png. Files of an earlier
    demo there are replaced.
    """
    import torch

    from phonograph import api
    from phonograph.loading.hub import BUNDLED_SPEECH

    folder = Path(out)
    make_folder(folder)
    missing = [name for name in ("pystoi", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        say(str(MissingExtraError("a part of the demo", missing[0], "demo", *missing[1:])))
    if threads is not None:
        torch.set_num_threads(threads)
    codec = api.load_codec(model, device=device, dtype=dtype)
    paths = sorted(BUNDLED_SPEECH.glob("*.flac"))
    _warm_up(codec, paths[0])
    with progress(quiet, len(paths)) as bars:
        clips = [_process(path, codec, folder, bars) for path in paths]
    if "matplotlib" not in missing:
        _draw(clips, folder / "demo.png")
    trials = [trial for clip in clips for trial in clip.trials]
    if as_json:
        print_json({"model": model, "output": out, "trials": [_as_json(trial) for trial in trials]})
    else:
        _print(trials, folder)


def _warm_up(codec: "MimiModel", path: Path) -> None:
    """The first call of every kind prepares kernels, which is not what the speed is about."""
    from phonograph import api, audio

    if codec.config.audio_channels != 1:
        raise ConfigError(f"expected a codec of one channel, as the recordings have, got {codec.config.audio_channels}")
    api.decode(api.encode(audio.load(path, duration_seconds=1.0), codec), codec)


def _process(path: Path, codec: "MimiModel", folder: Path, bars: Progress) -> _Clip:
    from phonograph import api, audio

    original = audio.load(path, sampling_rate=codec.config.sampling_rate, mono=True)
    bars.start(path.stem, original.duration_seconds)
    started = time.perf_counter()
    tokens = api.encode(original, codec, on_progress=bars.advance)
    elapsed = time.perf_counter() - started
    original.save(folder / f"{path.stem}.original.wav")
    tokens.save(folder / f"{path.stem}.mimi")
    trials = []
    for number in _codebook_counts(codec.config.num_semantic_quantizers, tokens.num_codebooks):
        trial = _try(path.stem, original, tokens.truncate(number), elapsed, codec)
        trial.speech.save(folder / f"{path.stem}.{number}-codebooks.wav")
        trials.append(trial)
    bars.finish()
    return _Clip(path.stem, original, tokens, trials)


def _codebook_counts(least: int, most: int) -> list[int]:
    """A quarter, a half and all of them."""
    return sorted({max(least, most // 4), max(least, most // 2), most})


def _try(name: str, original: "Audio", tokens: "SpeechTokens", encode_seconds: float, codec: "MimiModel") -> _Trial:
    from phonograph import api
    from phonograph.audio import quality

    started = time.perf_counter()
    speech = api.decode(tokens, codec)
    elapsed = time.perf_counter() - started
    return _Trial(
        clip=name,
        codebooks=tokens.num_codebooks,
        bitrate=tokens.bitrate,
        encode_seconds=encode_seconds,
        decode_seconds=elapsed,
        seconds=original.duration_seconds,
        quality=quality.measure(original, speech),
        speech=speech,
    )


def _draw(clips: Sequence[_Clip], path: Path) -> None:
    from phonograph.cli.figure import draw_demo

    clip = next((clip for clip in clips if clip.name == _PICTURED), clips[0])
    reconstructions = {f"{trial.codebooks} codebooks, {trial.bitrate / 1000:g} kbit/s": trial.speech for trial in clip.trials}
    draw_demo(path, clip.name, clip.original, reconstructions, clip.tokens)


def _as_json(trial: _Trial) -> dict[str, object]:
    return {
        "clip": trial.clip,
        "codebooks": trial.codebooks,
        "bitrate": trial.bitrate,
        "seconds": trial.seconds,
        "encode_rtf": trial.encode_seconds / trial.seconds,
        "decode_rtf": trial.decode_seconds / trial.seconds,
        "stoi": trial.quality.figures.get("STOI"),
        "pesq": trial.quality.figures.get("PESQ"),
        "mel_distance_db": trial.quality.figures["mel distance"],
    }


def _print(trials: Sequence[_Trial], folder: Path) -> None:
    counts = sorted({trial.codebooks for trial in trials})
    columns = ("codebooks", "bitrate", "encode", "decode", *_FORMATS)
    print_table(columns, [_summary([t for t in trials if t.codebooks == number]) for number in counts], right=columns)
    if any("STOI" in trial.quality.figures for trial in trials):
        names = list(dict.fromkeys(trial.clip for trial in trials))
        rows = [
            (name, f"{next(t.seconds for t in trials if t.clip == name):.1f} s", *(_stoi_of(trials, name, n) for n in counts))
            for name in names
        ]
        headings = [f"STOI, {number} codebooks" for number in counts]
        print_table(("recording", "length", *headings), rows, right=("length", *headings))
    print_lines(
        "Speeds are in seconds of audio a second (x real time), STOI from 0 to 1, PESQ from 1 to 4.64 (higher is better), "
        "mel distance in dB."
    )
    print_lines(*dict.fromkeys(why for trial in trials for name, why in trial.quality.left_out.items() if name == "PESQ"))
    print_lines(f"Recordings, reconstructions, token files and the picture are in {folder}.")


def _stoi_of(trials: Sequence[_Trial], clip: str, codebooks: int) -> str:
    return next(_mean([trial], "STOI") for trial in trials if (trial.clip, trial.codebooks) == (clip, codebooks))


def _summary(trials: Sequence[_Trial]) -> tuple[str, ...]:
    seconds = sum(trial.seconds for trial in trials)
    return (
        str(trials[0].codebooks),
        f"{trials[0].bitrate / 1000:g} kbit/s",
        f"{seconds / sum(trial.encode_seconds for trial in trials):.1f}x",
        f"{seconds / sum(trial.decode_seconds for trial in trials):.1f}x",
        *(_mean(trials, name) for name in _FORMATS),
    )


def _mean(trials: Sequence[_Trial], figure: str) -> str:
    found = [trial.quality.figures[figure] for trial in trials if figure in trial.quality.figures]
    return _FORMATS[figure].format(sum(found) / len(found)) if found else "-"
