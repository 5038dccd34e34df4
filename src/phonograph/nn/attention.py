"""Attention that looks back a fixed number of steps, in one pass or in a stream, in time and memory linear in the length.

Shapes: B batch, H heads, K key-value heads, T time, W window, D head size. A query at position p sees the keys at positions
p - W + 1 ... p.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from phonograph.errors import ConfigError, MissingExtraError
from phonograph.nn.state import State

__all__ = [
    "ATTENTION",
    "AttentionFunction",
    "AttentionState",
    "RingStep",
    "attention_function",
    "cached_attention",
    "ring_step",
    "windowed_attention",
]


@dataclass
class AttentionState(State):
    """A ring of the last W keys and values, each (B, K, W, D), already rotated; step p lies in slot p mod W."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class RingStep:
    """What each new query sees, (B, 1, T, W + T) bool, and the slots the new keys go to, (B, T) int64."""

    mask: Tensor
    slots: Tensor


AttentionFunction = Callable[[Tensor, Tensor, Tensor, "Tensor | None", float], Tensor]
"""(queries (B, H, T, D), keys (B, K, S, D), values (B, K, S, D), mask or None for causal, dropout) -> (B, H, T, D)."""


def eager_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attention written out: what the other implementations are checked against."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    if mask is None:
        mask = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool, device=queries.device).tril()
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(queries.dtype)
    return F.dropout(weights, dropout) @ values


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


def ring_step(seen: Tensor, steps: int, window: int) -> RingStep:
    """What all layers share when B streams, `seen` (B,) int64 steps old, go on by `steps` <= window steps."""
    assert steps <= window, "more steps than the ring holds would overwrite keys that are still seen"
    newest = seen[:, None] - 1
    age = (newest - torch.arange(window, device=seen.device)) % window
    ring = newest - age  # the position each slot holds; negative where nothing was written yet
    offset = torch.arange(steps, device=seen.device)
    ring_distance = (seen[:, None] + offset)[:, :, None] - ring[:, None, :]
    ring_visible = (ring[:, None, :] >= 0) & (ring_distance < window)
    new_visible = (offset[:, None] >= offset).expand(seen.shape[0], -1, -1)
    return RingStep(torch.cat([ring_visible, new_visible], dim=2)[:, None], (seen[:, None] + offset) % window)


def cached_attention(
    queries: Tensor, keys: Tensor, values: Tensor, state: AttentionState, step: RingStep, implementation: str
) -> Tensor:
    """Attention of the next T <= W steps of B streams over themselves and the ring, which is updated in place.

    Args:
        queries: (B, H, T, D); keys and values: (B, K, T, D); all rotated to their positions.

    Returns:
        (B, H, T, D).
    """
    all_keys, all_values = torch.cat([state.keys, keys], dim=2), torch.cat([state.values, values], dim=2)
    out = attention_function(implementation)(queries, all_keys, all_values, step.mask, 0.0)
    index = step.slots[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
    state.keys.scatter_(2, index, keys.detach())
    state.values.scatter_(2, index, values.detach())
    return out


def _window_mask(start: int, end: int, first: int, last: int, window: int, device: torch.device) -> Tensor:
    distance = torch.arange(start, end, device=device)[:, None] - torch.arange(first, last, device=device)
    return (distance >= 0) & (distance < window)


def _flash_attn_func() -> Callable[..., Tensor]:
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise MissingExtraError("attn_implementation='flash_attention_2'", "flash-attn", "flash") from error
    function: Callable[..., Tensor] = flash_attn_func
    return function


def _flash_windowed(queries: Tensor, keys: Tensor, values: Tensor, window: int, dropout: float) -> Tensor:
    out = _flash_attn_func()(
        *(x.transpose(1, 2) for x in (queries, keys, values)),
        dropout_p=dropout,
        causal=True,
        window_size=(window - 1, 0),
    )
    return out.transpose(1, 2)
