"""Windows: cores cover a recording once, wherever its blocks end, and are cut where it is quiet."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phonograph.api.windows import WindowPlan, windows_of
from phonograph.audio import Audio

PLAN = WindowPlan(core_samples=4000, search_samples=1000, context_samples=500, step_samples=20, quiet_samples=100)


def blocks(samples: np.ndarray, sizes: list[int]) -> Iterator[Audio]:
    start = 0
    while start < len(samples):
        size = sizes[start % len(sizes)]
        yield Audio(samples[None, start : start + size], 1000)
        start += size


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30_000), st.lists(st.integers(1, 7000), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_cores_cover_the_recording_once(length: int, sizes: list[int], seed: int) -> None:
    samples = np.random.default_rng(seed).standard_normal(length).astype(np.float32)
    windows = list(windows_of(blocks(samples, sizes), PLAN))
    assert [w.core_start for w in windows] == [0, *(w.core_end for w in windows[:-1])]
    assert windows[-1].core_end == length
    for window in windows:
        stop = window.start + len(window.samples)
        np.testing.assert_array_equal(window.samples, samples[window.start : stop])
        assert window.start % PLAN.step_samples == window.core_start % PLAN.step_samples == 0
        assert window.start == max(0, window.core_start - PLAN.context_samples)
        assert stop == min(length, window.core_end + PLAN.context_samples)
        assert window.core_end - window.core_start <= PLAN.core_samples + PLAN.search_samples


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 7000), st.integers(0, 2**32 - 1))
def test_the_blocks_of_the_source_do_not_matter(size: int, seed: int) -> None:
    samples = np.random.default_rng(seed).standard_normal(17_000).astype(np.float32)
    one = [(w.start, w.core_end) for w in windows_of(blocks(samples, [17_000]), PLAN)]
    assert one == [(w.start, w.core_end) for w in windows_of(blocks(samples, [size]), PLAN)]


@pytest.mark.parametrize("pause", [3100, 3500, 3900])
def test_cut_in_a_pause(pause: int) -> None:
    samples = np.random.default_rng(0).standard_normal(12_000).astype(np.float32)
    samples[pause - 60 : pause + 60] *= 0.01
    first = next(windows_of(blocks(samples, [12_000]), PLAN))
    assert abs(first.core_end - pause) <= 20


def test_cut_in_the_middle_of_digital_silence() -> None:
    samples = np.random.default_rng(0).standard_normal(12_000).astype(np.float32)
    samples[3200:3800] = 0
    first = next(windows_of(blocks(samples, [12_000]), PLAN))
    assert abs(first.core_end - 3500) <= 20


def test_an_unbounded_recording_is_not_held() -> None:
    def endless() -> Iterator[Audio]:
        generator = np.random.default_rng(0)
        while True:
            yield Audio(generator.standard_normal((1, 2500)).astype(np.float32), 1000)

    windows = windows_of(endless(), PLAN)
    longest = max(len(next(windows).samples) for _ in range(200))
    assert longest <= PLAN.core_samples + 2 * PLAN.context_samples


def test_plan_in_seconds() -> None:
    plan = WindowPlan.in_seconds(16000, 320, core=30, search=8, context=4)
    assert (plan.core_samples, plan.search_samples, plan.context_samples) == (480_000, 128_000, 64_000)
    assert plan.quiet_samples == 3200
