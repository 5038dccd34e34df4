"""The loader's batches are the samples of the plans, whatever is read ahead, and a position is that of what was handed out."""

import itertools
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from phonograph import audio
from phonograph.errors import AudioError, ConfigError
from phonograph.training.data import AudioStore, BatchOptions, BucketedBatches, SpeechBatch, SpeechLoader, Utterance, validate

RATE = 8000


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    """Twelve of 0.4 to 1.5 s, each with a level of its own."""
    for number in range(12):
        level = (number + 1) / 16
        audio.save(tmp_path / f"{number}.wav", np.full(round((0.4 + 0.1 * number) * RATE), level), RATE)
    found = [Utterance(str(tmp_path / f"{number}.wav"), text=str(number)) for number in range(12)]
    return validate(found).kept


def plans(utterances: list[Utterance], options: BatchOptions | None = None) -> BucketedBatches:
    options = options or BatchOptions(4.0)
    return BucketedBatches([item.duration_seconds or 0 for item in utterances], RATE, options, seed=5)


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_batches_hold_what_was_planned(utterances: list[Utterance], memory_bytes: int) -> None:
    store = AudioStore(RATE, memory_bytes=memory_bytes)
    store.fill(utterances)
    expected = plans(utterances)
    with SpeechLoader(utterances, store, plans(utterances), prefetch=3, workers=2) as loader:
        for _ in range(2 * expected.steps_per_epoch()):
            plan, batch = next(expected), next(loader)
            assert batch.plan == plan
            assert batch.utterances == [utterances[place] for place in plan.places]
            assert batch.waveforms.shape == (len(plan.places), plan.samples)
            assert batch.lengths.tolist() == [round((0.4 + 0.1 * place) * RATE) for place in plan.places]
            for row, place in enumerate(plan.places):
                count = int(batch.lengths[row])
                assert torch.equal(batch.waveforms[row, :count], torch.full((count,), (place + 1) / 16))
                assert not batch.waveforms[row, count:].any()


def test_the_position_is_that_of_what_was_handed_out(utterances: list[Utterance]) -> None:
    store = AudioStore(RATE)
    with SpeechLoader(utterances, store, plans(utterances), lambda batch: batch.plan) as loader:
        states, run = [], []
        for _ in range(9):
            states.append(json.loads(json.dumps(loader.state())))
            run.append(next(loader))
        for place in (7, 2, 0):
            loader.restore(states[place])
            assert [next(loader) for _ in range(9 - place)] == run[place:]
    with SpeechLoader(utterances, store, plans(utterances), lambda batch: batch.plan, prefetch=0, workers=1) as other:
        other.restore(states[4])
        assert other.state() == states[4]
        assert [next(other) for _ in range(5)] == run[4:]


def test_crops_take_the_samples_they_say(utterances: list[Utterance], tmp_path: Path) -> None:
    ramp = np.arange(3 * RATE) / 32768
    audio.save(tmp_path / "ramp.wav", ramp, RATE)
    one = [Utterance(str(tmp_path / "ramp.wav"), duration_seconds=3.0)]
    options = BatchOptions(2.0, crop_seconds=0.5)
    with SpeechLoader(one, AudioStore(RATE), plans(one, options)) as loader:
        starts = set()
        for epoch in range(5):
            batch = next(loader)
            start, count = plans(one, options).crop(0, epoch)
            assert batch.lengths.tolist() == [count] == [RATE // 2]
            assert torch.equal(batch.waveforms[0], torch.arange(start, start + count) / 32768)
            starts.add(start)
    assert len(starts) == 5


def test_no_more_is_made_ahead_than_asked_for(utterances: list[Utterance]) -> None:
    made, lock = 0, threading.Lock()

    def count(batch: SpeechBatch) -> int:
        nonlocal made
        with lock:
            made += 1
        return made

    loader = SpeechLoader(utterances, AudioStore(RATE), plans(utterances), count, prefetch=2, workers=2)
    next(loader)
    loader.close()
    assert 1 <= made <= 3


def test_errors_of_the_threads_are_raised(utterances: list[Utterance]) -> None:
    Path(str(utterances[3].source)).unlink()
    with SpeechLoader(utterances, AudioStore(RATE), plans(utterances)) as loader, pytest.raises(AudioError, match=r"3\.wav"):
        list(itertools.islice(loader, 20))


def test_a_position_of_other_batches_is_refused(utterances: list[Utterance]) -> None:
    state = plans(utterances).state()
    with (
        SpeechLoader(utterances, AudioStore(RATE), plans(utterances, BatchOptions(2.0))) as loader,
        pytest.raises(ConfigError, match="expected a position in batches with"),
    ):
        loader.restore(state)


def test_batches_move_whole(utterances: list[Utterance]) -> None:
    with SpeechLoader(utterances, AudioStore(RATE), plans(utterances)) as loader:
        batch = next(loader).to("meta")
    assert (batch.waveforms.device.type, batch.lengths.device.type) == ("meta", "meta")
