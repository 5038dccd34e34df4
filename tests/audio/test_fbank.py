"""Kaldi's filterbank against kaldi-native-fbank, and batches against each signal alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import peer
from torch import Tensor

from phonograph import audio
from phonograph.audio import fbank as module
from phonograph.audio.fbank import fbank, frame_count, frame_samples, hop_samples, utterance_cmvn
from phonograph.errors import AudioError

FULL_SCALE = 32768


def kaldi(samples: Tensor, sampling_rate: int = 16000, bands: int = 80) -> np.ndarray:
    knf = peer("kaldi_native_fbank")
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = sampling_rate
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = bands
    extractor = knf.OnlineFbank(options)
    extractor.accept_waveform(sampling_rate, samples.tolist())
    extractor.input_finished()
    return np.array([extractor.get_frame(i) for i in range(extractor.num_frames_ready)]).reshape(-1, bands)


def assert_kaldis(ours: Tensor, theirs: np.ndarray) -> None:
    """Equal to 1e-3, but for bands 78 dB and more below a frame's loudest, where float32 costs both their digits."""
    assert ours.shape == theirs.shape
    heard = theirs > theirs.max(axis=1, keepdims=True) - 18
    assert heard.size == 0 or heard.mean() > 0.99
    np.testing.assert_allclose(ours.numpy()[heard], theirs[heard], rtol=0, atol=1e-3)


def noise(*shape: int, amplitude: float = 0.1) -> Tensor:
    return amplitude * FULL_SCALE * torch.randn(*shape, generator=torch.Generator().manual_seed(shape[-1]))


def test_speech_is_kaldis(clip: Path) -> None:
    samples = torch.from_numpy(audio.load(clip, sampling_rate=16000, mono=True).samples[0] * FULL_SCALE)
    assert_kaldis(fbank(samples), kaldi(samples))


def test_quiet_bands_are_as_near_the_truth_as_kaldis(clip: Path) -> None:
    samples = torch.from_numpy(audio.load(clip, sampling_rate=16000, mono=True).samples[0] * FULL_SCALE)
    truth = fbank(samples.double())
    assert truth.dtype == torch.float64
    ours, theirs = (np.abs(features - truth.numpy()) for features in (fbank(samples).numpy(), kaldi(samples)))
    assert np.quantile(ours, 0.999) < 1e-3
    assert ours.max() < 3 * theirs.max()


@pytest.mark.parametrize("amplitude", [1e-4, 0.1, 1.0])
def test_noise_is_kaldis(amplitude: float) -> None:
    samples = noise(40000, amplitude=amplitude)
    assert_kaldis(fbank(samples), kaldi(samples))


@pytest.mark.parametrize("length", [0, 1, 399, 400, 401, 559, 560, 561, 719, 720, 163_840 + 240, 163_840 + 400, 200_000])
def test_lengths_are_kaldis(length: int) -> None:
    samples = noise(length)
    features = fbank(samples)
    assert features.shape == (frame_count(length), 80)
    assert_kaldis(features, kaldi(samples))


@pytest.mark.parametrize(
    ("sampling_rate", "bands"), [(8000, 23), (8000, 80), (16000, 40), (16000, 81), (22050, 80), (44100, 128), (48000, 7)]
)
def test_rates_and_bands_are_kaldis(sampling_rate: int, bands: int) -> None:
    samples = noise(20000)
    features = fbank(samples, sampling_rate, bands)
    assert len(features) == frame_count(20000, sampling_rate)
    assert_kaldis(features, kaldi(samples, sampling_rate, bands))


def test_silence_is_kaldis_floor() -> None:
    silence = torch.zeros(4000)
    np.testing.assert_array_equal(fbank(silence), kaldi(silence))
    np.testing.assert_allclose(fbank(silence), np.log(np.finfo(np.float32).eps), rtol=1e-6)


def test_an_offset_changes_nothing() -> None:
    samples = noise(4000).double()
    torch.testing.assert_close(fbank(samples + 5000), fbank(samples), rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 5000), min_size=1, max_size=6), block=st.sampled_from([1, 2, 7, 30, 1024]))
