"""Mimi on a GPU beside its peers: checks, times, the most live streams, and how much of a ragged batch is padding.

    python benchmarks/gpu.py [--rounds 20] [--device cuda]
    python benchmarks/gpu.py --device cpu --quick        # tiny sizes, to see that every line runs

Checks: codes in float32 of the GPU against those of the CPU, on the bundled recordings and on random full-size weights;
slots with CUDA graphs against slots without. Times, in bf16 with 8 codebooks, medians of CUDA events after warm-up: encoding
and decoding batches of 10 s clips, one 80 ms frame of live streams, and the most of them that a frame's time has room for.
moshi's live frames run in its own CUDA graphs. Prints a table and ends with one JSON line. Peers that are not installed are
left out. Exits with 2 where there is no GPU.
"""

import argparse
import functools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phonograph import MimiConfig, MimiModel, audio
from phonograph.benchmarks import (
    FRAME,
    PEERS,
    RATE,
    installed,
    moshi_model,
    moshi_state,
    random_model,
    transformers_model,
    versions,
)
from phonograph.loading.hub import BUNDLED_SPEECH
from phonograph.streaming import MimiBatch

CODEBOOKS = 8
FRAME_SECONDS = FRAME / RATE
LARGEST_SLOTS = 2**16


@dataclass(frozen=True)
class Plan:
    """Sizes of everything that is run."""

    device: torch.device
    rounds: int
    seconds: float
    batches: tuple[int, ...]
    slots: tuple[int, ...]
    warm_frames: int
    """Live: frames before the first that counts, so that attention windows are full."""
    most_slots: int
    clips: int

    @property
    def samples(self) -> int:
        """Of one clip, whole frames."""
        return round(self.seconds / FRAME_SECONDS) * FRAME


@dataclass(frozen=True)
class Contestant:
    """`offline` codes batches; `live` makes one function a way that does the next frame of so many streams."""

    name: str
    encode: Callable[[Tensor], Any]
    decode: Callable[[Tensor], Any]
    live: Callable[[int], tuple[Callable[[], Any], Callable[[], Any]]] | None = None


def plan_for(device: torch.device, rounds: int, quick: bool) -> Plan:
    """The published sizes, or tiny ones."""
    if quick:
        return Plan(device, 1, 0.16, (1, 2), (1, 2), 2, 4, 64)
    return Plan(device, rounds, 10.0, (32, 64), (1, 64), 300, LARGEST_SLOTS, 1024)


# Timing ------------------------------------------------------------------------------------------------------------------


