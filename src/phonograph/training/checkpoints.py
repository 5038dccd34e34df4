"""Checkpoints of a run: folders that are complete or not there, the newest few of them kept.

    run/checkpoints/step-00001000/
        meta.json              step, figures, seconds trained, processes
        weights.safetensors    every parameter and buffer of the task's modules
        ema.safetensors        the averaged weights, when there are any
        rank-0.pt, ...         of each process: optimisers, random generators, position in the data; plain tensors and numbers
        model/                 what `from_pretrained` loads, with the averaged weights

A checkpoint is written under a hidden name that is changed at the very end. This module knows files, and no task or optimiser.

    average_checkpoints("run", 5)  # the mean of the newest five, by tensor
"""

import contextlib
import io
import json
import math
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from phonograph.errors import CheckpointError
from phonograph.files import atomic_write, make_folder, output_error
from phonograph.loading.weights import open_tensors, save_tensors

__all__ = [
    "EMA_NAME",
    "MODEL_NAME",
    "WEIGHTS_NAME",
    "average_checkpoints",
    "begin",
    "best_of",
    "capture_random",
    "commit",
    "copy_folder",
    "find_checkpoints",
    "load_state",
    "load_weights",
    "prune",
    "read_meta",
    "replace_folder",
    "restore_random",
    "save_state",
    "save_weights",
    "write_meta",
]

FOLDER = "checkpoints"
WEIGHTS_NAME = "weights.safetensors"
EMA_NAME = "ema.safetensors"
MODEL_NAME = "model"
_META = "meta.json"
_PREFIX = "step-"
_PART = ".part"


# --------------------------------------------------------------------------------------------------------------- folders


