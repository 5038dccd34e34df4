"""What speech there is to train on: utterances, read from the layouts in which speech corpora come.

    utterances = read_manifest("LibriSpeech/train-clean-100")
    utterances = read_manifest("shards/manifest.jsonl")
    utterances = read_dataset("mozilla-foundation/common_voice_17_0", split="train", config_name="sw")

An utterance is a stretch of a recording with its transcript. Nothing is decoded here, and nothing of the audio is checked:
`phonograph.training.data.validate` does that. Knows neither models nor torch.

Layouts, found by what is in a folder, in this order:

- "table": manifest.jsonl, manifest.tsv, manifest.csv, metadata.jsonl, or such a file named itself; metadata.csv with a header.
  Columns go by the names that are usual (`COLUMNS`); paths are relative to the file. Many utterances may share a recording.
- "ljspeech": metadata.csv without a header, id|transcript|normalised transcript, beside the folder wavs.
- "common_voice": clips beside validated.tsv, train.tsv and so on.
- "librispeech": *.trans.txt anywhere below, each line the name of a recording beside it and its transcript.
- "files": recordings anywhere below, each with its transcript in a .txt of the same name, or with none.
"""

import contextlib
import csv
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TextIO

from phonograph.errors import ConfigError, MissingExtraError
from phonograph.files import atomic_write

__all__ = [
    "COLUMNS",
    "HUB_PREFIX",
    "LAYOUTS",
    "DatasetRow",
    "Utterance",
    "hold_out",
    "read_dataset",
    "read_manifest",
    "write_manifest",
]

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "source": ("audio", "audio_filepath", "path", "file_name", "file", "wav"),
    "offset_seconds": ("offset", "offset_seconds"),
    "duration_seconds": ("duration", "duration_seconds"),
    "text": ("text", "sentence", "transcript", "transcription"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "language": ("language", "lang", "locale"),
}
"""Names under which tables hold the fields of an utterance, the first that is there taken."""
_TABLES = ("manifest.jsonl", "manifest.tsv", "manifest.csv", "metadata.jsonl")
_COMMON_VOICE_SPLITS = ("validated", "train")
_RECORDINGS = (
    *(".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3", ".m4a", ".mp4", ".aac", ".aiff", ".aif", ".au", ".caf"),
    *(".webm", ".mka", ".amr", ".wma", ".w64", ".wv"),
)
_MOST_FAULTS = 20
HUB_PREFIX = "hf:"
"""Before the name of a dataset of the hub, where a folder could stand too."""


@dataclass(frozen=True)
class DatasetRow:
    """The recording in a row of a Hugging Face dataset whose audio column is not decoded."""

    dataset: Any
    row: int
    column: str

    def read(self) -> str | bytes:
        """The file's bytes, or its path where the dataset holds only that."""
        value: Mapping[str, Any] = self.dataset[self.row][self.column]
        encoded: str | bytes = value["path"] if value["bytes"] is None else value["bytes"]
        return encoded


@dataclass(frozen=True)
class Utterance:
    """A stretch of a recording, and what is said in it.

    Attributes:
        source: path of the recording, or a dataset's row.
        offset_seconds: where it begins in the recording.
        duration_seconds: its length; None is up to the recording's end.
        text: the transcript; empty where there is none.
        speaker: whoever speaks.
        language: the code that the corpus uses.
        extra: the other columns of its row.
    """

    source: str | DatasetRow
    offset_seconds: float = 0.0
    duration_seconds: float | None = None
    text: str = ""
    speaker: str | None = None
    language: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """The recording's path, or the row's number, with the offset if there is one."""
        place = self.source if isinstance(self.source, str) else f"row {self.source.row} of the dataset"
        return f"{place} at {self.offset_seconds:g} s" if self.offset_seconds else place

    def opened(self) -> str | bytes:
        """The recording as `phonograph.audio` takes it."""
        return self.source if isinstance(self.source, str) else self.source.read()


