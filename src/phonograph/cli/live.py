"""The pieces of `phonograph stream`: bytes as they come, samples and codes in them, and how long each frame took.

They know pipes, a microphone and formats; which model runs between them is stream's business.
"""

import contextlib
import json
import math
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from phonograph.cli.console import say, standard_output
from phonograph.errors import AudioError, ConfigError, MissingExtraError, OutputError, TokenFileError

if TYPE_CHECKING:
    from io import BufferedReader

    import numpy as np
    import numpy.typing as npt

    from phonograph.tokens import TokenFileHeader, TokenWriter
    from phonograph.tokens.pipe import PipeOutput

__all__ = [
    "PCM_FORMATS",
    "TOKEN_FORMATS",
    "GrowingFile",
    "Latency",
    "LiveInput",
    "PcmReader",
    "RawTokens",
    "TextTokens",
    "TokenSink",
    "live_output",
    "microphone",
    "pcm_bytes",
    "raw_codes",
    "standard_input",
    "text_codes",
]

PCM_FORMATS = ("s16le", "f32le")
TOKEN_FORMATS = ("mimi", "text", "raw")
_READ_BYTES = 2**16


# Bytes in ---------------------------------------------------------------------------------------------------------------


class _Woken(KeyboardInterrupt):
    """A signal came while nothing was going on but waiting for input."""


class LiveInput:
    """Bytes as they come. ^C and `kill` are the end of them, so that what has come is worked through to its end.

    A second signal ends the process at once: the first can't be seen while a reader of the output keeps us waiting.

    Attributes:
        signal: the number of the signal that ended the input, if one did.
    """

    name = "standard input"

    def __init__(self, read: Callable[[int], bytes], fileno: Callable[[], int] | None = None) -> None:
        self._read = read
        self._fileno = fileno
        self._waiting = False
        self.signal: int | None = None

    def read1(self, size: int) -> bytes:
        """At most `size` bytes as soon as there are any; none at the end."""
        if self.signal is not None:
            return b""
        try:
            self._waiting = True
            return self._read(size)
        except _Woken:
            return b""
        finally:
            self._waiting = False

    def fileno(self) -> int:
        """For select; an OSError if there is nothing to wait for."""
        if self._fileno is None:
            raise OSError("no file")
        return self._fileno()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Take the signals while the block runs."""
        heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, self._end) for number in heard}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = number
        if self._waiting:
            raise _Woken


@contextlib.contextmanager
def standard_input() -> Iterator[LiveInput]:
    """What stdin gives."""
    stdin = cast("BufferedReader", sys.stdin.buffer)
    yield LiveInput(stdin.read1, stdin.fileno)


@contextlib.contextmanager
def microphone(rate: int, file_format: str, channels: int, block_samples: int) -> Iterator[LiveInput]:
    """What the system's default microphone gives, in blocks.

    Raises:
        MissingExtraError: sounddevice is not installed. AudioError: no such device, or it can't do this.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise MissingExtraError("--microphone", "sounddevice", "live") from error
    except OSError as error:
        raise AudioError(
            f"expected the PortAudio library for --microphone, got: {error}; install it (libportaudio2)"
        ) from error
    dtype = {"s16le": "int16", "f32le": "float32"}[file_format]
    try:
        with sounddevice.RawInputStream(samplerate=rate, channels=channels, dtype=dtype, blocksize=block_samples) as stream:
            yield LiveInput(lambda size: bytes(stream.read(block_samples)[0]))
    except sounddevice.PortAudioError as error:
        raise AudioError(f"expected a microphone that gives {channels} x {rate} Hz, got: {error}; check the device") from error


