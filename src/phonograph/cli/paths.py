"""Which files a command reads, and where each result goes. Knows names, folders and patterns, nothing of what files hold.

inputs = find_inputs(["talks/", "a.wav", "more/**/*.flac"], AUDIO_SUFFIXES)
plan(inputs, "tokens/", Outputs(TOKEN_SUFFIXES, ".mimi"))
"""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from phonograph.errors import ConfigError, OutputError, PhonographError

__all__ = ["AUDIO_SUFFIXES", "STANDARD", "TOKEN_SUFFIXES", "Input", "Job", "Outputs", "find_inputs", "plan"]

STANDARD = "-"
"""The name of standard input and standard output."""

TOKEN_SUFFIXES = (".mimi", ".npz", ".safetensors")
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".mp4", ".aac", ".webm", ".mkv", ".mov"),
    *(".aiff", ".aif", ".aifc", ".au", ".caf", ".w64", ".wma", ".amr", ".3gp"),
)
"""What a folder is searched for; a file that is named itself may have any name."""


@dataclass(frozen=True)
class Input:
    """A file to read, or STANDARD, and its place below a folder of results."""

    source: str
    place: PurePath


@dataclass(frozen=True)
class Job:
    """Read `source`, write `output`; either may be STANDARD."""

    source: str
    output: str


@dataclass(frozen=True)
class Outputs:
    """What a command writes: the suffixes it knows, the one for files it names itself, and whether it replaces files."""

    suffixes: tuple[str, ...]
    suffix: str
    overwrite: bool = False


def find_inputs(arguments: Sequence[str], suffixes: Sequence[str]) -> tuple[list[Input], list[PhonographError]]:
    """Expand files, folders (recursively, files of these suffixes) and patterns, each file once, and say what held nothing."""
    inputs: dict[str, Input] = {}
    refused: list[PhonographError] = []
    for argument in arguments:
        found = list(_expanded(argument, suffixes))
        for item in found:
            inputs.setdefault(item.source if item.source == STANDARD else os.path.abspath(item.source), item)
        if not found:
            what = f"files ending in {', '.join(suffixes)} in" if os.path.isdir(argument) else "files that match"
            refused.append(ConfigError(f"expected {what} {argument}, found none; check the name, or name the files themselves"))
    if len(inputs) == 1 and not refused:  # before a model is loaded, or fetched, for nothing
        [source] = [item.source for item in inputs.values()]
        if source != STANDARD and not os.path.exists(source):
            refused, inputs = [ConfigError(f"expected a file to read, but {source} does not exist; check the name")], {}
    if not inputs and len(refused) == 1:
        raise refused[0]
    return list(inputs.values()), refused


def _expanded(argument: str, suffixes: Sequence[str]) -> Iterator[Input]:
    if argument == STANDARD:
        yield Input(STANDARD, PurePath("stdin"))
    elif os.path.isdir(argument):
        yield from _files_below(argument, suffixes)
    elif os.path.exists(argument) or not glob.has_magic(argument):
        yield Input(argument, PurePath(Path(argument).name))  # reading it says best what is wrong with a missing file
    else:
        base = _fixed_part(argument)
        for match in sorted(glob.glob(argument, recursive=True)):
            if os.path.isfile(match):
                yield Input(match, PurePath(os.path.relpath(match, base)))
            elif "**" not in argument:
                yield from _files_below(match, suffixes)


def _files_below(folder: str, suffixes: Sequence[str]) -> Iterator[Input]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        # Hidden names are other programs' notes about files ("._talk.wav"), or files that are still being written.
        for name in sorted(name for name in names if not name.startswith(".")):
            if Path(name).suffix.lower() in suffixes:
                path = os.path.join(root, name)
                yield Input(path, PurePath(os.path.relpath(path, folder)))


def _fixed_part(pattern: str) -> str:
    parts = PurePath(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return os.path.join(*parts[:fixed]) if fixed else "."


def plan(inputs: Sequence[Input], out: str | None, outputs: Outputs) -> list[Job]:
    """One job for each input, none of which would replace a file or share its output with another.

    Args:
        out: a file's name for one input, a folder, STANDARD, or None: the current folder, or STANDARD for STANDARD.

    Raises:
        ConfigError: one file for several inputs, a suffix that can't be written, or two inputs with one output.
        OutputError: an output exists already, or its folder can't be written to.
    """
    if out is None:
        out = STANDARD if [item.source for item in inputs] == [STANDARD] else "."
    if out == STANDARD or _is_file_name(out, len(inputs), outputs.suffixes):
        if len(inputs) > 1:
            raise ConfigError(f"expected a folder for {len(inputs)} results, got {out}; pass -o FOLDER")
        jobs = [Job(item.source, out) for item in inputs]
    else:
        jobs = [
            Job(item.source, os.path.normpath(os.path.join(out, place)))
            for item, place in zip(inputs, _places(inputs, outputs.suffix), strict=True)
        ]
    paths = [job.output for job in jobs if job.output != STANDARD]
    _refuse_existing(paths, outputs.overwrite)
    for folder in sorted({os.path.dirname(path) or "." for path in paths}):
        _refuse_unwritable(folder)
    return jobs


def _is_file_name(out: str, num_inputs: int, suffixes: Sequence[str]) -> bool:
    suffix = Path(out).suffix.lower()
    if os.path.isdir(out) or out.endswith(("/", os.sep)) or not suffix:
        return False
    if suffix not in suffixes and num_inputs == 1:
        raise ConfigError(f"expected {out} to end in {', '.join(suffixes)}, got {suffix}; end a folder's name in /")
    return suffix in suffixes


def _places(inputs: Sequence[Input], suffix: str) -> list[PurePath]:
    """Where each result lies below the folder; files of one name keep the folders that tell them apart."""
    places = [_renamed(item.place, suffix) for item in inputs]
    count = Counter(places)
    if any(count[place] > 1 for place in places):
        shared = [item for item, place in zip(inputs, places, strict=True) if count[place] > 1]
        common = os.path.commonpath([os.path.dirname(os.path.abspath(item.source)) for item in shared])
        for number, item in enumerate(inputs):
            if item in shared:
                places[number] = _renamed(PurePath(os.path.relpath(os.path.abspath(item.source), common)), suffix)
    owners: dict[PurePath, str] = {}
    for item, place in zip(inputs, places, strict=True):
        other = owners.setdefault(place, item.source)
        if other != item.source:
            raise ConfigError(f"expected inputs of different names, got {other} and {item.source}; write them to two folders")
    return places


def _renamed(place: PurePath, suffix: str) -> PurePath:
    known = place.suffix.lower() in (*AUDIO_SUFFIXES, *TOKEN_SUFFIXES)
    return place.with_name((place.stem if known else place.name) + suffix)


def _refuse_existing(paths: Sequence[str], overwrite: bool) -> None:
    for path in paths:
        if os.path.isdir(path):
            raise OutputError(f"expected a file's name to write to, but {path} is a folder; choose another name")
    existing = [] if overwrite else [path for path in paths if os.path.exists(path)]
    if existing:
        others = f" and {len(existing) - 1} more exist" if len(existing) > 1 else " exists"
        raise OutputError(f"expected new files to write, but {existing[0]}{others}; pass --overwrite, or another -o")


def _refuse_unwritable(folder: str) -> None:
    """Before any work: missing folders are made when something is written to them, if their parents allow it."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise OutputError(f"expected a folder to write to, but {place} is a file; choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to the folder {place}: permission denied; choose another place")