def read_manifest(
    source: Any, *, layout: str | None = None, split: str | None = None, language: str | None = None
) -> list[Utterance]:
    """Every utterance of a corpus, in an order that depends on its contents only.

    Args:
        source: a folder, a table (.jsonl, .tsv or .csv), a `datasets.Dataset` with an audio column, or the name of one on the
            hub, "hf:NAME" or "hf:NAME:CONFIG".
        layout: one of `LAYOUTS`, instead of what the folder looks like.
        split: of Common Voice, the table to take, "validated", else "train", by default; of a dataset of the hub, "train".
        language: of the utterances that tell none.

    Raises:
        ConfigError: no such folder, none of these layouts, or rows that can't be understood, all of them named.
        MissingExtraError: a dataset of the hub, and the package datasets is not installed.
    """
    if isinstance(source, str) and source.startswith(HUB_PREFIX):
        name, _, config_name = source.removeprefix(HUB_PREFIX).partition(":")
        return read_dataset(name, split=split or "train", config_name=config_name or None, language=language)
    is_path = isinstance(source, (str, os.PathLike))
    utterances = _read_path(Path(source), layout, split) if is_path else _read_rows(source)
    if not utterances:
        raise ConfigError(f"expected utterances, got none in {source}; name another folder or table")
    if language is None:
        return utterances
    return [item if item.language else replace(item, language=language) for item in utterances]


def read_dataset(name: str, *, split: str, config_name: str | None = None, language: str | None = None) -> list[Utterance]:
    """Every utterance of a dataset of the Hugging Face hub.

    Raises:
        MissingExtraError: the package datasets is not installed.
        ConfigError: the dataset has no audio column, or rows that can't be understood.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("a dataset of the hub", "datasets", "train") from error
    return read_manifest(datasets.load_dataset(name, config_name, split=split), language=language)


def write_manifest(path: str | os.PathLike[str], utterances: Iterable[Utterance]) -> None:
    """Write utterances as JSON lines that `read_manifest` reads back; recordings below the file's folder by relative path.

    Raises:
        ConfigError: utterances of a dataset, whose recordings have no path.
        OutputError: the file can't be written.
    """
    folder = Path(path).absolute().parent
    with atomic_write(path) as file:
        for utterance in utterances:
            file.write((json.dumps(_as_row(utterance, folder), ensure_ascii=False) + "\n").encode())


def hold_out(
    utterances: Sequence[Utterance], share: float = 0.02, *, seed: int = 0, by_speaker: bool = False
) -> tuple[list[Utterance], list[Utterance]]:
    """Part utterances into those to train on and those to judge by.

    An utterance's side depends on its recording's file name, its offset and the seed only: not on the folder, nor on what
    else there is.

    Args:
        share: of the utterances, about, to be held out.
        by_speaker: let all utterances of a speaker go to one side.

    Returns:
        (training, held out), each in the given order.

    Raises:
        ConfigError: a share outside 0 to 1, or no speaker where speakers are to be parted.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"expected a share from 0 to 1 to hold out, got {share}; 0.02 is usual")
    held = [_draw(utterance, seed, by_speaker) < share for utterance in utterances]
    sides: tuple[list[Utterance], list[Utterance]] = ([], [])
    for utterance, out in zip(utterances, held, strict=True):
        sides[out].append(utterance)
    return sides


def _draw(utterance: Utterance, seed: int, by_speaker: bool) -> float:
    """A number from 0 to 1 that looks random."""
    key: Any = utterance.speaker
    if by_speaker and key is None:
        raise ConfigError(f"expected a speaker of every utterance, got none for {utterance.name}; hold out without by_speaker")
    if not by_speaker:
        source = utterance.source
        key = (Path(source).name if isinstance(source, str) else source.row, round(utterance.offset_seconds, 3))
    return int.from_bytes(hashlib.sha256(repr((seed, key)).encode()).digest()[:8], "big") / 2**64


# Folders -----------------------------------------------------------------------------------------------------------------


def _read_path(path: Path, layout: str | None, split: str | None) -> list[Utterance]:
    if path.is_file():
        return _read_table(path, path.parent)
    if not path.is_dir():
        raise ConfigError(f"expected a folder or a table of utterances, got {path}, which does not exist; check the name")
    layout = layout or _layout_of(path)
    if layout not in LAYOUTS:
        raise ConfigError(f"expected a layout among {', '.join(LAYOUTS)}, got {layout!r}; choose one of these or leave it out")
    if layout == "common_voice":
        return _read_common_voice(path, split)
    return _READERS[layout](path)


