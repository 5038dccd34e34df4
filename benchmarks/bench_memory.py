"""Peak memory: long files beside a short one with the bundled model, and one clip at full size beside transformers.

    python benchmarks/bench_memory.py [--hours 3] [--seconds 10] [--threads 2]
    python benchmarks/bench_memory.py --transcribe FOLDER [--hours 2] [--threads 2]

Each figure is the peak resident size of a fresh process that does one thing, from start to end: imports and weights are in it.
The long file is the bundled recordings over and over, in a temporary folder (170 MB an hour, twice). The full-size model has
random weights, one file for all. With --transcribe, only what it takes that model to turn a long file into text, and one of two
minutes. Prints a table and ends with one JSON line. Peers that are not installed are left out.
"""

# Nothing heavy is imported here: on Linux a new process starts with the peak of the one that started it.
import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RATE = 24000


def installed(package: str) -> str | None:
    """Version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# What the fresh processes do ---------------------------------------------------------------------------------------------


def write_speech(path: str, seconds: str) -> None:
    """A 16-bit file of that many seconds, the bundled recordings over and over."""
    import itertools

    from phonograph import Audio, audio
    from phonograph.loading.hub import BUNDLED_SPEECH

    clips = [audio.load(file, sampling_rate=RATE, mono=True) for file in sorted(BUNDLED_SPEECH.glob("*.flac"))]

    def blocks() -> Iterator[Audio]:
        left = round(float(seconds) * RATE)
        for clip in itertools.cycle(clips):
            if left <= 0:
                return
            yield Audio(clip.samples[:, :left], RATE)
            left -= clip.num_samples

    audio.save_stream(path, blocks())


def write_weights(folder: str) -> None:
    """A full-size Mimi with random weights."""
    import torch

    from phonograph import MimiConfig, MimiModel

    torch.manual_seed(0)
    MimiModel(MimiConfig()).save_pretrained(folder)


def start() -> None:
    """What every call below pays: imports and the bundled model."""
    import phonograph.api

    phonograph.api.load_codec(phonograph.api.DEFAULT_CODEC)


def encode(source: str, target: str) -> None:
    """A file to tokens."""
    import phonograph

    phonograph.encode(source).save(target)


def decode(source: str, target: str) -> None:
    """Tokens to a file."""
    from phonograph import audio
    from phonograph.api import decode_stream

    audio.save_stream(target, decode_stream(source))


def load_recognizer(model: str) -> None:
    """What `transcribe` pays whatever the file."""
    import phonograph.api

    phonograph.api.load_recognizer(model)


def transcribe(model: str, source: str) -> None:
    """A file to text."""
    import phonograph

    assert phonograph.transcribe(source, model).text


def whole_clip(package: str, folder: str, dtype: str, seconds: str) -> None:
    """One clip to codes and back in one pass, at full size."""
    import torch

    library: Any
    if package == "phonograph":
        import phonograph as library
    else:
        import transformers as library

        library.logging.disable_progress_bar()
    model = library.MimiModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    audio = 0.1 * torch.randn(1, 1, round(float(seconds) * RATE), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        model.decode(model.encode(audio.to(model.dtype)).audio_codes)


TASKS: dict[str, Callable[..., None]] = {
    task.__name__: task
    for task in (write_speech, write_weights, start, encode, decode, load_recognizer, transcribe, whole_clip)
}


# Measuring ---------------------------------------------------------------------------------------------------------------


def run_task(name: str, arguments: list[str], threads: int) -> None:
    """In the fresh process: do it and print the peak in bytes."""
    if name != "write_speech":
        import torch

        torch.set_num_threads(threads)
    TASKS[name](*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(peak if sys.platform == "darwin" else peak * 1024))


def measured(threads: int, task: Callable[..., None], *arguments: object) -> dict[str, float]:
    """Peak bytes and seconds of a task in a process of its own."""
    line = [sys.executable, __file__, "--threads", str(threads), "--task", task.__name__, *map(str, arguments)]
    begin = time.perf_counter()
    done = subprocess.run(line, stdout=subprocess.PIPE, check=True)
    return {"peak_bytes": float(done.stdout.split()[-1]), "seconds": time.perf_counter() - begin}


def long_files(folder: Path, hours: float, threads: int) -> dict[str, dict[str, float]]:
    """Each way, one minute and `hours` of speech."""
    rows = {"imports and weights": measured(threads, start)}
    for name, seconds in {"1 minute": 60.0, f"{hours:g} hours": hours * 3600}.items():
        speech, tokens, decoded = (folder / file for file in ("speech.wav", "speech.mimi", "decoded.wav"))
        measured(threads, write_speech, speech, seconds)
        rows[f"encode {name}"] = measured(threads, encode, speech, tokens)
        speech.unlink()
        rows[f"decode {name}"] = measured(threads, decode, tokens, decoded)
        decoded.unlink()
    return rows


def long_texts(folder: Path, model: str, hours: float, threads: int) -> dict[str, dict[str, float]]:
    """To text, two minutes and `hours` of speech."""
    rows = {"imports and weights": measured(threads, load_recognizer, model)}
    for name, seconds in {"2 minutes": 120.0, f"{hours:g} hours": hours * 3600}.items():
        speech = folder / "speech.wav"
        measured(threads, write_speech, speech, seconds)
        rows[f"transcribe {name}"] = measured(threads, transcribe, model, speech)
    return rows


def full_size(folder: Path, seconds: float, threads: int) -> dict[str, dict[str, float]]:
    """Encoding and decoding one clip in one process, by all that are installed."""
    measured(threads, write_weights, folder)
    packages = [package for package in ("phonograph", "transformers") if package == "phonograph" or installed(package)]
    return {
        f"{package} {short}": measured(threads, whole_clip, package, folder, dtype, seconds)
        for short, dtype in {"fp32": "float32", "bf16": "bfloat16"}.items()
        for package in packages
    }


def ratios(rows: dict[str, dict[str, float]], hours: float) -> dict[str, float]:
    """Long over short, and ours over transformers'."""
    pairs = {f"{way} {hours:g} h / 1 min": (f"{way} {hours:g} hours", f"{way} 1 minute") for way in ("encode", "decode")}
    pairs[f"transcribe {hours:g} h / 2 min"] = (f"transcribe {hours:g} hours", "transcribe 2 minutes")
    pairs |= {
        f"phonograph / transformers {short}": (f"phonograph {short}", f"transformers {short}") for short in ("fp32", "bf16")
    }
    return {
        name: rows[over]["peak_bytes"] / rows[under]["peak_bytes"] for name, (over, under) in pairs.items() if under in rows
    }


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--transcribe", metavar="FOLDER", help="a model that transcribes; nothing else is measured then")
    parser.add_argument("--task", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        run_task(options.task[0], options.task[1:], options.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.transcribe:
            rows = long_texts(Path(folder), options.transcribe, options.hours, options.threads)
        else:
            rows = long_files(Path(folder), options.hours, options.threads)
            rows |= full_size(Path(folder), options.seconds, options.threads)
    print(f"{'':24}{'peak MB':>10}{'seconds':>10}")
    for name, row in rows.items():
        print(f"{name:24}{row['peak_bytes'] / 1e6:10.0f}{row['seconds']:10.1f}")
    compared = ratios(rows, options.hours)
    for name, ratio in compared.items():
        print(f"{name:34}{ratio:6.2f}")
    report = {
        "benchmark": "transcribe memory" if options.transcribe else "mimi memory",
        "hours": options.hours,
        "seconds_of_audio": options.seconds,
        "threads": options.threads,
        "processor": platform.processor() or platform.machine(),
        "versions": {package: installed(package) for package in ("torch", "phonograph", "transformers")},
        "rows": rows,
        "ratios": compared,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
