"""Tensors out of safetensors files into a model, strictly.

A checkpoint either has exactly the tensors that the model has, or loading fails with a report of every one that is missing,
unexpected or of another shape. Other layouts of the same model are read through one table of old names -> new names.
"""

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from phonograph.errors import CheckpointError
from phonograph.files import atomic_write

__all__ = ["Renaming", "TensorFiles", "load_strict", "open_tensors", "save_tensors"]

Splitter = Callable[[Tensor], Sequence[Tensor]]
"""Fused tensor -> its parts, in the order of the table's new names."""

_SHOWN = 5


@dataclass(frozen=True)
class TensorFiles:
    """The tensors of one checkpoint: which file each name is in, and its shape."""

    paths: tuple[Path, ...]
    file_of_name: dict[str, Path] = field(repr=False)
    shapes: dict[str, tuple[int, ...]] = field(repr=False)


@dataclass(frozen=True)
class Renaming:
    """Old names -> new names, with `{i}`, `{j}`, ... for the parts that vary; a tuple of new names splits a fused tensor.

    `split` cuts the tensors whose entry is a tuple.
    """

    table: Mapping[str, str | tuple[str, ...]]
    split: Splitter | None = None

    def new_names(self, old: str) -> tuple[str, ...]:
        """Names in the model for a name in the file; the same name where the table has no entry."""
        for pattern, new in self._patterns:
            match = pattern.fullmatch(old)
            if match is not None:
                return tuple(name.format(**match.groupdict()) for name in new)
        return (old,)

    @functools.cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
        return [
            (
                re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\w+)", re.escape(old))),
                (new,) if isinstance(new, str) else tuple(new),
            )
            for old, new in self.table.items()
        ]


def open_tensors(paths: Sequence[Path]) -> TensorFiles:
    """Read names and shapes, no data.

    Raises:
        CheckpointError: a file that is not safetensors, or is cut.
    """
    file_of_name: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (a safe_open is no mapping)
                file_of_name[name] = path
                shapes[name] = tuple(file.get_slice(name).get_shape())
    return TensorFiles(tuple(paths), file_of_name, shapes)


def load_strict(model: nn.Module, files: TensorFiles, renaming: Renaming, device: torch.device) -> None:
    """Fill a model built on the meta device, in its own types, with the tensors of a checkpoint.

    One tensor at a time leaves the memory-mapped file, so that the peak is the model's own size.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape; the model is then not changed.
    """
    targets = model.state_dict()
    new_names = {old: renaming.new_names(old) for old in files.shapes}
    report = _mismatch(targets, new_names, files)
    if report:
        raise CheckpointError(
            f"expected the tensors of {type(model).__name__} in {', '.join(map(os.fspath, files.paths))}, got {report}; "
            "check that config.json belongs to these weights"
        )
    for path in files.paths:
        with _opened(path) as file:
            for old in (name for name, place in files.file_of_name.items() if place == path):
                new = new_names[old]
                tensor = file.get_tensor(old)
                parts = renaming.split(tensor) if renaming.split and len(new) > 1 else [tensor]
                for name, part in zip(new, parts, strict=True):
                    _assign(model, name, part.to(device=device, dtype=targets[name].dtype))


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, atomically.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full.
    """
    data = serialize({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    with atomic_write(path) as file:
        file.write(data)


def _opened(path: Path) -> Any:
    """A safetensors file, mapped into memory; a context manager."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"expected a safetensors file, got {path}, which can't be read: {error}; fetch it again"
        ) from error


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    old = getattr(owner, leaf)
    # The layer chose how its weight lies in memory (channels-last for convolutions); the file's order does not matter.
    laid_out = torch.empty_strided(old.shape, old.stride(), dtype=value.dtype, device=value.device).copy_(value)
    if isinstance(old, nn.Parameter):
        setattr(owner, leaf, nn.Parameter(laid_out, requires_grad=old.requires_grad))
    else:
        setattr(owner, leaf, laid_out)


def _mismatch(targets: Mapping[str, Tensor], new_names: Mapping[str, tuple[str, ...]], files: TensorFiles) -> str:
    found = {name for names in new_names.values() for name in names}
    missing = [name for name in targets if name not in found]
    unexpected = [old for old, names in new_names.items() if any(name not in targets for name in names)]
    shapes = [
        f"{old} {list(files.shapes[old])} instead of {[list(targets[name].shape) for name in names]}"
        for old, names in new_names.items()
        if all(name in targets for name in names) and not _fits([targets[name] for name in names], files.shapes[old])
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in groups.items() if names)


def _fits(targets: Sequence[Tensor], stored: tuple[int, ...]) -> bool:
    """A stored tensor is one target, or several joined along their first dimension."""
    rows = sum(target.shape[0] for target in targets) if len(targets) > 1 else None
    return stored == (tuple(targets[0].shape) if rows is None else (rows, *targets[0].shape[1:]))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, and {len(names) - _SHOWN} more"
