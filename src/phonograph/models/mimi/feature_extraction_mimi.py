"""Raw audio to Mimi's inputs: (batch, channels, time) and a mask of the real samples.

    extractor = MimiFeatureExtractor.from_pretrained("kyutai/mimi")
    inputs = extractor(speech.samples, sampling_rate=speech.sampling_rate, return_tensors="pt")
    codes = model.encode(inputs.input_values, inputs.padding_mask).audio_codes

Mimi takes samples as they are, so this only checks, batches and pads; it neither resamples nor normalises.
Its file is that of the ecosystem's codec extractor (`EncodecFeatureExtractor`), the one that Mimi's published
checkpoints name.
"""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from phonograph.errors import ConfigError
from phonograph.models.features import BatchFeature, FeatureExtractor

__all__ = ["MimiFeatureExtractor"]


class MimiFeatureExtractor(FeatureExtractor):
    """Batches raw audio for a codec model.

    Args:
        feature_size: channels, 1 or 2.
        sampling_rate: of the model, in Hz.
        padding_value: what shorter clips are filled up with.
        chunk_length_s: pad or truncate to whole chunks of this many seconds; None keeps lengths as they are.
        overlap: share of a chunk that overlaps the next, from 0 up to 1; needed for `chunk_length_s` to take
            effect.
        kwargs: as for `FeatureExtractor`.

    Raises:
        ConfigError: not 1 or 2 channels, or keywords that `FeatureExtractor` refuses.
    """

    feature_extractor_type = "EncodecFeatureExtractor"
    model_input_names: ClassVar[list[str]] = ["input_values", "padding_mask"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 24000,
        padding_value: float = 0.0,
        chunk_length_s: float | None = None,
        overlap: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        if feature_size not in (1, 2):
            raise ConfigError(f"expected feature_size 1 or 2 (channels), got {feature_size}; pass one of them")
        self.chunk_length_s = chunk_length_s
        self.overlap = overlap

    @property
    def chunk_length(self) -> int | None:
        """Samples in a chunk, or None without chunks."""
        return None if self.chunk_length_s is None else int(self.chunk_length_s * self.sampling_rate)

    @property
    def chunk_stride(self) -> int | None:
        """Samples from the start of one chunk to the next, or None without chunks."""
        if self.chunk_length is None or self.overlap is None:
            return None
        return max(1, int((1.0 - self.overlap) * self.chunk_length))

    def __call__(
        self,
        raw_audio: Any,
        padding: bool | str | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """Check, batch and pad.

        Args:
            raw_audio: one clip, or a list or tuple of clips. A clip is floats (time,) or (channels, time) as
                an array, a tensor, or, for mono, a list of numbers.
            padding: as for `pad`; None means True. May not go with `truncation`, which pads to the longest by
                itself.
            truncation: cut clips at `max_length`, or to whole chunks of the shortest.
            max_length: in samples.
            return_tensors: "np", "pt", or None for a list of arrays.
            sampling_rate: of `raw_audio`, in Hz, checked against the extractor's own if given.

        Returns:
            `input_values` (batch, channels, time), float32, or a list of (channels, time) if `return_tensors`
            is None; and unless padding is False, `padding_mask` (batch, time), int32, 1 for real samples.

        Raises:
            AudioError: another sampling rate, another number of channels, integer samples in an array, NaN or
                infinite samples, or an empty clip.
            ConfigError: `padding` together with `truncation`, or what `pad` refuses.
        """
        self._check_sampling_rate(sampling_rate)
        if padding and truncation:
            raise ConfigError("expected padding or truncation, got both; truncation alone also pads to the longest")
        padding = True if padding is None else padding
        clips = self._clips(raw_audio, self.feature_size)
        lengths = [clip.shape[1] for clip in clips]
        if max_length is None:
            padding, max_length = self._whole_chunks(lengths, padding, truncation)

        names = self.model_input_names
        padded = self.pad(
            # pad() takes time first.
            {names[0]: [clip[0] if self.feature_size == 1 else clip.T for clip in clips]},
            padding=padding,
            max_length=max_length,
            truncation=bool(truncation),
            return_attention_mask=bool(padding),
        )
        batch = BatchFeature({names[0]: [_channels_first(clip) for clip in padded[names[0]]]})
        if padding:
            batch[names[1]] = padded["attention_mask"]
        return batch.convert_to_tensors(return_tensors)

    def _whole_chunks(self, lengths: list[int], padding: bool | str, truncation: bool) -> tuple[bool | str, int | None]:
        """Padding and length that make the clips whole chunks, if there are any."""
        chunk, stride = self.chunk_length, self.chunk_stride
        if chunk is None or stride is None or not (padding or truncation):
            return padding, None
        if truncation:
            return padding, (min(lengths) // stride - 1) * stride + chunk
        return "max_length", (-(-max(lengths) // stride) - 1) * stride + chunk


def _channels_first(clip: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return clip[np.newaxis] if clip.ndim == 1 else np.ascontiguousarray(clip.T)
