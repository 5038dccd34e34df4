"""`phonograph encode` and `phonograph decode`: files to token files and back, one after the other or in batches.

What the model does is phonograph.api's business; here options are checked, and files read and written.
"""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from phonograph.cli.options import (
    AsJson,
    Batch,
    Channel,
    Compile,
    Device,
    Dtype,
    ModelOfTokens,
    Output,
    Overwrite,
    Quiet,
    Speech,
    Threads,
)
from phonograph.cli.paths import AUDIO_SUFFIXES, STANDARD, TOKEN_SUFFIXES, Job, Outputs, find_inputs, plan
from phonograph.cli.runs import (
    Run,
    binary_output,
    check_stdout,
    groups_of_short,
    known_suffix,
    load_together,
    run_over,
    seconds_of,
    standard_input_file,
    use_threads,
)
from phonograph.errors import AudioError, ConfigError
from phonograph.files import make_folder

if TYPE_CHECKING:
    from phonograph.audio import Audio
    from phonograph.models.mimi.configuration_mimi import MimiConfig
    from phonograph.models.mimi.modeling_mimi import MimiModel
    from phonograph.tokens import SpeechTokens

__all__ = ["CodecChoice", "decode", "encode"]

_BITRATE = re.compile(r"(\d+(?:\.\d*)?|\.\d+) *(k?)(?:bps|bit/s|b/s)?", re.IGNORECASE)


@dataclass(frozen=True)
class CodecChoice:
    """Which codec is used, and how, as options say it.

    Attributes:
        model: name; None is the one that tokens name.
        compile_for: what steps are compiled for (MimiModel.compile_for), or None.
    """

    model: str | None
    device: str
    dtype: str
    threads: int | None
    compile_for: tuple[str, str] | None

    def load(self, named: str = "") -> "MimiModel":
        """The model, or the one of this name, or the bundled one."""
        from phonograph import api

        use_threads(self.threads)
        name = named or api.DEFAULT_CODEC if self.model is None else self.model
        codec = api.load_codec(name, device=self.device, dtype=self.dtype)
        if self.compile_for is not None:
            codec.compile_for(*self.compile_for)
        return codec


def _done(run: Run, job: Job, tokens: "SpeechTokens", seconds: float, elapsed: float) -> None:
    details = {"frames": tokens.num_frames, "codebooks": tokens.num_codebooks, "bitrate": round(tokens.bitrate, 3)}
    run.done(job, seconds, elapsed, details, f"{tokens.num_frames} frames, {tokens.bitrate / 1000:.2f} kbit/s")


# Encoding ---------------------------------------------------------------------------------------------------------------


