"""Speech to text by a model with a CTC head: clips in batches, long recordings window by window.

It joins a model, its processor and phonograph.decoding, and reads no files.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phonograph.api.inputs import BlocksAgain, Progress
from phonograph.api.windows import WindowPlan, windows_of
from phonograph.audio import Audio
from phonograph.decoding.align import align_text, words_from_tokens
from phonograph.decoding.ctc import BeamOptions, BestPath, CTCDecoder, best_path, collapse
from phonograph.decoding.transcript import Alternative, Transcript, Word, segments_from_words
from phonograph.decoding.vocabulary import TokenSpan, Vocabulary
from phonograph.errors import ConfigError, PhonographError
from phonograph.models.wav2vec2.features_wav2vec2 import PatchSums
from phonograph.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForCTC
from phonograph.models.wav2vec2.processing_wav2vec2 import Wav2Vec2Processor
from phonograph.nn.masks import inside

__all__ = ["CTCRecognizer", "Levels", "Scaling"]

_Samples = npt.NDArray[np.float32]

_WINDOW_SECONDS, _SEARCH_SECONDS, _CONTEXT_SECONDS = 30.0, 10.0, 5.0
_MOST_PADDING = {"cpu": 0.0}
_MOST_PADDING_ELSEWHERE = 0.25
# Padding is computed like speech, and a processor has nothing to gain from a batch that would make up for it.


@dataclass(frozen=True)
class Scaling:
    """What every part of a recording is shifted and scaled by, so that it is as the whole would be."""

    mean: float
    deviation: float

    def apply(self, samples: _Samples) -> _Samples:
        """Samples (time,) of any part of the recording."""
        scaled: _Samples = (samples - np.float32(self.mean)) / np.float32(self.deviation)
        return scaled


class Levels:
    """Mean and variance of all the samples that pass by."""

    def __init__(self) -> None:
        self._count, self._total, self._squares = 0, 0.0, 0.0

    def watched(self, blocks: Iterable[Audio]) -> Iterator[Tensor]:
        """The samples (1, time) of mono blocks, taken into account as they pass."""
        for block in blocks:
            samples = block.samples[0].astype(np.float64)
            self._count += len(samples)
            self._total += float(samples.sum())
            self._squares += float(np.square(samples).sum())  # a product would wake the threads of another BLAS
            yield torch.from_numpy(block.samples)

    @property
    def scaling(self) -> Scaling:
        """To zero mean and unit variance of what has passed."""
        mean = self._total / self._count
        return Scaling(mean, float(np.sqrt(max(self._squares / self._count - mean * mean, 0.0) + 1e-7)))


class CTCRecognizer:
    """A model with a CTC head and its processor, ready to turn mono audio at `sampling_rate` into transcripts.

    Attributes:
        model: it decides device and dtype.
        vocabulary: what its outputs stand for.
        sampling_rate: of the audio it takes, in Hz.
        frame_seconds: time from one output to the next.
        shortest_samples: what one output is computed from.
        one_pass_seconds: longer recordings go through window by window.
        most_padding: share of a batch's longest item that others may lack.
    """

    one_pass_seconds = _WINDOW_SECONDS + _SEARCH_SECONDS

    def __init__(self, model: Wav2Vec2ForCTC, processor: Wav2Vec2Processor) -> None:
        config = model.config
        self.model = model
        self._processor = processor
        self.most_padding = _MOST_PADDING.get(model.device.type, _MOST_PADDING_ELSEWHERE)
        self.sampling_rate: int = processor.feature_extractor.sampling_rate
        self._step_samples: int = config.inputs_to_logits_ratio
        if config.add_adapter:
            self._step_samples *= config.adapter_stride**config.num_adapter_layers
        self.frame_seconds = self._step_samples / self.sampling_rate
        self._plan = WindowPlan.in_seconds(
            self.sampling_rate, self._step_samples, core=_WINDOW_SECONDS, search=_SEARCH_SECONDS, context=_CONTEXT_SECONDS
        )
        self.shortest_samples: int = model.wav2vec2.feature_extractor.receptive_field
        self.vocabulary = _vocabulary(processor, model.lm_head.out_features)
        self._own_language = self.language
        self._last_decoder: CTCDecoder | None = None

    @property
    def language(self) -> str | None:
        """The language set, of a model of many."""
        language: str | None = self._processor.tokenizer.target_lang
        return language

    def set_language(self, language: str | None) -> None:
        """Change the language of a model of many, its adapters, its head and its vocabulary; None is the checkpoint's own.

        Raises:
            ConfigError, CheckpointError: a language that the checkpoint lacks; nothing changes then.
        """
        wanted, before = self._own_language if language is None else language, self.language
        if wanted is None or wanted == before:
            return
        tokenizer = self._processor.tokenizer
        tokenizer.set_target_lang(wanted)
        try:
            self.model.load_adapter(wanted)
        except PhonographError:
            assert before is not None
            tokenizer.set_target_lang(before)
            raise
        self.vocabulary = _vocabulary(self._processor, self.model.lm_head.out_features)

    def check(self, beam: BeamOptions | None) -> None:
        """Refuse options that can't be decoded with.

        Raises:
            ConfigError: a language model or words that the vocabulary can't spell.
        """
        if beam is not None:
            self._decoder(beam)

    def recognize(self, clips: Sequence[Audio], beam: BeamOptions | None) -> list[Transcript]:
        """What is said in each clip, decoded greedily unless a beam search is asked for."""
        outputs = self.log_probs(clips)
        return [
            replace(self._decoded(iter([frames]), beam), duration_seconds=clip.duration_seconds)
            for clip, frames in zip(clips, outputs, strict=True)
        ]

    def recognize_long(
        self, blocks: BlocksAgain, beam: BeamOptions | None, batch_size: int, on_progress: Progress
    ) -> Transcript:
        """The same for a recording of any length, window by window."""
        elapsed = _Elapsed(on_progress)
        transcript = self._decoded(self.long_log_probs(blocks, batch_size, elapsed), beam)
        return replace(transcript, duration_seconds=elapsed.seconds)

    def align(self, blocks: BlocksAgain, text: str, on_progress: Progress) -> Transcript:
        """When each word of a text is spoken."""
        elapsed = _Elapsed(on_progress)
        frames = torch.cat(list(self.long_log_probs(blocks, 1, elapsed)))
        words = align_text(frames, text, self.vocabulary, self.frame_seconds)
        return replace(self._transcript(words), duration_seconds=elapsed.seconds)

    # Outputs of the model

    def log_probs(self, clips: Sequence[Audio]) -> list[Tensor]:
        """Log-probabilities (frames, vocabulary), float32, of each clip: those that it has alone."""
        scaled = []
        for clip in clips:
            levels = Levels()
            list(levels.watched([clip]))
            scaled.append(self._scaling(levels).apply(clip.samples[0]))
        return self._log_probs(scaled)

    def long_log_probs(self, blocks: BlocksAgain, batch_size: int, on_progress: Progress) -> Iterator[Tensor]:
        """The same for a recording of any length, piece by piece.

        Each window is scaled, and normed over time, as the whole is, and its frames lie where they do in one pass.
        """
        levels = Levels()
        sums = self.model.wav2vec2.feature_extractor.recording_sums(levels.watched(blocks()))
        scaling = self._scaling(levels)
        if sums is not None:
            sums = sums.scaled(scaling.mean, scaling.deviation).to(self.model.device)
        windows = windows_of(blocks(), self._plan)
        together = batch_size if self.most_padding else 1
        while batch := list(islice(windows, together)):
            outputs = self._log_probs([scaling.apply(window.samples) for window in batch], sums)
            for window, frames in zip(batch, outputs, strict=True):
                first = (window.core_start - window.start) // self._step_samples
                last = (window.core_end - window.start) // self._step_samples
                is_last = window.start + len(window.samples) == window.core_end
                yield frames[first:] if is_last else frames[first:last]
                on_progress((window.core_end - window.core_start) / self.sampling_rate)

    def _scaling(self, levels: Levels) -> Scaling:
        return levels.scaling if self._processor.feature_extractor.do_normalize else Scaling(0.0, 1.0)

    @torch.inference_mode()
    def _log_probs(self, clips: Sequence[_Samples], sums: PatchSums | None = None) -> list[Tensor]:
        lengths = torch.tensor([len(clip) for clip in clips])
        frames = self.model._get_feat_extract_output_lengths(lengths).tolist()
        padded = torch.zeros(len(clips), int(lengths.max()))
        for row, clip in zip(padded, clips, strict=True):
            row[: len(clip)] = torch.from_numpy(clip)
        mask = inside(lengths, padded.shape[1])
        device = self.model.device
        output = self.model(
            padded.to(device, self.model.dtype),
            attention_mask=None if bool(mask.all()) else mask.to(device),
            exact_padding=True,
            recording_sums=sums,
            return_dict=True,
        )
        found = output.logits.float().log_softmax(-1).cpu()  # together: each copy makes a GPU wait
        return [item[:count] for item, count in zip(found, frames, strict=True)]

    # Text of the outputs

    def _decoded(self, pieces: Iterator[Tensor], beam: BeamOptions | None) -> Transcript:
        alternatives: tuple[Alternative, ...] = ()
        tokens: Sequence[TokenSpan]
        if beam is None:
            path = BestPath.joined([best_path(piece) for piece in pieces])  # two numbers a frame, however long it is
            [tokens] = collapse(path, blank=self.vocabulary.blank)
        else:
            hypotheses = self._decoder(beam).decode(torch.cat(list(pieces)))
            tokens = hypotheses[0].tokens
            if beam.num_results > 1:
                alternatives = tuple(Alternative(self._cased(found.text), found.score) for found in hypotheses)
        words = words_from_tokens(tokens, self.vocabulary, self.frame_seconds)
        if self._processor.tokenizer.do_lower_case:
            words = [self._cased_word(word) for word in words]
        return self._transcript(words, alternatives)

    def _decoder(self, beam: BeamOptions) -> CTCDecoder:
        """Kept for the next call: it takes a second to sort a large vocabulary."""
        last = self._last_decoder
        if last is None or last.options != beam or last.vocabulary is not self.vocabulary:
            last = self._last_decoder = CTCDecoder(self.vocabulary, beam)
        return last

    def _transcript(self, words: Sequence[Word], alternatives: tuple[Alternative, ...] = ()) -> Transcript:
        text = " ".join(word.text for word in words)
        return Transcript(text, segments_from_words(words), self.language, alternatives=alternatives)

    def _cased(self, text: str) -> str:
        return text.lower() if self._processor.tokenizer.do_lower_case else text

    def _cased_word(self, word: Word) -> Word:
        characters = tuple(replace(character, text=self._cased(character.text)) for character in word.characters)
        return replace(word, text=self._cased(word.text), characters=characters)


class _Elapsed:
    """Adds up what is reported to another."""

    def __init__(self, on_progress: Progress) -> None:
        self.seconds = 0.0
        self._on_progress = on_progress

    def __call__(self, seconds: float) -> None:
        self.seconds += seconds
        self._on_progress(seconds)


def _vocabulary(processor: Wav2Vec2Processor, size: int) -> Vocabulary:
    tokenizer = processor.tokenizer
    blank, blank_id = tokenizer.pad_token, tokenizer.pad_token_id
    if blank is None or blank_id is None:
        raise ConfigError("expected a tokenizer with a pad_token, the CTC blank, got one without; pass pad_token=... to it")
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens = [by_id.get(number, blank) for number in range(size)]  # a head may be wider than its vocabulary
    delimiter = tokenizer.word_delimiter_token
    return Vocabulary(tokens, blank_id, delimiter if delimiter in tokens else None, tokenizer.all_special_tokens)
