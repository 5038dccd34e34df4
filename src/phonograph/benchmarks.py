"""Mimi beside its peers (transformers, moshi, rustymimi) in one run: what `phonograph bench` and benchmarks/ measure.

    report = run(Options(seconds=10.0, rounds=5))
    report.seconds["encode"]["phonograph fp32"]

All contestants get the same weights and take turns (A B C A B C ...), so that what else the machine does hits all alike; a time
is the median over the rounds and matters only beside the others. Each contestant is a `Codec` of plain functions. Peers run in
a process of their own, for what one library does to a process (its memory, its threads) the others would be measured with.
They are imported there alone; those that are not installed, or can't hold the weights, are left out.
"""

import contextlib
import importlib
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor

from phonograph.models.mimi.configuration_mimi import MimiConfig
from phonograph.models.mimi.modeling_mimi import MimiModel
from phonograph.models.mimi.moshi_layout import is_moshi_layout, moshi_renaming
from phonograph.streaming import MimiDecoderSession, MimiEncoderSession

__all__ = [
    "CODEBOOKS",
    "DTYPES",
    "FRAME",
    "PEERS",
    "RATE",
    "Codec",
    "Options",
    "Report",
    "installed",
    "medians",
    "moshi_model",
    "moshi_state",
    "processor",
    "random_model",
    "run",
    "transformers_model",
    "versions",
]

FRAME = 1920
RATE = 24000
CODEBOOKS = 32
PEERS = ("transformers", "moshi", "rustymimi")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

WARM_FRAMES = 300
"""Live: frames before the first that counts, so that attention windows are full."""

_LIVE_REPEATS = 20

