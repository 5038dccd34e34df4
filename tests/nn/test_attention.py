"""Windowed attention against a dense mask, the ring against the whole, and the implementations against one another."""

import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phonograph.errors import ConfigError, MissingExtraError
from phonograph.nn.attention import (
    AttentionState,
    attention_function,
    attention_with_weights,
    cached_attention,
    full_attention,
    new_attention_state,
    ring_step,
    windowed_attention,
)
from phonograph.nn.masks import inside
from phonograph.nn.packed import reference_path

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
WINDOW = 7


def heads(steps: int, batch: int = 2, queries: int = 4, keys: int = 4, size: int = 8, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, number, steps, size, generator=generator) for number in (queries, keys, keys))


def naive(queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """One query at a time, in float64."""
    queries, keys, values = queries.double(), keys.double(), values.double()
    out = torch.zeros(*queries.shape[:3], values.shape[3], dtype=torch.float64)
    group = queries.shape[1] // keys.shape[1]
    for head in range(queries.shape[1]):
        for step in range(queries.shape[2]):
            seen = slice(max(0, step - window + 1), step + 1)
            scores = (keys[:, head // group, seen] @ queries[:, head, step, :, None]).squeeze(-1) / queries.shape[-1] ** 0.5
            out[:, head, step] = (scores.softmax(-1)[:, None] @ values[:, head // group, seen]).squeeze(1)
    return out.float()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("keys", [4, 2, 1])
@pytest.mark.parametrize("steps", [1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 2 * WINDOW + 1, 40])
def test_window_equals_a_dense_mask(steps: int, keys: int, implementation: str) -> None:
    inputs = heads(steps, keys=keys, seed=steps)
    torch.testing.assert_close(windowed_attention(*inputs, WINDOW, implementation), naive(*inputs, WINDOW), **CLOSE)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    window=st.sampled_from([1, 2, WINDOW, 15, 16, 20]),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=25),
    keys=st.sampled_from([4, 2]),
    implementation=st.sampled_from(["eager", "sdpa", "flash_attention_2"]),
)
def test_ring_equals_whole(window: int, sizes: list[int], keys: int, implementation: str) -> None:
    """Any chunks of up to a window, for many windows."""
    sizes = [min(size, window) for size in sizes]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(sys.modules, "flash_attn", stand_in())
        inputs = heads(sum(sizes), keys=keys)
        state = new_attention_state(2, keys, window, torch.zeros(8))
        size = state.nbytes
        seen, pieces = torch.zeros(2, dtype=torch.int64), []
        for part in zip(*(x.split(sizes, 2) for x in inputs), strict=True):
            steps = part[0].shape[2]
            pieces.append(cached_attention(*part, state, ring_step(seen, steps, window, state), implementation))
            seen = seen + steps
    torch.testing.assert_close(torch.cat(pieces, 2), naive(*inputs, window), **CLOSE)
    assert state.nbytes == size


@pytest.mark.parametrize("steps", [1, 3, WINDOW])
def test_streams_of_different_age_share_a_batch(steps: int) -> None:
    inputs = heads(33)
    starts = [0, 12]
    state = new_attention_state(2, 4, WINDOW, torch.zeros(8))
    for place in range(starts[1]):  # the second stream lives alone for a while
        alone = AttentionState(state.keys[1:], state.values[1:])
        part = [x[1:, :, place : place + 1] for x in inputs]
        cached_attention(*part, alone, ring_step(torch.tensor([place]), 1, WINDOW, alone), "sdpa")
    seen, pieces = torch.tensor(starts), []
    for offset in range(0, 21, steps):
        part = [torch.stack([x[i, :, s + offset : s + offset + steps] for i, s in enumerate(starts)]) for x in inputs]
        pieces.append(cached_attention(*part, state, ring_step(seen, steps, WINDOW, state), "sdpa"))
        seen = seen + steps
    out, whole = torch.cat(pieces, 2), naive(*inputs, WINDOW)
    for number, place in enumerate(starts):
        torch.testing.assert_close(out[number], whole[number, :, place : place + 21], **CLOSE)


def test_a_chunk_longer_than_the_window_is_our_own_mistake() -> None:
    state = new_attention_state(1, 4, WINDOW, torch.zeros(8))
    with pytest.raises(AssertionError, match="would overwrite keys that are still seen"):
        ring_step(torch.tensor([0]), WINDOW + 1, WINDOW, state)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_dropout_drops(implementation: str) -> None:
    inputs = heads(20)
    torch.manual_seed(0)
    dropped = windowed_attention(*inputs, WINDOW, implementation, dropout=0.5)
    assert not torch.allclose(dropped, windowed_attention(*inputs, WINDOW, implementation))


def stand_in() -> ModuleType:
    """A `flash_attn` with the documented semantics: (B, T, H, D), grouped heads, a window of (left, right) neighbours."""

    def flash_attn_func(
        q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, causal: bool = False, window_size: tuple[int, int] = (-1, -1)
    ) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))
        distance = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])
        visible = torch.ones_like(distance, dtype=torch.bool)
        if causal:
            assert q.shape[1] == k.shape[1]
            visible &= distance >= 0
        if window_size[0] >= 0:
            visible &= distance <= window_size[0]
        if window_size[1] >= 0:
            visible &= -distance <= window_size[1]
        scores = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
        weights = torch.dropout(scores.masked_fill(~visible, float("-inf")).softmax(-1), dropout_p, train=dropout_p > 0)
        return torch.einsum("bhts,bshd->bthd", weights, v)

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        causal: bool = False,
    ) -> Tensor:
        assert cu_seqlens_q.dtype is cu_seqlens_k.dtype is torch.int32
        assert not causal
        assert int(cu_seqlens_q.diff().max()) <= max_seqlen_q
        assert int(cu_seqlens_k.diff().max()) <= max_seqlen_k
        assert (cu_seqlens_q[-1], cu_seqlens_k[-1]) == (len(q), len(k))
        ends = [edges[1:-1].long() for edges in (cu_seqlens_q, cu_seqlens_k, cu_seqlens_k)]
        groups, parts = q.shape[1] // k.shape[1], []
        for queries, keys, values in zip(*(x.tensor_split(end) for x, end in zip((q, k, v), ends, strict=True)), strict=True):
            keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
            weights = (torch.einsum("thd,shd->hts", queries, keys) * q.shape[-1] ** -0.5).softmax(-1)
            parts.append(torch.einsum("hts,shd->thd", torch.dropout(weights, dropout_p, train=dropout_p > 0), values))
        return torch.cat(parts)

    module = ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("keys", [4, 2])
