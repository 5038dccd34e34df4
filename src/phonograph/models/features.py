"""What the families' feature extractors share: their file, the checking of audio, batches of features, and padding.

    class MimiFeatureExtractor(FeatureExtractor):
        feature_extractor_type = "EncodecFeatureExtractor"
        model_input_names = ["input_values", "padding_mask"]

A feature extractor turns raw audio into a model's inputs. It is all settings and no weights, stored as
preprocessor_config.json in the form that the Hugging Face ecosystem reads and writes. This module knows no
model, and imports torch only to make tensors.
"""

import copy
import json
import os
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from phonograph.errors import AudioError, ConfigError
from phonograph.files import atomic_write, make_folder

if TYPE_CHECKING:
    import torch

__all__ = [
    "PREPROCESSOR_NAME",
    "PROCESSOR_NAME",
    "BatchFeature",
    "Clip",
    "FeatureExtractor",
    "Padding",
    "has_length",
    "padding_strategy",
    "rounded_up",
]

Clip: TypeAlias = npt.NDArray[np.float32]

PREPROCESSOR_NAME = "preprocessor_config.json"
"""File name of a feature extractor's settings inside a checkpoint."""
PROCESSOR_NAME = "processor_config.json"
"""File name of a processor's settings, among which newer checkpoints keep those of its feature extractor."""

_Extractor = TypeVar("_Extractor", bound="FeatureExtractor")


class BatchFeature(UserDict[str, Any]):
    """A model's inputs by name: a dict whose items are attributes too, ready for `model(**batch)`."""

    def __getattr__(self, name: str) -> Any:
        # An object that is being unpickled is asked for attributes before it has any.
        items = vars(self).get("data", {})
        if name in items:
            return items[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}; its items are {sorted(items)}")

    def convert_to_tensors(self, tensor_type: str | None = None) -> "BatchFeature":
        """Make every item an array ("np") or a tensor ("pt"), in place; None changes nothing.

        Returns:
            This object.

        Raises:
            ConfigError: another tensor type, or items of different lengths, which no array can hold.
        """
        if tensor_type is None:
            return self
        if tensor_type not in ("np", "pt"):
            raise ConfigError(f"expected return_tensors among 'np', 'pt' and None, got {tensor_type!r}; pass one of these")
        for name, value in self.data.items():
            self.data[name] = _as_tensor(name, value) if tensor_type == "pt" else _as_array(name, value)
        return self

    def to(
        self,
        device: "torch.device | torch.dtype | str | int | None" = None,
        dtype: "torch.dtype | None" = None,
    ) -> "BatchFeature":
        """Move the tensors to a device, and the floating-point ones to a dtype, in place.

        Arrays, lists and integer dtypes stay as they are.

        Args:
            device: a device or its name, or a dtype as with `torch.Tensor.to`.
            dtype: dtype of the floating-point tensors.

        Returns:
            This object.
        """
        import torch

        if isinstance(device, torch.dtype):
            device, dtype = None, device
        for name, value in self.data.items():
            if isinstance(value, torch.Tensor):
                self.data[name] = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
        return self


@dataclass(frozen=True)
class Padding:
    """How clips become equally long, as for `FeatureExtractor.pad`."""

    padding: bool | str = False
    max_length: int | None = None
    truncation: bool = False
    pad_to_multiple_of: int | None = None
    return_attention_mask: bool | None = None


