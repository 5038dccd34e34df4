"""Quality measures: their ends, their order, and the published figures of the bundled model."""

import builtins
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phonograph
from phonograph import audio
from phonograph.audio.quality import mel_distance, stoi
from phonograph.errors import AudioError, MissingExtraError
from phonograph.loading.hub import BUNDLED_SPEECH, bundled_models

CARD = bundled_models()["mimi-mini"] / "README.md"


def published_stoi() -> dict[str, dict[int, float]]:
    """{clip: {codebooks: STOI}} from the table in the model's card."""
    rows = re.findall(r"^\| (\w[\w.-]+) \| \d+ \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", CARD.read_text(), re.MULTILINE)
    return {clip: dict(zip((4, 8, 16), map(float, figures), strict=True)) for clip, *figures in rows}


PUBLISHED = published_stoi()


@pytest.fixture(scope="module")
def clip() -> audio.Audio:
    return audio.load(next(BUNDLED_SPEECH.glob("lj*.flac")), sampling_rate=24000, mono=True)


def test_the_card_has_every_clip() -> None:
    assert PUBLISHED.keys() == {path.stem for path in BUNDLED_SPEECH.glob("*.flac")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_reconstruction_is_as_good_as_published(name: str) -> None:
    original = audio.load(Path(BUNDLED_SPEECH) / f"{name}.flac", sampling_rate=24000, mono=True)
    tokens = phonograph.encode(original)
    for codebooks, figure in PUBLISHED[name].items():
        assert stoi(original, phonograph.decode(tokens.truncate(codebooks))) == pytest.approx(figure, rel=0.01)


def test_ends_and_order(clip: audio.Audio) -> None:
    assert stoi(clip, clip) == pytest.approx(1)
    assert mel_distance(clip, clip) == 0
    noise = np.random.default_rng(0).normal(size=clip.samples.shape).astype(np.float32)
    little, much = (audio.Audio(clip.samples + level * noise, 24000) for level in (0.003, 0.03))
    assert 0.2 < stoi(clip, much) < stoi(clip, little) < 1
    assert 0 < mel_distance(clip, little) < mel_distance(clip, much) < 80


def test_a_factor_is_so_many_decibels() -> None:
    noise = np.random.default_rng(0).normal(size=24000).astype(np.float32)
    assert mel_distance(audio.Audio(noise, 24000), audio.Audio(noise / 2, 24000)) == pytest.approx(6.02, abs=0.01)


def test_refusals(clip: audio.Audio) -> None:
    shorter = audio.Audio(clip.samples[:, :-1], 24000)
    for measure in (stoi, mel_distance):
        with pytest.raises(AudioError, match="expected two mono recordings of one rate and length, got 1 channels of 81812"):
            measure(clip, shorter)
    second = audio.Audio(clip.samples[:, :2400], 24000)
    with pytest.raises(AudioError, match=r"expected at least 0\.4 s of speech to measure STOI on, got 0\.10 s"):
        stoi(second, second)


def test_without_pystoi(clip: audio.Audio, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "pystoi":
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"STOI needs the package pystoi.*pip install 'phonograph\[demo\]'"):
        stoi(clip, clip)
