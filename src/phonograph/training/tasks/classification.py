"""Classes of clips, classes of steps, and speakers, by heads on a Wav2Vec2.

    task: classification
    options:
      kind: sequence                        # keyword, language, emotion: one class a clip
      label: emotion                        # the column of the data's table that names it
      init: facebook/wav2vec2-base

`sequence` and `frames` learn by cross-entropy. `speaker` learns by AM-softmax (arXiv:1801.05599) and is judged by the equal
error rate over all pairs of held-out clips, whose speakers need not be those of training. For `frames` the column holds
segments, a list of [start_seconds, end_seconds, class]; what no segment covers is `background`. Padding has no class and no
loss.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.audio import Audio
from phonograph.configuration import Rule
from phonograph.errors import ConfigError
from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from phonograph.models.wav2vec2.feature_extraction_wav2vec2 import Wav2Vec2FeatureExtractor
from phonograph.models.wav2vec2.modeling_wav2vec2 import (
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2ForXVector,
    Wav2Vec2PreTrainedModel,
)
from phonograph.nn.masks import inside
from phonograph.training.data import SpeechBatch, Utterance
from phonograph.training.evaluation import equal_error_rate, trial_scores
from phonograph.training.features import wav2vec2_inputs
from phonograph.training.task import Batch, Losses, ParameterGroup, RunContext
from phonograph.training.tasks.speech import Needs, SpeechOptions, SpeechTask, column, split_decayed

__all__ = ["ClassificationOptions", "ClassificationTask"]

_RATE = 16000
_OPTIMIZER = "main"
_IGNORED = -100
_MODELS: dict[str, type[Wav2Vec2PreTrainedModel]] = {
    "sequence": Wav2Vec2ForSequenceClassification,
    "frames": Wav2Vec2ForAudioFrameClassification,
    "speaker": Wav2Vec2ForXVector,
}


@dataclass(frozen=True)
class ClassificationOptions(SpeechOptions):
    """What is told apart.

    Raises:
        ConfigError: neither a checkpoint nor a model, or changed speed where classes have times.
    """

    kind: Annotated[str, Rule("a class of clips, of steps, or the speaker", choices=tuple(_MODELS))] = "sequence"
    label: Annotated[str, Rule("column that names the class, or holds the segments")] = "speaker"
    background: Annotated[str, Rule("class of steps outside of all segments")] = "none"
    init: Annotated[str | None, Rule("checkpoint to start from; None starts from nothing")] = None
    model: Annotated[dict[str, Any], Rule("fields of Wav2Vec2Config, over those of the checkpoint")] = field(
        default_factory=dict
    )
    freeze_features: Annotated[bool, Rule("train the convolutions no further")] = True
    freeze_encoder_steps: Annotated[int, Rule("steps at the start in which only the head learns", minimum=0)] = 0
    head_lr_factor: Annotated[float, Rule("learning rate of the head over that of the rest", above=0)] = 1.0

    def __post_init__(self) -> None:
        if self.init is None and not self.model:
            raise ConfigError("init=None, model={}: set a checkpoint to start from, or the fields of a new model")
        waveform = self.augmentation.waveform
        if self.kind == "frames" and waveform is not None and any(factor != 1 for factor in waveform.speed_factors):
            raise ConfigError(
                f"kind='frames', speed_factors={waveform.speed_factors}: segments would no longer lie where they are; set [1.0]"
            )


class ClassificationTask(SpeechTask):
    """Trains a Wav2Vec2 with the head of its kind; its result is that model with its feature extractor.

    Raises:
        ConfigError: utterances without a class, segments that are none, or fewer than two classes.
        CheckpointError: the checkpoint cannot be loaded.
    """

    Options = ClassificationOptions

    def __init__(self, options: ClassificationOptions, context: RunContext) -> None:
        super().__init__(options, context, Needs(_RATE, transcripts=False, whole=options.kind == "frames"))
        self.options = options
        self._check_labels([*self.training, *self.held_out])
        names = sorted({name for item in self.training for name in self._names(item)})
        if options.kind == "frames":
            names = [options.background, *(name for name in names if name != options.background)]
        if len(names) < 2:
            raise ConfigError(f"expected at least two classes in the column {options.label}, got {names}; check the data")
        self.classes = {name: number for number, name in enumerate(names)}
        self.extractor = self._extractor()
        self.model = self._model(names)
        if options.freeze_features:
            self.model.freeze_feature_encoder()
        self.modules = nn.ModuleDict({"model": self.model})

    # Building

    def _check_labels(self, utterances: Sequence[Utterance]) -> None:
        for item in utterances:
            value = column(item, self.options.label)
            if value is None:
                raise ConfigError(
                    f"expected a column {self.options.label} in the row of every utterance, got none for {item.name}; name "
                    "another in options.label"
                )
            if self.options.kind == "frames":
                _segments(item, self.options.label)

    def _names(self, utterance: Utterance) -> list[str]:
        if self.options.kind == "frames":
            return [name for _, _, name in _segments(utterance, self.options.label)]
        return [str(column(utterance, self.options.label))]

    def _extractor(self) -> Wav2Vec2FeatureExtractor:
        if self.options.init is not None:
            return Wav2Vec2FeatureExtractor.from_pretrained(self.options.init)
        return Wav2Vec2FeatureExtractor(return_attention_mask=self.options.model.get("feat_extract_norm") == "layer")

    def _model(self, names: Sequence[str]) -> Any:
        options = self.options
        fields = {**options.model, "id2label": dict(enumerate(names)), "label2id": self.classes}
        kind: Any = _MODELS[options.kind]
        if options.init is None:
            return kind(Wav2Vec2Config(**fields))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="expected the tensors of Wav2Vec2For", category=UserWarning)
            return kind.from_pretrained(options.init, ignore_mismatched_sizes=True, **fields)

    def parameter_groups(self) -> list[ParameterGroup]:
        """The head, and the encoder, which may join later."""
        options = self.options
        body = [parameter for parameter in self.model.wav2vec2.parameters() if parameter.requires_grad]
        inside_body = {id(parameter) for parameter in self.model.wav2vec2.parameters()}
        head = [parameter for parameter in self.model.parameters() if id(parameter) not in inside_body]
        return [
            *split_decayed(_OPTIMIZER, head, "head", lr_factor=options.head_lr_factor),
            *split_decayed(_OPTIMIZER, body, "encoder", frozen_steps=options.freeze_encoder_steps),
        ]

    # Steps

    def collate(self, batch: SpeechBatch) -> Batch:
        """waveforms (B, S), lengths (B,), labels (B,), or (B, T) with -100 in padding."""
        if self.options.kind == "frames":
            labels = self._step_labels(batch.utterances, batch.waveforms.shape[1], batch.lengths)
        else:
            labels = torch.tensor([self.classes[self._names(item)[0]] for item in batch.utterances])
        return {
            "waveforms": batch.waveforms,
            "lengths": batch.lengths,
            "labels": labels,
            "seconds": self.seconds(batch),
        }

    def _step_labels(self, utterances: Sequence[Utterance], samples: int, lengths: Tensor) -> Tensor:
        """(B, T): the class at the middle of what each step is computed from."""
        encoder = self.model.wav2vec2.feature_extractor
        steps = int(encoder.out_lengths(torch.tensor(samples)))
        hop = self.model.config.inputs_to_logits_ratio
        middle = (torch.arange(steps) * hop + encoder.receptive_field / 2) / _RATE
        labels = torch.full((len(utterances), steps), self.classes[self.options.background])
        for row, item in zip(labels, utterances, strict=True):
            for start, end, name in _segments(item, self.options.label):
                if name in self.classes:  # of held-out speech it may be one that nobody learnt
                    row[(middle >= start) & (middle < end)] = self.classes[name]
        return labels.masked_fill(~inside(encoder.out_lengths(lengths), steps), _IGNORED)

    def losses(self, batch: Batch, step: int) -> Iterator[Losses]:
        """Cross-entropy, a mean over clips or steps, or AM-softmax, a mean over clips."""
        waveforms, lengths = self.augmented(batch["waveforms"], batch["lengths"], step)
        values, mask = wav2vec2_inputs(waveforms, lengths, self.extractor)
        labels = batch["labels"]
        if self.options.kind == "frames":
            logits = self.model(values, mask).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=_IGNORED)
            real = labels != _IGNORED
            right = ((logits.detach().argmax(-1) == labels) & real).sum() / real.sum()
            yield Losses(_OPTIMIZER, loss, {"cross_entropy": loss, "accuracy": right}, weight=real.sum())
            return
        out = self.model(values, mask, labels=labels)
        parts = {"am_softmax" if self.options.kind == "speaker" else "cross_entropy": out.loss}
        if self.options.kind == "sequence":
            parts["accuracy"] = (out.logits.detach().argmax(-1) == labels).float().mean()
        yield Losses(_OPTIMIZER, out.loss, parts, weight=len(labels))

    # Judging

    def evaluate(self, step: int) -> dict[str, float]:
        """Accuracy on held-out clips or steps, or the equal error rate over all pairs of clips."""
        if not self.held_out:
            return {}
        if self.options.kind == "speaker":
            found = [(items, self._output(clips)[0].embeddings) for items, clips in self.groups(self.held_out)]
            speakers = [self._names(item)[0] for items, _ in found for item in items]
            embeddings = torch.cat([embedding.float().cpu() for _, embedding in found])
            return {"eer": equal_error_rate(*trial_scores(embeddings, speakers))}
        right = total = 0
        for items, clips in self.groups(self.held_out):
            out, samples, lengths = self._output(clips)
            chosen = out.logits.argmax(-1).cpu()
            if self.options.kind == "frames":
                labels = self._step_labels(items, samples, lengths)
            else:
                labels = torch.tensor([self.classes.get(self._names(item)[0], -1) for item in items])
            right += int((chosen == labels).sum())
            total += int((labels != _IGNORED).sum())
        return {"accuracy": right / total}

    def _output(self, clips: Sequence[Audio]) -> tuple[Any, int, Tensor]:
        """What the model gives for clips, the samples that they are padded to, and their lengths (B,) on the CPU."""
        rows = [torch.from_numpy(clip.samples[0]) for clip in clips]
        lengths = torch.tensor([len(row) for row in rows])
        waveforms = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.model.device)
        values, mask = wav2vec2_inputs(waveforms, lengths.to(self.model.device), self.extractor)
        return self.model(values, mask), values.shape[1], lengths

    def save(self, folder: Path) -> None:
        """The model and its feature extractor."""
        self.model.save_pretrained(folder)
        self.extractor.save_pretrained(folder)


def _segments(utterance: Utterance, name: str) -> list[tuple[float, float, str]]:
    """What the column holds, as JSON where the table is no JSON itself.

    Raises ConfigError where it is no list of segments.
    """
    value = column(utterance, name)
    try:
        found = json.loads(value) if isinstance(value, str) else value
        return [(float(start), float(end), str(label)) for start, end, label in found]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"expected {name} of {utterance.name} as a list of [start_seconds, end_seconds, class], got {str(value)[:60]!r}; "
            "mend the table"
        ) from error
