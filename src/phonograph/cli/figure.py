"""The demo's picture: waveform, spectrograms of the original and the reconstructions, and the codes, on one time axis."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phonograph.audio.pictures import draw_spectrograms, save_figure
from phonograph.errors import MissingExtraError

if TYPE_CHECKING:
    from phonograph.audio import Audio
    from phonograph.tokens import SpeechTokens

__all__ = ["draw_demo"]

_DPI = 100
_WIDTH_INCHES = 12.0
_INK, _MUTED, _ACCENT = "#1b1f24", "#57606a", "#1f6feb"
_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw_demo(
    path: Path, title: str, original: "Audio", reconstructions: "Mapping[str, Audio]", tokens: "SpeechTokens"
) -> None:
    """Draw one recording and its reconstructions, by their labels, into a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed. OutputError: the file can't be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("the demo's picture", "matplotlib", "demo") from error
    with matplotlib.rc_context(_STYLE):
        rows = 3 + len(reconstructions)
        # A Figure of its own, not pyplot's: no window system, no global state.
        figure = Figure(figsize=(_WIDTH_INCHES, 1.0 + 2.15 * rows), dpi=_DPI, layout="constrained")
        figure.suptitle(f"{title}: {original.duration_seconds:.1f} s at {original.sampling_rate / 1000:g} kHz", fontsize=14)
        axes = figure.subplots(rows, 1, sharex=True, height_ratios=[0.7, *[1.0] * (rows - 2), 1.15])
        _draw_waveform(axes[0], original)
        image = draw_spectrograms(axes[1:-1], {"original": original, **reconstructions})
        figure.colorbar(image, ax=list(axes[1:-1]), label="level (dB, loudest of the original is 0)", pad=0.01, fraction=0.03)
        _draw_codes(figure, axes[-1], tokens)
        axes[-1].set_xlabel("time (s)")
        axes[-1].set_xlim(0, original.duration_seconds)
        save_figure(figure, path)


def _draw_waveform(axis: Any, audio: "Audio") -> None:
    times = np.arange(audio.num_samples) / audio.sampling_rate
    axis.plot(times, audio.samples[0], color=_ACCENT, linewidth=0.5)
    peak = float(np.abs(audio.samples).max())
    axis.set(title="waveform of the original", ylabel="amplitude", ylim=(-1.1 * peak, 1.1 * peak))


def _draw_codes(figure: Any, axis: Any, tokens: "SpeechTokens") -> None:
    frames, books = tokens.num_frames, tokens.num_codebooks
    image = axis.imshow(
        tokens.codes,
        aspect="auto",
        cmap="viridis",
        vmin=0,
        vmax=tokens.codebook_size - 1,
        extent=(0, frames / tokens.frame_rate, books + 0.5, 0.5),
        interpolation="nearest",
    )
    title = f"codes: {books} codebooks of {tokens.codebook_size}, {tokens.frame_rate:g} frames a second; the first is coarsest"
    axis.set(title=title, ylabel="codebook")
    axis.set_yticks(sorted({1, *range(4, books + 1, 4)}))
    figure.colorbar(image, ax=axis, label="code", pad=0.01, fraction=0.03)
