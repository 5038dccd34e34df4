"""The convolutions of Wav2Vec2: samples to one feature vector each 20 ms (arXiv:2006.11477, section 2).

Shapes: B batch, S samples, T steps of any layer, C channels. Activations are (B, T, C). No layer pads, so the steps that lie
within an item depend on that item's samples alone; only the norm over time of the group family sees the padding of a batch,
unless it is told the true lengths.
"""

from typing import cast

import torch
from torch import Tensor, nn

from phonograph.errors import AudioError
from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from phonograph.nn.activations import ACTIVATIONS
from phonograph.nn.conv import Conv1d
from phonograph.nn.linear import Linear

__all__ = ["Wav2Vec2FeatureEncoder", "Wav2Vec2FeatureProjection", "checked_lengths", "inside"]


def inside(lengths: Tensor, steps: int) -> Tensor:
    """(B,) lengths -> (B, steps) bool, true before each item's end."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


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
    lengths = attention_mask.long().sum(-1)
    if attention_mask.device.type != "cpu":
        return lengths  # a look at the values would stall a GPU
    if not torch.equal(attention_mask.bool(), inside(lengths, audio.shape[1])):
        raise AudioError("expected an attention_mask of ones, then zeros, got padding elsewhere; pad on the right")
    least = int(lengths.min())
    if least < fewest:
        raise AudioError(f"expected at least {fewest} samples in each item, which give one step, got {least}; leave it out")
    return None if least == audio.shape[1] else lengths


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


class Wav2Vec2FeatureEncoder(nn.Module):
    """Strided convolutions from samples to features."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList([Wav2Vec2ConvLayer(config, layer) for layer in range(len(config.conv_dim))])

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, S) -> (B, T, C); with the true `lengths` (B,) in samples, norms over time leave padding out."""
        x = samples[..., None]
        for layer, conv in zip(self.conv_layers, self._convs, strict=True):
            if lengths is not None:
                lengths = conv.out_lengths(lengths)
            x = layer(x, lengths)
        return x

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """Steps that come out for `lengths` (any shape, int) samples; less than one where there are too few samples."""
        for conv in self._convs:
            lengths = conv.out_lengths(lengths)
        return lengths

    @property
    def receptive_field(self) -> int:
        """Samples that a step depends on, which are the fewest that give one."""
        field = 1
        for conv in reversed(self._convs):
            field = (field - 1) * conv.stride[0] + conv.kernel_size[0]
        return field

    @property
    def _convs(self) -> list[Conv1d]:
        return [cast(Wav2Vec2ConvLayer, layer).conv for layer in self.conv_layers]


class Wav2Vec2FeatureProjection(nn.Module):
    """Features, normed, to the width of the transformer."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> (B, T, H), and the normed features (B, T, C), which the quantiser sees."""
        normed = self.layer_norm(features)
        return self.dropout(self.projection(normed)), normed
