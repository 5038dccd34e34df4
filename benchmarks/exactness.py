"""How much codes depend on batches, streams, precision and threads: ours beside transformers' and moshi's, on the same speech.

    python benchmarks/exactness.py [--seconds 2] [--threads 2]

The bundled recordings, cut to lengths from half of --seconds to all of it, so that batches are padded, go through random
full-size weights and through the bundled model. Ours is what `phonograph verify` measures; of the peers, in float32: all in one
padded batch against each alone (transformers with its padding mask; moshi has none), and 80 ms frames through their streaming
against one pass (of its past the transformers decoder keeps the attention's alone). The last frame of a recording is partly
silence; peers' streams, which take whole frames, get it filled up with zeros. moshi knows one size, so it is beside the random
weights only. Prints tables and ends with one JSON line. Peers that are not installed are left out.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phonograph import MimiModel, audio
from phonograph.benchmarks import (
    PEERS,
    installed,
    moshi_model,
    moshi_state,
    processor,
    random_model,
    transformers_model,
    versions,
)
from phonograph.cli.console import print_table
from phonograph.loading.hub import BUNDLED_SPEECH
from phonograph.verify import compare_codes, largest_difference, verify

FRAME = 1920


@dataclass(frozen=True)
class Row:
    """One comparison: shares of codes that differ, and the largest difference of a sample for the largest sample."""

    weights: str
    package: str
    compared: str
    mismatch: float
    semantic_mismatch: float
    codes: int
    sample_difference: float


@dataclass(frozen=True)
class Peer:
    """A peer's ways, on clips (1, S) and codes (Q, F)."""

    name: str
    encode: Callable[[list[Tensor]], list[Tensor]]
    decode: Callable[[list[Tensor]], list[Tensor]]
    encode_together: Callable[[list[Tensor]], list[Tensor]]
    decode_together: Callable[[list[Tensor]], list[Tensor]]
    encode_live: Callable[[list[Tensor]], list[Tensor]]
    decode_live: Callable[[list[Tensor]], list[Tensor]]


