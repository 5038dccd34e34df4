"""Wav2Vec2 with a CTC head beside transformers and ONNX Runtime: one clip, and a ragged batch of eight, from samples to tokens.

    python benchmarks/bench_wav2vec2.py [--seconds 10] [--rounds 7] [--threads 2]

Base size, random weights. All take turns in one process; a time is a median, and the last line is JSON. In the ragged batch (2
to 20 s) the peers compute the padding, as their processor makes it; ours is what `phonograph.transcribe` does with a list.
Peers that are not installed are left out. "equal": the share of frames, for each clip, whose likeliest token is that of our
float32 model for the clip alone (random weights decide narrowly; frames that padding adds are not counted).
"""

import argparse
import importlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from phonograph import (
    Audio,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)
from phonograph.api.ctc import CTCRecognizer
from phonograph.api.inputs import groups_by_length
from phonograph.benchmarks import DTYPES, installed, medians, processor, transformers_model, versions
from phonograph.cli.console import print_table

RATE = 16000
RAGGED_SECONDS = (2.0, 4.1, 5.9, 8.2, 11.3, 13.8, 16.7, 20.0)
REFERENCE = "transformers fp32"

Clips: TypeAlias = list[np.ndarray]
Contestant: TypeAlias = Callable[[Clips], Sequence[Tensor]]
"""Clips -> the likeliest token of each frame of each."""


def save_random_model(folder: Path) -> None:
    """A base model with random weights whose head decides clearly, and its processor."""
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(Wav2Vec2Config()).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_()
    model.save_pretrained(folder)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), Wav2Vec2CTCTokenizer(vocabulary)).save_pretrained(folder)


def ours(folder: Path, dtype: torch.dtype) -> Contestant:
    """What `phonograph.transcribe` computes."""
    model = Wav2Vec2ForCTC.from_pretrained(folder, dtype=dtype)
    recognizer = CTCRecognizer(model, Wav2Vec2Processor.from_pretrained(folder))

    def tokens(clips: Clips) -> list[Tensor]:
        found = [torch.empty(0)] * len(clips)
        for group in groups_by_length([len(clip) for clip in clips], 8, recognizer.most_padding):
            outputs = recognizer.log_probs([Audio(clips[place], RATE) for place in group])
            for place, output in zip(group, outputs, strict=True):
                found[place] = output.argmax(-1)
        return found

    return tokens


def pipeline(folder: Path, run: Callable[[Any], Any]) -> Contestant:
    """Their processor around a model: `run` takes input values and gives logits."""
    transformers = importlib.import_module("transformers")
    processor = transformers.Wav2Vec2Processor.from_pretrained(folder)

    def tokens(clips: Clips) -> Tensor:
        inputs = processor(clips, sampling_rate=RATE, padding=True, return_tensors="pt")
        likeliest: Tensor = run(inputs.input_values).argmax(-1)
        return likeliest

    return tokens


def theirs(folder: Path, dtype: torch.dtype) -> Contestant:
    """transformers, in PyTorch."""
    model = transformers_model(folder, dtype, "Wav2Vec2ForCTC")
    return pipeline(folder, lambda values: model(values.to(dtype)).logits)


def onnx_runtime(folder: Path, threads: int) -> Contestant:
    """The model of transformers exported in float32, in ONNX Runtime."""
    onnxruntime = importlib.import_module("onnxruntime")
    model = transformers_model(folder, torch.float32, "Wav2Vec2ForCTC", attn_implementation="eager")
    path = folder / "model.onnx"
    names = {"input_names": ["values"], "output_names": ["logits"], "dynamic_axes": {"values": {0: "batch", 1: "time"}}}
    torch.onnx.export(model, (torch.randn(1, RATE),), str(path), dynamo=False, **names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return pipeline(folder, lambda values: torch.from_numpy(session.run(None, {"values": values.numpy()})[0]))


def contestants(folder: Path, threads: int) -> Iterator[tuple[str, Contestant]]:
    """All that are installed, with the same weights."""
    for short, dtype in DTYPES.items():
        yield f"phonograph {short}", ours(folder, dtype)
        if installed("transformers"):
            yield f"transformers {short}", theirs(folder, dtype)
    if installed("onnxruntime") and installed("onnx") and installed("transformers"):
        yield "onnxruntime fp32", onnx_runtime(folder, threads)


def agreement(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Share of the expected frames that were found."""
    pairs = [(a[: len(b)], b) for a, b in zip(found, expected, strict=True)]
    return sum(int((a == b).sum()) for a, b in pairs) / sum(len(b) for _, b in pairs)


@torch.inference_mode()
def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    random = np.random.default_rng(1)

    def noise(seconds: float) -> np.ndarray:
        return (0.1 * random.standard_normal(round(seconds * RATE))).astype(np.float32)

    inputs = {"clip": [noise(options.seconds)], "ragged": [noise(seconds) for seconds in RAGGED_SECONDS]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_random_model(folder)
        entrants = dict(contestants(folder, options.threads))
        first = next(iter(entrants.values()))
        expected = {kind: [first([clip])[0] for clip in clips] for kind, clips in inputs.items()}
        seconds, equal = {}, {}
        for kind, clips in inputs.items():
            seconds[kind] = medians({name: partial(entrant, clips) for name, entrant in entrants.items()}, options.rounds)
            equal[kind] = {name: agreement(entrant(clips), expected[kind]) for name, entrant in entrants.items()}
    report(seconds, equal, options)


def report(seconds: dict[str, dict[str, float]], equal: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    """One line a contestant, the fastest first."""
    columns = ["", "clip s", "times", "equal", "ragged s", "times ", "equal "]
    rows = []
    for name in sorted(seconds["clip"], key=seconds["clip"].__getitem__):
        row = [name]
        for kind, times in seconds.items():
            reference = times.get(REFERENCE, float("nan"))
            row += [f"{times[name]:.3f}", f"{reference / times[name]:.2f}", f"{equal[kind][name]:.2%}"]
        rows.append(row)
    print_table(columns, rows, title=f"wav2vec2 base, {options.seconds:g} s and a ragged batch", right=columns[1:])
    print(f"{options.threads} threads, medians of {options.rounds} rounds; times: as fast as {REFERENCE}.")
    result = {
        "benchmark": "wav2vec2",
        **vars(options),
        "processor": processor(),
        "versions": versions("transformers", "onnxruntime"),
        "times": seconds,
        "equal": equal,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