Steps: TypeAlias = dict[str, Callable[[], Any]]
"""What each contestant does when its turn comes."""


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        live: 80 ms frames through streams instead of one clip.
        seconds: length of the clip.
        rounds: turns that each contestant takes.
        threads: processor threads; None leaves PyTorch's choice.
        compiled: ours with compiled steps too (MimiModel.compile_for).
    """

    live: bool = False
    seconds: float = 10.0
    rounds: int = 7
    threads: int | None = None
    compiled: bool = False


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        benchmark: "mimi offline" or "mimi live".
        seconds_of_audio: that each step works through.
        threads, rounds: as they were.
        processor: its name.
        versions: of all that takes part; None for what is not installed.
        seconds: under "encode" and "decode", the median of each contestant; offline under "codes_equal" also the share of codes
            that equal those of our float32 model.
        quantizer_share_of_encode: offline, the part of our float32 encoding that the quantiser takes.
    """

    benchmark: str
    seconds_of_audio: float
    threads: int
    rounds: int
    processor: str
    versions: dict[str, str | None]
    seconds: dict[str, dict[str, float]]
    quantizer_share_of_encode: float | None = None

    @property
    def reference(self) -> str:
        """The contestant that the others are compared with."""
        names = list(self.seconds["encode"])
        return next((name for name in ("transformers fp32", "moshi fp32") if name in names), names[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without what was not measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@torch.no_grad()
def run(options: Options, model: MimiModel | None = None) -> Report:
    """Measure `model`, or random full-size weights, and all peers that can run them."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    try:
        return _run(options, model or random_model())
    finally:
        torch.set_num_threads(before)


def _run(options: Options, model: MimiModel) -> Report:
    frame, rate = model.frame_samples, model.config.sampling_rate
    frames = max(1, round(options.seconds * rate / frame))
    audio = 0.1 * torch.randn(1, 1, frames * frame, generator=torch.Generator().manual_seed(1))
    uses = [None, "live" if options.live else "offline"] if options.compiled else [None]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as peers:
        model.save_pretrained(folder)
        codecs = [_ours(Path(folder), short, use) for short in DTYPES for use in uses]
        codecs += peers.enter_context(_elsewhere(Path(folder), _peers(model)))
        codes = codecs[0].encode(audio)
        if options.live:
            seconds = _live(codecs, audio[..., :frame].contiguous(), codes[..., :1].contiguous(), options.rounds)
        else:
            seconds = _offline(codecs, audio, codes, options.rounds)
    return Report(
        benchmark="mimi live" if options.live else "mimi offline",
        seconds_of_audio=(1 if options.live else frames) * frame / rate,
        threads=torch.get_num_threads(),
        rounds=options.rounds,
        processor=processor(),
        versions=versions(*PEERS),
        seconds=seconds,
        quantizer_share_of_encode=None if options.live else _quantizer_share(model, audio, options.rounds),
    )


# Measuring --------------------------------------------------------------------------------------------------------------


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


def _offline(codecs: "Sequence[Codec]", audio: Tensor, codes: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds for the whole clip each way, and the share of codes that equal ours in float32."""
    encode: Steps = {codec.name: partial(codec.encode, audio) for codec in codecs}
    decode: Steps = {codec.name: partial(codec.decode, codes) for codec in codecs}
    equal = {codec.name: float((codec.encode(audio) == codes).float().mean()) for codec in codecs}
    return {"encode": medians(encode, rounds), "decode": medians(decode, rounds), "codes_equal": equal}


def _live(codecs: "Sequence[Codec]", frame: Tensor, code: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds for one frame each way, with full attention windows."""
    encode: Steps = {}
    decode: Steps = {}
    for codec in codecs:
        if codec.encode_frame is not None and codec.decode_frame is not None:
            encode[codec.name] = partial(codec.encode_frame, frame)
            decode[codec.name] = partial(codec.decode_frame, code)
    for step in (*encode.values(), *decode.values()):
        for _ in range(WARM_FRAMES):
            step()
    return {"encode": medians(encode, rounds, _LIVE_REPEATS), "decode": medians(decode, rounds, _LIVE_REPEATS)}


def _quantizer_share(model: MimiModel, audio: Tensor, rounds: int) -> float:
    """Part of our float32 encoding time that the quantiser with all codebooks takes."""
    latents, number = model.encode_latents(audio), model.config.num_quantizers
    times = medians({"quantizer": lambda: model.quantizer.encode(latents, number), "all": lambda: model.encode(audio)}, rounds)
    return times["quantizer"] / times["all"]


# Contestants ------------------------------------------------------------------------------------------------------------


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


def versions(*peers: str) -> dict[str, str | None]:
    """Versions of torch, of this package and of those that it is measured beside."""
    return {package: installed(package) for package in ("torch", "phonograph", *peers)}


def processor() -> str:
    """What the processor is called, or its kind."""
    return platform.processor() or platform.machine()


def _peers(model: MimiModel) -> list[tuple[str, str]]:
    """(package, type) of the peers that are installed and can run the weights; moshi and rustymimi know one size only."""
    names = [("transformers", short) for short in DTYPES] if installed("transformers") else []
    if installed("moshi") and _shapes(model) == _shapes(_unfilled(MimiConfig())):
        names += [("moshi", short) for short in DTYPES]
        names += [("rustymimi", "fp32")] if installed("rustymimi") else []
    return names


@contextlib.contextmanager
def _elsewhere(folder: Path, names: list[tuple[str, str]]) -> Iterator[list[Codec]]:
    """Codecs that run in another process, made there of the weights in `folder`."""
    if not names:
        yield []
        return
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(there, folder, names, torch.get_num_threads()), daemon=True
    )
    process.start()
    there.close()  # so that the end of the process is noticed

    def ask(number: int, what: str, value: Tensor) -> Tensor:
        here.send((number, what, value.numpy()))
        return torch.from_numpy(here.recv())

    try:
        ways = ("encode", "decode", "encode_frame", "decode_frame")
        has_frames: list[bool] = here.recv()
        yield [
            Codec(f"{package} {short}", *(partial(ask, number, way) for way in ways[: 4 if has_frames[number] else 2]))
            for number, (package, short) in enumerate(names)
        ]
    finally:
        here.close()
        process.join()


@torch.no_grad()
def _serve(connection: Connection, folder: Path, names: list[tuple[str, str]], threads: int) -> None:
    """The other end of `_elsewhere`: says which codecs have live frames, then runs what it is asked to, until nobody asks."""
    torch.set_num_threads(threads)
    state = moshi_state(MimiModel.from_pretrained(folder)) if ("moshi", "fp32") in names else {}
    make: dict[str, Callable[[str], Codec]] = {
        "transformers": partial(_transformers, folder),
        "moshi": partial(_moshi, state),
        "rustymimi": lambda short: _rustymimi(folder, state),
    }
    codecs = [make[package](short) for package, short in names]
    connection.send([codec.encode_frame is not None for codec in codecs])
    with contextlib.suppress(EOFError):
        while True:
            number, what, value = connection.recv()
            result = torch.as_tensor(getattr(codecs[number], what)(torch.from_numpy(value)))
            connection.send((result.float() if result.is_floating_point() else result).numpy())


def _unfilled(config: MimiConfig) -> MimiModel:
    with torch.device("meta"):
        return MimiModel(config)


def _shapes(model: MimiModel) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _ours(folder: Path, short: str, compile_for: str | None) -> Codec:
    dtype = DTYPES[short]
    model = MimiModel.from_pretrained(folder, dtype=dtype)
    if compile_for is not None:
        model.compile_for(compile_for)
    encoder, decoder = MimiEncoderSession(model), MimiDecoderSession(model)
    return Codec(
        f"phonograph {short}" if compile_for is None else f"phonograph {short} compiled",
        lambda audio: model.encode(audio.to(dtype), return_dict=False)[0],
        lambda codes: model.decode(codes, return_dict=False)[0],
        lambda audio: encoder.feed(audio[0]),
        lambda codes: decoder.feed(codes[0]),
    )


def _transformers(folder: Path, short: str) -> Codec:
    dtype = DTYPES[short]
    model = transformers_model(folder, dtype)
    return Codec(
        f"transformers {short}",
        lambda audio: model.encode(audio.to(dtype)).audio_codes,
        lambda codes: model.decode(codes).audio_values,
    )


def transformers_model(folder: Path, dtype: torch.dtype, name: str = "MimiModel", **options: Any) -> Any:
    """Their model with the weights that `save_pretrained` left in `folder`."""
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return getattr(transformers, name).from_pretrained(folder, dtype=dtype, **options).eval()


def moshi_state(model: MimiModel) -> dict[str, Tensor]:
    """Our weights under the names of the moshi package: what our loading table does, the other way round."""
    loaders = importlib.import_module("moshi.models.loaders")
    state = model.state_dict()
    heads, size = model.config.num_attention_heads, model.config.head_dim
    renaming = moshi_renaming(model.config)

    def neighbours(rows: Tensor) -> Tensor:
        moved: Tensor = rows.unflatten(0, (heads, 2, size // 2)).transpose(1, 2).reshape(rows.shape)
        return moved

    theirs = {}
    for name in loaders.get_mimi(None).state_dict():
        parts = [state[part] for part in renaming.new_names(name)]
        if len(parts) == 3:
            parts = [neighbours(parts[0]), neighbours(parts[1]), parts[2]]
        theirs[name] = torch.cat(parts).contiguous()
    assert is_moshi_layout(theirs)
    return theirs


def moshi_model(state: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """Their model with weights from `moshi_state`."""
    model = importlib.import_module("moshi.models.loaders").get_mimi(None).eval()
    model.load_state_dict(state)
    model.set_num_codebooks(CODEBOOKS)
    return model.to(dtype)


def _moshi(state: dict[str, Tensor], short: str) -> Codec:
    dtype = DTYPES[short]
    whole, live = moshi_model(state, dtype), moshi_model(state, dtype)
    live.streaming_forever(1)
    return Codec(
        f"moshi {short}",
        lambda audio: whole.encode(audio.to(dtype)),
        lambda codes: whole.decode(codes),
        lambda audio: live.encode(audio.to(dtype)),
        lambda codes: live.decode(codes),
    )


def _rustymimi(folder: Path, state: dict[str, Tensor]) -> Codec:
    rustymimi = importlib.import_module("rustymimi")

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
