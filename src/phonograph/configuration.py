"""Model configurations: plain mutable objects, checked in one place, stored as the ecosystem's config.json.

A family's configuration declares each field once, with its type, its meaning and its rule, and then the
relations between fields:

    class MimiConfig(PreTrainedConfig):
        model_type = "mimi"
        sampling_rate: Annotated[int, Rule("samples per second", minimum=1)]

        def __init__(self, /, sampling_rate: int = 24000, **kwargs: Any) -> None:
            self._assign_fields(locals())
            super().__init__(**kwargs)  # last: it validates

Attributes may be set freely later; building a model calls `validate()` again. This module knows no model, no
tensor library and no network: dtypes are names ("float16"), `phonograph.loading.hub` finds checkpoints.
"""

import functools
import importlib
import json
import math
import os
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from phonograph.errors import ConfigError
from phonograph.files import atomic_write, make_folder

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "CheckedOptions",
    "Field",
    "PreTrainedConfig",
    "PretrainedConfig",
    "Relation",
    "Rule",
    "field_rules",
]

CONFIG_NAME = "config.json"
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
DTYPES = ("float16", "bfloat16", "float32", "float64")

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
"""Keywords of every `from_pretrained` that say where and how to look; the rest belongs to the configuration."""

_LABEL_FIELDS = ("id2label", "label2id", "num_labels")
_ALIASES = {
    "torch_dtype": "dtype",
    "name_or_path": "_name_or_path",
    "attn_implementation": "_attn_implementation",
}
_COMMON_DEFAULTS: dict[str, Any] = {
    "transformers_version": None,
    "architectures": None,
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
    "dtype": None,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "problem_type": None,
    "_name_or_path": "",
    "_attn_implementation": None,
}
# Marks that other libraries leave in a file about their own process; they describe no model.
_FOREIGN_PRIVATE = (
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation_internal",
)
_PROVENANCE = ("_name_or_path", "transformers_version")
_KIND_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    str: "a string",
    list[int]: "a list of integers",
    list[float]: "a list of finite numbers",
    list[str]: "a list of strings",
    dict[str, Any]: "a dict with string keys",
    dict[int, str]: "a dict from integers to strings",
}

_Config = TypeVar("_Config", bound="PreTrainedConfig")


@dataclass(frozen=True)
class Rule:
    """What a field means and which values it may take; bounds hold for every item of a list.

    Args:
        meaning: one line of documentation, with the unit.
        minimum, maximum: inclusive bounds.
        above: exclusive lower bound.
        choices: the allowed strings; empty allows any.
    """

    meaning: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Field:
    """One declared field: its type, whether None is allowed, and its rule."""

    kind: Any
    optional: bool
    rule: Rule

    def fault(self, name: str, value: Any) -> str | None:
        """The sentence that says why `value` is refused (field, value, rule), or None if it is allowed."""
        if (value is None and self.optional) or (_is_a(value, self.kind) and self._allows(value)):
            return None
        return f"{name}={_shown(value)} must be {self._words()}"

    def _allows(self, value: Any) -> bool:
        rule = self.rule
        return all(
            (rule.minimum is None or item >= rule.minimum)
            and (rule.maximum is None or item <= rule.maximum)
            and (rule.above is None or item > rule.above)
            and (not rule.choices or item in rule.choices)
            for item in (value if isinstance(value, list) else [value])
        )

    def _words(self) -> str:
        rule = self.rule
        bounds = [
            f"{sign} {bound}"
            for sign, bound in ((">=", rule.minimum), (">", rule.above), ("<=", rule.maximum))
            if bound is not None
        ]
        kind = "one of " + ", ".join(rule.choices) if rule.choices else _KIND_WORDS[self.kind]
        each = "each " if bounds and get_origin(self.kind) is list else ""
        return " ".join(filter(None, [kind, each + " and ".join(bounds), "or None" if self.optional else ""]))


