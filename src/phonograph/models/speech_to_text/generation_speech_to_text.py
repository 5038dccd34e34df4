"""How a checkpoint wants its text generated: the settings of its generation_config.json, or of an older config.json.

It knows their names and where they are stored; what they mean is in decoding/seq2seq.py.
"""

import copy
import json
import os
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from phonograph.decoding.seq2seq import GenerationOptions
from phonograph.errors import ConfigError
from phonograph.files import atomic_write
from phonograph.loading.hub import read_optional_json
from phonograph.models.speech_to_text.configuration_speech_to_text import Speech2TextConfig

__all__ = ["GENERATION_CONFIG_NAME", "GenerationConfig"]

GENERATION_CONFIG_NAME = "generation_config.json"
"""File name of generation settings inside a checkpoint."""

_NAMES = tuple(field.name for field in fields(GenerationOptions))


class GenerationConfig(SimpleNamespace):
    """Generation settings as attributes, which may be set freely; keys of a file that are unknown here are kept."""

    @classmethod
    def from_model_config(cls, config: Speech2TextConfig) -> "GenerationConfig":
        """The settings that config.json holds, as files did before these had a file of their own."""
        return cls(**{name: copy.deepcopy(vars(config)[name]) for name in _NAMES if vars(config).get(name) is not None})

    def read(self, name_or_path: str | os.PathLike[str], where: dict[str, Any]) -> None:
        """Let a checkpoint's own file, if it has one, win over what is set; a null leaves it.

        Args:
            where: hub options.

        Raises:
            CheckpointError: the file is no JSON object.
        """
        stored = read_optional_json(name_or_path, GENERATION_CONFIG_NAME, **where)
        vars(self).update({name: value for name, value in stored.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """All settings, as fresh values."""
        return copy.deepcopy(vars(self))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write generation_config.json into a folder.

        Raises:
            OutputError: the folder can't be written.
        """
        with atomic_write(Path(save_directory) / GENERATION_CONFIG_NAME) as file:
            file.write((json.dumps(vars(self), indent=2, sort_keys=True) + "\n").encode())

    def options(self, config: Speech2TextConfig, keywords: dict[str, Any]) -> GenerationOptions:
        """What a search follows: `keywords` first, then these settings.

        Raises:
            ConfigError: a keyword that names no setting, a value that breaks its rule, a setting that is not supported, or
                targets longer than config.max_target_positions.
        """
        settings = {**vars(self), **{name: value for name, value in keywords.items() if value is not None}}
        longest = config.max_target_positions
        if settings.get("max_length") is None and settings.get("max_new_tokens") is None:
            settings["max_length"] = min(GenerationOptions.max_length, longest)
        options = GenerationOptions.from_settings(settings)
        if unknown := keywords.keys() - set(_NAMES):
            raise ConfigError(
                f"expected generation settings ({', '.join(_NAMES)}), got {', '.join(sorted(unknown))}; check the spelling"
            )
        if options.total_length > longest:
            raise ConfigError(
                f"expected targets of at most {longest} tokens (max_target_positions), got {options.total_length}; "
                "lower max_length or max_new_tokens"
            )
        return options
