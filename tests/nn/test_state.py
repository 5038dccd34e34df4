"""State: one walk gives reset, select, reorder, clone and nbytes for whatever is nested."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from phonograph.nn.state import State


@dataclass
class Leaf(State):
    past: Tensor
    started: Tensor


@dataclass
class Nested(State):
    seen: Tensor
    one: Leaf
    many: list[Leaf]


def leaf(offset: int) -> Leaf:
    return Leaf(torch.arange(1, 13.0).view(3, 2, 2) + offset, torch.tensor([True, True, False]))


@pytest.fixture
def state() -> Nested:
    return Nested(torch.tensor([5, 6, 7]), leaf(0), [leaf(100), leaf(200)])


def rows(state: State, index: int) -> list[Tensor]:
    return [tensor[index].clone() for tensor in state.tensors()]


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a, b)


def test_sizes(state: Nested) -> None:
    assert len(list(state.tensors())) == 7
    assert state.batch_size == 3
    assert state.nbytes == 3 * 8 + 3 * (12 * 4 + 3)


def test_reset_forgets_all(state: Nested) -> None:
    places = [tensor.data_ptr() for tensor in state.tensors()]
    state.reset()
    assert not any(tensor.any() for tensor in state.tensors())
    assert [tensor.data_ptr() for tensor in state.tensors()] == places


def test_reset_with_a_mask_forgets_only_those(state: Nested) -> None:
    kept = rows(state, 0), rows(state, 2)
    state.reset(torch.tensor([False, True, False]))
    assert not any(row.any() for row in rows(state, 1))
    assert_equal(rows(state, 0), kept[0])
    assert_equal(rows(state, 2), kept[1])


def test_reorder_works_in_place(state: Nested) -> None:
    before = [rows(state, index) for index in range(3)]
    places = [tensor.data_ptr() for tensor in state.tensors()]
    state.reorder(torch.tensor([2, 0, 0]))
    for index, source in enumerate([2, 0, 0]):
        assert_equal(rows(state, index), before[source])
    assert [tensor.data_ptr() for tensor in state.tensors()] == places


def test_select_is_a_new_state(state: Nested) -> None:
    before = [rows(state, index) for index in range(3)]
    selected = state.select(torch.tensor([1, 1, 2, 0]))
    assert type(selected) is Nested
    assert selected.batch_size == 4
    selected.many[0].past.fill_(-1)
    for index in range(3):
        assert_equal(rows(state, index), before[index])
    assert_equal(rows(selected.one, 2), rows(state.one, 2))


def test_clone_shares_nothing(state: Nested) -> None:
    before = rows(state, 0)
    copy = state.clone()
    assert_equal(list(copy.tensors()), list(state.tensors()))
    copy.reset()
    assert_equal(rows(state, 0), before)


def test_to_moves_every_tensor(state: Nested) -> None:
    moved = state.to("meta")
    assert {tensor.device.type for tensor in moved.tensors()} == {"meta"}
    assert {tensor.device.type for tensor in state.tensors()} == {"cpu"}
    assert [(t.dtype, t.shape) for t in moved.tensors()] == [(t.dtype, t.shape) for t in state.tensors()]
