"""Speech to text: `phonograph.transcribe`, `translate` and `align`.

The model decides how: one with a CTC head (Wav2Vec2) also gives the time of every word, an encoder-decoder (Speech2Text) that
of every segment. Recordings too long for one pass go through window by window, in memory that does not grow with the audio.
"""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, Union, overload

import torch

from phonograph import audio
from phonograph.api.ctc import CTCRecognizer
from phonograph.api.inputs import (
    AudioFormat,
    BlocksAgain,
    Item,
    Progress,
    Recording,
    Speech,
    blocks_of,
    clip_of,
    groups_by_length,
    item_of,
    items_of,
    named,
    refuse_unusable,
    usable,
)
from phonograph.api.seq2seq import Seq2SeqRecognizer
from phonograph.audio import Audio
from phonograph.decoding.ctc import BeamOptions
from phonograph.decoding.language_model import LanguageModel, load_language_model
from phonograph.decoding.transcript import Segment, Transcript
from phonograph.errors import ConfigError
from phonograph.loading import hub, weights
from phonograph.models.auto import AutoConfig
from phonograph.models.speech_to_text.modeling_speech_to_text import Speech2TextForConditionalGeneration
from phonograph.models.speech_to_text.processing_speech_to_text import Speech2TextProcessor
from phonograph.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForCTC
from phonograph.models.wav2vec2.processing_wav2vec2 import Wav2Vec2Processor

__all__ = ["DEFAULT_RECOGNIZER", "Recognizer", "align", "load_recognizer", "transcribe", "translate"]

Recognizer: TypeAlias = CTCRecognizer | Seq2SeqRecognizer
Model: TypeAlias = Union[str, os.PathLike[str], Recognizer]  # noqa: UP007 (a value, on Python 3.10)
Timestamps: TypeAlias = Literal["word", "char"]

DEFAULT_RECOGNIZER = "wav2vec2-mini"
"""The bundled model that transcribes without a download, in packages that have it."""

_BLOCK_SECONDS = 10.0


@overload
def transcribe(  # type: ignore[overload-overlap]  # a str is a sequence of str; the first form wins
    speech: Speech,
    model: Model | None = ...,
    *,
    timestamps: Timestamps | None = ...,
    language: str | None = ...,
    lm: str | os.PathLike[str] | LanguageModel | None = ...,
    hotwords: Mapping[str, float] | None = ...,
    decoding: BeamOptions | Mapping[str, Any] | None = ...,
    sampling_rate: int | None = ...,
    channel: int | None = ...,
    batch_size: int = ...,
    on_progress: Progress | None = ...,
) -> Transcript: ...
@overload
def transcribe(
    speech: Sequence[Speech],
    model: Model | None = ...,
    *,
    timestamps: Timestamps | None = ...,
    language: str | None = ...,
    lm: str | os.PathLike[str] | LanguageModel | None = ...,
    hotwords: Mapping[str, float] | None = ...,
    decoding: BeamOptions | Mapping[str, Any] | None = ...,
    sampling_rate: int | None = ...,
    channel: int | None = ...,
    batch_size: int = ...,
    on_progress: Progress | None = ...,
) -> list[Transcript]: ...
def transcribe(
    speech: Speech | Sequence[Speech],
    model: Model | None = None,
    *,
    timestamps: Timestamps | None = None,
    language: str | None = None,
    lm: str | os.PathLike[str] | LanguageModel | None = None,
    hotwords: Mapping[str, float] | None = None,
    decoding: BeamOptions | Mapping[str, Any] | None = None,
    sampling_rate: int | None = None,
    channel: int | None = None,
    batch_size: int = 8,
    on_progress: Progress | None = None,
) -> Transcript | list[Transcript]:
    """What is said, in the language that is spoken.

    Args:
        speech: a path, an `Audio`, an array or a tensor (time,) or (channels, time) in [-1, 1], of any float type, on any
            device, or a list of these. Any rate is resampled to the model's, and two channels are averaged.
        model: name, folder or hub id of a Wav2Vec2 with a CTC head or of a Speech2Text, or what `load_recognizer` returned;
            None is the bundled one.
        timestamps: None gives what comes for free: the times of words from a CTC head, of segments from Speech2Text. "char"
            adds the times of the characters in each word; "word" and "char" refuse models that have none.
        language: of a checkpoint of many languages, such as "fra" for facebook/mms-1b-all; None is the one it is set to.
        lm: n-gram model that decides between the hypotheses of a beam search: an ARPA file, a KenLM binary, or a loaded one.
        hotwords: words that are more likely than they sound, each with its bonus; 5 to 10 is strong.
        decoding: for a CTC head, `BeamOptions` for a beam search rather than the likeliest token of each frame; for
            Speech2Text, settings as in its generation_config.json, such as {"num_beams": 1}.
        sampling_rate: of arrays and tensors, in Hz; None is the model's own.
        channel: of files, take this channel alone, counted from 0; needed for files of more than two.
        batch_size: most items of a list, or windows of a recording, that go through the model together. Items are grouped by
            length, and each gets the text that it gets alone.
        on_progress: called with seconds of audio as they are done.

    Returns:
        One Transcript, or a list of them in the order of the list.

    Raises:
        AudioError: audio that can't be used: too short, silent, not finite, or far from [-1, 1], as integers made floats are.
        CheckpointError, ConfigError: no such model, one without a head for text, or options it can't fulfil.
    """
    recognizer = load_recognizer(model)
    recognizer.set_language(language)
    settings = _settings(recognizer, lm, hotwords, decoding)
    if timestamps is not None and isinstance(recognizer, Seq2SeqRecognizer):
        raise ConfigError(
            f"expected a model with a CTC head for timestamps={timestamps!r}, got one without; leave timestamps out for the "
            "times of segments, or pass the text to phonograph.align"
        )
    task = _Task(recognizer, settings, sampling_rate, channel, batch_size, on_progress or _unseen)
    return task.results(speech, characters=timestamps == "char")


