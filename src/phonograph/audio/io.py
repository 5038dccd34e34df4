"""Reading and writing audio files of any length, as float32 numpy arrays shaped (channels, time).

    for block in stream("lecture.m4a", block_seconds=10, sampling_rate=24000, mono=True):
        ...                                     # an Audio of exactly 10 s, the last one shorter

`load` is `stream`'s blocks put together, so the two agree bit for bit. libsndfile reads what it can; FFmpeg
(through PyAV) reads the rest, and MP3, whose length libsndfile guesses. This module knows no model and
imports no torch.

Every refusal is an `AudioError` of one line; the exceptions of the libraries below never come through.
"""

import contextlib
import io
import itertools
import math
import operator
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from phonograph.errors import AudioError
from phonograph.files import atomic_write

__all__ = ["WRITABLE_FORMATS", "Audio", "AudioInfo", "check_range", "info", "load", "save", "save_stream", "stream"]

Samples: TypeAlias = npt.NDArray[np.float32]
Source: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO"
Destination: TypeAlias = "str | os.PathLike[str] | BinaryIO"

_LOWEST_RATE, _HIGHEST_RATE = 1000, 768_000
_HIGHEST_PEAK = 100.0
"""Of samples that are meant to lie in [-1, 1]: 40 dB over full scale. Speech of unit variance does not reach it; integers made
floats without a division by their full scale do."""
_READ_SAMPLES = 65_536
_WRITABLE = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
}
WRITABLE_FORMATS = tuple(_WRITABLE)
"""What `save` writes, by the suffix of a file."""
_PCM_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
# Playlist formats are left out on purpose: they would make FFmpeg open other files, or the network, on a
# stranger's word.
_FFMPEG_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mp3,aac,loas,ogg,flac,wav,w64,aiff,au,caf,asf,avi,flv,amr,amrnb,amrwb,"
    "mpegts,mpeg,ac3,eac3,dts,wv,ape,tta,tak,mpc,mpc8,gsm,rm,voc,dsf,iff"
)
# Writers that can't seek back leave one of several huge numbers as the size, which promises nothing.
_SMALLEST_SIZE_PLACEHOLDER = 0x7F00_0000
# Some writers count the header into the size of the data; that is a wrong header, not a cut file.
_HEADER_SLACK_BYTES = 256
# MP4 durations include encoder padding that decoders drop.
_DURATION_SLACK_SECONDS = 0.5


