"""A first convolution that begins as a mel filter bank, and goes on learning from there.

    start_as_filterbank(model.wav2vec2.feature_extractor, 16000)

From few hours a model learns to hear frequencies slowly, and until it does CTC says nothing but blanks. So the filters of
its first layer begin as Gabor wavelets whose bands are spaced and as wide as those of a mel filter bank (Zeghidour et al. 2018,
arXiv:1711.01161). Each band has four filters, a quarter of a period apart: rectified, they add up to the band's magnitude,
wherever in its period a window happens to begin. The model's class and configuration stay what they are.
"""

import math
from typing import cast

import numpy as np
import torch

from phonograph.audio.mel import hz_to_mel, mel_to_hz
from phonograph.errors import ConfigError
from phonograph.models.wav2vec2.features_wav2vec2 import Wav2Vec2ConvLayer, Wav2Vec2FeatureEncoder

__all__ = ["start_as_filterbank"]

_PHASES = 4
_LOWEST_HZ = 60.0
_SHORTEST_SECONDS = 0.01
_FULL_WIDTH = 2 * math.sqrt(2 * math.log(2))  # at half height, of a Gaussian in standard deviations
_LEVEL_HZ = 300.0
_TILT = 0.8


@torch.no_grad()
def start_as_filterbank(encoder: Wav2Vec2FeatureEncoder, sampling_rate: int) -> None:
    """Set the filters of the first convolution to those of a bank, its bias to 0.

    Speech has less energy the higher the frequency; from 300 Hz on gains rise by about as much, so that no band drowns the
    others in the norm that follows. On the whole filters are as large as He's start makes them.

    Args:
        encoder: the convolutions of a model; channels of the first are the bands' four filters each, band after band.
        sampling_rate: in Hz, of what it takes.

    Raises:
        ConfigError: channels that are no multiple of four, or filters too short to tell frequencies from each other.
    """
    conv = cast(Wav2Vec2ConvLayer, encoder.conv_layers[0]).conv
    channels, _, taps = conv.weight.shape
    shortest = round(_SHORTEST_SECONDS * sampling_rate)
    if channels % _PHASES or taps < shortest:
        raise ConfigError(
            f"expected a first convolution with a multiple of {_PHASES} channels and at least {shortest} samples long, to "
            f"begin as a filter bank, got {channels} channels and {taps} samples; change conv_dim and conv_kernel"
        )
    edges = mel_to_hz(np.linspace(hz_to_mel(_LOWEST_HZ), hz_to_mel(sampling_rate / 2), channels // _PHASES + 2))
    centres, widths = torch.from_numpy(edges[1:-1]), torch.from_numpy(edges[2:] - edges[:-2]) / 2
    seconds = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / sampling_rate
    spreads = _FULL_WIDTH / (2 * math.pi * widths)
    envelopes = torch.exp(-((seconds / spreads[:, None]) ** 2) / 2) * torch.hann_window(taps + 2, periodic=False)[1:-1]
    phases = torch.arange(_PHASES)[:, None] * (2 * math.pi / _PHASES)
    waves = torch.cos(2 * math.pi * centres[:, None, None] * seconds + phases)
    gains = centres.clamp_min(_LEVEL_HZ) ** _TILT / envelopes.sum(1)
    filters = (gains[:, None] * envelopes)[:, None] * waves  # (bands, phases, taps)
    filters *= math.sqrt(2 / filters.square().sum(-1).mean())
    conv.weight.copy_(filters.flatten(0, 1)[:, None])
    if conv.bias is not None:
        conv.bias.zero_()
