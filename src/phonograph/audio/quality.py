"""How close a reconstruction is to the original: intelligibility, perceived quality and spectral distance.

    mel_distance(original, reconstruction)      # dB, lower is better
    stoi(original, reconstruction)              # 0 to 1, higher is better
    pesq(original, reconstruction)              # 1 to 4.64, higher is better
    measure(original, reconstruction).figures   # all of these that can be measured, by name

All compare mono audio of one rate and one length, sample by sample aligned. `stoi` needs the extra `[demo]`, `pesq` the extra
`[pesq]`, which is built from C where it is installed.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from phonograph.audio.io import Audio
from phonograph.audio.mel import log_mel_spectrogram, mel_spectrogram
from phonograph.errors import AudioError, MissingExtraError

__all__ = ["MEASURES", "Quality", "measure", "mel_distance", "pesq", "stoi"]

_PESQ_RATE = 16000
_PESQ_PART_SECONDS = 12.0
# As long as what P.862 was made for. Too many stretches of speech, and 30 s can hold them, end the process in its code.


@dataclass(frozen=True)
class Quality:
    """What `measure` found.

    Attributes:
        figures: by name, in the order of MEASURES.
        left_out: why the others are missing, by name, in one line.
    """

    figures: dict[str, float]
    left_out: dict[str, str]


def measure(reference: Audio, other: Audio) -> Quality:
    """All MEASURES of a reconstruction, but for those whose package is missing, or that found too little speech.

    Raises:
        AudioError: not mono, or of different rates or lengths.
    """
    _check_comparable(reference, other)
    found = {name: _measured(how, reference, other) for name, how in MEASURES.items()}
    return Quality(
        {name: value for name, value in found.items() if isinstance(value, float)},
        {name: why for name, why in found.items() if isinstance(why, str)},
    )


def _measured(how: Callable[[Audio, Audio], float], reference: Audio, other: Audio) -> float | str:
    """The figure, or why there is none."""
    try:
        return how(reference, other)
    except (MissingExtraError, AudioError) as error:
        return str(error)


def stoi(reference: Audio, other: Audio) -> float:
    """Short-time objective intelligibility (Taal et al. 2011, doi:10.1109/TASL.2011.2114881), as pystoi computes it.

    Raises:
        AudioError: not mono, of different rates or lengths, or less than 0.4 s of speech.
        MissingExtraError: pystoi is not installed.
    """
    try:
        import pystoi
    except ImportError as error:
        raise MissingExtraError("STOI", "pystoi", "demo") from error
    _check_comparable(reference, other)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(reference.samples[0], other.samples[0], reference.sampling_rate))
        except RuntimeWarning as error:
            raise AudioError(
                f"expected at least 0.4 s of speech to measure STOI on, got {reference.duration_seconds:.2f} s with too "
                "little of it; measure a longer recording"
            ) from error


def pesq(reference: Audio, other: Audio) -> float:
    """Perceptual evaluation of speech quality, wide-band at 16 kHz (ITU-T P.862.2), as the package pesq computes it.

    Recordings of other rates are resampled. Longer ones than 12 s are measured in parts of equal length, and the mean is given.

    Returns:
        MOS-LQO, from about 1 to 4.64.

    Raises:
        AudioError: not mono, of different rates or lengths, or without speech that can be compared.
        MissingExtraError: pesq is not installed.
    """
    try:
        import pesq as package
    except ImportError as error:
        raise MissingExtraError("PESQ", "pesq", "pesq") from error
    _check_comparable(reference, other)
    count = math.ceil(reference.duration_seconds / _PESQ_PART_SECONDS)
    first, second = (np.array_split(audio.resample(_PESQ_RATE).samples[0], count) for audio in (reference, other))
    scores = [score for pair in zip(first, second, strict=True) for score in _pesq_of_part(package, *pair)]
    if not scores:
        raise AudioError(
            f"expected at least 0.25 s of speech in both recordings to measure PESQ on, got {reference.duration_seconds:.2f} s "
            "with too little of it; measure other recordings"
        )
    return float(np.mean(scores))


def _pesq_of_part(package: Any, reference: Any, other: Any) -> list[float]:
    """The score of at most 12 s at 16 kHz, or none where there is no speech, or nothing of it left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of silence, which it divides by
        try:
            return [package.pesq(_PESQ_RATE, reference, other, "wb")]
        # It takes a score that is no number for an integer.
        except (package.NoUtterancesError, package.BufferTooShortError, ValueError):
            return []


def mel_distance(reference: Audio, other: Audio) -> float:
    """Mean absolute difference of the log-mel spectrograms in dB.

    80 bands, windows of 1024 and hops of 256 samples; what lies more than 80 dB below the loudest band of the reference counts
    as silence in both.

    Raises:
        AudioError: not mono, or of different rates or lengths.
    """
    _check_comparable(reference, other)
    rate = reference.sampling_rate
    loudest = float(mel_spectrogram(reference.samples[0], rate).max())
    first, second = (log_mel_spectrogram(audio.samples[0], rate, loudest=loudest) for audio in (reference, other))
    return float(np.abs(first - second).mean())


MEASURES: Mapping[str, Callable[[Audio, Audio], float]] = MappingProxyType(
    {"mel distance": mel_distance, "STOI": stoi, "PESQ": pesq}
)
"""What `measure` measures, by the names of figures."""


def _check_comparable(reference: Audio, other: Audio) -> None:
    shapes = [(audio.num_channels, audio.sampling_rate, audio.num_samples) for audio in (reference, other)]
    if shapes[0] != shapes[1] or reference.num_channels != 1:
        first, second = (f"{c} channels of {n} samples at {rate} Hz" for c, rate, n in shapes)
        raise AudioError(f"expected two mono recordings of one rate and length, got {first} and {second}; convert one first")