def padded(values: list[Tensor], multiple: int = 1) -> Tensor:
    """Each (rows, any) -> (B, rows, a length for all), zeros on the right."""
    longest = -(-max(value.shape[-1] for value in values) // multiple) * multiple
    return torch.stack([torch.nn.functional.pad(value, (0, longest - value.shape[-1])) for value in values])


def frames_of(clip: Tensor) -> int:
    """Whole frames that a clip needs."""
    return -(-clip.shape[-1] // FRAME)


def cut(rows: Tensor, lengths: list[int]) -> list[Tensor]:
    """(B, any, longest) -> each row at its length."""
    return [row[:, :length] for row, length in zip(rows, lengths, strict=True)]


def transformers_peer(model: Any) -> Peer:
    """By its public methods."""

    def encode_together(clips: list[Tensor]) -> list[Tensor]:
        batch = padded(clips)
        mask = torch.arange(batch.shape[-1]) < torch.tensor([clip.shape[-1] for clip in clips])[:, None]
        return cut(model.encode(batch, mask[:, None].long()).audio_codes, [frames_of(clip) for clip in clips])

    def encode_live(clips: list[Tensor]) -> list[Tensor]:
        results = []
        for clip in clips:
            cache = convs = None
            codes = []
            for chunk in padded([clip], FRAME).split(FRAME, dim=-1):
                step = model.encode(
                    chunk, encoder_past_key_values=cache, padding_cache=convs, use_streaming=True, return_dict=True
                )
                cache, convs = step.encoder_past_key_values, step.padding_cache
                codes.append(step.audio_codes[0])
            results.append(torch.cat(codes, dim=-1))
        return results

    def decode_live(items: list[Tensor]) -> list[Tensor]:
        results = []
        for item in items:
            cache, samples = None, []
            for code in item[None].split(1, dim=-1):
                step = model.decode(code, decoder_past_key_values=cache, return_dict=True)
                cache = step.decoder_past_key_values
                samples.append(step.audio_values[0])
            results.append(torch.cat(samples, dim=-1))
        return results

    return Peer(
        "transformers",
        lambda clips: [model.encode(clip[None]).audio_codes[0] for clip in clips],
        lambda items: [model.decode(item[None]).audio_values[0] for item in items],
        encode_together,
        lambda items: cut(model.decode(padded(items)).audio_values, [item.shape[-1] * FRAME for item in items]),
        encode_live,
        decode_live,
    )


def moshi_peer(model: Any) -> Peer:
    """By its public methods; it takes whole frames only."""

    def live(step: Callable[[Tensor], Tensor], values: list[Tensor], size: int) -> list[Tensor]:
        results = []
        for value in values:
            with model.streaming(1):
                chunks = padded([value], size).split(size, dim=-1)
                results.append(torch.cat([step(chunk)[0] for chunk in chunks], dim=-1))
        return results

    return Peer(
        "moshi",
        lambda clips: [model.encode(padded([clip], FRAME))[0] for clip in clips],
        lambda items: [model.decode(item[None])[0] for item in items],
        lambda clips: cut(model.encode(padded(clips, FRAME)), [frames_of(clip) for clip in clips]),
        lambda items: cut(model.decode(padded(items)), [item.shape[-1] * FRAME for item in items]),
        lambda clips: live(model.encode, clips, FRAME),
        lambda items: live(model.decode, items, 1),
    )


def ours(weights: str, model: MimiModel, clips: list[Tensor]) -> Iterator[Row]:
    """What `phonograph verify` measures."""
    for result in verify(model, [clip.numpy() for clip in clips]):
        shares = (result.mismatch, result.semantic_mismatch)
        yield Row(weights, "phonograph", result.name, *shares, result.codes, result.sample_difference)


def theirs(weights: str, peer: Peer, clips: list[Tensor]) -> Iterator[Row]:
    """Batches and streams of a peer."""
    codes = peer.encode(clips)
    samples = peer.decode(codes)
    ways = {
        "streaming | one pass": (peer.encode_live, peer.decode_live),
        "batched | alone": (peer.encode_together, peer.decode_together),
    }
    for name, (encode, decode) in ways.items():
        all_codes, different, semantic_codes, semantic = compare_codes(zip(encode(clips), codes, strict=True))
        difference = largest_difference(zip(decode(codes), samples, strict=True))
        yield Row(weights, peer.name, name, different / all_codes, semantic / semantic_codes, all_codes, difference)


@torch.no_grad()
def compare(weights: str, model: MimiModel, clips: list[Tensor]) -> Iterator[Row]:
    """Ours, then the peers that are installed and can hold the weights."""
    yield from ours(weights, model, clips)
    with tempfile.TemporaryDirectory() as folder:
        if installed("transformers"):
            model.save_pretrained(folder)
            yield from theirs(weights, transformers_peer(transformers_model(Path(folder), torch.float32)), clips)
    if installed("moshi") and weights == "random":
        yield from theirs(weights, moshi_peer(moshi_model(moshi_state(model), torch.float32)), clips)


def main() -> None:
    """Measure, print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of the longest recording")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    paths = sorted(BUNDLED_SPEECH.glob("*.flac"))
    lengths = [arguments.seconds * part for part in torch.linspace(0.5, 1, len(paths)).tolist()]
    loaded = [
        audio.load(path, sampling_rate=24000, mono=True, duration_seconds=length)
        for path, length in zip(paths, lengths, strict=True)
    ]
    clips = [torch.from_numpy(clip.samples) for clip in loaded]
    rows: list[Row] = []
    columns = ("library", "compared", "codes that differ", "semantic", "of codes", "samples differ by")
    for weights, model in (("random", random_model()), ("mimi-mini", MimiModel.from_pretrained("mimi-mini"))):
        found = list(compare(weights, model, clips))
        table = [
            (
                row.package,
                row.compared,
                f"{row.mismatch:.4%}",
                f"{row.semantic_mismatch:.4%}",
                str(row.codes),
                f"{row.sample_difference:.1e}",
            )
            for row in found
        ]
        print_table(columns, table, title=f"{weights} weights", right=columns[2:])
        rows += found
    report = {
        "benchmark": "mimi exactness",
        "recordings": len(clips),
        "seconds_of_audio": round(sum(clip.duration_seconds for clip in loaded), 3),
        "threads": arguments.threads,
        "processor": processor(),
        "versions": versions(*PEERS),
        "comparisons": [asdict(row) for row in rows],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
