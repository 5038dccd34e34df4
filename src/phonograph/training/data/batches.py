"""Which utterances make a batch: of similar length, about equally many seconds in each, in shapes that come again.

    batches = BucketedBatches(durations, 16000, BatchOptions(batch_seconds=240), seed=1, rank=0, world=2)
    for plan in batches:                        # without end, epoch after epoch
        plan.places, plan.samples               # which utterances, and the length that they are padded to

The order follows from the seed and the epoch only, so a position is two numbers, and any process can go to it at once. An epoch
has every utterance exactly once over all processes, and every process has as many batches. Padded lengths come from a fixed
ladder, and so does with each the number of rows: a device meets few shapes, and plans its transforms and its memory once.

How: utterances are put in buckets, one for each rung of the ladder, and shuffled in each. From the longest bucket down they are
cut into steps, as many utterances in each as fill `batch_seconds` on every process at the length of the step's longest; a step
may so reach into the bucket below, but ends before its padding would be more than `most_padding`. Then steps are shuffled.
Knows no audio and no torch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from phonograph.configuration import CheckedOptions, Rule
from phonograph.errors import ConfigError

__all__ = ["BatchOptions", "BatchPlan", "BucketedBatches"]


@dataclass(frozen=True)
class BatchOptions(CheckedOptions):
    """How batches are made.

    Raises:
        ConfigError: values that no batch can be made with; the message holds every fault.
    """

    batch_seconds: Annotated[float, Rule("seconds of a process's batch, padding counted", above=0)] = 240.0
    size_ratio: Annotated[float, Rule("of each padded length to the next shorter one", above=1)] = 1.1
    most_padding: Annotated[float, Rule("share of a step that may be padding", above=0, maximum=1)] = 0.25
    most_items: Annotated[int | None, Rule("utterances of a batch at most", minimum=1)] = None
    crop_seconds: Annotated[float | None, Rule("longer utterances are cut to this, at random", above=0)] = None
    multiple_of_samples: Annotated[int, Rule("padded lengths are multiples of this", minimum=1)] = 1
    sorted_epochs: Annotated[int, Rule("epochs at the start that go from short to long", minimum=0)] = 0
    shuffle: Annotated[bool, Rule("another order in each epoch")] = True


@dataclass(frozen=True)
class BatchPlan:
    """One batch of one process.

    Attributes:
        places: of its utterances in the list of all.
        samples: the length that they are padded to.
        epoch: counted from 0.
        number: of the step in its epoch, counted from 0.
    """

    places: tuple[int, ...]
    samples: int
    epoch: int
    number: int


class BucketedBatches:
    """Plans of batches, without end.

    Args:
        durations_seconds: of every utterance.
        sampling_rate: in Hz, of the samples that batches are padded to.
        options: `BatchOptions()` by default.
        seed: the same on every process.
        rank: of this process, from 0.
        world: number of processes.

    Raises:
        ConfigError: fewer utterances than processes, one without a length, or one that alone is longer than a batch.
    """

    def __init__(
        self,
        durations_seconds: Sequence[float],
        sampling_rate: int,
        options: BatchOptions | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.options = options or BatchOptions()
        self._seed, self._rank, self._world = seed, rank, world
        self._whole = np.ceil(np.asarray(durations_seconds, dtype=np.float64) * sampling_rate).astype(np.int64)
        crop = self.options.crop_seconds
        lengths = self._whole if crop is None else np.minimum(self._whole, round(crop * sampling_rate))
        self._refuse(lengths, sampling_rate)
        self._lengths: npt.NDArray[np.int64] = lengths
        self._batch_samples = int(self.options.batch_seconds * sampling_rate)
        self._ladder = _ladder(int(lengths.min()), int(lengths.max()), self.options)
        self._epoch, self._number = 0, 0
        self._planned: tuple[int, list[BatchPlan]] | None = None

    def _refuse(self, lengths: npt.NDArray[np.int64], sampling_rate: int) -> None:
        if len(lengths) < self._world:
            raise ConfigError(
                f"expected at least one utterance for each of {self._world} processes, got {len(lengths)}; "
                "add speech or use fewer processes"
            )
        if (shortest := int(lengths.min())) < 1:
            raise ConfigError(f"expected utterances of some length, got one of {shortest} samples; validate them first")
        longest = math.ceil(int(lengths.max()) / self.options.multiple_of_samples) * self.options.multiple_of_samples
        if longest > self.options.batch_seconds * sampling_rate:
            raise ConfigError(
                f"expected utterances of at most batch_seconds={self.options.batch_seconds:g}, got one of "
                f"{longest / sampling_rate:.2f} s; raise batch_seconds or leave out what is longer"
            )

    @property
    def sizes(self) -> list[int]:
        """Every length, in samples, that batches are padded to, shortest first."""
        return [int(size) for size in self._ladder]

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Batches of each process in an epoch."""
        return len(self.epoch(epoch))

    def epoch(self, number: int) -> list[BatchPlan]:
        """The batches of this process in an epoch."""
        if self._planned is None or self._planned[0] != number:
            self._planned = (number, self._plan(number))
        return self._planned[1]

    def crop(self, place: int, epoch: int) -> tuple[int, int]:
        """Which samples of an utterance an epoch takes: the first one and their number; all where nothing is cut."""
        count = int(self._lengths[place])
        spare = int(self._whole[place]) - count
        start = int(np.random.default_rng((self._seed, epoch, place)).integers(spare + 1)) if spare else 0
        return start, count

    def __iter__(self) -> Iterator[BatchPlan]:
        return self

    def __next__(self) -> BatchPlan:
        plans = self.epoch(self._epoch)
        plan = plans[self._number]
        self._number += 1
        if self._number == len(plans):
            self._epoch, self._number = self._epoch + 1, 0
        return plan

    def state(self) -> dict[str, Any]:
        """The position, and what tells whether another run's batches are the same."""
        steps = self.steps_per_epoch(self._epoch)
        return {"epoch": self._epoch, "number": self._number, "steps": steps, "seed": self._seed, "world": self._world}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a position.

        Raises:
            ConfigError: it is that of another seed, of another number of processes, or of other batches.
        """
        epoch, number = int(state["epoch"]), int(state["number"])
        steps = self.steps_per_epoch(epoch)
        here = {"steps": steps, "seed": self._seed, "world": self._world}
        there = {name: state[name] for name in here}
        if there != here or not 0 <= number < steps:
            raise ConfigError(
                f"expected a position in batches with {here}, got step {number} of {there}; resume with the same utterances, "
                "options, seed and number of processes"
            )
        self._epoch, self._number = epoch, number

    def _plan(self, epoch: int) -> list[BatchPlan]:
        random = np.random.default_rng((self._seed, epoch))
        rungs = np.searchsorted(self._ladder, self._lengths)
        shuffled = random.permutation(len(rungs)) if self.options.shuffle else np.arange(len(rungs))
        order = shuffled[np.argsort(-rungs[shuffled], kind="stable")]  # the longest first
        steps = self._steps(order, rungs)
        if epoch < self.options.sorted_epochs:
            turns = np.arange(len(steps))[::-1]
        else:
            turns = random.permutation(len(steps)) if self.options.shuffle else np.arange(len(steps))
        plans = []
        for number, turn in enumerate(turns.tolist()):
            step = steps[turn]
            size = int(self._ladder[rungs[step].max()])
            plans.append(BatchPlan(tuple(step[self._rank :: self._world].tolist()), size, epoch, number))
        return plans

    def _steps(self, order: npt.NDArray[np.int64], rungs: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """Places of each step's utterances, those of all processes together; each has one for every process."""
        lengths = self._lengths[order]
        steps, start = [], 0
        while start < len(order):
            size = int(self._ladder[rungs[order[start]]])
            rows = min(self._batch_samples // size, self.options.most_items or len(order)) * self._world
            speech = np.cumsum(lengths[start : start + rows])
            filled = speech >= (1 - self.options.most_padding) * size * np.arange(1, len(speech) + 1)
            # Lengths within a bucket vary both ways, so it is the last row that counts, not the first to fail.
            count = max(int(filled.nonzero()[0].max(initial=0)) + 1, min(self._world, len(speech)))
            steps.append(order[start : start + count])
            start += count
        if len(steps) > 1 and len(steps[-1]) < self._world:
            # Too few for all processes: the last two steps, both of the shortest utterances, are dealt out anew.
            rest = np.concatenate(steps[-2:])
            steps[-2:] = np.array_split(rest, 2) if len(rest) >= 2 * self._world else [rest]
        return steps


def _ladder(shortest: int, longest: int, options: BatchOptions) -> npt.NDArray[np.int64]:
    """Lengths from one that holds the shortest to one that holds the longest, each a multiple, shortest first."""
    multiple = options.multiple_of_samples
    rungs = {math.ceil(longest / multiple) * multiple}
    size = float(longest)
    while size / options.size_ratio >= shortest:
        size /= options.size_ratio
        rungs.add(math.ceil(size / multiple) * multiple)
    return np.array(sorted(rungs), dtype=np.int64)
