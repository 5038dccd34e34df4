"""The files that hold a whole recording's tokens: .mimi, and .npz and .safetensors for other tools.

Both foreign formats carry the columns of `SpeechTokens.to_arrays`: npz as one array each, safetensors as the
tensor `codes` and text metadata. An unknown num_samples is left out. Neither ever holds or loads a pickle.
"""

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import safetensors
import safetensors.numpy

from phonograph.errors import ConfigError, TokenFileError
from phonograph.files import atomic_write
from phonograph.tokens.reader import TokenReader
from phonograph.tokens.speech_tokens import NUMBER_COLUMNS, TEXT_COLUMNS, SpeechTokens
from phonograph.tokens.writer import token_file_parts

__all__ = ["load_tokens", "save_tokens"]

_Chosen = TypeVar("_Chosen")

# What numpy's and safetensors' readers are known to raise for files that are damaged or hold something else.
_FOREIGN_ERRORS = (
    EOFError,
    KeyError,
    MemoryError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
    safetensors.SafetensorError,
)


def save_tokens(tokens: SpeechTokens, path: str | os.PathLike[str] | BinaryIO) -> None:
    """Write `tokens` in the format of the path's suffix, or .mimi to a file object; see `SpeechTokens.save`."""
    if not isinstance(path, str | os.PathLike):
        _write_mimi(tokens, path)
        return
    write = _by_suffix(path, {".mimi": _write_mimi, ".npz": _write_npz, ".safetensors": _write_safetensors})
    with atomic_write(path) as file:
        write(tokens, file)


def load_tokens(path: str | os.PathLike[str] | BinaryIO, on_damage: str) -> SpeechTokens:
    """Read a file of the format of the path's suffix, or .mimi from a file object; see `SpeechTokens.load`."""
    if on_damage not in ("raise", "prefix"):
        raise ConfigError(f"expected on_damage to be 'raise' or 'prefix', got {on_damage!r}")
    if not isinstance(path, str | os.PathLike):
        return _read_mimi(path, getattr(path, "name", "the token file"), on_damage)
    read = _by_suffix(path, {".mimi": None, ".npz": _read_npz, ".safetensors": _read_safetensors})
    if read is None:
        return _read_mimi(path, path, on_damage)
    try:
        return SpeechTokens.from_arrays(read(path))
    except OSError as error:
        raise TokenFileError(f"cannot read {path}: {error.strerror or error}; check its name and permissions") from error
    except _FOREIGN_ERRORS as error:
        raise TokenFileError(f"cannot read speech tokens from {path}: {error}") from error


def _read_mimi(source: str | os.PathLike[str] | BinaryIO, label: object, on_damage: str) -> SpeechTokens:
    with TokenReader(source) as reader:
        damage = next(iter(reader.damage), reader.incomplete_tail)
        if damage is None:
            return reader.read_frames()
        if on_damage == "prefix":
            return reader.read_frames(0, damage.start_frame)
        raise TokenFileError(
            f"{label} is damaged: {damage}; pass on_damage='prefix' for the {damage.start_frame} frames before it"
        )


def _write_mimi(tokens: SpeechTokens, file: BinaryIO) -> None:
    for part in token_file_parts(tokens):
        file.write(part)


def _write_npz(tokens: SpeechTokens, file: BinaryIO) -> None:
    columns = {name: np.asarray(value) for name, value in tokens.to_arrays().items() if value is not None}
    np.savez_compressed(file, allow_pickle=False, **columns)


def _read_npz(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    with open(path, "rb") as archive:
        if not zipfile.is_zipfile(archive):
            raise ValueError("it is no npz archive")
        archive.seek(0)
        file = np.load(archive, allow_pickle=False)
        return {name: file[name] if name == "codes" else file[name].item() for name in file.files}


def _write_safetensors(tokens: SpeechTokens, file: BinaryIO) -> None:
    columns = tokens.to_arrays()
    codes = np.ascontiguousarray(columns.pop("codes"))
    metadata = {name: str(value) for name, value in columns.items() if value is not None}
    file.write(safetensors.numpy.save({"codes": codes}, metadata=metadata))


def _read_safetensors(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        columns = {name: int(metadata[name]) for name in (*NUMBER_COLUMNS, "num_samples") if name in metadata}
        texts = {name: metadata[name] for name in TEXT_COLUMNS if name in metadata}
        return {"codes": file.get_tensor("codes"), **columns, **texts}


def _by_suffix(path: str | os.PathLike[str], choices: Mapping[str, _Chosen]) -> _Chosen:
    suffix = Path(path).suffix.lower()
    if suffix not in choices:
        raise ConfigError(f"expected a token file's name to end in {', '.join(choices)}, got {path}")
    return choices[suffix]
