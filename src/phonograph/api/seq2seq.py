"""Speech to text by an encoder-decoder: clips in batches, long recordings in windows cut where it is quiet.

It joins a model, its processor and phonograph.decoding, and reads no files.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from phonograph.api.inputs import BlocksAgain, Progress
from phonograph.api.windows import Window, WindowPlan, windows_of
from phonograph.audio import Audio
from phonograph.audio.fbank import frame_samples
from phonograph.decoding.transcript import Alternative, Segment, Transcript
from phonograph.errors import ConfigError
from phonograph.models.speech_to_text.modeling_speech_to_text import Speech2TextForConditionalGeneration
from phonograph.models.speech_to_text.processing_speech_to_text import Speech2TextProcessor

__all__ = ["Seq2SeqRecognizer"]

_WINDOW_SECONDS, _SEARCH_SECONDS = 20.0, 6.0
_HOP_SECONDS = 0.01
_MOST_PADDING = 0.5
"""Of a batch's longest item: the decoder, which takes most of the time, computes no padding."""
_TARGET_IN_NAME = re.compile(r"mustc-en-([a-z]{2})-st$")


class Seq2SeqRecognizer:
    """A model that generates text and its processor, ready to turn mono audio at `sampling_rate` into transcripts.

    Attributes:
        model: it decides device and dtype.
        sampling_rate: of the audio it takes, in Hz.
        shortest_samples: what a frame of features is computed from.
        one_pass_seconds: longer recordings go through window by window.
        most_padding: share of a batch's longest item that others may lack.
        language: what it writes; None where the checkpoint does not say.
    """

    most_padding = _MOST_PADDING

    def __init__(self, model: Speech2TextForConditionalGeneration, processor: Speech2TextProcessor) -> None:
        self.model = model
        self._processor = processor
        self.sampling_rate: int = processor.feature_extractor.sampling_rate
        self.shortest_samples = frame_samples(self.sampling_rate)
        named = _TARGET_IN_NAME.search(model.config.name_or_path)
        self.language: str | None = processor.tokenizer.tgt_lang or (named[1] if named else None)
        self._own_language = self.language
        longest = model.config.max_source_positions * _HOP_SECONDS
        self.one_pass_seconds = min(_WINDOW_SECONDS + _SEARCH_SECONDS, longest)
        search = min(_SEARCH_SECONDS, longest / 4)
        step = round(_HOP_SECONDS * self.sampling_rate)
        self._plan = WindowPlan.in_seconds(
            self.sampling_rate, step, core=self.one_pass_seconds - search, search=search, context=0.0
        )

    @property
    def languages(self) -> tuple[str, ...]:
        """What it can be told to write; none where there is no choice."""
        return tuple(self._processor.tokenizer.langs)

    def set_language(self, language: str | None) -> None:
        """Choose the language that is written; None is the checkpoint's own.

        Raises:
            ConfigError: a language that the checkpoint lacks.
        """
        wanted = self._own_language if language is None else language
        if self.languages:
            assert wanted is not None
            self._processor.tokenizer.tgt_lang = wanted
        elif wanted != self.language:
            its = "a language that it does not name" if self.language is None else self.language
            raise ConfigError(
                f"expected the one language of this checkpoint, which is {its}, got {language!r}; leave the language out, or "
                "pass a checkpoint of several languages"
            )
        self.language = wanted

    def check(self, settings: Mapping[str, Any] | None) -> None:
        """Refuse settings that can't be generated with.

        Raises:
            ConfigError: a setting of another name or value, or targets longer than the model has positions for.
        """
        self.model.generation_config.options(self.model.config, dict(settings or {}))

    def recognize(self, clips: Sequence[Audio], settings: Mapping[str, Any] | None) -> list[Transcript]:
        """What is said in each clip; `settings` win over those of the checkpoint's generation_config.json."""
        found = self._texts(clips, settings)
        return [
            Transcript(
                texts[0].text,
                (Segment(texts[0].text, 0.0, clip.duration_seconds),) if texts[0].text else (),
                self.language,
                clip.duration_seconds,
                texts if len(texts) > 1 else (),
            )
            for clip, texts in zip(clips, found, strict=True)
        ]

    def recognize_long(
        self, blocks: BlocksAgain, settings: Mapping[str, Any] | None, batch_size: int, on_progress: Progress
    ) -> Transcript:
        """The same for a recording of any length: a segment for each window."""
        segments: list[Segment] = []
        seconds = 0.0
        windows = windows_of(blocks(), self._plan)
        while batch := list(islice(windows, batch_size)):
            spoken = [window for window in batch if window.samples.min() < window.samples.max()]
            found = self._texts([Audio(window.samples, self.sampling_rate) for window in spoken], settings) if spoken else []
            segments += [self._segment(window, texts[0].text) for window, texts in zip(spoken, found, strict=True)]
            done = (batch[-1].core_end - batch[0].core_start) / self.sampling_rate
            seconds += done
            on_progress(done)
        kept = tuple(segment for segment in segments if segment.text)
        return Transcript(" ".join(segment.text for segment in kept), kept, self.language, seconds)

    def _segment(self, window: Window, text: str) -> Segment:
        return Segment(text, window.core_start / self.sampling_rate, window.core_end / self.sampling_rate)

    @torch.inference_mode()
    def _texts(self, clips: Sequence[Audio], settings: Mapping[str, Any] | None) -> list[tuple[Alternative, ...]]:
        """The hypotheses for each clip, best first."""
        inputs = self._processor(
            [clip.samples[0] for clip in clips], sampling_rate=self.sampling_rate, padding=True, return_tensors="pt"
        )
        mask = inputs.attention_mask
        codes = self._processor.tokenizer.lang_code_to_id
        chosen = {"forced_bos_token_id": codes[self.language]} if self.language in codes else {}
        generated = self.model.generate_hypotheses(
            inputs.input_features.to(self.model.device, self.model.dtype),
            None if bool(mask.all()) else mask.to(self.model.device),
            **{**chosen, **(settings or {})},
        )
        return [
            tuple(
                Alternative(self._processor.decode(hypothesis.ids, skip_special_tokens=True), hypothesis.score)
                for hypothesis in hypotheses
            )
            for hypotheses in generated.hypotheses
        ]
