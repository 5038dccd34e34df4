"""CTC on Wav2Vec2: from nothing, fine-tuning a pretrained encoder, or a language adapter of an MMS model.

    task: ctc
    options:
      init: facebook/wav2vec2-base          # or model: {...} to start from nothing
      data: {path: LibriSpeech/train-clean-100}

Fine-tuning follows Baevski et al. 2020 (arXiv:2006.11477, section 4.3): convolutions frozen, the transformer for the first
steps too, masks in time and features. Adapters follow Pratap et al. 2023 (arXiv:2305.13516). From nothing, an intermediate CTC
loss (Lee and Watanabe 2021, arXiv:2102.03216) and, at first, labels spread evenly over each utterance keep a model from saying
only blanks. Masks and dropout grow with augmentation.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from phonograph.api.ctc import CTCRecognizer
from phonograph.configuration import Rule
from phonograph.decoding.ctc import BeamOptions
from phonograph.decoding.language_model import load_language_model
from phonograph.errors import ConfigError
from phonograph.loading import weights
from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from phonograph.models.wav2vec2.feature_extraction_wav2vec2 import Wav2Vec2FeatureExtractor
from phonograph.models.wav2vec2.masking_wav2vec2 import masked_spans
from phonograph.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForCTC
from phonograph.models.wav2vec2.processing_wav2vec2 import Wav2Vec2Processor
from phonograph.models.wav2vec2.tokenization_wav2vec2 import Wav2Vec2CTCTokenizer
from phonograph.nn.masks import inside
from phonograph.training.data import SpeechBatch
from phonograph.training.evaluation import error_rates
from phonograph.training.features import wav2vec2_inputs
from phonograph.training.filterbank import start_as_filterbank
from phonograph.training.losses import CTCTargets, ctc_loss, even_alignment_loss, intermediate_ctc_loss
from phonograph.training.task import Batch, Losses, ParameterGroup, RunContext
from phonograph.training.tasks.speech import Needs, SpeechOptions, SpeechTask, split_decayed
from phonograph.training.transcripts import ENGLISH, Spelling, character_tokenizer

__all__ = ["CTCOptions", "CTCTask", "LanguageModelOptions"]

_RATE = 16000
_OPTIMIZER = "main"
_VOCABULARIES = ("checkpoint", "transcripts", "english")


@dataclass(frozen=True)
class LanguageModelOptions:
    """The n-gram model with which held-out speech is decoded a second time."""

    path: Annotated[str, Rule("file of the model, .arpa or kenlm's binary")]
    case: Annotated[str | None, Rule("of its words, where the vocabulary has the other", choices=("lower", "upper"))] = None
    alpha: Annotated[float, Rule("weight of the model")] = 0.5
    beta: Annotated[float, Rule("bonus of each word")] = 1.5
    beam_width: Annotated[int, Rule("prefixes kept from frame to frame", minimum=1)] = 100


@dataclass(frozen=True)
class CTCOptions(SpeechOptions):
    """What is trained by CTC, and on what.

    Raises:
        ConfigError: neither a checkpoint nor a model, or options that contradict each other.
    """

    init: Annotated[str | None, Rule("checkpoint to start from; None starts from nothing")] = None
    model: Annotated[dict[str, Any], Rule("fields of Wav2Vec2Config, over those of the checkpoint")] = field(
        default_factory=dict
    )
    filterbank_start: Annotated[bool, Rule("a new model's first convolution begins as a mel filter bank")] = False
    vocabulary: Annotated[str, Rule("where tokens come from", choices=_VOCABULARIES)] = "transcripts"
    fewest: Annotated[int, Rule("characters that occur less often become <unk>", minimum=1)] = 1
    spelling: Spelling = field(default_factory=Spelling)
    freeze_features: Annotated[bool, Rule("train the convolutions no further")] = False
    freeze_encoder_steps: Annotated[int, Rule("steps at the start in which only the head learns", minimum=0)] = 0
    head_lr_factor: Annotated[float, Rule("learning rate of the head over that of the rest", above=0)] = 1.0
    adapter: Annotated[str | None, Rule("train a language adapter alone, for the language of this code")] = None
    intermediate_layers: Annotated[list[int], Rule("layers, from 1, that say the text too", minimum=1)] = field(
        default_factory=list
    )
    intermediate_weight: Annotated[float, Rule("share of their loss in the whole", minimum=0, maximum=1)] = 0.3
    even_alignment_steps: Annotated[int, Rule("steps in which labels spread evenly fade out as targets", minimum=0)] = 0
    language_model: LanguageModelOptions | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.init is None and not self.model:
            faults.append("init=None, model={}: set a checkpoint to start from, or the fields of a new model")
        if self.init is None and self.vocabulary == "checkpoint":
            faults.append("init=None, vocabulary='checkpoint': there is none; choose transcripts or english")
        if self.init is None and self.adapter is not None:
            faults.append(f"init=None, adapter={self.adapter!r}: an adapter needs a checkpoint to adapt")
        if self.init is not None and self.filterbank_start:
            faults.append(f"init={self.init!r}, filterbank_start=True: a checkpoint keeps its convolutions; leave one out")
        if faults:
            raise ConfigError("; ".join(faults))


class CTCTask(SpeechTask):
    """Trains a `Wav2Vec2ForCTC`; its result is that model with its processor.

    Raises:
        ConfigError: a layer that the model does not have, or data that cannot be trained on.
        CheckpointError: the checkpoint cannot be loaded.
    """

    Options = CTCOptions

    def __init__(self, options: CTCOptions, context: RunContext) -> None:
        super().__init__(options, context, Needs(_RATE, transcripts=True, whole=True, spelling=options.spelling))
        self.options = options
        self.processor = self._processor()
        self.model = self._model()
        self._check_layers()
        if options.adapter is not None:
            self.model.init_adapter_layers()
            self.model.requires_grad_(False)
            for parameter in self.model._get_adapters().values():
                parameter.requires_grad_(True)
        elif options.freeze_features:
            self.model.freeze_feature_encoder()
        self.modules = nn.ModuleDict({"model": self.model})
        self._beam = self._beam_options()

    # Building

    def _processor(self) -> Wav2Vec2Processor:
        options = self.options
        if options.init is not None and options.vocabulary == "checkpoint":
            return Wav2Vec2Processor.from_pretrained(options.init)
        tokens = ENGLISH if options.vocabulary == "english" else None
        texts = [item.text for item in self.training]
        with self.vocabulary_folder() as folder:
            tokenizer: Wav2Vec2CTCTokenizer = character_tokenizer(
                texts, folder, tokens=tokens, fewest=options.fewest, language=options.adapter
            )
        if options.init is not None:
            return Wav2Vec2Processor(Wav2Vec2FeatureExtractor.from_pretrained(options.init), tokenizer)
        masked = options.model.get("feat_extract_norm") == "layer"
        return Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=masked), tokenizer)

    def _model(self) -> Wav2Vec2ForCTC:
        options, tokenizer = self.options, self.processor.tokenizer
        fields: dict[str, Any] = {"ctc_loss_reduction": "mean", "ctc_zero_infinity": True, **options.model}
        if options.vocabulary != "checkpoint":
            fields |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        if options.init is None:
            model = Wav2Vec2ForCTC(Wav2Vec2Config(**fields))
            if options.filterbank_start:
                start_as_filterbank(model.wav2vec2.feature_extractor, _RATE)
            return model
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="expected the tensors of Wav2Vec2ForCTC", category=UserWarning)
            return Wav2Vec2ForCTC.from_pretrained(options.init, ignore_mismatched_sizes=True, **fields)

    def _check_layers(self) -> None:
        layers = self.model.config.num_hidden_layers
        if outside := [layer for layer in self.options.intermediate_layers if layer >= layers]:
            raise ConfigError(f"expected intermediate_layers below the last, {layers}, got {outside}; leave them out")

    def _beam_options(self) -> BeamOptions | None:
        chosen = self.options.language_model
        if chosen is None:
            return None
        return BeamOptions(
            lm=load_language_model(chosen.path),
            lm_case=chosen.case,
            alpha=chosen.alpha,
            beta=chosen.beta,
            beam_width=chosen.beam_width,
        )

    def parameter_groups(self) -> list[ParameterGroup]:
        """The head, and the rest, which may join later."""
        model, options = self.model, self.options
        head = [parameter for parameter in model.lm_head.parameters() if parameter.requires_grad]
        body = [parameter for parameter in model.wav2vec2.parameters() if parameter.requires_grad]
        return [
            *split_decayed(_OPTIMIZER, head, "head", lr_factor=options.head_lr_factor),
            *split_decayed(_OPTIMIZER, body, "encoder", frozen_steps=options.freeze_encoder_steps),
        ]

    # Steps

    def collate(self, batch: SpeechBatch) -> Batch:
        """waveforms (B, S), lengths (B,), labels (B, L) padded with 0, label_lengths as a list."""
        rows = [torch.tensor(self.processor.tokenizer(item.text).input_ids, dtype=torch.int64) for item in batch.utterances]
        return {
            "waveforms": batch.waveforms,
            "lengths": batch.lengths,
            "labels": nn.utils.rnn.pad_sequence(rows, batch_first=True),
            "label_lengths": [len(row) for row in rows],
            "seconds": self.seconds(batch),
        }

    def losses(self, batch: Batch, step: int) -> Iterator[Losses]:
        """The CTC loss, a mean over utterances, each over its labels."""
        waveforms, lengths = self.augmented(batch["waveforms"], batch["lengths"], step)
        values, mask = wav2vec2_inputs(waveforms, lengths, self.processor.feature_extractor)
        steps = self.model._get_feat_extract_output_lengths(lengths)
        options, model = self.options, self.model
        self.grow_dropout(step)
        with self._feature_masks(step):
            out = model.wav2vec2(
                values,
                mask,
                self._masked(values.shape[1], lengths, step),
                output_hidden_states=bool(options.intermediate_layers),
                return_dict=True,
            )
        logits = model.lm_head(model.dropout(out.last_hidden_state))
        targets = CTCTargets(
            steps,
            batch["labels"],
            torch.tensor(batch["label_lengths"]),
            blank=model.config.pad_token_id or 0,
            zero_infinity=model.config.ctc_zero_infinity,
        )
        total = loss = ctc_loss(logits, targets)
        parts = {"ctc": loss, "blank": _blank_share(logits, targets)}
        if options.intermediate_layers:
            early = intermediate_ctc_loss(model, out.hidden_states, options.intermediate_layers, targets)
            total = (1 - options.intermediate_weight) * total + options.intermediate_weight * early
            parts["intermediate_ctc"] = early
        if step < options.even_alignment_steps:
            even = even_alignment_loss(logits, targets)
            share = 1 - step / options.even_alignment_steps
            total = (1 - share) * total + share * even
            parts["even_alignment"] = even
        yield Losses(_OPTIMIZER, total, parts, weight=len(batch["label_lengths"]))

    def _masked(self, samples: int, lengths: Tensor, step: int) -> Tensor | None:
        """Fewer masked steps until augmentation has its full strength; None lets the model draw them as it is configured."""
        config, strength = self.model.config, self.augmentation.strength(step)
        if strength == 1 or not config.apply_spec_augment or self.model.wav2vec2.masked_spec_embed is None:
            return None
        count = int(self.model._get_feat_extract_output_lengths(samples, add_adapter=False))
        steps = self.model._get_feat_extract_output_lengths(lengths, add_adapter=False)
        return masked_spans(steps, count, config.mask_time_prob * strength, config.mask_time_length)

    @contextlib.contextmanager
    def _feature_masks(self, step: int) -> Iterator[None]:
        """Fewer masked features too, which the model draws as it is configured."""
        config = self.model.config
        configured = config.mask_feature_prob
        config.mask_feature_prob = configured * self.augmentation.strength(step)
        try:
            yield
        finally:
            config.mask_feature_prob = configured

    # Judging

    def evaluate(self, step: int) -> dict[str, float]:
        """Word and character error rates of greedy decoding, and of beam search with the language model if there is one."""
        if not self.held_out:
            return {}
        recognizer = CTCRecognizer(self.model, self.processor)
        references, greedy, fused = [], [], []
        for utterances, clips in self.groups(self.held_out):
            references += [item.text for item in utterances]
            greedy += [transcript.text for transcript in recognizer.recognize(clips, None)]
            if self._beam is not None:
                fused += [transcript.text for transcript in recognizer.recognize(clips, self._beam)]
        rates = error_rates(references, greedy)
        figures = {"wer": rates.words, "cer": rates.characters}
        if self._beam is not None:
            rates = error_rates(references, fused)
            figures |= {"wer_lm": rates.words, "cer_lm": rates.characters}
        self.write_samples(step, references, greedy)
        return figures

    def save(self, folder: Path) -> None:
        """The model and its processor, and the adapter by itself if that was trained."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if self.options.adapter is not None:
            adapters = {name: parameter.detach() for name, parameter in self.model._get_adapters().items()}
            weights.save_tensors(folder / f"adapter.{self.options.adapter}.safetensors", adapters)


def _blank_share(logits: Tensor, targets: CTCTargets) -> Tensor:
    """Share of steps that say nothing: near 1 until a model leaves the plateau at which CTC begins."""
    real = inside(targets.step_lengths, logits.shape[1])
    silent = (logits.detach().argmax(-1) == targets.blank) & real
    return silent.sum() / real.sum()