def encode(
    speech: Speech,
    out: Output = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Bundled name, folder or hub id (owner/name) of a codec.")
    ] = "mimi-mini",
    codebooks: Annotated[
        int | None, typer.Option("--codebooks", "-q", help="Codebooks to keep; all by default. Fewer: smaller and rougher.")
    ] = None,
    bitrate: Annotated[
        str | None, typer.Option("--bitrate", "-b", help="Instead: as many codebooks as fit, in bit/s, such as 1100 or 1.1k.")
    ] = None,
    file_format: Annotated[
        str, typer.Option("--format", help="Of files in a folder: mimi, npz or safetensors. A file's name picks its own.")
    ] = "mimi",
    channel: Channel = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    batch_size: Batch = 1,
    threads: Threads = None,
    compiled: Compile = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn speech into token files.

    Without -o, speech.wav becomes speech.mimi in the current folder, and stdin goes to stdout. Several inputs, or a folder,
    go to the folder OUT and keep their subfolders. A file that can't be used is reported, the others are done, and the exit
    code is 2.
    """
    inputs, refused = find_inputs(speech, AUDIO_SUFFIXES)
    jobs = plan(inputs, out, Outputs(TOKEN_SUFFIXES, known_suffix(file_format, TOKEN_SUFFIXES), overwrite))
    check_stdout(jobs, as_json)
    with run_over(jobs, refused, quiet, as_json) as run:
        codec = CodecChoice(model, device, dtype, threads, ("offline", "encode") if compiled else None).load()
        options = _Encoding(codec, _wanted_codebooks(codec.config, codebooks, bitrate), channel)
        for group in groups_of_short(jobs, batch_size):
            if len(group) == 1:
                _encode_one(group[0], options, run)
            else:
                _encode_together(group, options, run)


@dataclass(frozen=True)
class _Encoding:
    codec: "MimiModel"
    codebooks: int | None
    channel: int | None


def _wanted_codebooks(config: "MimiConfig", codebooks: int | None, bitrate: str | None) -> int | None:
    """Refused here, once, rather than for each file."""
    from phonograph import api

    if codebooks is not None and bitrate is not None:
        raise ConfigError("expected --codebooks or --bitrate, got both; pass one")
    if bitrate is not None:
        return api.codebooks_for_bitrate(config, _bits_per_second(bitrate))
    least, most = config.num_semantic_quantizers, config.num_quantizers
    if codebooks is not None and not least <= codebooks <= most:
        raise ConfigError(f"expected --codebooks from {least} to {most} for this model, got {codebooks}; choose one of these")
    return codebooks


def _bits_per_second(text: str) -> float:
    match = _BITRATE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"expected a bitrate in bit/s such as 1100 or 1.1k, got {text!r}; write it like one of these")
    return float(match[1]) * (1000 if match[2] else 1)


def _encode_one(job: Job, options: _Encoding, run: Run) -> None:
    from phonograph import api

    with run.attempt(job.source):
        visible = run.progress.visible and job.source != STANDARD
        run.progress.start(job.source, seconds_of(job.source) if visible else None)
        speech = _read_stdin(options) if job.source == STANDARD else job.source
        started = time.perf_counter()
        tokens = api.encode(
            speech,
            options.codec,
            num_quantizers=options.codebooks,
            channel=options.channel,
            on_progress=run.progress.advance,
        )
        elapsed = time.perf_counter() - started
        _save_tokens(tokens, job)
        _done(run, job, tokens, tokens.duration_seconds, elapsed)


def _encode_together(group: Sequence[Job], options: _Encoding, run: Run) -> None:
    from phonograph import api

    started = time.perf_counter()
    config = options.codec.config
    mono = config.audio_channels == 1
    clips, total = load_together(group, run, sampling_rate=config.sampling_rate, mono=mono, channel=options.channel)
    if not clips:
        return
    try:
        encoded = api.encode(
            list(clips.values()),
            options.codec,
            num_quantizers=options.codebooks,
            batch_size=len(clips),
            on_progress=run.progress.advance,
        )
    except AudioError:  # one of them; alone, each tells for itself
        for job in clips:
            _encode_one(job, options, run)
        return
    elapsed = time.perf_counter() - started
    for job, tokens in zip(clips, encoded, strict=True):
        _save_tokens(tokens, job)
        _done(run, job, tokens, tokens.duration_seconds, elapsed * tokens.duration_seconds / total)


def _read_stdin(options: _Encoding) -> "Audio":
    from phonograph import audio

    config = options.codec.config
    mono = config.audio_channels == 1
    return audio.load(standard_input_file(), sampling_rate=config.sampling_rate, mono=mono, channel=options.channel)


def _save_tokens(tokens: "SpeechTokens", job: Job) -> None:
    if job.output == STANDARD:
        with binary_output() as file:
            tokens.save(file)
    else:
        make_folder(Path(job.output).parent)
        tokens.save(job.output)


# Decoding ---------------------------------------------------------------------------------------------------------------


def decode(
    tokens: Annotated[
        list[str],
        typer.Argument(metavar="TOKENS", help="Token files (.mimi, .npz, .safetensors), folders, patterns, - for stdin."),
    ],
    out: Output = None,
    model: ModelOfTokens = None,
    codebooks: Annotated[
        int | None, typer.Option("--codebooks", "-q", help="Use only the first so many codebooks of the tokens.")
    ] = None,
    start: Annotated[float, typer.Option("--start", metavar="SECONDS", help="Where to begin.")] = 0.0,
    end: Annotated[float | None, typer.Option("--end", metavar="SECONDS", help="Where to stop; at the end by default.")] = None,
    file_format: Annotated[
        str, typer.Option("--format", help="Of files in a folder and of stdout: wav, flac, ogg, opus, mp3 or aiff.")
    ] = "wav",
    on_damage: Annotated[
        str, typer.Option("--on-damage", help="With a damaged .mimi file: raise refuses it, prefix takes what comes before.")
    ] = "raise",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    compiled: Compile = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn token files back into speech.

    Without -o, speech.mimi becomes speech.wav in the current folder, and stdin goes to stdout. Several inputs, or a folder, go
    to the folder OUT and keep their subfolders. A file that can't be used is reported, the others are done, and the exit code
    is 2.
    """
    from phonograph.audio import WRITABLE_FORMATS

    suffixes = tuple(f".{name}" for name in WRITABLE_FORMATS)
    if on_damage not in ("raise", "prefix"):
        raise ConfigError(f"expected --on-damage raise or prefix, got {on_damage!r}; choose one")
    inputs, refused = find_inputs(tokens, TOKEN_SUFFIXES)
    jobs = plan(inputs, out, Outputs(suffixes, known_suffix(file_format, suffixes), overwrite))
    check_stdout(jobs, as_json)
    with run_over(jobs, refused, quiet, as_json) as run:
        choice = CodecChoice(model, device, dtype, threads, ("offline", "decode") if compiled else None)
        options = _Decoding(codebooks, start, end, file_format.lower(), cast('Literal["raise", "prefix"]', on_damage))
        for job in jobs:
            _decode_one(job, choice, options, run)