@pytest.mark.parametrize("steps", [1, WINDOW, WINDOW + 1, 40])
def test_flash_attention_is_called_as_it_documents(steps: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in())
    inputs = heads(steps, keys=keys)
    out = windowed_attention(*inputs, WINDOW, "flash_attention_2")
    torch.testing.assert_close(out, windowed_attention(*inputs, WINDOW, "sdpa"), **CLOSE)


KEY_MASK = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flash_attention_2"])
@pytest.mark.parametrize("masked", [True, False], ids=["padding", "no padding"])
@pytest.mark.parametrize("keys", [4, 2])
@pytest.mark.parametrize("steps", [1, 9, 12])
def test_full_attention_equals_each_item_alone(
    steps: int, keys: int, masked: bool, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an encoder over itself, and of a decoder of other lengths over an encoder."""
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in())
    queries = heads(steps, batch=3)[0]
    _, key, value = heads(9, batch=3, keys=keys, seed=1)
    out = full_attention(queries, key, value, KEY_MASK if masked else None, implementation)
    for item, length in enumerate([9, 4, 1] if masked else [9, 9, 9]):
        group = 4 // keys
        scores = queries[item] @ key[item, :, :length].repeat_interleave(group, 0).transpose(1, 2) / 8**0.5
        expected = scores.softmax(-1) @ value[item, :, :length].repeat_interleave(group, 0)
        torch.testing.assert_close(out[item], expected, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False], ids=["padding", "no padding"])
@torch.no_grad()
def test_attention_by_head(masked: bool, dtype: torch.dtype) -> None:
    """From some length on, without gradients: more than one block of queries, and keys of another length."""
    torch.manual_seed(0)
    queries = torch.randn(2, 4, 700, 16, dtype=dtype)
    keys, values = torch.randn(2, 2, 4, 300, 16, dtype=dtype)
    mask = torch.arange(300) < torch.tensor([300, 123])[:, None] if masked else None
    with reference_path():
        wide = full_attention(queries.double(), keys.double(), values.double(), mask, "sdpa")
        plain = full_attention(queries, keys, values, mask, "sdpa")
    fast = full_attention(queries, keys, values, mask, "sdpa")
    assert not torch.equal(fast, plain), "the same function ran twice"
    torch.testing.assert_close(fast.double(), wide, rtol=0, atol=1e-6 if dtype is torch.float32 else 8e-3)


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "as it is"])
@pytest.mark.parametrize("masked", [True, False], ids=["padding", "no padding"])
@pytest.mark.parametrize("steps", [1, 33, 300])
def test_training_in_bfloat16_has_the_gradients_of_float64(steps: int, masked: bool, autocast: bool) -> None:
    inputs = [x.bfloat16().requires_grad_() for x in heads(steps, size=32, seed=steps)]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    key_mask = inside(torch.tensor([steps, max(1, steps // 2)]), steps) if masked else None
    towards = heads(steps, size=32, seed=steps + 1)[0]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = full_attention(*inputs, key_mask, "sdpa")
    reference = full_attention(*doubles, key_mask, "eager")
    assert y.dtype == torch.bfloat16
    _near(y, reference, 0.01)
    y.backward(towards.bfloat16())
    reference.backward(towards.double())
    for x, expected in zip(inputs, doubles, strict=True):
        assert x.grad is not None
        assert expected.grad is not None
        _near(x.grad, expected.grad, 0.02)


def test_training_keeps_no_weights_of_long_sequences() -> None:
    inputs = [x.bfloat16().requires_grad_() for x in heads(2900, batch=1, size=8)]
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        full_attention(*inputs, None, "sdpa")
    assert max(kept) < 2900**2


def _near(x: Tensor, reference: Tensor, share: float) -> None:
    """Off by no more than a share of the reference's own size."""
    distance = (x.detach().double() - reference.detach()).norm()
    assert distance <= share * reference.norm() + 1e-6


def test_weights_of_attention() -> None:
    inputs = heads(9, batch=3, keys=2)
    out, weights = attention_with_weights(*inputs, KEY_MASK[:, None, None])
    assert weights.shape == (3, 4, 9, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 9))
    assert not weights[1, :, :, 4:].any()
    torch.testing.assert_close(weights @ inputs[2].repeat_interleave(2, 1), out, **CLOSE)
    torch.testing.assert_close(attention_with_weights(*inputs)[0], full_attention(*inputs, None, "sdpa"), **CLOSE)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_dropout_of_full_attention(implementation: str) -> None:
    inputs = heads(20)
    torch.manual_seed(0)
    dropped = full_attention(*inputs, None, implementation, dropout=0.5)
    assert not torch.allclose(dropped, full_attention(*inputs, None, implementation))


def test_missing_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    match = r"flash_attention_2' needs the package flash-attn, which is not installed; run: pip install 'phonograph\[flash\]'"
    with pytest.raises(MissingExtraError, match=match):
        attention_function("flash_attention_2")
    with pytest.raises(MissingExtraError, match=match):
        windowed_attention(*heads(3), WINDOW, "flash_attention_2")
    with pytest.raises(MissingExtraError, match=match):
        full_attention(*heads(3), None, "flash_attention_2")


def test_refuses_an_unknown_implementation() -> None:
    with pytest.raises(ConfigError, match="eager, sdpa or flash_attention_2, got 'paged'; choose one of them"):
        attention_function("paged")
