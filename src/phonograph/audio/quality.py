"""How close a reconstruction is to the original: intelligibility and spectral distance.

    stoi(original, reconstruction)              # 0 to 1, higher is better
    mel_distance(original, reconstruction)      # dB, lower is better

Both compare mono audio of one rate and one length, sample by sample aligned. `stoi` needs the extra `[demo]`.
"""

import warnings

import numpy as np

from phonograph.audio.io import Audio
from phonograph.audio.mel import log_mel_spectrogram, mel_spectrogram
from phonograph.errors import AudioError, MissingExtraError

__all__ = ["mel_distance", "stoi"]


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


def _check_comparable(reference: Audio, other: Audio) -> None:
    shapes = [(audio.num_channels, audio.sampling_rate, audio.num_samples) for audio in (reference, other)]
    if shapes[0] != shapes[1] or reference.num_channels != 1:
        first, second = (f"{c} channels of {n} samples at {rate} Hz" for c, rate, n in shapes)
        raise AudioError(f"expected two mono recordings of one rate and length, got {first} and {second}; convert one first")
