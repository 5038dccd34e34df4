"""A feature extractor and a tokenizer as one: what a model that hears and writes takes and gives.

    class Wav2Vec2Processor(Processor):
        feature_extractor_class = Wav2Vec2FeatureExtractor
        tokenizer_class = Wav2Vec2CTCTokenizer

A processor hands audio to the one and text to the other. Its files are theirs, and processor_config.json, in which newer
checkpoints keep the feature extractor's settings. This module knows no model.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from phonograph.errors import ConfigError
from phonograph.files import atomic_write
from phonograph.models.features import PROCESSOR_NAME, BatchFeature, FeatureExtractor
from phonograph.models.tokenization import Ids, PreTrainedTokenizer

__all__ = ["Processor"]

_TEXT_OPTIONS = ("add_special_tokens",)
_SHARED_OPTIONS = ("padding", "max_length", "truncation", "pad_to_multiple_of", "return_attention_mask", "return_tensors")

_Processor = TypeVar("_Processor", bound="Processor[Any, Any]")
_E = TypeVar("_E", bound=FeatureExtractor)
_T = TypeVar("_T", bound=PreTrainedTokenizer)


class Processor(Generic[_E, _T]):
    """Base of the families' processors.

    Args:
        feature_extractor: for audio.
        tokenizer: for text.

    Raises:
        ConfigError: one of another class, such as the two in the wrong order.
    """

    feature_extractor_class: ClassVar[type[Any]]
    tokenizer_class: ClassVar[type[Any]]

    def __init__(self, feature_extractor: _E, tokenizer: _T) -> None:
        for part, kind in ((feature_extractor, self.feature_extractor_class), (tokenizer, self.tokenizer_class)):
            if not isinstance(part, kind):
                raise ConfigError(
                    f"expected a {self.feature_extractor_class.__name__} and a {self.tokenizer_class.__name__}, got a "
                    f"{type(part).__name__} for the {kind.__name__}; pass feature_extractor=... and tokenizer=..."
                )
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer

    def __call__(
        self,
        audio: Any = None,
        text: str | Sequence[str] | None = None,
        sampling_rate: int | None = None,
        **options: Any,
    ) -> BatchFeature:
        """A model's inputs from audio, its labels from text, or both.

        Args:
            audio: one clip or several, as the feature extractor takes them.
            text: one text or several.
            sampling_rate: of `audio`, in Hz, checked against the feature extractor's own if given.
            options: padding, max_length, truncation, pad_to_multiple_of, return_attention_mask and return_tensors go to both;
                add_special_tokens to the tokenizer; other options of the feature extractor to it. `audio_kwargs` and
                `text_kwargs` are mappings of options for one alone.

        Returns:
            What the feature extractor returns, with `labels` (batch, length) if there is text. What the tokenizer returns for
            text alone.

        Raises:
            ConfigError: neither audio nor text, or what the two refuse.
            AudioError: what the feature extractor refuses.
        """
        only_audio, only_text = dict(options.pop("audio_kwargs", {})), dict(options.pop("text_kwargs", {}))
        for_text = {name: options[name] for name in (*_SHARED_OPTIONS, *_TEXT_OPTIONS) if name in options}
        for_audio = {name: value for name, value in options.items() if name not in _TEXT_OPTIONS}
        if audio is None:
            if text is None:
                raise ConfigError("expected audio, text or both, got neither; pass audio=... or text=...")
            return self.tokenizer(text, **{**options, **only_text})
        extractor: Any = self.feature_extractor
        inputs: BatchFeature = extractor(audio, sampling_rate=sampling_rate, **{**for_audio, **only_audio})
        if text is not None:
            inputs["labels"] = self.tokenizer(text, **{**for_text, **only_text})["input_ids"]
        return inputs

    def pad(
        self,
        input_features: "Mapping[str, Any] | Sequence[Mapping[str, Any]] | None" = None,
        labels: "Mapping[str, Any] | Sequence[Mapping[str, Any]] | None" = None,
        **options: Any,
    ) -> BatchFeature:
        """Make a batch of inputs, of labels, or of both.

        Args:
            input_features: what the feature extractor returned, as its `pad` takes it.
            labels: what the tokenizer returned, as its `pad` takes it.
            options: of these two methods.

        Returns:
            The padded inputs, with `labels` (batch, length) if there are both; the padded `input_ids` and `attention_mask` for
            labels alone.

        Raises:
            ConfigError: neither, or what the two methods refuse.
        """
        if input_features is None:
            if labels is None:
                raise ConfigError("expected input features, labels or both, got neither; pass labels=... for labels alone")
            return self.tokenizer.pad(labels, **options)
        inputs = self.feature_extractor.pad(input_features, **options)
        if labels is not None:
            inputs["labels"] = self.tokenizer.pad(labels, **options)["input_ids"]
        return inputs

    def decode(self, token_ids: Ids, *arguments: Any, **options: Any) -> Any:
        """As the tokenizer's `decode`."""
        return self.tokenizer.decode(token_ids, *arguments, **options)

    def batch_decode(self, sequences: Ids, *arguments: Any, **options: Any) -> Any:
        """As the tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(sequences, *arguments, **options)

    @classmethod
    def from_pretrained(cls: type[_Processor], name_or_path: str | os.PathLike[str], **kwargs: Any) -> _Processor:
        """Read a checkpoint's feature extractor and tokenizer.

        Args:
            name_or_path: a bundled model's name, a folder, or a hub id.
            kwargs: hub options (`phonograph.loading.hub.HUB_OPTIONS`), and settings of either that replace the stored ones.

        Raises:
            CheckpointError: no such checkpoint, or files are missing or damaged.
            ConfigError: settings that do not fit one another.
        """
        tokenizer = cls.tokenizer_class.from_pretrained(name_or_path, **kwargs)
        return cls(cls.feature_extractor_class.from_pretrained(name_or_path, **kwargs), tokenizer)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write the files of both, and processor_config.json, into a folder; returns the paths written.

        Raises:
            OutputError: the folder can't be made or written to.
        """
        paths = [*self.feature_extractor.save_pretrained(save_directory), *self.tokenizer.save_pretrained(save_directory)]
        settings = {"feature_extractor": self.feature_extractor.to_dict(), "processor_class": type(self).__name__}
        path = os.path.join(save_directory, PROCESSOR_NAME)
        with atomic_write(path) as file:
            file.write((json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())
        return [*paths, path]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.feature_extractor!r}, {self.tokenizer!r})"