def test_batch_is_each_alone(lengths: list[int], block: int) -> None:
    signals = [noise(length) for length in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True, padding_value=1000.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CPU_BLOCK_FRAMES", block)
        features, frames = fbank(batch, lengths=torch.tensor(lengths))
    assert frames.tolist() == [frame_count(length) for length in lengths]
    assert features.shape == (len(lengths), max(frames.tolist()), 80)
    for row, count, signal in zip(features, frames.tolist(), signals, strict=True):
        torch.testing.assert_close(row[:count], fbank(signal), rtol=0, atol=1e-4)
        assert not row[count:].any()
    normalized = utterance_cmvn(features, frames, padding_value=0.25)
    for row, before, count in zip(normalized, features, frames.tolist(), strict=True):
        torch.testing.assert_close(row[:count], utterance_cmvn(before[None, :count])[0], rtol=0, atol=1e-3)
        assert (row[count:] == 0.25).all()


def test_long_batches_go_by_blocks() -> None:
    batch = noise(3, 200_000)
    features = fbank(batch)
    for row, signal in zip(features, batch, strict=True):
        torch.testing.assert_close(row, fbank(signal), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    samples = noise(4000).to(dtype)
    features = fbank(samples)
    assert features.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(features.float(), fbank(samples.float()), rtol=0, atol=1e-3)


def test_input_is_not_changed_and_needs_no_layout() -> None:
    batch = noise(4000, 3).T
    before = batch.clone()
    torch.testing.assert_close(fbank(batch), fbank(batch.contiguous()), rtol=0, atol=1e-4)
    assert torch.equal(batch, before)
    assert not fbank(noise(4000).requires_grad_()).requires_grad


def test_dither() -> None:
    torch.manual_seed(0)
    silence = torch.zeros(160_000)
    dithered = fbank(silence, dither=1.0)
    assert not torch.equal(dithered, fbank(silence, dither=1.0))
    reference = fbank(torch.randn(160_000))
    torch.testing.assert_close(dithered.mean(0), reference.mean(0), rtol=0, atol=0.5)
    torch.testing.assert_close(fbank(silence, dither=10.0).mean(), dithered.mean() + 2 * np.log(10), rtol=0, atol=0.1)


def test_frames() -> None:
    assert (frame_samples(16000), hop_samples(16000)) == (400, 160)
    assert (frame_samples(22050), hop_samples(22050)) == (551, 220)
    assert [frame_count(length) for length in (0, 399, 400, 559, 560)] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("waveforms", [torch.zeros(4000, dtype=torch.int16), torch.zeros(()), torch.zeros(1, 2, 4000)])
def test_refuses(waveforms: Tensor) -> None:
    match = rf"expected floating-point waveforms \(samples,\) or \(batch, samples\), got {waveforms.dtype} of shape \("
    with pytest.raises(AudioError, match=match):
        fbank(waveforms)


class TestNormalisation:
    def test_has_zero_mean_and_unit_variance(self) -> None:
        features = utterance_cmvn(fbank(noise(2, 40000)))
        torch.testing.assert_close(features.mean(1), torch.zeros(2, 80), rtol=0, atol=1e-5)
        torch.testing.assert_close(features.var(1, correction=0), torch.ones(2, 80), rtol=0, atol=1e-5)

    def test_parts(self) -> None:
        features = fbank(noise(1, 40000))
        mean, deviation = features.mean(1), features.std(1, correction=0)
        for means, variances, expected in (
            (True, False, features - mean),
            (False, True, features / deviation),
            (False, False, features),
        ):
            ours = utterance_cmvn(features, normalize_means=means, normalize_vars=variances)
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)

    def test_what_never_changes_becomes_zero(self) -> None:
        assert not utterance_cmvn(fbank(torch.full((2, 4000), 0.0))).any()
        assert not utterance_cmvn(fbank(noise(1, 400))).any()
        assert utterance_cmvn(fbank(noise(2, 399))).shape == (2, 0, 80)
