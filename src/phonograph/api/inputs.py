"""What every call of the API takes as speech: a path, an `Audio` or an array, brought to the rate and the channels of a model.

It knows audio, and no model.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, Union

import numpy as np
import numpy.typing as npt
import torch

from phonograph import audio
from phonograph.audio import Audio
from phonograph.errors import AudioError, ConfigError

__all__ = [
    "AudioFormat",
    "BlocksAgain",
    "Progress",
    "Speech",
    "blocks_of",
    "clip_of",
    "groups_by_length",
    "named",
    "refuse_unusable",
    "usable",
]

Speech: TypeAlias = Union[str, os.PathLike[str], Audio, npt.NDArray[np.float32]]  # noqa: UP007 (a value, on Python 3.10)
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


def clip_of(speech: Speech, wanted: AudioFormat, sampling_rate: int | None) -> Audio:
    """The whole of it in memory; `sampling_rate` is that of arrays, None the wanted one.

    Raises:
        AudioError: audio that can't be used.
    """
    if isinstance(speech, (str, os.PathLike)):
        return audio.load(speech, sampling_rate=wanted.sampling_rate, mono=wanted.mono, channel=wanted.channel)
    clip = speech if isinstance(speech, Audio) else Audio(speech, sampling_rate or wanted.sampling_rate)
    return (clip.mono() if wanted.mono else clip).resample(wanted.sampling_rate)


def blocks_of(speech: Speech, wanted: AudioFormat, block_samples: int, sampling_rate: int | None) -> Iterator[Audio]:
    """Block by block, without ever holding the whole of a file.

    Raises:
        AudioError: audio that can't be used.
    """
    if isinstance(speech, (str, os.PathLike)):
        yield from audio.stream(
            speech,
            block_samples=block_samples,
            sampling_rate=wanted.sampling_rate,
            mono=wanted.mono,
            channel=wanted.channel,
        )
        return
    clip = clip_of(speech, wanted, sampling_rate)
    for start in range(0, clip.num_samples, block_samples):
        yield Audio(clip.samples[:, start : start + block_samples], wanted.sampling_rate)


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
        AudioError: samples that are not finite, fewer of them than `shortest_samples`, or all of them the same.
    """
    levels: set[float] = set()
    count, rate = 0, 0
    for block in blocks:
        lowest, highest = float(block.samples.min()), float(block.samples.max())
        if not math.isfinite(lowest + highest):
            raise AudioError("expected finite samples, got NaN or infinite ones; repair this audio or export it again")
        if len(levels) < 2:
            levels |= {lowest, highest}
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
def named(item: Speech, place: int | None) -> Iterator[None]:
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
