"""Mel spectrograms, against torch's transform and an independent filter bank."""

import numpy as np
import pytest
import torch

from phonograph.audio.mel import hz_to_mel, log_mel_spectrogram, mel_filters, mel_spectrogram, mel_to_hz


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(size=5000).astype(np.float32)


def test_mel_scale() -> None:
    assert hz_to_mel(1000) == pytest.approx(1000, abs=0.1)
    assert mel_to_hz(hz_to_mel([0.0, 123.0, 8000.0])) == pytest.approx([0.0, 123.0, 8000.0])


def test_filters_are_those_of_an_independent_bank() -> None:
    audio_utils = pytest.importorskip("transformers.audio_utils")
    theirs = audio_utils.mel_filter_bank(513, 80, 0.0, 12000.0, 24000, norm=None, mel_scale="htk")
    np.testing.assert_allclose(mel_filters(80, 1024, 24000), theirs.T, atol=1e-6)


def test_energies_are_those_of_torch(noise: np.ndarray) -> None:
    window = torch.hann_window(1024)
    spectrum = torch.stft(torch.from_numpy(noise), 1024, 256, window=window, pad_mode="constant", return_complex=True)
    theirs = mel_filters(80, 1024, 24000) @ spectrum.abs().square().numpy()
    ours = mel_spectrogram(noise, 24000)
    assert ours.shape == (80, 1 + 5000 // 256)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_log_levels(noise: np.ndarray) -> None:
    levels = log_mel_spectrogram(noise, 24000, range_db=10)
    assert levels.max() == pytest.approx(0, abs=1e-4)
    assert levels.min() == -10
    quieter = log_mel_spectrogram(0.1 * noise, 24000, loudest=float(mel_spectrogram(noise, 24000).max()))
    np.testing.assert_allclose(quieter, log_mel_spectrogram(noise, 24000) - 20, atol=1e-3)


def test_silence_is_quiet() -> None:
    assert (log_mel_spectrogram(np.zeros(1000, np.float32), 24000, loudest=1.0) == -80).all()
