"""The transformer of Wav2Vec2 and what may follow it: positions by convolution, layers, adapters (arXiv:2006.11477, section 2).

Shapes: B batch, T steps, H hidden size, N heads. Activations are (B, T, H). `key_mask` (B, T) bool is false for padding.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from phonograph.nn.attention import attention_with_weights, full_attention
from phonograph.nn.conv import Conv1d, convolve
from phonograph.nn.dropout import Dropout
from phonograph.nn.linear import Linear, linear_together
from phonograph.nn.masks import inside
from phonograph.nn.packed import Derived, fast_path

__all__ = [
    "EncoderOutput",
    "Wav2Vec2Adapter",
    "Wav2Vec2AttnAdapterLayer",
    "Wav2Vec2Encoder",
    "Wav2Vec2PositionalConv",
    "Wav2Vec2WeightNorm",
]


class Wav2Vec2WeightNorm(nn.Module):
    """A convolution's weight as length and direction of each kernel step (Salimans and Kingma 2016, arXiv:1602.07868).

    The two lie under the names that `torch.nn.utils.parametrizations.weight_norm` gives them.
    """

    def __init__(self, out_channels: int, in_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.original0 = nn.Parameter(torch.empty(1, 1, kernel_size))
        self.original1 = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size))

    def forward(self) -> Tensor:
        """The weight (O, I, K), channels last in memory."""
        direction = self.original1.to(torch.promote_types(self.original1.dtype, torch.float32))
        length = torch.linalg.vector_norm(direction, dim=(0, 1), keepdim=True)
        weight: Tensor = (direction * (self.original0 / length)).to(self.original1.dtype)
        return weight.transpose(1, 2).contiguous().transpose(1, 2)


class Wav2Vec2PositionalConv(nn.Module):
    """A grouped convolution, padded by half its kernel, whose weight is normed and in evaluation computed once."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.stride: tuple[int, ...] = (1,)
        self.dilation: tuple[int, ...] = (1,)
        self.groups = config.num_conv_pos_embedding_groups
        self.kernel_size = config.num_conv_pos_embeddings
        self.bias = nn.Parameter(torch.empty(config.hidden_size))
        in_channels = config.hidden_size // self.groups
        self.parametrizations = nn.ModuleDict({"weight": Wav2Vec2WeightNorm(config.hidden_size, in_channels, self.kernel_size)})
        self._folded, self._packed = Derived(), Derived()

    @property
    def weight(self) -> Tensor:
        """(H, H / groups, K)."""
        parts = cast(Wav2Vec2WeightNorm, self.parametrizations["weight"])
        if self.training or torch.is_grad_enabled():
            return cast(Tensor, parts())
        folded: Tensor = self._folded.get(parts, parts.original0, parts.original1)
        return folded

    def forward(self, x: Tensor, activation: str) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        y = convolve(x, self, self.kernel_size // 2, self._packed if fast_path(x, self) else None, activation)
        return y[:, : x.shape[1]]  # an even kernel gives one step too many


class Wav2Vec2PositionalConvEmbedding(nn.Module):
    """Relative positions as what a wide convolution sees around each step."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.conv = Wav2Vec2PositionalConv(config)
        self.activation = config.feat_extract_activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        return cast(Tensor, self.conv(x, self.activation))


def _added(residual: Tensor, last: Linear, x: Tensor, dropout: Dropout) -> Tensor:
    """residual + dropout(last(x)), in one kernel where there is one."""
    if dropout.training and dropout.p > 0:
        return residual + cast(Tensor, dropout(last(x)))
    return cast(Tensor, last(x, residual=residual))


@dataclass(frozen=True)
class _Attending:
    """What all layers share in one call."""

    key_mask: Tensor | None
    implementation: str
    weights: bool


class Wav2Vec2Attention(nn.Module):
    """Multi-head attention of each step over all steps of its item."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = size // self.num_heads
        self.dropout = Dropout(config.attention_dropout)
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (Linear(size, size) for _ in range(4))
        self._packed = Derived()

    def forward(self, x: Tensor, how: _Attending) -> tuple[Tensor, Tensor | None]:
        """(B, T, H) -> (B, T, H) before `out_proj`, and the weights (B, N, T, T) if they are wanted."""
        heads = linear_together(x, (self.q_proj, self.k_proj, self.v_proj), self._packed)
        queries, keys, values = heads.view(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        weights = None
        if how.weights:
            mask = None if how.key_mask is None else how.key_mask[:, None, None]
            out, weights = attention_with_weights(queries, keys, values, mask, self.dropout.now)
        else:
            out = full_attention(queries, keys, values, how.key_mask, how.implementation, self.dropout.now)
        return out.transpose(1, 2).flatten(2), weights


class Wav2Vec2FeedForward(nn.Module):
    """Two linear layers, added to a residual."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.intermediate_dropout = Dropout(config.activation_dropout)
        self.intermediate_dense = Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = Linear(config.intermediate_size, config.hidden_size)
        self.output_dropout = Dropout(config.hidden_dropout)
        self.activation = config.hidden_act

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(B, T, H), (B, T, H) -> (B, T, H)."""
        inner = self.intermediate_dropout(self.intermediate_dense(x, self.activation))
        return _added(residual, self.output_dense, inner, self.output_dropout)


class Wav2Vec2AttnAdapterLayer(nn.Module):
    """What a language adds to a layer of an MMS model: a narrow bottleneck (Pratap et al. 2023, arXiv:2305.13516)."""

    def __init__(self, config: Wav2Vec2Config, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.linear_1 = Linear(config.hidden_size, width)
        self.linear_2 = Linear(width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H) -> (B, T, H), with its input added."""
        return cast(Tensor, self.linear_2(self.linear_1(self.norm(x), "relu"), residual=x))


class Wav2Vec2EncoderLayer(nn.Module):
    """Attention and feed-forward, each added to its input; norms after the sums, or, when stable, before the blocks."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.stable = config.do_stable_layer_norm
        self.attention = Wav2Vec2Attention(config)
        self.dropout = Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = Wav2Vec2FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.adapter_layer: Wav2Vec2AttnAdapterLayer | None = None
        if self.stable and config.adapter_attn_dim is not None:
            self.adapter_layer = Wav2Vec2AttnAdapterLayer(config, config.adapter_attn_dim)

    def forward(self, x: Tensor, how: _Attending) -> tuple[Tensor, Tensor | None]:
        """(B, T, H) -> (B, T, H), and attention weights (B, N, T, T) if they are wanted."""
        if self.stable:
            attended, weights = self.attention(self.layer_norm(x), how)
            x = _added(x, self.attention.out_proj, attended, self.dropout)
            x = self.feed_forward(self.final_layer_norm(x), x)
            return x if self.adapter_layer is None else self.adapter_layer(x), weights
        attended, weights = self.attention(x, how)
        x = self.layer_norm(_added(x, self.attention.out_proj, attended, self.dropout))
        return self.final_layer_norm(self.feed_forward(x, x)), weights


@dataclass
class EncoderOutput:
    """The states (B, T, H), and where wanted those before each layer and after the last, and attention weights."""

    last: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class Wav2Vec2Encoder(nn.Module):
    """Positions, layers and a norm, which comes first or, when stable, last."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.pos_conv_embed = Wav2Vec2PositionalConvEmbedding(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList([Wav2Vec2EncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.stable = config.do_stable_layer_norm
        self.layerdrop = config.layerdrop
        self.attn_implementation = "sdpa"

    def forward(
        self, x: Tensor, key_mask: Tensor | None = None, hidden_states: bool = False, attentions: bool = False
    ) -> EncoderOutput:
        """(B, T, H) -> (B, T, H); in training each layer is skipped with the probability `layerdrop`.

        Args:
            hidden_states, attentions: keep them; attention is then written out, whatever the implementation.
        """
        if key_mask is not None:
            x = x * key_mask[..., None].to(x.dtype)  # so that the position convolution sees zeros, as at the end of an item
        x = x + self.pos_conv_embed(x)
        x = self.dropout(x if self.stable else self.layer_norm(x))
        how = _Attending(key_mask, self.attn_implementation, attentions)
        states, weights = [x], []
        for layer in self.layers:
            if self.training and self.layerdrop > 0 and float(torch.rand(())) < self.layerdrop:
                states.append(x)
                continue
            x, attended = layer(x, how)
            states.append(x)
            weights.append(attended)
        if self.stable:
            x = self.layer_norm(x)
        return EncoderOutput(x, tuple(states) if hidden_states else None, tuple(weights) if attentions else None)


class Wav2Vec2AdapterLayer(nn.Module):
    """A strided convolution with a gated linear unit."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        size = config.output_hidden_size
        self.conv = Conv1d(size, 2 * size, config.adapter_kernel_size, stride=config.adapter_stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H) -> (B, about T / stride, H)."""
        return F.glu(self.conv(x), dim=-1)


class Wav2Vec2Adapter(nn.Module):
    """Fewer steps, and another width, for a decoder that follows (Li et al. 2021, arXiv:2010.12829)."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.proj = self.proj_layer_norm = None
        if config.output_hidden_size != config.hidden_size:
            self.proj = Linear(config.hidden_size, config.output_hidden_size)
            self.proj_layer_norm = nn.LayerNorm(config.output_hidden_size)
        self.layers = nn.ModuleList([Wav2Vec2AdapterLayer(config) for _ in range(config.num_adapter_layers)])

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T, H) -> (B, T', output_hidden_size); with true `lengths` (B,) in steps the convolutions see zeros after them."""
        if self.proj is not None and self.proj_layer_norm is not None:
            x = self.proj_layer_norm(self.proj(x))
        for layer, conv in zip(self.layers, self._convs, strict=True):
            if lengths is not None:
                x = x * inside(lengths, x.shape[1])[..., None].to(x.dtype)
                lengths = conv.out_lengths(lengths)
            x = layer(x)
        return x

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """Steps that come out for `lengths` (any shape, int) steps in."""
        for conv in self._convs:
            lengths = conv.out_lengths(lengths)
        return lengths

    @property
    def _convs(self) -> list[Conv1d]:
        return [cast(Wav2Vec2AdapterLayer, layer).conv for layer in self.layers]
