"""What every call takes as speech: groups of similar length, and what is refused whatever the model."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phonograph import audio
from phonograph.api.inputs import AudioFormat, blocks_of, clip_of, groups_by_length, item_of, items_of, named, usable
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
        (([0, 1, 0], [-101, 1, 0]), r"expected samples in \[-1, 1\], got a peak of 101; divide integers by their full scale"),
    ],
)
def test_what_nothing_can_be_recognised_in(parts: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(AudioError, match=message):
        list(usable(blocks(*parts), 5))


WANTED = AudioFormat(16000)
RAMP = np.linspace(-0.5, 0.5, 200, dtype=np.float32).reshape(2, 100)


@pytest.mark.parametrize(
    "speech",
    [
        RAMP,
        RAMP.astype(np.float64),
        torch.from_numpy(RAMP),
        torch.from_numpy(RAMP).double(),
        torch.from_numpy(RAMP).requires_grad_(),
        torch.from_numpy(RAMP.T.copy()).T,
        Audio(RAMP, 8000),
    ],
    ids=["array", "float64", "tensor", "float64 tensor", "leaf", "strided", "Audio"],
)
def test_samples_of_every_form_are_one(speech: np.ndarray) -> None:
    for [item], is_one in (items_of(speech, WANTED, 8000), ([items_of([speech], WANTED, 8000)[0][0]], False)):
        np.testing.assert_array_equal(item.recording.samples, RAMP)
        assert item.recording.sampling_rate == 8000
        assert item.place == (None if is_one else 0)


def test_tensors_of_other_float_types() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        tensor = torch.from_numpy(RAMP).to(dtype)
        np.testing.assert_array_equal(item_of(tensor, WANTED, None).recording.samples, tensor.float().numpy())


def test_the_rate_of_arrays_is_the_wanted_one() -> None:
    assert item_of(RAMP, WANTED, None).recording.sampling_rate == 16000
    assert clip_of(item_of(RAMP, WANTED, 8000).recording, WANTED).sampling_rate == 16000


def test_lists_keep_their_places(tmp_path: Path) -> None:
    items, is_one = items_of((each for each in (RAMP, "a.wav", tmp_path)), WANTED, None)
    assert [item.place for item in items] == [0, 1, 2]
    assert [item.recording for item in items[1:]] == ["a.wav", tmp_path]
    assert not is_one
    assert items_of("a.wav", WANTED, None) == ([("a.wav", None)], True)


@pytest.mark.parametrize(
    ("speech", "got"),
    [
        (None, "^expected a path, an Audio, an array or a tensor, or a list of these, got NoneType; pass samples as one array"),
        (5, "^expected .* got int; pass samples as one array, or what phonograph.audio.load returns"),
        (b"RIFF", "^expected .* got bytes"),
        ([0.1, 0.2], "^item 0: expected .* got float"),
        ([RAMP, [0.1, 0.2]], "^item 1: expected .* got list"),
        (torch.zeros(2, 1, 100), r"^expected samples shaped \(time,\) or \(channels, time\), got \(2, 1, 100\); pass one clip"),
        (torch.zeros(100, dtype=torch.int16), r"^expected float samples in \[-1, 1\], got int16; divide integers"),
        (RAMP * np.nan, "^expected finite samples, got NaN or infinite ones; repair this audio"),
        (torch.full((2, 9), -torch.inf), "^expected finite samples"),
        ([RAMP, RAMP * np.float32(1e30)], r"^item 1: expected samples in \[-1, 1\], got a peak of 5e\+29; divide integers by"),
        (
            RAMP * 202,
            r"^expected samples in \[-1, 1\], got a peak of 101; divide integers by their full scale \(int16: 32768\)",
        ),
    ],
)
def test_what_is_no_speech(speech: object, got: str) -> None:
    with pytest.raises(AudioError, match=got):
        items_of(speech, WANTED, None)  # type: ignore[arg-type]


def test_loud_floats_are_speech() -> None:
    assert item_of(RAMP * 200, WANTED, None).recording.samples.max() == 100


@pytest.mark.parametrize("rate", [0, -1, "16k", 16000.5])
def test_rates_that_are_none(rate: int) -> None:
    with pytest.raises(AudioError, match=f"^expected sampling_rate .* got {re.escape(repr(rate))}; pass"):
        items_of(RAMP, WANTED, rate)


def test_files_far_from_full_scale(tmp_path: Path) -> None:
    audio.save(tmp_path / "x.wav", Audio(RAMP * 1000, 16000), subtype="FLOAT")
    for read in (clip_of, lambda *arguments: list(blocks_of(*arguments, 30))):
        with pytest.raises(AudioError, match=r"^expected samples in \[-1, 1\], got a peak of \d+"):
            read(tmp_path / "x.wav", WANTED)


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
