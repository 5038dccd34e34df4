"""The contestants of the Mimi benchmarks: ours and its peers with one set of random full-size weights.

Each is a `Codec` of plain functions, so that benchmarks only call and time. Peers that are not installed are left out.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from phonograph import MimiConfig, MimiModel
from phonograph.models.mimi.moshi_layout import is_moshi_layout
from phonograph.streaming import MimiDecoderSession, MimiEncoderSession

FRAME = 1920
RATE = 24000
CODEBOOKS = 32
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Codec:
    """A contestant, ready to run on audio (1, 1, samples) float32 and codes (1, Q, frames) int64."""

    name: str
    encode: Callable[[Tensor], Any]
    decode: Callable[[Tensor], Any]
    encode_frame: Callable[[Tensor], Any] | None = None
    decode_frame: Callable[[Tensor], Any] | None = None


def random_model() -> MimiModel:
    """Full size, with branches that matter, unlike at the start of a training."""
    torch.manual_seed(0)
    model = MimiModel(MimiConfig()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("scale"):
                parameter.fill_(0.3)
    return model


def installed(package: str) -> str | None:
    """Version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of all that takes part."""
    return {package: installed(package) for package in ("torch", "phonograph", "transformers", "moshi", "rustymimi")}


def contestants(folder: Path) -> Iterator[Codec]:
    """All that are installed, each in float32 and bfloat16 where it has both; `folder` takes the weights' files."""
    model = random_model()
    model.save_pretrained(folder)
    for short, dtype in DTYPES.items():
        yield _ours(folder, short, dtype)
        if installed("transformers"):
            yield _transformers(folder, short, dtype)
        if installed("moshi"):
            yield _moshi(_moshi_state(model), short, dtype)
    if installed("rustymimi") and installed("moshi"):
        yield _rustymimi(folder, _moshi_state(model))


def medians(steps: dict[str, Callable[[], Any]], rounds: int, repeats: int = 1) -> dict[str, float]:
    """Median seconds of each step, over rounds in which all take turns; one round before does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            for _ in range(repeats):
                start = time.perf_counter()
                step()
                if turn:
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _ours(folder: Path, short: str, dtype: torch.dtype) -> Codec:
    model = MimiModel.from_pretrained(folder, dtype=dtype)
    encoder, decoder = MimiEncoderSession(model), MimiDecoderSession(model)
    return Codec(
        f"phonograph {short}",
        lambda audio: model.encode(audio.to(dtype)).audio_codes,
        lambda codes: model.decode(codes).audio_values,
        lambda audio: encoder.feed(audio[0]),
        lambda codes: decoder.feed(codes[0]),
    )


def _transformers(folder: Path, short: str, dtype: torch.dtype) -> Codec:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.MimiModel.from_pretrained(folder, dtype=dtype).eval()
    return Codec(
        f"transformers {short}",
        lambda audio: model.encode(audio.to(dtype)).audio_codes,
        lambda codes: model.decode(codes).audio_values,
    )


def _moshi_state(model: MimiModel) -> dict[str, Tensor]:
    """Our weights under the names of the moshi package: what our loading table does, the other way round."""
    from moshi.models import loaders

    state = model.state_dict()
    heads, size = model.config.num_attention_heads, model.config.head_dim
    renaming = type(model)._renaming(model.config)

    def neighbours(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (heads, 2, size // 2)).transpose(1, 2).reshape(rows.shape)

    theirs = {}
    for name in loaders.get_mimi(None).state_dict():
        parts = [state[part] for part in renaming.new_names(name)]
        if len(parts) == 3:
            parts = [neighbours(parts[0]), neighbours(parts[1]), parts[2]]
        theirs[name] = torch.cat(parts).contiguous()
    assert is_moshi_layout(theirs)
    return theirs


def _moshi(state: dict[str, Tensor], short: str, dtype: torch.dtype) -> Codec:
    from moshi.models import loaders

    def build() -> Any:
        model = loaders.get_mimi(None).eval()
        model.load_state_dict(state)
        model.set_num_codebooks(CODEBOOKS)
        return model.to(dtype)

    whole, live = build(), build()
    live.streaming_forever(1)
    return Codec(
        f"moshi {short}",
        lambda audio: whole.encode(audio.to(dtype)),
        lambda codes: whole.decode(codes),
        lambda audio: live.encode(audio.to(dtype)),
        lambda codes: live.decode(codes),
    )


def _rustymimi(folder: Path, state: dict[str, Tensor]) -> Codec:
    import rustymimi

    names = {"in_projs.0.weight": "in_proj_weight", "out_projs.0.weight": "out_proj.weight"}
    renamed = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    path = folder / "rustymimi.safetensors"
    save_file(renamed, path)
    whole, live = (rustymimi.Tokenizer(str(path), num_codebooks=CODEBOOKS) for _ in range(2))
    return Codec(
        "rustymimi fp32",
        lambda audio: torch.from_numpy(whole.encode(audio.numpy()).astype("int64")),
        lambda codes: whole.decode(codes.numpy().astype("uint32")),
        lambda audio: live.encode_step(audio.numpy()),
        lambda codes: live.decode_step(codes.numpy().astype("uint32")),
    )
