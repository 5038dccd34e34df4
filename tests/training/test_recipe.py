"""Recipes: what they may hold, what they are refused for, and the schedules' formulas."""

import builtins
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch

from phonograph import MissingExtraError
from phonograph.configuration import Rule
from phonograph.errors import ConfigError
from phonograph.training import LoopOptions, OptimizerOptions, ScheduleOptions, bundled_recipes, parse_recipe, read_recipe
from phonograph.training.recipe import parse_value, typed
from phonograph.training.schedules import KINDS, factor

TEXT = """
task: linear_task:LinearTask
options: {noise: 1e-3}
loop: {steps: 10}
optimizers:
  main:
    lr: 5e-4
    schedule: {kind: tri_stage, warmup_steps: 2, final_factor: 0.05}
"""


def test_what_a_recipe_says() -> None:
    recipe = parse_recipe(TEXT)
    assert recipe.task == "linear_task:LinearTask"
    assert (recipe.options.noise, recipe.options.items) == (0.001, 12)
    assert recipe.loop == LoopOptions(steps=10)
    schedule = ScheduleOptions("tri_stage", warmup_steps=2, final_factor=0.05)
    assert recipe.optimizers == {"main": OptimizerOptions(lr=5e-4, schedule=schedule)}


def test_a_recipe_survives_being_written() -> None:
    recipe = parse_recipe(TEXT)
    assert parse_recipe(recipe.to_yaml()) == recipe


def test_overrides_come_before_the_check() -> None:
    recipe = parse_recipe(TEXT.replace("steps: 10", "steps: 0"), {"loop.steps": 7, "optimizers.main.schedule.kind": "linear"})
    assert (recipe.loop.steps, recipe.optimizers["main"].schedule.kind) == (7, "linear")
    with pytest.raises(ConfigError, match=r"cannot set loop.steps.x: steps holds 10, no keys and values"):
        parse_recipe(TEXT, {"loop.steps.x": 1})