class PcmReader:
    """Raw PCM to mono float32 samples (n,) at the model's rate.

    Raises:
        AudioError: from the iterator: samples that are NaN or infinite.
    """

    def __init__(self, source: LiveInput, file_format: str, channels: int, rate: int, model_rate: int) -> None:
        import soxr

        self._source = source
        self._type = {"s16le": "<i2", "f32le": "<f4"}[file_format]
        self._channels = channels
        self._resampler = None
        if rate != model_rate:
            self._resampler = soxr.ResampleStream(rate, model_rate, 1, dtype="float32", quality="HQ")

    def __iter__(self) -> "Iterator[npt.NDArray[np.float32]]":
        import numpy as np

        held, size = b"", self._channels * int(self._type[-1])
        while news := self._source.read1(_READ_BYTES):
            held += news
            whole = len(held) - len(held) % size
            yield self._resampled(self._samples(held[:whole]), last=False)
            held = held[whole:]
        if self._resampler is not None:
            yield self._resampled(np.zeros(0, np.float32), last=True)

    def _samples(self, data: bytes) -> "npt.NDArray[np.float32]":
        import numpy as np

        frames = np.frombuffer(data, self._type).astype(np.float32).reshape(-1, self._channels)
        with np.errstate(all="ignore"):  # what is not finite is refused in our own words
            values: npt.NDArray[np.float32] = frames.mean(axis=1)
        if not np.isfinite(values).all():
            raise AudioError("expected finite samples, got NaN or infinite ones; is the input really --format f32le?")
        return values / np.float32(2**15) if self._type == "<i2" else values

    def _resampled(self, samples: "npt.NDArray[np.float32]", *, last: bool) -> "npt.NDArray[np.float32]":
        if self._resampler is None:
            return samples
        resampled: npt.NDArray[np.float32] = self._resampler.resample_chunk(samples, last=last)
        return resampled


def text_codes(source: LiveInput) -> "Iterator[npt.NDArray[np.int64]]":
    """Codes (Q, 1) from each line that has come."""
    import numpy as np

    held, number = b"", 0
    while news := source.read1(_READ_BYTES):
        *lines, held = (held + news).split(b"\n")
        for line in lines:
            number += 1
            try:
                codes = np.array([int(word) for word in line.split()], np.int64)
            except (ValueError, OverflowError) as error:
                shown = line[:40].decode(errors="replace")
                raise TokenFileError(
                    f"expected codes as whole numbers in line {number}, got {shown!r}; write one line a frame"
                ) from error
            yield codes[:, None]
    if held.strip():
        raise TokenFileError(f"expected a line's end after {held[:40].decode(errors='replace')!r}, got the end of the input")


def raw_codes(source: LiveInput, num_codebooks: int) -> "Iterator[npt.NDArray[np.int64]]":
    """Codes (Q, frames) from int16 values, a frame's after one another."""
    import numpy as np

    held, size = b"", 2 * num_codebooks
    while news := source.read1(_READ_BYTES):
        held += news
        whole = len(held) - len(held) % size
        if whole:
            yield np.frombuffer(held[:whole], "<i2").reshape(-1, num_codebooks).T.astype(np.int64)
        held = held[whole:]
    if held:
        raise TokenFileError(
            f"expected whole frames of {num_codebooks} codes, {size} bytes each, got {len(held)} bytes at the end; pass the -q "
            "that they were made with"
        )


# Bytes out --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def live_output(binary: bool) -> Iterator[BinaryIO]:
    """stdout's bytes; not a terminal's for what isn't text."""
    if binary and sys.stdout.isatty():
        raise OutputError("expected a file or a program behind stdout, got a terminal, which can't show this; use > or |")
    with standard_output() as file:
        yield file.buffer


class TokenSink(Protocol):
    """Takes codes (Q, frames), and at the end the last of them and the number of samples they all stand for."""

    def write(self, codes: "npt.NDArray[np.int64]", /) -> None:
        """Pass these on at once."""

    def finish(self, codes: "npt.NDArray[np.int64]", num_samples: int, /) -> None:
        """Pass on the last, none or more."""


class GrowingFile:
    """A token file to which each frame is written as it comes."""

    def __init__(self, writer: "TokenWriter") -> None:
        self._writer = writer

    def write(self, codes: "npt.NDArray[np.int64]") -> None:
        self._writer.write(codes)
        self._writer.flush()

    def finish(self, codes: "npt.NDArray[np.int64]", num_samples: int) -> None:
        self._writer.write(codes)
        self._writer.close(num_samples)


