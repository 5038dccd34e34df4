"""Where checkpoints are found: bundled, in folders, in shards, on the hub (never reached here), and what is refused."""

import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from random_mimi import TINY, random_mimi
from safetensors.torch import load_file, save_file

from phonograph import MimiConfig, MimiModel
from phonograph.errors import CheckpointError
from phonograph.loading import hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny checkpoint."""
    random_mimi(**TINY).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def shard(folder: Path) -> list[str]:
    """Split the weights into two files with an index, as large models come; the shards' names."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, files = sorted(tensors), ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    parts = [names[::2], names[1::2]]
    for file, part in zip(files, parts, strict=True):
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return files


def equal(one: MimiModel, other: MimiModel) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


class TestFolders:
    def test_bundled(self) -> None:
        assert list(hub.bundled_models()) == ["mimi-mini"]
        assert hub.resolve_file("mimi-mini", "config.json") == hub.bundled_models()["mimi-mini"] / "config.json"
        assert [path.name for path in hub.resolve_weights("mimi-mini")] == ["model.safetensors"]

    def test_a_folder_goes_before_a_bundled_name(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.rename(tmp_path / "mimi-mini")
        monkeypatch.chdir(tmp_path)
        assert hub.resolve_file("mimi-mini", "config.json") == Path("mimi-mini/config.json")
        assert MimiModel.from_pretrained("mimi-mini").config.hidden_size == TINY["hidden_size"]

    @pytest.mark.parametrize("form", [str, Path])
    def test_a_folder(self, folder: Path, form: Callable[[Path], Any]) -> None:
        assert hub.resolve_file(form(folder), "config.json") == folder / "config.json"
        assert hub.resolve_weights(form(folder)) == [folder / "model.safetensors"]

    def test_a_file(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        assert hub.resolve_weights(path) == [path]
        assert equal(MimiModel.from_pretrained(path), MimiModel.from_pretrained(folder))

    def test_a_subfolder(self, folder: Path, tmp_path: Path) -> None:
        model = MimiModel.from_pretrained(tmp_path, subfolder="tiny")
        assert equal(model, MimiModel.from_pretrained(folder))
        assert MimiConfig.from_pretrained(tmp_path, subfolder="tiny").hidden_size == TINY["hidden_size"]
        with pytest.raises(CheckpointError, match=r"pass subfolder=\.\.\."):
            MimiModel.from_pretrained(tmp_path)

    def test_one_safetensors_file_of_another_name(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "other.safetensors")
        assert hub.resolve_weights(folder) == [folder / "other.safetensors"]
        (folder / "second.safetensors").write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"expected model\.safetensors in .*found none; check the folder"):
            hub.resolve_weights(folder)

    def test_missing_file(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match=r"expected a file x\.json in .*tiny, found none; check the folder"):
            hub.resolve_file(folder, "x.json")
        with pytest.raises(CheckpointError, match=r"expected a file x\.json in mimi-mini, found none; pass a folder"):
            hub.resolve_file("mimi-mini", "x.json")

    @pytest.mark.parametrize("name", ["nope", "a/b/c", "../x/y", "./x", "/no/such", "~/x", "C:\\models\\x", "x.safetensors"])
    def test_names_of_nothing(self, name: str) -> None:
        match = r"expected a bundled model, a folder or a hub id \(owner/name\), got .*none of them; .*\(mimi-mini\)"
        for resolve in (hub.resolve_weights, lambda name: hub.resolve_file(name, "config.json")):
            with pytest.raises(CheckpointError, match=match):
                resolve(name)

    def test_options_are_parted_from_fields(self) -> None:
        where = dict.fromkeys(hub.HUB_OPTIONS, 1)
        assert hub.split_hub_options({**where, "num_quantizers": 8}) == (where, {"num_quantizers": 8})


class TestShards:
    def test_equal_to_one_file(self, folder: Path) -> None:
        whole = MimiModel.from_pretrained(folder)
        files = shard(folder)
        assert hub.resolve_weights(folder) == [folder / file for file in files]
        assert equal(MimiModel.from_pretrained(folder), whole)

    def test_missing_shard(self, folder: Path) -> None:
        files = shard(folder)
        (folder / files[1]).unlink()
        with pytest.raises(CheckpointError, match=f"expected a file {files[1]} in .*found none"):
            MimiModel.from_pretrained(folder)

    @pytest.mark.parametrize(
        "content",
        ["{", "[]", "3", "{}", '{"weight_map": []}', '{"weight_map": {"a": ["b"]}}', '{"weight_map": {"a": 5}}', "\xff"],
    )
    def test_broken_index(self, folder: Path, content: str) -> None:
        shard(folder)
        (folder / "model.safetensors.index.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(CheckpointError, match=r"a JSON object with a weight_map in .*index\.json.*fetch the file again"):
            hub.resolve_weights(folder)


class TestPickles:
    @pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
    def test_are_refused(self, folder: Path, name: str) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(b"never opened")
        with pytest.raises(CheckpointError, match="found only a pickle, which can run any code when opened; if you trust it"):
            MimiModel.from_pretrained(folder)

    def test_the_conversion_that_is_given_works(self, folder: Path) -> None:
        expected = MimiModel.from_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        first = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
        tensors[first] = tensors[first].T.contiguous().T  # as pickles may hold it
        torch.save(tensors, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError) as caught:
            MimiModel.from_pretrained(folder)
        command = shlex.split(str(caught.value).split("in its folder: ")[1])
        assert command[0] == "python"
        subprocess.run([sys.executable, *command[1:]], cwd=folder, check=True)
        assert equal(MimiModel.from_pretrained(folder), expected)


class TestHub:
    """huggingface_hub is stood in for, so that what it is asked, and what its errors become, is seen without a network."""

    @pytest.fixture
    def asked(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def download(repo_id: str, filename: str, **options: Any) -> str:
            calls.append({"repo_id": repo_id, "filename": filename, **options})
            path = folder / filename
            if not path.is_file():
                raise errors.EntryNotFoundError(f"404: {filename}")
            return str(path)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return calls

    def test_every_option_is_passed_on(self, folder: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
        where = {
            "revision": "v1.0",
            "token": "secret",
            "cache_dir": tmp_path,
            "local_files_only": True,
            "force_download": False,
            "subfolder": "codec",
        }
        model = MimiModel.from_pretrained("owner/name", **where)
        assert equal(model, MimiModel.from_pretrained(folder))
        assert model.config.name_or_path == "owner/name"
        assert {call["filename"] for call in asked} == {"config.json", "model.safetensors"}
        assert all(call == {"repo_id": "owner/name", "filename": call["filename"], **where} for call in asked)

    def test_shards_are_fetched_one_by_one(self, folder: Path, asked: list[dict[str, Any]]) -> None:
        expected = MimiModel.from_pretrained(folder)
        files = shard(folder)
        assert equal(MimiModel.from_pretrained("owner/name"), expected)
        assert [call["filename"] for call in asked][:4] == ["model.safetensors", "model.safetensors.index.json", *files]

    def test_missing_files(self, folder: Path, asked: list[dict[str, Any]]) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"expected model\.safetensors in owner/name, found none; pass a folder"):
            hub.resolve_weights("owner/name")
        (folder / "pytorch_model.bin").write_bytes(b"")
        with pytest.raises(CheckpointError, match="safetensors weights in owner/name, found only a pickle"):
            hub.resolve_weights("owner/name")

    @pytest.mark.parametrize(
        ("error", "match"),
        [
            (errors.LocalEntryNotFoundError("x"), "expected owner/name in the hub's cache or a connection to the hub, found"),
            (errors.RevisionNotFoundError, "expected revision 'v9' of owner/name, the hub has none; check the revision"),
            (errors.RepositoryNotFoundError, "got 'owner/name', which is none that can be read; .* or pass token="),
            (errors.GatedRepoError, r"which is none that can be read; .* or pass token=\.\.\. if it is private"),
            (errors.HFValidationError("x"), "which is none that can be read"),
            (errors.HfHubHTTPError, "expected an answer from the hub for owner/name, got: 500 or so; try again later"),
            (ConnectionError("no route\nto host"), "got: no route; try again later"),
            (TimeoutError(), "got: TimeoutError; try again later"),
        ],
        ids=lambda value: getattr(value, "__name__", type(value).__name__),
    )
    def test_errors_become_one_line(self, error: Any, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if isinstance(error, type):
            response = SimpleNamespace(headers={}, status_code=500, request=None, text="", url="https://x")
            error = error("500 or so\nmore", response=response)

        def download(*_: Any, **__: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        with pytest.raises(CheckpointError, match=match) as caught:
            hub.resolve_weights("owner/name", revision="v9")
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is error

    @pytest.mark.parametrize("name_is_known", [False, True])
    def test_the_hub_is_not_asked_where_nobody_knows_its_name(
        self, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, name_is_known: bool
    ) -> None:
        looked_up: list[str] = []

        def look_up(name: str, port: object) -> list[object]:
            looked_up.append(name)
            if not name_is_known:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return []

        monkeypatch.setattr(hub.socket, "getaddrinfo", look_up)
        monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        hub.resolve_file("owner/name", "config.json")
        assert looked_up == ["huggingface.co"]
        assert asked[0].get("local_files_only", False) is not name_is_known
        hub.resolve_file("owner/name", "config.json", local_files_only=True)
        monkeypatch.setattr(hub.urllib.request, "getproxies", lambda: {"https": "http://proxy"})
        hub.resolve_file("owner/name", "config.json")
        assert len(looked_up) == 1
        assert "local_files_only" not in asked[2]

    def test_without_a_network(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=re.escape("in the hub's cache or a connection to the hub, found neither")):
            MimiModel.from_pretrained("owner/name", cache_dir=tmp_path, local_files_only=True)