def test_all_faults_at_once() -> None:
    text = """
    task: linear_task:LinearTask
    options: {noize: 1, items: 0}
    loop: {accumulate: two, precision: int8}
    optimizers:
      main: {lr: -1, betas: [0.9], schedule: {kind: tri_stage}}
      other: []
    optimisers: {}
    """
    with pytest.raises(ConfigError) as refused:
        parse_recipe(text)
    for fault in (
        "options.noize is no key here (items, batch,",
        "options.items=0 must be an integer >= 1",
        "loop.steps is missing",
        "loop.accumulate='two' must be an integer >= 1",
        "loop.precision='int8' must be one of float32, bfloat16",
        "optimizers.main.lr=-1 must be a finite number > 0",
        "optimizers.main.schedule: kind='tri_stage', final_factor=0: its decay is exponential; set final_factor above 0",
        "optimizers.other must hold keys and values, got []",
        "optimisers is no key of a recipe (task, options, loop, optimizers)",
    ):
        assert fault in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("linear_task:LinearTask", "sing", "task='sing' must be one of codec, ctc, pretraining, seq2seq, classification, or"),
        ("linear_task:LinearTask", "5", "task=5 must be one of"),
        ("linear_task:LinearTask", "no_such_module:Task", "No module named 'no_such_module'"),
        ("linear_task:LinearTask", "linear_task:Nothing", "has no attribute 'Nothing'"),
        ("lr: 5e-4", "lr: '5e-4'", "optimizers.main.lr='5e-4' must be a finite number > 0"),
        ("{steps: 10}", "{steps: 10, steps: 11}", "not valid YAML: the key 'steps' is given twice"),
        ("{steps: 10}", "{steps: 10", "recipe is not valid YAML"),
        ("{steps: 10}", "{steps: 10, average: 3}", "loop: average=3, keep=2: as many checkpoints must be kept"),
        ("{steps: 10}", "{steps: 10, average: 2, best: wer}", "the result is one or the other; leave one out"),
        ("kind: tri_stage, warmup_steps: 2", "kind: inverse_sqrt", "warmup_steps=0: it falls in proportion to the warm-up"),
    ],
)
def test_refusals(old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe(TEXT.replace(old, new))


def test_betas() -> None:
    with pytest.raises(ConfigError, match=r"betas=\[0.9\] must be two numbers >= 0 and < 1"):
        OptimizerOptions(lr=1.0, betas=[0.9])
    with pytest.raises(ConfigError, match=r"betas=\[0.9, 1\] must be two numbers"):
        OptimizerOptions(lr=1.0, betas=[0.9, 1])


def test_what_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe must hold keys and values .*, got list"):
        parse_recipe("- 1")
    with pytest.raises(ConfigError, match="optimizers must hold at least one optimiser"):
        parse_recipe("{task: 'linear_task:LinearTask', loop: {steps: 1}}")
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*gone.yaml: No such file"):
        read_recipe(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r"expected a YAML file or a recipe of the package \(.*\), got 'no-such-recipe'"):
        read_recipe("no-such-recipe")


def test_files_and_names(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(TEXT)
    assert read_recipe(tmp_path / "mine.yaml") == parse_recipe(TEXT)


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_are_valid(name: str) -> None:
    recipe = read_recipe(name)
    assert parse_recipe(recipe.to_yaml()) == recipe


def test_without_pyyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "yaml":
            raise ImportError
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r"a recipe needs the package pyyaml.*pip install 'phonograph\[train\]'"):
        parse_recipe(TEXT)


def test_values_of_the_command_line() -> None:
    assert parse_value("1e-3") == 1e-3
    assert parse_value("-2E+4") == -2e4
    assert parse_value("[1, two]") == [1, "two"]
    assert parse_value("1e3x") == "1e3x"
    assert parse_value("null") is None


@dataclass(frozen=True)
class Clip:
    path: Annotated[str, Rule("a file")]
    gain: Annotated[float, Rule("a factor", above=0)] = 1.0


@dataclass(frozen=True)
class Nested:
    clips: list[Clip]
    named: dict[str, Clip] = field(default_factory=dict)
    extra: Clip | None = None


def test_nested_dataclasses() -> None:
    built = typed(Nested, {"clips": [{"path": "a"}], "named": {"b": {"path": "b", "gain": 2}}, "extra": None})
    assert built == Nested([Clip("a")], {"b": Clip("b", 2)})
    assert typed(Nested, {"clips": [], "extra": {"path": "c"}}).extra == Clip("c")
    message = r"x.clips\[1\].path is missing; x.named.b.gain=0 must be a finite number > 0; x.extra must hold keys and values"
    with pytest.raises(ConfigError, match=message):
        typed(Nested, {"clips": [{"path": "a"}, {}], "named": {"b": {"path": "b", "gain": 0}}, "extra": 3}, "x")
    with pytest.raises(ConfigError, match=r"clips must be a list, got \{\}"):
        typed(Nested, {"clips": {}})


# -------------------------------------------------------------------------------------------------------------- schedules


def expected(kind: str, step: int) -> float:
    """Of 5 steps of warm-up from 0.2, 4 of hold and 20 of decay to 0.1, written down another way."""
    if step < 5:
        return [0.2, 0.36, 0.52, 0.68, 0.84][step]
    gone = max(step - 9, 0)
    share = min(gone / 20, 1)
    return {
        "constant": 1.0,
        "linear": 1 - 0.9 * share,
        "cosine": 0.55 + 0.45 * math.cos(math.pi * share),
        "tri_stage": math.exp(math.log(0.1) * share),
        "inverse_sqrt": math.sqrt(5 / (5 + gone)),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_schedules_equal_their_formulas(kind: str) -> None:
    options = ScheduleOptions(kind, warmup_steps=5, hold_steps=4, decay_steps=20, initial_factor=0.2, final_factor=0.1)
    for step in range(60):
        assert factor(options, step, 1000) == pytest.approx(expected(kind, step), rel=1e-12)


def test_decay_takes_all_steps_that_are_left() -> None:
    options = ScheduleOptions("linear", warmup_steps=10, hold_steps=10)
    assert factor(options, 20, 120) == 1
    assert factor(options, 70, 120) == pytest.approx(0.5)
    assert factor(options, 120, 120) == factor(options, 200, 120) == 0


@pytest.mark.parametrize(("kind", "final"), [("linear", 0.3), ("cosine", 1e-3)])
def test_schedules_equal_torch(kind: str, final: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    if kind == "linear":
        theirs: Any = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, final, 30)
    else:
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30, 2.0 * final)
    options = ScheduleOptions(kind, decay_steps=30, final_factor=final)
    for step in range(30):
        assert 2.0 * factor(options, step, 30) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()
