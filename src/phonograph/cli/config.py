"""`phonograph config show|validate|diff`: a model's configuration, read without loading torch or any weights."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phonograph.cli.console import one_line, print_json, print_lines, print_table
from phonograph.cli.options import AsJson
from phonograph.errors import ConfigError

if TYPE_CHECKING:
    from phonograph.configuration import PreTrainedConfig

__all__ = ["config_app"]

config_app = typer.Typer(help="Show, check and compare configurations.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(metavar="NAME_OR_PATH", help="Bundled name, folder, config.json or hub id (owner/name).")]


@config_app.command()
def show(name: _Name, as_json: AsJson = False) -> None:
    """Show fields and what follows from them.

    Every field with its value and meaning; frame rate and size, bitrates, parameters, and operations for a second of audio.
    """
    from phonograph.configuration import field_rules

    config = _load(name)
    defaults = type(config)().to_dict()
    fields = _fields(config)
    computed = _computed(config)
    if as_json:
        print_json({"name": name, "model_type": config.model_type, "fields": fields, "computed": computed})
        return
    rules = field_rules(type(config))
    rows = [
        (
            field,
            _shown(value),
            "" if value == defaults.get(field) else _shown(defaults[field]) if field in defaults else "-",
            rules[field].rule.meaning if field in rules else "not a field of this model; kept as it is",
        )
        for field, value in fields.items()
    ]
    print_table(("field", "value", "default if other", "meaning"), rows, title=f"{name} ({config.model_type})")
    if computed:
        print_table(("computed", "value"), _computed_rows(computed), right=("value",))


@config_app.command()
def validate(name: _Name, as_json: AsJson = False) -> None:
    """Check a configuration against every rule.

    Prints ok, or every fault on a line of its own; the exit code is then 2.
    """
    faults = _faults(name)
    if as_json:
        print_json({"name": name, "valid": not faults, "faults": faults})
    elif faults:
        print_lines(*map(one_line, faults))
    else:
        print_lines("ok")
    if faults:
        raise typer.Exit(2)


@config_app.command()
def diff(
    name: _Name,
    other: Annotated[
        str | None, typer.Argument(metavar="OTHER", help="What to compare with; the model type's defaults if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two configurations, field by field.

    Or one with the defaults of its model type, if OTHER is left out.
    """
    from phonograph.models.auto import AutoConfig

    first = _load(name)
    second = AutoConfig.for_model(first.model_type) if other is None else _load(other)
    ours, theirs = _fields(first), _fields(second)
    missing = object()
    changed = [field for field in {**ours, **theirs} if ours.get(field, missing) != theirs.get(field, missing)]
    label = "default" if other is None else other
    if as_json:
        # A field that only one of them has is null in the other.
        differences = {field: [ours.get(field), theirs.get(field)] for field in changed}
        print_json({"names": [name, label], "differences": differences})
    elif changed:
        rows = [(field, *(_shown(side[field]) if field in side else "-" for side in (ours, theirs))) for field in changed]
        print_table(("field", name, label), rows)
    else:
        print_lines(f"{name} and {label} have the same fields and values")


def _config_class(values: dict[str, Any], name: str) -> "type[PreTrainedConfig]":
    from phonograph.models.auto import AutoConfig

    model_type = values.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError(f"expected a configuration with a model_type in {name}, got none; name a model's config.json")
    return type(AutoConfig.for_model(model_type))


def _read(name: str) -> "tuple[dict[str, Any], type[PreTrainedConfig]]":
    from phonograph.configuration import PreTrainedConfig

    values, _ = PreTrainedConfig.get_config_dict(name)
    return values, _config_class(values, name)


def _load(name: str) -> "PreTrainedConfig":
    values, config_class = _read(name)
    config = config_class.from_dict(values)
    config.validate()
    return config


def _faults(name: str) -> list[str]:
    """All of them: a subclass that does not stop at the first round of checks is asked for what it holds."""
    values, config_class = _read(name)
    unchecked: type[PreTrainedConfig] = type("Unchecked", (config_class,), {"validate": lambda config, building=True: None})
    try:
        config = unchecked.from_dict(values)
    except ConfigError as error:
        return [str(error)]
    return list(config.faults())


def _fields(config: "PreTrainedConfig") -> dict[str, Any]:
    """The family's own fields first, in the order of their declaration, then all else that config.json would hold."""
    stored = json.loads(config.to_json_string())
    declared = [name for name in type(config).__annotations__ if name in stored]
    return {name: stored[name] for name in (*declared, *sorted(stored.keys() - set(declared))) if name != "model_type"}


def _computed(config: "PreTrainedConfig") -> dict[str, Any]:
    from phonograph.models.mimi.configuration_mimi import MimiConfig
    from phonograph.models.mimi.cost_mimi import mimi_cost

    if not isinstance(config, MimiConfig):
        return {}
    cost = mimi_cost(config)
    bits = config.frame_rate * (config.codebook_size - 1).bit_length()
    return {
        "frame_rate": config.frame_rate,
        "frame_size": config.frame_size,
        "bitrates": {str(number): bits * number for number in range(1, config.num_quantizers + 1)},
        "parameters": cost.parameters,
        "codebook_values": cost.codebook_values,
        "encode_flops_per_second": cost.encode_flops_per_second,
        "decode_flops_per_second": cost.decode_flops_per_second,
    }


def _computed_rows(computed: dict[str, Any]) -> list[tuple[str, str]]:
    bitrates = computed["bitrates"]
    powers = [str(2**exponent) for exponent in range(17) if str(2**exponent) in bitrates]
    return [
        ("frame rate", f"{computed['frame_rate']:g} Hz"),
        ("frame size", f"{computed['frame_size']} samples"),
        *(
            (f"bitrate, codebooks: {number}", f"{bitrates[number]:g} bit/s")
            for number in dict.fromkeys([*powers, [*bitrates][-1]])
        ),
        ("parameters", f"{computed['parameters']:,}"),
        ("values of codebooks", f"{computed['codebook_values']:,}"),
        ("to encode a second", f"{computed['encode_flops_per_second'] / 1e9:.2f} GFLOP"),
        ("to decode a second", f"{computed['decode_flops_per_second'] / 1e9:.2f} GFLOP"),
    ]


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