def find_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, the oldest first."""
    return sorted(path for path in (run / FOLDER).glob(f"{_PREFIX}*") if path.is_dir())


def begin(run: Path, step: int) -> Path:
    """Make the hidden folder that a checkpoint is written into, and remove what interrupted ones have left.

    Raises:
        OutputError: it can't be made.
    """
    folder = run / FOLDER
    make_folder(folder)
    with _writing(folder):
        for left in folder.glob(f".{_PREFIX}*{_PART}"):
            shutil.rmtree(left)
    part = part_of(run, step)
    make_folder(part)
    return part


def part_of(run: Path, step: int) -> Path:
    """The hidden folder of a checkpoint that is being written."""
    return run / FOLDER / f".{_PREFIX}{step:08d}{_PART}"


def commit(run: Path, step: int) -> Path:
    """Give a checkpoint that is written its name.

    Raises:
        OutputError: the disk refused.
    """
    final = run / FOLDER / f"{_PREFIX}{step:08d}"
    replace_folder(part_of(run, step), final)
    return final


def replace_folder(new: Path, final: Path) -> None:
    """Put a folder in the place of another; an older one stays until the new one is there.

    Raises:
        OutputError: the disk refused.
    """
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with _writing(final):
        if final.exists():
            os.rename(final, old)
        try:
            os.rename(new, final)
        except BaseException:
            if old.exists():
                os.rename(old, final)
            raise
        handle = os.open(final.parent, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    shutil.rmtree(old, ignore_errors=True)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder to where there is none.

    Raises:
        OutputError: the disk refused.
    """
    with _writing(target):
        shutil.copytree(source, target)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def prune(run: Path, keep: int, best: Path | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one.

    Raises:
        OutputError: the disk refused.
    """
    for path in find_checkpoints(run)[:-keep]:
        if path != best:
            # Under a hidden name first: a removal that is interrupted leaves no half of a checkpoint.
            hidden = path.with_name(f".{path.name}{_PART}")
            with _writing(path):
                os.rename(path, hidden)
                shutil.rmtree(hidden)


def best_of(run: Path, figure: str | None, best_is: str) -> Path | None:
    """The checkpoint with the best value of a figure, the older of equal ones; None where none has it."""
    if figure is None:
        return None
    sign = 1 if best_is == "min" else -1
    values = {path: sign * read_meta(path)["figures"].get(figure, math.nan) for path in find_checkpoints(run)}
    return min((path for path, value in values.items() if math.isfinite(value)), key=values.__getitem__, default=None)


# -------------------------------------------------------------------------------------------------------------- contents


def write_meta(folder: Path, values: Mapping[str, Any]) -> None:
    """Write what a checkpoint says about itself: `step`, `figures` and more; figures that are not finite become null."""
    figures = {name: value if math.isfinite(value) else None for name, value in values["figures"].items()}
    with atomic_write(folder / _META) as file:
        file.write(json.dumps({**values, "figures": figures}, indent=2).encode())


def read_meta(folder: Path) -> dict[str, Any]:
    """What a checkpoint says about itself.

    Raises:
        CheckpointError: it can't be read.
    """
    try:
        values = cast(dict[str, Any], json.loads((folder / _META).read_bytes()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"expected a checkpoint in {folder}, got none that can be read ({error}); remove it") from error
    return {**values, "figures": {name: math.nan if v is None else v for name, v in values["figures"].items()}}


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors; those that share memory are written once for each name.

    Raises:
        OutputError: they can't be written.
    """
    seen: set[int] = set()
    unshared: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        unshared[name] = tensor.detach().clone() if place in seen else tensor
        seen.add(place)
    save_tensors(path, unshared)


def load_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, which has those that are expected and no others.

    Raises:
        CheckpointError: it has not, or can't be read.
    """
    shapes = open_tensors([path]).shapes
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    if shapes != wanted:
        names = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        raise CheckpointError(
            f"expected the tensors of this recipe's models in {path}, got others: {', '.join(names[:5])}"
            f"{' and more' if len(names) > 5 else ''}; resume with the recipe that the run was begun with"
        )
    return load_file(path)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write plain tensors, numbers and strings.

    Raises:
        OutputError: they can't be written.
    """
    whole = io.BytesIO()  # of a file that refuses a part of it torch tells another error
    torch.save(dict(state), whole)
    with atomic_write(path) as file:
        file.write(whole.getbuffer())


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote.

    Raises:
        CheckpointError: there is no such file, or it holds more than plain values.
    """
    try:
        return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load passes on whatever zip and pickle raise
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"expected the state of a process in {path}, got none that can be read ({reason})") from error


def average_checkpoints(run: str | os.PathLike[str], count: int) -> dict[str, Tensor]:
    """The mean, in float64, of the newest `count` checkpoints' weights, averaged weights where a checkpoint has them.

    Returns:
        All tensors of the task's modules by name, in their own types; those of integers as in the newest.

    Raises:
        CheckpointError: there are fewer checkpoints, or they are of different models.
    """
    folders = find_checkpoints(Path(run))[-count:]
    if len(folders) < count:
        raise CheckpointError(f"expected {count} checkpoints in {run} to average, got {len(folders)}; keep more of them")
    all_weights = [_with_ema(folder) for folder in folders]
    newest = all_weights[-1]
    for folder, weights in zip(folders, all_weights, strict=True):
        if {n: t.shape for n, t in weights.items()} != {n: t.shape for n, t in newest.items()}:
            raise CheckpointError(f"expected checkpoints of one model in {run}, got another in {folder.name}; remove it")
    return {name: _mean([weights[name] for weights in all_weights]) for name in newest}


def _with_ema(folder: Path) -> dict[str, Tensor]:
    weights = load_file(folder / WEIGHTS_NAME)
    return {**weights, **load_file(folder / EMA_NAME)} if (folder / EMA_NAME).exists() else weights


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[-1].is_floating_point():
        return tensors[-1]
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[-1].dtype)


# ------------------------------------------------------------------------------------------------------------ randomness


def capture_random(device: torch.device) -> dict[str, Any]:
    """The state of all global random generators, as plain tensors and numbers."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (its state is what is kept here)
    assert name == "MT19937"
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
    }


def restore_random(state: Mapping[str, Any], device: torch.device) -> None:
    """Set all global random generators to a captured state."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    random.setstate(state["python"])
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy(), position, has_gauss, cached))  # noqa: NPY002
