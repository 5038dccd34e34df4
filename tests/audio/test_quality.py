"""Quality measures: their ends, their order, and the published figures of the bundled model."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peers
import pytest

import phonograph
from phonograph import audio
from phonograph.audio.quality import MEASURES, measure, mel_distance, pesq, stoi
from phonograph.errors import AudioError, MissingExtraError
from phonograph.loading.hub import BUNDLED_SPEECH, bundled_models

CARD = bundled_models()["mimi-mini"] / "README.md"


def published_stoi() -> dict[str, dict[int, float]]:
    """{clip: {codebooks: STOI}} from the table in the model's card."""
    rows = re.findall(r"^\| (\w[\w.-]+) \| \d+ \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", CARD.read_text(), re.MULTILINE)
    return {clip: dict(zip((4, 8, 16), map(float, figures), strict=True)) for clip, *figures in rows}


PUBLISHED = published_stoi()
HALVES = (slice(0, 160_000), slice(160_000, 320_000))


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


def noisy(clip: audio.Audio, level: float) -> audio.Audio:
    noise = np.random.default_rng(0).normal(size=clip.samples.shape).astype(np.float32)
    return audio.Audio(clip.samples + level * noise, clip.sampling_rate)


def test_ends_and_order(clip: audio.Audio) -> None:
    peers.peer("pesq")
    little, much = noisy(clip, 0.003), noisy(clip, 0.03)
    assert stoi(clip, clip) == pytest.approx(1)
    assert 0.2 < stoi(clip, much) < stoi(clip, little) < 1
    assert pesq(clip, clip) == pytest.approx(4.644, abs=5e-4)  # the highest score of P.862.2
    assert 1 < pesq(clip, much) < pesq(clip, little) < 3
    assert mel_distance(clip, clip) == 0
    assert 0 < mel_distance(clip, little) < mel_distance(clip, much) < 80


def test_a_factor_is_so_many_decibels() -> None:
    noise = np.random.default_rng(0).normal(size=24000).astype(np.float32)
    assert mel_distance(audio.Audio(noise, 24000), audio.Audio(noise / 2, 24000)) == pytest.approx(6.02, abs=0.01)


def test_pesq_is_that_of_its_package_at_16_khz(clip: audio.Audio) -> None:
    package = peers.peer("pesq")
    first, second = (item.resample(16000).samples[0] for item in (clip, noisy(clip, 0.01)))
    assert pesq(clip, noisy(clip, 0.01)) == package.pesq(16000, first, second, "wb")


def test_pesq_of_long_recordings_is_the_mean_of_their_parts(clip: audio.Audio) -> None:
    """Of 20 s, two halves; silence has no part in it."""
    package = peers.peer("pesq")
    speech = clip.resample(16000).samples
    half = np.tile(speech, 3)[:, :160_000]
    louder = [np.concatenate([half, gain * half], axis=1) for gain in (1.0, 0.5)]
    long, other = audio.Audio(louder[0], 16000), noisy(audio.Audio(louder[1], 16000), 0.01)
    halves = [package.pesq(16000, *(item.samples[0, part] for item in (long, other)), "wb") for part in HALVES]
    assert pesq(long, other) == pytest.approx(np.mean(halves), rel=1e-6)
    assert halves[0] != pytest.approx(halves[1], rel=0.01)
    silence = np.zeros((1, 160_000), np.float32)
    padded = [audio.Audio(np.concatenate([item.samples[:, HALVES[0]], silence], axis=1), 16000) for item in (long, other)]
    assert pesq(*padded) == pytest.approx(halves[0], rel=1e-6)


def test_pesq_takes_many_stretches_of_speech() -> None:
    """At once, the package would end the process: 40 s of noise in bursts of 0.21 s."""
    peers.peer("pesq")
    places = np.arange(40 * 16000)
    bursts = 0.1 * np.random.default_rng(0).standard_normal(len(places)) * (places / 16000 % 0.42 < 0.21)
    many = audio.Audio(bursts.astype(np.float32), 16000)
    assert pesq(many, many) == pytest.approx(4.644, abs=5e-4)


def test_refusals(clip: audio.Audio) -> None:
    for package in ("pystoi", "pesq"):
        peers.peer(package)
    shorter = audio.Audio(clip.samples[:, :-1], 24000)
    for compare in (*MEASURES.values(), measure):
        with pytest.raises(AudioError, match="expected two mono recordings of one rate and length, got 1 channels of 81812"):
            compare(clip, shorter)
    second = audio.Audio(clip.samples[:, :2400], 24000)
    with pytest.raises(AudioError, match=r"expected at least 0\.4 s of speech to measure STOI on, got 0\.10 s"):
        stoi(second, second)
    silence = audio.Audio(np.zeros_like(clip.samples), 24000)
    for first, other in ((second, second), (silence, silence), (clip, silence), (silence, clip)):
        with pytest.raises(AudioError, match=r"expected at least 0\.25 s of speech in both recordings to measure PESQ on, got"):
            pesq(first, other)


@pytest.mark.parametrize(
    ("name", "figure", "how", "extra"), [("pystoi", "STOI", stoi, "demo"), ("pesq", "PESQ", pesq, "pesq")], ids=["stoi", "pesq"]
)
def test_without_a_package(
    clip: audio.Audio,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    figure: str,
    how: Callable[[audio.Audio, audio.Audio], float],
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"{figure} needs the package {name},.*pip install 'phonograph\[{extra}\]'"):
        how(clip, clip)
    quality = measure(clip, clip)
    assert figure not in quality.figures
    assert quality.figures["mel distance"] == 0
    assert quality.left_out[figure].startswith(f"{figure} needs the package {name}")


def test_measure_is_all_measures(clip: audio.Audio) -> None:
    for package in ("pystoi", "pesq"):
        peers.peer(package)
    other = noisy(clip, 0.01)
    quality = measure(clip, other)
    assert quality.figures == {name: how(clip, other) for name, how in MEASURES.items()}
    assert list(quality.figures) == ["mel distance", "STOI", "PESQ"]
    assert quality.left_out == {}
    short = audio.Audio(clip.samples[:, :2400], 24000)
    assert measure(short, short).left_out.keys() == {"STOI", "PESQ"}
