"""Speech to tokens and back: `phonograph.encode` and `phonograph.decode`.

Files of any length go through the model block by block; the codes are those of one pass. Short items of a list share batches;
each gets the codes that it gets alone.
"""

import functools
import math
import os
from collections.abc import Iterator, Sequence
from typing import TypeAlias, Union, cast, overload

import numpy as np
import torch
from torch import Tensor

from phonograph.api.inputs import AudioFormat, Item, Progress, Speech, blocks_of, clip_of, items_of, named, refuse_unusable
from phonograph.audio import Audio
from phonograph.configuration import CONFIG_NAME
from phonograph.errors import CheckpointError, ConfigError, TokenFileError
from phonograph.loading import hub
from phonograph.models.mimi.configuration_mimi import MimiConfig
from phonograph.models.mimi.modeling_mimi import MimiEncoderOutput, MimiModel
from phonograph.nn.masks import inside
from phonograph.streaming import MimiDecoderSession, MimiEncoderSession
from phonograph.tokens import SpeechTokens, TokenFileHeader

__all__ = [
    "DEFAULT_CODEC",
    "check_codec",
    "codebooks_for_bitrate",
    "decode",
    "decode_stream",
    "encode",
    "load_codec",
    "token_header",
]

DEFAULT_CODEC = "mimi-mini"
"""The bundled model that works everywhere without a download."""

Tokens: TypeAlias = Union[str, os.PathLike[str], SpeechTokens]  # noqa: UP007 (a value, on Python 3.10)

_BLOCK_FRAMES = 125


def load_codec(
    model: str | os.PathLike[str] | MimiModel,
    *,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    numerics: str = "fast",
) -> MimiModel:
    """The model of that name, kept for the next call, or `model` itself.

    Raises:
        CheckpointError: nothing of that name, or it is no Mimi. ConfigError: a device or dtype that does not work here.
    """
    return model if isinstance(model, MimiModel) else _load_codec(os.fspath(model), device, dtype, numerics)


@functools.lru_cache(maxsize=1)
def _load_codec(name: str, device: str, dtype: str | torch.dtype | None, numerics: str) -> MimiModel:
    refuse_unusable(device)
    return MimiModel.from_pretrained(name, config=_config_of(name), device=device, dtype=dtype, numerics=numerics)


def _config_of(name: str) -> MimiConfig | None:
    """None where there is none, as in the moshi package's checkpoints, whose files may also lie beside another model's."""
    values = {} if name.endswith(".safetensors") else hub.read_optional_json(name, CONFIG_NAME)
    kind = values.get("model_type", MimiConfig.model_type)
    if kind != MimiConfig.model_type:
        raise CheckpointError(f"expected a Mimi codec, got {name}, which is {kind}; pass another model")
    return MimiConfig.from_dict(values) if values else None


def codebooks_for_bitrate(config: MimiConfig, bits_per_second: float) -> int:
    """The most codebooks whose codes fit into a bitrate.

    Raises:
        ConfigError: not even the semantic codebooks do.
    """
    bits = config.frame_rate * (config.codebook_size - 1).bit_length()
    number = min(int(bits_per_second / bits + 1e-9), config.num_quantizers)
    if number < config.num_semantic_quantizers:
        least = bits * config.num_semantic_quantizers
        raise ConfigError(f"expected a bitrate of at least {least:g} bit/s for this model, got {bits_per_second:g}; raise it")
    return number


