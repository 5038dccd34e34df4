"""Raw audio to Wav2Vec2's inputs: (batch, time), each clip of zero mean and unit variance, and a mask where models need one.

    extractor = Wav2Vec2FeatureExtractor.from_pretrained("facebook/wav2vec2-base-960h")
    inputs = extractor(speech, sampling_rate=16000, padding=True, return_tensors="pt")
    logits = model(**inputs).logits

A clip is normalised over its own samples, before it is padded, so that in a batch it is what it is alone. Models with group
normalisation were trained on zero padding without a mask; the layer-norm family needs the mask: `return_attention_mask` of a
checkpoint's file says which. Nothing is resampled.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from phonograph.models.features import BatchFeature, FeatureExtractor, Padding

__all__ = ["Wav2Vec2FeatureExtractor"]

_VARIANCE_FLOOR = 1e-7


class Wav2Vec2FeatureExtractor(FeatureExtractor):
    """Normalises and batches mono audio.

    Args:
        feature_size: 1, the channels of raw audio.
        sampling_rate: of the model, in Hz.
        padding_value: what shorter clips are filled up with, after normalisation.
        return_attention_mask: return the mask by default.
        do_normalize: give each clip zero mean and unit variance.
        kwargs: as for `FeatureExtractor`.

    Raises:
        ConfigError: keywords that `FeatureExtractor` refuses.
    """

    feature_extractor_type = "Wav2Vec2FeatureExtractor"
    model_input_names: ClassVar[list[str]] = ["input_values", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        return_attention_mask: bool = False,
        do_normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size, sampling_rate, padding_value, return_attention_mask=return_attention_mask, **kwargs)
        self.do_normalize = do_normalize

    def __call__(
        self,
        raw_speech: Any,
        padding: bool | str = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """Check, cut, normalise and pad.

        Args:
            raw_speech: one clip (time,), or several as a list or tuple of clips or an array (batch, time). Clips are floats
                as arrays, tensors or lists of numbers.
            padding: as for `pad`.
            max_length: in samples.
            truncation: cut clips at `max_length`, before they are normalised.
            pad_to_multiple_of: round lengths up to a multiple of this.
            return_attention_mask: add the mask; None takes the extractor's own setting.
            return_tensors: "np", "pt", or None for lists of arrays.
            sampling_rate: of `raw_speech`, in Hz, checked against the extractor's own if given.

        Returns:
            `input_values` (batch, time), float32, and perhaps `attention_mask` (batch, time), int32, 1 for real samples.

        Raises:
            AudioError: another sampling rate, more than one channel, integer samples in an array, NaN or infinite samples,
                or an empty clip.
            ConfigError: what `pad` refuses.
        """
        self._check_sampling_rate(sampling_rate)
        how = Padding(padding, max_length, truncation, pad_to_multiple_of, return_attention_mask)
        return self._normalized_batch(self._mono_clips(raw_speech), self._normalized, how, return_tensors)

    def _normalized(self, clips: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        return self.zero_mean_unit_var_norm(clips) if self.do_normalize else clips

    @staticmethod
    def zero_mean_unit_var_norm(
        input_values: Sequence[npt.NDArray[Any]],
        attention_mask: Sequence[npt.NDArray[Any]] | None = None,
        padding_value: float = 0.0,
    ) -> list[npt.NDArray[Any]]:
        """Each clip less its mean, over the root of its variance plus 1e-7.

        Args:
            input_values: clips (time,).
            attention_mask: (time,) for each clip, 1 for real samples, which alone count; None means all are real.
            padding_value: what the other samples become.
        """
        if attention_mask is None:
            return [_normalized(clip) for clip in input_values]
        normalized = []
        for clip, mask in zip(input_values, attention_mask, strict=True):
            real = np.asarray(mask, dtype=bool)
            result = np.full_like(clip, padding_value)
            result[real] = _normalized(clip[real])
            normalized.append(result)
        return normalized


def _normalized(clip: npt.NDArray[Any]) -> npt.NDArray[Any]:
    result: npt.NDArray[Any] = (clip - clip.mean()) / np.sqrt(clip.var() + _VARIANCE_FLOOR)
    return result
