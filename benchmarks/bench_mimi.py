"""Mimi, offline, beside its peers: encode and decode one clip with random full-size weights.

    python benchmarks/bench_mimi.py [--seconds 10] [--rounds 7] [--threads 2]

All contestants get the same weights and take turns in one process (A B C A B C ...), so that what else the machine does hits
all alike; a time is the median over the rounds and matters only beside the others. Prints a table and ends with one JSON line.
Peers that are not installed are left out.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import save_file

from phonograph import MimiConfig, MimiModel
from phonograph.models.mimi.moshi_layout import is_moshi_layout

Step = Callable[[], object]
FRAME = 1920
RATE = 24000


def random_model() -> MimiModel:
    """Full size, with codebooks that spread the codes and branches that matter, unlike at the start of a training."""
    torch.manual_seed(0)
    model = MimiModel(MimiConfig()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("scale"):
                parameter.fill_(0.3)
    return model


def ours(folder: Path, dtype: torch.dtype, audio: torch.Tensor, codes: torch.Tensor) -> tuple[Step, Step]:
    model = MimiModel.from_pretrained(folder, dtype=dtype)
    audio = audio.to(dtype)
    return lambda: model.encode(audio).audio_codes, lambda: model.decode(codes).audio_values


def transformers_peer(folder: Path, dtype: torch.dtype, audio: torch.Tensor, codes: torch.Tensor) -> tuple[Step, Step]:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.MimiModel.from_pretrained(folder, dtype=dtype).eval()
    audio = audio.to(dtype)
    return lambda: model.encode(audio).audio_codes, lambda: model.decode(codes).audio_values


def moshi_state(model: MimiModel) -> dict[str, torch.Tensor]:
    """Our weights under the names of the moshi package: what our loading table does, the other way round."""
    from moshi.models import loaders

    ours_state = model.state_dict()
    heads, size = model.config.num_attention_heads, model.config.head_dim
    renaming = type(model)._renaming(model.config)

    def neighbours(rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(0, (heads, 2, size // 2)).transpose(1, 2).reshape(rows.shape)

    state = {}
    for name in loaders.get_mimi(None).state_dict():
        new = renaming.new_names(name)
        parts = [ours_state[part] for part in new]
        if len(parts) == 3:
            parts = [neighbours(parts[0]), neighbours(parts[1]), parts[2]]
        state[name] = torch.cat(parts).contiguous()
    assert is_moshi_layout(state)
    return state


def moshi_peer(
    state: dict[str, torch.Tensor], dtype: torch.dtype, audio: torch.Tensor, codes: torch.Tensor
) -> tuple[Step, Step]:
    from moshi.models import loaders

    model = loaders.get_mimi(None).eval()
    model.load_state_dict(state)
    model.set_num_codebooks(32)
    model.to(dtype)
    audio = audio.to(dtype)
    return lambda: model.encode(audio), lambda: model.decode(codes)


def rustymimi_peer(folder: Path, state: dict[str, torch.Tensor], audio: torch.Tensor, codes: torch.Tensor) -> tuple[Step, Step]:
    import rustymimi

    names = {"in_projs.0.weight": "in_proj_weight", "out_projs.0.weight": "out_proj.weight"}
    renamed = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    path = folder / "rustymimi.safetensors"
    save_file(renamed, path)
    tokenizer = rustymimi.Tokenizer(str(path), num_codebooks=32)
    samples, indices = audio.numpy(), codes.numpy().astype("uint32")
    return lambda: torch.from_numpy(tokenizer.encode(samples).astype("int64")), lambda: tokenizer.decode(indices)


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def contestants(folder: Path, audio: torch.Tensor) -> tuple[dict[str, tuple[Step, Step]], torch.Tensor]:
    model = random_model()
    model.save_pretrained(folder)
    codes = model.encode(audio).audio_codes
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        short = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        found[f"phonograph {short}"] = ours(folder, dtype, audio, codes)
        if installed("transformers"):
            found[f"transformers {short}"] = transformers_peer(folder, dtype, audio, codes)
        if installed("moshi"):
            found[f"moshi {short}"] = moshi_peer(moshi_state(model), dtype, audio, codes)
    if installed("rustymimi") and installed("moshi"):
        found["rustymimi fp32"] = rustymimi_peer(folder, moshi_state(model), audio, codes)
    return found, codes


def measure(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median seconds of each, over rounds in which all take turns; one round before does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    frames = round(arguments.seconds * RATE / FRAME)
    audio = 0.1 * torch.randn(1, 1, frames * FRAME, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        found, codes = contestants(Path(folder), audio)
        agreement = {name: float((pair[0]() == codes).float().mean()) for name, pair in found.items()}
        encode = measure({name: pair[0] for name, pair in found.items()}, arguments.rounds)
        decode = measure({name: pair[1] for name, pair in found.items()}, arguments.rounds)
    reference = "transformers fp32" if "transformers fp32" in found else "phonograph fp32"
    print(f"{'':20}{'encode s':>10}{'x':>7}{'decode s':>10}{'x':>7}{'codes equal':>13}   x: times as fast as {reference}")
    for name in sorted(found, key=lambda name: encode[name] + decode[name]):
        print(
            f"{name:20}{encode[name]:10.3f}{encode[reference] / encode[name]:7.2f}"
            f"{decode[name]:10.3f}{decode[reference] / decode[name]:7.2f}{agreement[name]:13.4%}"
        )
    packages = ("torch", "phonograph", "transformers", "moshi", "rustymimi")
    report = {
        "benchmark": "mimi",
        "seconds_of_audio": frames * FRAME / RATE,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "processor": platform.processor() or platform.machine(),
        "versions": {package: installed(package) for package in packages},
        "encode_seconds": encode,
        "decode_seconds": decode,
        "codes_equal": agreement,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
