"""Checkpoints as files: whole or not there, the newest kept, refused when they are of another run, and their mean."""

import json
import os
import random
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phonograph.errors import CheckpointError, OutputError
from phonograph.training import RunOptions, Trainer, average_checkpoints, checkpoints, parse_recipe, train
from phonograph.training.card import figure_table, source_revision

TEXT = json.dumps(
    {
        "task": "linear_task:LinearTask",
        "loop": {"steps": 6, "log_every": 1, "save_every": 2, "save_minutes": None, "keep": 2, "ema_decay": 0.9},
        "optimizers": {"main": {"lr": 0.1}},
    }
)


def run(folder: Path, steps: int = 6, **options: Any) -> None:
    train(parse_recipe(TEXT, {"loop.steps": steps}), RunOptions(folder, device="cpu", quiet=True, **options))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_newest_are_kept(tmp_path: Path) -> None:
    run(tmp_path)
    assert names(tmp_path) == ["step-00000004", "step-00000006"]
    assert sorted(path.name for path in (tmp_path / "checkpoints/step-00000006").iterdir()) == [
        "ema.safetensors",
        "meta.json",
        "model",
        "rank-0.pt",
        "weights.safetensors",
    ]
    meta = checkpoints.read_meta(tmp_path / "checkpoints/step-00000004")
    assert (meta["step"], meta["figures"], meta["processes"]) == (4, {}, 1)


@pytest.mark.parametrize("written", ["save_state", "save_weights", "write_meta", "replace_folder", "task"])
def test_an_interrupted_save_leaves_the_older_checkpoint(tmp_path: Path, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole", 8)
    run(tmp_path / "parts", 4)
    before = {path: path.read_bytes() for path in (tmp_path / "parts/checkpoints").rglob("*") if path.is_file()}

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            *(("linear_task.LinearTask.save", interrupted) if written == "task" else (checkpoints, written, interrupted))
        )
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", 8, resume=True)
    assert names(tmp_path / "parts") == [".step-00000006.part", "step-00000002", "step-00000004"]
    assert {path: path.read_bytes() for path in before} == before
    run(tmp_path / "parts", 8, resume=True)
    assert names(tmp_path / "parts") == ["step-00000006", "step-00000008"]
    for name in (checkpoints.WEIGHTS_NAME, checkpoints.EMA_NAME):
        files = [(tmp_path / folder / "checkpoints/step-00000008" / name).read_bytes() for folder in ("whole", "parts")]
        assert files[0] == files[1]


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", "rank-0.pt", "model.safetensors", "meta.json"])
def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, 4)
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    make = tempfile.mkstemp

    def full(**options: Any) -> tuple[int, str]:
        handle, path = make(**options)
        if options["prefix"] == f".{name}.":
            os.close(handle)
            handle = os.open("/dev/full", os.O_RDWR)
        return handle, path

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", full)
        with pytest.raises(OutputError) as refused:
            run(tmp_path, 8, resume=True)
    message = rf"cannot write .*/\.step-00000006\.part/(model/)?{name}: No space left on device; choose another place .*"
    assert re.fullmatch(message, str(refused.value))
    assert {path: path.read_bytes() for path in before} == before
    run(tmp_path, 8, resume=True)
    assert names(tmp_path) == ["step-00000006", "step-00000008"]


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"cannot write .*log.jsonl: No space left on device; choose another place"):
        run(tmp_path)


def test_folders_that_cannot_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)

    def refused(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(OutputError, match=r"cannot write .*step-00000004: Read-only file system"):
        checkpoints.prune(tmp_path, 1, None)
    with pytest.raises(OutputError, match=r"cannot write .*meta.json: File exists"):
        checkpoints.copy_folder(tmp_path / "model", tmp_path / "checkpoints/step-00000006/meta.json")


def test_a_removal_that_is_interrupted_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.prune(tmp_path, 1, None)
    assert [path.name for path in checkpoints.find_checkpoints(tmp_path)] == ["step-00000006"]
    checkpoints.begin(tmp_path, 7)
    assert names(tmp_path) == [".step-00000007.part", "step-00000006"]


def test_the_result_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if source.name == "new":
            raise OSError(28, "No space left on device")
        rename(source, target)

    checkpoints.replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old/file").read_text() == "new"
    (tmp_path / "new").mkdir()
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OutputError, match=r"cannot write .*old: No space left on device; choose another place or make room"):
        checkpoints.replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old/file").read_text() == "new"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*run.*: File exists; choose another place"):
        run(tmp_path / "run")


def test_state_that_is_more_than_values_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "checkpoints/step-00000006/rank-0.pt"
    torch.save({"parts": Path("run")}, path)
    with pytest.raises(
        CheckpointError, match=r"expected the state of a process in .*rank-0.pt, got none that can be read \(Weights"
    ):
        run(tmp_path, 8, resume=True)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"expected the state of a process in .*rank-0.pt, got none"):
        run(tmp_path, 8, resume=True)


