"""Multi-scale STFT discriminators (EnCodec, arXiv:2210.13438, section 3.4; used for Mimi, arXiv:2410.00037, section 3.3.3).

One network of the same shape for each window looks at the complex spectrum through that window and says of each place in time
and frequency how real it is. What lies between its layers serves the feature matching loss. It knows spectra (see
`phonograph.training.codec.spectra`) and no audio.

Magnitudes are compressed and layers begin at a signal's own size, of which the paper says nothing: without, discriminators had
learnt nothing after hundreds of steps (docs/log.md).

    judge = StftDiscriminators(windows=(2048, 1024, 512, 256, 128), channels=32)
    judgements = judge(spectra(audio))      # one a window, each with its scores and features

Shapes: B signals, N bins of a window, T frames, C channels of the network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from phonograph.training.codec.spectra import SPEECH_LEVEL

__all__ = ["Judgement", "StftDiscriminator", "StftDiscriminators"]

_SLOPE = 0.2  # of the leaky rectifier, below zero
_POWER = 0.3
_FAINT = 0.02  # a magnitude relative to speech's below which nothing is raised any more


@dataclass
class Judgement:
    """Scores (B, 1, T, N / 8), higher for what seems real, and what each layer before them gave (B, C, T, N / 1, 2, 4, 8)."""

    scores: Tensor
    features: list[Tensor]

    def halves(self) -> tuple["Judgement", "Judgement"]:
        """The judgements of the first and the second half of the batch."""
        (first, second), pairs = self.scores.chunk(2), [feature.chunk(2) for feature in self.features]
        return Judgement(first, [pair[0] for pair in pairs]), Judgement(second, [pair[1] for pair in pairs])


class StftDiscriminator(nn.Module):
    """Convolutions over time and frequency: one plain, three that halve the bins and look 1, 2 and 4 frames around, a last one.

    Kernels are 3 frames by 9 bins (the paper's 8, made odd so that both sides are padded alike), then 3 by 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = [_conv(2, channels, 9)] + [_conv(channels, channels, 9, 2, dilation) for dilation in (1, 2, 4)]
        self.layers = nn.ModuleList(layers)
        self.last = _conv(channels, 1, 3)

    def forward(self, spectrum: Tensor) -> Judgement:
        """(B, N, T) complex -> the judgement."""
        x = torch.view_as_real(_compressed(spectrum).transpose(1, 2)).movedim(-1, 1)  # (B, 2, T, N)
        x = x.contiguous(memory_format=torch.channels_last)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), _SLOPE, inplace=True)
            features.append(x)
        return Judgement(self.last(x), features)


class StftDiscriminators(nn.Module):
    """One discriminator for each window.

    Args:
        windows: sizes in samples, as in `Spectra`.
        channels: of each layer; 32 in the paper.
    """

    def __init__(self, windows: Sequence[int], channels: int = 32) -> None:
        super().__init__()
        self.scales = nn.ModuleDict({str(size): StftDiscriminator(channels) for size in windows})

    def forward(self, spectra: Mapping[int, Tensor]) -> list[Judgement]:
        """Spectra (B, N, T) by window, of which those of these windows are judged -> one judgement a window."""
        return [discriminator(spectra[int(size)]) for size, discriminator in self.scales.items()]


def _compressed(spectrum: Tensor) -> Tensor:
    """Magnitudes relative to speech's, raised to a power, with the phases that they have."""
    relative = spectrum / SPEECH_LEVEL
    return relative * (torch.view_as_real(relative).square().sum(-1) + _FAINT**2).pow((_POWER - 1) / 2)


def _conv(inputs: int, outputs: int, bins: int, stride: int = 1, dilation: int = 1) -> nn.Module:
    padding = (dilation, bins // 2)
    conv = nn.Conv2d(inputs, outputs, (3, bins), (1, stride), padding, (dilation, 1))
    nn.init.kaiming_normal_(conv.weight, _SLOPE)  # torch's own start makes signals 2.4 times fainter a layer
    nn.init.zeros_(cast(Tensor, conv.bias))
    normed: nn.Module = weight_norm(conv)
    return normed
