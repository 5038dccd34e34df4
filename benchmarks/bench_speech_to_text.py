"""Speech2Text beside transformers: one clip and a batch of eight, 5 beams and greedy, from features to token ids.

    python benchmarks/bench_speech_to_text.py [--seconds 10] [--tokens 60] [--rounds 5] [--threads 2]

Small size, random weights; the end token is forbidden until the last of `--tokens` tokens, so that all do the same number of
steps. All take turns in one process; a time is a median, and the last line is JSON. transformers is left out where it is not
installed. Also: how much of the ids equal those of our float32 model.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from phonograph import Speech2TextConfig, Speech2TextForConditionalGeneration
from phonograph.benchmarks import DTYPES, installed, medians, processor, transformers_model, versions
from phonograph.cli.console import print_table

FRAMES_PER_SECOND = 100
BATCHES = (1, 8)
BEAMS = (5, 1)
REFERENCE = "transformers fp32"

Contestant: TypeAlias = Callable[..., Tensor]


def save_random_model(folder: Path) -> None:
    """A small model with random weights whose head decides clearly, and not for the token it was given."""
    torch.manual_seed(0)
    model = Speech2TextForConditionalGeneration(Speech2TextConfig()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(folder)


def ours(folder: Path, dtype: torch.dtype) -> Contestant:
    """phonograph."""
    model = Speech2TextForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    return lambda features, **settings: model.generate(features.to(dtype), **settings)


def theirs(folder: Path, dtype: torch.dtype) -> Contestant:
    """transformers, in PyTorch."""
    model = transformers_model(folder, dtype, "Speech2TextForConditionalGeneration")
    return lambda features, **settings: model.generate(features.to(dtype), **settings)


def contestants(folder: Path) -> Iterator[tuple[str, Contestant]]:
    """All that are installed, with the same weights."""
    for short, dtype in DTYPES.items():
        yield f"phonograph {short}", ours(folder, dtype)
        if installed("transformers"):
            yield f"transformers {short}", theirs(folder, dtype)


def title(batch: int, beams: int) -> str:
    """What is measured: so many clips, and how they are searched."""
    return f"{batch} x " + (f"{beams} beams" if beams > 1 else "greedy")


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    frames = round(options.seconds * FRAMES_PER_SECOND)
    features = torch.randn(max(BATCHES), frames, 80, generator=torch.Generator().manual_seed(1))
    length = options.tokens + 1  # the start token counts
    seconds: dict[str, dict[str, float]] = {}
    equal: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_random_model(folder)
        entrants = dict(contestants(folder))
        for batch, beams in itertools.product(BATCHES, BEAMS):
            settings = {"num_beams": beams, "min_length": length, "max_length": length}
            steps = {name: partial(entrant, features[:batch], **settings) for name, entrant in entrants.items()}
            found = {name: step() for name, step in steps.items()}
            expected = next(iter(found.values()))
            equal[title(batch, beams)] = {name: float((ids == expected).float().mean()) for name, ids in found.items()}
            seconds[title(batch, beams)] = medians(steps, options.rounds)
    report(seconds, equal, options)


def report(seconds: dict[str, dict[str, float]], equal: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    """For each kind of work one line a contestant, the fastest first."""
    rows = []
    for kind, times in seconds.items():
        for name in sorted(times, key=times.__getitem__):
            ratio = times.get(REFERENCE, float("nan")) / times[name]
            rows.append([kind, name, f"{times[name]:.3f}", f"{ratio:.2f}", f"{equal[kind][name]:.0%}"])
    columns = ["", " ", "s", "times", "ids"]
    heading = f"speech_to_text small, {options.seconds:g} s, {options.tokens} tokens"
    print_table(columns, rows, title=heading, right=columns[2:])
    print(f"{options.threads} threads, medians of {options.rounds} rounds; times: as fast as {REFERENCE}.")
    print("ids: share of the token ids that equal those of our float32 model.")
    result = {
        "benchmark": "speech_to_text",
        **vars(options),
        "processor": processor(),
        "versions": versions("transformers"),
        "times": seconds,
        "ids_equal": equal,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
