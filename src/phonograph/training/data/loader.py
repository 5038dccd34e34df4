"""Batches of speech, made ahead by threads while the device computes.

    loader = SpeechLoader(utterances, store, plans, transform=as_tensors)
    for batch in loader: ...
    loader.restore(state)       # what loader.state() gave: the batch after the last one handed out comes next

Threads are enough: decoding, resampling and scaling run outside Python's lock. Batches come in the order of their plans
whatever thread is done first, and what is cut at random depends on seed, epoch and utterance only.
Knows no model: `transform` turns a batch into what a task wants, in the same threads.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from phonograph.training.data.batches import BatchPlan, BucketedBatches
from phonograph.training.data.manifest import Utterance
from phonograph.training.data.store import AudioStore

__all__ = ["SpeechBatch", "SpeechLoader"]

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class SpeechBatch:
    """Utterances as one tensor.

    Shapes: B utterances, S samples of the plan.

    Attributes:
        waveforms: (B, S) float32 in [-1, 1], zeros beyond each length.
        lengths: (B,) int64, samples of each utterance.
        utterances: in the order of the rows.
        plan: where in the epoch this is.
    """

    waveforms: Tensor
    lengths: Tensor
    utterances: list[Utterance]
    plan: BatchPlan

    def to(self, device: torch.device | str) -> "SpeechBatch":
        """The same with its tensors on a device."""
        waveforms, lengths = (value.to(device, non_blocking=True) for value in (self.waveforms, self.lengths))
        return replace(self, waveforms=waveforms, lengths=lengths)


def _unchanged(batch: SpeechBatch) -> Any:
    return batch


class SpeechLoader(Generic[_Made]):
    """Batches without end, in the order of their plans.

    Args:
        utterances: those that the plans' places count.
        store: decodes them, at the rate of the plans.
        plans: which utterances make a batch; the loader takes them over.
        transform: what each batch becomes; `SpeechBatch` itself by default.
        prefetch: batches that are being made or wait, which bounds the memory they take.
        workers: threads that make them.
        pin_memory: put waveforms and lengths where a GPU can fetch them by itself.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        store: AudioStore,
        plans: BucketedBatches,
        transform: Callable[[SpeechBatch], _Made] = _unchanged,
        *,
        prefetch: int = 4,
        workers: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self._utterances, self._store, self._plans, self._transform = utterances, store, plans, transform
        self._prefetch, self._pin_memory = prefetch, pin_memory
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="speech-loader")
        self._ahead: deque[tuple[dict[str, Any], Future[_Made]]] = deque()

    def __iter__(self) -> Iterator[_Made]:
        return self

    def __next__(self) -> _Made:
        """The next batch.

        Raises:
            AudioError: an utterance that can't be decoded.
        """
        while len(self._ahead) < self._prefetch + 1:
            position = self._plans.state()
            self._ahead.append((position, self._pool.submit(self._make, next(self._plans))))
        return self._ahead.popleft()[1].result()

    def state(self) -> dict[str, Any]:
        """The position of the batch that comes next, as `BucketedBatches.state` tells it."""
        return self._ahead[0][0] if self._ahead else self._plans.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a position.

        Raises:
            ConfigError: as `BucketedBatches.restore`.
        """
        self._plans.restore(state)
        self._drop()

    def close(self) -> None:
        """Stop making batches, and wait for those that are being made."""
        self._drop()
        self._pool.shutdown()

    def __enter__(self) -> "SpeechLoader[_Made]":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _drop(self) -> None:
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def _make(self, plan: BatchPlan) -> _Made:
        rows = [self._utterances[place] for place in plan.places]
        waveforms = torch.zeros(len(rows), plan.samples, pin_memory=self._pin_memory)
        lengths = torch.zeros(len(rows), dtype=torch.int64, pin_memory=self._pin_memory)
        into = waveforms.numpy()
        for row, place in enumerate(plan.places):
            start, count = self._plans.crop(place, plan.epoch)
            samples = self._store.samples(self._utterances[place], start, min(count, plan.samples))
            into[row, : len(samples)] = samples
            lengths[row] = len(samples)
        return self._transform(SpeechBatch(waveforms, lengths, rows, plan))