def _layout_of(folder: Path) -> str:
    if any((folder / name).is_file() for name in _TABLES):
        return "table"
    if (metadata := folder / "metadata.csv").is_file():
        with _open_text(metadata) as file:
            return "ljspeech" if "|" in file.readline() else "table"
    if (folder / "clips").is_dir() and any(folder.glob("*.tsv")):
        return "common_voice"
    if next(folder.rglob("*.trans.txt"), None):
        return "librispeech"
    return "files"


def _read_table_in(folder: Path) -> list[Utterance]:
    for name in (*_TABLES, "metadata.csv"):
        if (folder / name).is_file():
            return _read_table(folder / name, folder)
    raise ConfigError(
        f"expected one of {', '.join(_TABLES)} and metadata.csv in {folder}, got none; write one or name a layout"
    )


def _read_ljspeech(folder: Path) -> list[Utterance]:
    recordings = {path.stem: path for path in _recordings(folder / "wavs")}
    utterances, faults = [], []
    metadata = folder / "metadata.csv"
    for number, line in _lines(metadata):
        name, *texts = line.split("|")
        if not texts:
            faults.append(f"{metadata} line {number}: expected id|transcript, got {line[:60]!r}")
            continue
        path = recordings.pop(name, folder / "wavs" / f"{name}.wav")
        utterances.append(Utterance(str(path), text=texts[-1].strip() or texts[0].strip()))
    _refuse(faults)
    return utterances + [Utterance(str(path)) for path in recordings.values()]


def _read_common_voice(folder: Path, split: str | None) -> list[Utterance]:
    names = (split,) if split else _COMMON_VOICE_SPLITS
    tables = [folder / f"{name}.tsv" for name in names]
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        there = ", ".join(sorted(path.stem for path in folder.glob("*.tsv"))) or "no table"
        raise ConfigError(f"expected {' or '.join(path.name for path in tables)} in {folder}, got {there}; name one as split")
    return _read_table(table, folder / "clips")


def _read_librispeech(folder: Path) -> list[Utterance]:
    recordings = {(path.parent, path.stem): path for path in _recordings(folder)}
    utterances, faults = [], []
    for table in sorted(folder.rglob("*.trans.txt")):
        for number, line in _lines(table):
            name, _, text = line.partition(" ")
            if "-" not in name:
                faults.append(f"{table} line {number}: expected speaker-chapter-number and a transcript, got {line[:60]!r}")
                continue
            path = recordings.pop((table.parent, name), table.parent / f"{name}.flac")
            utterances.append(Utterance(str(path), text=text.strip(), speaker=name.split("-")[0]))
    _refuse(faults)
    return utterances + [Utterance(str(path), speaker=path.stem.split("-")[0]) for path in recordings.values()]


def _read_files(folder: Path) -> list[Utterance]:
    utterances = []
    for path in _recordings(folder):
        transcript = path.with_suffix(".txt")
        text = " ".join(line for _, line in _lines(transcript)) if transcript.is_file() else ""
        utterances.append(Utterance(str(path), text=text))
    return utterances


_READERS: Mapping[str, Callable[[Path], list[Utterance]]] = {
    "table": _read_table_in,
    "ljspeech": _read_ljspeech,
    "librispeech": _read_librispeech,
    "files": _read_files,
}
LAYOUTS = ("common_voice", *_READERS)
"""Layouts of folders that `read_manifest` reads."""


def _recordings(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _RECORDINGS)


@contextlib.contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check its name and permissions") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"expected UTF-8 text in {path}, got another encoding; convert it first") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    with _open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.strip()


# Rows --------------------------------------------------------------------------------------------------------------------


def _read_table(path: Path, folder: Path) -> list[Utterance]:
    """`folder` is what paths are relative to."""
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".json", ".tsv", ".csv"):
        raise ConfigError(f"expected a table .jsonl, .tsv or .csv, got {path}; rename it, or name the folder it is in")
    rows = _json_rows(path) if suffix in (".jsonl", ".json") else _separated_rows(path, "\t" if suffix == ".tsv" else ",")
    return _understood((f"{path} line {number}", row, str(folder)) for number, row in rows)


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in _lines(path):
        yield number, _json_or_text(line)


