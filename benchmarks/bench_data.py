"""Hours of audio a second that reach two training processes, beside a plain torch DataLoader with soundfile on the same files.

    python benchmarks/bench_data.py [--data FOLDER] [--seconds 5] [--rounds 3] [--consumers 2] [--workers 1]

Every contestant hands each consumer, a process of its own, the same batches of padded float32 waveforms at 16 kHz, decoded and
resampled by soxr. `--workers` are threads of a consumer here, and worker processes of its DataLoader there. Contestants take
turns; consumers start together once each has had a batch, and all they do is to take the next. A figure is the median over the
rounds of all consumers' audio, padding not counted. What it takes to decode everything into memory first is told by itself.
Without --data it reads the bundled recordings, 40 times over. Prints a table and ends with one JSON line.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import soundfile
import soxr
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from phonograph.benchmarks import processor, versions
from phonograph.loading.hub import BUNDLED_SPEECH
from phonograph.training.data import (
    AudioStore,
    BatchOptions,
    BucketedBatches,
    Limits,
    SpeechLoader,
    Utterance,
    read_manifest,
    validate,
)

RATE = 16000
MEMORY, DISK, PEER = "phonograph, from memory", "phonograph, from disk", "DataLoader + soundfile"
CONTESTANTS = (MEMORY, DISK, PEER)
_COPIES = 40
_PLANNED = 100_000


@dataclass(frozen=True)
class Trial:
    """One contestant, for one consumer."""

    contestant: str
    utterances: list[Utterance]
    seconds: float
    workers: int
    batch_seconds: float
    consumers: int

    def plans(self, rank: int) -> BucketedBatches:
        """The batches of a consumer."""
        durations = [item.duration_seconds or 0.0 for item in self.utterances]
        return BucketedBatches(durations, RATE, BatchOptions(self.batch_seconds), rank=rank, world=self.consumers)


class Clips(Dataset[Tensor]):
    """Utterances as a script would read them: seek, read, mix, resample."""

    def __init__(self, utterances: list[Utterance]) -> None:
        self._utterances = utterances

    def __len__(self) -> int:
        return len(self._utterances)

    def __getitem__(self, place: int) -> Tensor:
        item = self._utterances[place]
        with soundfile.SoundFile(item.source) as file:
            file.seek(round(item.offset_seconds * file.samplerate))
            samples = file.read(round((item.duration_seconds or 0) * file.samplerate), dtype="float32", always_2d=True)
            mono = samples.mean(axis=1)
            return torch.from_numpy(soxr.resample(mono, file.samplerate, RATE) if file.samplerate != RATE else mono)


def padded(clips: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A batch and its lengths."""
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), torch.tensor([len(clip) for clip in clips])


def lengths_of(trial: Trial, rank: int, fill_seconds: Any) -> Iterator[Tensor]:
    """Lengths of one batch after the other, each made whole."""
    plans = trial.plans(rank)
    if trial.contestant == PEER:
        places = [list(plan.places) for plan in islice(plans, _PLANNED)]
        loader: Iterable[tuple[Tensor, Tensor]] = DataLoader(
            Clips(trial.utterances), batch_sampler=places, num_workers=trial.workers, collate_fn=padded
        )
        yield from (lengths for _, lengths in loader)
        return
    store = AudioStore(RATE, memory_bytes=1 << 40 if trial.contestant == MEMORY else 0, workers=trial.workers)
    if trial.contestant == MEMORY:
        begin = time.perf_counter()
        store.fill(trial.utterances)
        fill_seconds.value = time.perf_counter() - begin
    with SpeechLoader(trial.utterances, store, plans, workers=trial.workers) as batches:
        yield from (batch.lengths for batch in batches)


def consume(trial: Trial, rank: int, together: Any, hours: Any, fill_seconds: Any) -> None:
    """What a consumer does: audio it got in a second, in hours, goes into `hours[rank]`."""
    torch.set_num_threads(1)
    with contextlib.closing(lengths_of(trial, rank, fill_seconds)) as batches:
        next(batches)
        together.wait()
        begin, samples = time.perf_counter(), 0
        while time.perf_counter() - begin < trial.seconds:
            samples += int(next(batches).sum())
        hours[rank] = samples / RATE / 3600 / (time.perf_counter() - begin)
        together.wait()  # until all have measured, for one that is done would leave its processor to the others


def measured(trial: Trial) -> tuple[float, float]:
    """Hours of audio a second of all consumers together, and the seconds that memory took to be filled."""
    context = get_context("spawn")
    together, hours = context.Barrier(trial.consumers), context.Array("d", trial.consumers)
    fill_seconds = context.Value("d", 0.0)
    consumers = [
        context.Process(target=consume, args=(trial, rank, together, hours, fill_seconds)) for rank in range(trial.consumers)
    ]
    for process in consumers:
        process.start()
    for process in consumers:
        process.join()
    if any(process.exitcode for process in consumers):
        raise SystemExit(f"a consumer of {trial.contestant} failed")
    return sum(hours), fill_seconds.value


def bundled(folder: Path) -> Path:
    """A folder with the bundled recordings, many times over."""
    for path in sorted(BUNDLED_SPEECH.glob("*.flac")):
        for copy in range(_COPIES):
            (folder / f"{copy}-{path.name}").symlink_to(path)
    return folder


def speech(data: str | None, folder: Path) -> list[Utterance]:
    """What is read."""
    return validate(read_manifest(data or bundled(folder)), Limits(transcripts=False)).kept


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="FOLDER", help="speech in any layout that training reads")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--consumers", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        utterances = speech(options.data, Path(folder))
        settings = (utterances, options.seconds, options.workers, options.batch_seconds, options.consumers)
        rounds = [{name: measured(Trial(name, *settings)) for name in CONTESTANTS} for _ in range(options.rounds)]
    hours = {name: statistics.median(result[name][0] for result in rounds) for name in CONTESTANTS}
    print(f"{'':28}{'hours a second':>16}")
    for name, value in hours.items():
        print(f"{name:28}{value:16.3f}")
    fill_seconds = statistics.median(result[MEMORY][1] for result in rounds)
    report = {
        "benchmark": "training data",
        "hours_of_audio": sum(item.duration_seconds or 0.0 for item in utterances) / 3600,
        "utterances": len(utterances),
        "consumers": options.consumers,
        "workers": options.workers,
        "batch_seconds": options.batch_seconds,
        "processors": os.cpu_count(),
        "processor": processor(),
        "versions": versions("soundfile", "soxr", "numpy"),
        "hours_a_second": hours,
        "fill_seconds": fill_seconds,
        "ratios": {f"{name} / {PEER}": hours[name] / hours[PEER] for name in (MEMORY, DISK)},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
