"""Waveforms to what models take, for whole batches on their device: what the feature extractors compute, without leaving it.

    values, mask = wav2vec2_inputs(waveforms, lengths, feature_extractor)
    features, frames = speech_to_text_features(waveforms, lengths)

Augmented speech exists on the device only, so features are made there too. Tests hold these to the feature extractors' numbers.

Shapes: B batch, S samples at 16 kHz in [-1, 1], L frames. What lies beyond an item's length is 0.
"""

import torch
from torch import Tensor

from phonograph.audio.fbank import fbank, utterance_cmvn
from phonograph.models.wav2vec2.feature_extraction_wav2vec2 import Wav2Vec2FeatureExtractor
from phonograph.nn.masks import inside

__all__ = ["full_precision", "normalized_waveforms", "speech_to_text_features", "wav2vec2_inputs"]

_FULL_SCALE = 2.0**15
_VARIANCE_FLOOR = 1e-7


def full_precision(device: torch.device) -> torch.autocast:
    """No autocast inside: products of samples and of spectra need more than the eight bits of bfloat16."""
    return torch.autocast(device.type, enabled=False)


def wav2vec2_inputs(waveforms: Tensor, lengths: Tensor, extractor: Wav2Vec2FeatureExtractor) -> tuple[Tensor, Tensor | None]:
    """What a model takes, by the settings of its feature extractor; models of the group family were trained without a mask.

    Args:
        waveforms: (B, S).
        lengths: (B,) int64 on the same device.

    Returns:
        (B, S), and the mask (B, S) int64 or None.
    """
    if extractor.do_normalize:
        waveforms = normalized_waveforms(waveforms, lengths)
    return waveforms, inside(lengths, waveforms.shape[1]).long() if extractor.return_attention_mask else None


def normalized_waveforms(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Each clip of zero mean and unit variance over its own samples, as `Wav2Vec2FeatureExtractor` makes it.

    Args:
        waveforms: (B, S).
        lengths: (B,) int64 on the same device.

    Returns:
        (B, S).
    """
    mask = inside(lengths, waveforms.shape[1])
    count = lengths[:, None].to(waveforms.dtype)
    mean = (waveforms * mask).sum(1, keepdim=True) / count
    centred = (waveforms - mean) * mask
    variance = centred.square().sum(1, keepdim=True) / count
    return centred * torch.rsqrt(variance + _VARIANCE_FLOOR)


def speech_to_text_features(waveforms: Tensor, lengths: Tensor, bins: int = 80) -> tuple[Tensor, Tensor]:
    """Normalised filterbank features, as `Speech2TextFeatureExtractor` makes them, in float32 throughout.

    Args:
        waveforms: (B, S).
        lengths: (B,) int64 on the same device, of at least 25 ms each.
        bins: mel bands.

    Returns:
        (B, L, bins), and the frames of each item (B,).
    """
    with full_precision(waveforms.device):
        features, frames = fbank(waveforms * _FULL_SCALE, 16000, bins, lengths=lengths)
        return utterance_cmvn(features, frames), frames
