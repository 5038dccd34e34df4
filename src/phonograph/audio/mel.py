"""Mel spectrograms: how much energy a signal has over time in bands spaced as the ear spaces them.

    log_mel_spectrogram(samples, 24000)     # (80, frames), in dB

The mel scale is that of O'Shaughnessy 1987 (2595 log10(1 + f / 700)); bands are triangles over Hz that sum to one between their
centres. Frames are centred: frame i is the windowed signal around sample i * hop, with zeros outside. Knows numpy, no model.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["hz_to_mel", "log_mel_spectrogram", "mel_filters", "mel_spectrogram", "mel_to_hz", "triangles"]

Array = npt.NDArray[np.float32]

_QUIETEST = 1e-10


def hz_to_mel(hz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Frequencies in Hz to mel."""
    return 2595.0 * np.log10(1.0 + np.asarray(hz, dtype=np.float64) / 700.0)


def mel_to_hz(mel: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Mel to frequencies in Hz."""
    return 700.0 * (10.0 ** (np.asarray(mel, dtype=np.float64) / 2595.0) - 1.0)


def mel_filters(
    num_bands: int, window_samples: int, sampling_rate: int, lowest_hz: float = 0.0, highest_hz: float | None = None
) -> Array:
    """Weights (num_bands, window_samples // 2 + 1) of each frequency of a spectrum in each band of a filter bank."""
    limits = hz_to_mel([lowest_hz, sampling_rate / 2 if highest_hz is None else highest_hz])
    corners = mel_to_hz(np.linspace(limits[0], limits[1], num_bands + 2))
    return triangles(np.fft.rfftfreq(window_samples, 1 / sampling_rate), corners).astype(np.float32)


def triangles(positions: npt.NDArray[np.floating[Any]], corners: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Weights (len(corners) - 2, len(positions)) of triangles, each 0 at a corner, 1 at the next and 0 at the one after."""
    left, centre, right = (corners[i : len(corners) - 2 + i, None] for i in range(3))
    rising, falling = (positions - left) / (centre - left), (right - positions) / (right - centre)
    weights: npt.NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling))
    return weights


def mel_spectrogram(
    samples: Array, sampling_rate: int, *, num_bands: int = 80, window_samples: int = 1024, hop_samples: int = 256
) -> Array:
    """Energy (num_bands, 1 + time // hop_samples) of samples (time,), through a periodic Hann window."""
    half = window_samples // 2
    padded = np.pad(np.asarray(samples, dtype=np.float32), (half, window_samples - half))
    windows = np.lib.stride_tricks.sliding_window_view(padded, window_samples)[::hop_samples]
    frames = windows[: 1 + len(samples) // hop_samples]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_samples) / window_samples)).astype(np.float32)
    power = np.abs(np.fft.rfft(frames * hann, axis=1)) ** 2
    energy: Array = (mel_filters(num_bands, window_samples, sampling_rate) @ power.T).astype(np.float32)
    return energy


def log_mel_spectrogram(
    samples: Array,
    sampling_rate: int,
    *,
    num_bands: int = 80,
    window_samples: int = 1024,
    hop_samples: int = 256,
    range_db: float = 80.0,
    loudest: float | None = None,
) -> Array:
    """`mel_spectrogram` in dB below `loudest`, from -range_db up.

    Args:
        samples: (time,).
        loudest: the energy that is 0 dB; None is the signal's own highest.

    Returns:
        (num_bands, frames); everything quieter than -range_db is -range_db.
    """
    energy = mel_spectrogram(
        samples, sampling_rate, num_bands=num_bands, window_samples=window_samples, hop_samples=hop_samples
    )
    top = float(energy.max()) if loudest is None else loudest
    decibels = 10 * (np.log10(np.maximum(energy, _QUIETEST)) - np.log10(max(top, _QUIETEST)))
    levels: Array = np.maximum(decibels, -range_db).astype(np.float32)
    return levels
