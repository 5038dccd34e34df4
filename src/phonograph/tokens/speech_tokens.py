"""The codes of one recording as a value: cut by time or by codebooks, saved, loaded, given to tables.

    tokens = SpeechTokens(codes, header, num_samples=48000)
    tokens.slice(0.5, 1.5).truncate(4).save("second.mimi")

This module knows what codes mean in time and bits. It knows neither the model that makes them nor the bytes
of any file.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Literal

import numpy as np

from phonograph.errors import ConfigError
from phonograph.tokens.header import Codes, TokenFileHeader, as_codes

__all__ = ["NUMBER_COLUMNS", "TEXT_COLUMNS", "SpeechTokens", "check_num_samples", "samples_between"]

TEXT_COLUMNS = ("model_id", "weights_hash")
NUMBER_COLUMNS = ("sampling_rate", "frame_samples", "num_codebooks", "codebook_size")


@dataclass(frozen=True, eq=False)
class SpeechTokens:
    """Codes (num_codebooks, num_frames) with the header that says what they are.

    Attributes:
        codes: int16, or int32 when codebook_size > 32768; the first codebook is the coarsest. Any integer
            array is taken; one of the right type is kept without a copy.
        header: the model, rates and sizes.
        num_samples: audio samples that the codes stand for, at most num_frames * frame_samples; None for
            unknown.

    Raises:
        ConfigError: the codes are no integers, of another shape or out of range (the message names the first
            such code), or num_samples does not fit.
    """

    codes: Codes
    header: TokenFileHeader
    num_samples: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "codes", as_codes(self.codes, self.header))
        check_num_samples(self.num_samples, self.num_frames, self.header)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SpeechTokens):
            return NotImplemented
        same_facts = (self.header, self.num_samples) == (other.header, other.num_samples)
        return same_facts and np.array_equal(self.codes, other.codes)

    @property
    def model_id(self) -> str:
        """Name or hub id of the model that made the codes; may be empty."""
        return self.header.model_id

    @property
    def weights_hash(self) -> str:
        """Hex SHA-256 of that model's codebooks, or empty."""
        return self.header.weights_hash

    @property
    def sampling_rate(self) -> int:
        """Audio samples per second."""
        return self.header.sampling_rate

    @property
    def frame_samples(self) -> int:
        """Audio samples per frame."""
        return self.header.frame_samples

    @property
    def num_codebooks(self) -> int:
        """Codes per frame."""
        return self.header.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Every code is below this."""
        return self.header.codebook_size

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.header.frame_rate

    @property
    def bits_per_code(self) -> int:
        """Bits that one code takes in a token file."""
        return self.header.bits_per_code

    @property
    def bitrate(self) -> float:
        """Bits per second of audio."""
        return self.header.bitrate

    @property
    def num_frames(self) -> int:
        """Frames of codes."""
        return int(self.codes.shape[1])

    @property
    def duration_seconds(self) -> float:
        """Length of the audio; of all whole frames where num_samples is unknown."""
        samples = self.num_frames * self.frame_samples if self.num_samples is None else self.num_samples
        return samples / self.sampling_rate

    def truncate(self, num_codebooks: int) -> "SpeechTokens":
        """The same recording at a lower bitrate: its first `num_codebooks` codebooks.

        Raises:
            ConfigError: there are fewer codebooks, or none is asked for.
        """
        if not 1 <= num_codebooks <= self.num_codebooks:
            raise ConfigError(f"expected 1 to {self.num_codebooks} codebooks, got {num_codebooks}")
        header = replace(self.header, num_codebooks=num_codebooks)
        return SpeechTokens(self.codes[:num_codebooks], header, self.num_samples)

    def slice(self, start_seconds: float = 0.0, end_seconds: float | None = None) -> "SpeechTokens":
        """The whole frames that cover [start_seconds, end_seconds), as far as the recording goes.

        Raises:
            ConfigError: a time is negative or not finite, or the end lies before the start.
        """
        start, end = self.header.frame_range(start_seconds, end_seconds, self.num_frames)
        return self.slice_frames(start, end)

    def slice_frames(self, start: int, end: int) -> "SpeechTokens":
        """The frames [start, end). Only the recording's last frame can hold less than frame_samples samples.

        Raises:
            ConfigError: expected 0 <= start <= end <= num_frames.
        """
        if not 0 <= start <= end <= self.num_frames:
            raise ConfigError(f"expected frames within [0, {self.num_frames}), got [{start}, {end})")
        num_samples = samples_between(start, end, self.num_frames, self.num_samples, self.frame_samples)
        return SpeechTokens(self.codes[:, start:end], self.header, num_samples)

    def to_arrays(self) -> dict[str, Any]:
        """The codes and one plain scalar per header field: the columns of a row in a Parquet table.

        Returns:
            codes (num_codebooks, num_frames) as int16 (int32 for codebook_size > 32768), model_id,
            weights_hash, sampling_rate, frame_samples, num_codebooks, codebook_size, and num_samples, which
            is None when unknown.
        """
        scalars = {name: getattr(self.header, name) for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS)}
        return {"codes": self.codes, **scalars, "num_samples": self.num_samples}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> "SpeechTokens":
        """The inverse of `to_arrays`; codes may be nested lists, as table readers return them.

        Other columns are ignored. num_samples may be missing, None or NaN for unknown; model_id and
        weights_hash may be missing.

        Raises:
            ConfigError: a column is missing, of the wrong type, or does not fit the others.
        """
        if missing := [name for name in ("codes", *NUMBER_COLUMNS) if name not in arrays]:
            raise ConfigError(f"expected the columns of SpeechTokens.to_arrays(), {', '.join(missing)} missing")
        fields: dict[str, Any] = {name: arrays.get(name, "") for name in TEXT_COLUMNS}
        fields.update({name: _whole_number(name, arrays[name]) for name in NUMBER_COLUMNS})
        header = TokenFileHeader(**fields)
        samples = arrays.get("num_samples")
        if samples is None or (isinstance(samples, float | np.floating) and math.isnan(samples)):
            return cls(_nested_rows(arrays["codes"]), header)
        return cls(_nested_rows(arrays["codes"]), header, _whole_number("num_samples", samples))

    def save(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Write .mimi, .npz or .safetensors by the path's suffix, whole or not at all, over an older file.

        A binary file object gets .mimi.

        Raises:
            ConfigError: another suffix.
            OutputError: the file can't be written.
        """
        # The file formats are built on this class, so they can only be known here once one is asked for.
        from phonograph.tokens.formats import save_tokens

        save_tokens(self, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str] | BinaryIO, *, on_damage: Literal["raise", "prefix"] = "raise"
    ) -> "SpeechTokens":
        """Read a whole .mimi, .npz or .safetensors file, by its suffix.

        A .mimi file that ends within a record, as a copy cut short does, counts as damaged. One that ends
        between two records without having been closed is taken as it is: everything written so far,
        num_samples unknown. To follow a file while it is written use TokenReader.

        Args:
            path: the file; a seekable binary file object is read as .mimi.
            on_damage: what to do with a damaged .mimi file: "raise", or return the "prefix" before the first
                damage.

        Raises:
            TokenFileError: the file can't be read, is damaged (the message says where and which frames are
                lost) or holds something else.
            ConfigError: another suffix, or another `on_damage`.
        """
        from phonograph.tokens.formats import load_tokens

        return load_tokens(path, on_damage)


def check_num_samples(num_samples: int | None, num_frames: int, header: TokenFileHeader) -> None:
    """Raise ConfigError unless `num_frames` frames can stand for `num_samples` samples."""
    most = num_frames * header.frame_samples
    if num_samples is not None and (type(num_samples) is not int or not 0 <= num_samples <= most):
        raise ConfigError(
            f"expected num_samples to be None or from 0 to {most} "
            f"({num_frames} frames of {header.frame_samples} samples), got {num_samples!r}"
        )


def samples_between(start: int, end: int, num_frames: int, num_samples: int | None, frame_samples: int) -> int | None:
    """Audio samples in the frames [start, end) of a recording of `num_frames`; None where unknown."""
    if end < num_frames:
        return (end - start) * frame_samples
    return None if num_samples is None else max(0, num_samples - start * frame_samples)


def _whole_number(name: str, value: Any) -> int:
    # A table reader turns a column of integers with gaps into floats.
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise ConfigError(f"expected {name} to be an integer, got {value!r}")


def _nested_rows(codes: Any) -> Any:
    if isinstance(codes, np.ndarray) and codes.dtype == object:
        return [np.asarray(row).tolist() for row in codes]
    return codes
