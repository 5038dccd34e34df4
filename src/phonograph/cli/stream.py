"""`phonograph stream encode|decode`: the codec live, between a microphone or pipes, frame by frame.

    phonograph stream encode < speech.raw | phonograph stream decode > back.raw

Input goes through a session as it comes; each frame's result is written and flushed before the next is looked at.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, TypeVar

import typer

from phonograph.cli.codec import CodecChoice
from phonograph.cli.live import (
    PCM_FORMATS,
    TOKEN_FORMATS,
    GrowingFile,
    Latency,
    LiveInput,
    PcmReader,
    RawTokens,
    TextTokens,
    TokenSink,
    live_output,
    microphone,
    pcm_bytes,
    raw_codes,
    standard_input,
    text_codes,
)
from phonograph.cli.options import Compile, Device, Dtype, ModelOfTokens, Overwrite, Threads
from phonograph.cli.paths import STANDARD, Input, Outputs, plan
from phonograph.cli.runs import Ended
from phonograph.errors import ConfigError
from phonograph.files import make_folder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from phonograph.models.mimi.modeling_mimi import MimiModel
    from phonograph.streaming import MimiDecoderSession, MimiEncoderSession
    from phonograph.tokens import TokenFileHeader, TokenPipeReader

S = TypeVar("S", "MimiEncoderSession", "MimiDecoderSession")

__all__ = ["stream_app"]

stream_app = typer.Typer(help="The codec live: raw PCM to tokens and back, as they come.", no_args_is_help=True)

_Report = Annotated[bool, typer.Option("--json", help="The report at the end as one line of JSON, on stderr.")]
_Quiet = Annotated[bool, typer.Option("--quiet", help="No report at the end.")]
_Pcm = Annotated[str, typer.Option("--format", help="Of the samples: s16le or f32le.")]


@stream_app.command()
def encode(
    out: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="A .mimi file that grows, instead of stdout.")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Bundled name, folder or hub id of a codec.")] = "mimi-mini",
    codebooks: Annotated[int | None, typer.Option("--codebooks", "-q", help="Codebooks to keep; all by default.")] = None,
    use_microphone: Annotated[bool, typer.Option("--microphone", help="Listen to the microphone instead of stdin.")] = False,
    rate: Annotated[
        int | None, typer.Option("--rate", min=1000, max=768000, help="Of the input, in Hz; the model's by default.")
    ] = None,
    file_format: _Pcm = "s16le",
    channels: Annotated[int, typer.Option("--channels", min=1, max=2, help="Of the input; two are averaged.")] = 1,
    output_format: Annotated[
        str, typer.Option("--output-format", help="mimi (a token file), text (a line a frame) or raw (int16).")
    ] = "mimi",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    compiled: Compile = False,
    overwrite: Overwrite = False,
    as_json: _Report = False,
    quiet: _Quiet = False,
) -> None:
    """Turn live PCM into tokens, frame by frame.

    Ends with the input or at ^C; what has come is then worked through, the last frame filled up with silence. A report says how
    long frames took.
    """
    from phonograph import api
    from phonograph.streaming import MimiEncoderSession

    _check_choice("--format", file_format, PCM_FORMATS)
    _check_choice("--output-format", output_format, TOKEN_FORMATS)
    if out is not None and (output_format != "mimi" or not out.lower().endswith(".mimi")):
        raise ConfigError(f"expected a name ending in .mimi and --output-format mimi for -o, got {out} and {output_format}")
    codec = _load_mono(CodecChoice(model, device, dtype, threads, ("live", "encode") if compiled else None))
    rate = rate or codec.config.sampling_rate
    header = api.token_header(codec, codec.check_num_quantizers(codebooks))
    latency = Latency(1 / header.frame_rate)
    session = _warm(MimiEncoderSession(codec, header.num_codebooks))
    frame_samples = round(rate * codec.frame_samples / codec.config.sampling_rate)
    opened = microphone(rate, file_format, channels, frame_samples) if use_microphone else standard_input()
    with opened as source, _watching(source), _token_sink(out, output_format, overwrite, header) as sink:
        pcm = PcmReader(source, file_format, channels, rate, codec.config.sampling_rate)
        _encode(pcm, session, sink, latency)
    _end("stream encode", source, latency, as_json, quiet)


def _encode(pcm: PcmReader, session: "MimiEncoderSession", sink: TokenSink, latency: Latency) -> None:
    import numpy as np
    import torch

    size = session.model.frame_samples
    held, num_samples = np.zeros(0, np.float32), 0
    for samples in pcm:
        num_samples += len(samples)
        held = np.concatenate([held, samples])
        while len(held) >= size:
            with latency.frame():
                sink.write(session.feed(torch.from_numpy(held[:size])).cpu().numpy())
            held = held[size:]
    session.feed(torch.from_numpy(held))
    with latency.frame() if len(held) else contextlib.nullcontext():
        sink.finish(session.flush().cpu().numpy(), num_samples)


@contextlib.contextmanager
def _token_sink(out: str | None, output_format: str, overwrite: bool, header: "TokenFileHeader") -> Iterator[TokenSink]:
    from phonograph.tokens import TokenPipeWriter, TokenWriter

    if out is not None:
        plan([Input(STANDARD, PurePath())], out, Outputs((".mimi",), ".mimi", overwrite))
        make_folder(Path(out).parent)
        with TokenWriter(out, header, overwrite=overwrite) as writer:
            yield GrowingFile(writer)
        return
    with live_output(binary=output_format != "text") as file:
        if output_format == "mimi":
            yield TokenPipeWriter(file, header)
        else:
            yield TextTokens(file) if output_format == "text" else RawTokens(file, header)


@stream_app.command()
def decode(
    model: ModelOfTokens = None,
    codebooks: Annotated[
        int | None, typer.Option("--codebooks", "-q", help="Codebooks to use; with raw input, how many a frame has.")
    ] = None,
    input_format: Annotated[str, typer.Option("--input-format", help="Of the tokens: mimi, text or raw.")] = "mimi",
    file_format: _Pcm = "s16le",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    compiled: Compile = False,
    as_json: _Report = False,
    quiet: _Quiet = False,
) -> None:
    """Turn live tokens into PCM, frame by frame.

    Each frame's samples are written as soon as its tokens have come, mono and at the model's rate. A report at the end says how
    long frames took.
    """
    _check_choice("--format", file_format, PCM_FORMATS)
    _check_choice("--input-format", input_format, TOKEN_FORMATS)
    choice = CodecChoice(model, device, dtype, threads, ("live", "decode") if compiled else None)
    with standard_input() as source, _watching(source), live_output(binary=True) as file:
        tokens = _incoming(source, input_format, choice, codebooks)
        latency = Latency(tokens.session.model.frame_samples / tokens.session.model.config.sampling_rate)
        _decode(tokens, file, file_format, latency)
    _end("stream decode", source, latency, as_json, quiet)


@dataclass(frozen=True)
class _Incoming:
    """Codes as they come, the session that takes them, and the token file they come in, if they do."""

    codes: "Iterable[npt.NDArray[np.integer[Any]]]"
    session: "MimiDecoderSession"
    reader: "TokenPipeReader | None" = None


def _incoming(source: LiveInput, input_format: str, choice: CodecChoice, codebooks: int | None) -> _Incoming:
    from phonograph import api
    from phonograph.streaming import MimiDecoderSession
    from phonograph.tokens import TokenPipeReader

    if input_format != "mimi":
        codec = _load_mono(choice)
        number = codec.check_num_quantizers(codebooks)
        session = _warm(MimiDecoderSession(codec))
        if input_format == "raw":
            return _Incoming(raw_codes(source, number), session)
        return _Incoming((codes[:number] for codes in text_codes(source)), session)
    reader = TokenPipeReader(source)
    codec = _load_mono(choice, reader.header.model_id)
    api.check_codec(reader.header, codec)
    most = reader.header.num_codebooks
    if codebooks is not None and not 1 <= codebooks <= most:
        raise ConfigError(f"expected --codebooks from 1 to {most} for these tokens, got {codebooks}; choose one of these")
    return _Incoming((codes[:codebooks] for codes in reader), _warm(MimiDecoderSession(codec)), reader)


def _decode(tokens: _Incoming, file: BinaryIO, file_format: str, latency: Latency) -> None:
    """Each frame as it comes; the last is cut to the length of the speech where that is known by then."""
    import torch

    position = 0
    for codes in tokens.codes:
        for number in range(codes.shape[1]):
            with latency.frame():
                frame = torch.from_numpy(codes[:, number : number + 1].copy())
                samples = tokens.session.feed(frame)[0].float().cpu().numpy()
                total = None if tokens.reader is None else tokens.reader.num_samples
                kept = samples if total is None else samples[: max(0, total - position)]
                file.write(pcm_bytes(kept, file_format))
                file.flush()
            position += len(samples)


# Both ways --------------------------------------------------------------------------------------------------------------


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"expected {option} to be one of {', '.join(choices)}, got {value!r}; choose one of these")


def _load_mono(choice: CodecChoice, named: str = "") -> "MimiModel":
    codec = choice.load(named)
    if codec.config.audio_channels != 1:
        raise ConfigError(f"expected a codec of one channel for a live stream, got {codec.config.audio_channels}")
    return codec


def _warm(session: "S") -> "S":
    """The session, fresh, after one frame: the first of a process prepares kernels and weights, before the stream begins."""
    import torch

    from phonograph.streaming import MimiEncoderSession

    model = session.model
    if isinstance(session, MimiEncoderSession):
        session.feed(torch.zeros(model.frame_samples))
    else:
        session.feed(torch.zeros(model.config.num_quantizers, 1, dtype=torch.int64))
    session.reset()
    return session


@contextlib.contextmanager
def _watching(source: LiveInput) -> Iterator[None]:
    """Take ^C and `kill`; what ends us may have ended whoever reads our output, too."""
    with source.watching():
        try:
            yield
        except BrokenPipeError:
            if source.signal is None:
                raise


def _end(command: str, source: LiveInput, latency: Latency, as_json: bool, quiet: bool) -> None:
    latency.say(command, as_json, quiet)
    if source.signal is not None:
        raise Ended(128 + source.signal)
