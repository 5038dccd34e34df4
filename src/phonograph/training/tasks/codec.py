"""Training of Mimi: a generator against discriminators (arXiv:2410.00037, section 3.3; EnCodec, arXiv:2210.13438).

The codec's output is judged by how far its spectra are from the original's and, from `adversary.from_step` on, by multi-scale
STFT discriminators and how their features differ; a balancer gives each its share of the gradient. Without the shares `mel` and
`waveform` training is adversarial only. Some items use fewer codebooks (quantiser dropout), some none: their latents reach the
decoder as they are. Codebooks start by k-means at `quantizer.from_step` and follow the latents by moving averages; entries that
are hardly used are revived. With `distillation`, the semantic codebooks learn to say what a speech encoder says. With
`freeze_encoder` tokens stay what they are, and only what turns them into sound goes on learning.

Figures are of whole held-out utterances at several numbers of codebooks: mel distance, STOI and PESQ where their packages are
installed and, with `judging.recognizer`, the word error rate beside that of the original (`phonograph.training.codec.judging`).

Shapes: B items, S samples, F frames, H hidden size.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.audio import Audio
from phonograph.configuration import DTYPES, Rule
from phonograph.errors import ConfigError, MissingExtraError
from phonograph.files import make_folder
from phonograph.models.mimi.configuration_mimi import MimiConfig
from phonograph.models.mimi.feature_extraction_mimi import MimiFeatureExtractor
from phonograph.models.mimi.modeling_mimi import MimiModel
from phonograph.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model
from phonograph.nn.conv import StreamingConv1d
from phonograph.training.codec.discriminators import StftDiscriminators
from phonograph.training.codec.judging import CodecJudge
from phonograph.training.codec.listeners import Listener, load_listener
from phonograph.training.codec.losses import (
    GradientBalancer,
    MelLoss,
    adversarial_loss,
    discriminator_loss,
    distillation_loss,
    feature_loss,
)
from phonograph.training.codec.pictures import draw_spectrograms
from phonograph.training.codec.spectra import SPEECH_LEVEL, Spectra
from phonograph.training.data import SpeechBatch, Utterance
from phonograph.training.data.augment import change_speed
from phonograph.training.task import Batch, Losses, ParameterGroup, RunContext
from phonograph.training.tasks.speech import Needs, SpeechOptions, SpeechTask

__all__ = [
    "AdversaryOptions",
    "CodecOptions",
    "CodecTask",
    "DistillationOptions",
    "JudgingOptions",
    "LossShares",
    "QuantizerOptions",
    "TeacherFeatures",
]

_TEACHER_RATE = 16000
_LEVEL_FRAMES = 10
_WINDOW = Rule("sizes in samples, multiples of four", minimum=16)


@dataclass(frozen=True)
class LossShares:
    """What share of the output's gradient each loss gets, relative to the others; those of EnCodec by default."""

    mel: Annotated[float, Rule("of the distance of mel spectra; 0 leaves it out", minimum=0)] = 1.0
    # Where bits don't suffice for phases this one teaches silence: the recipes leave it out (docs/log.md).
    waveform: Annotated[float, Rule("of the mean absolute difference of samples; 0 leaves it out", minimum=0)] = 0.1
    adversarial: Annotated[float, Rule("of the discriminators' scores", above=0)] = 3.0
    features: Annotated[float, Rule("of the difference of discriminators' features", above=0)] = 3.0


@dataclass(frozen=True)
class AdversaryOptions:
    """The discriminators."""

    windows: Annotated[list[int], _WINDOW] = field(default_factory=lambda: [2048, 1024, 512, 256, 128])
    channels: Annotated[int, Rule("of each layer", minimum=1)] = 32
    from_step: Annotated[int | None, Rule("steps without discriminators; None for never any", minimum=0)] = 0


@dataclass(frozen=True)
class QuantizerOptions:
    """How codebooks are trained."""

    from_step: Annotated[int, Rule("steps in which latents reach the decoder as they are", minimum=0)] = 0
    commitment: Annotated[float, Rule("weight of the latents' distance from their codewords", minimum=0)] = 0.01
    decay: Annotated[float, Rule("of the codebooks' moving averages, a batch", minimum=0, maximum=1)] = 0.99
    revive_below: Annotated[float, Rule("share of the average use below which an entry is revived", minimum=0)] = 0.1
    dropout_share: Annotated[float, Rule("of items that use a random number of codebooks", minimum=0, maximum=1)] = 0.5
    unquantized_share: Annotated[float, Rule("of items whose latents aren't quantised", minimum=0, maximum=1)] = 0.5


