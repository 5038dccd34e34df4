"""The encoder and the decoder of Speech2Text, from their blocks up.

Read from top to bottom: the convolutions that make time four times shorter, attention, the layers, and the two stacks of them.

Shapes: B batch, L feature frames, F mel bins, S encoder steps, T target tokens, d width, H heads, D head size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.errors import AudioError, ConfigError
from phonograph.models.base import as_asked
from phonograph.models.speech_to_text.configuration_speech_to_text import Speech2TextConfig
from phonograph.models.speech_to_text.outputs_speech_to_text import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Tensors,
)
from phonograph.models.speech_to_text.positions_speech_to_text import Speech2TextSinusoidalPositionalEmbedding
from phonograph.models.speech_to_text.stepping_speech_to_text import Speech2TextDecoderState, new_cache, new_writers
from phonograph.nn.attention import attention_function, attention_with_weights, full_attention, windowed_attention
from phonograph.nn.conv import channels_last_
from phonograph.nn.dropout import Dropout
from phonograph.nn.linear import Linear
from phonograph.nn.masks import can_look, inside, lengths_of
from phonograph.nn.packed import Derived, fast_path, packed_conv

__all__ = ["Conv1dSubsampler", "Speech2TextAttention", "Speech2TextDecoder", "Speech2TextEncoder", "subsampled"]

Pair = tuple[Tensor, Tensor]

# ------------------------------------------------------------------------------------------------------------- convolutions


class Conv1dSubsampler(nn.Module):
    """Convolutions of stride 2, each gated by half of its channels (arXiv:1911.08460)."""

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__()
        count, kernels = config.num_conv_layers, config.conv_kernel_sizes
        sizes_in = [config.input_feat_per_channel * config.input_channels] + [config.conv_channels // 2] * (count - 1)
        sizes_out = [config.conv_channels] * (count - 1) + [2 * config.d_model]
        self.conv_layers = nn.ModuleList(
            nn.Conv1d(size_in, size_out, kernel, stride=2, padding=kernel // 2)
            for size_in, size_out, kernel in zip(sizes_in, sizes_out, kernels, strict=True)
        )
        for conv in self.conv_layers:
            channels_last_(cast(nn.Conv1d, conv))
        self._packed = [Derived() for _ in kernels]

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, L, F) of true lengths (B,), None where all are L -> (B, S, d)."""
        for conv, packed in zip(self.conv_layers, self._packed, strict=True):
            if lengths is not None:
                x = x.masked_fill(~inside(lengths, x.shape[1])[..., None], 0)
                lengths = _halved(lengths)
            x = F.glu(self._convolve(x, cast(nn.Conv1d, conv), packed), dim=-1)
        return x

    def _convolve(self, x: Tensor, conv: nn.Conv1d, packed: Derived) -> Tensor:
        image, padding = x.transpose(1, 2).unsqueeze(2), cast(tuple[int], conv.padding)[0]
        if fast_path(x, self):
            y = packed_conv(image, conv, padding, packed)
        else:
            y = F.conv2d(image, conv.weight.unsqueeze(2), conv.bias, (1, 2), (0, padding))
        return y.squeeze(2).transpose(1, 2)


Lengths = TypeVar("Lengths", int, Tensor)


def _halved(lengths: Lengths) -> Lengths:
    return (lengths - 1) // 2 + 1


def subsampled(lengths: Lengths, config: Speech2TextConfig) -> Lengths:
    """Encoder steps that so many frames become."""
    for _ in range(config.num_conv_layers):
        lengths = _halved(lengths)
    return lengths


# ------------------------------------------------------------------------------------------------------- attention and layers