@overload
def translate(  # type: ignore[overload-overlap]  # as above
    speech: Speech,
    to: str | None = ...,
    model: Model | None = ...,
    *,
    decoding: Mapping[str, Any] | None = ...,
    sampling_rate: int | None = ...,
    channel: int | None = ...,
    batch_size: int = ...,
    on_progress: Progress | None = ...,
) -> Transcript: ...
@overload
def translate(
    speech: Sequence[Speech],
    to: str | None = ...,
    model: Model | None = ...,
    *,
    decoding: Mapping[str, Any] | None = ...,
    sampling_rate: int | None = ...,
    channel: int | None = ...,
    batch_size: int = ...,
    on_progress: Progress | None = ...,
) -> list[Transcript]: ...
def translate(
    speech: Speech | Sequence[Speech],
    to: str | None = None,
    model: Model | None = None,
    *,
    decoding: Mapping[str, Any] | None = None,
    sampling_rate: int | None = None,
    channel: int | None = None,
    batch_size: int = 8,
    on_progress: Progress | None = None,
) -> Transcript | list[Transcript]:
    """What is said, in another language.

    Args:
        to: code of the language, such as "de"; None for a checkpoint that has one only.
        model: name, folder or hub id of a Speech2Text made for translation, or what `load_recognizer` returned.

    The other arguments, the result and the errors are those of `transcribe`.
    """
    if model is None:
        raise ConfigError(
            "expected a model that translates, got none, and none is bundled; pass model=..., such as "
            "facebook/s2t-medium-mustc-multilingual-st or a folder"
        )
    recognizer = load_recognizer(model)
    if isinstance(recognizer, CTCRecognizer):
        raise ConfigError(
            "expected a Speech2Text to translate, got a model with a CTC head, which writes what it hears; pass another model"
        )
    if to is None and recognizer.languages:
        raise ConfigError(
            f"expected a language to translate to ({', '.join(recognizer.languages)}), got none; pass one of these"
        )
    recognizer.set_language(to)
    settings = _settings(recognizer, None, None, decoding)
    task = _Task(recognizer, settings, sampling_rate, channel, batch_size, on_progress or _unseen)
    return task.results(speech)


