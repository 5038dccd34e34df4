"""A picture of recordings as spectrograms, one below the other, on one scale."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phonograph.audio import Audio
from phonograph.audio.mel import log_mel_spectrogram, mel_spectrogram
from phonograph.errors import MissingExtraError
from phonograph.files import atomic_write

__all__ = ["draw_spectrograms"]

_HOP_SAMPLES = 256
_RANGE_DB = 80.0
_WIDTH_INCHES, _ROW_INCHES = 10.0, 2.0


def draw_spectrograms(path: Path, recordings: Mapping[str, Audio]) -> None:
    """Draw mono recordings of one rate, by their labels, into a PNG; 0 dB is the loudest band of the first.

    Raises:
        MissingExtraError: matplotlib is not installed. OutputError: the file can't be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("a picture of spectrograms", "matplotlib", "demo") from error
    first = next(iter(recordings.values()))
    loudest = float(mel_spectrogram(first.samples[0], first.sampling_rate, hop_samples=_HOP_SAMPLES).max())
    figure = Figure(figsize=(_WIDTH_INCHES, _ROW_INCHES * len(recordings)), layout="constrained")
    axes: Any = figure.subplots(len(recordings), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (label, audio) in zip(axes, recordings.items(), strict=True):
        levels = log_mel_spectrogram(audio.samples[0], audio.sampling_rate, range_db=_RANGE_DB, loudest=loudest)
        extent = (0, levels.shape[1] * _HOP_SAMPLES / audio.sampling_rate, 0, len(levels))
        axis.imshow(levels, origin="lower", aspect="auto", cmap="magma", vmin=-_RANGE_DB, vmax=0, extent=extent)
        axis.set(title=label, ylabel="mel band")
    axes[-1].set_xlabel("time (s)")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    with atomic_write(path) as file:
        file.write(picture.getvalue())
