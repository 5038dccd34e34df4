"""Spectrograms as pictures, on axes of matplotlib.

    figure = Figure()
    draw_spectrograms(figure.subplots(2, 1), {"original": original, "reconstruction": reconstruction})
    save_figure(figure, Path("both.png"))

matplotlib itself is imported by whoever makes the figure.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phonograph.audio.io import Audio
from phonograph.audio.mel import hz_to_mel, log_mel_spectrogram, mel_spectrogram
from phonograph.files import atomic_write

__all__ = ["draw_spectrograms", "save_figure"]

_HOP_SAMPLES = 256
_RANGE_DB = 80.0
_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000)


def draw_spectrograms(
    axes: Sequence[Any], recordings: Mapping[str, Audio], *, bands: bool = False, interpolation: str = "nearest"
) -> Any:
    """Draw mono recordings of one rate, by their labels, each on one of as many axes; 0 dB is the loudest band of the first.

    Args:
        bands: count mel bands upwards, rather than name frequencies in kHz.
        interpolation: matplotlib's name for what is between the values.

    Returns:
        The image of the last, for a scale of colours, which is that of all.
    """
    first = next(iter(recordings.values()))
    rate = first.sampling_rate
    loudest = float(mel_spectrogram(first.samples[0], rate, hop_samples=_HOP_SAMPLES).max())
    ticks = [hz for hz in _TICKS_HZ if hz < rate / 2]
    for axis, (label, audio) in zip(axes, recordings.items(), strict=True):
        levels = log_mel_spectrogram(audio.samples[0], rate, hop_samples=_HOP_SAMPLES, range_db=_RANGE_DB, loudest=loudest)
        top = len(levels) if bands else float(hz_to_mel(rate / 2))
        image = axis.imshow(
            levels,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=-_RANGE_DB,
            vmax=0,
            extent=(0, levels.shape[1] * _HOP_SAMPLES / rate, 0, top),
            interpolation=interpolation,
        )
        axis.set(title=label, ylabel="mel band" if bands else "frequency (kHz)")
        if not bands:
            axis.set_yticks(hz_to_mel(ticks), [f"{hz / 1000:g}" for hz in ticks])
    return image


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG.

    Raises:
        OutputError: the file can't be written.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    with atomic_write(path) as file:
        file.write(picture.getvalue())
