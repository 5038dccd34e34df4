"""A training step beside transformers: CTC of Wav2Vec2 at base size, and Speech2Text at small size, forth, back and AdamW.

    python benchmarks/bench_training.py [--seconds 10] [--items 4] [--rounds 5] [--threads 2]

Random weights and noise, every dropout at its default, parameters in float32; bf16 is autocast. All take turns in one process;
a time is a median, and the last line is JSON. transformers is left out where it is not installed.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from phonograph import Speech2TextConfig, Speech2TextForConditionalGeneration, Wav2Vec2Config, Wav2Vec2ForCTC
from phonograph.benchmarks import DTYPES, installed, medians, processor, transformers_model, versions
from phonograph.cli.console import print_table

SAMPLES_PER_SECOND, FRAMES_PER_SECOND, LETTERS_PER_SECOND, PIECES_PER_SECOND = 16000, 100, 14, 4
REFERENCE = "transformers fp32"

Step: TypeAlias = Callable[[], None]


def inputs(kind: str, items: int, seconds: float) -> dict[str, Tensor]:
    """A batch whose items all have the same length."""
    generator = torch.Generator().manual_seed(1)
    if kind == "ctc":
        values = 0.1 * torch.randn(items, round(seconds * SAMPLES_PER_SECOND), generator=generator)
        labels = torch.randint(5, 32, (items, round(seconds * LETTERS_PER_SECOND)), generator=generator)
        return {"input_values": values, "labels": labels}
    features = torch.randn(items, round(seconds * FRAMES_PER_SECOND), 80, generator=generator)
    labels = torch.randint(5, 10000, (items, round(seconds * PIECES_PER_SECOND)), generator=generator)
    return {"input_features": features, "labels": labels}


def step_of(model: Any, batch: dict[str, Tensor], dtype: torch.dtype) -> Step:
    """One step of training, which changes the model."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def contestants(kind: str, folder: Path, batch: dict[str, Tensor]) -> Iterator[tuple[str, Step]]:
    """All that are installed, with the same weights."""
    torch.manual_seed(0)
    model = (
        Wav2Vec2ForCTC(Wav2Vec2Config(ctc_loss_reduction="mean"))
        if kind == "ctc"
        else Speech2TextForConditionalGeneration(Speech2TextConfig())
    )
    model.save_pretrained(folder)
    for short, dtype in DTYPES.items():
        yield f"phonograph {short}", step_of(type(model).from_pretrained(folder), batch, dtype)
        if installed("transformers"):
            theirs = transformers_model(folder, torch.float32, type(model).__name__)
            yield f"transformers {short}", step_of(theirs, batch, dtype)


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--items", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds: dict[str, dict[str, float]] = {}
    for kind in ("ctc", "seq2seq"):
        with tempfile.TemporaryDirectory() as folder:
            batch = inputs(kind, options.items, options.seconds)
            seconds[kind] = medians(dict(contestants(kind, Path(folder), batch)), options.rounds)
    report(seconds, options)


def report(seconds: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    """One line a contestant."""
    columns = ["", "ctc s", "times", "seq2seq s", "times "]
    rows = []
    for name in seconds["ctc"]:
        row = [name]
        for times in seconds.values():
            row += [f"{times[name]:.3f}", f"{times.get(REFERENCE, float('nan')) / times[name]:.2f}"]
        rows.append(row)
    title = f"a step of {options.items} x {options.seconds:g} s, wav2vec2 base and speech2text small"
    print_table(columns, rows, title=title, right=columns[1:])
    print(f"{options.threads} threads, medians of {options.rounds} rounds; times: as fast as {REFERENCE}.")
    result = {
        "benchmark": "training",
        **vars(options),
        "processor": processor(),
        "versions": versions("transformers"),
        "times": seconds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