def align(
    speech: Speech,
    text: str,
    model: Model | None = None,
    *,
    language: str | None = None,
    sampling_rate: int | None = None,
    channel: int | None = None,
    on_progress: Progress | None = None,
) -> Transcript:
    """When each word of a known text is spoken, with the times of its characters.

    Digits and characters that the model can't spell get times too. Punctuation stays in the words. The whole recording goes
    through the model; a text of minutes is best, one of hours needs memory for each of its frames and characters.

    Args:
        speech, model, language, sampling_rate, channel, on_progress: as in `transcribe`; the model has a CTC head.
        text: all that is said, in order.

    Raises:
        ConfigError: nothing to be spoken in the text, or more than the audio has room for. Others as for `transcribe`.
    """
    recognizer = load_recognizer(model)
    if isinstance(recognizer, Seq2SeqRecognizer):
        raise ConfigError("expected a model with a CTC head to align with, got one without; pass a Wav2Vec2 made for CTC")
    recognizer.set_language(language)
    task = _Task(recognizer, None, sampling_rate, channel, 1, on_progress or _unseen)
    item = item_of(speech, task.format, sampling_rate)
    with named(*item):
        return recognizer.align(task.blocks_again(item.recording), text, task.done)


# Models -----------------------------------------------------------------------------------------------------------------


def load_recognizer(model: Model | None = None, *, device: str = "cpu", dtype: str | torch.dtype | None = None) -> Recognizer:
    """The model of that name with its processor, kept for the next call, or `model` itself.

    Raises:
        CheckpointError: nothing of that name, or files are missing. ConfigError: a model without a head for text, or a device
        or dtype that does not work here.
    """
    if model is None:
        if DEFAULT_RECOGNIZER not in hub.bundled_models():
            raise ConfigError(
                "expected a model, got none, and this package bundles none that transcribes; pass one, such as "
                "facebook/wav2vec2-base-960h, facebook/s2t-small-librispeech-asr or a folder"
            )
        model = DEFAULT_RECOGNIZER
    if isinstance(model, (str, os.PathLike)):
        return _load_recognizer(os.fspath(model), device, dtype)
    if not isinstance(model, (CTCRecognizer, Seq2SeqRecognizer)):
        raise ConfigError(
            f"expected a model's name or folder, or what load_recognizer returned, got {type(model).__name__}; save it with "
            "its processor into a folder and pass that"
        )
    return model


@functools.lru_cache(maxsize=1)
def _load_recognizer(name: str, device: str, dtype: str | torch.dtype | None) -> Recognizer:
    refuse_unusable(device)
    config = AutoConfig.from_pretrained(name)
    if config.model_type == "wav2vec2":
        _refuse_headless(name)
        processor = Wav2Vec2Processor.from_pretrained(name)
        return CTCRecognizer(Wav2Vec2ForCTC.from_pretrained(name, device=device, dtype=dtype), processor)
    if config.model_type == "speech_to_text":
        generator = Speech2TextForConditionalGeneration.from_pretrained(name, device=device, dtype=dtype)
        return Seq2SeqRecognizer(generator, Speech2TextProcessor.from_pretrained(name))
    raise ConfigError(
        f"expected a model that writes text (wav2vec2 with a CTC head, or speech_to_text), got {name}, which is "
        f"{config.model_type}; pass another model"
    )


def _refuse_headless(name: str) -> None:
    tensors = weights.open_tensors(hub.resolve_weights(name)).shapes
    if not any(tensor.startswith("lm_head.") for tensor in tensors):
        raise ConfigError(
            f"expected a checkpoint with a CTC head (lm_head) to transcribe with, got {name}, which has none; pass one that "
            "was fine-tuned for transcription"
        )