@dataclass(frozen=True)
class Relation:
    """A rule over several fields, checked only when each of them is allowed by itself.

    Args:
        fields: the names whose values the message shows.
        holds: takes the configuration.
        rule: the sentence that follows the values in the message.
        building: True for a rule that only a model needs; the constructor lets it be broken.
    """

    fields: tuple[str, ...]
    holds: Callable[[Any], bool]
    rule: str
    building: bool = False

    def fault(self, config: "PreTrainedConfig") -> str | None:
        """The sentence that says which values break the rule, or None."""
        if self.holds(config):
            return None
        return ", ".join(f"{name}={_shown(getattr(config, name))}" for name in self.fields) + f": {self.rule}"


def field_rules(config_class: type) -> Mapping[str, Field]:
    """The declared fields of a configuration class and its bases, by name."""
    return _field_rules(config_class)


@functools.cache
def _field_rules(config_class: Any) -> Mapping[str, Field]:
    hints = get_type_hints(config_class, include_extras=True)
    fields = {name: _field(hint) for name, hint in hints.items()}
    return types.MappingProxyType({name: field for name, field in fields.items() if field is not None})


def _field(hint: Any) -> Field | None:
    if get_origin(hint) is not Annotated:
        return None
    kind, *notes = get_args(hint)
    rules = [note for note in notes if isinstance(note, Rule)]
    if not rules:
        return None
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    kinds = [option for option in options if option is not types.NoneType]
    assert len(kinds) == 1, hint
    assert kinds[0] in _KIND_WORDS, hint
    return Field(kinds[0], len(kinds) < len(options), rules[0])


def _is_a(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is dict:
        keys, values = get_args(kind)
        return isinstance(value, dict) and all(_is_a(k, keys) and _is_a(v, values) for k, v in value.items())
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, kind)


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


class CheckedOptions:
    """Base of dataclasses that refuse values which break a field's rule, or a relation between fields.

        @dataclass(frozen=True)
        class BatchOptions(CheckedOptions):
            batch_seconds: Annotated[float, Rule("seconds of a batch", above=0)] = 240.0

    Raises:
        ConfigError: the message holds every fault.
    """

    def __post_init__(self) -> None:
        if faults := self._faults() or self._relation_faults():
            raise ConfigError(f"{type(self).__name__}: " + "; ".join(faults))

    def _faults(self) -> list[str]:
        """What is wrong with each field by itself."""
        checked = (field.fault(name, getattr(self, name)) for name, field in field_rules(type(self)).items())
        return [fault for fault in checked if fault is not None]

    def _relation_faults(self) -> list[str]:
        """What is wrong between fields that each are allowed by themselves."""
        return []


