"""Classes by `model_type`: one table, and nothing imported until it is asked for.

from phonograph import AutoModelForCTC, AutoProcessor

processor = AutoProcessor.from_pretrained("facebook/wav2vec2-base-960h")
model = AutoModelForCTC.from_pretrained("facebook/wav2vec2-base-960h")
"""

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phonograph.configuration import CONFIG_NAME, PreTrainedConfig
from phonograph.errors import CheckpointError, ConfigError
from phonograph.loading import hub

if TYPE_CHECKING:
    from phonograph.models.base import PreTrainedModel
    from phonograph.models.features import FeatureExtractor
    from phonograph.models.processing import Processor
    from phonograph.models.tokenization import PreTrainedTokenizer

__all__ = [
    "AutoConfig",
    "AutoFeatureExtractor",
    "AutoModel",
    "AutoModelForAudioClassification",
    "AutoModelForAudioFrameClassification",
    "AutoModelForAudioXVector",
    "AutoModelForCTC",
    "AutoModelForPreTraining",
    "AutoModelForSpeechSeq2Seq",
    "AutoProcessor",
    "AutoTokenizer",
]


@dataclass(frozen=True)
class _Family:
    """Class paths below phonograph.models; the models by the name of the class here that stands for them."""

    config: str
    models: Mapping[str, str]
    feature_extractor: str
    tokenizer: str | None = None
    processor: str | None = None


_FAMILIES = {
    "mimi": _Family(
        config="mimi.configuration_mimi.MimiConfig",
        models={"AutoModel": "mimi.modeling_mimi.MimiModel"},
        feature_extractor="mimi.feature_extraction_mimi.MimiFeatureExtractor",
    ),
    "wav2vec2": _Family(
        config="wav2vec2.configuration_wav2vec2.Wav2Vec2Config",
        models={
            "AutoModel": "wav2vec2.modeling_wav2vec2.Wav2Vec2Model",
            "AutoModelForCTC": "wav2vec2.modeling_wav2vec2.Wav2Vec2ForCTC",
            "AutoModelForPreTraining": "wav2vec2.modeling_wav2vec2.Wav2Vec2ForPreTraining",
            "AutoModelForAudioClassification": "wav2vec2.modeling_wav2vec2.Wav2Vec2ForSequenceClassification",
            "AutoModelForAudioFrameClassification": "wav2vec2.modeling_wav2vec2.Wav2Vec2ForAudioFrameClassification",
            "AutoModelForAudioXVector": "wav2vec2.modeling_wav2vec2.Wav2Vec2ForXVector",
        },
        feature_extractor="wav2vec2.feature_extraction_wav2vec2.Wav2Vec2FeatureExtractor",
        tokenizer="wav2vec2.tokenization_wav2vec2.Wav2Vec2CTCTokenizer",
        processor="wav2vec2.processing_wav2vec2.Wav2Vec2Processor",
    ),
    "speech_to_text": _Family(
        config="speech_to_text.configuration_speech_to_text.Speech2TextConfig",
        models={
            "AutoModel": "speech_to_text.modeling_speech_to_text.Speech2TextModel",
            "AutoModelForSpeechSeq2Seq": "speech_to_text.modeling_speech_to_text.Speech2TextForConditionalGeneration",
        },
        feature_extractor="speech_to_text.feature_extraction_speech_to_text.Speech2TextFeatureExtractor",
        tokenizer="speech_to_text.tokenization_speech_to_text.Speech2TextTokenizer",
        processor="speech_to_text.processing_speech_to_text.Speech2TextProcessor",
    ),
}
_CLASS_NAMES = {
    "processor_config.json": "processor_class",
    "tokenizer_config.json": "tokenizer_class",
    "preprocessor_config.json": "feature_extractor_type",
}


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"phonograph.models.{module}"), name)


def _family(model_type: object, origin: str) -> _Family:
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise ConfigError(
            f"expected a model_type of {' or '.join(_FAMILIES)} in {origin}, got {model_type!r}; phonograph has no such model"
        )
    return _FAMILIES[model_type]


def _model_type(path: Path) -> object:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"expected JSON in {path}, got something else: {error}") from error
    return config.get("model_type") if isinstance(config, dict) else None


def _family_of(name_or_path: str | os.PathLike[str], where: dict[str, Any]) -> _Family:
    path = hub.resolve_file(name_or_path, CONFIG_NAME, **where)
    return _family(_model_type(path), str(path))


