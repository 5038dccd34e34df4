"""Two processes under torchrun, on the CPU by gloo, do what one does with the joined batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_task import gradients_of
from safetensors.torch import load_file

from phonograph.errors import ConfigError
from phonograph.training import RunOptions, Trainer, parse_recipe, train

SCRIPT = Path(__file__).parents[1] / "oracles" / "two_processes.py"
LOOP = {"steps": 6, "log_every": 1, "save_minutes": None, "keep": 9, "ema_decay": 0.9}
UNEVEN = {"options.masked": True, "options.shuffle": False}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the two processes have left everything."""
    folder = tmp_path_factory.mktemp("two-processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def recipe(changes: dict[str, Any]) -> Any:
    values = {"task": "linear_task:LinearTask", "loop": LOOP, "optimizers": {"main": {"lr": 0.05, "clip_norm": 1.0}}}
    return parse_recipe(json.dumps(values), changes)


def losses(log: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["event"] == "steps"]


def told(ran: Path, name: str) -> Any:
    """What both processes wrote, which must be the same."""
    both = [json.loads((ran / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    assert both[0] == both[1]
    return both[0]


@pytest.mark.parametrize(("name", "items"), [("plain", 4), ("accumulated", 12), ("fsdp", 12)])
def test_gradients_equal_those_of_the_joined_batch(ran: Path, tmp_path: Path, name: str, items: int) -> None:
    trainer = Trainer(recipe({**UNEVEN, "options.batch": items}), RunOptions(tmp_path, device="cpu"))
    wanted = gradients_of(trainer.task, torch.arange(items))
    for rank in (0, 1):
        given = torch.load(ran / f"{name}-{rank}.pt")
        assert given.keys() == wanted.keys()
        for parameter, gradient in wanted.items():
            torch.testing.assert_close(given[parameter].double(), gradient, rtol=1e-5, atol=1e-6)


def test_the_others_wait_while_one_judges(ran: Path) -> None:
    assert told(ran, "patience") > 12 * 3600


def test_two_optimisers_equal_one_process(ran: Path, tmp_path: Path) -> None:
    """With accumulation, a part that is frozen at first, parameters without a gradient and steps without the second phase."""
    changes = {**UNEVEN, "options.batch": 4, "options.critic": True, "options.critic_every": 2, "loop.accumulate": 2}
    changes |= {"optimizers.critic": {"lr": 0.02}, "options.hidden": True, "options.frozen_steps": 2}
    train(recipe(changes), RunOptions(tmp_path, device="cpu", quiet=True))
    for name in ("weights", "ema"):
        ours, theirs = (
            load_file(folder / f"checkpoints/step-00000006/{name}.safetensors") for folder in (tmp_path, ran / "critic")
        )
        assert ours.keys() == theirs.keys()
        for tensor, value in ours.items():
            torch.testing.assert_close(theirs[tensor], value, rtol=1e-4, atol=1e-5)
    for left, right in zip(losses(tmp_path / "log.jsonl"), losses(ran / "critic/log.jsonl"), strict=True):
        assert left == pytest.approx(right, rel=1e-4)
    assert told(ran, "critic")[0] == 6


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_resuming_equals_never_stopping(ran: Path, kind: str) -> None:
    whole, again = losses(ran / kind / "first.jsonl"), losses(ran / kind / "log.jsonl")
    assert [step for step, _ in whole] == [1, 2, 3, 4, 5, 6]
    assert again == whole[3:]
    for name in ("weights", "ema", "model/model"):
        files = [load_file(ran / kind / folder / f"{name}.safetensors") for folder in ("first", "checkpoints/step-00000006")]
        assert files[0].keys() == files[1].keys()
        assert all(torch.equal(value, files[1][tensor]) for tensor, value in files[0].items())
    assert told(ran, kind)[:2] == [6, None]


def test_fsdp_equals_one_process(ran: Path, tmp_path: Path) -> None:
    train(recipe({**UNEVEN, "options.batch": 4}), RunOptions(tmp_path, device="cpu", quiet=True))
    for name in ("weights", "ema", "model/model"):
        folder = "checkpoints/step-00000006"
        ours, theirs = (load_file(run / folder / f"{name}.safetensors") for run in (tmp_path, ran / "fsdp-alike"))
        assert {tensor: value.shape for tensor, value in ours.items()} == {tensor: v.shape for tensor, v in theirs.items()}
        for tensor, value in ours.items():
            torch.testing.assert_close(theirs[tensor], value, rtol=1e-4, atol=1e-5)


def test_one_process_whose_loss_is_not_finite_makes_all_skip(ran: Path) -> None:
    seen, counters = told(ran, "nan")
    assert seen[0] == seen[1] != seen[2]
    assert counters == [1, 0, 1]


def test_a_signal_to_one_process_stops_all_at_one_step(ran: Path) -> None:
    assert told(ran, "signal") == [4, 6, 3, 6]


def test_fsdp_is_for_one_optimiser(ran: Path) -> None:
    message = "expected one optimiser and nothing frozen for a while with distributed: fsdp, got more; set it to ddp"
    assert [(ran / f"refused-{rank}.txt").read_text() for rank in (0, 1)] == [message] * 2


def test_numbered_devices_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(
        ConfigError, match="expected --device cpu or cuda under torchrun, which numbers them itself, got cuda:1"
    ):
        train(recipe({}), RunOptions(tmp_path, device="cuda:1"))