class PreTrainedConfig:
    """The base of every model configuration.

    Takes the ecosystem's common fields as keywords; any other keyword becomes an attribute and is written out
    again. `torch_dtype` and `name_or_path` read and set `dtype` and `_name_or_path`. `num_labels` regenerates
    the label maps unless they already have that length. `transformers_version` is kept as read.

    Raises:
        ConfigError: a value breaks its field's rule; the message holds every fault.
    """

    model_type: ClassVar[str] = ""
    attribute_map: ClassVar[dict[str, str]] = {}
    keys_to_ignore_at_inference: ClassVar[list[str]] = []
    base_config_key: ClassVar[str] = ""  # where a larger model's config.json nests this one
    _relations: ClassVar[tuple[Relation, ...]] = ()

    transformers_version: Annotated[str | None, Rule("the transformers release that wrote the file, as read")]
    architectures: Annotated[list[str] | None, Rule("model classes the checkpoint was saved from")]
    output_hidden_states: Annotated[bool, Rule("models return every layer's output")]
    output_attentions: Annotated[bool, Rule("models return attention weights")]
    return_dict: Annotated[bool, Rule("models return named outputs rather than tuples")]
    dtype: Annotated[str | None, Rule("number format of the stored weights", choices=DTYPES)]
    chunk_size_feed_forward: Annotated[int, Rule("steps per feed-forward chunk; 0 is all at once", minimum=0)]
    is_encoder_decoder: Annotated[bool, Rule("the model has an encoder and a decoder")]
    id2label: Annotated[dict[int, str], Rule("name of each class")]
    label2id: Annotated[dict[str, Any], Rule("class of each name")]
    problem_type: Annotated[str | None, Rule("the loss of a classifier", choices=PROBLEM_TYPES)]
    _name_or_path: Annotated[str, Rule("where the configuration came from")]
    _attn_implementation: Annotated[str | None, Rule("attention kernel to use; never stored")]

    def __init__(self, /, **kwargs: Any) -> None:
        for alias, name in _ALIASES.items():
            if alias in kwargs:
                value = kwargs.pop(alias)
                kwargs.setdefault(name, value)
        for name, default in _COMMON_DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, vars(self).get(name, default)))
        labels = {name: kwargs.pop(name, None) for name in _LABEL_FIELDS}
        self._set_labels(**labels)
        for name, value in kwargs.items():
            self._set_stored(name, value)
        self.validate(building=False)

    def _assign_fields(self, given: Mapping[str, Any]) -> None:
        """Set every declared field found in `given`, usually the constructor's `locals()`."""
        for name in field_rules(type(self)):
            if name in given:
                setattr(self, name, given[name])

    def _set_labels(self, id2label: Any, label2id: Any, num_labels: Any) -> None:
        if id2label is None and _is_a(label2id, dict[str, int]):
            id2label = {number: label for label, number in label2id.items()}
        if num_labels is None and id2label is None:
            num_labels = 2
        if isinstance(id2label, dict):
            id2label = {int(k) if isinstance(k, str) and k.isdecimal() else k: v for k, v in id2label.items()}
        if num_labels is not None:
            _check_label_count(num_labels)
            if not isinstance(id2label, dict) or len(id2label) != num_labels:
                id2label = {number: f"LABEL_{number}" for number in range(num_labels)}
        self.id2label = id2label
        derived = _inverse(id2label)
        agrees = isinstance(label2id, dict) and label2id.keys() == derived.keys()
        self.label2id = label2id if agrees else derived

    def _set_stored(self, name: str, value: Any) -> None:
        if name == "model_type" or name in _FOREIGN_PRIVATE or self._is_computed(name):
            return
        if not isinstance(self._class_member(name), property | None) or name.startswith("__"):
            raise ConfigError(f"{type(self).__name__}: the key {name!r} names a method; rename it")
        setattr(self, name, value)

    @classmethod
    def _class_member(cls, name: str) -> Any:
        return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)

    @classmethod
    def _is_computed(cls, name: str) -> bool:
        member = cls._class_member(name)
        return isinstance(member, property) and member.fset is None

    @classmethod
    def _real_name(cls, name: str) -> str:
        return cls.attribute_map.get(name) or _ALIASES.get(name, name)

    def __setattr__(self, name: str, value: Any) -> None:
        name = self._real_name(name)
        if name == "dtype" and value is not None and not isinstance(value, str):
            value = str(value)
        if name == "dtype" and isinstance(value, str):
            value = value.removeprefix("torch.")
        # JSON has no tuples; storing lists makes a saved configuration equal to the one read back.
        super().__setattr__(name, list(value) if isinstance(value, tuple) else value)

    def __getattr__(self, name: str) -> Any:
        real_name = self._real_name(name)
        if real_name == name:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self, real_name)

    @property
    def num_labels(self) -> int:
        """Number of classes; setting another number regenerates `id2label` and `label2id`."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        _check_label_count(count)
        if count != len(self.id2label):
            self._set_labels(None, None, count)

    @property
    def use_return_dict(self) -> bool:
        """The same as `return_dict`."""
        return self.return_dict

    def faults(self, building: bool = True) -> list[str]:
        """Every fault as one sentence naming field, value and rule; empty for a valid configuration.

        Args:
            building: also check the rules that only building a model needs.
        """
        faulty = {
            name: fault
            for name, field in field_rules(type(self)).items()
            if (fault := field.fault(name, vars(self).get(name))) is not None
        }
        open_relations = [relation for relation in self._relations if building or not relation.building]
        broken = [
            fault
            for relation in open_relations
            if faulty.keys().isdisjoint(relation.fields) and (fault := relation.fault(self)) is not None
        ]
        return [*faulty.values(), *broken, *self._family_faults(faulty)]

    def _family_faults(self, faulty: Mapping[str, str]) -> list[str]:
        """What a family checks beyond tables; `faulty` holds the fields that are already refused."""
        return []

    def validate(self, building: bool = True) -> None:
        """Check every rule; the constructor calls it with `building=False`, a model's constructor with True.

        Raises:
            ConfigError: one line with every fault.
        """
        if faults := self.faults(building):
            raise ConfigError(f"{type(self).__name__}: " + "; ".join(faults))

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set each key of `config_dict` as an attribute, unchecked until `validate()`."""
        for name, value in config_dict.items():
            setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        """Same class and same contents, wherever each was read from."""
        if not isinstance(other, PreTrainedConfig):
            return NotImplemented
        return type(self) is type(other) and self._contents() == other._contents()

    def _contents(self) -> dict[str, Any]:
        return {name: value for name, value in self.to_dict().items() if name not in _PROVENANCE}

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def to_dict(self) -> dict[str, Any]:
        """Every stored field and `model_type`, as fresh plain values."""
        values = {name: _plain(value) for name, value in vars(self).items() if name != "_attn_implementation"}
        if self.transformers_version is None:
            del values["transformers_version"]
        return {**values, "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: the family's own fields, and common ones that differ from the default."""
        labels = {number: f"LABEL_{number}" for number in range(2)}
        defaults = {**_COMMON_DEFAULTS, "id2label": labels, "label2id": _inverse(labels), "model_type": ""}
        common, own = field_rules(PreTrainedConfig), field_rules(type(self))
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in defaults or own.get(name) != common.get(name) or value != defaults[name]
            if name != "_name_or_path"
        }

    def to_json_string(self, use_diff: bool = True) -> str:
        """`to_diff_dict()`, or with `use_diff=False` `to_dict()`, as sorted and indented JSON.

        Raises:
            ConfigError: an attribute holds something that JSON can't.
        """
        values = self.to_diff_dict() if use_diff else self.to_dict()
        try:
            return json.dumps(_finite(values), indent=2, sort_keys=True) + "\n"
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{type(self).__name__} can't be written as JSON: {error}") from error

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write `to_json_string()` to a file.

        Raises:
            OutputError: the file can't be written.
        """
        text = self.to_json_string(use_diff)
        with atomic_write(json_file_path) as file:
            file.write(text.encode())

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write config.json into a folder, which is made when it is missing.

        Raises:
            OutputError: the folder or the file can't be written.
        """
        folder = Path(save_directory)
        make_folder(folder)
        self.to_json_file(folder / CONFIG_NAME)

    @overload
    @classmethod
    def from_dict(
        cls: type[_Config],
        config_dict: Mapping[str, Any],
        return_unused_kwargs: Literal[False] = False,
        **kwargs: Any,
    ) -> _Config: ...

    @overload
    @classmethod
    def from_dict(
        cls: type[_Config], config_dict: Mapping[str, Any], return_unused_kwargs: Literal[True], **kwargs: Any
    ) -> tuple[_Config, dict[str, Any]]: ...

    @classmethod
    def from_dict(
        cls: type[_Config], config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> _Config | tuple[_Config, dict[str, Any]]:
        """Build a configuration from stored values.

        Args:
            config_dict: as in config.json; not changed. Values of computed properties are left out.
            return_unused_kwargs: return (configuration, keywords that name no attribute).
            kwargs: values that override attributes of the configuration; others are ignored.

        Raises:
            ConfigError: the values or the overrides break a rule, or an override names a computed property.
        """
        config = cls(**cls._own_part(_plain(config_dict)))
        overrides = {name: kwargs.pop(name) for name in list(kwargs) if config._can_override(name)}
        config._override_labels(overrides)
        config.update(overrides)
        config.validate(building=False)
        return (config, kwargs) if return_unused_kwargs else config

    def _override_labels(self, overrides: dict[str, Any]) -> None:
        """New labels replace both maps; a new number of them alone keeps maps that already have it."""
        if overrides.keys() & {"id2label", "label2id"}:
            self._set_labels(*(overrides.pop(name, None) for name in _LABEL_FIELDS))

    def _can_override(self, name: str) -> bool:
        if self._is_computed(name):
            raise ConfigError(f"{type(self).__name__}: {name} is computed, set the fields it is computed from")
        return self._real_name(name) in vars(self) or isinstance(self._class_member(name), property)

    @classmethod
    def _own_part(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A larger model's file holds this class's configuration under `base_config_key`."""
        stored_type = values.get("model_type", cls.model_type)
        if not cls.model_type or stored_type == cls.model_type:
            return values
        nested = values.get(cls.base_config_key)
        if isinstance(nested, dict) and nested.get("model_type") == cls.model_type:
            return nested
        warnings.warn(
            f"expected a configuration of model type {cls.model_type!r}, got {_shown(stored_type)}; "
            f"{cls.__name__} fills what it does not find with its defaults",
            stacklevel=3,
        )
        return values

    @classmethod
    def from_json_file(cls: type[_Config], json_file: str | os.PathLike[str]) -> _Config:
        """Read a configuration from a JSON file.

        Raises:
            ConfigError: the file can't be read, is not a JSON object, or breaks a rule.
        """
        return cls.from_dict(_read_json(Path(json_file)))

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The stored values of a checkpoint, and the keywords that are not options of the download.

        Args:
            pretrained_model_name_or_path: a bundled model's name, a folder, a hub id, or a JSON file.
            kwargs: may hold cache_dir, force_download, local_files_only, token, revision and subfolder.

        Raises:
            CheckpointError: there is no such checkpoint.
            ConfigError: its configuration is not a JSON object.
        """
        hub_options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        path = Path(pretrained_model_name_or_path)
        if path.suffix != ".json" and not path.is_file():
            # Users look for from_pretrained on the class, but resolving names belongs to a layer above.
            hub = importlib.import_module("phonograph.loading.hub")
            path = hub.resolve_file(os.fspath(pretrained_model_name_or_path), CONFIG_NAME, **hub_options)
        return _read_json(path), kwargs

    @overload
    @classmethod
    def from_pretrained(
        cls: type[_Config],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        return_unused_kwargs: Literal[False] = False,
        **kwargs: Any,
    ) -> _Config: ...

    @overload
    @classmethod
    def from_pretrained(
        cls: type[_Config],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        return_unused_kwargs: Literal[True],
        **kwargs: Any,
    ) -> tuple[_Config, dict[str, Any]]: ...

    @classmethod
    def from_pretrained(
        cls: type[_Config],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> _Config | tuple[_Config, dict[str, Any]]:
        """Read a checkpoint's configuration.

        Args:
            pretrained_model_name_or_path: a bundled model's name, a folder, a hub id, or a JSON file.
            return_unused_kwargs: as in `from_dict`.
            kwargs: options of the download as in `get_config_dict`, and overrides as in `from_dict`.

        Raises:
            CheckpointError: there is no such checkpoint.
            ConfigError: its configuration is not a JSON object or breaks a rule.
        """
        values, overrides = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        config, unused = cls.from_dict(values, return_unused_kwargs=True, **overrides)
        return (config, unused) if return_unused_kwargs else config


PretrainedConfig = PreTrainedConfig


def _check_label_count(count: Any) -> None:
    if not _is_a(count, int) or count < 0:
        raise ConfigError(f"num_labels={_shown(count)} must be an integer >= 0")


def _inverse(id2label: Any) -> dict[str, int]:
    items = id2label.items() if isinstance(id2label, dict) else ()
    return {label: number for number, label in items if isinstance(label, str)}


def _plain(value: Any) -> Any:
    """A fresh copy made of JSON's types, as far as there is one."""
    if isinstance(value, PreTrainedConfig):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    text = str(value) if type(value).__name__ == "dtype" else ""
    return text.removeprefix("torch.") if text.startswith("torch.") else value


def _finite(value: Any) -> Any:
    """JSON has no infinities; transformers writes them as {"__float__": "Infinity"} and reads that back."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else {"__float__": json.dumps(value)}


def _float_from_object(pairs: dict[str, Any]) -> Any:
    text = pairs.get("__float__")
    return float(text) if len(pairs) == 1 and text in ("Infinity", "-Infinity", "NaN") else pairs


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes(), object_hook=_float_from_object)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise ConfigError(f"{path} is not valid JSON at {place}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON at byte {error.start}: {error.reason}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not usable JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object of a configuration's fields, got {_shown(values)}")
    return values
