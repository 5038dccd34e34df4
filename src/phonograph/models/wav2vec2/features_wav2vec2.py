"""The convolutions of Wav2Vec2: samples to one feature vector each 20 ms (arXiv:2006.11477, section 2).

Shapes: B batch, S samples, T steps of any layer, C channels. Activations are (B, T, C). No layer pads, so the steps that lie
within an item depend on that item's samples alone; only the norm over time of the group family sees the padding of a batch,
unless it is told the true lengths.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from phonograph.errors import AudioError
from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from phonograph.nn.activations import ACTIVATIONS
from phonograph.nn.conv import Conv1d
from phonograph.nn.dropout import Dropout
from phonograph.nn.linear import Linear
from phonograph.nn.masks import can_look, inside, lengths_of
from phonograph.nn.packed import fast_path, packed_linear

__all__ = ["PatchSums", "Wav2Vec2FeatureEncoder", "Wav2Vec2FeatureProjection", "checked_lengths"]

_TILE_STEPS = 100
"""Features computed at a time on a CPU, so that all layers' activations stay in its cache (docs/log.md)."""


def checked_lengths(audio: Tensor, attention_mask: Tensor | None, fewest: int) -> Tensor | None:
    """True lengths (B,) in samples of audio (B, S) with its mask (B, S); None where nothing is padded.

    Raises:
        AudioError: shapes that do not fit, padding that is not on the right, or an item of less than `fewest` samples.
    """
    if audio.dim() != 2 or not audio.is_floating_point():
        raise AudioError(
            f"expected floating-point audio of shape (batch, samples), got {audio.dtype} of shape {tuple(audio.shape)}; "
            "Wav2Vec2FeatureExtractor makes that shape"
        )
    if audio.shape[1] < fewest:
        raise AudioError(f"expected at least {fewest} samples, which give one step, got {audio.shape[1]}; pass a longer clip")
    if attention_mask is None:
        return None
    if attention_mask.shape != audio.shape:
        raise AudioError(
            f"expected an attention_mask of shape {tuple(audio.shape)}, got {tuple(attention_mask.shape)}; "
            "pass the one that Wav2Vec2FeatureExtractor returns"
        )
    lengths = lengths_of(attention_mask, "an attention_mask")
    if not can_look(lengths):
        return lengths
    least = int(lengths.min())
    if least < fewest:
        raise AudioError(f"expected at least {fewest} samples in each item, which give one step, got {least}; leave it out")
    return None if least == audio.shape[1] else lengths


