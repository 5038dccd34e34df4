"""What the codes of a recording are: which model made them, at what rates and in what shape.

One small value that a token file stores once and everything else shares. It knows no bytes and holds no
codes.

    header = TokenFileHeader(
        model_id="mimi-mini", sampling_rate=24000, frame_samples=1920, num_codebooks=8, codebook_size=2048
    )
    header.bitrate  # 1100.0
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phonograph.errors import ConfigError

__all__ = ["MAX_CODEBOOKS", "MAX_CODEBOOK_SIZE", "MAX_MODEL_ID_BYTES", "Codes", "TokenFileHeader", "as_codes"]

Codes = NDArray[np.int16] | NDArray[np.int32]

MAX_CODEBOOKS = 65535
MAX_CODEBOOK_SIZE = 65536
MAX_MODEL_ID_BYTES = 1024
MAX_U32 = 2**32 - 1
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class TokenFileHeader:
    """The model, rates and sizes behind an array of codes.

    Attributes:
        model_id: name or hub id of the model, at most 1024 bytes of UTF-8 without NUL; may be empty.
        weights_hash: hex SHA-256 of the model's codebooks, 64 digits, or empty for unknown.
        sampling_rate: audio samples per second.
        frame_samples: audio samples per frame, 1920 for Mimi.
        num_codebooks: codes per frame, 1 to 65535.
        codebook_size: every code lies in [0, codebook_size); 2 to 65536.

    Raises:
        ConfigError: a value is outside its limits; all faults are reported at once.
    """

    model_id: str = ""
    weights_hash: str = ""
    sampling_rate: int
    frame_samples: int
    num_codebooks: int
    codebook_size: int

    def __post_init__(self) -> None:
        faults = self._text_faults()
        limits = {
            "sampling_rate": (1, MAX_U32),
            "frame_samples": (1, MAX_U32),
            "num_codebooks": (1, MAX_CODEBOOKS),
            "codebook_size": (2, MAX_CODEBOOK_SIZE),
        }
        for name, (lowest, highest) in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not lowest <= value <= highest:
                faults.append(f"expected {name} to be an integer from {lowest} to {highest}, got {value!r}")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sampling_rate / self.frame_samples

    @property
    def bits_per_code(self) -> int:
        """Bits that one code takes in a token file: ceil(log2(codebook_size)), 1 to 16."""
        return (self.codebook_size - 1).bit_length()

    @property
    def bitrate(self) -> float:
        """Bits per second of audio, without a file's own overhead."""
        return self.frame_rate * self.num_codebooks * self.bits_per_code

    @property
    def codes_dtype(self) -> np.dtype[Any]:
        """int16, or int32 when codes above 32767 exist."""
        return np.dtype(np.int16 if self.codebook_size <= 2**15 else np.int32)

    def frame_range(self, start_seconds: float, end_seconds: float | None, num_frames: int) -> tuple[int, int]:
        """The frames [start, end) that cover a time range, cut off at `num_frames`.

        Times are rounded to the nearest audio sample first, so that a frame's own time always finds that
        frame.

        Raises:
            ConfigError: a time is negative or not finite, or the end lies before the start.
        """
        latest = start_seconds if end_seconds is None else end_seconds
        if not 0 <= start_seconds <= latest < math.inf:
            raise ConfigError(
                f"expected 0 <= start_seconds <= end_seconds, got {start_seconds!r} and {end_seconds!r}; "
                "leave end_seconds out for everything up to the end"
            )
        start = min(self._sample_at(start_seconds, num_frames) // self.frame_samples, num_frames)
        if end_seconds is None:
            return start, num_frames
        end = -(-self._sample_at(end_seconds, num_frames) // self.frame_samples)
        return start, min(end, num_frames)

    def _sample_at(self, seconds: float, num_frames: int) -> int:
        # Cut off first: a time beyond all audio may be too large to be counted in samples.
        return round(min(seconds, (num_frames + 1) / self.frame_rate) * self.sampling_rate)

    def _text_faults(self) -> list[str]:
        faults = []
        try:
            if len(self.model_id.encode()) > MAX_MODEL_ID_BYTES:
                faults.append(f"expected a model_id of at most {MAX_MODEL_ID_BYTES} bytes, got a longer one")
            if "\0" in self.model_id:  # an .npz file would lose it at the end
                faults.append(f"expected a model_id without NUL characters, got {self.model_id!r}")
        except (UnicodeEncodeError, AttributeError):
            faults.append(f"expected model_id to be text that UTF-8 can hold, got {self.model_id!r}")
        text = self.weights_hash
        is_sha256 = isinstance(text, str) and _SHA256.fullmatch(text) and text.strip("0")
        if text != "" and not is_sha256:
            faults.append(f"expected weights_hash to be empty or 64 lower-case hex digits, not all 0, got {text!r}")
        return faults


def as_codes(codes: ArrayLike, header: TokenFileHeader) -> Codes:
    """`codes` as a (num_codebooks, frames) array of the header's type, without a copy where none is needed.

    Raises:
        ConfigError: not integers, of another shape, or a code outside [0, codebook_size).
    """
    expected = f"expected integer codes of shape ({header.num_codebooks}, frames)"
    try:
        array = np.asarray(codes)
    except ValueError as error:
        raise ConfigError(f"{expected}, got rows of unequal length") from error
    # numpy gives lists without any number in them a floating-point type.
    if array.dtype.kind not in "iu" and array.size:
        raise ConfigError(f"{expected}, got {array.dtype}")
    if array.ndim != 2 or array.shape[0] != header.num_codebooks:
        raise ConfigError(f"{expected}, got shape {array.shape}")
    if array.size and (array.min() < 0 or array.max() >= header.codebook_size):
        codebook, frame = np.argwhere((array < 0) | (array >= header.codebook_size))[0]
        raise ConfigError(
            f"expected codes from 0 to {header.codebook_size - 1}, got {array[codebook, frame]} "
            f"in codebook {codebook} at frame {frame}; were they made by a model with larger codebooks?"
        )
    return array.astype(header.codes_dtype, copy=False)
