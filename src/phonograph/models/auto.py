"""Classes by `model_type`: one table, and nothing imported until it is asked for.

from phonograph import AutoModel

model = AutoModel.from_pretrained("mimi-mini")
"""

import importlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phonograph.configuration import CONFIG_NAME, PreTrainedConfig
from phonograph.errors import ConfigError
from phonograph.loading import hub

if TYPE_CHECKING:
    from phonograph.models.base import PreTrainedModel
    from phonograph.models.features import FeatureExtractor

__all__ = ["AutoConfig", "AutoFeatureExtractor", "AutoModel", "AutoProcessor"]


@dataclass(frozen=True)
class _Family:
    """Class paths below phonograph.models."""

    config: str
    model: str
    feature_extractor: str


_FAMILIES = {
    "mimi": _Family(
        config="mimi.configuration_mimi.MimiConfig",
        model="mimi.modeling_mimi.MimiModel",
        feature_extractor="mimi.feature_extraction_mimi.MimiFeatureExtractor",
    ),
}


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"phonograph.models.{module}"), name)


def _family(model_type: object, origin: str) -> _Family:
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise ConfigError(
            f"expected a model_type of {', '.join(_FAMILIES)} in {origin}, got {model_type!r}; phonograph has no such model"
        )
    return _FAMILIES[model_type]


def _family_of(name_or_path: str | os.PathLike[str], where: dict[str, Any]) -> _Family:
    path = hub.resolve_file(name_or_path, CONFIG_NAME, **where)
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"expected JSON in {path}, got something else: {error}") from error
    return _family(config.get("model_type") if isinstance(config, dict) else None, str(path))


class AutoConfig:
    """The configuration class that a checkpoint's `model_type` names."""

    @staticmethod
    def from_pretrained(name_or_path: str | os.PathLike[str], **options: Any) -> PreTrainedConfig:
        """As `from_pretrained` of that class.

        Raises:
            ConfigError: a model_type that phonograph does not have. CheckpointError: nothing found.
        """
        where, _ = hub.split_hub_options(options)
        config: PreTrainedConfig = _class(_family_of(name_or_path, where).config).from_pretrained(name_or_path, **options)
        return config

    @staticmethod
    def for_model(model_type: str, **fields: Any) -> PreTrainedConfig:
        """A new configuration of that `model_type`.

        Raises:
            ConfigError: a model_type that phonograph does not have, or fields that break a rule.
        """
        config: PreTrainedConfig = _class(_family(model_type, "for_model").config)(**fields)
        return config


class AutoModel:
    """The model class that a checkpoint's `model_type` names."""

    @staticmethod
    def from_pretrained(name_or_path: str | os.PathLike[str], **options: Any) -> "PreTrainedModel":
        """As `from_pretrained` of that class.

        Raises:
            ConfigError: a model_type that phonograph does not have. CheckpointError: nothing found, or it does not fit.
        """
        where, _ = hub.split_hub_options(options)
        model: PreTrainedModel = _class(_family_of(name_or_path, where).model).from_pretrained(name_or_path, **options)
        return model

    @staticmethod
    def from_config(config: PreTrainedConfig) -> "PreTrainedModel":
        """A new model with random weights.

        Raises:
            ConfigError: a configuration of no model that phonograph has, or one that can't be built.
        """
        model: PreTrainedModel = _class(_family(config.model_type, type(config).__name__).model)(config)
        return model


class AutoFeatureExtractor:
    """The feature extractor of the family that a checkpoint's `model_type` names."""

    @staticmethod
    def from_pretrained(name_or_path: str | os.PathLike[str], **options: Any) -> "FeatureExtractor":
        """As `from_pretrained` of that class.

        Raises:
            ConfigError: a model_type that phonograph does not have. CheckpointError: nothing found.
        """
        where, _ = hub.split_hub_options(options)
        family = _family_of(name_or_path, where)
        extractor: FeatureExtractor = _class(family.feature_extractor).from_pretrained(name_or_path, **options)
        return extractor


class AutoProcessor(AutoFeatureExtractor):
    """What turns raw input into model input: for a family without text, its feature extractor."""
