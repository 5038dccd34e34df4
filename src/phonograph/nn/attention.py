"""Attention in three forms: over a whole sequence, over a window in one pass, and over a window in a stream.

Shapes: B batch, H heads, K key-value heads, T time, S time of the keys, W window, D head size. With a window, a query at
position p sees the keys at positions p - W + 1 ... p, in time and memory linear in the length.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from phonograph.errors import ConfigError, MissingExtraError
from phonograph.nn.dropout import dropout as drop
from phonograph.nn.packed import fast_path, packed_linear
from phonograph.nn.state import State

__all__ = [
    "ATTENTION",
    "AttentionFunction",
    "AttentionState",
    "RingStep",
    "attention_function",
    "attention_with_weights",
    "cached_attention",
    "full_attention",
    "new_attention_state",
    "ring_step",
    "windowed_attention",
]


@dataclass
class AttentionState(State):
    """A ring of R > W last keys and values, each (B, K, R, D), already rotated; step p lies in slot p mod R."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class RingStep:
    """What each new query sees, the slots (B, T) int64 that the new keys go to, and whether they can go there first.

    A few steps fit into slots that no query sees any more: they are written, and the mask is (B, 1, T, R) over the ring. More
    steps are appended to the ring for the attention and written after it: the mask is (B, 1, T, R + T).
    """

    mask: Tensor
    slots: Tensor
    fits: bool
    active: Tensor | None


_RING_ALIGNMENT = 16

_FEWEST_STEPS_BY_HEAD = 256
_QUERIES_BY_HEAD = 512
_MOST_KEPT_WEIGHTS = 2**25  # 64 MB in bfloat16, in each layer: SDPA keeps none

AttentionFunction = Callable[[Tensor, Tensor, Tensor, "Tensor | None", float], Tensor]
"""(queries (B, H, T, D), keys (B, K, S, D), values (B, K, S, D), mask or None for causal, dropout) -> (B, H, T, D)."""


def eager_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attention written out: what the other implementations are checked against."""
    if mask is None:
        mask = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool, device=queries.device).tril()
    return attention_with_weights(queries, keys, values, mask, dropout)[0]


def attention_with_weights(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Attention written out, which is the only form that has its weights to give.

    Args:
        queries: (B, H, T, D); keys and values: (B, K, S, D).
        mask: broadcasts to (B, H, T, S) bool, true where a query sees a key; None is everywhere.

    Returns:
        (B, H, T, D), and the weights (B, H, T, S) as they were applied, after dropout.
    """
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(queries.dtype)
    weights = drop(weights, dropout)
    return weights @ values, weights


