"""What a Speech2Text decoder remembers, and the fast way to step it by one token in every row.

    state = model.new_decoder_state(encoder_states, encoder_mask, beams=5, max_steps=200)
    logits = model.decode_step(tokens, state)
    state.reorder(rows)

A step computes what the decoder's layers compute for a whole sequence, from the same weights put together for few rows: one
product for queries, keys and values, residuals added inside products, attention over the written part of the cache, and over
the encoder once for all beams of an utterance. It knows no search: `Speech2TextStepper` is the `StepModel` of
decoding/seq2seq.py.

On a CPU the caches are in float32 at least, whatever the model's type, as attention of few rows is slow in bfloat16; and only
what the beams of some utterance do not share is reordered.

Shapes: U utterances of K beams each, R = U x K rows, utterance-major; L layers, M most steps, S encoder steps, d width,
H heads, D head size, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.errors import ConfigError, StreamError
from phonograph.nn.activations import ACTIVATIONS
from phonograph.nn.graphs import CapturedStep
from phonograph.nn.packed import pack_linear, packed_linear
from phonograph.nn.state import State

if TYPE_CHECKING:
    from phonograph.models.speech_to_text.encoder_decoder_speech_to_text import Speech2TextDecoder, Speech2TextDecoderLayer

__all__ = ["Speech2TextDecoderState", "Speech2TextStepper", "StepWeights"]


@dataclass
class Speech2TextDecoderState(State):
    """Keys and values of every layer, of tokens and of encoder steps.

    Args:
        self_attention: (L, 2, R, H, M, D), written in place; what lies at `steps` and after it is arbitrary.
        cross_attention: (L, 2, U, H, S, D), one for all beams of an utterance, computed once.
        writers: (R, M) int64, the row that wrote what a row remembers of a step; its own from `steps` on.
        encoder_mask: (U, S) bool, false for padding; None is no padding.
        steps: tokens that every row has had.
        shared: the first steps that all beams of each utterance remember alike.
    """

    self_attention: Tensor
    cross_attention: Tensor
    writers: Tensor
    encoder_mask: Tensor | None = None
    steps: int = 0
    shared: int = 0

    @property
    def batch_size(self) -> int:
        """Rows, R."""
        return self.self_attention.shape[2]

    @property
    def beams(self) -> int:
        """Rows of each utterance, K."""
        return self.batch_size // max(self.cross_attention.shape[2], 1)

    @property
    def max_steps(self) -> int:
        """Tokens that there is room for, M."""
        return self.self_attention.shape[4]

    def tensors(self) -> Iterator[Tensor]:
        """The tensors that there are."""
        yield self.self_attention
        yield self.cross_attention
        yield self.writers
        if self.encoder_mask is not None:
            yield self.encoder_mask

    def reset(self, mask: Tensor | None = None) -> None:
        """Forget the tokens of all rows, in place; the utterances stay.

        Raises:
            StreamError: only some rows are to forget, but all share one number of steps.
        """
        if mask is not None:
            raise StreamError("expected all rows to be reset, which share their steps, got a mask of some; use select")
        self.steps = self.shared = 0
        self.writers.copy_(new_writers(self.writers, *self.writers.shape))

    @torch.no_grad()
    def reorder(self, indices: Tensor) -> None:
        """Let row i continue, in place, what row `indices[i]` of the same utterance was; `indices` is (R,) int64."""
        written = self.self_attention[..., self.shared : self.steps, :]
        if indices.device.type != "cpu":
            written.copy_(written.index_select(2, indices))
            return  # what is shared would be known only after waiting for the device
        for layer in written.unbind(0):  # a layer's copy stays in the processor's cache
            layer.copy_(layer.index_select(1, indices))
        writers = self.writers[:, self.shared : self.steps]
        writers.copy_(writers.index_select(0, indices))
        of_beams = writers.unflatten(0, (-1, self.beams))
        self.shared += int((of_beams == of_beams[:, :1]).all(1).all(0).cumprod(0).sum())

    @torch.no_grad()
    def select(self, indices: Tensor) -> "Speech2TextDecoderState":
        """A new state of the utterances `indices` (N,) int64 with all their rows, sharing no memory with this one."""
        rows = rows_of(indices, self.beams)
        layers, two, _, *shape = self.self_attention.shape
        kept = new_cache(self.self_attention, (layers, two, len(rows), *shape))
        kept[..., : self.steps, :] = self.self_attention[..., : self.steps, :].index_select(2, rows)
        return replace(
            self,
            self_attention=kept,
            cross_attention=self.cross_attention.index_select(2, indices),
            writers=self.writers.index_select(0, rows),
            encoder_mask=None if self.encoder_mask is None else self.encoder_mask.index_select(0, indices),
        )

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write T more keys and values (R, H, T, D) of a layer; all so far, (R, H, steps + T, D). `advance` follows once."""
        end, new = self.steps + keys.shape[2], (keys, values)
        caches = self.self_attention[layer].unbind(0)
        past = [cache[:, :, : self.steps].to(keys.dtype) for cache in caches]
        for cache, value in zip(caches, new, strict=True):
            cache[:, :, self.steps : end] = value.detach()
        if torch.is_grad_enabled():  # backward needs what was attended over as it was, and the cache changes in place
            keys, values = (torch.cat(pair, dim=2) for pair in zip(past, new, strict=True))
        else:
            keys, values = (cache[:, :, :end].to(keys.dtype) for cache in caches)
        return keys, values

    def check_fits(self, batch: int, tokens: int) -> None:
        """Refuse what a call of the decoder could not go on with.

        Raises:
            StreamError: another batch size. ConfigError: `tokens` more are too many.
        """
        if batch != self.batch_size or self.beams != 1:
            raise StreamError(
                f"expected a batch of {self.batch_size}, one beam each, as in the state, got {batch} and {self.beams} beams; "
                "use a new state, or decode_step for beams"
            )
        self.check_room(tokens)

    def check_room(self, tokens: int) -> None:
        """Refuse more tokens than fit.

        Raises:
            ConfigError: `tokens` more are too many.
        """
        if self.steps + tokens > self.max_steps:
            raise ConfigError(
                f"expected at most {self.max_steps} target tokens, as the state has room for, got {self.steps + tokens}; "
                "make it with more max_steps"
            )

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Speech2TextDecoderState":
        mask = None if self.encoder_mask is None else function(self.encoder_mask)
        return replace(
            self,
            self_attention=function(self.self_attention),
            cross_attention=function(self.cross_attention),
            writers=function(self.writers),
            encoder_mask=mask,
        )