def test_optimisers_of_another_recipe(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "checkpoints/step-00000006/rank-0.pt"
    state = checkpoints.load_state(path)
    checkpoints.save_state(path, {**state, "parts": {"generator": state["parts"]["main"]}})
    with pytest.raises(CheckpointError, match=r"expected the optimisers generator in the recipe to resume, got other ones"):
        run(tmp_path, 8, resume=True)


def test_weights_that_are_cut(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "checkpoints/step-00000006/weights.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"expected a safetensors file, got .*weights.safetensors, which can't be read"):
        run(tmp_path, 8, resume=True)


def test_weights_that_share_memory(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    tensors = {"one": tensor, "same": tensor, "turned": tensor.T}
    checkpoints.save_weights(tmp_path / "file", tensors)
    loaded = checkpoints.load_weights(tmp_path / "file", tensors)
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    with pytest.raises(CheckpointError, match=r"expected the tensors .* got others: one, same and more|one, same, turned"):
        checkpoints.load_weights(tmp_path / "file", {})


def test_random_generators_go_back(tmp_path: Path) -> None:
    device = torch.device("cpu")
    random.gauss(0, 1)
    np.random.standard_normal()  # noqa: NPY002 (one of a pair: the other is part of the state)
    state = checkpoints.capture_random(device)
    checkpoints.save_state(tmp_path / "random.pt", state)

    def draw() -> list[float]:
        one = [random.gauss(0, 1), float(np.random.standard_normal()), float(torch.rand(()))]  # noqa: NPY002
        return [*one, random.random(), float(np.random.random())]  # noqa: NPY002

    first = draw()
    assert draw() != first
    checkpoints.restore_random(checkpoints.load_state(tmp_path / "random.pt"), device)
    assert draw() == first


def test_the_mean_of_checkpoints(tmp_path: Path) -> None:
    for step, value in ((1, 9.0), (2, 1.0), (3, 4.0)):
        folder = checkpoints.begin(tmp_path, step)
        tensors = {"a": torch.full((2,), value), "b": torch.full((), value, dtype=torch.float16), "n": torch.tensor(step)}
        checkpoints.save_weights(folder / checkpoints.WEIGHTS_NAME, tensors)
        if step == 3:
            checkpoints.save_weights(folder / checkpoints.EMA_NAME, {"a": torch.full((2,), 6.0)})
        checkpoints.commit(tmp_path, step)
    mean = average_checkpoints(tmp_path, 2)
    assert mean["a"].tolist() == [3.5, 3.5]
    assert mean["b"] == torch.tensor(2.5, dtype=torch.float16)
    assert mean["b"].dtype == torch.float16
    assert mean["n"] == 3
    with pytest.raises(CheckpointError, match=r"expected 4 checkpoints in .* to average, got 3; keep more of them"):
        average_checkpoints(tmp_path, 4)
    checkpoints.save_weights(tmp_path / "checkpoints/step-00000002" / checkpoints.WEIGHTS_NAME, {"a": torch.zeros(3)})
    with pytest.raises(
        CheckpointError, match=r"expected checkpoints of one model in .*, got another in step-00000002; remove it"
    ):
        average_checkpoints(tmp_path, 2)


def test_the_best_of_equal_ones_is_the_older(tmp_path: Path) -> None:
    for step, figures in ((1, {"wer": 0.5}), (2, {"wer": 0.3}), (3, {}), (4, {"wer": 0.3})):
        checkpoints.write_meta(checkpoints.begin(tmp_path, step), {"step": step, "figures": figures})
        checkpoints.commit(tmp_path, step)
    assert checkpoints.best_of(tmp_path, "wer", "min") == tmp_path / "checkpoints/step-00000002"
    assert checkpoints.best_of(tmp_path, "wer", "max") == tmp_path / "checkpoints/step-00000001"
    assert checkpoints.best_of(tmp_path, "cer", "min") is None
    assert checkpoints.best_of(tmp_path, None, "min") is None


def test_a_figure_that_is_not_finite_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([float("nan"), 2.0, float("nan")])
    monkeypatch.setattr("linear_task.LinearTask.evaluate", lambda *_: {"error": next(figures)})
    recipe = parse_recipe(TEXT, {"loop.best": "error", "loop.evaluate_every": 2})
    outcome = Trainer(recipe, RunOptions(tmp_path, device="cpu", quiet=True)).fit()
    assert outcome.figures == {"error": 2.0}


def test_figures_as_a_table() -> None:
    columns, rows = figure_table({"clean/wer": 0.12345, "clean/cer": 0.05, "other/wer": 0.3, "loss": 2.0})
    assert columns == ["", "wer", "cer", "loss"]
    assert rows == [["clean", "0.1235", "0.05", "-"], ["other", "0.3", "-", "-"], ["all", "-", "-", "2"]]


def test_which_source_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_revision() == "installed package" or len(source_revision()) == len("commit ") + 40
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_revision() == "installed package"