@overload
def encode(  # type: ignore[overload-overlap]  # a str is a sequence of str; the first form wins
    speech: Speech,
    model: str | os.PathLike[str] | MimiModel = ...,
    *,
    num_quantizers: int | None = ...,
    bitrate: float | None = ...,
    sampling_rate: int | None = ...,
    channel: int | None = ...,
    batch_size: int = ...,
    on_progress: Progress | None = ...,
) -> SpeechTokens: ...
@overload
def encode(
    speech: Sequence[Speech],
    model: str | os.PathLike[str] | MimiModel = ...,
    *,
    num_quantizers: int | None = ...,
    bitrate: float | None = ...,
    sampling_rate: int | None = ...,
    channel: int | None = ...,
    batch_size: int = ...,
    on_progress: Progress | None = ...,
) -> list[SpeechTokens]: ...
def encode(
    speech: Speech | Sequence[Speech],
    model: str | os.PathLike[str] | MimiModel = DEFAULT_CODEC,
    *,
    num_quantizers: int | None = None,
    bitrate: float | None = None,
    sampling_rate: int | None = None,
    channel: int | None = None,
    batch_size: int = 1,
    on_progress: Progress | None = None,
) -> SpeechTokens | list[SpeechTokens]:
    """Speech to tokens.

    Args:
        speech: a path, an `Audio`, an array or a tensor (time,) or (channels, time) in [-1, 1], of any float type, on any
            device, or a list of these. Any rate is resampled to the model's, and two channels are averaged for a mono model.
        model: name, folder or hub id of a codec, or a loaded model (which also decides device and dtype).
        num_quantizers: codebooks wanted; None is all, or what `bitrate` (bits per second) has room for.
        sampling_rate: of arrays and tensors, in Hz; None is the model's own.
        channel: of files, take this channel alone, counted from 0; needed for files of more than two.
        batch_size: items of a list that go through the model together; above 1 the whole list is held in memory, sorted by
            length, so that little of a batch is padding.
        on_progress: called with seconds of audio as they are done.

    Returns:
        One SpeechTokens, or a list of them in the order of the list.

    Raises:
        AudioError: audio that can't be used: not finite, or far from [-1, 1], as integers made floats are. CheckpointError,
            ConfigError: no such model, or options it can't fulfil.
    """
    codec = load_codec(model)
    if batch_size < 1:
        raise ConfigError(f"expected a batch_size of at least 1, got {batch_size}")
    if num_quantizers is not None and bitrate is not None:
        raise ConfigError("expected num_quantizers or bitrate, got both; pass one")
    if bitrate is not None:
        num_quantizers = codebooks_for_bitrate(codec.config, bitrate)
    done = on_progress or (lambda seconds: None)
    wanted = AudioFormat(codec.config.sampling_rate, codec.config.audio_channels == 1, channel)
    items, is_one = items_of(speech, wanted, sampling_rate)
    if batch_size == 1 or is_one:
        found = [_encode_stream(codec, item, wanted, num_quantizers, done) for item in items]
        return found[0] if is_one else found
    results: dict[int, SpeechTokens] = {}
    for group in _batches(items, wanted, batch_size):
        encoded = _encode_batch(codec, [clip for _, clip in group], num_quantizers, done)
        results.update(zip((place for place, _ in group), encoded, strict=True))
    return [results[place] for place in range(len(items))]


@overload
def decode(  # type: ignore[overload-overlap]  # as above
    tokens: Tokens,
    model: str | os.PathLike[str] | MimiModel | None = ...,
    *,
    start_seconds: float = ...,
    end_seconds: float | None = ...,
    on_progress: Progress | None = ...,
) -> Audio: ...
@overload
def decode(
    tokens: Sequence[Tokens],
    model: str | os.PathLike[str] | MimiModel | None = ...,
    *,
    start_seconds: float = ...,
    end_seconds: float | None = ...,
    on_progress: Progress | None = ...,
) -> list[Audio]: ...
def decode(
    tokens: Tokens | Sequence[Tokens],
    model: str | os.PathLike[str] | MimiModel | None = None,
    *,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    on_progress: Progress | None = None,
) -> Audio | list[Audio]:
    """Tokens to speech.

    Args:
        tokens: a token file's path, a SpeechTokens, or a list of these.
        model: as in `encode`; None is the model that the tokens name.
        start_seconds, end_seconds: the part wanted, to the sample; what the model remembers of the time before is decoded
            with it, so that the part sounds as it does in the whole.
        on_progress: called with seconds of audio as they are done.

    Returns:
        One Audio at the model's rate, cut to the length of the speech that was encoded where that is known; or a list.

    Raises:
        TokenFileError: a damaged file, or tokens of another model. ConfigError: a part that the tokens don't have.
    """
    if isinstance(tokens, (str, os.PathLike, SpeechTokens)):
        blocks = list(
            decode_stream(tokens, model, start_seconds=start_seconds, end_seconds=end_seconds, on_progress=on_progress)
        )
        return Audio(np.concatenate([block.samples for block in blocks], axis=1), blocks[0].sampling_rate)
    return [
        decode(item, model, start_seconds=start_seconds, end_seconds=end_seconds, on_progress=on_progress) for item in tokens
    ]


def decode_stream(
    tokens: Tokens,
    model: str | os.PathLike[str] | MimiModel | None = None,
    *,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    on_progress: Progress | None = None,
) -> Iterator[Audio]:
    """`decode` block by block, in memory that does not grow: for `phonograph.audio.save_stream`, or to play at once."""
    whole = tokens if isinstance(tokens, SpeechTokens) else SpeechTokens.load(tokens)
    codec = _codec_of(whole, model)
    part, skipped, length = _part(whole, codec.config, start_seconds, end_seconds)
    done = on_progress or (lambda seconds: None)
    session = MimiDecoderSession(codec)
    position = -skipped
    for codes in np.array_split(part.codes, range(_BLOCK_FRAMES, part.num_frames, _BLOCK_FRAMES), axis=1):
        samples = session.feed(torch.from_numpy(codes)).float().cpu().numpy()
        kept = samples[:, max(0, -position) : length - position]
        position += samples.shape[1]
        if kept.shape[1]:
            yield Audio(kept, part.sampling_rate)
        done(codes.shape[1] / part.frame_rate)


# Encoding ---------------------------------------------------------------------------------------------------------------