@dataclass(frozen=True)
class _Visible:
    """Which of S keys each of the last T queries sees: those that are no padding (B, S) and, if causal, not after it."""

    key_mask: Tensor | None = None
    causal: bool = False

    def mask(self, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """Broadcasts to (B, H, T, S) bool; None is everywhere."""
        padding = None if self.key_mask is None else self.key_mask[:, None, None]
        if not self.causal:
            return padding
        position = torch.arange(keys, device=device)
        own = position[keys - queries :, None]
        # A token sees itself even where it is padding: a softmax over nothing would be no number.
        return position <= own if padding is None else ((position < own) & padding) | (position == own)


@dataclass
class _Run:
    """How one call computes, and what it collects on the way."""

    implementation: str
    output_attentions: bool
    output_hidden_states: bool
    hidden_states: list[Tensor] = field(default_factory=list)
    attentions: list[Tensor] = field(default_factory=list)
    cross_attentions: list[Tensor] = field(default_factory=list)

    def collect(self, hidden: Tensor) -> None:
        if self.output_hidden_states:
            self.hidden_states.append(hidden)

    def collected(self) -> dict[str, Tensors | None]:
        return {
            "hidden_states": tuple(self.hidden_states) if self.output_hidden_states else None,
            "attentions": tuple(self.attentions) if self.output_attentions else None,
        }


class _Past:
    """The keys and values that one call of the decoder attends to, and where its tokens begin."""

    def __init__(self, state: Speech2TextDecoderState | None, encoder_states: Tensor | None, batch: int, count: int) -> None:
        if state is None and encoder_states is None:
            raise ConfigError("expected encoder_hidden_states or past_key_values, got neither; run the encoder first")
        if state is not None:
            state.check_fits(batch, count)
        self.state, self.encoder_states = state, encoder_states
        self.steps = 0 if state is None else state.steps

    def tokens(self, layer: int, attention: "Speech2TextAttention", normed: Tensor) -> Pair:
        keys, values = attention.keys_values(normed)
        return (keys, values) if self.state is None else self.state.append(layer, keys, values)

    def encoder(self, layer: int, attention: "Speech2TextAttention") -> Pair:
        if self.state is None or (self.encoder_states is not None and torch.is_grad_enabled()):
            return attention.keys_values(cast(Tensor, self.encoder_states))  # with gradients, which a state never has
        keys, values = self.state.cross_attention[layer].to(attention.k_proj.weight.dtype).unbind(0)
        return keys, values


class Speech2TextAttention(nn.Module):
    """Multi-head attention with biases."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = Dropout(dropout)
        self.k_proj = Linear(embed_dim, embed_dim)
        self.v_proj = Linear(embed_dim, embed_dim)
        self.q_proj = Linear(embed_dim, embed_dim)
        self.out_proj = Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, keys_values: Pair, visible: _Visible, run: _Run, into: list[Tensor]) -> Tensor:
        """(B, T, d) over keys and values (B, H, S, D) -> what `out_proj` takes, (B, T, d).

        The attention weights go `into` the list where they are wanted.
        """
        queries, (keys, values) = self._heads(self.q_proj(x)), keys_values
        count, steps, dropout = queries.shape[2], keys.shape[2], self.dropout.now
        if run.output_attentions:
            mask = visible.mask(count, steps, x.device)
            out, weights = attention_with_weights(queries, keys, values, mask, dropout)
            into.append(weights)
        elif not visible.causal:
            out = full_attention(queries, keys, values, visible.key_mask, run.implementation, dropout)
        elif visible.key_mask is None and count == steps:
            out = windowed_attention(queries, keys, values, steps, run.implementation, dropout)
        else:
            mask = visible.mask(count, steps, x.device)
            out = attention_function(run.implementation)(queries, keys, values, mask, dropout)
        return out.transpose(1, 2).flatten(2)

    def keys_values(self, x: Tensor) -> Pair:
        """(B, S, d) -> keys and values, (B, H, S, D) each."""
        return self._heads(self.k_proj(x)), self._heads(self.v_proj(x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)  # (B, T, d) -> (B, H, T, D)


class _Layer(nn.Module):
    """What encoder and decoder layers share; a base class, because checkpoints name its parts without a prefix."""

    def __init__(self, config: Speech2TextConfig, heads: int, width: int) -> None:
        super().__init__()
        self.dropout, self.activation_dropout = Dropout(config.dropout), Dropout(config.activation_dropout)
        self.activation = config.activation_function
        self.self_attn = Speech2TextAttention(config.d_model, heads, config.attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = Linear(config.d_model, width)
        self.fc2 = Linear(width, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def _add(self, x: Tensor, linear: nn.Module, inner: Tensor) -> Tensor:
        """The residual x (B, T, d) plus a linear layer's output."""
        if self.training:
            return x + cast(Tensor, self.dropout(linear(inner)))
        return cast(Tensor, linear(inner, residual=x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d), with the residual."""
        inner = self.fc1(self.final_layer_norm(x), activation=self.activation)
        return self._add(x, self.fc2, self.activation_dropout(inner))


class Speech2TextEncoderLayer(_Layer):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__(config, config.encoder_attention_heads, config.encoder_ffn_dim)

    def forward(self, x: Tensor, visible: _Visible, run: _Run) -> Tensor:
        """(B, S, d) -> (B, S, d)."""
        normed = self.self_attn_layer_norm(x)
        attended = self.self_attn(normed, self.self_attn.keys_values(normed), visible, run, run.attentions)
        return self._feed_forward(self._add(x, self.self_attn.out_proj, attended))


class Speech2TextDecoderLayer(_Layer):
    """Pre-norm self-attention, attention over the encoder, and feed-forward."""

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__(config, config.decoder_attention_heads, config.decoder_ffn_dim)
        self.encoder_attn = Speech2TextAttention(config.d_model, config.decoder_attention_heads, config.attention_dropout)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, index: int, past: _Past, visible: tuple[_Visible, _Visible], run: _Run) -> Tensor:
        """(B, T, d) in layer `index` -> (B, T, d); what tokens see, and what of the encoder."""
        normed = self.self_attn_layer_norm(x)
        keys_values = past.tokens(index, self.self_attn, normed)
        attended = self.self_attn(normed, keys_values, visible[0], run, run.attentions)
        x = self._add(x, self.self_attn.out_proj, attended)
        normed, keys_values = self.encoder_attn_layer_norm(x), past.encoder(index, self.encoder_attn)
        attended = self.encoder_attn(normed, keys_values, visible[1], run, run.cross_attentions)
        return self._feed_forward(self._add(x, self.encoder_attn.out_proj, attended))


# ------------------------------------------------------------------------------------------------------ encoder and decoder


class _Stack(nn.Module):
    """What encoder and decoder share: a stack of layers that training may skip, and how attention is computed."""

    def __init__(self, config: Speech2TextConfig, layers: Sequence[nn.Module], layerdrop: float) -> None:
        super().__init__()
        self.config = config
        self.dropout, self.layerdrop = Dropout(config.dropout), layerdrop
        self.embed_scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.layers = nn.ModuleList(layers)
        self.layer_norm = nn.LayerNorm(config.d_model)
        self.attn_implementation = "sdpa"

    def _run(self, output_attentions: bool | None, output_hidden_states: bool | None) -> _Run:
        config = self.config
        return _Run(
            self.attn_implementation,
            config.output_attentions if output_attentions is None else output_attentions,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )

    def _kept_layers(self) -> list[tuple[int, nn.Module]]:
        """The layers of this call, each left out with probability `layerdrop` in training (arXiv:1909.11556)."""
        skips = self.training and self.layerdrop > 0
        return [(i, layer) for i, layer in enumerate(self.layers) if not (skips and torch.rand(()) < self.layerdrop)]


class Speech2TextEncoder(_Stack):
    """Features (B, L, F) to steps (B, S, d): convolutions, positions, layers, a norm."""

    def __init__(self, config: Speech2TextConfig) -> None:
        layers = [Speech2TextEncoderLayer(config) for _ in range(config.encoder_layers)]
        super().__init__(config, layers, config.encoder_layerdrop)
        self.conv = Conv1dSubsampler(config)
        self.embed_positions = Speech2TextSinusoidalPositionalEmbedding(
            config.max_source_positions, config.d_model, config.pad_token_id
        )

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Features (B, L, F), attention_mask (B, L) with 0 for padding on the right -> steps (B, S, d).

        Raises:
            AudioError: features of another shape or dtype, a mask that does not fit, or a clip without frames; the values of
                a mask are looked at on the CPU only.
        """
        self._check(input_features)
        run = self._run(output_attentions, output_hidden_states)
        lengths = None if attention_mask is None else _lengths(attention_mask, input_features)
        x = self.conv(input_features, lengths) * self.embed_scale
        first = self.embed_positions.first
        positions = self.embed_positions.table(x.shape[1])[first : first + x.shape[1]]
        x = self.dropout(x + positions.detach())
        visible = _Visible(None if lengths is None else inside(subsampled(lengths, self.config), x.shape[1]))
        for _, layer in self._kept_layers():
            run.collect(x)
            x = layer(x, visible, run)
        x = self.layer_norm(x)
        run.collect(x)
        return as_asked(BaseModelOutput(x, **run.collected()), return_dict, self.config)

    def _check(self, features: Tensor) -> None:
        bins = self.config.input_feat_per_channel * self.config.input_channels
        if features.dim() != 3 or features.shape[2] != bins or features.shape[1] == 0:
            raise AudioError(
                f"expected features of shape (batch, frames, {bins}) with at least one frame, got {tuple(features.shape)}; "
                "Speech2TextFeatureExtractor makes that shape"
            )
        dtype = self.layer_norm.weight.dtype
        if features.dtype != dtype and not torch.is_autocast_enabled(features.device.type):
            raise AudioError(f"expected features in the model's {dtype}, got {features.dtype}; pass features.to(model.dtype)")


class Speech2TextDecoder(_Stack):
    """Tokens (B, T) over encoder steps (B, S, d) to (B, T, d): embeddings, positions, layers, a norm."""

    def __init__(self, config: Speech2TextConfig) -> None:
        layers = [Speech2TextDecoderLayer(config) for _ in range(config.decoder_layers)]
        super().__init__(config, layers, config.decoder_layerdrop)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.embed_positions = Speech2TextSinusoidalPositionalEmbedding(
            config.max_target_positions, config.d_model, config.pad_token_id
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Speech2TextDecoderState | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple[Any, ...]:
        """Tokens to states of what follows each.

        Args:
            input_ids: (B, T) int64, or in their place inputs_embeds (B, T, d), before scaling.
            attention_mask: (B, past + T), 0 for tokens that none attends to.
            encoder_hidden_states: (B, S, d).
            encoder_attention_mask: (B, S), 0 for padding.
            past_key_values: what came before, one beam a clip; updated in place.
            use_cache: return a state to go on from; None as config.use_cache says, but not in training mode.
            output_attentions, output_hidden_states: return them too; None as the configuration says.
            return_dict: False for a tuple; None as config.return_dict says.

        Raises:
            ConfigError: not one of the two inputs, or more tokens than the state has room for.
            StreamError: a state of another batch size.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("expected either decoder_input_ids or decoder_inputs_embeds, got both or neither; pass one")
        embedded = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        batch, count = embedded.shape[:2]
        encoder_mask = None if encoder_attention_mask is None else encoder_attention_mask.bool()
        cached = self.config.use_cache and not self.training if use_cache is None else use_cache
        state = past_key_values
        if state is None and cached and encoder_hidden_states is not None:
            room = max(self.config.max_target_positions, count)
            state = self.new_state(encoder_hidden_states, encoder_mask, 1, room)
        past = _Past(state, encoder_hidden_states, batch, count)
        x = embedded * self.embed_scale + self._positions(input_ids, past.steps, count)
        x = self.dropout(x)
        run = self._run(output_attentions, output_hidden_states)
        token_mask = None if attention_mask is None else attention_mask.bool()
        encoder_mask = state.encoder_mask if state is not None and encoder_mask is None else encoder_mask
        visible = _Visible(token_mask, causal=True), _Visible(encoder_mask)
        for index, layer in self._kept_layers():
            run.collect(x)
            x = layer(x, index, past, visible, run)
        x = self.layer_norm(x)
        run.collect(x)
        if state is not None:
            state.steps += count
        crossed = tuple(run.cross_attentions) if run.output_attentions else None
        output = BaseModelOutputWithPastAndCrossAttentions(x, state, **run.collected(), cross_attentions=crossed)
        return as_asked(output, return_dict, self.config)

    def _positions(self, input_ids: Tensor | None, steps: int, count: int) -> Tensor:
        if input_ids is not None:
            return cast(Tensor, self.embed_positions(input_ids, steps))
        start = self.embed_positions.first + steps
        return self.embed_positions.table(steps + count)[start : start + count].detach()

    @torch.no_grad()
    def new_state(
        self, encoder_hidden_states: Tensor, encoder_mask: Tensor | None, beams: int, max_steps: int
    ) -> Speech2TextDecoderState:
        """A state of no tokens yet, for U x beams rows; arguments as of `new_decoder_state`."""
        utterances, steps, size = encoder_hidden_states.shape
        layers, heads = len(self.layers), self.config.decoder_attention_heads
        crossed = new_cache(encoder_hidden_states, (layers, 2, utterances, heads, steps, size // heads))
        for layer, place in zip(self.layers, crossed.unbind(0), strict=True):
            attention = cast(Speech2TextDecoderLayer, layer).encoder_attn
            for part, value in zip(place.unbind(0), attention.keys_values(encoder_hidden_states), strict=True):
                part.copy_(value)
        rows = utterances * beams
        room = new_cache(encoder_hidden_states, (layers, 2, rows, heads, max_steps, size // heads))
        return Speech2TextDecoderState(room, crossed, new_writers(room, rows, max_steps), encoder_mask)


def _lengths(attention_mask: Tensor, features: Tensor) -> Tensor | None:
    """True lengths (B,) from a mask that pads on the right; None where it pads nothing."""
    mask = attention_mask.bool()
    if mask.shape != features.shape[:2]:
        raise AudioError(
            f"expected an attention_mask of shape {tuple(features.shape[:2])}, got {tuple(mask.shape)}; "
            "pass the one that Speech2TextFeatureExtractor returns"
        )
    lengths = lengths_of(mask, "an attention_mask")
    if not can_look(mask):
        return lengths
    if bool(mask.all()):
        return None
    if not bool(lengths.all()):
        raise AudioError("expected at least one frame in every clip, got an attention_mask row of zeros; drop that clip")
    return lengths
