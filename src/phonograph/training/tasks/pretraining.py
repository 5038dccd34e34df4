"""Wav2Vec2 from speech without transcripts: find the quantised features of masked steps among others (arXiv:2006.11477).

    task: pretraining
    options:
      model: {}                             # Wav2Vec2Config's defaults are BASE
      data: {path: LibriSpeech}

The loss is the contrastive one and the weighted diversity of the codebooks (section 3.2), the temperature of the Gumbel softmax
falls as in section 4.2, masks and distractors are drawn as the configuration says. Utterances are cut at random to
`data.batches.crop_seconds`. What the paper does besides for BASE is left out: the L2 penalty on features before their norm, and
the factor of the gradient of the convolutions, which Adam, for which only directions count, takes out again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn

from phonograph.configuration import Rule
from phonograph.errors import ConfigError
from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from phonograph.models.wav2vec2.feature_extraction_wav2vec2 import Wav2Vec2FeatureExtractor
from phonograph.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForPreTraining
from phonograph.models.wav2vec2.outputs_wav2vec2 import Wav2Vec2ForPreTrainingOutput
from phonograph.models.wav2vec2.quantization_wav2vec2 import gumbel_temperature
from phonograph.nn.masks import inside
from phonograph.training.data import SpeechBatch
from phonograph.training.features import wav2vec2_inputs
from phonograph.training.filterbank import start_as_filterbank
from phonograph.training.losses import contrastive_accuracy
from phonograph.training.task import Batch, Losses, ParameterGroup, RunContext
from phonograph.training.tasks.speech import Needs, SpeechOptions, SpeechTask, split_decayed

__all__ = ["PretrainingOptions", "PretrainingTask"]

_OPTIMIZER = "main"


@dataclass(frozen=True)
class PretrainingOptions(SpeechOptions):
    """What is pretrained, and how.

    Raises:
        ConfigError: the temperature would rise, or a checkpoint's convolutions are to begin anew.
    """

    init: Annotated[str | None, Rule("checkpoint to go on from; None starts from nothing")] = None
    model: Annotated[dict[str, Any], Rule("fields of Wav2Vec2Config, over those of the checkpoint")] = field(
        default_factory=dict
    )
    filterbank_start: Annotated[bool, Rule("a new model's first convolution begins as a mel filter bank")] = False
    temperature_start: Annotated[float, Rule("of the Gumbel softmax at the first step", above=0)] = 2.0
    temperature_end: Annotated[float, Rule("below which it does not fall: 0.5 for BASE, 0.1 for LARGE", above=0)] = 0.5
    temperature_decay: Annotated[float, Rule("factor of each step", above=0, maximum=1)] = 0.999995

    def __post_init__(self) -> None:
        if self.init is not None and self.filterbank_start:
            raise ConfigError(f"init={self.init!r}, filterbank_start=True: a checkpoint keeps its convolutions; leave one out")
        if self.temperature_end > self.temperature_start:
            raise ConfigError(
                f"temperature_start={self.temperature_start}, temperature_end={self.temperature_end}: it falls; swap them"
            )


class PretrainingTask(SpeechTask):
    """Trains a `Wav2Vec2ForPreTraining`; its result is that model, from which fine-tuning starts.

    Raises:
        ConfigError: data that cannot be trained on, or a model that no pretraining is for.
        CheckpointError: the checkpoint cannot be loaded.
    """

    Options = PretrainingOptions

    def __init__(self, options: PretrainingOptions, context: RunContext) -> None:
        self.extractor = _extractor(options)
        super().__init__(options, context, Needs(self.extractor.sampling_rate, transcripts=False, whole=False))
        self.options = options
        if options.init is None:
            self.model = Wav2Vec2ForPreTraining(Wav2Vec2Config(**options.model))
            if options.filterbank_start:
                start_as_filterbank(self.model.wav2vec2.feature_extractor, self.extractor.sampling_rate)
        else:
            self.model = Wav2Vec2ForPreTraining.from_pretrained(options.init, **options.model)
        self.modules = nn.ModuleDict({"model": self.model})

    def parameter_groups(self) -> list[ParameterGroup]:
        """All of the model, in one optimiser."""
        return split_decayed(_OPTIMIZER, list(self.model.parameters()), "model")

    def collate(self, batch: SpeechBatch) -> Batch:
        """waveforms (B, S), lengths (B,)."""
        return {"waveforms": batch.waveforms, "lengths": batch.lengths, "seconds": self.seconds(batch)}

    def losses(self, batch: Batch, step: int) -> Iterator[Losses]:
        """The loss, a mean over masked steps."""
        options = self.options
        temperature = gumbel_temperature(step, options.temperature_start, options.temperature_end, options.temperature_decay)
        self.model.set_gumbel_temperature(temperature)
        waveforms, lengths = self.augmented(batch["waveforms"], batch["lengths"], step)
        out, masked, negatives = self._judged(waveforms, lengths)
        count = masked.sum().clamp_min(1)
        parts = {
            "contrastive": cast(Tensor, out.contrastive_loss).detach() / count,
            "diversity": cast(Tensor, out.diversity_loss).detach() / count,
            "perplexity": cast(Tensor, out.codevector_perplexity).detach(),
            "accuracy": _accuracy(out, masked, negatives),
            "temperature": torch.full((), temperature, device=masked.device),
        }
        yield Losses(_OPTIMIZER, cast(Tensor, out.loss) / count, parts, weight=count)

    def _judged(self, waveforms: Tensor, lengths: Tensor) -> tuple[Wav2Vec2ForPreTrainingOutput, Tensor, Tensor]:
        """The model's output, masked steps (B, T) and their distractors (B, T, N)."""
        values, mask = wav2vec2_inputs(waveforms, lengths, self.extractor)
        masked, negatives = self.model.sample_masks(values.shape[1], inside(lengths, values.shape[1]))
        return self.model(values, mask, masked, negatives, return_dict=True), masked, negatives

    def evaluate(self, step: int) -> dict[str, float]:
        """Losses a masked step, contrastive accuracy and perplexity on held-out speech, masks drawn the same each time."""
        if not self.held_out:
            return {}
        device = self.model.device
        sums = torch.zeros(4, dtype=torch.float64)
        total = 0.0
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.context.seed)
            for _, clips in self.groups(self.held_out):
                rows = [torch.from_numpy(clip.samples[0]) for clip in clips]
                lengths = torch.tensor([len(row) for row in rows], device=device)
                waveforms = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
                out, masked, negatives = self._judged(waveforms, lengths)
                count = float(masked.sum())
                figures = (out.contrastive_loss, out.diversity_loss)
                values = [float(cast(Tensor, figure)) for figure in figures]
                values += [
                    float(_accuracy(out, masked, negatives)) * count,
                    float(cast(Tensor, out.codevector_perplexity)) * count,
                ]
                sums += torch.tensor(values, dtype=torch.float64)
                total += count
        names = ("contrastive", "diversity", "accuracy", "perplexity")
        return dict(zip(names, (sums / max(total, 1.0)).tolist(), strict=True))

    def save(self, folder: Path) -> None:
        """The model and its feature extractor."""
        self.model.save_pretrained(folder)
        self.extractor.save_pretrained(folder)


def _extractor(options: PretrainingOptions) -> Wav2Vec2FeatureExtractor:
    if options.init is not None:
        return Wav2Vec2FeatureExtractor.from_pretrained(options.init)
    return Wav2Vec2FeatureExtractor(return_attention_mask=options.model.get("feat_extract_norm") == "layer")


def _accuracy(out: Wav2Vec2ForPreTrainingOutput, masked: Tensor, negatives: Tensor) -> Tensor:
    predicted, targets = cast(Tensor, out.projected_states), cast(Tensor, out.projected_quantized_states)
    return contrastive_accuracy(predicted.detach(), targets.detach(), masked, negatives)
