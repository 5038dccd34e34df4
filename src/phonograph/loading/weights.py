"""Tensors out of safetensors files into a model, strictly.

A checkpoint either has exactly the tensors that the model has, or loading fails with a report of every one that is missing,
unexpected or of another shape. Other layouts of the same model are read through one table of old names -> new names; what a
file of another head of the same family may lack or hold beyond that is said by `LoadRules`.
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

__all__ = ["LoadRules", "Renaming", "TensorFiles", "assign", "load_strict", "open_tensors", "save_tensors", "some"]

Splitter = Callable[[Tensor], Sequence[Tensor]]
"""Fused tensor -> its parts, in the order of the table's new names."""

_SHOWN = 5


def _never(name: str) -> bool:
    return False


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


@dataclass(frozen=True)
class LoadRules:
    """How far a checkpoint may differ from the model; names are those of the model.

    Args:
        prefix: attribute under which a model with a head holds the base model; it is added or stripped where the file was
            saved from the other of the two.
        may_be_missing: tensors of the model that the file may lack.
        may_differ: tensors of the model that are not filled when the file's have another shape.
        not_needed: tensors of the file that a model without them leaves there.
        tied: name -> name of the tensor that it is the same as; the file may hold either or both.
    """

    prefix: str = ""
    may_be_missing: Callable[[str], bool] = _never
    may_differ: Callable[[str], bool] = _never
    not_needed: Callable[[str], bool] = _never
    tied: Mapping[str, str] = field(default_factory=dict)

    def placed(self, name: str, targets: Mapping[str, Tensor]) -> str:
        """The target that `name` means, with the prefix added or stripped where only that is a target."""
        forms = (name, f"{self.prefix}.{name}", name.removeprefix(f"{self.prefix}."))
        return next((form for form in forms if form in targets), name) if self.prefix else name


STRICT = LoadRules()
"""Exactly the model's tensors."""


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


def load_strict(
    model: nn.Module, files: TensorFiles, renaming: Renaming, device: torch.device, rules: LoadRules = STRICT
) -> list[str]:
    """Fill a model built on the meta device, in its own types, with the tensors of a checkpoint.

    One tensor at a time leaves the memory-mapped file, so that the peak is the model's own size.

    Returns:
        Names of the tensors that `rules` let the file lack; they are as they were. Tied ones are not among them.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape; the model is then not changed.
    """
    targets = model.state_dict()
    new_names = _new_names(targets, files, renaming, rules)
    found = {name for names in new_names.values() for name in names}
    absent = [name for name in targets if name not in found and name not in rules.tied]
    report = _mismatch(targets, new_names, files, [name for name in absent if not rules.may_be_missing(name)])
    if report:
        raise CheckpointError(
            f"expected the tensors of {type(model).__name__} in {', '.join(map(os.fspath, files.paths))}, got {report}; "
            "check that config.json belongs to these weights"
        )
    for path in files.paths:
        with _opened(path) as file:
            for old in (name for name in new_names if files.file_of_name[name] == path):
                new = new_names[old]
                tensor = file.get_tensor(old)
                parts = renaming.split(tensor) if renaming.split and len(new) > 1 else [tensor]
                for name, part in zip(new, parts, strict=True):
                    owner, _, leaf = name.rpartition(".")
                    assign(model.get_submodule(owner), leaf, part.to(device=device, dtype=targets[name].dtype))
    return absent


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


def assign(owner: nn.Module, leaf: str, value: Tensor) -> None:
    """Put `value` in the place of a parameter or buffer that lies directly in `owner`, perhaps on the meta device.

    The layer chose how its weight lies in memory (channels-last for convolutions); the value's order does not matter.
    """
    old = getattr(owner, leaf)
    laid_out = torch.empty_strided(old.shape, old.stride(), dtype=value.dtype, device=value.device).copy_(value)
    if isinstance(old, nn.Parameter):
        setattr(owner, leaf, nn.Parameter(laid_out, requires_grad=old.requires_grad))
    else:
        setattr(owner, leaf, laid_out)


def _new_names(
    targets: Mapping[str, Tensor], files: TensorFiles, renaming: Renaming, rules: LoadRules
) -> dict[str, tuple[str, ...]]:
    """Names in the model of each tensor in the file that is to be read."""
    new_names = {}
    for old, stored in files.shapes.items():
        names = tuple(rules.placed(name, targets) for name in renaming.new_names(old))
        if not any(name in targets for name in names):
            if not all(rules.not_needed(name) for name in names):
                new_names[old] = names  # to be reported
        elif not (all(map(rules.may_differ, names)) and not _fits([targets[name] for name in names], stored)):
            new_names[old] = names
    found = {name for names in new_names.values() for name in names}
    for old, names in list(new_names.items()):
        source = rules.tied.get(names[0])
        if source in found:
            del new_names[old]
        elif source is not None:
            new_names[old] = (source,)
    return new_names


def _mismatch(
    targets: Mapping[str, Tensor], new_names: Mapping[str, tuple[str, ...]], files: TensorFiles, missing: Sequence[str]
) -> str:
    unexpected = [old for old, names in new_names.items() if any(name not in targets for name in names)]
    shapes = [
        f"{old} {list(files.shapes[old])} instead of {[list(targets[name].shape) for name in names]}"
        for old, names in new_names.items()
        if all(name in targets for name in names) and not _fits([targets[name] for name in names], files.shapes[old])
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return "; ".join(f"{len(names)} {kind} ({some(names)})" for kind, names in groups.items() if names)


def _fits(targets: Sequence[Tensor], stored: tuple[int, ...]) -> bool:
    """A stored tensor is one target, or several joined along their first dimension."""
    rows = sum(target.shape[0] for target in targets) if len(targets) > 1 else None
    return stored == (tuple(targets[0].shape) if rows is None else (rows, *targets[0].shape[1:]))


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, and {len(names) - _SHOWN} more"
