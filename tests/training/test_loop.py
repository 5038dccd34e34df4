"""The loop on linear regression: resuming, stopping, accumulation, averages, two optimisers, gradients that are not finite."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
import torch
from linear_task import gradients_of
from safetensors.torch import load_file

from phonograph.errors import CheckpointError, ConfigError, DivergedError, MissingExtraError, PhonographError
from phonograph.training import Outcome, Recipe, RunOptions, Trainer, parse_recipe, train

ORACLES = Path(__file__).parents[1] / "oracles"
RECIPE: dict[str, Any] = {
    "task": "linear_task:LinearTask",
    "options": {},
    "loop": {"steps": 20, "log_every": 1, "save_minutes": None, "keep": 30},
    "optimizers": {"main": {"lr": 0.05, "schedule": {"kind": "cosine", "warmup_steps": 3}}},
}
CRITIC = {"optimizers.critic": {"lr": 0.02, "clip_norm": 0.5}, "options.critic": True}


def recipe(**changes: Any) -> Recipe:
    """The recipe above with values changed by path; the dots are double underscores."""
    return parse_recipe(json.dumps(RECIPE), {path.replace("__", "."): value for path, value in changes.items()})


def run(folder: Path, changes: dict[str, Any], **options: Any) -> Outcome:
    return train(recipe(**changes), RunOptions(folder, device="cpu", quiet=True, **options))


def trainer(folder: Path, **changes: Any) -> Trainer:
    return Trainer(recipe(**changes), RunOptions(folder, device="cpu", quiet=True))


def log(folder: Path, event: str = "steps") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in log(folder)]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoints/step-{step:08d}/weights.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# --------------------------------------------------------------------------------------------------------------- learning


def test_it_learns(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"loop__steps": 300, "loop__log_every": 100, "options__batch": 12})
    task = trainer(tmp_path / "other").task
    inputs = torch.cat([task.inputs, torch.ones(12, 1)], 1).double()
    best = torch.linalg.lstsq(inputs, task.targets.double())
    least = ((inputs @ best.solution - task.targets) ** 2).mean()
    assert outcome.figures["all/error"] == pytest.approx(float(least), rel=1e-3)
    assert (outcome.step, outcome.signal, outcome.skipped, outcome.model) == (300, None, 0, tmp_path / "model")


def test_what_a_run_leaves(tmp_path: Path) -> None:
    run(tmp_path, {"loop__steps": 4, "loop__keep": 1, "loop__evaluate_every": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "log.jsonl", "model", "recipe.yaml"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    assert parse_recipe((tmp_path / "recipe.yaml").read_text()).loop.steps == 4
    saved = load_file(tmp_path / "model/model.safetensors")
    assert torch.equal(saved["weight"], weights(tmp_path, 4)["model.weight"])
    card = (tmp_path / "model/README.md").read_text()
    assert "- items: 12" in card
    assert "| all | " in card
    assert "- 4 steps in 0.0 minutes on 1 x cpu" in card
    assert "task: linear_task:LinearTask" in card
    assert [line["step"] for line in log(tmp_path, "figures")] == [2, 4]
    last = log(tmp_path)[-1]
    assert last.keys() >= {"loss", "squared", "lr", "grad_norm", "skipped", "steps_per_second", "audio_per_second"}
    assert log(tmp_path, "end")[0]["step"] == 4


def test_the_logged_loss_is_the_mean_over_steps(tmp_path: Path) -> None:
    options = {"options__masked": True, "loop__steps": 12, "loop__accumulate": 2}
    run(tmp_path / "each", options)
    run(tmp_path / "fourth", {**options, "loop__log_every": 6})
    step = trainer(tmp_path / "fresh", **options)
    known = [[int(step.task.known[next(step.batches)["items"]].sum()) for _ in range(2)] for _ in range(12)]
    for number, (_, loss) in enumerate(losses(tmp_path / "fourth")):
        part = slice(6 * number, 6 * number + 6)
        each = [loss for _, loss in losses(tmp_path / "each")][part]
        terms = [sum(counts) for counts in known[part]]
        assert loss == pytest.approx(sum(a * b for a, b in zip(each, terms, strict=True)) / sum(terms), rel=1e-5)


def test_the_learning_rate_follows_the_schedule_of_the_whole_run(tmp_path: Path) -> None:
    run(tmp_path, {})
    rates = [line["lr"] for line in log(tmp_path)]
    assert rates[:4] == pytest.approx([0, 0.05 / 3, 0.1 / 3, 0.05])
    assert rates[-1] == pytest.approx(0.05 * (1 + torch.cos(torch.tensor(16 / 17 * torch.pi))) / 2)


def test_groups_have_their_own_rates_and_thaw_at_their_step(tmp_path: Path) -> None:
    with contextlib.closing(_steps(trainer(tmp_path, options__frozen_steps=2, optimizers__main__schedule={}))) as steps:
        before = {name: value.clone() for name, value in next(steps).items()}
        for number in range(1, 4):
            after = {name: value.clone() for name, value in next(steps).items()}
            # Adam's first step is as large as the learning rate, whatever the gradient.
            if number == 1:
                assert ((after["weight"] - before["weight"]).abs() - 0.05).abs().max() < 1e-4
            if number <= 2:
                assert torch.equal(after["bias"], before["bias"])
            else:
                assert ((after["bias"] - before["bias"]).abs() - 0.025).abs().max() < 1e-4


def _steps(trained: Trainer) -> Iterator[dict[str, torch.Tensor]]:
    model = trained.task.modules["model"]
    while True:
        yield model.state_dict()
        trained.train_step()


# ----------------------------------------------------------------------------------------------------- resuming, stopping

EVERYTHING: dict[str, Any] = {
    **{name.replace(".", "__"): value for name, value in CRITIC.items()},
    "options__noise": 0.3,
    "options__masked": True,
    "options__critic_every": 3,
    "options__frozen_steps": 4,
    "loop__ema_decay": 0.95,
    "loop__accumulate": 2,
    "loop__evaluate_every": 5,
    "loop__save_every": 7,
    "options__nan_steps": [6, 15],
}


@pytest.mark.parametrize("stopped_at", [7, 10])
def test_resuming_equals_never_stopping(tmp_path: Path, stopped_at: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, EVERYTHING).skipped == 2
    run(parts, EVERYTHING)
    for path in (parts / "checkpoints").iterdir():
        if int(path.name[5:]) > stopped_at:
            _remove(path)
    (parts / "log.jsonl").unlink()
    torch.rand(7)
    outcome = run(parts, EVERYTHING, resume=True)
    assert losses(parts) == [pair for pair in losses(whole) if pair[0] > stopped_at]
    assert len(losses(parts)) == 20 - stopped_at
    for name in ("weights", "ema"):
        files = [load_file(folder / f"checkpoints/step-00000020/{name}.safetensors") for folder in (whole, parts)]
        assert same(*files)
    assert outcome.skipped == 2
    assert log(parts, "start")[0]["resumed"] is True


def test_resuming_within_lines_of_the_log(tmp_path: Path) -> None:
    """A line is the mean over its steps, also of those before the run was stopped."""
    changes = {**EVERYTHING, "loop__log_every": 4, "loop__save_every": 3, "loop__evaluate_every": 7}
    run(tmp_path / "whole", changes)
    shutil.copytree(tmp_path / "whole/checkpoints/step-00000009", tmp_path / "parts/checkpoints/step-00000009")
    run(tmp_path / "parts", changes, resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")[2:]
    assert [step for step, _ in losses(tmp_path / "parts")] == [12, 16, 20]


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_a_signal_ends_the_run_after_its_step_and_it_goes_on(tmp_path: Path) -> None:
    run(tmp_path / "whole", {"options__noise": 0.3})
    options = {"options__noise": 0.3, "options__signal_step": 8}
    outcome = run(tmp_path / "parts", options)
    assert (outcome.step, outcome.signal, outcome.model) == (9, signal.SIGTERM, None)
    assert [path.name for path in (tmp_path / "parts/checkpoints").iterdir()] == ["step-00000009"]
    assert run(tmp_path / "parts", {"options__noise": 0.3}, resume=True).signal is None
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same(weights(tmp_path / "parts", 20), weights(tmp_path / "whole", 20))


def test_a_second_signal_does_what_it_would_have_done(tmp_path: Path) -> None:
    script = (
        "import linear_task, os, signal, sys, time\n"
        "from phonograph.training import *\n"
        "step = linear_task.LinearTask.losses\n"
        "def twice(self, batch, number):\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01); os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)\n"
        "linear_task.LinearTask.losses = twice\n"
        "train(read_recipe(sys.argv[1]), RunOptions(__import__('pathlib').Path(sys.argv[2]), device='cpu'))\n"
    )
    (tmp_path / "recipe.yaml").write_text(recipe().to_yaml())
    command = [sys.executable, "-c", script, str(tmp_path / "recipe.yaml"), str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ORACLES)}
    assert subprocess.run(command, check=False, env=environment, timeout=60).returncode == -signal.SIGTERM


def test_handlers_are_put_back_and_other_threads_have_none(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(tmp_path / "here", {"loop__steps": 2})
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    ended: list[int] = []
    thread = threading.Thread(target=lambda: ended.append(run(tmp_path / "there", {"loop__steps": 2}).step))
    thread.start()
    thread.join()
    assert ended == [2]


def test_the_time_ends_a_run_as_its_last_step_does(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"loop__max_minutes": 1e-9})
    assert (outcome.step, outcome.signal) == (1, None)
    assert (tmp_path / "model/README.md").exists()


def test_checkpoints_by_the_clock(tmp_path: Path) -> None:
    run(tmp_path, {"loop__save_minutes": 1e-9, "loop__steps": 5})
    assert [line["step"] for line in log(tmp_path, "checkpoint")] == [1, 2, 3, 4, 5]


def test_what_resuming_refuses(tmp_path: Path) -> None:
    run(tmp_path, {"loop__steps": 3, "loop__ema_decay": 0.9})
    with pytest.raises(ConfigError, match=r"got .*, which has step-00000003; go on with it \(--resume\) or choose another"):
        run(tmp_path, {})
    with pytest.raises(
        CheckpointError, match=r"expected the tensors of this recipe's models .*: critic.bias, critic.weight; res"
    ):
        run(tmp_path, {name.replace(".", "__"): value for name, value in CRITIC.items()}, resume=True)
    meta = tmp_path / "checkpoints/step-00000003/meta.json"
    values = json.loads(meta.read_text())
    meta.write_text(json.dumps({**values, "processes": 8}))
    with pytest.raises(CheckpointError, match=r"expected 8 processes, as the run in .* had, got 1; start as many"):
        run(tmp_path, {}, resume=True)
    meta.write_text("{")
    with pytest.raises(CheckpointError, match=r"expected a checkpoint in .*step-00000003, got none that can be read"):
        run(tmp_path, {}, resume=True)


def test_resuming_nothing_begins(tmp_path: Path) -> None:
    assert run(tmp_path, {"loop__steps": 2}, resume=True).step == 2


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = run(tmp_path, {"loop__steps": 3})
    (tmp_path / "log.jsonl").unlink()
    assert run(tmp_path, {"loop__steps": 3}, resume=True) == first
    assert losses(tmp_path) == []


# -------------------------------------------------------------------------------------------------------------- gradients


def test_accumulation_equals_the_larger_batch(tmp_path: Path) -> None:
    options = {"options__masked": True, "options__shuffle": False}  # micro-batches of unequal weight
    run(tmp_path / "small", {**options, "options__batch": 2, "loop__accumulate": 3})
    run(tmp_path / "large", {**options, "options__batch": 6})
    for left, right in zip(losses(tmp_path / "small"), losses(tmp_path / "large"), strict=True):
        assert left == pytest.approx(right, rel=1e-5)
    small, large = weights(tmp_path / "small", 20), weights(tmp_path / "large", 20)
    for name, value in small.items():
        torch.testing.assert_close(value, large[name], rtol=1e-4, atol=1e-5)


def test_gradients_equal_autograd_in_float64(tmp_path: Path) -> None:
    trained = trainer(tmp_path, options__masked=True, options__shuffle=False, options__batch=2, loop__accumulate=3)
    wanted = gradients_of(trained.task, torch.arange(6))
    given = _gradients(trained)
    for name, gradient in wanted.items():
        torch.testing.assert_close(given[name].double(), gradient, rtol=1e-5, atol=1e-6)


def _gradients(trained: Trainer) -> dict[str, torch.Tensor]:
    """What the optimiser is given in one step."""
    model = trained.task.modules["model"]
    given: dict[str, torch.Tensor] = {}

    def note(*_: Any) -> None:
        given.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})

    trained.parts[0].optimizer.register_step_pre_hook(note)
    trained.train_step()
    return given


def test_clipping(tmp_path: Path) -> None:
    plain = _gradients(trainer(tmp_path / "plain"))
    norm = torch.cat([gradient.flatten() for gradient in plain.values()]).norm()
    for share in (0.5, 2.0):
        clipped_by = trainer(tmp_path / str(share), optimizers__main__clip_norm=float(share * norm))
        for name, gradient in _gradients(clipped_by).items():
            torch.testing.assert_close(gradient, plain[name] * min(share, 1.0), rtol=1e-5, atol=1e-7)
        assert float(clipped_by.parts[0].grad_norm) == pytest.approx(float(norm), rel=1e-6)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(tmp_path: Path) -> None:
    trained = trainer(tmp_path, loop__precision="bfloat16")
    dtypes: list[torch.dtype] = []
    trained.task.modules["model"].register_forward_hook(lambda _, __, output: dtypes.append(output.dtype))
    wanted = gradients_of(trained.task, next(trainer(tmp_path / "fresh").batches)["items"])
    given = _gradients(trained)
    assert dtypes == [torch.bfloat16]
    for name, gradient in wanted.items():
        assert given[name].dtype == torch.float32
        torch.testing.assert_close(given[name].double(), gradient, rtol=0.05, atol=0.02)


def test_two_optimisers_alternate(tmp_path: Path) -> None:
    """The second one's loss sees what the first one's step left, and neither's gradient reaches the other's weights."""
    changes = {name.replace(".", "__"): value for name, value in CRITIC.items()}
    trained = trainer(tmp_path, **changes, options__critic_every=2)
    order: list[str] = []
    for part in trained.parts:
        part.optimizer.register_step_pre_hook(lambda *_, name=part.name: order.append(name))
    model, critic = (trained.task.modules[name] for name in ("model", "critic"))
    seen: list[list[bool]] = []
    trained.parts[0].optimizer.register_step_pre_hook(lambda *_: seen.append([p.grad is None for p in critic.parameters()]))
    trained.parts[1].optimizer.register_step_pre_hook(lambda *_: seen.append([p.grad is None for p in model.parameters()]))
    for _ in range(3):
        trained.train_step()
    assert order == ["main", "critic", "main", "main", "critic"]
    assert seen == [[True, True]] * 5


def test_the_parts_of_a_task_and_of_its_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected the optimisers main, critic in the recipe, got main; name these"):
        trainer(tmp_path, options__critic=True)
    with pytest.raises(ConfigError, match="expected the optimisers main in the recipe, got main, critic"):
        trainer(tmp_path, optimizers__critic={"lr": 1})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["critic"], "expected the losses of 'main', got those of 'critic'; keep the order"),
        (["main", "critic", "main"], "expected losses for 2 optimisers at most, got more; yield one for each"),
    ],
)
def test_phases_in_order(tmp_path: Path, names: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = trainer(tmp_path, **{name.replace(".", "__"): value for name, value in CRITIC.items()})
    from phonograph.training import Losses

    parameters = {"main": trained.task.modules["model"].weight, "critic": trained.task.modules["critic"].weight}
    monkeypatch.setattr(trained.task, "losses", lambda *_: (Losses(name, parameters[name].sum()) for name in names))
    with pytest.raises(ConfigError, match=message):
        trained.train_step()


# ------------------------------------------------------------------------------------------------------------- not finite


def test_steps_that_are_not_finite_change_nothing_and_are_counted(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"options__nan_steps": [3, 4, 9], "loop__save_every": 1})
    assert outcome.skipped == 3
    assert [line["skipped"] for line in log(tmp_path)][2:10] == [0, 1, 2, 2, 2, 2, 2, 3]
    assert [line["loss"] is None for line in log(tmp_path)] == [step in (3, 4, 9) for step in range(20)]
    for step in range(1, 20):
        assert same(weights(tmp_path, step), weights(tmp_path, step + 1)) == (step in (3, 4, 9))


def test_a_skipped_step_leaves_the_moments_alone(tmp_path: Path) -> None:
    """Two trainers whose batches are the same but for a step that is lost in one."""
    skipping = trainer(tmp_path / "skipping", options__nan_steps=[1], options__batch=12, optimizers__main__schedule={})
    plain = trainer(tmp_path / "plain", options__batch=12, options__shuffle=False, optimizers__main__schedule={})
    for _ in range(3):
        skipping.train_step()
    for _ in range(2):
        plain.train_step()
    for left, right in zip(skipping.task.modules.parameters(), plain.task.modules.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("log_every", [1, 4])
def test_too_many_in_a_row_stop_the_run(tmp_path: Path, log_every: int) -> None:
    changes = {
        "options__nan_steps": [2, 5, 6, 7],
        "loop__max_nonfinite": 3,
        "loop__save_every": 4,
        "loop__log_every": log_every,
    }
    message = (
        r"expected finite gradients, got 3 steps in a row without for the optimiser 'main' before step 8 \(4 in all, loss .*"
    )
    with pytest.raises(DivergedError, match=message + "; they changed nothing: lower its lr .* --resume") as stopped:
        run(tmp_path, changes)
    assert isinstance(stopped.value, PhonographError)
    assert log(tmp_path, "diverged")[0]["skipped"] == 4
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    assert run(tmp_path, {"loop__max_nonfinite": 4}, resume=True).step == 20


def test_a_run_that_was_stopped_so_goes_on(tmp_path: Path) -> None:
    """Though its last checkpoint is of after too many steps in a row."""
    changes = {"options__nan_steps": [2, 3, 4], "loop__max_nonfinite": 3, "loop__save_every": 1, "loop__log_every": 8}
    with pytest.raises(DivergedError, match="got 3 steps in a row"):
        run(tmp_path, changes)
    assert log(tmp_path, "checkpoint")[-1]["step"] == 7
    assert run(tmp_path, changes, resume=True).skipped == 3


# --------------------------------------------------------------------------------------------------------------- averages


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_averages_equal_float64(tmp_path: Path, decay: float) -> None:
    run(tmp_path, {"loop__ema_decay": decay, "loop__save_every": 1})
    start = trainer(tmp_path / "start").task.modules.state_dict()
    average = {name: value.double() for name, value in start.items()}
    for step in range(20):
        used = min(decay, (1 + step) / (10 + step))
        new = weights(tmp_path, step + 1)
        average = {name: used * value + (1 - used) * new[name].double() for name, value in average.items()}
    saved = load_file(tmp_path / "checkpoints/step-00000020/ema.safetensors")
    assert saved.keys() == average.keys()
    for name, value in saved.items():
        torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-6)
    assert torch.equal(load_file(tmp_path / "model/model.safetensors")["weight"], saved["model.weight"])
    assert not torch.equal(saved["model.weight"], weights(tmp_path, 20)["model.weight"])


def test_averages_are_what_is_evaluated_and_only_then_in_place(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"loop__ema_decay": 0.9, "loop__evaluate_every": 2, "options__noise": 0.3})
    task = trainer(tmp_path / "fresh").task
    task.modules["model"].load_state_dict(load_file(tmp_path / "model/model.safetensors"))
    assert _evaluated(task) == outcome.figures
    run(tmp_path / "without", {"loop__evaluate_every": 7, "options__noise": 0.3})
    assert losses(tmp_path) == losses(tmp_path / "without")


def _evaluated(task: Any) -> dict[str, float]:
    task.modules.eval()
    with torch.no_grad():
        return task.evaluate(20)


def test_groups_without_averages(tmp_path: Path) -> None:
    run(tmp_path, {**{name.replace(".", "__"): value for name, value in CRITIC.items()}, "loop__ema_decay": 0.9})
    assert load_file(tmp_path / "checkpoints/step-00000020/ema.safetensors").keys() == {"model.weight", "model.bias"}


# ----------------------------------------------------------------------------------------------------------------- results


def test_the_best_checkpoint_is_kept_and_published(tmp_path: Path) -> None:
    changes = {"loop__best": "all/step", "loop__best_is": "min", "loop__evaluate_every": 5, "loop__keep": 2}
    outcome = run(tmp_path, changes)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000005", "step-00000015", "step-00000020"]
    assert outcome.figures["all/step"] == 5
    assert torch.equal(load_file(tmp_path / "model/model.safetensors")["weight"], weights(tmp_path, 5)["model.weight"])
    assert "- weights: step 5, the best all/step" in (tmp_path / "model/README.md").read_text()
    assert run(tmp_path / "max", {**changes, "loop__best_is": "max"}).figures["all/step"] == 20
    with pytest.raises(ConfigError, match=r"expected loop.best to be one of all/error, all/step, got 'wer'"):
        run(tmp_path / "wer", {"loop__best": "wer"})


def test_the_mean_of_checkpoints_as_the_result(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"loop__average": 3, "loop__save_every": 5})
    saved = load_file(tmp_path / "model/model.safetensors")
    for name, value in saved.items():
        each = [weights(tmp_path, step)[f"model.{name}"].double() for step in (10, 15, 20)]
        torch.testing.assert_close(value.double(), sum(each) / 3, rtol=1e-6, atol=1e-7)
    task = trainer(tmp_path / "fresh").task
    task.modules["model"].load_state_dict(saved)
    assert outcome.figures == _evaluated(task)
    assert "the mean of 3 checkpoints" in (tmp_path / "model/README.md").read_text()
    with pytest.raises(CheckpointError, match=r"expected 3 checkpoints in .* to average, got 1; keep more of them"):
        run(tmp_path / "few", {"loop__average": 3})


def test_a_dry_run_is_short(tmp_path: Path) -> None:
    changes = {"loop__steps": 5000, "loop__average": 3, "loop__trackers": ["wandb"]}
    outcome = run(tmp_path, changes, dry_run=True)
    assert outcome.step == 3
    assert outcome.figures.keys() == {"all/error", "all/step"}
    assert (tmp_path / "model/model.safetensors").exists()
    assert [line["lr"] for line in log(tmp_path)] == pytest.approx([0, 0.05 / 3, 0.1 / 3])  # of the whole run's schedule


# ---------------------------------------------------------------------------------------------------------------- telling


def test_tensorboard(tmp_path: Path) -> None:
    events_of = peers.peer("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    run(tmp_path, {"loop__trackers": ["tensorboard"], "loop__steps": 4})
    events = events_of(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [scalar.value for scalar in events.Scalars("train/loss")] == pytest.approx([loss for _, loss in losses(tmp_path)])
    assert [scalar.step for scalar in events.Scalars("held-out/all/error")] == [4]


@pytest.mark.parametrize(("tracker", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_trackers_that_are_missing(tmp_path: Path, tracker: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package {tracker}.*phonograph\[trackers\]"):
        run(tmp_path, {"loop__trackers": [tracker]})


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, set[str]]] = []
    ended: list[bool] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            logged.append((step, set(values)))

        def finish(self) -> None:
            ended.append(True)

    class Wandb:
        @staticmethod
        def init(**options: Any) -> Run:
            assert options["config"]["task"] == "linear_task:LinearTask"
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    run(tmp_path, {"loop__trackers": ["wandb"], "loop__steps": 2})
    assert [step for step, _ in logged] == [1, 2, 2]
    assert "train/loss" in logged[0][1]
    assert logged[2][1] == {"held-out/all/error", "held-out/all/step"}
    assert ended == [True]


def test_the_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "150")
    options = RunOptions(tmp_path, device="cpu")
    train(recipe(loop__evaluate_every=10), options)
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert "steps/s" in shown
    assert "x real time" in shown
    assert "step 10: all/error " in shown
    assert "ETA" in shown


def test_devices(tmp_path: Path) -> None:
    for device in ("gpu", "cuda:99", "cpu:1"):
        with pytest.raises(
            ConfigError, match=f"expected --device auto, cpu, or a cuda or mps device that is here, got {device}"
        ):
            train(recipe(), RunOptions(tmp_path, device=device))


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(MissingExtraError, match=r"training needs the package lightning-fabric.*phonograph\[train\]"):
        run(tmp_path, {})


def test_importing_it_needs_no_extra() -> None:
    script = (
        "import sys\n"
        "for name in ('yaml', 'lightning_fabric', 'jiwer', 'sacrebleu', 'tensorboard', 'wandb'): sys.modules[name] = None\n"
        "import phonograph.training"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_layers_can_tell_that_their_weights_are_new(tmp_path: Path) -> None:
    trained = trainer(tmp_path)
    weight = trained.task.modules["model"].weight
    before = weight._version
    trained.train_step()
    assert weight._version > before