def sdpa_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`."""
    grouped = queries.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(queries, keys, values, mask, dropout, is_causal=mask is None, enable_gqa=grouped)


ATTENTION: dict[str, AttentionFunction] = {"eager": eager_attention, "sdpa": sdpa_attention}
"""The implementations that take any mask, by the name `attn_implementation` knows them by."""


def attention_function(name: str) -> AttentionFunction:
    """The implementation of that name; flash attention takes no masks, so its masked calls go through SDPA.

    Raises:
        ConfigError: no such implementation.
        MissingExtraError: flash_attention_2 without the flash-attn package.
    """
    if name == "flash_attention_2":
        _flash_attn_func()
        return sdpa_attention
    if name not in ATTENTION:
        raise ConfigError(f"expected attn_implementation eager, sdpa or flash_attention_2, got {name!r}; choose one of them")
    return ATTENTION[name]


def full_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    key_mask: Tensor | None,
    implementation: str,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of every query over every key that is no padding: of an encoder over itself, or of a decoder over it.

    Args:
        queries: (B, H, T, D); keys and values: (B, K, S, D).
        key_mask: (B, S) bool, false for padding, with at least one true in each row; None is no padding.

    Returns:
        (B, H, T, D).
    """
    if implementation == "flash_attention_2":
        return _flash_full(queries, keys, values, key_mask, dropout)
    mask = None if key_mask is None else key_mask[:, None, None]
    if implementation == "eager":
        return attention_with_weights(queries, keys, values, mask, dropout)[0]
    grouped = queries.shape[1] != keys.shape[1]
    if dropout == 0 and not grouped and queries.shape[2] >= _FEWEST_STEPS_BY_HEAD and fast_path(queries):
        return _attention_by_head(queries, keys, values, key_mask)
    if not grouped and queries.requires_grad and queries.device.type == "cpu" and queries.dtype == torch.bfloat16:
        weights = queries.shape[0] * queries.shape[1] * queries.shape[2] * keys.shape[2]
        if weights <= _MOST_KEPT_WEIGHTS:
            return _attention_in_bfloat16(queries, keys, values, mask, dropout)
    return F.scaled_dot_product_attention(queries, keys, values, mask, dropout, enable_gqa=grouped)


def _attention_in_bfloat16(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """`full_attention` for training on a processor, forth and back in half of SDPA's time: the weights are kept, in bfloat16.

    The softmax is computed in float32 inside; autocast would make it write float32 too.
    """
    with torch.autocast("cpu", enabled=False):
        scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill_(~mask, float("-inf"))
        return drop(scores.softmax(-1), dropout) @ values


def _attention_by_head(queries: Tensor, keys: Tensor, values: Tensor, key_mask: Tensor | None) -> Tensor:
    """`full_attention` by oneDNN's products, one head and some queries at a time, so that the scores stay in the cache.

    Scores and their exponentials are float32 in every dtype, as they are inside SDPA.
    """
    scale = queries.shape[-1] ** -0.5 * math.log2(math.e)  # torch vectorises exp2 better than exp
    queries, keys = (queries.float() * scale).contiguous(), keys.float().contiguous()
    columns = values.transpose(2, 3).contiguous()
    out = values.new_empty(queries.shape[0], queries.shape[2], *queries.shape[1::2]).transpose(1, 2)
    for item in range(queries.shape[0]):
        hidden = None if key_mask is None else ~key_mask[item]
        for head in range(queries.shape[1]):
            for start in range(0, queries.shape[2], _QUERIES_BY_HEAD):
                rows = slice(start, start + _QUERIES_BY_HEAD)
                weights = packed_linear(queries[item, head, rows], keys[item, head], None)
                if hidden is not None:
                    weights.masked_fill_(hidden, float("-inf"))
                weights.sub_(weights.amax(-1, keepdim=True)).exp2_()
                total = weights.sum(-1, keepdim=True)
                attended = packed_linear(weights.to(values.dtype), columns[item, head], None)
                torch.div(attended, total, out=out[item, head, rows])
    return out


def windowed_attention(
    queries: Tensor, keys: Tensor, values: Tensor, window: int, implementation: str, dropout: float = 0.0
) -> Tensor:
    """Causal attention over the last `window` steps of one whole sequence.

    Sequences longer than the window are worked through in blocks of queries, each with just the keys that it sees.

    Args:
        queries: (B, H, T, D); keys and values: (B, K, T, D).

    Returns:
        (B, H, T, D).
    """
    if implementation == "flash_attention_2":
        return _flash_windowed(queries, keys, values, window, dropout)
    attend = attention_function(implementation)
    steps = queries.shape[2]
    if steps <= window:
        return attend(queries, keys, values, None, dropout)
    blocks = []
    for start in range(0, steps, window):
        end, first = min(start + window, steps), max(0, start - window + 1)
        mask = _window_mask(start, end, first, end, window, queries.device)
        blocks.append(attend(queries[:, :, start:end], keys[:, :, first:end], values[:, :, first:end], mask, dropout))
    return torch.cat(blocks, dim=2)


def new_attention_state(batch_size: int, heads: int, window: int, like: Tensor) -> AttentionState:
    """An empty ring for keys and values (B, heads, W, D), in the dtype and on the device of `like` (D,)."""
    capacity = -(-(window + 1) // _RING_ALIGNMENT) * _RING_ALIGNMENT
    shape = (batch_size, heads, capacity, like.shape[0])
    return AttentionState(like.new_zeros(shape), like.new_zeros(shape))


def ring_step(seen: Tensor, steps: int, window: int, state: AttentionState, active: Tensor | None = None) -> RingStep:
    """What all layers share when B streams, `seen` (B,) int64 steps old, go on by `steps` <= window steps.

    Streams where `active` (B,) bool is false get arbitrary results and keep their state.
    """
    assert steps <= window, "more steps than the window would overwrite keys that are still seen"
    capacity = state.keys.shape[2]
    fits = steps <= capacity - window + 1  # no slot that is written now is still seen by a query of this step
    offset = torch.arange(steps, device=seen.device)
    slots = torch.arange(capacity, device=seen.device)
    newest = seen[:, None] + (steps - 1 if fits else -1)
    held = newest - (newest - slots) % capacity  # the position in each slot; negative where nothing was written yet
    distance = (seen[:, None] + offset)[:, :, None] - held[:, None, :]
    mask = (held[:, None, :] >= 0) & (distance >= 0) & (distance < window)
    if not fits:
        mask = torch.cat([mask, (offset[:, None] >= offset).expand(seen.shape[0], -1, -1)], dim=2)
    return RingStep(mask[:, None], (seen[:, None] + offset) % capacity, fits, active)


def cached_attention(
    queries: Tensor, keys: Tensor, values: Tensor, state: AttentionState, step: RingStep, implementation: str
) -> Tensor:
    """Attention of the next T <= W steps of B streams over themselves and the ring, which is updated in place.

    Args:
        queries: (B, H, T, D); keys and values: (B, K, T, D); all rotated to their positions.

    Returns:
        (B, H, T, D).
    """
    attend = attention_function(implementation)
    if step.fits:
        _write(state, step, keys, values)
        return attend(queries, state.keys, state.values, step.mask, 0.0)
    all_keys, all_values = torch.cat([state.keys, keys], dim=2), torch.cat([state.values, values], dim=2)
    out = attend(queries, all_keys, all_values, step.mask, 0.0)
    _write(state, step, keys, values)
    return out


def _write(state: AttentionState, step: RingStep, keys: Tensor, values: Tensor) -> None:
    stream = torch.arange(keys.shape[0], device=keys.device)[:, None]
    for ring, new in ((state.keys, keys), (state.values, values)):
        by_slot, steps = ring.transpose(1, 2), new.detach().transpose(1, 2)  # (B, R, K, D) and (B, T, K, D)
        if step.active is not None:
            steps = torch.where(step.active[:, None, None, None], steps, by_slot[stream, step.slots])
        by_slot[stream, step.slots] = steps


def _window_mask(start: int, end: int, first: int, last: int, window: int, device: torch.device) -> Tensor:
    distance = torch.arange(start, end, device=device)[:, None] - torch.arange(first, last, device=device)
    return (distance >= 0) & (distance < window)


def _flash_attn_func(name: str = "flash_attn_func") -> Callable[..., Tensor]:
    try:
        import flash_attn
    except ImportError as error:
        raise MissingExtraError("attn_implementation='flash_attention_2'", "flash-attn", "flash") from error
    function: Callable[..., Tensor] = getattr(flash_attn, name)
    return function


def _flash_full(queries: Tensor, keys: Tensor, values: Tensor, key_mask: Tensor | None, dropout: float) -> Tensor:
    by_time = [x.transpose(1, 2) for x in (queries, keys, values)]  # (B, T, H, D)
    if key_mask is None:
        whole: Tensor = _flash_attn_func()(*by_time, dropout_p=dropout, causal=False)
        return whole.transpose(1, 2)
    # Keys lose their padding and lie end to end; queries keep theirs, so that all implementations give the same there.
    batch, steps = by_time[0].shape[:2]
    ends = F.pad(key_mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    query_ends = torch.arange(0, (batch + 1) * steps, steps, dtype=torch.int32, device=ends.device)
    packed = [by_time[0].flatten(0, 1), *(x[key_mask] for x in by_time[1:])]
    varlen = _flash_attn_func("flash_attn_varlen_func")
    out = varlen(*packed, query_ends, ends, steps, key_mask.shape[1], dropout_p=dropout, causal=False)
    return out.view(by_time[0].shape).transpose(1, 2)


def _flash_windowed(queries: Tensor, keys: Tensor, values: Tensor, window: int, dropout: float) -> Tensor:
    out = _flash_attn_func()(
        *(x.transpose(1, 2) for x in (queries, keys, values)),
        dropout_p=dropout,
        causal=True,
        window_size=(window - 1, 0),
    )
    return out.transpose(1, 2)
