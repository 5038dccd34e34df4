"""SpecAugment on features (Park et al. 2019, arXiv:1904.08779): bands and stretches of time that a model must do without.

    features = mask_features(features, lengths, SpecAugmentOptions())

For whole batches on any device, drawn from torch's default generator there, nothing read back. Without time warping, which
the paper finds to matter least. Wav2Vec2 has its own form, inside the model, on what its convolutions give.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from phonograph.configuration import CheckedOptions, Rule

__all__ = ["SpecAugmentOptions", "mask_features"]


@dataclass(frozen=True)
class SpecAugmentOptions(CheckedOptions):
    """How much is masked; the defaults are the paper's policy LD for LibriSpeech.

    Raises:
        ConfigError: values that break a rule; the message holds every fault.
    """

    frequency_masks: Annotated[int, Rule("masks over bands", minimum=0)] = 2
    frequency_width: Annotated[int, Rule("bands of a mask at most", minimum=0)] = 27
    time_masks: Annotated[int, Rule("masks over frames", minimum=0)] = 2
    time_width: Annotated[int, Rule("frames of a mask at most", minimum=0)] = 100
    time_share: Annotated[float, Rule("share of an utterance that a mask covers at most", minimum=0, maximum=1)] = 1.0


def mask_features(
    features: Tensor, lengths: Tensor, options: SpecAugmentOptions, *, value: float = 0.0, strength: float = 1.0
) -> Tensor:
    """Features with masks over bands and over frames, each utterance's its own; widths and places have equal chances.

    Args:
        features: (batch, frames, bands).
        lengths: (batch,) frames of each utterance, on the same device.
        value: what masks are filled with; 0 is the mean of normalised features.
        strength: multiplies the largest widths; 0 masks nothing.

    Returns:
        (batch, frames, bands), another tensor.
    """
    batch, frames, bands = features.shape
    widest = torch.full((batch,), min(options.frequency_width, bands) * strength, device=features.device)
    masked = _spans(widest, torch.full((batch,), bands, device=features.device), bands, options.frequency_masks)[:, None]
    widest = (options.time_share * lengths).clamp_max(options.time_width) * strength
    masked = masked | _spans(widest, lengths, frames, options.time_masks)[..., None]
    return features.masked_fill(masked, value)


def _spans(widest: Tensor, lengths: Tensor, size: int, count: int) -> Tensor:
    """(batch, size) bool: `count` spans within each length, of 0 to `widest` places."""
    draws = torch.rand(2, len(lengths), count, 1, device=lengths.device)
    width = (draws[0] * (widest.floor()[:, None, None] + 1)).floor()
    start = (draws[1] * (lengths[:, None, None] - width + 1)).floor()
    places = torch.arange(size, device=lengths.device)
    return ((places >= start) & (places < start + width)).any(1)
