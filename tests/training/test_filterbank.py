"""A convolution that begins as a filter bank: its bands against the mel scale, its phases, and the tasks that begin so."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from bundled_clips import recipe, table
from tiny_checkpoints import SMALL

from phonograph import Wav2Vec2Config
from phonograph.audio.mel import hz_to_mel, mel_to_hz
from phonograph.errors import ConfigError
from phonograph.models.wav2vec2.features_wav2vec2 import Wav2Vec2FeatureEncoder
from phonograph.training import RunContext
from phonograph.training.filterbank import start_as_filterbank

BANK = {
    "conv_dim": [160, 16],
    "conv_kernel": [400, 3],
    "conv_stride": [160, 2],
    "conv_bias": True,
    "feat_extract_norm": "layer",
}


@pytest.fixture(scope="module")
def bank() -> Wav2Vec2FeatureEncoder:
    encoder = Wav2Vec2FeatureEncoder(Wav2Vec2Config(**BANK))
    start_as_filterbank(encoder, 16000)
    return encoder


def test_bands_lie_on_the_mel_scale_and_are_as_wide(bank: Wav2Vec2FeatureEncoder) -> None:
    filters = bank.conv_layers[0].conv.weight.detach()[:, 0].double().numpy()[::4]
    response = np.abs(np.fft.rfft(filters, 16384))
    hz = np.arange(response.shape[1]) * 16000 / 16384
    edges = mel_to_hz(np.linspace(hz_to_mel(60), hz_to_mel(8000), 42))
    assert np.abs(hz[response.argmax(1)] - edges[1:-1]).max() < 12
    above_half = (response > response.max(1, keepdims=True) / 2).sum(1) * 16000 / 16384
    # As wide as its mel band, but for those that 25 ms cannot tell apart.
    wanted = (edges[2:] - edges[:-2]) / 2
    np.testing.assert_allclose(above_half[18:-2], wanted[18:-2], rtol=0.15)


def test_four_phases_rectified_add_up_to_a_magnitude(bank: Wav2Vec2FeatureEncoder) -> None:
    conv, seconds = bank.conv_layers[0].conv, torch.arange(400) / 16000
    centre = mel_to_hz(np.linspace(hz_to_mel(60), hz_to_mel(8000), 42))[20]
    tones = torch.stack([torch.cos(2 * math.pi * centre * seconds + phase) for phase in torch.linspace(0, 6, 40)])
    with torch.no_grad():
        heard = torch.nn.functional.conv1d(tones[:, None], conv.weight)[:, 76:80, 0]
    together = heard.relu().sum(1)
    assert heard.sum(1).abs().max() < 1e-3 * together.min()  # opposite pairs
    assert together.max() / together.min() < 1.02 * math.sqrt(2)  # |cos| + |sin| is from 1 to its square root of 2
    assert heard[:, 0].relu().max() > 50 * heard[:, 0].relu().min()  # as one phase alone is not


def test_filters_are_as_large_as_he_s_start_makes_them(bank: Wav2Vec2FeatureEncoder) -> None:
    conv = bank.conv_layers[0].conv
    assert conv.weight.detach().square().sum((1, 2)).mean().item() == pytest.approx(2, rel=1e-4)
    assert not conv.bias.any()


@pytest.mark.parametrize(
    ("fields", "got"), [({"conv_dim": [150, 16]}, "150 channels and 400"), ({"conv_kernel": [10, 3]}, "160 ch")]
)
def test_what_cannot_be_a_bank_is_refused(fields: dict[str, list[int]], got: str) -> None:
    encoder = Wav2Vec2FeatureEncoder(Wav2Vec2Config(**BANK | fields))
    with pytest.raises(ConfigError, match=f"multiple of 4 channels and at least 160 samples long, to begin as .* got {got}"):
        start_as_filterbank(encoder, 16000)


@pytest.mark.parametrize(("task", "wanted"), [("ctc", True), ("ctc", False), ("pretraining", True), ("pretraining", False)])
def test_tasks_begin_so_if_they_are_told_to(task: str, wanted: bool, bank: Wav2Vec2FeatureEncoder, tmp_path: Path) -> None:
    model = SMALL | BANK | {"num_codevectors_per_group": 8}
    built = recipe(task, table(tmp_path), model=model, filterbank_start=wanted).build(RunContext(tmp_path / "run"))
    first = built.model.wav2vec2.feature_extractor.conv_layers[0].conv
    assert torch.equal(first.weight, bank.conv_layers[0].conv.weight) == wanted


@pytest.mark.parametrize("task", ["ctc", "pretraining"])
def test_a_checkpoint_keeps_its_convolutions(task: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="init='x', filterbank_start=True: a checkpoint keeps its convolutions; leave one out"
    ):
        recipe(task, table(tmp_path), init="x", filterbank_start=True)
