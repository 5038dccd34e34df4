"""What every call of the API takes as speech: a path, an `Audio` or an array, brought to the rate and the channels of a model.

It knows audio, and no model.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, Union

import numpy as np
import numpy.typing as npt
import torch

from phonograph import audio
from phonograph.audio import Audio
from phonograph.errors import ConfigError

__all__ = ["AudioFormat", "Progress", "Speech", "blocks_of", "clip_of", "refuse_unusable"]

Speech: TypeAlias = Union[str, os.PathLike[str], Audio, npt.NDArray[np.float32]]  # noqa: UP007 (a value, on Python 3.10)
Progress: TypeAlias = Callable[[float], None]
"""Called with the seconds of audio that were worked through since the call before."""


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