def event_seconds(step: Callable[[], Any], device: torch.device) -> float:
    """Time of one step on the device, between two CUDA events; on a CPU by the clock."""
    if device.type == "cpu":
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def medians(steps: dict[str, Callable[[], Any]], plan: Plan) -> dict[str, float]:
    """Median seconds of each step over rounds in which all take turns; three rounds before do not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(plan.rounds + 3):
        for name, step in steps.items():
            seconds = event_seconds(step, plan.device)
            if turn >= 3:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


# Contestants -------------------------------------------------------------------------------------------------------------


def ours(model: MimiModel, plan: Plan) -> Contestant:
    """phonograph in bf16."""

    def live(slots: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        batch = full_batch(model, slots)
        frames, codes = live_inputs(model, slots, plan.device)
        return lambda: batch.encode(frames), lambda: batch.decode(codes)

    return Contestant(
        "phonograph bf16",
        lambda clips: model.encode(clips, None, CODEBOOKS, return_dict=False)[0],
        lambda codes: model.decode(codes, return_dict=False)[0],
        live,
    )


def theirs(folder: Path, model: MimiModel, plan: Plan) -> Iterator[Contestant]:
    """transformers and moshi in bf16, where they are installed; moshi knows the full size only."""
    if installed("transformers"):
        whole = transformers_model(folder, torch.bfloat16).to(plan.device)
        yield Contestant(
            "transformers bf16",
            lambda clips: whole.encode(clips, num_quantizers=CODEBOOKS).audio_codes,
            lambda codes: whole.decode(codes).audio_values,
        )
    if installed("moshi"):
        state = moshi_state(model if model.config.hidden_size == MimiConfig().hidden_size else random_model())

        def build() -> Any:
            built = moshi_model(state, torch.bfloat16).to(plan.device)
            built.set_num_codebooks(CODEBOOKS)
            return built

        def live(slots: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
            streaming = build()
            streaming.streaming_forever(slots)
            frames, codes = live_inputs(model, slots, plan.device)
            return lambda: streaming.encode(frames), lambda: streaming.decode(codes)

        offline = build()
        yield Contestant("moshi bf16", offline.encode, offline.decode, live)


def full_batch(model: MimiModel, slots: int, cuda_graph: bool | None = None) -> MimiBatch:
    """A batch with all slots in use."""
    batch = MimiBatch(model, slots, num_quantizers=min(CODEBOOKS, model.config.num_quantizers), cuda_graph=cuda_graph)
    for _ in range(slots):
        batch.join()
    return batch


def noise(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """Quiet."""
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def live_inputs(model: MimiModel, slots: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """One frame and its codes for each stream, in bf16."""
    size, number = model.config.codebook_size, min(CODEBOOKS, model.config.num_quantizers)
    codes = torch.randint(size, (slots, number, 1), generator=torch.Generator().manual_seed(1))
    return noise((slots, 1, model.frame_samples)).to(device, torch.bfloat16), codes.to(device)


# Checks ------------------------------------------------------------------------------------------------------------------


def share_equal(ours_here: Tensor, ours_there: Tensor) -> float:
    """Part of the codes that are equal."""
    return float((ours_here.cpu() == ours_there.cpu()).float().mean())


def check_codes(full: MimiModel, plan: Plan) -> dict[str, float]:
    """Share of equal codes, GPU against CPU, both in float32 without TF32."""
    mini = MimiModel.from_pretrained("mimi-mini")
    clips = [audio.load(path, sampling_rate=RATE, mono=True).samples for path in sorted(BUNDLED_SPEECH.glob("*.flac"))]
    speech = [torch.from_numpy(clip)[None, :, : plan.samples] for clip in clips]
    inputs = {"bundled model": (mini, speech), "random weights": (full, [noise((1, 1, min(plan.samples, 5 * RATE)))])}
    allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    shares = {}
    for name, (model, items) in inputs.items():
        there = MimiModel(model.config).eval()
        there.load_state_dict(model.state_dict())
        there = there.to(plan.device)
        pairs = [(model.encode(item).audio_codes, there.encode(item.to(plan.device)).audio_codes.cpu()) for item in items]
        flat = [torch.cat([codes.flatten() for codes in side]) for side in zip(*pairs, strict=True)]
        shares[f"codes of the GPU equal those of the CPU, {name}"] = share_equal(*flat)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = allowed
    return shares


def check_graphs(model: MimiModel) -> dict[str, float]:
    """Share of equal codes, and largest difference in audio, of slots with CUDA graphs against slots without."""
    graphed, eager = full_batch(model, 4), full_batch(model, 4, cuda_graph=False)
    gaps, shares = [], []
    for step in range(8):
        if step == 4:
            for batch in (graphed, eager):
                batch.leave(1)
                batch.reset(2)
        frames = noise((4, 1, model.frame_samples), seed=step).to(model.device, model.dtype)
        active = torch.tensor([True, step < 4, True, step % 2 == 0])
        codes, expected = graphed.encode(frames, active), eager.encode(frames, active)
        shares.append(share_equal(codes, expected))
        sound = (graphed.decode(expected, active) - eager.decode(expected, active)).abs().max()
        gaps.append(float(sound))
    return {"codes of slots with graphs equal those without": statistics.mean(shares), "audio apart by": max(gaps)}


# What is timed -----------------------------------------------------------------------------------------------------------


def offline(contestants: Sequence[Contestant], model: MimiModel, plan: Plan) -> dict[str, dict[str, float]]:
    """Seconds of audio worked through in a second."""
    rows: dict[str, dict[str, float]] = {}
    for batch in plan.batches:
        clips = noise((batch, 1, plan.samples)).to(plan.device, torch.bfloat16)
        codes = contestants[0].encode(clips)
        length = batch * plan.samples / RATE
        for way, given in (("encode", clips), ("decode", codes)):
            steps = {each.name: lambda each=each, way=way, given=given: getattr(each, way)(given) for each in contestants}
            seconds = medians(steps, plan)
            rows[f"{way} {batch} x {plan.seconds:g} s, times realtime"] = {
                name: length / value for name, value in seconds.items()
            }
    return rows


def live(contestants: Sequence[Contestant], plan: Plan) -> dict[str, dict[str, float]]:
    """Milliseconds for one frame of all streams, with full attention windows."""
    rows: dict[str, dict[str, float]] = {}
    for slots in plan.slots:
        ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}
        for each in contestants:
            if each.live is not None:
                ways[each.name] = each.live(slots)
        for number, way in enumerate(("encode", "decode")):
            steps = {name: functions[number] for name, functions in ways.items()}
            for _ in range(plan.warm_frames):
                for step in steps.values():
                    step()
            rows[f"{way} a frame of {slots} streams, ms"] = {name: value * 1000 for name, value in medians(steps, plan).items()}
    return rows


def most_streams(model: MimiModel, plan: Plan) -> dict[str, int]:
    """The most slots whose frame takes less than it lasts, for each way alone and for both; by doubling, then halving."""

    @functools.cache
    def seconds(slots: int) -> dict[str, float]:
        try:
            encode, decode = (
                statistics.median(event_seconds(step, plan.device) for _ in range(8)) for step in ours(model, plan).live(slots)
            )
        except torch.OutOfMemoryError:
            encode = decode = math.inf
        return {"encode": encode, "decode": decode, "both": encode + decode}

    ways = ("encode", "decode", "both")
    return {way: largest(lambda slots, way=way: seconds(slots)[way] < FRAME_SECONDS, plan.most_slots) for way in ways}


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, to 3 %, where all smaller ones do."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, high * 2
    if high > most:
        return low
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def packing_waste(plan: Plan) -> dict[str, float]:
    """Part of the samples that is padding, when clips of 1 to 20 s come as they are or sorted by length."""
    generator = torch.Generator().manual_seed(1)
    lengths = [int(value) for value in torch.randint(RATE, 20 * RATE, (plan.clips,), generator=generator)]
    size = min(32, max(1, plan.clips // 4))

    def waste(ordered: Sequence[int]) -> float:
        groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        return 1 - sum(ordered) / sum(max(group) * len(group) for group in groups)

    return {"as they come": waste(lengths), "sorted by length, as phonograph.encode does": waste(sorted(lengths))}


# The report --------------------------------------------------------------------------------------------------------------


def tiny_model() -> MimiModel:
    """Frames of the usual size, nearly nothing inside."""
    torch.manual_seed(0)
    fields = {"num_filters": 2, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "codebook_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "upsample_groups": 32, "num_quantizers": CODEBOOKS}
    inner = {"codebook_dim": 8, "vector_quantization_hidden_dimension": 8, "sliding_window": 4}
    return MimiModel(MimiConfig(**fields, **heads, **inner)).eval()


def measure(plan: Plan, quick: bool) -> dict[str, Any]:
    """Everything."""
    full = tiny_model() if quick else random_model()
    with tempfile.TemporaryDirectory() as folder:
        full.save_pretrained(folder)
        model = MimiModel.from_pretrained(folder, dtype=torch.bfloat16).to(plan.device)
        contestants = [ours(model, plan), *theirs(Path(folder), full, plan)]
        return {
            "checks": check_codes(full, plan) | check_graphs(model),
            "times": offline(contestants, model, plan) | live(contestants, plan),
            "most_live_streams": most_streams(model, plan),
            "padding": packing_waste(plan),
        }


def print_table(result: dict[str, Any]) -> None:
    """Checks, a column a contestant, and the rest."""
    for name, value in result["checks"].items():
        print(f"{name:64}{value:12.4%}" if "equal" in name else f"{name:64}{value:12.2e}")
    names = list(dict.fromkeys(name for row in result["times"].values() for name in row))
    print(f"\n{'':44}" + "".join(f"{name:>20}" for name in names))
    for title, row in result["times"].items():
        print(f"{title:44}" + "".join(f"{row[name]:20,.2f}" if name in row else f"{'-':>20}" for name in names))
    print()
    for way, number in result["most_live_streams"].items():
        print(f"{f'most live streams under {FRAME_SECONDS * 1000:g} ms a frame, {way}':64}{number:12,}")
    for how, share in result["padding"].items():
        print(f"{f'padding in ragged batches, {how}':72}{share:8.2%}")


def main() -> None:
    """Check, measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: numbers without a meaning")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("expected a GPU, got none; pass --device cpu --quick to see the script run", file=sys.stderr)
        sys.exit(2)
    torch.set_grad_enabled(False)
    plan = plan_for(device, options.rounds, options.quick)
    result = measure(plan, options.quick)
    print_table(result)
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    report = {"benchmark": "mimi gpu", "dtype": "bf16", "codebooks": CODEBOOKS, "quick": options.quick, "rounds": plan.rounds}
    print(json.dumps(report | {"processor": processor, "versions": versions(*PEERS)} | result))


if __name__ == "__main__":
    main()
