"""Recipes: YAML files that say what is trained and how, read strictly.

    task: ctc                    # a name in TASKS, or "package.module:Class"
    options: {...}               # fields of the task's own dataclass `Options`
    loop: {steps: 20000, ...}    # LoopOptions
    optimizers:
      main: {lr: 5.0e-4, ...}    # OptimizerOptions, one for each optimiser that the task names

    recipe = read_recipe("ctc.yaml", {"loop.steps": 100})
    recipe.options, recipe.loop, recipe.optimizers

or of several such recipes, one after the other, each by its name; `stage:NAME` in the options of a later one is the model that
an earlier one has made:

    stages:
      pretrain: {task: pretraining, ...}
      ctc: {task: ctc, options: {init: "stage:pretrain", ...}, ...}

Every field is declared once, on a dataclass, with its rule; unknown and missing keys and wrong values are refused, all of them
at once and each by its path. It knows no task beyond its name.
"""

import dataclasses
import importlib
import os
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from phonograph.configuration import Field, Rule, field_rules
from phonograph.errors import ConfigError, MissingExtraError
from phonograph.training.schedules import ScheduleOptions

if TYPE_CHECKING:
    from phonograph.training.task import RunContext, Task

__all__ = [
    "RECIPES",
    "TASKS",
    "LoopOptions",
    "OptimizerOptions",
    "Recipe",
    "StagedRecipe",
    "bundled_recipes",
    "parse_recipe",
    "parse_value",
    "read_recipe",
    "typed",
]

RECIPES = Path(__file__).parent / "recipes"
"""The recipes that come with the package; their names without .yaml are accepted wherever a recipe's path is."""

TASKS = {
    "codec": "phonograph.training.tasks.codec:CodecTask",
    "ctc": "phonograph.training.tasks.ctc:CTCTask",
    "pretraining": "phonograph.training.tasks.pretraining:PretrainingTask",
    "seq2seq": "phonograph.training.tasks.seq2seq:Seq2SeqTask",
    "classification": "phonograph.training.tasks.classification:ClassificationTask",
}

_STAGE = "stage:"
_KEYS = ("task", "options", "loop", "optimizers")
_Options = TypeVar("_Options")


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW (Loshchilov & Hutter 2019) and its learning rate.

    Raises:
        ConfigError: `betas` are not two numbers below 1.
    """

    lr: Annotated[float, Rule("learning rate at its peak", above=0)]
    betas: Annotated[list[float], Rule("decay of the gradient's and of its square's average", minimum=0, maximum=1)] = field(
        default_factory=lambda: [0.9, 0.98]
    )
    eps: Annotated[float, Rule("added to the denominator", above=0)] = 1e-8
    weight_decay: Annotated[float, Rule("decoupled decay of the weights", minimum=0)] = 0.0
    clip_norm: Annotated[float | None, Rule("largest norm of the gradient; None for any", above=0)] = None
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or max(self.betas) >= 1:
            raise ConfigError(f"betas={self.betas} must be two numbers >= 0 and < 1")


@dataclass(frozen=True)
class LoopOptions:
    """How long a run lasts, what is computed in which type, what is kept and told.

    Raises:
        ConfigError: FSDP with what it isn't offered with.
    """

    steps: Annotated[int, Rule("optimiser steps of the whole run", minimum=1)]
    max_minutes: Annotated[float | None, Rule("stop, as at the last step, after so long; None for never", above=0)] = None
    seed: Annotated[int, Rule("of weights, batches and everything random", minimum=0)] = 0
    accumulate: Annotated[int, Rule("micro-batches a step, on each process", minimum=1)] = 1
    precision: Annotated[str, Rule("type of the forward pass", choices=("float32", "bfloat16"))] = "float32"
    distributed: Annotated[str, Rule("how several processes share the work", choices=("ddp", "fsdp"))] = "ddp"
    ema_decay: Annotated[float | None, Rule("decay a step of the averaged weights; None for none", minimum=0, maximum=1)] = None
    log_every: Annotated[int, Rule("steps between lines of the log", minimum=1)] = 50
    evaluate_every: Annotated[int | None, Rule("steps between evaluations; None for one at the end", minimum=1)] = None
    save_every: Annotated[int | None, Rule("steps between checkpoints; None for none", minimum=1)] = None
    save_minutes: Annotated[float | None, Rule("minutes between checkpoints; None for none", above=0)] = 10.0
    keep: Annotated[int, Rule("newest checkpoints that are kept", minimum=1)] = 2
    average: Annotated[int, Rule("newest checkpoints whose mean is the result", minimum=1)] = 1
    best: Annotated[str | None, Rule("the figure whose best checkpoint is kept and is the result; None: the last")] = None
    best_is: Annotated[str, Rule("whether that figure is better lower or higher", choices=("min", "max"))] = "min"
    max_nonfinite: Annotated[int, Rule("steps in a row with gradients that are not finite before the run stops", minimum=1)] = (
        20
    )
    trackers: Annotated[list[str], Rule("besides the log", choices=("tensorboard", "wandb"))] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.average > 1 and self.best is not None:
            raise ConfigError(f"average={self.average}, best={self.best!r}: the result is one or the other; leave one out")
        if self.average > self.keep:
            raise ConfigError(f"average={self.average}, keep={self.keep}: as many checkpoints must be kept as are averaged")


@dataclass(frozen=True)
class Recipe:
    """A checked recipe, and the plain values it was read from."""

    task: str
    options: Any
    loop: LoopOptions
    optimizers: dict[str, OptimizerOptions]
    values: dict[str, Any]

    def build(self, context: "RunContext") -> "Task":
        """The task, with its models and its data."""
        return cast("Task", task_class(self.task)(self.options, context))

    def with_models(self, folders: Mapping[str, str]) -> "Recipe":
        """The recipe with the folders of other stages' models, by their names, in the place of `stage:NAME`."""
        if not folders:
            return self
        options = _replaced(self.values.get("options", {}), {_STAGE + name: folder for name, folder in folders.items()})
        return _single({**self.values, "options": options}, "recipe")

    def to_yaml(self) -> str:
        """The recipe as a file."""
        return _dumped(self.values)