class FeatureExtractor:
    """Settings of a feature extractor, and their file.

    Args:
        feature_size: values at each time step; channels for raw audio.
        sampling_rate: of the audio that the model was trained on, in Hz.
        padding_value: what shorter clips are filled up with.
        kwargs: `padding_side` ("right" or "left"), `return_attention_mask`, and any other keys of a stored
            file, which are kept as attributes and written back.

    Raises:
        ConfigError: a padding side other than these, or a keyword that is the name of a method or property.
    """

    feature_extractor_type: ClassVar[str]
    """Name of the extractor in the ecosystem, written to the file."""
    model_input_names: ClassVar[list[str]]
    """Names of the model's inputs, the one to be padded first."""

    def __init__(self, feature_size: int, sampling_rate: int, padding_value: float, **kwargs: Any) -> None:
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.padding_value = padding_value
        self.padding_side = kwargs.pop("padding_side", "right")
        self.return_attention_mask = kwargs.pop("return_attention_mask", True)
        if self.padding_side not in ("right", "left"):
            raise ConfigError(f"expected padding_side 'right' or 'left', got {self.padding_side!r}; pass one of them")
        kwargs.pop("feature_extractor_type", None)
        for name, value in kwargs.items():
            if hasattr(type(self), name):
                raise ConfigError(f"expected settings, got {name}={value!r}, which {type(self).__name__} computes; drop it")
            setattr(self, name, value)

    @classmethod
    def from_pretrained(cls: type[_Extractor], name_or_path: str | os.PathLike[str], **kwargs: Any) -> _Extractor:
        """Read the settings of a checkpoint.

        Args:
            name_or_path: a bundled model's name, a folder, or a hub id.
            kwargs: hub options (`phonograph.loading.hub.HUB_OPTIONS`), then as for `from_dict`.

        Raises:
            CheckpointError: no such checkpoint, it has neither processor_config.json with the settings nor
                preprocessor_config.json, or that is not JSON.
        """
        from phonograph.loading.hub import read_json, read_optional_json, resolve_file, split_hub_options

        where, overrides = split_hub_options(kwargs)
        settings = read_optional_json(name_or_path, PROCESSOR_NAME, **where).get("feature_extractor")
        if settings is None:
            settings = read_json(resolve_file(name_or_path, PREPROCESSOR_NAME, **where))
        return cls.from_dict(settings, **overrides)

    @classmethod
    def from_json_file(cls: type[_Extractor], json_file: str | os.PathLike[str]) -> _Extractor:
        """Read the settings from a file.

        Raises:
            CheckpointError: the file is missing or holds no JSON object.
        """
        from phonograph.loading.hub import read_json

        return cls(**read_json(json_file))

    @classmethod
    def from_dict(cls: type[_Extractor], feature_extractor_dict: Mapping[str, Any], **kwargs: Any) -> _Extractor:
        """Build from settings such as those of a stored file.

        Args:
            feature_extractor_dict: settings; unknown keys are kept.
            kwargs: settings that replace those of the dict; keywords that name none are ignored.
        """
        extractor = cls(**feature_extractor_dict)
        known = {name: value for name, value in kwargs.items() if name in vars(extractor)}
        return cls(**{**feature_extractor_dict, **known}) if known else extractor

    def to_dict(self) -> dict[str, Any]:
        """All settings, with the extractor's type, as a stored file holds them."""
        return {**copy.deepcopy(vars(self)), "feature_extractor_type": self.feature_extractor_type}

    def to_json_string(self) -> str:
        """The text of a stored file."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write the settings to a file.

        Raises:
            OutputError: the place can't be written to.
        """
        with atomic_write(json_file_path) as file:
            file.write(self.to_json_string().encode())

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write preprocessor_config.json into a folder, which is made if need be; returns the paths written.

        Raises:
            OutputError: the folder can't be made or written to.
        """
        make_folder(save_directory)
        path = os.path.join(save_directory, PREPROCESSOR_NAME)
        self.to_json_file(path)
        return [path]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def pad(
        self,
        processed_features: "Mapping[str, Any] | Sequence[Mapping[str, Any]]",
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Make clips of different lengths equally long.

        Args:
            processed_features: a mapping from names to one array per clip, or a mapping per clip. The first
                of `model_input_names` is padded: each array (time,) or (time, feature_size).
            padding: True or "longest" pads to the longest clip, "max_length" to `max_length`, False or
                "do_not_pad" not at all.
            max_length: in time steps; longer clips stay as they are unless `truncation` is set.
            truncation: cut clips at `max_length` first, on the right.
            pad_to_multiple_of: round lengths up to a multiple of this.
            return_attention_mask: add an "attention_mask" (batch, time), int32, 1 for real steps; None takes
                the extractor's own setting.
            return_tensors: "np" or "pt"; None gives tensors for tensors and arrays for all else.

        Returns:
            The padded batch (batch, time[, feature_size]), float64 made float32, with all other items as they
            came. Where lengths still differ, lists of arrays if `return_tensors` is None.

        Raises:
            AudioError: no clips, or none under the expected name.
            ConfigError: an unknown padding, a missing or non-positive `max_length`, or unequal lengths that
                were to become one tensor.
        """
        batch = _collated(processed_features)
        name = self.model_input_names[0]
        if name not in batch:
            raise AudioError(f"expected features with {name!r}, got {sorted(batch)}; pass what the extractor returned")
        if not len(batch[name]):
            raise AudioError(f"expected at least one clip in {name!r}, got none; pass a non-empty batch")
        strategy = padding_strategy(padding, truncation, max_length)
        as_tensors = return_tensors or ("pt" if _is_tensor(batch[name][0]) else None)
        clips = [_as_float32(np.asarray(clip)) for clip in batch[name]]
        masks = [np.asarray(mask) for mask in batch.get("attention_mask", ())]
        masks = masks or [np.ones(len(clip), dtype=np.int32) for clip in clips]

        length = rounded_up(max_length, pad_to_multiple_of)
        if truncation:
            clips, masks = [clip[:length] for clip in clips], [mask[:length] for mask in masks]
        if strategy == "longest":
            length = rounded_up(max(len(clip) for clip in clips), pad_to_multiple_of)
        if strategy != "do_not_pad":
            clips = [self._padded(clip, length, self.padding_value) for clip in clips]
            masks = [self._padded(mask, length, 0) for mask in masks]

        batch[name] = clips
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            batch["attention_mask"] = masks
        if as_tensors is None:
            return BatchFeature({key: _stacked_if_equal(value) for key, value in batch.items()})
        return BatchFeature(batch).convert_to_tensors(as_tensors)

    def _normalized_batch(
        self,
        clips: Sequence[npt.NDArray[Any]],
        normalize: Callable[[list[npt.NDArray[Any]]], list[Clip]],
        how: Padding,
        return_tensors: str | None,
    ) -> BatchFeature:
        """Cut clips, normalise what is left of each by itself, then pad: so that padding changes no clip."""
        name, multiple = self.model_input_names[0], how.pad_to_multiple_of
        cut = self.pad({name: clips}, False, how.max_length, how.truncation, multiple, return_attention_mask=False)
        batch = self.pad(
            {name: normalize(list(cut[name]))},
            how.padding,
            how.max_length,
            pad_to_multiple_of=multiple,
            return_attention_mask=how.return_attention_mask,
        )
        return BatchFeature({key: list(values) for key, values in batch.items()}).convert_to_tensors(return_tensors)

    def _check_sampling_rate(self, sampling_rate: int | None) -> None:
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise AudioError(
                f"expected {self.sampling_rate} Hz audio, got {sampling_rate} Hz; resample it first: "
                f"phonograph.audio.load(path, sampling_rate={self.sampling_rate})"
            )

    def _mono_clips(self, raw_audio: Any) -> list[Clip]:
        """Clips (time,) of one clip or several, which may be the rows of one array."""
        if getattr(raw_audio, "ndim", 0) == 2:
            if raw_audio.shape[1] <= 2 < raw_audio.shape[0]:
                raise AudioError(_shape_message(tuple(raw_audio.shape), channels=1))
            raw_audio = list(raw_audio)
        return [clip[0] for clip in self._clips(raw_audio, channels=1)]

    def _clips(self, raw_audio: Any, channels: int) -> list[Clip]:
        """Clips (channels, time) of one clip, or of a list or tuple of clips."""
        is_batch = isinstance(raw_audio, (list, tuple)) and len(raw_audio) > 0 and has_length(raw_audio[0])
        return [self._clip(clip, channels) for clip in (raw_audio if is_batch else [raw_audio])]

    def _clip(self, values: Any, channels: int) -> Clip:
        try:
            clip = np.asarray(values)
            if isinstance(values, (list, tuple)):
                clip = clip.astype(np.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise AudioError(
                f"expected a clip as numbers, got a {type(values).__name__} that makes no array; "
                "pass a float array, or tensor.detach().float()"
            ) from error
        if clip.dtype.kind != "f":
            raise AudioError(
                f"expected float samples in [-1, 1], got {clip.dtype}; divide integers by their full scale (int16: 32768)"
            )
        if clip.ndim == 1 and channels == 1:
            clip = clip[np.newaxis]
        if clip.ndim != 2 or clip.shape[0] != channels:
            raise AudioError(_shape_message(clip.shape, channels))
        if not clip.shape[1]:
            raise AudioError("expected at least one sample in each clip, got none; drop empty clips")
        finite = np.isfinite(clip)
        if not finite.all():
            first = int(finite.all(axis=0).argmin()) / self.sampling_rate
            raise AudioError(
                f"expected finite samples, got {int((~finite).sum())} NaN or infinite, "
                f"the first at {first:.3f} s; repair the audio"
            )
        return clip.astype(np.float32, copy=False)

    def _padded(self, values: npt.NDArray[Any], length: int | None, fill: float) -> npt.NDArray[Any]:
        assert length is not None
        missing = max(length - len(values), 0)
        ends = (0, missing) if self.padding_side == "right" else (missing, 0)
        return np.pad(values, [ends] + [(0, 0)] * (values.ndim - 1), constant_values=fill)


def has_length(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0


def _shape_message(shape: tuple[int, ...], channels: int) -> str:
    kind = "mono audio (time,) or (1, time)" if channels == 1 else "stereo audio (2, time)"
    hint = "pass several clips as a list of arrays"
    if len(shape) == 2 and shape[1] == channels:
        hint = "pass its transpose"
    elif channels == 1 and len(shape) == 2 and 2 in shape:
        hint = "average its channels, or pass two clips as a list"
    return f"expected {kind}, got shape {shape}; {hint}"


def _collated(features: "Mapping[str, Any] | Sequence[Mapping[str, Any]]") -> dict[str, Any]:
    if isinstance(features, Mapping):
        return dict(features)
    if not len(features):
        raise AudioError("expected at least one clip, got none; pass a non-empty batch")
    return {name: [clip[name] for clip in features] for name in features[0]}


def padding_strategy(padding: bool | str, truncation: bool, max_length: int | None) -> str:
    strategy = {True: "longest", False: "do_not_pad"}[padding] if isinstance(padding, bool) else padding
    if strategy not in ("longest", "max_length", "do_not_pad"):
        raise ConfigError(
            f"expected padding as a bool, 'longest', 'max_length' or 'do_not_pad', got {padding!r}; pass one of these"
        )
    if max_length is None and (truncation or strategy == "max_length"):
        option = "truncation=True" if truncation else "padding='max_length'"
        raise ConfigError(f"expected a max_length with {option}, got none; pass max_length in samples")
    if max_length is not None and max_length <= 0:
        raise ConfigError(f"expected a positive max_length, got {max_length}; pass a length above 0")
    return strategy


def rounded_up(length: int | None, multiple: int | None) -> int | None:
    return length if length is None or not multiple else -(-length // multiple) * multiple


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch"


def _as_float32(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values.astype(np.float32) if values.dtype == np.float64 else values


def _stacked_if_equal(values: Any) -> Any:
    if not isinstance(values, (list, tuple)):
        return np.asarray(values)
    arrays = [np.asarray(value) for value in values]
    return np.stack(arrays) if len({array.shape for array in arrays}) == 1 else arrays


def _as_array(name: str, values: Any) -> npt.NDArray[Any]:
    stacked = _stacked_if_equal(values)
    if isinstance(stacked, list):
        shapes = ", ".join(str(shape) for shape in sorted({value.shape for value in stacked})[:4])
        raise ConfigError(
            f"expected {name} of one length to make one array, got shapes {shapes}; "
            "pass padding=True, or return_tensors=None for a list"
        )
    return np.asarray(stacked)


def _as_tensor(name: str, values: Any) -> "torch.Tensor":
    import torch

    return values if isinstance(values, torch.Tensor) else torch.from_numpy(_as_array(name, values))
