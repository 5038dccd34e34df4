"""What of a corpus can be trained on, and what is left out and why: found out before the first step.

    report = validate(read_manifest("LibriSpeech"), Limits(longest_seconds=20), store=store)
    print(report)                   # one line on all, and one for each fault
    train_on(report.kept)

Every recording is opened once, however many utterances share it. With a store, every utterance is also decoded into it, which
finds what no header tells: damage further on, and digital silence. Nothing that is wrong with the audio raises an error here.
"""

import collections
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Annotated

from phonograph import audio
from phonograph.configuration import CheckedOptions, Rule
from phonograph.errors import AudioError
from phonograph.files import atomic_write
from phonograph.training.data.manifest import Utterance
from phonograph.training.data.store import AudioStore, Fault, by_recording

__all__ = ["KINDS", "Fault", "Limits", "Report", "validate"]

KINDS = ("unreadable", "empty", "wrong_offset", "too_short", "too_long", "untranscribed")
"""What may be wrong with an utterance: not audio or damaged; no samples or digital silence; not within its recording; of a
length outside the limits; without a transcript."""

_ROUNDING_SECONDS = 0.05  # manifests give times to a hundredth of a second, each time rounded
_ESTIMATE_SECONDS = 0.5  # how far off the length of a recording may be whose header only lets it be estimated


@dataclass(frozen=True)
class Limits(CheckedOptions):
    """What an utterance must be to be kept.

    Raises:
        ConfigError: values that break a rule, or no length left between the limits; the message holds every fault.
    """

    shortest_seconds: Annotated[float, Rule("utterances below are left out", minimum=0)] = 0.1
    longest_seconds: Annotated[float, Rule("utterances above are left out", above=0)] = 30.0
    transcripts: Annotated[bool, Rule("leave out what has no transcript")] = True

    def _relation_faults(self) -> list[str]:
        if self.shortest_seconds <= self.longest_seconds:
            return []
        return [f"shortest_seconds={self.shortest_seconds} must be at most longest_seconds={self.longest_seconds}"]


@dataclass(frozen=True)
class Report:
    """What is kept, and each fault of what is not, both in the order of the corpus.

    Attributes:
        kept: with their durations, for those that had none too.
        faults: an utterance left out may have several.
    """

    kept: list[Utterance]
    faults: list[Fault]

    @property
    def left_out(self) -> list[Utterance]:
        """Each utterance with a fault, once."""
        return list({id(fault.utterance): fault.utterance for fault in self.faults}.values())

    @property
    def counts(self) -> dict[str, int]:
        """Faults of each kind that there is, in the order of `KINDS`."""
        counts = collections.Counter(fault.kind for fault in self.faults)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    @property
    def hours(self) -> float:
        """Of what is kept."""
        return _hours(self.kept)

    def summary(self) -> str:
        """One line."""
        kept = f"kept {len(self.kept)} utterances, {self.hours:.2f} h"
        if not self.faults:
            return f"{kept}; left out none"
        left_out = self.left_out
        counts = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in self.counts.items())
        return f"{kept}; left out {len(left_out)}, {_hours(left_out):.2f} h: {counts}"

    def __str__(self) -> str:
        return "\n".join([self.summary(), *(f"{fault.kind}: {fault.reason}" for fault in self.faults)])

    def write(self, path: str | os.PathLike[str]) -> None:
        """The faults as JSON lines.

        Raises:
            OutputError: the file can't be written.
        """
        with atomic_write(path) as file:
            for fault in self.faults:
                row = {"kind": fault.kind, "utterance": fault.utterance.name, "reason": fault.reason}
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def validate(
    utterances: Sequence[Utterance],
    limits: Limits | None = None,
    *,
    store: AudioStore | None = None,
    workers: int | None = None,
) -> Report:
    """Look at every utterance.

    Args:
        limits: `Limits()` by default.
        store: decode what is left into it.
        workers: threads that open recordings; as many as processors by default.
    """
    limits = limits or Limits()
    groups = by_recording(utterances)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        examined = pool.map(lambda group: _examined([utterances[place] for place in group], limits), groups)
        results = dict(zip(itertools.chain.from_iterable(groups), itertools.chain.from_iterable(examined), strict=True))
    found = {place: faults for place, (_, faults) in results.items()}
    sound = [place for place in range(len(utterances)) if not found[place]]
    kept = {place: results[place][0] for place in sound}
    if store is not None:
        damaged = {id(fault.utterance): fault for fault in store.fill(list(kept.values()))}
        for place in sound:
            if fault := damaged.get(id(kept[place])):
                found[place].append(fault)
                del kept[place]
    return Report(list(kept.values()), [fault for place in range(len(utterances)) for fault in found[place]])