@dataclass(frozen=True)
class _Decoding:
    codebooks: int | None
    start_seconds: float
    end_seconds: float | None
    file_format: str
    on_damage: Literal["raise", "prefix"]


def _decode_one(job: Job, choice: CodecChoice, options: _Decoding, run: Run) -> None:
    from phonograph import api

    with run.attempt(job.source):
        tokens = _load_tokens(job.source, options)
        # Tokens without a name are refused by api.
        codec = None if choice.model is None and not tokens.model_id else choice.load(tokens.model_id)
        run.progress.start(job.source, tokens.duration_seconds)
        started = time.perf_counter()
        lengths: list[float] = []

        def counted(blocks: "Iterable[Audio]") -> "Iterator[Audio]":
            for block in blocks:
                lengths.append(block.duration_seconds)
                yield block

        speech = api.decode_stream(
            tokens,
            codec,
            start_seconds=options.start_seconds,
            end_seconds=options.end_seconds,
            on_progress=run.progress.advance,
        )
        _save_speech(counted(speech), job, options)
        _done(run, job, tokens, sum(lengths), time.perf_counter() - started)


def _load_tokens(source: str, options: _Decoding) -> "SpeechTokens":
    from phonograph.tokens import SpeechTokens

    if source == STANDARD:
        tokens = SpeechTokens.load(standard_input_file(), on_damage=options.on_damage)
    else:
        tokens = SpeechTokens.load(source, on_damage=options.on_damage)
    number = options.codebooks
    if number is not None and not 1 <= number <= tokens.num_codebooks:
        raise ConfigError(
            f"expected --codebooks from 1 to {tokens.num_codebooks} for {source}, got {number}; choose one of these"
        )
    return tokens if number is None else tokens.truncate(number)


def _save_speech(speech: "Iterable[Audio]", job: Job, options: _Decoding) -> None:
    from phonograph import audio

    if job.output == STANDARD:
        with binary_output() as file:
            audio.save_stream(file, speech, format=options.file_format)
    else:
        make_folder(Path(job.output).parent)
        audio.save_stream(job.output, speech)
