"""What every call takes as speech: groups of similar length, and what is refused whatever the model."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phonograph.api.inputs import groups_by_length, named, usable
from phonograph.audio import Audio
from phonograph.errors import AudioError, ConfigError


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 100), max_size=30), st.integers(1, 8), st.floats(0, 1))
def test_groups_hold_each_place_once_and_little_padding(lengths: list[float], batch_size: int, most_padding: float) -> None:
    groups = groups_by_length(lengths, batch_size, most_padding)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    for group in groups:
        assert 1 <= len(group) <= batch_size
        held = [lengths[place] for place in group]
        assert min(held) >= (1 - most_padding) * max(held)
        assert held == sorted(held)


def test_groups_are_as_large_as_may_be() -> None:
    assert groups_by_length([3, 1, 2, 3, 1], 2, 1.0) == [[1, 4], [2, 0], [3]]
    assert groups_by_length([3, 1, 2, 3, 1], 8, 0.0) == [[1, 4], [2], [0, 3]]


def blocks(*parts: list[float]) -> Iterator[Audio]:
    return (Audio(np.array(part, np.float32), 16000) for part in parts)


def test_usable_blocks_go_through() -> None:
    assert [block.num_samples for block in usable(blocks([0, 0], [0.5, 0, 0]), 5)] == [2, 3]
    assert [block.num_samples for block in usable(blocks([0, 0], [0.5, 0.5, 0.5]), 5)] == [2, 3]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (([0, 1], [0, 1]), r"expected at least 5 samples \(0\.3125 ms\) at 16000 Hz, got 4; leave out audio as short"),
        (([0.5] * 4, [0.5] * 4), "expected speech, got digital silence; check the recording, or pass channel="),
        (([0, 1, 0], [np.nan, 1, 0]), "expected finite samples, got NaN or infinite ones; repair this audio"),
        (([-np.inf, np.inf, 0, 0, 0],), "expected finite samples"),
    ],
)
def test_what_nothing_can_be_recognised_in(parts: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(AudioError, match=message):
        list(usable(blocks(*parts), 5))


@pytest.mark.parametrize(
    ("speech", "place", "error", "message"),
    [
        (np.zeros(1), 3, "too bad", "item 3: too bad"),
        (np.zeros(1), None, "too bad", "too bad"),
        (Path("a.wav"), 3, "too bad", "a.wav: too bad"),
        ("a.wav", None, "too bad", "a.wav: too bad"),
        ("a.wav", 3, "no samples in a.wav", "no samples in a.wav"),
    ],
)
def test_an_error_says_which_item_it_is_about(speech: str, place: int | None, error: str, message: str) -> None:
    with pytest.raises(AudioError, match=f"^{re.escape(message)}$"), named(speech, place):
        raise AudioError(error)
    with pytest.raises(ConfigError, match=r"^too bad$"), named(speech, place):
        raise ConfigError("too bad")
