"""Recipes of several stages, and runs that must end after some minutes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from phonograph.errors import ConfigError
from phonograph.training import Outcome, Recipe, RunOptions, StagedRecipe, Trainer, parse_recipe, train

ONE: dict[str, Any] = {
    "task": "linear_task:LinearTask",
    "options": {"noise": 0.1},
    "loop": {"steps": 4, "log_every": 1, "save_every": 2},
    "optimizers": {"main": {"lr": 0.05}},
}
TWO = {**ONE, "options": {"noise": 0.1, "init": "stage:first"}}
RECIPE = {"stages": {"first": ONE, "second": TWO, "third": {**TWO, "options": {"noise": 0.1, "init": "stage:second"}}}}


def recipe(values: Any = RECIPE, **changes: Any) -> Any:
    return parse_recipe(json.dumps(values), {key.replace("__", "."): value for key, value in changes.items()})


def run(folder: Path, made: Recipe | StagedRecipe, **more: Any) -> Outcome:
    return train(made, RunOptions(folder, device="cpu", quiet=True, **more))


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def test_each_stage_starts_from_the_one_before(tmp_path: Path) -> None:
    frozen = {"stages__second__optimizers__main__lr": 1e-12, "stages__third__optimizers__main__lr": 1e-12}
    outcome = run(tmp_path, recipe(**frozen))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-first", "2-second", "3-third", "model", "recipe.yaml"]
    assert outcome.model == tmp_path / "model"
    torch.testing.assert_close(weights(outcome.model), weights(tmp_path / "1-first/model"), rtol=0, atol=1e-9)
    alone = run(tmp_path / "alone", recipe(ONE))
    assert alone.figures["all/error"] == pytest.approx(outcome.figures["all/error"], rel=1e-6)
    card = (outcome.model / "README.md").read_text()
    assert card.count("\n# Model card\n") == 1
    assert card.index("\n## Training\n") < card.index("\n## Stage before: first\n") < card.index("\n## Stage before: second\n")
    assert card.count("\n### Training\n") == 2
    assert parse_recipe((tmp_path / "recipe.yaml").read_text()) == recipe(**frozen)


@pytest.mark.parametrize("name", ["first", "second", "third"])
def test_a_stopped_run_goes_on_in_its_stage(tmp_path: Path, name: str) -> None:
    whole = run(tmp_path / "whole", recipe())
    assert whole.model is not None
    stopped = run(tmp_path / "again", recipe(**{f"stages__{name}__options__signal_step": 2}))
    assert (stopped.signal, stopped.step, stopped.model) == (15, 3, None)
    again = run(tmp_path / "again", recipe(), resume=True)
    assert (again.model, again.figures) == (tmp_path / "again/model", whole.figures)
    torch.testing.assert_close(weights(tmp_path / "again/model"), weights(whole.model), rtol=0, atol=0)
    starts = {
        folder.name: (folder / "log.jsonl").read_text().count('"event": "start"') for folder in (tmp_path / "again").glob("?-*")
    }
    assert starts == {f"{place}-{other}": 2 if other == name else 1 for place, other in enumerate(RECIPE["stages"], 1)}


def test_complete_stages_stay_and_others_refuse(tmp_path: Path) -> None:
    run(tmp_path, recipe())
    with pytest.raises(ConfigError, match=r"expected a new folder for the run, got .*1-first, which has step-00000004"):
        run(tmp_path, recipe())
    before = (tmp_path / "1-first/model/model.safetensors").stat().st_mtime_ns
    longer = run(tmp_path, recipe(stages__third__loop__steps=6), resume=True)
    assert longer.step == 6
    assert (tmp_path / "1-first/model/model.safetensors").stat().st_mtime_ns == before


def test_a_stage_whose_time_is_over_is_complete(tmp_path: Path) -> None:
    short = {"stages__first__loop__steps": 10**9, "stages__first__loop__max_minutes": 0.001}
    run(tmp_path, recipe(**short))
    log = (tmp_path / "1-first/log.jsonl").read_text()
    run(tmp_path, recipe(**short), resume=True)
    assert (tmp_path / "1-first/log.jsonl").read_text() == log


def test_a_dry_run_goes_through_all_stages_and_leaves_none_complete(tmp_path: Path) -> None:
    assert run(tmp_path, recipe(), dry_run=True).step == 3
    assert [(tmp_path / folder / "model").exists() for folder in ("1-first", "2-second", "3-third")] == [True] * 3
    assert run(tmp_path, recipe(), resume=True).step == 4
    assert '"step": 4' in (tmp_path / "1-first/log.jsonl").read_text()


def test_a_staged_recipe_survives_being_written() -> None:
    made = recipe()
    assert isinstance(made, StagedRecipe)
    assert parse_recipe(made.to_yaml()) == made
    assert list(made.stages) == ["first", "second", "third"]
    assert recipe(stages__second__loop__steps=7).stages["second"].loop.steps == 7


def test_all_faults_of_all_stages_at_once() -> None:
    values = {
        "loop": {},
        "stages": {
            "first": {**ONE, "options": {"noize": 1}},
            "B": ONE,
            "third": {**ONE, "options": {"init": "stage:fourth"}, "loop": {"steps": 0}},
            "fourth": [],
            "fifth": {**ONE, "optimizers": {}},
        },
    }
    with pytest.raises(ConfigError) as refused:
        recipe(values)
    for fault in (
        "recipe: loop is no key of a recipe with stages; put it into a stage",
        "stages.first.options.noize is no key here (",
        "stages.B: a stage's name has lower-case letters, digits and hyphens only",
        "stages.third: stage:fourth is no stage before it",
        "stages.third.loop.steps=0 must be an integer >= 1",
        "stages.fourth must hold keys and values (task, options, loop, optimizers), got []",
        "stages.fifth.optimizers must hold at least one optimiser",
    ):
        assert fault in str(refused.value)
    with pytest.raises(ConfigError, match=r"recipe: stages must hold recipes by their names, got \[\]"):
        recipe({"stages": []})


# ------------------------------------------------------------------------------------------------------------------- time


def rates(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["lr"] for line in lines if line["event"] == "steps"]


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Each step takes so long, whatever the clock says."""
    monkeypatch.setattr("phonograph.training.loop._Clock.seconds", property(lambda clock: clock._taken), raising=False)
    made = Trainer.train_step

    def step(trainer: Trainer) -> None:
        made(trainer)
        Taken.clock._taken += seconds

    class Taken:
        clock: Any

    def begin(clock: Any, before: float) -> None:
        clock._taken, clock._saved_at, Taken.clock = before, 0.0, clock

    monkeypatch.setattr("phonograph.training.loop._Clock.__init__", begin)
    monkeypatch.setattr(Trainer, "train_step", step)