@dataclass(frozen=True)
class PatchSums:
    """Sums over all patches of K samples that the first convolution looks at: what a norm over time needs to know of them.

    The mean and the variance of its outputs follow from these without computing the outputs. Sums of parts of a recording
    can be added.

    Attributes:
        count: (B,) number of patches.
        total: (B, K) sum of the patches.
        squares: (B, K, K) sum of their outer products. All are float64.
    """

    count: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def of(cls, samples: Tensor, kernel: int, stride: int, patches: Tensor | None = None) -> "PatchSums":
        """Of samples (B, S), or of the first `patches` (B,) of each item."""
        all_patches = samples.to(torch.float64).unfold(1, kernel, stride)
        if patches is None:
            patches = torch.full((samples.shape[0],), all_patches.shape[1], device=samples.device)
        else:
            all_patches = all_patches * inside(patches, all_patches.shape[1])[..., None]
        return cls(patches.double(), all_patches.sum(1), all_patches.transpose(1, 2) @ all_patches)

    def __add__(self, other: "PatchSums") -> "PatchSums":
        return PatchSums(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def to(self, device: torch.device) -> "PatchSums":
        """The same sums on `device`."""
        return PatchSums(self.count.to(device), self.total.to(device), self.squares.to(device))

    def scaled(self, mean: float, deviation: float) -> "PatchSums":
        """Of the same samples, less `mean`, divided by `deviation`."""
        shifted = self.total - self.count[:, None] * mean
        cross = mean * (shifted[:, :, None] + shifted[:, None])
        squares = self.squares - cross - self.count[:, None, None] * mean**2
        return PatchSums(self.count, shifted / deviation, squares / deviation**2)

    def outputs(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance (B, C) of what a convolution by weight (C, 1, K) and bias (C,) makes of the patches."""
        rows = weight[:, 0].double()
        mean = self.total / self.count[:, None]
        covariance = self.squares / self.count[:, None, None] - mean[:, :, None] * mean[:, None]
        variance = ((rows @ covariance) * rows).sum(-1).clamp_min(0)
        return mean @ rows.t() + (0 if bias is None else bias.double()), variance


class Wav2Vec2TimeNorm(nn.GroupNorm):
    """Each channel normed over time: `torch.nn.GroupNorm` with a group a channel, over (B, T, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); mean and variance are those of the first `lengths` (B,) steps, or of all."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if lengths is None:
            variance, mean = torch.var_mean(wide, dim=1, correction=0, keepdim=True)
        else:
            mask, count = inside(lengths, x.shape[1])[..., None], lengths[:, None, None]
            mean = (wide * mask).sum(1, keepdim=True) / count
            variance = ((wide - mean) * mask).square().sum(1, keepdim=True) / count
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normed: Tensor = torch.addcmul(self.bias - mean * scale, wide, scale)
        return normed.to(x.dtype)

    def folded(self, conv: Conv1d, sums: PatchSums) -> tuple[Tensor, Tensor]:
        """Weights (B, C, K) and biases (B, C) that convolve and norm in one, given the sums of all patches."""
        mean, variance = sums.outputs(conv.weight, conv.bias)
        scale = self.weight.double() * torch.rsqrt(variance + self.eps)
        own = 0 if conv.bias is None else conv.bias.double()
        bias = self.bias.double() + (own - mean) * scale
        weight = conv.weight[:, 0].double() * scale[..., None]
        return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


class Wav2Vec2ConvLayer(nn.Module):
    """A convolution, a norm (over time, over channels, or none) and an activation."""

    def __init__(self, config: Wav2Vec2Config, layer: int) -> None:
        super().__init__()
        channels = config.conv_dim[layer]
        self.conv = Conv1d(
            config.conv_dim[layer - 1] if layer else 1,
            channels,
            config.conv_kernel[layer],
            stride=config.conv_stride[layer],
            bias=config.conv_bias,
        )
        self.layer_norm: nn.LayerNorm | Wav2Vec2TimeNorm | None = None
        if config.feat_extract_norm == "layer":
            self.layer_norm = nn.LayerNorm(channels)
        elif layer == 0:
            self.layer_norm = Wav2Vec2TimeNorm(channels)
        self.activation = config.feat_extract_activation

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T', C'); `lengths` (B,) are those of the result."""
        if self.layer_norm is None:
            return cast(Tensor, self.conv(x, self.activation))
        x = self.conv(x)
        x = self.layer_norm(x, lengths) if isinstance(self.layer_norm, Wav2Vec2TimeNorm) else self.layer_norm(x)
        return ACTIVATIONS[self.activation](x)

    def convolved(self, samples: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(B, S) -> (B, T', C') by a weight (B, C', K) and a bias (B, C') of each item, or of all, with the norm in them."""
        weight, bias = weight.expand(len(samples), -1, -1), bias.expand(len(samples), -1)
        patches = samples.unfold(1, weight.shape[2], self.conv.stride[0])
        if not fast_path(samples, self):
            return ACTIVATIONS[self.activation](torch.baddbmm(bias[:, None], patches, weight.transpose(1, 2)))
        rows = zip(patches.contiguous(), weight, bias, strict=True)
        return torch.stack([packed_linear(*item, activation=self.activation) for item in rows])


class Wav2Vec2FeatureEncoder(nn.Module):
    """Strided convolutions from samples to features."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList([Wav2Vec2ConvLayer(config, layer) for layer in range(len(config.conv_dim))])

    def forward(self, samples: Tensor, lengths: Tensor | None = None, sums: PatchSums | None = None) -> Tensor:
        """(B, S) -> (B, T, C).

        Args:
            lengths: (B,) true samples; norms over time leave out what comes after them.
            sums: of the recordings that these are parts of, or of the one; norms over time are those of the recordings.
        """
        fast = fast_path(samples, self)
        folded = None
        if self._time_norm is not None and (sums is not None or fast):
            conv = self._convs[0]
            if sums is None:
                patches = None if lengths is None else conv.out_lengths(lengths)
                sums = PatchSums.of(samples, conv.kernel_size[0], conv.stride[0], patches)
            folded = self._time_norm.folded(conv, sums)
        if not fast:
            return self._features(samples, lengths, folded)
        steps = int(self.out_lengths(torch.tensor(samples.shape[1])))
        tile = min(steps, _TILE_STEPS)
        hop, field = self.hop, self.receptive_field
        # The last tile begins early: packed weights fit the length that they were packed for.
        starts = [*range(0, steps - tile, tile), steps - tile]
        tiles = [self._features(samples[:, s * hop : (s + tile - 1) * hop + field], lengths, folded) for s in starts]
        overlap = starts[-2] + tile - starts[-1] if len(starts) > 1 else 0
        return torch.cat([*tiles[:-1], tiles[-1][:, overlap:]], dim=1)

    def _features(self, samples: Tensor, lengths: Tensor | None, folded: tuple[Tensor, Tensor] | None) -> Tensor:
        x = samples[..., None]
        for number, layer in enumerate(self._layers):
            if lengths is not None:
                lengths = layer.conv.out_lengths(lengths)
            x = layer.convolved(samples, *folded) if number == 0 and folded is not None else layer(x, lengths)
        return x

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """Steps that come out for `lengths` (any shape, int) samples; less than one where there are too few samples."""
        for conv in self._convs:
            lengths = conv.out_lengths(lengths)
        return lengths

    def recording_sums(self, parts: Iterable[Tensor]) -> PatchSums | None:
        """What the norm over time needs to know of recordings given in consecutive parts (B, any number of samples).

        Returns:
            None for a model without such a norm. The parts are worked through in any case.

        Raises:
            AudioError: fewer samples than the first convolution takes.
        """
        kernel, stride = self._convs[0].kernel_size[0], self._convs[0].stride[0]
        sums, held = None, None
        for part in parts:
            held = part if held is None else torch.cat([held, part], dim=1)
            patches = (held.shape[1] - kernel) // stride + 1
            if patches > 0 and self._time_norm is not None:
                more = PatchSums.of(held, kernel, stride)
                sums = more if sums is None else sums + more
            held = held[:, max(patches, 0) * stride :]
        if sums is None and self._time_norm is not None:
            raise AudioError(f"expected at least {kernel} samples, which give one step, got fewer; pass a longer recording")
        return sums

    @property
    def hop(self) -> int:
        """Samples from one step to the next."""
        return math.prod(conv.stride[0] for conv in self._convs)

    @property
    def receptive_field(self) -> int:
        """Samples that a step depends on, which are the fewest that give one."""
        field = 1
        for conv in reversed(self._convs):
            field = (field - 1) * conv.stride[0] + conv.kernel_size[0]
        return field

    @property
    def _time_norm(self) -> Wav2Vec2TimeNorm | None:
        """The norm that sees a whole recording, in the models that have one."""
        norm = self._layers[0].layer_norm
        return norm if isinstance(norm, Wav2Vec2TimeNorm) else None

    @property
    def _layers(self) -> list[Wav2Vec2ConvLayer]:
        return [cast(Wav2Vec2ConvLayer, layer) for layer in self.conv_layers]

    @property
    def _convs(self) -> list[Conv1d]:
        return [layer.conv for layer in self._layers]


class Wav2Vec2FeatureProjection(nn.Module):
    """Features, normed, to the width of the transformer."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout = Dropout(config.feat_proj_dropout)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> (B, T, H), and the normed features (B, T, C), which the quantiser sees."""
        normed = self.layer_norm(features)
        return self.dropout(self.projection(normed)), normed