class TextTokens:
    """One line of numbers a frame."""

    def __init__(self, file: "PipeOutput") -> None:
        self._file = file

    def write(self, codes: "npt.NDArray[np.int64]") -> None:
        self._file.write("".join(" ".join(map(str, frame)) + "\n" for frame in codes.T.tolist()).encode())
        self._file.flush()

    def finish(self, codes: "npt.NDArray[np.int64]", num_samples: int) -> None:
        self.write(codes)


class RawTokens:
    """int16, a frame's codes after one another.

    Raises:
        ConfigError: codes that int16 can't hold.
    """

    def __init__(self, file: "PipeOutput", header: "TokenFileHeader") -> None:
        if header.codebook_size > 2**15:
            raise ConfigError(f"expected codes below 32768 for raw output, got up to {header.codebook_size - 1}; use mimi")
        self._file = file

    def write(self, codes: "npt.NDArray[np.int64]") -> None:
        self._file.write(codes.T.astype("<i2").tobytes())
        self._file.flush()

    def finish(self, codes: "npt.NDArray[np.int64]", num_samples: int) -> None:
        self.write(codes)


def pcm_bytes(samples: "npt.NDArray[np.float32]", file_format: str) -> bytes:
    """Samples (n,), clipped and rounded for s16le."""
    import numpy as np

    if file_format == "f32le":
        return samples.astype("<f4").tobytes()
    return np.rint(samples.astype(np.float64) * 2**15).clip(-(2**15), 2**15 - 1).astype("<i2").tobytes()


# Latency ----------------------------------------------------------------------------------------------------------------


class Latency:
    """How long frames took to work through: from having a frame to having passed on its result.

    Times are counted in classes 1 % wide, so that memory does not grow with the stream.
    """

    _WIDTH = math.log(1.01)

    def __init__(self, frame_seconds: float) -> None:
        self._frame_seconds = frame_seconds
        self._classes: Counter[int] = Counter()
        self._total_seconds = 0.0
        self._longest_seconds = 0.0
        self._late = 0

    @contextlib.contextmanager
    def frame(self) -> Iterator[None]:
        """One frame is worked through in the block."""
        started = time.perf_counter()
        yield
        self.add(time.perf_counter() - started)

    def add(self, seconds: float) -> None:
        """One frame took so long."""
        self._classes[round(math.log(max(seconds, 1e-9)) / self._WIDTH)] += 1
        self._total_seconds += seconds
        self._longest_seconds = max(self._longest_seconds, seconds)
        self._late += seconds > self._frame_seconds

    def report(self) -> dict[str, int | float | None]:
        """Frames, percentiles of a frame's time, work for a second of audio, and frames that took longer than they last."""
        frames = sum(self._classes.values())
        audio_seconds = frames * self._frame_seconds
        percentiles = {f"p{percent}_ms": self._percentile(percent / 100, frames) for percent in (50, 95, 99)}
        return {
            "frames": frames,
            "seconds": round(audio_seconds, 6),
            **percentiles,
            "max_ms": _milliseconds(self._longest_seconds) if frames else None,
            "rtf": round(self._total_seconds / audio_seconds, 6) if frames else None,
            "late_frames": self._late,
        }

    def say(self, command: str, as_json: bool, quiet: bool) -> None:
        """Tell the report on stderr, in one line."""
        report = self.report()
        if as_json:
            say(json.dumps({"command": command, **report}))
        elif not quiet:
            times = ", ".join(f"{name} {report[f'{name}_ms']} ms" for name in ("p50", "p95", "p99", "max"))
            numbers = f"; per frame {times}; real-time factor {report['rtf']}" if report["frames"] else ""
            late = f"; {self._late} took longer than {self._frame_seconds * 1000:g} ms"
            say(f"{command}: {report['frames']} frames, {report['seconds']:.2f} s{numbers}{late}")

    def _percentile(self, part: float, frames: int) -> float | None:
        seen = 0
        for number in sorted(self._classes):
            seen += self._classes[number]
            if seen >= part * frames:
                return _milliseconds(min(math.exp(number * self._WIDTH), self._longest_seconds))
        return None


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