def _json_or_text(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line[:60]


def _separated_rows(path: Path, delimiter: str) -> Iterator[tuple[int, Any]]:
    quoting: Literal[0, 3] = (
        csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    )  # Common Voice has lone quotes in its sentences
    with _open_text(path) as file:
        reader = csv.DictReader(file, delimiter=delimiter, quoting=quoting)
        for row in reader:
            # What stands beyond the header's columns has the name None.
            yield reader.line_num, {name: value for name, value in row.items() if name is not None and value}


def _understood(rows: Iterable[tuple[str, Any, str | DatasetRow]]) -> list[Utterance]:
    """Of rows with the words for where they stand, and the folder that their paths are relative to or the recording itself."""
    utterances, faults = [], []
    for where, row, base in rows:
        result = _utterance(row, base)
        if isinstance(result, str):
            faults.append(f"{where}: {result}")
        else:
            utterances.append(result)
    _refuse(faults)
    return utterances


def _utterance(row: Any, base: str | DatasetRow) -> Utterance | str:
    """What the row says, or why it can't be understood."""
    if not isinstance(row, Mapping):
        return f"expected an object such as {{'audio': 'a.wav', 'text': '...'}}, got {row!r}"
    names = {field: next((name for name in names if name in row), None) for field, names in COLUMNS.items()}
    value = {field: row[name] for field, name in names.items() if name is not None and row[name] is not None}
    if isinstance(base, str):
        if not isinstance(value.get("source"), str):
            return f"expected the recording's path as one of {', '.join(COLUMNS['source'])}, got {sorted(row)}"
        base = os.path.join(base, value["source"])
    for name in ("offset_seconds", "duration_seconds"):
        if name in value and not _is_number(value[name]):
            return f"expected {names[name]} as a number of seconds, got {value[name]!r}"
    return Utterance(
        source=base,
        offset_seconds=float(value.get("offset_seconds", 0.0)),
        duration_seconds=float(value["duration_seconds"]) if "duration_seconds" in value else None,
        text=str(value.get("text", "")).strip(),
        speaker=_optional_text(value, "speaker"),
        language=_optional_text(value, "language"),
        extra={name: other for name, other in row.items() if name not in names.values()},
    )


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _optional_text(value: Mapping[str, Any], name: str) -> str | None:
    return str(value[name]) if name in value else None


def _refuse(faults: list[str]) -> None:
    if faults:
        more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        raise ConfigError("; ".join(faults[:_MOST_FAULTS]) + more)


def _as_row(utterance: Utterance, folder: Path) -> dict[str, Any]:
    if not isinstance(utterance.source, str):
        raise ConfigError(f"expected recordings in files, got {utterance.name}; write its audio to a file first")
    path = Path(utterance.source).absolute()
    row: dict[str, Any] = {
        "audio": str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path),
        "offset": utterance.offset_seconds,
        "duration": utterance.duration_seconds,
        "text": utterance.text,
        "speaker": utterance.speaker,
        "language": utterance.language,
    }
    return {**utterance.extra, **{name: value for name, value in row.items() if value is not None}}


def _read_rows(dataset: Any) -> list[Utterance]:
    """Of a `datasets.Dataset`; the audio stays encoded and where it is."""
    columns = getattr(dataset, "column_names", None)
    if not isinstance(columns, list) or not hasattr(dataset, "__len__"):
        raise ConfigError(
            f"expected a folder, a table or a datasets.Dataset, got {type(dataset).__name__}; choose a split, without streaming"
        )
    column = next((name for name in COLUMNS["source"] if name in columns), None)
    if column is None:
        raise ConfigError(f"expected an audio column among {', '.join(COLUMNS['source'])}, got {columns}; rename it")
    import datasets

    encoded = dataset.cast_column(column, datasets.Audio(decode=False))
    # Without its only column a dataset has no rows.
    rows = dataset.remove_columns([column]) if len(columns) > 1 else itertools.repeat({}, len(dataset))
    return _understood(
        (f"row {number} of the dataset", row, DatasetRow(encoded, number, column)) for number, row in enumerate(rows)
    )
