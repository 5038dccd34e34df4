"""A picture of recordings as spectrograms, one below the other, on one scale."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phonograph.audio import Audio, pictures
from phonograph.errors import MissingExtraError

__all__ = ["draw_spectrograms"]

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
    figure = Figure(figsize=(_WIDTH_INCHES, _ROW_INCHES * len(recordings)), layout="constrained")
    axes: Any = figure.subplots(len(recordings), 1, sharex=True, squeeze=False)[:, 0]
    pictures.draw_spectrograms(axes, recordings, bands=True, interpolation="auto")
    axes[-1].set_xlabel("time (s)")
    pictures.save_figure(figure, path)