def _encode_stream(
    codec: MimiModel, item: Item, wanted: AudioFormat, num_quantizers: int | None, done: Progress
) -> SpeechTokens:
    session = MimiEncoderSession(codec, num_quantizers)
    codes, num_samples = [], 0
    with named(*item):
        for block in blocks_of(item.recording, wanted, _BLOCK_FRAMES * codec.frame_samples):
            codes.append(session.feed(torch.from_numpy(block.samples)))
            num_samples += block.num_samples
            done(block.duration_seconds)
    codes.append(session.flush())
    return _tokens(codec, torch.cat(codes, dim=-1), num_samples)


def _batches(items: Sequence[Item], wanted: AudioFormat, batch_size: int) -> Iterator[list[tuple[int, Audio]]]:
    """Clips with their places, in groups of similar length, so that little of a batch is padding."""
    clips = []
    for place, item in enumerate(items):
        with named(*item):
            clips.append((place, clip_of(item.recording, wanted)))
    clips.sort(key=lambda pair: pair[1].num_samples)
    for start in range(0, len(clips), batch_size):
        yield clips[start : start + batch_size]


@torch.inference_mode()
def _encode_batch(codec: MimiModel, clips: Sequence[Audio], num_quantizers: int | None, done: Progress) -> list[SpeechTokens]:
    lengths = [clip.num_samples for clip in clips]
    padded = torch.zeros(len(clips), codec.config.audio_channels, max(lengths), dtype=codec.dtype)
    for row, clip in zip(padded, clips, strict=True):
        row[:, : clip.num_samples] = torch.from_numpy(clip.samples)
    mask = inside(torch.tensor(lengths), max(lengths))
    output = codec.encode(padded.to(codec.device), mask.to(codec.device), num_quantizers, return_dict=True)
    codes = cast(Tensor, cast(MimiEncoderOutput, output).audio_codes)
    frames = codec.get_encoded_length(torch.tensor(lengths)).tolist()
    done(sum(clip.duration_seconds for clip in clips))
    return [_tokens(codec, codes[i, :, : frames[i]], length) for i, length in enumerate(lengths)]


def _tokens(codec: MimiModel, codes: Tensor, num_samples: int) -> SpeechTokens:
    return SpeechTokens(codes.cpu().numpy(), token_header(codec, codes.shape[0]), num_samples)


def token_header(codec: MimiModel, num_codebooks: int) -> TokenFileHeader:
    """What a token file says of codes of this model."""
    return TokenFileHeader(
        model_id=codec.config.name_or_path,
        weights_hash=codec.codebook_hash(),
        sampling_rate=codec.config.sampling_rate,
        frame_samples=codec.frame_samples,
        num_codebooks=num_codebooks,
        codebook_size=codec.config.codebook_size,
    )


# Decoding ---------------------------------------------------------------------------------------------------------------


def _part(tokens: SpeechTokens, config: MimiConfig, start: float, end: float | None) -> tuple[SpeechTokens, int, int]:
    """The frames to decode for a part in seconds, the samples to skip of their audio, and those to keep."""
    first, last = tokens.header.frame_range(start, end, tokens.num_frames)
    total = tokens.num_frames * tokens.frame_samples if tokens.num_samples is None else tokens.num_samples
    begin = round(min(start * tokens.sampling_rate, total))
    stop = total if end is None else round(min(end * tokens.sampling_rate, total))
    if begin >= stop:
        raise ConfigError(
            f"expected a part of the {total / tokens.sampling_rate:.2f} s that these tokens hold, got {start:g} to "
            f"{'the end' if end is None else f'{end:g}'} s; start earlier or end later"
        )
    first = max(0, first - _past_frames(config))
    return tokens.slice_frames(first, last), begin - first * tokens.frame_samples, stop - begin


def _past_frames(config: MimiConfig) -> int:
    """More frames than the decoder can look back over: each layer's window or kernel, at the slowest rate it may run at."""
    steps = config.num_hidden_layers * config.sliding_window + config.kernel_size + config.last_kernel_size
    growth: int = config.dilation_growth_rate**config.num_residual_layers
    steps += len(config.upsampling_ratios) * (2 + config.num_residual_layers * config.residual_kernel_size * growth)
    return math.ceil(steps * config.frame_rate / config.encodec_frame_rate) + 2


def _codec_of(tokens: SpeechTokens, model: str | os.PathLike[str] | MimiModel | None) -> MimiModel:
    if model is None and not tokens.model_id:
        raise TokenFileError("expected tokens that name their model, got tokens that don't; pass model=...")
    codec = load_codec(tokens.model_id if model is None else model)
    if tokens.num_frames == 0:
        raise TokenFileError("expected at least one frame of tokens, got none; encode some speech first")
    check_codec(tokens.header, codec)
    return codec


def check_codec(header: TokenFileHeader, codec: MimiModel) -> None:
    """Refuse tokens that another model made.

    Raises:
        TokenFileError: the header names other codebooks.
    """
    if header.weights_hash and header.weights_hash != codec.codebook_hash():
        raise TokenFileError(
            f"expected tokens of {codec.config.name_or_path or 'this model'}, got tokens of another model "
            f"({header.model_id or 'unnamed'}, codebooks {header.weights_hash[:12]}); pass the model that made them"
        )
