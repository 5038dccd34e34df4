"""Batches: each utterance once, equally many for every process, little padding, few shapes, any position at once."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phonograph.errors import ConfigError
from phonograph.training.data import BatchOptions, BatchPlan, BucketedBatches

RATE = 1000


def durations(count: int, seed: int = 0) -> list[float]:
    """Like read speech: 1 to 17 s, most of them long."""
    return [float(value) for value in 1 + 16 * np.random.default_rng(seed).beta(3, 1.5, count)]


def ranks(lengths: list[float], options: BatchOptions, world: int, seed: int = 0) -> list[BucketedBatches]:
    return [BucketedBatches(lengths, RATE, options, seed=seed, rank=rank, world=world) for rank in range(world)]


@given(
    lengths=st.lists(st.floats(0.05, 20), min_size=4, max_size=80),
    world=st.integers(1, 4),
    most_items=st.one_of(st.none(), st.integers(1, 5)),
    most_padding=st.floats(0.05, 1),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
@settings(deadline=None, max_examples=150)
def test_every_utterance_once_and_equally_many_batches(
    lengths: list[float], world: int, most_items: int | None, most_padding: float, shuffle: bool, epoch: int
) -> None:
    options = BatchOptions(21, most_padding=most_padding, most_items=most_items, shuffle=shuffle, multiple_of_samples=7)
    plans = [process.epoch(epoch) for process in ranks(lengths, options, world)]
    seen = Counter(place for process in plans for plan in process for place in plan.places)
    assert seen == Counter(range(len(lengths)))
    assert len({len(process) for process in plans}) == 1
    rows_over = 0
    for step in zip(*plans, strict=True):
        assert len({plan.samples for plan in step}) == 1
        assert step[0].samples % 7 == 0
        counts = [len(plan.places) for plan in step]
        assert min(counts) >= 1
        assert max(counts) - min(counts) <= 1
        rows_over += max(counts) * step[0].samples > 21 * RATE or max(counts) > (most_items or 80)
        padded, real = sum(counts) * step[0].samples, sum(lengths[place] * RATE for plan in step for place in plan.places)
        assert all(lengths[place] * RATE <= plan.samples for plan in step for place in plan.places)
        assert real >= (1 - most_padding) * padded - sum(counts) or sum(counts) < 2 * world
    assert rows_over <= (world > 1)  # what is left over at the end may be two to a process where one alone fills a batch


def test_padding_and_shapes_on_speech() -> None:
    lengths, options = durations(5000), BatchOptions(240)
    batches = BucketedBatches(lengths, RATE, options)
    shapes: set[tuple[int, int]] = set()
    for epoch in range(3):
        plans = batches.epoch(epoch)
        padded = sum(len(plan.places) * plan.samples for plan in plans)
        assert 1 - sum(lengths) * RATE / padded < 0.06
        full = [plan for plan in plans if len(plan.places) * plan.samples > 0.9 * 240 * RATE]
        assert len(full) >= len(plans) - 4
        shapes |= {(len(plan.places), plan.samples) for plan in plans}
    assert len(shapes) <= len(batches.sizes) + 6
    assert {size for _, size in shapes} <= set(batches.sizes)
    ratios = [b / a for a, b in zip(batches.sizes, batches.sizes[1:], strict=False)]
    assert max(ratios) < 1.101
    assert batches.sizes[-1] == max(np.ceil(np.array(lengths) * RATE))


def test_epochs_differ_and_repeat() -> None:
    lengths = durations(300)
    first, again, other = (BucketedBatches(lengths, RATE, BatchOptions(60), seed=seed) for seed in (3, 3, 4))
    assert first.epoch(0) == again.epoch(0)
    assert first.epoch(1) == again.epoch(1)

    def members(plans: list[BatchPlan]) -> set[frozenset[int]]:
        return {frozenset(plan.places) for plan in plans}

    assert len(members(first.epoch(0)) & members(first.epoch(1))) < 3
    assert members(first.epoch(0)) != members(other.epoch(0))
    steady = BucketedBatches(lengths, RATE, BatchOptions(60, shuffle=False))
    assert [plan.places for plan in steady.epoch(0)] == [plan.places for plan in steady.epoch(5)]


def test_any_position_is_resumed() -> None:
    lengths, options = durations(100), BatchOptions(60)
    whole = BucketedBatches(lengths, RATE, options, seed=1, rank=1, world=2)
    per_epoch = whole.steps_per_epoch()
    run, states = [], []
    for _ in range(3 * per_epoch):
        states.append(whole.state())
        run.append(next(whole))
    assert [plan.epoch for plan in run].count(0) == per_epoch
    assert [plan.number for plan in run[:per_epoch]] == list(range(per_epoch))
    for place in range(0, len(run), 3):
        resumed = BucketedBatches(lengths, RATE, options, seed=1, rank=1, world=2)
        resumed.restore(states[place])
        assert list(islice(resumed, len(run) - place)) == run[place:]


def test_first_epochs_go_from_short_to_long() -> None:
    batches = BucketedBatches(durations(300), RATE, BatchOptions(60, sorted_epochs=1))
    sizes = [[plan.samples for plan in batches.epoch(epoch)] for epoch in range(2)]
    assert sizes[0] == sorted(sizes[0])
    assert sizes[1] != sorted(sizes[1])


def test_crops_are_within_the_utterance_and_repeat() -> None:
    lengths = [0.5, 2.0, 30.0]
    batches = BucketedBatches(lengths, RATE, BatchOptions(10, crop_seconds=2.0))
    assert batches.sizes[-1] == 2 * RATE
    assert [batches.crop(place, 0) for place in (0, 1)] == [(0, 500), (0, 2000)]
    starts = [batches.crop(2, epoch)[0] for epoch in range(200)]
    assert starts == [BucketedBatches(lengths, RATE, batches.options).crop(2, epoch)[0] for epoch in range(200)]
    assert min(starts) >= 0
    assert max(starts) <= 28000
    assert np.mean(starts) == pytest.approx(14000, abs=4 * 28000 / 12**0.5 / 200**0.5)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="expected at least one utterance for each of 3 processes, got 2"):
        BucketedBatches([1.0, 2.0], RATE, world=3)
    with pytest.raises(ConfigError, match="expected utterances of some length, got one of 0 samples"):
        BucketedBatches([1.0, 0.0], RATE)
    with pytest.raises(ConfigError, match=r"expected utterances of at most batch_seconds=10, got one of 12\.00 s"):
        BucketedBatches([1.0, 12.0], RATE, BatchOptions(10))
    with pytest.raises(ConfigError, match=r"^BatchOptions: batch_seconds=0 must be .*; size_ratio=1 must be .*> 1$"):
        BatchOptions(0, size_ratio=1)
    lengths = durations(50)
    state = BucketedBatches(lengths, RATE, BatchOptions(60)).state()
    others = [
        BucketedBatches(lengths, RATE, BatchOptions(30)),
        BucketedBatches(lengths, RATE, BatchOptions(60), seed=1),
        BucketedBatches(lengths, RATE, BatchOptions(60), world=2),
    ]
    for other in others:
        with pytest.raises(ConfigError, match=r"expected a position in batches with .*; resume with the same utterances"):
            other.restore(state)
    with pytest.raises(ConfigError, match="got step -1 of"):
        BucketedBatches(lengths, RATE, BatchOptions(60)).restore({**state, "number": -1})