@dataclass(frozen=True, eq=False, repr=False)
class Audio:
    """Sound in memory.

    Attributes:
        samples: float32 array (channels, time), in [-1, 1] by convention; 1-D or float64 is converted.
        sampling_rate: samples per second and channel, in Hz.

    Raises:
        AudioError: integer samples, not one or two channels, no samples, or a rate outside 1000 to 768000 Hz.
    """

    samples: Samples
    sampling_rate: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", _as_samples(self.samples))
        object.__setattr__(self, "sampling_rate", _checked_rate(self.sampling_rate, "sampling_rate"))

    @property
    def num_channels(self) -> int:
        """1 for mono, 2 for stereo."""
        return int(self.samples.shape[0])

    @property
    def num_samples(self) -> int:
        """Samples in each channel."""
        return int(self.samples.shape[1])

    @property
    def duration_seconds(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.sampling_rate

    def resample(self, sampling_rate: int) -> "Audio":
        """The same sound at another rate in Hz, by soxr at its high quality; itself if the rate is the same.

        Raises:
            AudioError: a rate outside 1000 to 768000 Hz, or a sound shorter than one sample of the new rate.
        """
        target = _checked_rate(sampling_rate, "sampling_rate")
        if target == self.sampling_rate:
            return self
        pieces = list(_resampled([self.samples], self.sampling_rate, target))
        return Audio(_joined(pieces, "this audio"), target)

    def mono(self) -> "Audio":
        """The mean of the channels, shaped (1, time)."""
        if self.num_channels == 1:
            return self
        return Audio(self.samples.mean(axis=0, keepdims=True), self.sampling_rate)

    def save(self, path: Destination) -> None:
        """Write to a file whose suffix names the format; see `phonograph.audio.save`."""
        save(path, self)

    def __repr__(self) -> str:
        return (
            f"Audio(num_channels={self.num_channels}, sampling_rate={self.sampling_rate}, "
            f"duration_seconds={self.duration_seconds:.3f})"
        )


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says.

    Attributes:
        sampling_rate: in Hz.
        num_channels: any number; only one or two can be loaded without naming a channel.
        num_samples: samples in each channel, or None where only decoding the whole file would tell.
        duration_seconds: length in seconds, or None if unknown; an estimate where `num_samples` is None.
        format: the container, such as "wav" or "mp4".
        codec: how the samples are stored, such as "pcm_16" or "aac".
    """

    sampling_rate: int
    num_channels: int
    num_samples: int | None
    duration_seconds: float | None
    format: str
    codec: str


@dataclass(frozen=True)
class _Selection:
    """Which part of a file is wanted, and how."""

    sampling_rate: int | None = None
    mono: bool = False
    channel: int | None = None
    start_seconds: float = 0.0
    duration_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.sampling_rate is not None:
            object.__setattr__(self, "sampling_rate", _checked_rate(self.sampling_rate, "sampling_rate"))
        if self.channel is not None and self.channel < 0:
            raise AudioError(f"expected a channel number from 0, got channel={self.channel}; count from 0")
        if not 0 <= self.start_seconds < float("inf"):
            raise AudioError(f"expected start_seconds of at least 0, got {self.start_seconds}; count from the file's start")
        if self.duration_seconds is not None and not self.duration_seconds > 0:
            raise AudioError(
                f"expected a positive duration_seconds, got {self.duration_seconds}; leave it out to read to the end"
            )


def info(source: Source) -> AudioInfo:
    """What the header of a path, bytes or binary file object says, without decoding the audio.

    Raises:
        AudioError: the source is missing, empty, not audio, or has no audio track.
    """
    with _opened(source) as (file, label), _decoder(file, label) as decoder:
        return decoder.info


def load(
    source: Source,
    *,
    sampling_rate: int | None = None,
    mono: bool = False,
    channel: int | None = None,
    start_seconds: float = 0.0,
    duration_seconds: float | None = None,
) -> Audio:
    """Read a whole file, or a part of it, into memory.

    Args:
        source: a path, the file's bytes, or a binary file object (read from its start).
        sampling_rate: resample to this rate in Hz (soxr, high quality); None keeps the file's own.
        mono: average two channels into one.
        channel: take this channel alone, counted from 0; needed for files of more than two.
        start_seconds: skip this much of the file first.
        duration_seconds: stop after this much, or at the end if that comes first; None reads to the end.

    Returns:
        samples (channels, time) and their rate.

    Raises:
        AudioError: not readable, empty, damaged, cut short, NaN or infinite samples, more than two channels,
            no such channel, a rate outside 1000 to 768000 Hz, or a start after the end.
    """
    selection = _Selection(sampling_rate, mono, channel, start_seconds, duration_seconds)
    blocks = list(_blocks(source, selection))
    return Audio(np.concatenate([block.samples for block in blocks], axis=1), blocks[0].sampling_rate)


def stream(
    source: Source,
    *,
    block_seconds: float | None = None,
    block_samples: int | None = None,
    sampling_rate: int | None = None,
    mono: bool = False,
    channel: int | None = None,
) -> Iterator[Audio]:
    """Read a file of any length block by block, in memory that does not grow with it.

    The arguments are checked at once; the file is opened when the first block is asked for, and closed with
    the last.

    Args:
        source: as for `load`; what can't seek is the exception that is read into memory whole.
        block_seconds: length of a block; give this or `block_samples`.
        block_samples: length of a block in samples of the output rate.
        sampling_rate, mono, channel: as for `load`.

    Returns:
        Blocks of exactly that length, the last one shorter; put together they are the samples of `load`.

    Raises:
        AudioError: as for `load`, or a block length that is not positive.
    """
    if (block_seconds is None) == (block_samples is None):
        raise AudioError("expected one of block_seconds and block_samples, got both or neither; pass exactly one")
    length = block_seconds if block_seconds is not None else block_samples
    if length is None or not 0 < length < float("inf"):
        raise AudioError(f"expected a positive block length, got {length}; pass a length above 0")
    selection = _Selection(sampling_rate, mono, channel)

    def size_at(rate: int) -> int:
        return max(1, round(length * rate)) if block_seconds is not None else int(length)

    return _sized_blocks(_blocks(source, selection), size_at)


def save(
    destination: Destination,
    samples: "Audio | npt.ArrayLike",
    sampling_rate: int | None = None,
    *,
    format: str | None = None,  # noqa: A002 (the public name of the field)
    subtype: str | None = None,
) -> None:
    """Write audio to a file, whole or not at all.

    Args:
        destination: a path whose suffix names the format, or a binary file object.
        samples: an `Audio`, or floats (time,) or (channels, time) in [-1, 1].
        sampling_rate: in Hz; needed unless `samples` is an `Audio`.
        format: "wav", "flac", "ogg", "opus", "mp3" or "aiff", instead of the suffix's own.
        subtype: libsndfile's name of the sample format, such as "PCM_24" or "FLOAT"; 16-bit PCM, or the
            format's own codec, by default.

    Values outside [-1, 1] are clipped unless the subtype is FLOAT or DOUBLE. PCM is rounded to the nearest
    step.

    Raises:
        AudioError: NaN or infinite samples, a wrong shape or type, an unknown suffix, or what the format
            can't hold.
        OutputError: the place can't be written to.
    """
    save_stream(destination, [_as_audio(samples, sampling_rate)], format=format, subtype=subtype)


def save_stream(
    destination: Destination,
    blocks: Iterable[Audio],
    *,
    format: str | None = None,  # noqa: A002 (as in `save`)
    subtype: str | None = None,
) -> None:
    """Write audio that comes block by block, whole or not at all, in memory that does not grow with its length.

    Args:
        destination, format, subtype: as for `save`.
        blocks: of one rate and number of channels; at least one.

    Raises:
        AudioError: no block, blocks that differ, or as for `save`. OutputError: the place can't be written to.
    """
    chosen = _output_format(destination, format, subtype)
    if not isinstance(destination, (str, os.PathLike)):
        _write_blocks(destination, blocks, *chosen)
        return
    with atomic_write(destination) as file:
        _write_blocks(file, blocks, *chosen)


# Reading ------------------------------------------------------------------------------------------


class _Decoder(Protocol):
    """A file being decoded: its header, and its samples (channels, time) from some sample to `stop`, or a little further."""

    info: AudioInfo

    def seek(self, sample: int) -> int: ...

    def blocks(self, stop: float) -> Iterator[Samples]: ...

    def close(self) -> None: ...


class _SndfileDecoder:
    def __init__(self, file: BinaryIO, label: str) -> None:
        self._label = label
        self._position = 0
        file.seek(0)
        self._sound = soundfile.SoundFile(_ForgivingFile(file))
        sound = self._sound
        known = 0 < sound.frames < 2**62
        self.info = AudioInfo(
            sampling_rate=sound.samplerate,
            num_channels=sound.channels,
            num_samples=sound.frames if known else None,
            duration_seconds=sound.frames / sound.samplerate if known and sound.samplerate else None,
            format=sound.format.lower(),
            codec=sound.subtype.lower(),
        )

    def seek(self, sample: int) -> int:
        self._position = min(sample, self._sound.frames)
        return self._position

    def blocks(self, stop: float) -> Iterator[Samples]:
        self._refuse_cut_header()
        end = min(self._sound.frames, stop)
        rate = self.info.sampling_rate
        try:
            if self._position:
                self._sound.seek(self._position)
            while self._position < end:
                block = self._sound.read(int(min(_READ_SAMPLES, end - self._position)), dtype="float32", always_2d=True)
                if not len(block):
                    raise _damaged(self._label, self._position, rate)
                self._position += len(block)
                yield block.T
        except soundfile.SoundFileError as error:
            raise _damaged(self._label, self._position, rate) from error

    def _refuse_cut_header(self) -> None:
        """libsndfile silently trims the length of a cut file and only notes it in its log."""
        for promised, found in re.findall(
            r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", self._sound.extra_info, re.MULTILINE
        ):
            missing = int(promised) - int(found)
            if missing > _HEADER_SLACK_BYTES and int(promised) < _SMALLEST_SIZE_PLACEHOLDER:
                raise AudioError(
                    f"{self._label} is cut short: its header promises {promised} bytes of audio, "
                    f"{found} are there; copy or download it again"
                )

    def close(self) -> None:
        self._sound.close()


class _ForgivingFile:
    """What libsndfile needs of a file.

    A damaged header makes libsndfile seek to nowhere. An exception in its callback would be printed, not
    raised, while it copes by itself with a seek that leaves the position as it was.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._file.seek(offset, whence)
        return self._file.tell()


class _FfmpegDecoder:
    def __init__(self, file: BinaryIO, label: str) -> None:
        # Loading FFmpeg takes as long as everything else here, and most files don't need it.
        import av

        self._label = label
        self._ffmpeg_error = av.FFmpegError
        self._new_resampler = av.AudioResampler
        file.seek(0)
        # Up to version 18, tags that are no UTF-8 are an error unless this is said; version 19 has no such word.
        tolerant: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
        self._container = av.open(file, mode="r", options={"format_whitelist": _FFMPEG_FORMATS}, **tolerant)
        try:
            self._stream, self.info = self._first_audio_stream()
        except BaseException:
            self._container.close()
            raise

    def _first_audio_stream(self) -> tuple[Any, AudioInfo]:
        if not self._container.streams.audio:
            raise AudioError(f"{self._label} has no audio track; expected a file with sound in it")
        stream = self._container.streams.audio[0]
        codec = stream.codec_context
        if codec is None or not stream.rate:
            raise AudioError(f"{self._label} holds audio of a kind that no decoder here reads; convert it to wav or flac")
        microseconds = self._container.duration
        return stream, AudioInfo(
            sampling_rate=int(stream.rate),
            num_channels=codec.layout.nb_channels,
            num_samples=None,
            duration_seconds=None if microseconds is None else microseconds / 1e6,
            format=_container_name(self._container.format.name, self._label),
            codec=codec.name,
        )

    def seek(self, sample: int) -> int:
        # FFmpeg seeks to packets, not samples, so whoever asked must drop what comes before.
        return 0

    def blocks(self, stop: float) -> Iterator[Samples]:
        return _reblocked(self._frames(stop), _READ_SAMPLES)

    def _frames(self, stop: float) -> Iterator[Samples]:
        rate = self.info.sampling_rate
        decoded = 0
        try:
            for frame in self._converted_frames():
                decoded += frame.samples
                yield cast(Samples, frame.to_ndarray())
                if decoded >= stop:
                    return
        except self._ffmpeg_error as error:
            raise _damaged(self._label, decoded, rate) from error
        # Other containers only estimate the length of a track.
        if "mp4" in self._container.format.name and self._stream.duration is not None:
            expected = float(self._stream.duration * Fraction(self._stream.time_base))
            if decoded / rate < expected - _DURATION_SLACK_SECONDS:
                raise _damaged(self._label, decoded, rate)

    def _converted_frames(self) -> Iterator[Any]:
        layout, rate = self._stream.codec_context.layout, self.info.sampling_rate
        resampler = self._new_resampler(format="fltp", layout=layout, rate=rate)
        first = None
        for frame in self._container.decode(self._stream):
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            first = first or kind
            if kind != first:
                raise AudioError(f"{self._label} changes from {first} to {kind} midway; convert it to wav or flac with ffmpeg")
            yield from resampler.resample(frame)
        if first is not None:
            yield from resampler.resample(None)

    def close(self) -> None:
        self._container.close()


def _container_name(names: str, label: str) -> str:
    """FFmpeg lists every name of a container; the file's own suffix is the one that its owner knows."""
    suffix = Path(label).suffix[1:].lower()
    known = names.split(",")
    return suffix if suffix in known else known[0]


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[tuple[BinaryIO, str]]:
    """A seekable binary file with something in it, and its name for messages."""
    if isinstance(source, (str, os.PathLike)):
        label = os.fspath(source)
        with _opened_path(label) as file:
            yield _seekable(file, label), label
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield _seekable(io.BytesIO(source), "the given data"), "the given data"
    elif hasattr(source, "read"):
        name = getattr(source, "name", None)
        label = name if isinstance(name, str) else "the given file object"
        if isinstance(source, io.TextIOBase):
            raise AudioError(f"expected a binary file object, got {label} in text mode; open it with mode 'rb'")
        yield _seekable(source, label), label
    else:
        raise AudioError(
            f"expected a path, bytes or a binary file object, got {type(source).__name__}; "
            "for samples in memory use phonograph.audio.Audio"
        )


def _opened_path(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise AudioError(f"expected an audio file, but {path} does not exist; check the name") from error
    except IsADirectoryError as error:
        raise AudioError(f"expected an audio file, but {path} is a folder; name a file in it") from error
    except OSError as error:
        raise AudioError(f"cannot read {path}: {error.strerror}; check its permissions") from error


def _seekable(file: BinaryIO, label: str) -> BinaryIO:
    if label.lower().endswith(".raw"):
        raise AudioError(f"{label} has no header that tells its rate and sample type; convert it to wav or flac first")
    seekable = getattr(file, "seekable", None)
    if seekable is None or not seekable():
        file = io.BytesIO(file.read())
    if not file.seek(0, os.SEEK_END):
        raise AudioError(f"{label} is empty (0 bytes); expected an audio file")
    file.seek(0)
    return file


@contextlib.contextmanager
def _decoder(file: BinaryIO, label: str) -> Iterator[_Decoder]:
    decoder = _open_decoder(file, label)
    try:
        rate = decoder.info.sampling_rate
        if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
            raise AudioError(
                f"expected a sampling rate from {_LOWEST_RATE} to {_HIGHEST_RATE} Hz, got {rate} Hz in "
                f"{label}; its header is wrong or it is not audio"
            )
        yield decoder
    finally:
        decoder.close()


def _open_decoder(file: BinaryIO, label: str) -> _Decoder:
    head = file.read(64)
    # libsndfile guesses the length of an MP3 from its first frame, and stops reading there.
    is_mpeg = head[:3] == b"ID3" or (head[0] == 0xFF and head[1:2] >= b"\xe0")
    if not is_mpeg:
        with contextlib.suppress(soundfile.SoundFileError):
            decoder = _SndfileDecoder(file, label)
            if decoder.info.num_samples is not None:
                return decoder
            # Written into a pipe: the header says 0, or nothing, and FFmpeg reads to the end.
            decoder.close()
    return _open_ffmpeg(file, label, head)


def _open_ffmpeg(file: BinaryIO, label: str, head: bytes) -> _Decoder:
    import av

    try:
        return _FfmpegDecoder(file, label)
    except av.FFmpegError as error:
        kind = "text" if _looks_like_text(head) else "something else, or a damaged file"
        raise AudioError(
            f"expected an audio file (wav, flac, ogg, mp3, m4a, webm, ...), got {kind} in {label}; "
            "check what it holds, or convert it to wav"
        ) from error


def _looks_like_text(head: bytes) -> bool:
    return all(byte in b"\t\r\n" or byte >= 0x20 for byte in head) and head.isascii()


def _damaged(label: str, sample: int, rate: int) -> AudioError:
    return AudioError(
        f"{label} is damaged or cut short: no audio can be decoded after {sample / rate:.2f} s; "
        "copy or download it again, or repair it with ffmpeg"
    )


def _blocks(source: Source, selection: _Selection) -> Generator[Audio, None, None]:
    """The selected audio in blocks of no fixed size, at least one."""
    with _opened(source) as (file, label), _decoder(file, label) as decoder:
        source_rate = decoder.info.sampling_rate
        target_rate = selection.sampling_rate or source_rate
        mix = _channel_mix(decoder.info.num_channels, selection, label)
        start = round(selection.start_seconds * source_rate)
        position = decoder.seek(start)
        chosen = (mix(block) for block in _trimmed(decoder, position, start, selection, label))
        finite = _finite_only(chosen, source_rate, start, label)
        empty = True
        for samples in _resampled(finite, source_rate, target_rate):
            empty = False
            yield Audio(samples, target_rate)
        if empty:
            raise AudioError(f"{label} has no samples; expected at least one at {target_rate} Hz")


def _channel_mix(num_channels: int, selection: _Selection, label: str) -> Callable[[Samples], Samples]:
    """How a block (file's channels, time) becomes (1 or 2, time)."""
    channel = selection.channel
    if channel is not None:
        if channel >= num_channels:
            raise AudioError(f"expected a channel below {num_channels}, got channel={channel}; {label} has {num_channels}")
        return lambda block: block[channel : channel + 1]
    if num_channels > 2:
        raise AudioError(
            f"expected 1 or 2 channels, got {num_channels} in {label}; pass channel=0 to {num_channels - 1} to pick one"
        )
    if selection.mono and num_channels == 2:
        return lambda block: block.mean(axis=0, keepdims=True)
    return lambda block: block


def _trimmed(decoder: _Decoder, position: int, start: int, selection: _Selection, label: str) -> Iterator[Samples]:
    """The selected duration from sample `start` on; `position` is where the decoder stands."""
    rate = decoder.info.sampling_rate
    length = selection.duration_seconds
    stop = float("inf") if length is None else start + max(1, round(length * rate))
    for block in decoder.blocks(stop):
        begin, end = max(start - position, 0), min(stop - position, block.shape[1])
        position += block.shape[1]
        if begin < end:
            yield block[:, begin : int(end)]
        if position >= stop:
            return
    if 0 < position <= start:
        raise AudioError(
            f"start_seconds={selection.start_seconds:g} lies after the end of {label}, which has "
            f"{position / rate:.2f} s; start earlier"
        )


def _finite_only(blocks: Iterable[Samples], rate: int, offset: int, label: str) -> Iterator[Samples]:
    first, count = None, 0
    for block in blocks:
        bad = ~np.isfinite(block)
        if first is None and bad.any():
            first = offset + int(bad.any(axis=0).argmax())
        count += int(bad.sum())
        if first is None:
            yield block
        offset += block.shape[1]
    if first is not None:
        raise _non_finite(count, first / rate, label)


def _non_finite(count: int, seconds: float, label: str) -> AudioError:
    noun = "sample" if count == 1 else "samples"
    return AudioError(
        f"expected finite samples, got {count} NaN or infinite {noun} in {label}, the first at "
        f"{seconds:.3f} s; repair or export it again"
    )


def _resampled(blocks: Iterable[Samples], source_rate: int, target_rate: int) -> Iterator[Samples]:
    if source_rate == target_rate:
        yield from blocks
        return
    resampler = None
    piece = max(1, min(_READ_SAMPLES, _READ_SAMPLES * source_rate // target_rate))
    for block in blocks:
        channels = len(block)
        resampler = resampler or soxr.ResampleStream(source_rate, target_rate, channels, dtype="float32", quality="HQ")
        for start in range(0, block.shape[1], piece):
            part = np.ascontiguousarray(block[:, start : start + piece].T)
            yield from _non_empty(resampler.resample_chunk(part).T)
    if resampler is not None:
        yield from _non_empty(resampler.resample_chunk(np.zeros((0, channels), np.float32), last=True).T)


def _non_empty(samples: Samples) -> Iterator[Samples]:
    if samples.shape[1]:
        yield samples


def _joined(pieces: list[Samples], label: str) -> Samples:
    if not pieces:
        raise AudioError(f"{label} is shorter than one sample at the new rate; expected a longer one")
    return np.concatenate(pieces, axis=1)


def _reblocked(blocks: Iterable[Samples], size: int) -> Iterator[Samples]:
    """The same samples in blocks of exactly `size`, the last one shorter."""
    held: list[Samples] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += block.shape[1]
        if count < size:
            continue
        joined = np.concatenate(held, axis=1)
        whole = count - count % size
        for start in range(0, whole, size):
            # A copy, for a view would keep the whole joined array alive.
            yield joined[:, start : start + size].copy()
        held, count = [joined[:, whole:].copy()], count - whole
    if count:
        yield np.concatenate(held, axis=1)


def _sized_blocks(blocks: Generator[Audio, None, None], size_at: Callable[[int], int]) -> Iterator[Audio]:
    with contextlib.closing(blocks):
        first = next(blocks)
        rate = first.sampling_rate

        def samples() -> Iterator[Samples]:
            yield first.samples
            for block in blocks:
                yield block.samples

        for sized in _reblocked(samples(), size_at(rate)):
            yield Audio(sized, rate)


# Checking and writing -----------------------------------------------------------------------------


def _checked_rate(rate: int, name: str) -> int:
    try:
        value = operator.index(rate)
    except TypeError as error:
        raise AudioError(f"expected {name} as a whole number of Hz, got {rate!r}; pass an int such as 24000") from error
    if not _LOWEST_RATE <= value <= _HIGHEST_RATE:
        raise AudioError(
            f"expected {name} from {_LOWEST_RATE} to {_HIGHEST_RATE} Hz, got {value}; pass the rate in Hz, such as 24000"
        )
    return value


def check_range(lowest: float, highest: float) -> None:
    """Refuse samples, by their lowest and their highest, with which no model can do anything.

    Raises:
        AudioError: NaN or infinite ones, or some that are far beyond full scale.
    """
    if not math.isfinite(lowest + highest):
        raise AudioError("expected finite samples, got NaN or infinite ones; repair this audio or export it again")
    peak = max(-lowest, highest)
    if peak > _HIGHEST_PEAK:
        raise AudioError(
            f"expected samples in [-1, 1], got a peak of {peak:g}; divide integers by their full scale (int16: 32768)"
        )


def _as_samples(values: npt.ArrayLike) -> Samples:
    array = np.asarray(values)
    if array.dtype.kind != "f":
        raise AudioError(
            f"expected float samples in [-1, 1], got {array.dtype}; divide integers by their full scale (int16: 32768)"
        )
    if array.ndim == 1:
        array = array[np.newaxis]
    if array.ndim != 2 or array.shape[0] not in (1, 2):
        hint = "pass its transpose" if array.ndim == 2 and array.shape[1] in (1, 2) else "pass one clip of 1 or 2 channels"
        raise AudioError(f"expected samples shaped (time,) or (channels, time), got {array.shape}; {hint}")
    if not array.shape[1]:
        raise AudioError("expected at least one sample, got none; check what made this audio")
    return np.ascontiguousarray(array, dtype=np.float32)  # PyTorch takes no negative strides


def _as_audio(samples: "Audio | npt.ArrayLike", sampling_rate: int | None) -> Audio:
    if isinstance(samples, Audio):
        if sampling_rate not in (None, samples.sampling_rate):
            raise AudioError(
                f"expected the audio's own {samples.sampling_rate} Hz, got sampling_rate={sampling_rate}; "
                "resample it first: audio.resample(sampling_rate)"
            )
        return samples
    if sampling_rate is None:
        raise AudioError("expected a sampling_rate with bare samples, got none; pass sampling_rate=24000 or an Audio")
    return Audio(_as_samples(samples), sampling_rate)


def _refuse_non_finite(audio: Audio) -> None:
    for _ in _finite_only([audio.samples], audio.sampling_rate, 0, "the samples to be written"):
        pass


def _output_format(destination: Destination, format: str | None, subtype: str | None) -> tuple[str, str]:  # noqa: A002
    place = destination if isinstance(destination, (str, os.PathLike)) else getattr(destination, "name", "")
    name = format or (Path(place).suffix[1:] if isinstance(place, (str, os.PathLike)) else "")
    name = {"aif": "aiff"}.get(name.lower(), name.lower())
    if name not in _WRITABLE:
        got = f"{name!r}" if name else "none"
        raise AudioError(
            f"expected a suffix or format among {', '.join(_WRITABLE)}, got {got}; rename the file or pass format='wav'"
        )
    container, default_subtype = _WRITABLE[name]
    subtype = (subtype or default_subtype).upper()
    if not soundfile.check_format(container, subtype):
        known = ", ".join(soundfile.available_subtypes(container))
        raise AudioError(f"expected a subtype of {name} among {known}, got {subtype!r}; choose one of these")
    return container, subtype


class _Sink(io.RawIOBase):
    """A file for libsndfile to write to, which can't pass errors on: the first is kept, and raised by `check`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)  # which writes what is held back, and so fails on a full disk too
        except OSError as error:
            self._error = self._error or error
            return offset

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:  # libsndfile reads headers back while it writes some formats
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def check(self) -> None:
        if self._error is not None:
            raise self._error


def _write_blocks(file: BinaryIO, blocks: Iterable[Audio], container: str, subtype: str) -> None:
    target = file if file.seekable() else io.BytesIO()
    sink, alike = _Sink(target), _alike(blocks)
    first = next(alike, None)
    if first is None:
        raise AudioError("expected at least one block of audio to write, got none")
    output = _opened_output(sink, first, container, subtype)
    try:
        # All writes are of one size, whatever the blocks: libsndfile's Vorbis encoder overflows its stack on a long one, and
        # begins otherwise after a short one.
        for samples in _reblocked((block.samples for block in itertools.chain([first], alike)), _READ_SAMPLES):
            output.write(np.ascontiguousarray(_quantized(samples, subtype).T))
            sink.check()
    finally:
        output.close()
    sink.check()
    if target is not file:  # a pipe: headers can only be completed in memory
        target.seek(0)
        shutil.copyfileobj(target, file)


def _alike(blocks: Iterable[Audio]) -> Iterator[Audio]:
    first = None
    for block in blocks:
        _refuse_non_finite(block)
        first = first or block
        if (block.num_channels, block.sampling_rate) != (first.num_channels, first.sampling_rate):
            raise AudioError(f"expected blocks like the first, {first!r}, got {block!r}; convert them first")
        yield block


def _opened_output(sink: _Sink, block: Audio, container: str, subtype: str) -> Any:
    try:
        return soundfile.SoundFile(sink, "w", block.sampling_rate, block.num_channels, subtype, format=container)
    except soundfile.SoundFileError as error:
        raise AudioError(
            f"{container} {subtype} cannot hold {block.num_channels} channels at {block.sampling_rate} Hz; "
            "resample it or choose another format"
        ) from error


def _quantized(samples: Samples, subtype: str) -> "npt.NDArray[np.float32] | npt.NDArray[np.int32]":
    """Clipped; for PCM, rounded to steps in int32's upper bits, as libsndfile rounds down in some formats."""
    if subtype in ("FLOAT", "DOUBLE"):
        return samples
    bits = _PCM_BITS.get(subtype)
    if bits is None:
        return np.clip(samples, -1, 1)
    scale = 2 ** (bits - 1)
    steps = np.rint(samples.astype(np.float64) * scale).clip(-scale, scale - 1)
    shifted: npt.NDArray[np.int32] = steps.astype(np.int32) << (32 - bits)
    return shifted