def _hours(utterances: Iterable[Utterance]) -> float:
    return sum(utterance.duration_seconds or 0.0 for utterance in utterances) / 3600


def _examined(utterances: list[Utterance], limits: Limits) -> list[tuple[Utterance, list[Fault]]]:
    """Utterances of one recording, with their durations if those can be told, and their faults."""
    try:
        length, exact = _recording_seconds(utterances[0])
    except AudioError as error:
        kind = "empty" if _is_empty(utterances[0]) else "unreadable"
        return [
            (utterance, [Fault(utterance, kind, str(error)), *_transcript_faults(utterance, limits)])
            for utterance in utterances
        ]
    slack = _ROUNDING_SECONDS if exact else _ESTIMATE_SECONDS
    results = []
    for utterance in utterances:
        duration = utterance.duration_seconds
        timed = utterance if duration is not None else replace(utterance, duration_seconds=length - utterance.offset_seconds)
        faults = _place_faults(timed, length, slack) or _length_faults(timed, limits)
        results.append((timed, [*faults, *_transcript_faults(timed, limits)]))
    return results


def _recording_seconds(utterance: Utterance) -> tuple[float, bool]:
    """Length of the recording, and whether that is exact. Raises AudioError where nothing could be decoded."""
    source = utterance.opened()
    info = audio.info(source)
    if info.num_channels > 2:
        raise AudioError(f"{utterance.name}: expected 1 or 2 channels, got {info.num_channels}; mix it down first")
    if info.num_samples is not None:
        return info.num_samples / info.sampling_rate, True
    if info.duration_seconds is not None:
        return info.duration_seconds, False
    return _decoded_seconds(source), True


def _decoded_seconds(source: str | bytes) -> float:
    """0 for a recording whose header promises nothing and that has nothing."""
    length = 0.0
    try:
        for block in audio.stream(source, block_seconds=10, channel=0):
            length += block.duration_seconds
    except AudioError:
        if length:
            raise
    return length


def _is_empty(utterance: Utterance) -> bool:
    source = utterance.source
    return isinstance(source, str) and os.path.isfile(source) and not os.path.getsize(source)


def _place_faults(utterance: Utterance, length: float, slack: float) -> list[Fault]:
    start, duration = utterance.offset_seconds, utterance.duration_seconds or 0.0
    name = utterance.name
    if not length:
        return [Fault(utterance, "empty", f"{name}: no samples")]
    if not 0 <= start < length:
        return [Fault(utterance, "wrong_offset", f"{name}: begins outside its recording of {length:.2f} s")]
    if not duration > 0:
        return [Fault(utterance, "empty", f"{name}: lasts {duration:g} s")]
    if start + duration > length + slack:
        reason = f"{name}: ends at {start + duration:.2f} s, after its recording of {length:.2f} s"
        return [Fault(utterance, "wrong_offset", reason)]
    return []


def _length_faults(utterance: Utterance, limits: Limits) -> list[Fault]:
    duration = utterance.duration_seconds or 0.0
    if duration < limits.shortest_seconds:
        reason = f"{utterance.name}: {duration:.2f} s are less than {limits.shortest_seconds:g} s"
        return [Fault(utterance, "too_short", reason)]
    if duration > limits.longest_seconds:
        return [Fault(utterance, "too_long", f"{utterance.name}: {duration:.2f} s are more than {limits.longest_seconds:g} s")]
    return []


def _transcript_faults(utterance: Utterance, limits: Limits) -> list[Fault]:
    if limits.transcripts and not utterance.text.strip():
        return [Fault(utterance, "untranscribed", f"{utterance.name}: no transcript")]
    return []
