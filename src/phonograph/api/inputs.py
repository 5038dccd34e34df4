"""What every call of the API takes as speech: a path, an `Audio`, an array or a tensor, brought to a model's rate and channels.

It knows audio, and no model.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, Union

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phonograph import audio
from phonograph.audio import Audio
from phonograph.audio.io import check_range
from phonograph.errors import AudioError, ConfigError

__all__ = [
    "AudioFormat",
    "BlocksAgain",
    "Item",
    "Progress",
    "Recording",
    "Speech",
    "blocks_of",
    "clip_of",
    "groups_by_length",
    "item_of",
    "items_of",
    "named",
    "refuse_unusable",
    "usable",
]

Recording: TypeAlias = Union[str, os.PathLike[str], Audio]  # noqa: UP007 (a value, on Python 3.10)
"""What arrays and tensors have become an `Audio` in."""
Speech: TypeAlias = Union[Recording, npt.NDArray[np.float32], Tensor]  # noqa: UP007 (as above)
Progress: TypeAlias = Callable[[float], None]
"""Called with the seconds of audio that were worked through since the call before."""
BlocksAgain: TypeAlias = Callable[[], Iterator[Audio]]
"""Gives the blocks of a recording, each time from its beginning."""


@dataclass(frozen=True)
class AudioFormat:
    """What a model wants: Hz, one channel or all, and of files this channel alone, counted from 0."""

    sampling_rate: int
    mono: bool = True
    channel: int | None = None


class Item(NamedTuple):
    """One recording of a call, and its place in the list that it stands in, if there is one."""

    recording: Recording
    place: int | None


def items_of(speech: Speech | Iterable[Speech], wanted: AudioFormat, sampling_rate: int | None) -> tuple[list[Item], bool]:
    """What a call was given, and whether that was one item rather than a list.

    Args:
        sampling_rate: of arrays and tensors, in Hz; None is the wanted one.

    Raises:
        AudioError: no speech, or samples that can't be used.
    """
    if isinstance(speech, Iterable) and not isinstance(speech, (str, bytes, np.ndarray, Tensor)):
        return [item_of(item, wanted, sampling_rate, place) for place, item in enumerate(speech)], False
    return [item_of(speech, wanted, sampling_rate)], True


def item_of(speech: object, wanted: AudioFormat, sampling_rate: int | None, place: int | None = None) -> Item:
    """The same of one item.

    Raises:
        AudioError: as for `items_of`.
    """
    if isinstance(speech, (str, os.PathLike)):
        return Item(speech, place)
    rate = wanted.sampling_rate if sampling_rate is None else sampling_rate
    if isinstance(speech, Tensor):
        speech = speech.detach().cpu()
        speech = (speech.float() if speech.is_floating_point() else speech).numpy()  # NumPy has no bfloat16
    with named(speech, place):
        clip = Audio(speech, rate) if isinstance(speech, np.ndarray) else speech
        if not isinstance(clip, Audio):
            raise AudioError(
                f"expected a path, an Audio, an array or a tensor, or a list of these, got {type(clip).__name__}; pass samples "
                "as one array, or what phonograph.audio.load returns"
            )
        _range_of(clip)
    return Item(clip, place)


def clip_of(recording: Recording, wanted: AudioFormat) -> Audio:
    """The whole of it in memory.

    Raises:
        AudioError: audio that can't be used.
    """
    if isinstance(recording, Audio):
        return (recording.mono() if wanted.mono else recording).resample(wanted.sampling_rate)
    clip = audio.load(recording, sampling_rate=wanted.sampling_rate, mono=wanted.mono, channel=wanted.channel)
    _range_of(clip)
    return clip


def blocks_of(recording: Recording, wanted: AudioFormat, block_samples: int) -> Iterator[Audio]:
    """Block by block, without ever holding the whole of a file.

    Raises:
        AudioError: audio that can't be used.
    """
    if isinstance(recording, Audio):
        clip = clip_of(recording, wanted)
        for start in range(0, clip.num_samples, block_samples):
            yield Audio(clip.samples[:, start : start + block_samples], wanted.sampling_rate)
        return
    for block in audio.stream(
        recording,
        block_samples=block_samples,
        sampling_rate=wanted.sampling_rate,
        mono=wanted.mono,
        channel=wanted.channel,
    ):
        _range_of(block)
        yield block


def _range_of(clip: Audio) -> tuple[float, float]:
    """Its lowest and its highest sample, refused where no model can do anything with them."""
    lowest, highest = float(clip.samples.min()), float(clip.samples.max())
    check_range(lowest, highest)
    return lowest, highest


def refuse_unusable(device: str) -> None:
    """Refuse a device that is not there before a model is read for it.

    Raises:
        ConfigError: torch can't compute on it here.
    """
    try:
        torch.zeros(1, device=device).item()
    # Each backend that is missing has its own way to say so; a build without CUDA asserts.
    except (RuntimeError, AssertionError) as error:
        here = ", ".join(["cpu", *(name for name in ("cuda", "mps") if getattr(torch, name).is_available())])
        raise ConfigError(f"expected a device that works here ({here}), got {device!r}; choose one of these") from error


def usable(blocks: Iterator[Audio], shortest_samples: int) -> Iterator[Audio]:
    """The same mono blocks, refused if there is nothing in them to recognise: whatever else, at their end.

    Raises:
        AudioError: samples that are not finite or far from [-1, 1], fewer than `shortest_samples`, or all of them the same.
    """
    levels: set[float] = set()
    count, rate = 0, 0
    for block in blocks:
        found = _range_of(block)
        if len(levels) < 2:
            levels.update(found)
        count, rate = count + block.num_samples, block.sampling_rate
        yield block
    if count < shortest_samples:
        raise AudioError(
            f"expected at least {shortest_samples} samples ({shortest_samples / rate * 1000:g} ms) at {rate} Hz, got {count}; "
            "leave out audio as short as this"
        )
    if len(levels) < 2:
        raise AudioError("expected speech, got digital silence; check the recording, or pass channel=... if it has several")


@contextlib.contextmanager
def named(item: object, place: int | None) -> Iterator[None]:
    """Let an AudioError say which item it is about: a path, or a place in a list, counted from 0; None is no list."""
    try:
        yield
    except AudioError as error:
        name = os.fspath(item) if isinstance(item, (str, os.PathLike)) else None if place is None else f"item {place}"
        if name is None or name in str(error):
            raise
        raise AudioError(f"{name}: {error}") from error


def groups_by_length(lengths: Sequence[float], batch_size: int, most_padding: float) -> list[list[int]]:
    """Places in a list of lengths, in groups of similar length, shortest first.

    Args:
        most_padding: share of a group's longest item that its shortest one may lack.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        fits = groups and len(groups[-1]) < batch_size and lengths[groups[-1][0]] >= (1 - most_padding) * lengths[place]
        if fits:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups
