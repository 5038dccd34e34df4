"""Pictures of spectrograms: axes say where the values lie, and all recordings share one scale."""

from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest

from phonograph import audio
from phonograph.audio.mel import hz_to_mel, log_mel_spectrogram
from phonograph.audio.pictures import draw_spectrograms, save_figure
from phonograph.errors import OutputError


def tone(gain: float) -> audio.Audio:
    """A second of 1 kHz."""
    samples = gain * np.sin(2 * np.pi * 1000 * np.arange(24000) / 24000)
    return audio.Audio(samples.astype(np.float32), 24000)


def figure() -> Any:
    return peers.peer("matplotlib.figure").Figure()


def test_levels_are_of_the_first_and_times_in_seconds() -> None:
    axes = figure().subplots(2, 1)
    image = draw_spectrograms(axes, {"loud": tone(0.5), "soft": tone(0.05)})
    loud, soft = (axis.images[0] for axis in axes)
    assert image is soft
    np.testing.assert_array_equal(loud.get_array(), log_mel_spectrogram(tone(0.5).samples[0], 24000))
    assert loud.get_array().max() == pytest.approx(0, abs=1e-4)
    assert soft.get_array().max() == pytest.approx(-20, abs=0.01)
    assert loud.get_clim() == soft.get_clim() == (-80, 0)
    assert loud.get_extent()[:2] == [0, pytest.approx(94 * 256 / 24000)]
    assert [axis.get_title() for axis in axes] == ["loud", "soft"]


@pytest.mark.parametrize("bands", [False, True])
def test_frequencies_are_where_the_axis_says(bands: bool) -> None:
    axis = figure().subplots()
    draw_spectrograms([axis], {"tone": tone(0.5)}, bands=bands)
    image = axis.images[0]
    brightest = float(image.get_array().mean(axis=1).argmax()) + 1  # the upper edge of a band is the centre of its triangle
    bottom, top = image.get_extent()[2:]
    height = bottom + (top - bottom) * brightest / 81
    if bands:
        assert axis.get_ylabel() == "mel band"
        assert (bottom, top) == (0, 80)
    else:
        assert axis.get_ylabel() == "frequency (kHz)"
        assert height == pytest.approx(float(hz_to_mel(1000)), abs=top / 80)
        ticks = {label.get_text(): place for label, place in zip(axis.get_yticklabels(), axis.get_yticks(), strict=True)}
        assert list(ticks) == ["0.25", "0.5", "1", "2", "4", "8"]
        assert ticks["1"] == pytest.approx(float(hz_to_mel(1000)))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        draw_spectrograms(figure().subplots(2, 1), {"one": tone(0.5)})
    with pytest.raises(OutputError, match=r"no/picture\.png"):
        save_figure(figure(), tmp_path / "no" / "picture.png")