def _settings(
    recognizer: Recognizer,
    lm: str | os.PathLike[str] | LanguageModel | None,
    hotwords: Mapping[str, float] | None,
    decoding: BeamOptions | Mapping[str, Any] | None,
) -> Any:
    """What the recognizer decodes with, refused here, once, rather than for each item."""
    if isinstance(recognizer, Seq2SeqRecognizer):
        if lm is not None or hotwords:
            raise ConfigError("expected a model with a CTC head for lm and hotwords, got one without; leave both out")
        if isinstance(decoding, BeamOptions):
            raise ConfigError("expected settings such as {'num_beams': 5} for this model, got BeamOptions; pass a mapping")
        recognizer.check(decoding)
        return decoding
    if decoding is not None and not isinstance(decoding, BeamOptions):
        raise ConfigError(
            f"expected BeamOptions to decode a CTC head with, got {type(decoding).__name__}; pass BeamOptions(...)"
        )
    if hotwords:
        decoding = replace(decoding or BeamOptions(), hotwords=hotwords)
    if lm is not None:
        model = _language_model(os.fspath(lm)) if isinstance(lm, (str, os.PathLike)) else lm
        decoding = replace(decoding or BeamOptions(), lm=model)
        if decoding.lm_case is None and recognizer.vocabulary.case is not None:
            decoding = replace(decoding, lm_case=_case_of(model))
    recognizer.check(decoding)
    return decoding


@functools.lru_cache(maxsize=1)
def _language_model(path: str) -> LanguageModel:
    return load_language_model(path)


def _case_of(lm: LanguageModel) -> str | None:
    """The one case of all words, so that a vocabulary of the other can use them."""
    words = lm.unigrams or ()
    return next((case for case in ("upper", "lower") if all(word == getattr(word, case)() for word in words)), None)


# Work -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """One call: what every item is to go through."""

    recognizer: Recognizer
    settings: Any
    sampling_rate: int | None
    channel: int | None
    batch_size: int
    done: Progress

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"expected a batch_size of at least 1, got {self.batch_size}; 8 is usual")

    def results(self, speech: Speech | Sequence[Speech], characters: bool = False) -> Transcript | list[Transcript]:
        """One for one item, a list for a list."""
        items, is_one = items_of(speech, self.format, self.sampling_rate)
        found = self._all(items, characters)
        return found[0] if is_one else found

    def _all(self, items: Sequence[Item], characters: bool) -> list[Transcript]:
        """Long items alone and window by window, the others in groups of similar length, in the order of the list."""
        results: dict[int, Transcript] = {}
        lengths = [_seconds(item) for item in items]
        short = []
        for place, item in enumerate(items):
            if lengths[place] <= self.recognizer.one_pass_seconds:
                short.append(place)
            else:
                results[place] = self._long(item)
        groups = groups_by_length([lengths[place] for place in short], self.batch_size, self.recognizer.most_padding)
        for group in groups:
            places = [short[index] for index in group]
            clips = [self._clip(items[place]) for place in places]
            results.update(zip(places, self.recognizer.recognize(clips, self.settings), strict=True))
            self.done(sum(clip.duration_seconds for clip in clips))
        found = [results[place] for place in range(len(items))]
        return found if characters else [_without_characters(transcript) for transcript in found]

    def blocks_again(self, recording: Recording) -> BlocksAgain:
        """A function that gives the blocks of a recording, each time from the beginning."""
        size = round(_BLOCK_SECONDS * self.recognizer.sampling_rate)
        return lambda: self._usable(blocks_of(recording, self.format, size))

    def _long(self, item: Item) -> Transcript:
        with named(*item):
            blocks = self.blocks_again(item.recording)
            return self.recognizer.recognize_long(blocks, self.settings, self.batch_size, self.done)

    def _clip(self, item: Item) -> Audio:
        with named(*item):
            [clip] = self._usable(iter([clip_of(item.recording, self.format)]))
            return clip

    def _usable(self, blocks: Iterator[Audio]) -> Iterator[Audio]:
        return usable(blocks, self.recognizer.shortest_samples)

    @property
    def format(self) -> AudioFormat:
        """What the recognizer takes."""
        return AudioFormat(self.recognizer.sampling_rate, channel=self.channel)


def _seconds(item: Item) -> float:
    """Length, as far as it is known without reading: files whose header does not tell may be of any length."""
    if isinstance(item.recording, Audio):
        return item.recording.duration_seconds
    with named(*item):
        seconds = audio.info(item.recording).duration_seconds
    return float("inf") if seconds is None else seconds


def _unseen(seconds: float) -> None:
    pass


def _without_characters(transcript: Transcript) -> Transcript:
    def bare(segment: Segment) -> Segment:
        return replace(segment, words=tuple(replace(word, characters=()) for word in segment.words))

    return replace(transcript, segments=tuple(bare(segment) for segment in transcript.segments))