def _family_by_files(name_or_path: str | os.PathLike[str], where: dict[str, Any]) -> _Family:
    """As `_family_of`; a folder without config.json is told by the class names in its other files."""
    try:
        return _family_of(name_or_path, where)
    except CheckpointError:
        for filename, key in _CLASS_NAMES.items():
            stored = hub.read_optional_json(name_or_path, filename, **where).get(key)
            for family in _FAMILIES.values():
                paths = (family.processor, family.tokenizer, family.feature_extractor)
                if any(path is not None and path.rpartition(".")[2] == stored for path in paths):
                    return family
        raise


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

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> "PreTrainedModel":
        """As `from_pretrained` of that class.

        Raises:
            ConfigError: a model_type that phonograph does not have, or one without such a model. CheckpointError: nothing
                found, or it does not fit.
        """
        where, _ = hub.split_hub_options(options)
        path = hub.resolve_file(name_or_path, CONFIG_NAME, **where)
        model: PreTrainedModel = cls._model_class(_model_type(path), str(path)).from_pretrained(name_or_path, **options)
        return model

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> "PreTrainedModel":
        """A new model with random weights.

        Raises:
            ConfigError: a configuration of no model that phonograph has, or one that can't be built.
        """
        model: PreTrainedModel = cls._model_class(config.model_type, type(config).__name__)(config)
        return model

    @classmethod
    def _model_class(cls, model_type: object, origin: str) -> Any:
        models = _family(model_type, origin).models
        if cls.__name__ not in models:
            having = " or ".join(name for name, family in _FAMILIES.items() if cls.__name__ in family.models)
            raise ConfigError(
                f"expected a model_type of {having} for {cls.__name__} in {origin}, got {model_type!r}; "
                f"it has {', '.join(models)}"
            )
        return _class(models[cls.__name__])


class AutoModelForCTC(AutoModel):
    """The family's model with a head for connectionist temporal classification."""


class AutoModelForSpeechSeq2Seq(AutoModel):
    """The family's model that generates text from speech."""


class AutoModelForPreTraining(AutoModel):
    """The family's model with the head that it is pretrained with."""


class AutoModelForAudioClassification(AutoModel):
    """The family's model with a head for one label a clip."""


class AutoModelForAudioFrameClassification(AutoModel):
    """The family's model with a head for labels a frame."""


class AutoModelForAudioXVector(AutoModel):
    """The family's model with a head for one speaker vector a clip."""


class AutoFeatureExtractor:
    """The feature extractor of the family that a checkpoint's `model_type` names."""

    @staticmethod
    def from_pretrained(name_or_path: str | os.PathLike[str], **options: Any) -> "FeatureExtractor":
        """As `from_pretrained` of that class; the settings may also lie in processor_config.json.

        Raises:
            ConfigError: a model_type that phonograph does not have. CheckpointError: nothing found.
        """
        where, _ = hub.split_hub_options(options)
        family = _family_by_files(name_or_path, where)
        extractor: FeatureExtractor = _class(family.feature_extractor).from_pretrained(name_or_path, **options)
        return extractor


class AutoTokenizer:
    """The tokenizer of the family that a checkpoint's `model_type` names."""

    @staticmethod
    def from_pretrained(name_or_path: str | os.PathLike[str], **options: Any) -> "PreTrainedTokenizer":
        """As `from_pretrained` of that class.

        Raises:
            ConfigError: a model_type that phonograph does not have, or one without text. CheckpointError: nothing found.
        """
        where, _ = hub.split_hub_options(options)
        family = _family_by_files(name_or_path, where)
        if family.tokenizer is None:
            having = " or ".join(name for name, other in _FAMILIES.items() if other.tokenizer is not None)
            raise ConfigError(
                f"expected a model_type of {having} for AutoTokenizer, got a model without text in {os.fspath(name_or_path)}; "
                "use AutoFeatureExtractor"
            )
        tokenizer: PreTrainedTokenizer = _class(family.tokenizer).from_pretrained(name_or_path, **options)
        return tokenizer


class AutoProcessor:
    """What turns raw input into model input: the family's processor, as far as the checkpoint has its files."""

    @staticmethod
    def from_pretrained(
        name_or_path: str | os.PathLike[str], **options: Any
    ) -> "Processor[Any, Any] | FeatureExtractor | PreTrainedTokenizer":
        """As `from_pretrained` of that class.

        Returns:
            The family's processor; its feature extractor if the family or the checkpoint has no text; its tokenizer if
            the checkpoint has nothing for audio.

        Raises:
            ConfigError: a model_type that phonograph does not have. CheckpointError: nothing found.
        """
        from phonograph.models.features import PREPROCESSOR_NAME, PROCESSOR_NAME
        from phonograph.models.tokenization import VOCAB_NAME

        where, _ = hub.split_hub_options(options)
        family = _family_by_files(name_or_path, where)
        if family.processor is None or not hub.read_optional_json(name_or_path, VOCAB_NAME, **where):
            return AutoFeatureExtractor.from_pretrained(name_or_path, **options)
        if not any(hub.read_optional_json(name_or_path, name, **where) for name in (PROCESSOR_NAME, PREPROCESSOR_NAME)):
            return AutoTokenizer.from_pretrained(name_or_path, **options)
        processor: Processor[Any, Any] = _class(family.processor).from_pretrained(name_or_path, **options)
        return processor
