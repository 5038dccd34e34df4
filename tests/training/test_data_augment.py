"""Augmentation against formulas of its own: ratios, filters, resampling and decay as asked for, and nothing read back."""

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from phonograph import Audio, audio
from phonograph.errors import ConfigError
from phonograph.training.data import Augmenter, AugmentOptions
from phonograph.training.data.augment import (
    add_noise,
    band_filters,
    change_speed,
    coloured_noise,
    convolve,
    fft_samples,
    recordings,
    room_responses,
)

RATE = 16000


def batch(*lengths: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise of different levels, zeros beyond the lengths."""
    generator = torch.Generator().manual_seed(seed)
    waveforms = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveforms[row, :length] = 0.02 * (row + 1) * torch.randn(length, generator=generator)
    return waveforms, torch.tensor(lengths)


def decibels(power: Tensor | float) -> float:
    return 10 * math.log10(float(power))


def test_noise_has_the_ratio_asked_for() -> None:
    waveforms, lengths = batch(16000, 7000, 12345, 1)
    noise = 3 * batch(16000, 16000, 16000, 16000, seed=1)[0] ** 3
    wanted = torch.tensor([-5.0, 0.0, 12.5, 30.0])
    mixed = add_noise(waveforms, lengths, noise, wanted)
    for row, length in enumerate(lengths.tolist()):
        added = (mixed - waveforms)[row].double()
        measured = decibels(waveforms[row].double().square().sum() / added[:length].square().sum())
        assert measured == pytest.approx(float(wanted[row]), abs=0.1)
        assert not added[length:].any()
        assert length < 2 or float(torch.corrcoef(torch.stack([added[:length], noise[row, :length].double()]))[0, 1]) > 0.999


def test_silence_stays_as_it_is() -> None:
    waveforms, lengths = batch(500, 500)
    waveforms[1] = 0
    noise = torch.stack([torch.zeros(500), torch.ones(500)])
    assert torch.equal(add_noise(waveforms, lengths, noise, torch.tensor([0.0, 0.0])), waveforms)


@pytest.mark.parametrize("delay", [0, 5])
def test_convolution_is_the_direct_one(delay: int) -> None:
    waveforms, _ = batch(900, 900, 900)
    kernels = torch.randn(3, 201, generator=torch.Generator().manual_seed(1))
    found = convolve(waveforms, kernels, delay=delay)
    for signal, kernel, result in zip(waveforms.double(), kernels.double(), found, strict=True):
        direct = [
            sum(float(kernel[k]) * float(signal[n - k]) for k in range(201) if 0 <= n - k < 900)
            for n in (delay, delay + 1, delay + 250, delay + 894)
        ]
        np.testing.assert_allclose(result[[0, 1, 250, 894]].numpy(), direct, atol=1e-5)
        whole = np.convolve(signal.numpy(), kernel.numpy())[delay : delay + 900]
        np.testing.assert_allclose(result.numpy(), whole, atol=1e-5)


@pytest.mark.parametrize("factor", [0.9, 1.1, 0.95, 1.25, 2.0])
def test_speed_is_resampling(factor: float) -> None:
    seconds = np.arange(12000) / 10000
    tones = sum(np.sin(2 * np.pi * hz * seconds + hz) for hz in (110, 700, 1700)) / 4
    waveforms = torch.zeros(2, 13001)
    waveforms[0, :12000] = torch.from_numpy(tones).float()
    waveforms[1, :7003] = torch.from_numpy(tones[:7003]).float()
    lengths = torch.tensor([12000, 7003])
    changed, shorter = change_speed(waveforms, lengths, factor)
    assert changed.shape[1] == math.ceil(round(13001 / factor, 6))
    assert shorter.tolist() == [math.ceil(round(length / factor, 6)) for length in (12000, 7003)]
    for row, count in enumerate(shorter.tolist()):
        clip = Audio(waveforms[row, : int(lengths[row])].numpy(), round(10000 * factor))
        expected = torch.from_numpy(clip.resample(10000).samples[0])
        inner = slice(100, count - 100)  # beginnings and ends ring differently
        error = (changed[row, inner] - expected[inner]).square().mean() / expected[inner].square().mean()
        assert decibels(error) < -50
        assert not changed[row, count:].any()


def test_speed_is_exact_under_autocast() -> None:
    waveforms, lengths = batch(4000, 3000)
    expected, _ = change_speed(waveforms, lengths, 0.9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = change_speed(waveforms, lengths, 0.9)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_pitch_and_duration(factor: float) -> None:
    tone = torch.sin(2 * math.pi * 1000 / RATE * torch.arange(RATE))[None]
    changed, lengths = change_speed(tone, torch.tensor([RATE]), factor)
    assert int(lengths) == pytest.approx(RATE / factor, abs=1)
    spectrum = torch.fft.rfft(changed[0] * torch.hann_window(changed.shape[1])).abs()
    assert float(spectrum.argmax()) * RATE / changed.shape[1] == pytest.approx(1000 * factor, abs=1.5)


def test_speech_that_is_faster_does_not_alias() -> None:
    tone = torch.sin(2 * math.pi * 7600 / RATE * torch.arange(RATE))[None]  # 8360 Hz when faster, above half the rate
    changed, _ = change_speed(tone, torch.tensor([RATE]), 1.1)
    assert decibels(changed[0, 200:-200].square().mean() / tone.square().mean()) < -55
    tone = torch.sin(2 * math.pi * 7000 / RATE * torch.arange(RATE))[None]
    kept, _ = change_speed(tone, torch.tensor([RATE]), 0.9)
    assert decibels(kept[0, 200:-200].square().mean() / tone.square().mean()) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("rate", [16000, 24000])
def test_bands_are_as_designed(rate: int) -> None:
    bands = [(300.0, 3400.0), (0.0, 4000.0), (500.0, 12000.0)]
    filters = band_filters(bands, rate)
    assert filters.shape[1] % 2 == 1
    assert torch.equal(filters, filters.flip(1))
    response = np.abs(np.fft.rfft(filters.double().numpy(), 1 << 15))
    hz = np.fft.rfftfreq(1 << 15, 1 / rate)
    for (low, high), level in zip(bands, response, strict=True):
        passed = (hz > low + (100 if low else -1)) & (hz < (high - 100 if high < rate / 2 else rate))
        stopped = (hz < low - 100) | (hz > (high + 100 if high < rate / 2 else rate))
        assert np.abs(20 * np.log10(level[passed])).max() < 0.01
        assert stopped.any()
        assert 20 * np.log10(level[stopped].max()) <= -60
        assert 20 * np.log10(np.interp(high if high < rate / 2 else low, hz, level)) == pytest.approx(-6, abs=0.1)


def test_rooms_decay_as_asked_for() -> None:
    rooms = room_responses(40, RATE, [0.3, 0.3], seed=1).double()
    assert rooms.shape == (40, 4800)
    assert torch.equal(rooms[:, 0], torch.ones(40).double())
    assert not rooms[:, 1 : int(0.003 * RATE)].any()
    ratios = [decibels(1 / room[1:].square().sum()) for room in rooms]
    assert min(ratios) >= -1e-4
    assert max(ratios) <= 15.0001
    assert max(ratios) - min(ratios) > 10
    # Schroeder's backward integral of all rooms, each of energy 1, falls by 60 dB in 0.3 s.
    tails = rooms[:, 1:] / rooms[:, 1:].square().sum(1, keepdim=True).sqrt()
    left = tails.square().sum(0).flip(0).cumsum(0).flip(0).log10() * 10
    at_5, at_25 = (int((left < left[0] - fall).nonzero()[0]) for fall in (5, 25))
    assert (at_25 - at_5) / RATE * 3 == pytest.approx(0.3, rel=0.03)
    assert torch.equal(room_responses(3, RATE, seed=2), room_responses(3, RATE, seed=2))
    assert room_responses(3, RATE).shape == (3, round(0.8 * RATE))


def test_noise_falls_with_frequency() -> None:
    torch.manual_seed(0)
    noise = coloured_noise(torch.empty(200, 8192))
    assert noise.shape == (200, 8192)
    power = torch.fft.rfft(noise.double()).abs().square()
    octaves = torch.stack([power[:, 64 << k : 128 << k].mean(1).log2() for k in range(6)])
    slopes = -(octaves[-1] - octaves[0]) / 5
    assert float(slopes.min()) == pytest.approx(0, abs=0.15)
    assert float(slopes.max()) == pytest.approx(2, abs=0.15)
    assert float(slopes.mean()) == pytest.approx(1, abs=0.2)
    assert 1 < coloured_noise(torch.empty(2, 777)).shape[1] == 777


def test_sizes_of_spectra_are_few() -> None:
    sizes = [fft_samples(samples) for samples in range(1, 300_000, 7)]
    assert all(size >= samples for samples, size in zip(range(1, 300_000, 7), sizes, strict=True))
    assert all(size <= 1.25 * samples + 4 for samples, size in zip(range(1, 300_000, 7), sizes, strict=True))
    assert len(set(sizes)) <= 4 * 18
    assert [fft_samples(samples) for samples in (4, 5, 8, 9, 1024, 1025, 1281)] == [4, 5, 8, 10, 1024, 1280, 1536]


EVERYTHING = AugmentOptions(
    speed_factors=[0.9, 1.0, 1.1], room_probability=0.5, noise_probability=0.5, band_probability=0.5, gain_db=6.0
)


def test_by_default_nothing_is_done() -> None:
    waveforms, lengths = batch(4000, 3000)
    for options, strength in ((AugmentOptions(), 1.0), (EVERYTHING, 0.0)):
        same, unchanged = Augmenter(options, RATE)(waveforms, lengths, strength)
        assert torch.equal(same, waveforms)
        assert torch.equal(unchanged, lengths)


def test_the_seed_repeats_it_and_padding_stays_zero() -> None:
    waveforms, lengths = batch(8000, 5000, 6500, 7999)
    augment = Augmenter(EVERYTHING, RATE)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append([augment(waveforms, lengths) for _ in range(6)])
    for (first, first_lengths), (again, again_lengths) in zip(runs[0], runs[1], strict=True):
        assert torch.equal(first, again)
        assert torch.equal(first_lengths, again_lengths)
        for row, length in enumerate(first_lengths.tolist()):
            assert first[row, :length].isfinite().all()
            assert not first[row, length:].any()
    assert {result.shape[1] for result, _ in runs[0] + runs[2]} == {8000, 8889, 7273}
    assert any(a.shape != b.shape or not torch.equal(a, b) for (a, _), (b, _) in zip(runs[0], runs[2], strict=True))


@pytest.mark.parametrize("name", ["room_probability", "noise_probability", "band_probability"])
def test_the_share_asked_for_is_changed(name: str) -> None:
    torch.manual_seed(0)
    waveforms, lengths = batch(*[800] * 600)
    for strength, share in ((1.0, 0.3), (0.5, 0.15)):
        changed, _ = Augmenter(AugmentOptions(**{name: 0.3}), RATE)(waveforms, lengths, strength)
        assert float((changed != waveforms).any(1).float().mean()) == pytest.approx(share, abs=0.07)


def test_noise_of_every_kind_has_the_ratio(tmp_path: Path) -> None:
    torch.manual_seed(0)
    audio.save(tmp_path / "hum.wav", 0.3 * np.sin(2 * np.pi * 50 * np.arange(3 * RATE) / RATE), RATE)
    options = AugmentOptions(noise_probability=1.0, noise_folder=str(tmp_path), snr_db=[7.0, 7.0])
    waveforms, lengths = batch(*[3200] * 30, 1600)
    noisy, _ = Augmenter(options, RATE)(waveforms, lengths)
    added = (noisy - waveforms).double()
    ratios = (waveforms.double().square().sum(1) / added.square().sum(1)).log10() * 10
    np.testing.assert_allclose(ratios.numpy(), 7.0, atol=0.1)
    spectra = torch.fft.rfft(added).abs().square()
    hums = spectra[:, 9:12].sum(1) > 0.9 * spectra.sum(1)
    correlations = torch.corrcoef(torch.cat([waveforms.double(), added]))[:31, 31:].abs()
    babble = correlations.fill_diagonal_(0).amax(0)  # talkers are shifted, so they don't correlate as they stand
    assert 4 <= int(hums.sum()) <= 17  # a third of 31 expected
    assert float(babble[~hums].max()) < 0.2


def test_levels_stay_within_the_range() -> None:
    torch.manual_seed(0)
    waveforms, lengths = batch(*[100] * 400)
    louder, _ = Augmenter(AugmentOptions(gain_db=6.0), RATE)(waveforms, lengths)
    gains = 20 * (louder / waveforms)[:, 0].log10()
    assert float(gains.min()) == pytest.approx(-6, abs=0.2)
    assert float(gains.max()) == pytest.approx(6, abs=0.2)
    np.testing.assert_allclose((louder / waveforms).std(1).numpy(), 0, atol=1e-5)


def test_recorded_rooms_begin_with_their_direct_sound(tmp_path: Path) -> None:
    response = np.zeros(2000)
    response[137], response[1137] = -0.5, 0.25
    audio.save(tmp_path / "room.wav", response, RATE, subtype="FLOAT")
    options = AugmentOptions(room_probability=1.0, room_folder=str(tmp_path), reverberation_seconds=[0.1, 0.125])
    waveforms, lengths = batch(5000)
    changed, _ = Augmenter(options, RATE)(waveforms, lengths)
    expected = waveforms.clone()
    expected[0, 1000:] -= 0.5 * waveforms[0, :4000]
    np.testing.assert_allclose(changed.numpy(), expected.numpy(), atol=2e-5)


def test_recordings_are_cut_or_repeated(tmp_path: Path) -> None:
    for name, values in {"a": [0.5, 0.25], "b": np.arange(100) / 128}.items():
        audio.save(tmp_path / f"{name}.wav", np.array(values), RATE)
    found = recordings(tmp_path, RATE, seconds=5 / RATE)
    assert found.tolist() == [[0.5, 0.25, 0.5, 0.25, 0.5], (torch.arange(5) / 128).tolist()]
    assert len(recordings(tmp_path, RATE, seconds=0.01, most=1)) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="expected utterances, got none in"):
        recordings(tmp_path / "empty", RATE, seconds=1)


def test_nothing_is_read_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tensors on "meta" have no values: whatever asked for one would fail. Autocast doesn't know the device.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    augment = Augmenter(EVERYTHING, RATE, device="meta")
    for _ in range(4):
        waveforms, lengths = augment(torch.empty(4, 8000, device="meta"), torch.empty(4, dtype=torch.int64, device="meta"))
        assert waveforms.shape[1] in (8000, 8889, 7273)
        assert lengths.shape == (4,)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"^AugmentOptions: room_probability=2 must be .*; gain_db=-1 must be .*>= 0$"):
        AugmentOptions(room_probability=2, gain_db=-1)
    with pytest.raises(ConfigError, match=r"snr_db=\[20, 5\] must be two numbers, the lower first"):
        AugmentOptions(snr_db=[20, 5])
    with pytest.raises(ConfigError, match=r"speed_factors=\[\] must have a value"):
        AugmentOptions(speed_factors=[])
    for bands in ([], [(3000.0, 300.0)], [(9000.0, 10000.0)]):
        with pytest.raises(ConfigError, match="expected bands within 0 to 8000 Hz, the lower edge first"):
            band_filters(bands, RATE)
