"""Samples are those of a plain load, from memory as from disk, and memory stays within its bound."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from phonograph import audio
from phonograph.errors import AudioError, ConfigError
from phonograph.training.data import AudioStore, Utterance
from phonograph.training.data.store import by_recording

RATE = 16000


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """30 s of noise at 24 kHz, in stereo."""
    noise = 0.2 * np.random.default_rng(0).standard_normal((2, 30 * 24000))
    audio.save(tmp_path / "shard.flac", noise.clip(-1, 1), 24000)
    return tmp_path / "shard.flac"


def stretches(shard: Path) -> list[Utterance]:
    spans = [(0.0, 3.0), (25.25, 4.5), (2.5, 9.0), (11.0, 0.5), (28.0, 2.0), (9.99, 1.003)]
    return [Utterance(str(shard), offset, length) for offset, length in spans]


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_memory_disk_and_a_plain_load_agree(shard: Path, dtype: str) -> None:
    utterances = stretches(shard)
    kept, disk = (AudioStore(RATE, dtype=dtype, memory_bytes=size) for size in (1 << 24, 0))
    assert kept.fill(utterances) == disk.fill(utterances) == []
    assert (kept.num_kept, disk.num_kept, disk.nbytes) == (6, 0, 0)
    assert kept.nbytes == sum(len(kept.samples(item)) for item in utterances) * np.dtype(dtype).itemsize
    for item in utterances:
        whole = audio.load(shard, start_seconds=item.offset_seconds, duration_seconds=item.duration_seconds, mono=True)
        expected = whole.resample(RATE).samples[0]
        samples = kept.samples(item)
        assert samples.dtype == np.float32
        np.testing.assert_allclose(samples, expected, rtol=0, atol=0.5001 / 32768 if dtype == "int16" else 1e-7)
        np.testing.assert_array_equal(samples, disk.samples(item))
        for store in (kept, disk):
            np.testing.assert_array_equal(store.samples(item, 100, 50), samples[100:150])
            np.testing.assert_array_equal(store.samples(item, 7000), samples[7000:])


def test_int16_clips_what_it_cannot_hold(tmp_path: Path) -> None:
    audio.save(tmp_path / "loud.wav", np.array([1.5, -1.5, 0.25, 1.0]), RATE, subtype="FLOAT")
    loud = Utterance(str(tmp_path / "loud.wav"), duration_seconds=4 / RATE)
    store = AudioStore(RATE, memory_bytes=100)
    assert (store.fill([loud]), store.num_kept) == ([], 1)
    assert store.samples(loud).tolist() == [32767 / 32768, -1.0, 0.25, 32767 / 32768]


def test_memory_is_never_more_than_allowed(shard: Path) -> None:
    utterances = stretches(shard)
    bound = 2 * RATE * 8  # 8 s
    store = AudioStore(RATE, memory_bytes=bound, workers=2)
    assert store.fill(utterances) == []
    assert 0 < store.nbytes <= bound
    assert 0 < store.num_kept < len(utterances)
    everything = AudioStore(RATE)
    for item in utterances:
        np.testing.assert_array_equal(store.samples(item), everything.samples(item))


def test_what_is_kept_does_not_depend_on_threads(tmp_path: Path) -> None:
    utterances = []
    for number in range(20):
        count = 1000 * (number % 7 + 1)
        audio.save(tmp_path / f"{number}.wav", np.full(count, 0.5), RATE)
        utterances.append(Utterance(str(tmp_path / f"{number}.wav"), duration_seconds=count / RATE))
    for workers in (1, 3):
        store = AudioStore(RATE, memory_bytes=2 * 25_000, workers=workers)
        store.fill(utterances)
        # 1 + 2 + 3 + 4 + 5 + 6 thousand samples fit, and 7 more do not: nothing after that is kept.
        assert (store.num_kept, store.nbytes) == (6, 42_000)


def test_lossy_recordings_agree_but_for_where_a_decoder_starts(tmp_path: Path) -> None:
    seconds = np.arange(20 * RATE) / RATE
    audio.save(tmp_path / "shard.opus", 0.3 * np.sin(2 * np.pi * 200 * seconds) * np.cos(seconds), RATE)
    utterances = [Utterance(str(tmp_path / "shard.opus"), float(start), 1.5) for start in (0, 3, 12)]
    kept, disk = AudioStore(RATE, memory_bytes=1 << 20), AudioStore(RATE)
    assert kept.fill(utterances) == []
    for item in utterances:
        np.testing.assert_allclose(kept.samples(item), disk.samples(item), atol=5e-3)


def test_filling_twice_keeps_once(shard: Path) -> None:
    store = AudioStore(RATE, memory_bytes=1 << 24)
    store.fill(stretches(shard))
    size = store.nbytes
    store.fill(stretches(shard))
    assert (store.nbytes, store.num_kept) == (size, 6)


def test_what_has_no_duration_is_read_from_disk(shard: Path) -> None:
    store, item = AudioStore(RATE, memory_bytes=1 << 24), Utterance(str(shard), 28.0)
    assert store.fill([item]) == []
    assert store.num_kept == 0
    assert len(store.samples(item)) == 2 * RATE


def test_a_long_recording_is_never_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    block = audio.Audio(0.1 * np.sin(np.arange(24000 * 60) * 0.1).astype(np.float32), 24000)
    audio.save_stream(path, [block] * 20)  # 20 minutes: 115 MB as float32
    utterances = [Utterance(str(path), float(start), 5.0) for start in range(0, 1200, 10)]
    store = AudioStore(RATE, memory_bytes=1 << 20, workers=1)
    tracemalloc.start()
    try:
        assert store.fill(utterances) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20


def test_recordings_are_grouped_in_their_order() -> None:
    names = ["b", "a", "b", "c", "a"]
    assert by_recording([Utterance(name, float(place)) for place, name in enumerate(names)]) == [[0, 2], [1, 4], [3]]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected dtype 'int16' or 'float32' for audio in memory, got 'int8'"):
        AudioStore(RATE, dtype="int8")
    with pytest.raises(ConfigError, match="expected memory_bytes of at least 0, got -1"):
        AudioStore(RATE, memory_bytes=-1)
    with pytest.raises(AudioError, match=r"gone\.wav"):
        AudioStore(RATE).samples(Utterance(str(tmp_path / "gone.wav")))
