"""Mimi beside its peers: offline (one clip) or live (80 ms frames), with random full-size weights.

    python benchmarks/bench_mimi.py [--live] [--seconds 10] [--rounds 7] [--threads 2]

All contestants get the same weights and take turns in one process (A B C A B C ...), so that what else the machine does hits
all alike; a time is the median over the rounds and matters only beside the others. Prints a table and ends with one JSON line.
Peers that are not installed are left out.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from peers import FRAME, RATE, Codec, contestants, medians, random_model, versions
from torch import Tensor

WARM_FRAMES = 300
"""Live: frames before the first that counts, so that attention windows are full."""


def offline(codecs: Sequence[Codec], audio: Tensor, codes: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds for the whole clip each way, and the share of codes that equal ours in float32."""
    return {
        "encode": medians({codec.name: lambda codec=codec: codec.encode(audio) for codec in codecs}, rounds),
        "decode": medians({codec.name: lambda codec=codec: codec.decode(codes) for codec in codecs}, rounds),
        "codes_equal": {codec.name: float((codec.encode(audio) == codes).float().mean()) for codec in codecs},
    }


def live(codecs: Sequence[Codec], audio: Tensor, codes: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds for one frame each way, with full attention windows."""
    codecs = [codec for codec in codecs if codec.encode_frame and codec.decode_frame]
    frame, code = audio[..., :FRAME].contiguous(), codes[..., :1].contiguous()
    for codec in codecs:
        for _ in range(WARM_FRAMES):
            codec.encode_frame(frame)
            codec.decode_frame(code)
    return {
        "encode": medians({codec.name: lambda codec=codec: codec.encode_frame(frame) for codec in codecs}, rounds, 20),
        "decode": medians({codec.name: lambda codec=codec: codec.decode_frame(code) for codec in codecs}, rounds, 20),
    }


def quantizer_share(audio: Tensor, rounds: int) -> float:
    """Part of our float32 encoding time that the quantiser with all codebooks takes."""
    model = random_model()
    latents = model.encode_latents(audio)
    steps = {"quantizer": lambda: model.quantizer.encode(latents, 32), "all": lambda: model.encode(audio)}
    times = medians(steps, rounds)
    return times["quantizer"] / times["all"]


def print_table(result: dict[str, dict[str, float]], reference: str, unit: str, scale: float) -> None:
    """One line a contestant, the fastest first."""
    encode, decode, equal = result["encode"], result["decode"], result.get("codes_equal")
    head = f"{'':20}{'encode ' + unit:>12}{'x':>7}{'decode ' + unit:>12}{'x':>7}"
    print(f"{head}{'codes equal' if equal else '':>13}   x: times as fast as {reference}")
    for name in sorted(encode, key=lambda name: encode[name] + decode[name]):
        line = f"{name:20}{encode[name] * scale:12.3f}{encode[reference] / encode[name]:7.2f}"
        line += f"{decode[name] * scale:12.3f}{decode[reference] / decode[name]:7.2f}"
        print(line + (f"{equal[name]:13.3%}" if equal else ""))


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    frames = round(arguments.seconds * RATE / FRAME)
    audio = 0.1 * torch.randn(1, 1, frames * FRAME, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        codecs = list(contestants(Path(folder)))
        codes = codecs[0].encode(audio)
        result = (live if arguments.live else offline)(codecs, audio, codes, arguments.rounds)
    names = list(result["encode"])
    reference = next((name for name in ("transformers fp32", "moshi fp32") if name in names), names[0])
    print_table(result, reference, *("ms", 1000) if arguments.live else ("s", 1))
    report = {
        "benchmark": "mimi live" if arguments.live else "mimi offline",
        "seconds_of_audio": 0.08 if arguments.live else frames * FRAME / RATE,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "processor": platform.processor() or platform.machine(),
        "versions": versions(),
        "seconds": result,
    }
    if not arguments.live:
        report["quantizer_share_of_encode"] = quantizer_share(audio, arguments.rounds)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