@dataclass(frozen=True)
class StagedRecipe:
    """Checked recipes that follow one another, by name, and the plain values they were read from."""

    stages: dict[str, Recipe]
    values: dict[str, Any]

    def to_yaml(self) -> str:
        """The recipe as a file."""
        return _dumped(self.values)


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name_or_path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Recipe | StagedRecipe:
    """Read a recipe from a YAML file, or one of `bundled_recipes()` by its name.

    Args:
        overrides: values by dotted path ("optimizers.main.lr", "stages.ctc.loop.steps"), set before anything is checked.

    Raises:
        ConfigError: no such file, no YAML, or values that break a rule; the message holds every fault.
        MissingExtraError: PyYAML is not installed.
    """
    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        if path.name not in bundled_recipes():
            names = ", ".join(bundled_recipes()) or "none"
            raise ConfigError(f"expected a YAML file or a recipe of the package ({names}), got {str(name_or_path)!r}")
        path = RECIPES / f"{path.name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}") from error
    return parse_recipe(text, overrides, str(path))


def parse_recipe(text: str, overrides: Mapping[str, Any] | None = None, origin: str = "recipe") -> Recipe | StagedRecipe:
    """As `read_recipe`, from the text of a recipe.

    Raises:
        ConfigError, MissingExtraError: as `read_recipe`.
    """
    values = _load(text, origin)
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} must hold keys and values (task, options, loop, optimizers), got {type(values).__name__}")
    for path, value in (overrides or {}).items():
        _set(values, path.split("."), value, path)
    return _staged(values, origin) if "stages" in values else _single(values, origin)


def _single(values: dict[str, Any], origin: str) -> Recipe:
    faults: list[str] = []
    recipe = _checked(values, "", faults)
    if recipe is None:
        raise ConfigError(f"{origin}: " + "; ".join(faults))
    return recipe


def _staged(values: dict[str, Any], origin: str) -> StagedRecipe:
    faults = [f"{key} is no key of a recipe with stages; put it into a stage" for key in values if key != "stages"]
    stages = values["stages"]
    if not isinstance(stages, dict) or not stages:
        raise ConfigError(f"{origin}: stages must hold recipes by their names, got {stages!r}")
    checked: dict[str, Recipe | None] = {}
    for name, each in stages.items():
        path = f"stages.{name}"
        if not isinstance(each, dict):
            faults.append(f"{path} must hold keys and values ({', '.join(_KEYS)}), got {each!r}")
            continue
        if not re.fullmatch(r"[a-z][a-z0-9-]*", str(name)):
            faults.append(f"{path}: a stage's name has lower-case letters, digits and hyphens only")
        wanted = [text.removeprefix(_STAGE) for text in _texts(each.get("options")) if text.startswith(_STAGE)]
        faults += [f"{path}: {_STAGE}{other} is no stage before it" for other in wanted if other not in checked]
        checked[name] = _checked(each, f"{path}.", faults)
    if faults:
        raise ConfigError(f"{origin}: " + "; ".join(faults))
    return StagedRecipe(cast(dict[str, Recipe], checked), values)


def _checked(values: dict[str, Any], prefix: str, faults: list[str]) -> Recipe | None:
    """One recipe; None if there are faults, which are added."""
    before = len(faults)
    name = values.get("task")
    options_class: Any = None
    try:
        options_class = task_class(name).Options
    except ConfigError as error:
        faults.append(prefix + str(error))
    sections: dict[str, Any] = {}
    for key, kind in (("loop", LoopOptions), ("optimizers", dict[str, OptimizerOptions]), ("options", options_class)):
        if kind is not None:
            sections[key] = _convert(kind, values.get(key, {}), prefix + key, faults)
    faults += [f"{prefix}{key} is no key of a recipe ({', '.join(_KEYS)})" for key in values if key not in _KEYS]
    if len(faults) == before and not sections["optimizers"]:
        faults.append(f"{prefix}optimizers must hold at least one optimiser")
    return None if len(faults) > before else Recipe(cast(str, name), values=values, **sections)