@dataclass(frozen=True)
class DistillationOptions:
    """A speech encoder that teaches the semantic codebooks."""

    teacher: Annotated[str, Rule("name, folder or hub id of a Wav2Vec2 model")]
    layer: Annotated[int | None, Rule("the transformer layer whose output is learnt; None for the last", minimum=0)] = None
    weight: Annotated[float, Rule("of 1 - cosine similarity", above=0)] = 1.0


@dataclass(frozen=True)
class JudgingOptions:
    """What is measured on held-out speech, and kept to listen to."""

    codebooks: Annotated[list[int], Rule("numbers of codebooks to judge with; empty is all of them", minimum=1)] = field(
        default_factory=list
    )
    samples: Annotated[int, Rule("utterances written as audio and as a picture at each evaluation", minimum=0)] = 4
    recognizer: Annotated[
        str | None, Rule("for word error rates: a Wav2Vec2 made for CTC or a Speech2Text, or whisper: and a size or folder")
    ] = None
    dtype: Annotated[str, Rule("type that weights are saved in", choices=DTYPES)] = "float32"


@dataclass(frozen=True)
class CodecOptions(SpeechOptions):
    """Options of `CodecTask`. Data is cut to `data.batches.crop_seconds`, which must be given.

    Raises:
        ConfigError: not one of `config` and `pretrained`, a configuration that no Mimi has, a number of codebooks that it
            hasn't, windows that no hop divides, or no length to cut to.
    """

    config: Annotated[dict[str, Any] | None, Rule("fields of MimiConfig, for a codec from nothing")] = None
    pretrained: Annotated[str | None, Rule("name, folder or hub id of a Mimi to start from")] = None
    freeze_encoder: Annotated[bool, Rule("train the decoder alone, so that tokens stay what they are")] = False
    mel_windows: Annotated[list[int], _WINDOW] = field(default_factory=lambda: [2048, 1024, 512, 256, 128, 64, 32])
    shares: LossShares = field(default_factory=LossShares)
    adversary: AdversaryOptions = field(default_factory=AdversaryOptions)
    quantizer: QuantizerOptions = field(default_factory=QuantizerOptions)
    distillation: DistillationOptions | None = None
    judging: JudgingOptions = field(default_factory=JudgingOptions)

    def __post_init__(self) -> None:
        if (self.config is None) == (self.pretrained is None):
            raise ConfigError("exactly one of config and pretrained must be given")
        if unfit := [size for size in (*self.mel_windows, *self.adversary.windows) if size % 4]:
            raise ConfigError(f"windows of {unfit} samples must be multiples of four")
        if self.data.batches.crop_seconds is None:
            raise ConfigError("data.batches.crop_seconds must be given, the length of what is trained on")
        if self.adversary.from_step is None and self.shares.mel == self.shares.waveform == 0:
            raise ConfigError("adversary.from_step=None, shares.mel=0, shares.waveform=0: one loss must be left")
        if self.freeze_encoder and (self.pretrained is None or self.distillation is not None or self.quantizer.from_step > 0):
            raise ConfigError("freeze_encoder=True needs pretrained, and neither distillation nor quantizer.from_step")
        if self.config is not None:
            _check_codebooks(self.judging.codebooks, MimiConfig(**self.config))


