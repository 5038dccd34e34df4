"""Decoded speech at one rate: kept in memory as far as that is allowed, and read from disk beyond.

    store = AudioStore(16000, memory_bytes=8 << 30)
    faults = store.fill(utterances)                 # decodes once, in threads; says what could not be
    samples = store.samples(utterances[0])          # float32 (time,)

Samples are mono, in [-1, 1], and those of `phonograph.audio.load` for the utterance's stretch of its recording; with int16 they
are rounded to 16 bits, read from disk too. A recording that many utterances share is decoded once, from its start to the end
of the last of them, and never held whole. Knows no torch and no model.

What is kept is the beginning of what was filled in, for good: whatever takes turns would be gone again before the next epoch
comes to it. Lossy recordings differ a little around the place from which a decoder starts, so that samples from disk are those
from memory to a thousandth or so; of lossless ones they are the same.
"""

import itertools
import math
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from phonograph import audio
from phonograph.audio import Audio
from phonograph.errors import AudioError, ConfigError
from phonograph.training.data.manifest import Utterance

__all__ = ["AudioStore", "Fault", "by_recording"]

Samples: TypeAlias = npt.NDArray[np.float32]
_Key: TypeAlias = "tuple[Any, float, float | None]"

_FULL_SCALE = 32768.0
_DTYPES = ("int16", "float32")
_SPARE_SAMPLES = 2  # by which rounding may lengthen an utterance


@dataclass(frozen=True)
class Fault:
    """What is wrong with an utterance.

    Attributes:
        utterance: which.
        kind: a word of `phonograph.training.data.validate.KINDS`.
        reason: one line that names it.
    """

    utterance: Utterance
    kind: str
    reason: str


def by_recording(utterances: Sequence[Utterance]) -> list[list[int]]:
    """Places of the utterances of each recording, in the order in which recordings first come."""
    groups: defaultdict[Any, list[int]] = defaultdict(list)
    for place, utterance in enumerate(utterances):
        groups[_recording(utterance)].append(place)
    return list(groups.values())