TIMED = {
    **ONE,
    "loop": {"steps": 1000, "max_minutes": 1, "log_every": 1, "save_every": 2, "save_minutes": None},
    "optimizers": {"main": {"lr": 1.0, "schedule": {"kind": "linear", "warmup_steps": 2, "final_factor": 0.25}}},
}


def test_schedules_are_complete_when_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 6.0)
    assert run(tmp_path, recipe(TIMED)).step == 10
    # After n steps n tenths of the time are gone, or n tenths of 1000 steps, of which 2 are warm-up, not counted in the decay.
    expected = [0.0, 0.5, *(1 - 0.75 * (100 * n - 2) / 998 for n in range(2, 10))]
    assert rates(tmp_path) == pytest.approx(expected)


def test_a_fast_run_keeps_to_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.01)
    assert run(tmp_path, recipe(TIMED, loop__steps=12)).step == 12
    assert rates(tmp_path) == pytest.approx([0.0, 0.5, *(1 - 0.75 * n / 10 for n in range(10))])


def test_time_goes_on_where_a_stopped_run_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 6.0)
    whole = run(tmp_path / "whole", recipe(TIMED))
    assert run(tmp_path / "again", recipe(TIMED, options__signal_step=5)).signal == 15
    again = run(tmp_path / "again", recipe(TIMED), resume=True)
    assert again.figures == whole.figures
    assert rates(tmp_path / "again") == rates(tmp_path / "whole")
