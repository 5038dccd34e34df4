"""Raw audio to Speech2Text's inputs: normalised log-mel features (batch, frames, bands) and a mask of the real frames.

    extractor = Speech2TextFeatureExtractor.from_pretrained("facebook/s2t-small-librispeech-asr")
    inputs = extractor(speech, sampling_rate=16000, padding=True, return_tensors="pt")
    ids = model.generate(**inputs)

Features are Kaldi's filterbank (`phonograph.audio.fbank`) and each utterance's own mean and variance, taken before padding, so
that a clip in a batch is what it is alone. The filterbank runs in float64: bands that are 80 dB and more below the loudest are
lost in float32's rounding, in Kaldi's programs as well. Nothing is resampled.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from phonograph.audio import fbank
from phonograph.errors import AudioError
from phonograph.models.features import BatchFeature, Clip, FeatureExtractor, Padding

__all__ = ["Speech2TextFeatureExtractor"]

_FULL_SCALE = 2.0**15


class Speech2TextFeatureExtractor(FeatureExtractor):
    """Turns mono audio into batches of normalised log-mel features.

    Args:
        feature_size: values at each frame, as many as `num_mel_bins`.
        sampling_rate: of the model, in Hz.
        num_mel_bins: bands of the filterbank.
        padding_value: what shorter utterances are filled up with, after normalisation.
        dither: standard deviation of noise added to the audio, in steps of 16-bit audio.
        do_ceptral_normalize: normalise each band over the utterance.
        normalize_means: to zero mean.
        normalize_vars: to unit variance.
        kwargs: as for `FeatureExtractor`.

    Raises:
        ConfigError: keywords that `FeatureExtractor` refuses.
    """

    feature_extractor_type = "Speech2TextFeatureExtractor"
    model_input_names: ClassVar[list[str]] = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16000,
        num_mel_bins: int = 80,
        padding_value: float = 0.0,
        dither: float = 0.0,
        do_ceptral_normalize: bool = True,
        normalize_means: bool = True,
        normalize_vars: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.num_mel_bins = num_mel_bins
        self.dither = dither
        self.do_ceptral_normalize = do_ceptral_normalize
        self.normalize_means = normalize_means
        self.normalize_vars = normalize_vars

    def __call__(
        self,
        raw_speech: Any,
        padding: bool | str = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
        return_attention_mask: bool | None = None,
    ) -> BatchFeature:
        """Check the audio, compute its features, cut, normalise and pad them.

        Args:
            raw_speech: one clip (time,), or several as a list or tuple of clips or an array (batch, time). Clips are floats
                in [-1, 1] as arrays, tensors or lists of numbers.
            padding: as for `pad`.
            max_length: in frames.
            truncation: cut utterances at `max_length`, before they are normalised.
            pad_to_multiple_of: round lengths up to a multiple of this.
            return_tensors: "np", "pt", or None for lists of arrays.
            sampling_rate: of `raw_speech`, in Hz, checked against the extractor's own if given.
            return_attention_mask: add the mask; None takes the extractor's own setting.

        Returns:
            `input_features` (batch, frames, num_mel_bins), float32, and `attention_mask` (batch, frames), int32, 1 for real
            frames.

        Raises:
            AudioError: another sampling rate, more than one channel, integer samples in an array, NaN or infinite samples,
                or a clip shorter than a frame of 25 ms.
            ConfigError: what `pad` refuses.
        """
        self._check_sampling_rate(sampling_rate)
        how = Padding(padding, max_length, truncation, pad_to_multiple_of, return_attention_mask)
        features = [self._features(clip) for clip in self._mono_clips(raw_speech)]
        return self._normalized_batch(features, self.normalize, how, return_tensors)

    def _features(self, clip: Clip) -> Clip:
        """Log-mel features (frames, num_mel_bins) of (time,)."""
        shortest = fbank.frame_samples(self.sampling_rate)
        if len(clip) < shortest:
            raise AudioError(
                f"expected at least {shortest} samples (25 ms at {self.sampling_rate} Hz) in each clip, got {len(clip)}; "
                "drop clips this short"
            )
        samples = torch.from_numpy(clip.astype(np.float64) * _FULL_SCALE)
        return fbank.fbank(samples, self.sampling_rate, self.num_mel_bins, dither=self.dither).float().numpy()

    def normalize(
        self, input_features: Sequence[npt.NDArray[Any]], attention_mask: Sequence[npt.NDArray[Any]] | None = None
    ) -> list[Clip]:
        """Each utterance's features, normalised as the settings say.

        Args:
            input_features: (frames, bands) for each utterance.
            attention_mask: (frames,) for each, 1 for the real frames, which come first; None means that all are real.
        """
        if not self.do_ceptral_normalize:
            return list(input_features)
        masks = attention_mask if attention_mask is not None else [np.ones(len(features)) for features in input_features]
        return [
            self.utterance_cmvn(features, int(np.sum(mask)), self.normalize_means, self.normalize_vars, self.padding_value)
            for features, mask in zip(input_features, masks, strict=True)
        ]

    @staticmethod
    def utterance_cmvn(
        x: npt.NDArray[Any],
        input_length: int,
        normalize_means: bool = True,
        normalize_vars: bool = True,
        padding_value: float = 0.0,
    ) -> Clip:
        """One utterance's features (frames, bands), normalised over its first `input_length` frames, the rest refilled.

        Bands that never change become 0.
        """
        normalized = fbank.utterance_cmvn(
            torch.tensor(x)[None],
            torch.tensor([input_length]),
            normalize_means=normalize_means,
            normalize_vars=normalize_vars,
            padding_value=padding_value,
        )
        return normalized[0].float().numpy()