def rows_of(utterances: Tensor, beams: int) -> Tensor:
    """Utterances (N,) int64 -> their rows (N x beams,)."""
    return (utterances[:, None] * beams + torch.arange(beams, device=utterances.device)).flatten()


def new_cache(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Room for keys and values: zeros where a masked attention will read all of it, else memory that costs nothing yet."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    return like.new_empty(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def new_writers(like: Tensor, rows: int, max_steps: int) -> Tensor:
    """(rows, max_steps) int64, each row its own, on the device of `like`."""
    return torch.arange(rows, device=like.device)[:, None].repeat(1, max_steps)


# For one row, a packed product starts so much later than a plain one that small weights are read faster as they are.
_LARGEST_PLAIN = 2**17


class _Product:
    """Rows (N, I) times a weight (O, I), plus a bias, then an activation or plus a residual (N, O)."""

    def __init__(self, linears: list[nn.Linear], packed: bool, activation: str | None = None) -> None:
        weights = [linear.weight.detach() for linear in linears]
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self.weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self.bias = torch.cat(biases) if biases else None
        self.packed = pack_linear(self.weight) if packed else None
        plain = packed and self.bias is not None and activation is None and self.weight.numel() <= _LARGEST_PLAIN
        self.transposed = self.weight.t().contiguous() if plain else None
        self.activation = activation

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.transposed is not None and x.shape[0] == 1:
            out = torch.addmm(cast(Tensor, self.bias), x, self.transposed)
            return out if residual is None else out.add_(residual)
        if self.packed is not None:
            return packed_linear(x, self.packed, self.bias, residual, self.activation)
        out = F.linear(x, self.weight, self.bias)
        if residual is not None:
            return residual + out
        return out if self.activation is None else ACTIVATIONS[self.activation](out)


class _Norm:
    def __init__(self, norm: nn.LayerNorm) -> None:
        self.arguments = (norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, *self.arguments)


class _LayerWeights:
    """One decoder layer, put together for a step."""

    def __init__(self, layer: "Speech2TextDecoderLayer", activation: str, packed: bool) -> None:
        own, cross = layer.self_attn, layer.encoder_attn
        self.self_norm = _Norm(layer.self_attn_layer_norm)
        self.self_in = _Product([own.q_proj, own.k_proj, own.v_proj], packed)
        self.self_out = _Product([own.out_proj], packed)
        self.cross_norm = _Norm(layer.encoder_attn_layer_norm)
        self.cross_in = _Product([cross.q_proj], packed)
        self.cross_out = _Product([cross.out_proj], packed)
        self.final_norm = _Norm(layer.final_layer_norm)
        self.fc1 = _Product([layer.fc1], packed, activation)
        self.fc2 = _Product([layer.fc2], packed)


class StepWeights:
    """A decoder and its head, put together for steps; made again when their weights change."""

    def __init__(self, decoder: "Speech2TextDecoder", lm_head: nn.Linear, packed: bool) -> None:
        config = decoder.config
        self.embedding = decoder.embed_tokens.weight.detach()
        self.scale, self.padding_idx = decoder.embed_scale, decoder.embed_positions.padding_idx
        self.first_position = decoder.embed_positions.first
        self.heads = config.decoder_attention_heads
        layers = cast("list[Speech2TextDecoderLayer]", decoder.layers)
        self.layers = [_LayerWeights(layer, config.activation_function, packed) for layer in layers]
        self.norm = _Norm(decoder.layer_norm)
        self.head = _Product([lm_head], packed)


class Speech2TextStepper:
    """A decoder's weights and a state, offered to a search; the state is updated in place.

    On a GPU a step is captured as a CUDA graph. Finished utterances then stay in its fixed shapes, and are only no longer asked
    for; elsewhere they leave the state.

    Args:
        weights: of the decoder.
        positions: its table of positions, with rows for all steps.
        state: what it remembers.
        cuda_graph: replay a captured step; None is yes on a GPU.
    """

    def __init__(
        self, weights: StepWeights, positions: Tensor, state: Speech2TextDecoderState, cuda_graph: bool | None = None
    ) -> None:
        self._weights, self._positions = weights, positions
        self.state = state
        self._fixed = state.self_attention.is_cuda if cuda_graph is None else cuda_graph
        self._captured: CapturedStep | None = None
        self._kept: Tensor | None = None  # the rows still asked for, where others stay in fixed shapes
        self._bind()

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary, V."""
        return self._weights.embedding.shape[0]

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Each row's last token (R,) int64 -> logits of the next, (R, V), which the next step may overwrite.

        Raises:
            ConfigError: the state has no room for another token.
        """
        self.state.check_room(1)
        logits = self._step_fixed(tokens) if self._fixed else self._run(tokens, self.state.steps)
        self.state.steps += 1
        return logits

    def reorder(self, rows: Tensor) -> None:
        """Let row i continue what row `rows[i]` was; (R,) int64, each within its own utterance."""
        if self._kept is not None:
            everyone = torch.arange(self.state.batch_size, device=rows.device)
            rows = everyone.index_copy(0, self._kept, self._kept.index_select(0, rows))
        self.state.reorder(rows)

    def select(self, utterances: Tensor) -> None:
        """Keep these utterances only, (fewer,) int64."""
        if self._fixed:
            rows = rows_of(utterances, self.state.beams)
            self._kept = rows if self._kept is None else self._kept.index_select(0, rows)
        else:
            self.state = self.state.select(utterances)
            self._bind()

    def _step_fixed(self, tokens: Tensor) -> Tensor:
        if self._kept is not None:
            tokens = tokens.new_zeros(self.state.batch_size).index_copy_(0, self._kept, tokens)
        position = torch.full((1,), self.state.steps, dtype=torch.int64, device=tokens.device)
        if self._captured is None:
            self._captured = CapturedStep(self._run, tokens, position)
        logits = self._captured(tokens, position)
        return logits if self._kept is None else logits.index_select(0, self._kept)

    @torch.inference_mode()
    def _bind(self) -> None:
        state = self.state
        self._cross = state.cross_attention.flatten(0, 1).unbind(0)
        self._encoder_mask = None if state.encoder_mask is None else state.encoder_mask[:, None, None]

    def _run(self, tokens: Tensor, steps: int | Tensor) -> Tensor:
        """(R,) -> (R, V), the tokens being number `steps` of their rows; a tensor (1,) of it keeps all shapes fixed."""
        weights, caches = self._weights, self.state.self_attention
        x, mask = self._embedded(tokens, steps), None
        if isinstance(steps, int):
            places = caches[..., steps, :].unbind(0)
            written = caches[..., : steps + 1, :].flatten(0, 1).unbind(0)
        else:
            places, written = caches.unbind(0), caches.flatten(0, 1).unbind(0)
            mask = (torch.arange(caches.shape[4], device=caches.device) <= steps)[None, None, None]
        for layer, place, keys_values, crossed in zip(
            weights.layers, places, _pairs(written), _pairs(self._cross), strict=True
        ):
            projected = layer.self_in(layer.self_norm(x)).view(len(x), 3, weights.heads, -1)
            new = projected[:, 1:].transpose(0, 1)  # (2, R, H, D)
            if mask is None:
                place.copy_(new)
            else:
                place.index_copy_(3, cast(Tensor, steps), new.unsqueeze(3))
            x = layer.self_out(_attend(projected[:, :1], keys_values, mask), x)
            queries = layer.cross_in(layer.cross_norm(x)).view(crossed[0].shape[0], -1, weights.heads, crossed[0].shape[3])
            x = layer.cross_out(_attend(queries, crossed, self._encoder_mask), x)
            x = layer.fc2(layer.fc1(layer.final_norm(x)), x)
        return weights.head(weights.norm(x))

    def _embedded(self, tokens: Tensor, steps: int | Tensor) -> Tensor:
        weights = self._weights
        position = self._positions[weights.first_position + steps]
        if weights.padding_idx is not None:
            position = position * (tokens != weights.padding_idx)[:, None]
        return torch.add(position, F.embedding(tokens, weights.embedding), alpha=weights.scale)


def _pairs(caches: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each layer: keys and values."""
    return zip(caches[::2], caches[1::2], strict=True)


def _attend(queries: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
    """(N, T, H, D) over keys and values (N, H, S, D) -> (N T, H D)."""
    keys, values = keys_values
    out = F.scaled_dot_product_attention(queries.transpose(1, 2).to(keys.dtype), keys, values, mask)
    return out.transpose(1, 2).reshape(-1, queries.shape[2] * queries.shape[3]).to(queries.dtype)