class AudioStore:
    """Speech at one rate, from memory or from disk.

    Args:
        sampling_rate: in Hz, of what it gives.
        dtype: "int16" or "float32", the precision of samples, in memory too.
        memory_bytes: how much may be kept; 0 reads everything from disk.
        workers: threads that `fill` decodes with; as many as processors by default.

    Raises:
        ConfigError: another dtype or a negative amount of memory.
    """

    def __init__(self, sampling_rate: int, *, dtype: str = "int16", memory_bytes: int = 0, workers: int | None = None) -> None:
        if dtype not in _DTYPES:
            raise ConfigError(f"expected dtype 'int16' or 'float32' for audio in memory, got {dtype!r}; choose one of these")
        if memory_bytes < 0:
            raise ConfigError(f"expected memory_bytes of at least 0, got {memory_bytes}; 0 reads everything from disk")
        self.sampling_rate = sampling_rate
        self._dtype = np.dtype(dtype)
        self._memory_bytes = memory_bytes
        self._workers = workers or os.cpu_count() or 1
        self._kept: dict[_Key, npt.NDArray[Any]] = {}
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of samples in memory, never more than was allowed."""
        return self._nbytes

    @property
    def num_kept(self) -> int:
        """Utterances in memory."""
        return len(self._kept)

    def fill(self, utterances: Sequence[Utterance]) -> list[Fault]:
        """Decode every utterance once, and keep as many from the first on as there is memory for.

        Utterances without a duration are not kept; `validate` tells all durations.

        Returns:
            In the order of the utterances, those that can't be decoded, that have no samples, or nothing but digital silence.
            They are not kept.
        """
        chosen = self._chosen(utterances)
        groups = [[utterances[place] for place in group] for group in by_recording(utterances)]
        with ThreadPoolExecutor(self._workers) as pool:
            found = list(pool.map(lambda group: self._fill(group, chosen), groups))
        places = {id(utterance): place for place, utterance in enumerate(utterances)}
        return sorted(itertools.chain.from_iterable(found), key=lambda fault: places[id(fault.utterance)])

    def samples(self, utterance: Utterance, start_sample: int = 0, count: int | None = None) -> Samples:
        """An utterance's samples, or a part of them.

        Args:
            start_sample: leave out so many samples first.
            count: give so many at most; None is all.

        Returns:
            float32 (time,).

        Raises:
            AudioError: it can't be decoded.
        """
        kept = self._kept.get(_key(utterance))
        if kept is not None:
            part = kept[start_sample : None if count is None else start_sample + count]
            return _as_floats(part)
        return self._read(utterance, start_sample, count)

    def _read(self, utterance: Utterance, start_sample: int, count: int | None) -> Samples:
        """From disk, cut at the same sample as in memory."""
        loaded = audio.load(
            utterance.opened(),
            mono=True,
            start_seconds=utterance.offset_seconds,
            duration_seconds=utterance.duration_seconds,
            sampling_rate=self.sampling_rate,
        ).samples[0]
        samples = _as_floats(_as_int16(loaded)) if self._dtype == np.int16 else loaded
        return samples[start_sample : None if count is None else start_sample + count]

    def _chosen(self, utterances: Sequence[Utterance]) -> set[_Key]:
        """What there is memory for, told before decoding: it must not depend on which thread is done first."""
        chosen: set[_Key] = set()
        free = self._memory_bytes - self._nbytes
        for utterance in utterances:
            key = _key(utterance)
            if utterance.duration_seconds is None or key in chosen or key in self._kept:
                continue
            free -= (math.ceil(utterance.duration_seconds * self.sampling_rate) + _SPARE_SAMPLES) * self._dtype.itemsize
            if free < 0:
                break
            chosen.add(key)
        return chosen

    def _fill(self, utterances: list[Utterance], chosen: set[_Key]) -> list[Fault]:
        """Utterances of one recording."""
        faults = []
        waiting = {id(utterance): utterance for utterance in utterances}
        try:
            for utterance, clip in _clips(utterances):
                del waiting[id(utterance)]
                if not clip.samples.any():
                    faults.append(Fault(utterance, "empty", f"{utterance.name}: nothing but digital silence"))
                elif _key(utterance) in chosen:
                    self._keep(utterance, clip)
        except AudioError as error:
            reason = str(error)
            for utterance in waiting.values():
                named = reason if utterance.name in reason else f"{utterance.name}: {reason}"
                faults.append(Fault(utterance, "unreadable", named))
        else:
            faults += [Fault(utterance, "empty", f"{utterance.name}: no samples") for utterance in waiting.values()]
        return faults

    def _keep(self, utterance: Utterance, clip: Audio) -> None:
        samples = clip.resample(self.sampling_rate).samples[0]
        kept = _as_int16(samples) if self._dtype == np.int16 else samples.copy()
        with self._lock:
            self._kept[_key(utterance)] = kept
            self._nbytes += kept.nbytes


def _recording(utterance: Utterance) -> Any:
    source = utterance.source
    return source if isinstance(source, str) else (id(source.dataset), source.row)


def _key(utterance: Utterance) -> _Key:
    return _recording(utterance), utterance.offset_seconds, utterance.duration_seconds


def _as_int16(samples: Samples) -> npt.NDArray[np.int16]:
    steps: npt.NDArray[np.int16] = np.rint(samples * _FULL_SCALE).clip(-_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
    return steps


def _as_floats(samples: npt.NDArray[Any]) -> Samples:
    if samples.dtype == np.float32:
        return samples
    floats: Samples = np.multiply(samples, 1 / _FULL_SCALE, dtype=np.float32)
    return floats


def _clips(utterances: list[Utterance]) -> Iterator[tuple[Utterance, Audio]]:
    """Utterances of one recording as they end, at the recording's own rate; those after its end don't come.

    Raises AudioError where the recording is damaged.
    """
    info_rate = 0
    position = 0
    spans: list[tuple[int, float, Utterance]] = []
    held: list[Samples] = []
    begin = 0  # of what is held
    for block in audio.stream(utterances[0].opened(), block_seconds=1, mono=True):
        if not info_rate:
            info_rate = block.sampling_rate
            spans = sorted((_span(utterance, info_rate) for utterance in utterances), key=lambda span: span[1])
        position += block.num_samples
        held.append(block.samples)
        while spans and spans[0][1] <= position:
            yield from _cut(held, begin, *spans.pop(0), info_rate)
        if not spans:
            return
        first = min(start for start, _, _ in spans)
        while held and begin + held[0].shape[1] <= first:
            begin += held.pop(0).shape[1]
    for span in spans:
        yield from _cut(held, begin, *span, info_rate)


def _span(utterance: Utterance, rate: int) -> tuple[int, float, Utterance]:
    """First sample and the one after the last."""
    start, length = round(utterance.offset_seconds * rate), utterance.duration_seconds
    return start, math.inf if length is None else start + max(1, round(length * rate)), utterance


def _cut(
    held: list[Samples], begin: int, start: int, stop: float, utterance: Utterance, rate: int
) -> Iterator[tuple[Utterance, Audio]]:
    joined = np.concatenate(held, axis=1) if held else np.zeros((1, 0), np.float32)
    end = int(min(stop - begin, joined.shape[1]))
    if start - begin < end:
        yield utterance, Audio(joined[:, start - begin : end], rate)
