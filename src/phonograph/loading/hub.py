"""Where checkpoints are: bundled with the package, in a folder, or on the Hugging Face hub.

The only module that uses huggingface_hub. It knows files and names, no tensors and no models.
"""

import json
import os
import socket
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from phonograph.configuration import HUB_OPTIONS
from phonograph.errors import CheckpointError

__all__ = [
    "BUNDLED_SPEECH",
    "HUB_OPTIONS",
    "WEIGHTS_NAME",
    "bundled_models",
    "read_json",
    "read_optional_json",
    "resolve_file",
    "resolve_weights",
    "split_hub_options",
]

_BUNDLED = Path(__file__).parent / "bundled"
_BUNDLED_MODELS = _BUNDLED / "models"
BUNDLED_SPEECH = _BUNDLED / "speech"
"""Folder of the six real recordings that the demo and the tests run on; LICENSES.md in it names their licences."""

WEIGHTS_NAME = "model.safetensors"
"""File name of unsharded weights."""
_SAFETENSORS_INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_CONVERT = (
    'python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in '
    "torch.load('pytorch_model.bin', weights_only=True).items()}, 'model.safetensors', {'format': 'pt'})\""
)


def bundled_models() -> dict[str, Path]:
    """Names of the models in the package, each with its folder."""
    return {folder.name: folder for folder in sorted(_BUNDLED_MODELS.iterdir()) if (folder / "config.json").is_file()}


def split_hub_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part keyword arguments into those that say where to look (HUB_OPTIONS) and the rest."""
    hub = {name: value for name, value in options.items() if name in HUB_OPTIONS}
    return hub, {name: value for name, value in options.items() if name not in HUB_OPTIONS}


def resolve_file(name_or_path: str | os.PathLike[str], filename: str, **hub_options: Any) -> Path:
    """Local path of one file of a checkpoint, downloaded into the hub's cache if that is where it lives.

    Args:
        name_or_path: a folder, the name of a bundled model, or a hub id such as "kyutai/mimi".
        filename: the file's name inside the checkpoint.
        hub_options: any of HUB_OPTIONS; `subfolder` counts for folders too.

    Raises:
        CheckpointError: nothing of that name, no such file in it, or no connection and nothing cached.
    """
    path = _find_file(name_or_path, filename, hub_options)
    if path is None:
        raise CheckpointError(f"expected a file {filename} in {os.fspath(name_or_path)}, found none; {_hint(name_or_path)}")
    return path


def resolve_weights(name_or_path: str | os.PathLike[str], **hub_options: Any) -> list[Path]:
    """Local paths of a checkpoint's safetensors files: one, or all shards that its index names.

    A path to a .safetensors file is taken as it is. A folder without model.safetensors may hold one other safetensors file
    (the moshi package's checkpoints do).

    Raises:
        CheckpointError: there are none, a shard is missing, or there are only pickles.
    """
    local = Path(name_or_path)
    if local.suffix == ".safetensors" and local.is_file():
        return [local]
    single = _find_file(name_or_path, WEIGHTS_NAME, hub_options)
    if single is not None:
        return [single]
    index = _find_file(name_or_path, _SAFETENSORS_INDEX, hub_options)
    if index is not None:
        return [resolve_file(name_or_path, shard, **hub_options) for shard in _shard_names(index)]
    if local.is_dir():
        others = sorted((local / (hub_options.get("subfolder") or "")).glob("*.safetensors"))
        if len(others) == 1:
            return others
    if any(_find_file(name_or_path, pickle, hub_options) for pickle in _PICKLES):
        raise CheckpointError(
            f"expected safetensors weights in {os.fspath(name_or_path)}, found only a pickle, which can run any code when "
            f"opened; if you trust it, convert it in its folder: {_CONVERT}"
        )
    raise CheckpointError(f"expected {WEIGHTS_NAME} in {os.fspath(name_or_path)}, found none; {_hint(name_or_path)}")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises:
        CheckpointError: the file is missing, or holds anything else.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {os.fspath(path)}: {error.strerror}; check its name and permissions") from error
    except ValueError as error:
        raise CheckpointError(f"expected JSON in {os.fspath(path)}, got something else ({error}); fetch it again") from error
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise CheckpointError(f"expected a JSON object in {os.fspath(path)}, got a {kind}; fetch it again")
    return values


def read_optional_json(name_or_path: str | os.PathLike[str], filename: str, **hub_options: Any) -> dict[str, Any]:
    """The JSON object in a file that a checkpoint may lack; empty without it.

    Raises:
        CheckpointError: the file holds anything else.
    """
    try:
        path = resolve_file(name_or_path, filename, **hub_options)
    except CheckpointError:  # without a connection, a file that isn't there looks like one that isn't cached
        return {}
    return read_json(path)


def _shard_names(index: Path) -> list[str]:
    try:
        return sorted({os.fspath(shard) for shard in json.loads(index.read_bytes())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"expected a JSON object with a weight_map in {index}, got something else ({error}); fetch the file again"
        ) from error


def _find_file(name_or_path: str | os.PathLike[str], filename: str, hub_options: dict[str, Any]) -> Path | None:
    subfolder = hub_options.get("subfolder") or ""
    folder = Path(name_or_path)
    if not os.fspath(name_or_path) or not folder.is_dir():  # Path("") would be the current folder
        bundled = bundled_models().get(os.fspath(name_or_path))
        if bundled is None:
            return _download(os.fspath(name_or_path), filename, hub_options)
        folder = bundled
    path = folder / subfolder / filename
    return path if path.is_file() else None


def _download(repository: str, filename: str, hub_options: dict[str, Any]) -> Path | None:
    from huggingface_hub import constants, errors, hf_hub_download

    if repository.count("/") != 1 or repository.startswith((".", "/", "~")) or "\\" in repository:
        raise CheckpointError(
            f"expected a bundled model, a folder or a hub id (owner/name), got {repository!r}, which is none of them; "
            f"{_hint(repository)}"
        )
    if not (hub_options.get("local_files_only") or constants.HF_HUB_OFFLINE or _within_reach(constants.ENDPOINT)):
        hub_options = {**hub_options, "local_files_only": True}
    try:
        return Path(hf_hub_download(repository, filename, **hub_options))
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"expected {repository} in the hub's cache or a connection to the hub, found neither; {_hint(repository)}"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"expected revision {hub_options.get('revision')!r} of {repository}, the hub has none; check the revision's name"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise CheckpointError(
            f"expected a bundled model, a folder or a hub id, got {repository!r}, which is none that can be read; "
            f"{_hint(repository)}, or pass token=... if it is private"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"expected an answer from the hub for {repository}, got: {reason}; try again later") from error


def _within_reach(address: str) -> bool:
    """False where the hub's name is known to nobody: its client would try again for half a minute, for each file."""
    if urllib.request.getproxies():  # then it's the proxy that knows the name
        return True
    try:
        socket.getaddrinfo(urlsplit(address).hostname, None)
    except OSError:
        return False
    return True


def _hint(name_or_path: str | os.PathLike[str]) -> str:
    if Path(name_or_path).is_dir():
        return "check the folder, or pass subfolder=..."
    return f"pass a folder, a hub id, or a bundled model ({', '.join(bundled_models())})"
