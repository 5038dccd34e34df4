"""The blocks of x-vectors: dilated layers, statistics over time, and the loss that tells speakers apart.

Shapes: B batch, T steps, C channels, D width of an x-vector.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from phonograph.nn.linear import Linear
from phonograph.nn.masks import inside

__all__ = ["Wav2Vec2AMSoftmax", "Wav2Vec2TDNNLayer", "pooled_statistics"]


class Wav2Vec2TDNNLayer(nn.Module):
    """A dilated convolution written as a matrix product, and ReLU (Snyder et al. 2018, "X-vectors")."""

    def __init__(self, config: Wav2Vec2Config, layer: int) -> None:
        super().__init__()
        in_channels = config.tdnn_dim[max(layer - 1, 0)]
        self.taps, self.dilation = config.tdnn_kernel[layer], config.tdnn_dilation[layer]
        self.kernel = Linear(in_channels * self.taps, config.tdnn_dim[layer])

    @property
    def reach(self) -> int:
        """Steps by which the result is shorter."""
        return (self.taps - 1) * self.dilation

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T - reach, C')."""
        steps = x.shape[1] - self.reach
        taps = [x[:, tap * self.dilation : tap * self.dilation + steps] for tap in range(self.taps)]
        return cast(Tensor, self.kernel(torch.cat(taps, dim=-1), "relu"))


class Wav2Vec2AMSoftmax(nn.Module):
    """Cosines to one vector a class, the true one's less a margin (Wang et al. 2018, arXiv:1801.05599)."""

    scale, margin = 30.0, 0.4

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, num_labels))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """(B, D) and (B,) int64 -> the mean cross-entropy ()."""
        labels = labels.flatten()
        with torch.autocast(x.device.type, enabled=False):  # a margin of cosines needs more than 8 bits
            cosines = F.normalize(x.to(self.weight.dtype), dim=1) @ F.normalize(self.weight, dim=0)
        margins = self.margin * F.one_hot(labels, cosines.shape[1])
        return F.cross_entropy(self.scale * (cosines - margins), labels)


def pooled_statistics(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, T, C) -> mean and standard deviation over the first `lengths` (B,) steps, or all: (B, 2 C)."""
    if lengths is None:
        deviation, mean = torch.std_mean(x, dim=1)
        return torch.cat([mean, deviation], dim=-1)
    mask, count = inside(lengths, x.shape[1])[..., None], lengths[:, None]
    mean = (x * mask).sum(1) / count
    variance = ((x - mean[:, None]) * mask).square().sum(1) / (count - 1)
    some = variance > 0  # the square root has no gradient at zero, where ReLU leaves whole channels
    return torch.cat([mean, torch.where(some, variance, 1).sqrt() * some], dim=-1)