class TeacherFeatures(nn.Module):
    """What a Wav2Vec2 model says of audio, at the codec's frames: its hidden states, averaged over 160 ms each 80 ms.

    Args:
        options: which model and layer.
        codec: the configuration of the codec that is taught.

    Raises:
        CheckpointError: there is no such model. ConfigError: it has no such layer, or its steps don't fit the codec's frames.
    """

    def __init__(self, options: DistillationOptions, codec: MimiConfig) -> None:
        super().__init__()
        self.model = Wav2Vec2Model.from_pretrained(options.teacher).requires_grad_(False).eval()
        self.layer = self.model.config.num_hidden_layers if options.layer is None else options.layer
        self.hop = self.model.config.inputs_to_logits_ratio
        self.sampling_rate = codec.sampling_rate
        self.receptive_samples = 1
        shape = zip(self.model.config.conv_kernel[::-1], self.model.config.conv_stride[::-1], strict=True)
        for kernel, stride in shape:
            self.receptive_samples = (self.receptive_samples - 1) * stride + kernel
        steps = _TEACHER_RATE / (self.hop * codec.frame_rate)
        if steps % 2 or self.layer > self.model.config.num_hidden_layers:
            raise ConfigError(
                f"expected a teacher of at least {self.layer} layers and an even number of steps in a frame of the codec, got "
                f"{self.model.config.num_hidden_layers} layers and {steps:g} steps; choose another teacher or layer"
            )
        self.steps = int(steps)

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """(B, S) at the codec's rate, whole frames -> (B, F, H of the teacher)."""
        lengths = torch.full((len(audio),), audio.shape[1], device=audio.device)
        audio = change_speed(audio.float(), lengths, self.sampling_rate / _TEACHER_RATE)[0]
        audio = (audio - audio.mean(-1, keepdim=True)) / (audio.var(-1, keepdim=True, unbiased=False) + 1e-7).sqrt()
        padded = F.pad(audio, (0, self.receptive_samples - self.hop))  # one hidden state for each hop
        hidden = self.model(padded, output_hidden_states=True).hidden_states[self.layer].transpose(1, 2)
        pooled = F.avg_pool1d(hidden, 2 * self.steps, self.steps, self.steps // 2, count_include_pad=False)
        return pooled.transpose(1, 2)


class CodecTask(SpeechTask):
    """Mimi, trained as the module's docstring says; a `Task` of the loop with optimisers "generator" and "discriminator"."""

    Options = CodecOptions

    def __init__(self, options: CodecOptions, context: RunContext) -> None:
        self.options = options
        codec = _new_codec(options)
        if options.freeze_encoder:
            codec.requires_grad_(False)
            for part in _decoding(codec):
                part.requires_grad_(True)
        config = codec.config
        self._check(config)
        super().__init__(options, context, Needs(config.sampling_rate, transcripts=False, whole=False))
        self.training = self._by_length(self.training)
        self.modules = nn.ModuleDict({"codec": codec, "mel": MelLoss(options.mel_windows, config.sampling_rate)})
        self.modules["spectra"] = Spectra(self._windows())
        self.modules["balancer"] = GradientBalancer({name: share for name, share in vars(options.shares).items() if share > 0})
        if options.adversary.from_step is not None:
            self.modules["discriminators"] = StftDiscriminators(options.adversary.windows, options.adversary.channels)
        self.teacher: TeacherFeatures | None = None
        if options.distillation is not None:
            # Not among the modules: it doesn't change, and needs no place in checkpoints.
            self.teacher = TeacherFeatures(options.distillation, config).to(context.device)
            self.modules["to_teacher"] = nn.Linear(config.hidden_size, self.teacher.model.config.hidden_size, bias=False)
        self._coverage: dict[str, str] = {}
        self._listener: Listener | None = None
        if options.judging.recognizer is not None and context.rank == 0:
            self._listener = load_listener(options.judging.recognizer, str(context.device))

    @property
    def codec(self) -> MimiModel:
        """The model in training."""
        return cast(MimiModel, self.modules["codec"])

    def parameter_groups(self) -> list[ParameterGroup]:
        """The generator's transformers, whose weights decay, and convolutions, whose weights don't; the discriminators."""
        codec, frozen = self.codec, self.options.freeze_encoder
        parts = _decoding(codec) if frozen else [codec]
        transformers = [codec.decoder_transformer] if frozen else [codec.encoder_transformer, codec.decoder_transformer]
        decayed = [parameter for part in transformers for parameter in part.parameters() if parameter.dim() > 1]
        known = {id(parameter) for parameter in decayed}
        others = [parameter for part in parts for parameter in part.parameters() if id(parameter) not in known]
        if "to_teacher" in self.modules:
            others += list(self.modules["to_teacher"].parameters())
        groups = [
            ParameterGroup("generator", decayed, "transformers"),
            ParameterGroup("generator", others, "convolutions and vectors", weight_decay=0.0),
        ]
        if "discriminators" in self.modules:
            judges = list(self.modules["discriminators"].parameters())
            start = self.options.adversary.from_step or 0
            groups.append(ParameterGroup("discriminator", judges, "discriminators", frozen_steps=start, ema=False))
        return groups

    def collate(self, batch: SpeechBatch) -> Batch:
        """Waveforms (B, S), and their lengths (B,)."""
        seconds = batch.waveforms.numel() / self.codec.config.sampling_rate
        return {"waveforms": batch.waveforms, "lengths": batch.lengths, "seconds": seconds}

    def losses(self, batch: Batch, step: int) -> Iterator[Losses]:
        """The generator's phase and, once discriminators take part, theirs."""
        audio = self.augmented(batch["waveforms"], batch["lengths"], step)[0]
        audio = self._whole_frames(audio)
        start = self.options.adversary.from_step
        adversarial = start is not None and step >= start
        with torch.no_grad():
            original = self.modules["spectra"](audio)
        made, extra, parts = self._reconstructed(audio, step)
        leaf = made.detach().float().requires_grad_()
        spectra = self.modules["spectra"](leaf)
        judged = self._distances(audio, leaf, original, spectra)
        if adversarial:
            with torch.no_grad():
                real = self.modules["discriminators"](original)
            fake = self.modules["discriminators"](spectra)
            judged |= {"adversarial": adversarial_loss(fake), "features": feature_loss(real, fake)}
        balanced = self.modules["balancer"](judged, leaf, made) if judged else 0 * made.sum()
        yield Losses("generator", balanced + extra, {**judged, **parts}, weight=float(len(audio)))
        if adversarial:
            both = {size: torch.cat([original[size], spectra[size].detach()]) for size in original}
            halves = [judgement.halves() for judgement in self.modules["discriminators"](both)]
            loss = discriminator_loss([half[0] for half in halves], [half[1] for half in halves])
            yield Losses("discriminator", loss, {"discriminators": loss}, weight=float(len(audio)))

    def evaluate(self, step: int) -> dict[str, float]:
        """The figures of a `CodecJudge`; the first utterances as audio and as pictures."""
        if not self.held_out:
            return {}
        judge = CodecJudge(self.codec, self.options.judging.codebooks, listener=self._listener)
        for place, utterance in enumerate(self.held_out):
            original = Audio(self.store.samples(utterance)[None], self.store.sampling_rate)
            recordings = judge.add(original, utterance.text)
            if place < self.options.judging.samples:
                self._write_sample(step, place, recordings)
        self._coverage = judge.coverage()
        return judge.figures()

    def save(self, folder: Path) -> None:
        """The codec in the type that `judging.dtype` names, codebooks in float32, and its feature extractor."""
        config = self.codec.config
        saved = copy.deepcopy(self.codec).to(getattr(torch, self.options.judging.dtype))
        saved.save_pretrained(folder)
        extractor = MimiFeatureExtractor(feature_size=config.audio_channels, sampling_rate=config.sampling_rate)
        extractor.save_pretrained(folder)

    def describe(self) -> dict[str, Any]:
        """Data, size and bitrate, for the model card."""
        config = self.codec.config
        bits = config.frame_rate * (config.codebook_size - 1).bit_length()
        described = super().describe()
        described["model"] = {
            "parameters": sum(parameter.numel() for parameter in self.codec.parameters()),
            "codebooks": f"{config.num_quantizers} of {config.codebook_size} entries",
            "bitrate": f"{bits:g} bit/s a codebook, {bits * config.num_quantizers / 1000:g} kbit/s in all",
        }
        if self._coverage:
            described["measured_on"] = self._coverage
        return described

    # Steps

    def _check(self, config: MimiConfig) -> None:
        if config.audio_channels != 1:
            raise ConfigError(f"expected a codec of one channel, got {config.audio_channels}; train mono")
        _check_codebooks(self.options.judging.codebooks, config)
        crop, longest = cast(float, self.options.data.batches.crop_seconds) * config.sampling_rate, max(self._windows())
        if crop <= longest // 2:
            raise ConfigError(
                f"expected data.batches.crop_seconds above half the longest window, got {crop:g} samples for one of {longest}; "
                "raise it or leave out long windows"
            )

    def _windows(self) -> list[int]:
        judges = [] if self.options.adversary.from_step is None else self.options.adversary.windows
        return sorted({*self.options.mel_windows, *judges}, reverse=True)

    def _by_length(self, utterances: Sequence[Utterance]) -> list[Utterance]:
        """Each utterance as often as its length holds what is cut from it, so that an epoch takes from all of it."""
        crop = cast(float, self.options.data.batches.crop_seconds)
        return [item for item in utterances for _ in range(max(1, round((item.duration_seconds or crop) / crop)))]

    def _whole_frames(self, audio: Tensor) -> Tensor:
        return F.pad(audio, (0, -audio.shape[1] % self.codec.frame_samples))

    def _reconstructed(self, audio: Tensor, step: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What the codec makes of audio (B, S), the losses that aren't of its output, weighted, and each of them."""
        options = self.options.quantizer
        if self.options.freeze_encoder:
            with torch.no_grad():
                latents = self.codec.encode_latents(audio[:, None])
                quantized = self.codec.quantizer(latents, counts=self._counts(latents), decay=1.0)  # which moves no codebook
            return self.codec.decode_latents(quantized.quantized)[:, 0], latents.new_zeros(()), {}
        latents = self.codec.encode_latents(audio[:, None])
        if step < options.from_step:
            return self.codec.decode_latents(latents)[:, 0], latents.new_zeros(()), {}
        quantized = self.codec.quantizer(
            latents, counts=self._counts(latents), decay=options.decay, revive_below=options.revive_below
        )
        made = self.codec.decode_latents(quantized.quantized)[:, 0]
        parts = {"commitment": quantized.commitment_loss}
        extra = options.commitment * quantized.commitment_loss
        if self.teacher is not None and self.options.distillation is not None:
            parts["distillation"] = distillation_loss(self.modules["to_teacher"](quantized.semantic), self.teacher(audio))
            extra = extra + self.options.distillation.weight * parts["distillation"]
        return made, extra, parts

    def _counts(self, latents: Tensor) -> Tensor:
        """Codebooks that each item (B,) uses, drawn at random; 0 for none."""
        options, config = self.options.quantizer, self.codec.config
        size, device = (len(latents),), latents.device
        least, most = config.num_semantic_quantizers, config.num_quantizers
        fewer = torch.randint(least, most + 1, size, device=device)
        counts = torch.where(torch.rand(size, device=device) < options.dropout_share, fewer, most)
        return counts.masked_fill(torch.rand(size, device=device) < options.unquantized_share, 0)

    def _distances(
        self, audio: Tensor, made: Tensor, original: dict[int, Tensor], spectra: dict[int, Tensor]
    ) -> dict[str, Tensor]:
        shares = self.options.shares
        found = {}
        if shares.mel > 0:
            found["mel"] = self.modules["mel"](original, spectra)
        if shares.waveform > 0:
            found["waveform"] = F.l1_loss(made, audio)
        return found

    # Judging

    def _write_sample(self, step: int, place: int, recordings: dict[str, Audio]) -> None:
        folder = self.context.folder / "samples" / f"step-{step:07d}"
        make_folder(folder)
        for label, audio in recordings.items():
            audio.save(folder / f"{place}-{label.replace(' ', '-')}.wav")
        try:
            draw_spectrograms(folder / f"{place}.png", recordings)
        except MissingExtraError:
            return  # pictures are for whoever has matplotlib


def _new_codec(options: CodecOptions) -> MimiModel:
    if options.pretrained is not None:
        return MimiModel.from_pretrained(options.pretrained, dtype="float32")
    codec = MimiModel(MimiConfig(**(options.config or {})))
    _quieten(codec)
    return codec


def _decoding(codec: MimiModel) -> list[nn.Module]:
    """What comes after the codewords."""
    return [part for part in (codec.upsample, codec.decoder_transformer, codec.decoder) if part is not None]


@torch.no_grad()
def _quieten(codec: MimiModel) -> None:
    """Scale the last layer so that an untrained codec's output is about as loud as speech.

    As initialised it is a hundred times too loud, and the steps that quieten it silence the encoder for thousands more.
    """
    noise = SPEECH_LEVEL * torch.randn(1, codec.config.audio_channels, _LEVEL_FRAMES * codec.frame_samples)
    made = codec.decode_latents(codec.encode_latents(noise))
    last = cast(StreamingConv1d, codec.decoder.layers[-1]).conv
    for parameter in last.parameters():
        parameter.mul_(SPEECH_LEVEL / made.std())


def _check_codebooks(numbers: Sequence[int], config: MimiConfig) -> None:
    least, most = config.num_semantic_quantizers, config.num_quantizers
    if outside := [number for number in numbers if not least <= number <= most]:
        raise ConfigError(f"judging.codebooks={outside} must be from {least} to {most}, the codebooks that there are")