def parse_value(text: str) -> Any:
    """A value as YAML would read it: `parse_value("1e-3")` is a number, `parse_value("[1, 2]")` a list.

    Raises:
        ConfigError: it is no YAML.
    """
    return _load(text, repr(text))


def task_class(name: Any) -> Any:
    """The class of a task, by a name in TASKS or as "package.module:Class".

    Raises:
        ConfigError: there is no such task.
    """
    place = TASKS.get(name, name) if isinstance(name, str) else None
    if place is None or ":" not in place:
        raise ConfigError(f"task={name!r} must be one of {', '.join(TASKS)}, or package.module:Class")
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(f"task={name!r}: {error}") from error


def typed(kind: type[_Options], values: Any, path: str = "") -> _Options:
    """Build a dataclass, and the dataclasses in its fields, from plain values.

    Fields are declared `Annotated[type, Rule(...)]`, or as a dataclass, `list` or `dict[str, ...]` of one, or one `| None`.

    Raises:
        ConfigError: unknown or missing keys, or values that break a rule; the message holds every fault by its path.
    """
    faults: list[str] = []
    built = _convert(kind, values, path, faults)
    if faults:
        raise ConfigError("; ".join(faults))
    return cast(_Options, built)


def _convert(kind: Any, value: Any, path: str, faults: list[str]) -> Any:
    """The value as `kind`, a dataclass or a collection of one; None if there are faults, which are added."""
    options = [each for each in get_args(kind) if each is not types.NoneType]
    if get_origin(kind) in (Union, types.UnionType):
        return None if value is None else _convert(options[0], value, path, faults)
    if get_origin(kind) is list:
        if not isinstance(value, list):
            faults.append(f"{path} must be a list, got {value!r}")
            return None
        return [_convert(options[0], item, f"{path}[{place}]", faults) for place, item in enumerate(value)]
    if not isinstance(value, dict):
        faults.append(f"{path} must hold keys and values, got {value!r}")
        return None
    if get_origin(kind) is dict:
        return {str(key): _convert(options[1], item, f"{path}.{key}", faults) for key, item in value.items()}
    return _convert_fields(kind, value, f"{path}." if path else "", faults)


def _convert_fields(kind: Any, values: dict[Any, Any], prefix: str, faults: list[str]) -> Any:
    fields = {each.name: each for each in dataclasses.fields(kind) if each.init}
    hints, rules = get_type_hints(kind, include_extras=True), field_rules(kind)
    before = len(faults)
    faults += [f"{prefix}{key} is no key here ({', '.join(fields)})" for key in values if key not in fields]
    arguments: dict[str, Any] = {}
    for name, declared in fields.items():
        if name not in values:
            if declared.default is dataclasses.MISSING and declared.default_factory is dataclasses.MISSING:
                faults.append(f"{prefix}{name} is missing")
        elif name in rules:
            faults += _rule_faults(rules[name], prefix + name, values[name])
            arguments[name] = values[name]
        else:
            arguments[name] = _convert(hints[name], values[name], prefix + name, faults)
    if len(faults) > before:
        return None
    try:
        return kind(**arguments)
    except ConfigError as error:
        faults.append(prefix.removesuffix(".") + (": " if prefix else "") + str(error))
        return None


def _rule_faults(declared: Field, path: str, value: Any) -> Iterator[str]:
    fault = declared.fault(path, value)
    if fault is not None:
        yield fault


def _texts(value: Any) -> Iterator[str]:
    """All texts among values, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _replaced(value: Any, texts: Mapping[str, str]) -> Any:
    """Values with some texts in the place of others, however deep."""
    if isinstance(value, dict):
        return {key: _replaced(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, texts) for item in value]
    return texts.get(value, value) if isinstance(value, str) else value


def _set(values: dict[str, Any], keys: list[str], value: Any, path: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"cannot set {path}: {key} holds {values!r}, no keys and values")
    values[keys[-1]] = value


def _dumped(values: dict[str, Any]) -> str:
    return cast(str, _yaml().safe_dump(values, sort_keys=False, allow_unicode=True))


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("a recipe", "pyyaml", "train") from error
    return yaml


def _load(text: str, origin: str) -> Any:
    yaml = _yaml()
    try:
        return yaml.load(text, Loader=_loader(yaml))
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from error


def _loader(yaml: Any) -> Any:
    """PyYAML's safe loader, but 1e-3 is a number, as in YAML 1.2, and a key given twice is refused."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if twice := [key for place, key in enumerate(keys) if key in keys[:place]]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} is given twice", node.start_mark)
            return cast(dict[Any, Any], super().construct_mapping(node, deep))

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    return Loader
