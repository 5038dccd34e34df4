"""A report lists exactly the faults that were planted, and keeps everything else."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from phonograph import audio
from phonograph.errors import ConfigError
from phonograph.training.data import AudioStore, Limits, Utterance, read_manifest, validate

RATE = 16000


def tone(seconds: float) -> np.ndarray:
    return (0.1 * np.sin(np.arange(round(seconds * RATE)) * 0.1)).astype(np.float32)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Ten sound utterances in files and in a shard, among everything that can be wrong."""
    sound = {f"good{number}": 0.5 + 0.1 * number for number in range(5)}
    for name, seconds in {**sound, "untranscribed": 1.0, "long": 4.0, "short": 0.02, "cut": 1.0}.items():
        audio.save(tmp_path / f"{name}.wav", tone(seconds), RATE)
    whole = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    audio.save(tmp_path / "silent.wav", 0 * tone(1), RATE)
    (tmp_path / "nothing.wav").write_bytes(b"")
    soundfile.write(tmp_path / "surround.wav", np.stack([tone(1)] * 6, axis=1), RATE)
    (tmp_path / "text.wav").write_text("this is no audio at all\n" * 10)
    header = (tmp_path / "good0.wav").read_bytes()[:44]
    (tmp_path / "header.wav").write_bytes(header[:40] + b"\0\0\0\0")
    audio.save(tmp_path / "shard.flac", tone(5), RATE)
    audio.save(tmp_path / "damaged.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 20 * RATE), RATE)
    flac = (tmp_path / "damaged.flac").read_bytes()
    (tmp_path / "damaged.flac").write_bytes(flac[: len(flac) // 2])
    rows = [{"audio": f"{name}.wav", "text": name} for name in sound]
    rows += [{"audio": f"{name}.wav", "text": name} for name in ("long", "short", "silent", "cut")]
    rows += [{"audio": f"{name}.wav", "text": name} for name in ("nothing", "text", "header", "missing", "surround")]
    rows += [{"audio": "untranscribed.wav"}, {"audio": "long.wav", "text": " "}]
    stretches = [(0, 1), (1, 1.5), (2.5, 2.5), (0.5, 1), (4, 1.04)]
    faulty = [(5.5, 1), (4.5, 1), (-1, 2), (1, 0), (1, -1)]
    rows += [{"audio": "shard.flac", "offset": at, "duration": length, "text": "x"} for at, length in stretches + faulty]
    rows += [{"audio": "damaged.flac", "offset": at, "duration": 1, "text": "x"} for at in (0, 15)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


PLANTED = {
    ("long.wav", "too_long"),
    ("short.wav", "too_short"),
    ("nothing.wav", "empty"),
    ("text.wav", "unreadable"),
    ("header.wav", "empty"),
    ("missing.wav", "unreadable"),
    ("surround.wav", "unreadable"),
    ("untranscribed.wav", "untranscribed"),
    ("shard.flac at 5.5 s", "wrong_offset"),
    ("shard.flac at 4.5 s", "wrong_offset"),
    ("shard.flac at -1 s", "wrong_offset"),
    ("shard.flac at 1 s", "empty"),
}
ONLY_DECODED = {("silent.wav", "empty"), ("cut.wav", "unreadable"), ("damaged.flac at 15 s", "unreadable")}


def found(report: object, folder: Path) -> set[tuple[str, str]]:
    return {(fault.utterance.name.removeprefix(f"{folder}/"), fault.kind) for fault in report.faults}  # type: ignore[attr-defined]


def test_headers_tell_exactly_these_faults(corpus: Path) -> None:
    utterances = read_manifest(corpus)
    report = validate(utterances, Limits(longest_seconds=3.0), workers=1)
    extra = {("long.wav", "untranscribed")}
    assert found(report, corpus) == PLANTED | extra
    assert report.counts == {
        "unreadable": 3, "empty": 4, "wrong_offset": 3, "too_short": 1, "too_long": 2, "untranscribed": 2
    }  # fmt: skip
    assert len(report.kept) + len(report.left_out) == len(utterances)
    assert [item.text for item in report.kept[:5]] == [f"good{number}" for number in range(5)]
    assert [item.duration_seconds for item in report.kept[:5]] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])


def test_decoding_tells_the_rest_and_keeps_the_sound(corpus: Path) -> None:
    store = AudioStore(RATE, memory_bytes=1 << 24, workers=2)
    report = validate(read_manifest(corpus), Limits(longest_seconds=3.0), store=store, workers=2)
    assert found(report, corpus) == PLANTED | ONLY_DECODED | {("long.wav", "untranscribed")}
    names = [item.name.removeprefix(f"{corpus}/") for item in report.kept]
    shard = ["shard.flac", "shard.flac at 1 s", "shard.flac at 2.5 s", "shard.flac at 0.5 s", "shard.flac at 4 s"]
    assert names == [f"good{number}.wav" for number in range(5)] + [*shard, "damaged.flac"]
    assert store.num_kept == len(report.kept)
    assert report.hours == pytest.approx((3.5 + 1 + 1.5 + 2.5 + 1 + 1.04 + 1) / 3600)
    order = {id(item): place for place, item in enumerate(report.left_out)}
    assert [order[id(fault.utterance)] for fault in report.faults] == sorted(order[id(f.utterance)] for f in report.faults)


def test_nothing_is_wrong_with_what_is_sound(corpus: Path) -> None:
    utterances = [item for item in read_manifest(corpus) if "good" in item.text]
    report = validate(utterances)
    assert report.faults == []
    assert str(report) == "kept 5 utterances, 0.00 h; left out none"


def test_transcripts_may_be_of_no_interest(corpus: Path) -> None:
    report = validate([Utterance(str(corpus / "untranscribed.wav"))], Limits(transcripts=False))
    assert report.faults == []
    assert report.kept == [Utterance(str(corpus / "untranscribed.wav"), duration_seconds=1.0)]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"^Limits: shortest_seconds=-1 must be .*; longest_seconds=0 must be .*> 0$"):
        Limits(shortest_seconds=-1, longest_seconds=0)
    with pytest.raises(ConfigError, match=r"shortest_seconds=3 must be at most longest_seconds=2$"):
        Limits(3, 2)


def test_the_report_says_what_and_why(corpus: Path, tmp_path: Path) -> None:
    report = validate(read_manifest(corpus), Limits(longest_seconds=3.0))
    first, *lines = str(report).splitlines()
    assert first.startswith("kept 14 utterances, 0.00 h; left out 14, 0.00 h: 3 unreadable, 4 empty, 3 wrong offset, ")
    assert len(lines) == len(report.faults)
    reasons = {fault.kind: fault.reason for fault in report.faults}
    assert reasons["too_long"] == f"{corpus / 'long.wav'}: 4.00 s are more than 3 s"
    assert reasons["too_short"] == f"{corpus / 'short.wav'}: 0.02 s are less than 0.1 s"
    report.write(tmp_path / "report.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rows] == [fault.reason for fault in report.faults]
    assert rows[0] == {"kind": "too_long", "utterance": str(corpus / "long.wav"), "reason": reasons_of(report, 0)}


def reasons_of(report: object, place: int) -> str:
    reason: str = report.faults[place].reason  # type: ignore[attr-defined]
    return reason
