"""Every layout gives the utterances that were laid out, and every row that can't be understood is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import peer

from phonograph import audio
from phonograph.errors import ConfigError, MissingExtraError
from phonograph.training.data import Utterance, hold_out, read_dataset, read_manifest, write_manifest

RATE = 16000


def record(path: Path, seconds: float = 0.5) -> str:
    """A tone in a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.save(path, 0.1 * np.sin(np.arange(round(seconds * RATE)) * 0.1), RATE)
    return str(path)


def test_librispeech(tmp_path: Path) -> None:
    chapter = tmp_path / "LibriSpeech" / "train" / "84" / "121123"
    paths = [record(chapter / f"84-121123-000{number}.flac") for number in range(3)]
    (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO  ON\n84-121123-0001 STOP\n84-121123-0009 GONE\n")
    assert read_manifest(tmp_path / "LibriSpeech", language="en") == [
        Utterance(paths[0], text="GO  ON", speaker="84", language="en"),
        Utterance(paths[1], text="STOP", speaker="84", language="en"),
        Utterance(str(chapter / "84-121123-0009.flac"), text="GONE", speaker="84", language="en"),
        Utterance(paths[2], text="", speaker="84", language="en"),
    ]


def test_ljspeech_prefers_the_normalised_transcript(tmp_path: Path) -> None:
    paths = [record(tmp_path / "wavs" / f"LJ001-000{number}.wav") for number in range(4)]
    (tmp_path / "metadata.csv").write_text("LJ001-0000|in 1872|in eighteen seventy-two\nLJ001-0001|raw only|\nLJ001-0002|two\n")
    found = read_manifest(tmp_path)
    assert [(item.source, item.text) for item in found] == [
        (paths[0], "in eighteen seventy-two"),
        (paths[1], "raw only"),
        (paths[2], "two"),
        (paths[3], ""),
    ]


def test_common_voice_keeps_lone_quotes_and_other_columns(tmp_path: Path) -> None:
    paths = [record(tmp_path / "clips" / name) for name in ("a.mp3", "b.mp3")]
    header = "client_id\tpath\tsentence\tage\tlocale\n"
    (tmp_path / "validated.tsv").write_text(header + 'x1\ta.mp3\tHe said "no\t\tsw\nx2\tb.mp3\tYes\tforties\tsw\n')
    (tmp_path / "test.tsv").write_text(header + "x2\tb.mp3\tYes\tforties\tsw\n")
    assert read_manifest(tmp_path) == [
        Utterance(paths[0], text='He said "no', speaker="x1", language="sw"),
        Utterance(paths[1], text="Yes", speaker="x2", language="sw", extra={"age": "forties"}),
    ]
    assert [item.source for item in read_manifest(tmp_path, split="test")] == paths[1:]
    with pytest.raises(ConfigError, match=r"expected dev\.tsv in .*, got test, validated; name one as split"):
        read_manifest(tmp_path, split="dev")


def test_shards_with_offsets_as_json_lines(tmp_path: Path) -> None:
    path = record(tmp_path / "shard.ogg", 2.0)
    rows = [
        {"audio": "shard.ogg", "offset": 0.0, "duration": 1.25, "text": "one", "source": "a"},
        {"audio": "shard.ogg", "offset": 1.25, "duration": 0.75, "text": "", "source": "b"},
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = [
        Utterance(path, 0.0, 1.25, "one", extra={"source": "a"}),
        Utterance(path, 1.25, 0.75, extra={"source": "b"}),
    ]
    assert read_manifest(tmp_path) == read_manifest(tmp_path / "manifest.jsonl") == expected
    assert [item.name for item in expected] == [path, f"{path} at 1.25 s"]


@pytest.mark.parametrize(("name", "separator"), [("manifest.tsv", "\t"), ("manifest.csv", ","), ("metadata.csv", ",")])
def test_separated_tables(tmp_path: Path, name: str, separator: str) -> None:
    rows = [("file_name", "offset", "duration", "transcription", "label"), ("a.wav", "0.5", "1", "hello", "yes")]
    (tmp_path / name).write_text("".join(separator.join(row) + "\n" for row in rows))
    assert read_manifest(tmp_path) == [Utterance(str(tmp_path / "a.wav"), 0.5, 1.0, "hello", extra={"label": "yes"})]


def test_files_with_and_without_transcripts(tmp_path: Path) -> None:
    paths = [record(tmp_path / "b" / "one.flac"), record(tmp_path / "two.WAV".lower())]
    (tmp_path / "b" / "one.txt").write_text("first line\n\nsecond\n")
    (tmp_path / "notes.md").write_text("not speech")
    assert read_manifest(tmp_path) == [Utterance(paths[0], text="first line second"), Utterance(paths[1])]


def test_written_is_read_back(tmp_path: Path) -> None:
    inside, outside = record(tmp_path / "to" / "a.wav"), record(tmp_path / "b.wav")
    utterances = [
        Utterance(inside, 0.25, 0.125, "ä", "anna", "de", {"label": "x"}),
        Utterance(outside),
    ]
    write_manifest(tmp_path / "to" / "manifest.jsonl", utterances)
    assert json.loads((tmp_path / "to" / "manifest.jsonl").read_text().splitlines()[0])["audio"] == "a.wav"
    assert read_manifest(tmp_path / "to") == utterances


def test_a_dataset_stays_encoded(tmp_path: Path) -> None:
    datasets = peer("datasets")
    path = record(tmp_path / "a.flac")
    data = {
        "audio": [{"path": None, "bytes": Path(path).read_bytes()}, {"path": path, "bytes": None}],
        "sentence": ["one", "two"],
        "speaker_id": [7, 8],
    }
    text, number = datasets.Value("string"), datasets.Value("int64")
    encoded = {"path": text, "bytes": datasets.Value("binary")}
    features = datasets.Features({"audio": encoded, "sentence": text, "speaker_id": number})
    dataset = datasets.Dataset.from_dict(data, features=features).cast_column("audio", datasets.Audio(sampling_rate=8000))
    found = read_manifest(dataset, language="en")
    assert [(item.text, item.speaker, item.language, item.name) for item in found] == [
        ("one", "7", "en", "row 0 of the dataset"),
        ("two", "8", "en", "row 1 of the dataset"),
    ]
    for item in found:
        np.testing.assert_array_equal(audio.load(item.opened()).samples, audio.load(path).samples)
    with pytest.raises(ConfigError, match="expected recordings in files, got row 0 of the dataset"):
        write_manifest(tmp_path / "out.jsonl", found)
    with pytest.raises(ConfigError, match="expected an audio column among audio, "):
        read_manifest(datasets.Dataset.from_dict({"text": ["x"]}))


def test_hub_datasets_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"needs the package datasets.*phonograph\[train\]"):
        read_dataset("some/corpus", split="train")


@pytest.mark.parametrize(
    ("source", "split", "expected"),
    [
        ("hf:some/corpus", None, ("some/corpus", None, "train")),
        ("hf:some/corpus:sw", "test", ("some/corpus", "sw", "test")),
    ],
)
def test_hub_datasets_by_name(
    monkeypatch: pytest.MonkeyPatch, source: str, split: str | None, expected: tuple[str, str | None, str]
) -> None:
    datasets = peer("datasets")
    features = datasets.Features({"path": {"path": datasets.Value("string"), "bytes": datasets.Value("binary")}})
    asked = []

    def load_dataset(name: str, config_name: str | None, *, split: str) -> Any:
        asked.append((name, config_name, split))
        return datasets.Dataset.from_dict({"path": [{"path": "a.wav", "bytes": None}]}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [item.opened() for item in read_manifest(source, split=split)] == ["a.wav"]
    assert asked == [expected]


def test_refusals_name_every_row(tmp_path: Path) -> None:
    table = tmp_path / "manifest.jsonl"
    rows: list[Any] = [{"audio": "a.wav"}, {"text": "no audio"}, {"audio": "a.wav", "offset": "soon"}, {"audio": "a.wav"}]
    table.write_text("\n".join([*map(json.dumps, rows), "not json"]))
    with pytest.raises(ConfigError) as caught:
        read_manifest(table)
    lines = str(caught.value).split("; ")
    assert [line.removeprefix(f"{table} line ")[:3] for line in lines] == ["2: ", "3: ", "5: "]
    assert "expected the recording's path as one of audio, " in lines[0]
    assert "expected offset as a number of seconds, got 'soon'" in lines[1]
    table.write_text("nonsense\n" * 30)
    with pytest.raises(ConfigError, match=r"line 20: .*; and 10 more$"):
        read_manifest(table)


def test_refusals_of_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere, which does not exist; check the name"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="expected utterances, got none in"):
        read_manifest(tmp_path)
    with pytest.raises(ConfigError, match=r"expected a layout among common_voice, table, .*, got 'timit'"):
        read_manifest(tmp_path, layout="timit")
    with pytest.raises(ConfigError, match=r"expected one of manifest\.jsonl, .* in .*, got none"):
        read_manifest(tmp_path, layout="table")
    with pytest.raises(ConfigError, match=r"cannot read .*metadata\.csv: No such file"):
        read_manifest(tmp_path, layout="ljspeech")
    with pytest.raises(ConfigError, match=r"expected a folder, a table or a datasets\.Dataset, got list"):
        read_manifest([])
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"expected a table \.jsonl, \.tsv or \.csv, got .*table\.xlsx"):
        read_manifest(tmp_path / "table.xlsx")
    (tmp_path / "manifest.tsv").write_bytes("path\ttext\na.wav\tä\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"expected UTF-8 text in .*manifest\.tsv"):
        read_manifest(tmp_path)
    (tmp_path / "metadata.csv").write_text("only an id\n")
    with pytest.raises(ConfigError, match=r"metadata\.csv line 1: expected id\|transcript, got 'only an id'"):
        read_manifest(tmp_path, layout="ljspeech")
    (tmp_path / "x.trans.txt").write_text("hello there\n")
    with pytest.raises(ConfigError, match=r"x\.trans\.txt line 1: expected speaker-chapter-number and a transcript"):
        read_manifest(tmp_path, layout="librispeech")


def test_held_out_depends_on_the_utterance_only() -> None:
    utterances = [Utterance(f"/here/{number}.wav", speaker=str(number % 10)) for number in range(2000)]
    training, held = hold_out(utterances, 0.1)
    assert sorted(item.source for item in training + held) == sorted(item.source for item in utterances)
    assert 150 < len(held) < 250  # 200 expected, 13 is the standard deviation
    elsewhere = [Utterance(f"/there/{number}.wav") for number in range(1999, 999, -1)]
    names = {Path(str(item.source)).name for item in held}
    assert {Path(str(item.source)).name for item in hold_out(elsewhere, 0.1)[1]} == {
        name for name in names if int(name[:-4]) > 999
    }
    assert hold_out(utterances, 0.1, seed=1)[1] != held


def test_held_out_speakers_are_whole() -> None:
    utterances = [Utterance(f"{number}.wav", speaker=str(number % 40)) for number in range(400)]
    training, held = hold_out(utterances, 0.3, by_speaker=True)
    assert held
    assert {item.speaker for item in training}.isdisjoint({item.speaker for item in held})
    with pytest.raises(ConfigError, match=r"expected a speaker of every utterance, got none for a\.wav"):
        hold_out([Utterance("a.wav")], by_speaker=True)
    with pytest.raises(ConfigError, match="expected a share from 0 to 1 to hold out, got 2"):
        hold_out(utterances, 2)
