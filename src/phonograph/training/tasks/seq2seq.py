"""Speech2Text: transcription, or translation into one or several languages, by an encoder and a decoder (arXiv:2010.05171).

    task: seq2seq
    options:
      model: {}                             # Speech2TextConfig's defaults are the published small model
      pieces: 10000
      data: {path: LibriSpeech/train-clean-100}

The loss is cross-entropy with smoothed labels (arXiv:1512.00567) and, if wanted, CTC of the encoder's states (Kim et al. 2017,
arXiv:1609.06773), whose head serves training alone and is not in the result. Features are masked by SpecAugment. With
`languages` each utterance's text is in its own `language`, whose token comes first.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn

from phonograph.api.seq2seq import Seq2SeqRecognizer
from phonograph.configuration import Rule
from phonograph.errors import ConfigError
from phonograph.models.speech_to_text.configuration_speech_to_text import Speech2TextConfig
from phonograph.models.speech_to_text.feature_extraction_speech_to_text import Speech2TextFeatureExtractor
from phonograph.models.speech_to_text.modeling_speech_to_text import Speech2TextForConditionalGeneration
from phonograph.models.speech_to_text.processing_speech_to_text import Speech2TextProcessor
from phonograph.nn.linear import Linear
from phonograph.nn.masks import inside
from phonograph.training.data import SpecAugmentOptions, SpeechBatch, Utterance, mask_features
from phonograph.training.evaluation import bleu, error_rates
from phonograph.training.features import speech_to_text_features
from phonograph.training.losses import CTCTargets, ctc_loss
from phonograph.training.task import Batch, Losses, ParameterGroup, RunContext
from phonograph.training.tasks.speech import Needs, SpeechOptions, SpeechTask, split_decayed
from phonograph.training.transcripts import Spelling, pieces_tokenizer

__all__ = ["Seq2SeqOptions", "Seq2SeqTask"]

_RATE = 16000
_OPTIMIZER = "main"
_IGNORED = -100
_GENERATION = {"num_beams": 5, "max_length": 200, "early_stopping": True}
"""What the published checkpoints are decoded with."""


@dataclass(frozen=True)
class Seq2SeqOptions(SpeechOptions):
    """What is trained, and on what.

    Raises:
        ConfigError: neither a checkpoint nor pieces for a new model.
    """

    init: Annotated[str | None, Rule("checkpoint to start from; None starts from nothing")] = None
    init_encoder: Annotated[str | None, Rule("checkpoint whose encoder a new model starts from")] = None
    model: Annotated[dict[str, Any], Rule("fields of Speech2TextConfig, over those of the checkpoint")] = field(
        default_factory=dict
    )
    pieces: Annotated[int | None, Rule("size of a vocabulary made from the texts; None is the checkpoint's", minimum=8)] = None
    pieces_kind: Annotated[str, Rule("how it is made", choices=("unigram", "bpe"))] = "unigram"
    spelling: Spelling = field(default_factory=lambda: Spelling(case="lower"))
    languages: Annotated[list[str], Rule("codes of target languages; none for one language only")] = field(default_factory=list)
    label_smoothing: Annotated[float, Rule("share of each target spread over the vocabulary", minimum=0, maximum=1)] = 0.1
    ctc_weight: Annotated[float, Rule("share of the encoder's CTC loss in the whole", minimum=0, maximum=1)] = 0.0
    spec_augment: SpecAugmentOptions | None = None
    generation: Annotated[dict[str, Any], Rule("settings of generate, kept with the model")] = field(
        default_factory=lambda: dict(_GENERATION)
    )

    def __post_init__(self) -> None:
        if self.init is None and self.pieces is None:
            raise ConfigError("init=None, pieces=None: set a checkpoint to start from, or the size of a new vocabulary")
        if self.init is not None and self.pieces is not None:
            raise ConfigError(f"init={self.init!r}, pieces={self.pieces}: a checkpoint keeps its vocabulary; leave one out")


class Seq2SeqTask(SpeechTask):
    """Trains a `Speech2TextForConditionalGeneration`; its result is that model with its processor.

    Raises:
        ConfigError: data that cannot be trained on, an utterance in another language, or settings of another name.
        CheckpointError: a checkpoint cannot be loaded.
    """

    Options = Seq2SeqOptions

    def __init__(self, options: Seq2SeqOptions, context: RunContext) -> None:
        super().__init__(options, context, Needs(_RATE, transcripts=True, whole=True, spelling=options.spelling))
        self.options = options
        self._check_languages()
        self.processor = self._processor()
        self.model = self._model()
        vars(self.model.generation_config).update(options.generation)
        self.model.generation_config.options(self.model.config, {})
        self.modules = nn.ModuleDict({"model": self.model})
        if options.ctc_weight:
            # One more output than there are tokens: none of them can be the blank, for any may be said.
            self.modules["ctc_head"] = Linear(self.model.config.d_model, self.model.config.vocab_size + 1)

    # Building

    def _check_languages(self) -> None:
        wanted = self.options.languages
        if not wanted:
            return
        others = sorted({str(item.language) for item in [*self.training, *self.held_out] if item.language not in wanted})
        if others:
            raise ConfigError(
                f"expected utterances in {', '.join(wanted)}, got some in {', '.join(others)}; add these to languages, or "
                "leave them out by data.where"
            )

    def _processor(self) -> Speech2TextProcessor:
        options = self.options
        if options.init is not None:
            return Speech2TextProcessor.from_pretrained(options.init)
        with self.vocabulary_folder() as folder:
            tokenizer = pieces_tokenizer(
                (item.text for item in self.training),
                folder,
                size=cast(int, options.pieces),
                languages=options.languages,
                kind=options.pieces_kind,
            )
        bins = options.model.get("input_feat_per_channel", 80)
        return Speech2TextProcessor(Speech2TextFeatureExtractor(feature_size=bins, num_mel_bins=bins), tokenizer)

    def _model(self) -> Speech2TextForConditionalGeneration:
        options = self.options
        if options.init is not None:
            return Speech2TextForConditionalGeneration.from_pretrained(options.init, **options.model)
        fields = {**options.model, "vocab_size": len(self.processor.tokenizer)}
        model = Speech2TextForConditionalGeneration(Speech2TextConfig(**fields))
        if options.init_encoder is not None:
            source = Speech2TextForConditionalGeneration.from_pretrained(options.init_encoder)
            _copy_encoder(source, model)
        return model

    def parameter_groups(self) -> list[ParameterGroup]:
        """All of the model, and the CTC head, in one optimiser."""
        return split_decayed(_OPTIMIZER, list(self.modules.parameters()), "model")

    # Steps

    def collate(self, batch: SpeechBatch) -> Batch:
        """waveforms (B, S), lengths (B,), labels (B, T) padded with -100, said (B, L) without special tokens, said_lengths."""
        rows = [self._labels(item) for item in batch.utterances]
        first = 1 if self.options.languages else 0
        said = [row[first:-1] for row in rows]
        return {
            "waveforms": batch.waveforms,
            "lengths": batch.lengths,
            "labels": nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_IGNORED),
            "said": nn.utils.rnn.pad_sequence(said, batch_first=True),
            "said_lengths": [len(row) for row in said],
            "tokens": sum(map(len, rows)),
            "seconds": self.seconds(batch),
        }

    def _labels(self, utterance: Utterance) -> Tensor:
        tokenizer = self.processor.tokenizer
        text = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(utterance.text))
        language = [tokenizer.lang_code_to_id[str(utterance.language)]] if self.options.languages else []
        return torch.tensor([*language, *text, tokenizer.eos_token_id], dtype=torch.int64)

    def losses(self, batch: Batch, step: int) -> Iterator[Losses]:
        """Cross-entropy with smoothed labels and CTC in their shares, both a mean over the tokens of the labels."""
        options = self.options
        self.grow_dropout(step)
        features, frames = self._features(batch["waveforms"], batch["lengths"], step)
        mask = inside(frames, features.shape[1]).long()
        out = self.model(features, mask, labels=batch["labels"], label_smoothing=options.label_smoothing)
        total, parts = out.loss, {"cross_entropy": out.loss}
        if options.ctc_weight:
            logits = self.modules["ctc_head"](out.encoder_last_hidden_state)
            steps = self.model._get_feat_extract_output_lengths(frames)
            blank = self.model.config.vocab_size
            counts = torch.tensor(batch["said_lengths"])
            ctc = ctc_loss(logits, CTCTargets(steps, batch["said"], counts, blank, reduction="sum")) / batch["tokens"]
            total = (1 - options.ctc_weight) * total + options.ctc_weight * ctc
            parts["ctc"] = ctc
        yield Losses(_OPTIMIZER, total, parts, weight=batch["tokens"])

    def _features(self, waveforms: Tensor, lengths: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Features (B, L, F) and frames (B,), changed as much as the recipe says of this step."""
        waveforms, lengths = self.augmented(waveforms, lengths, step)
        features, frames = speech_to_text_features(waveforms, lengths, self.processor.feature_extractor.num_mel_bins)
        strength = self.augmentation.strength(step)
        if self.options.spec_augment is None or strength == 0:
            return features, frames
        return mask_features(features, frames, self.options.spec_augment, strength=strength), frames

    # Judging

    def evaluate(self, step: int) -> dict[str, float]:
        """Word and character error rates, and BLEU, of what the generation settings give."""
        if not self.held_out:
            return {}
        recognizer = Seq2SeqRecognizer(self.model, self.processor)
        references, heard = [], []
        languages: list[str | None] = [*self.options.languages] or [None]
        for language in languages:
            if language is not None:
                recognizer.set_language(language)
            spoken = [item for item in self.held_out if language is None or item.language == language]
            for utterances, clips in self.groups(spoken):
                references += [item.text for item in utterances]
                heard += [transcript.text for transcript in recognizer.recognize(clips, None)]
        rates = error_rates(references, heard)
        self.write_samples(step, references, heard)
        return {"wer": rates.words, "cer": rates.characters, "bleu": bleu(references, heard)}

    def save(self, folder: Path) -> None:
        """The model with its generation settings, and its processor."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def _copy_encoder(source: Speech2TextForConditionalGeneration, into: Speech2TextForConditionalGeneration) -> None:
    theirs, ours = source.model.encoder.state_dict(), into.model.encoder.state_dict()
    if theirs.keys() != ours.keys() or any(theirs[name].shape != ours[name].shape for name in ours):
        raise ConfigError(
            f"expected an encoder of {len(ours)} tensors like the new model's, got one of {len(theirs)}; give the model the "
            "encoder sizes of init_encoder"
        )
    into.model.encoder.load_state_dict(theirs)
