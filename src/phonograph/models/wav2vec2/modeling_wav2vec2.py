"""Wav2Vec2: speech to a vector each 20 ms, and from there to text, classes or speakers (Baevski et al. 2020, arXiv:2006.11477).

Read from top to bottom: what all models share, the model that joins the convolutions of features_wav2vec2.py with the
transformer of encoder_wav2vec2.py, and its heads: CTC, pretraining, classes of a clip or of each step, x-vectors.

    model = Wav2Vec2ForCTC.from_pretrained("facebook/wav2vec2-base-960h")
    logits = model(input_values).logits

Shapes: B batch, S samples (16 kHz), T steps (50 Hz, fewer with add_adapter), C channels of the convolutions, H hidden size,
N heads, V tokens or classes. It knows no text and no files of audio: `Wav2Vec2Processor` makes input_values and reads logits.
"""

import math
import os
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.configuration import PreTrainedConfig
from phonograph.errors import AudioError, CheckpointError, ConfigError
from phonograph.loading import hub, weights
from phonograph.models.base import PreTrainedModel, beside
from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from phonograph.models.wav2vec2.encoder_wav2vec2 import (
    Wav2Vec2Adapter,
    Wav2Vec2AttnAdapterLayer,
    Wav2Vec2Encoder,
    Wav2Vec2PositionalConv,
    Wav2Vec2WeightNorm,
)
from phonograph.models.wav2vec2.features_wav2vec2 import (
    PatchSums,
    Wav2Vec2FeatureEncoder,
    Wav2Vec2FeatureProjection,
    checked_lengths,
)
from phonograph.models.wav2vec2.masking_wav2vec2 import compute_mask_indices as _compute_mask_indices
from phonograph.models.wav2vec2.masking_wav2vec2 import masked_spans, sampled_negatives, spec_augment
from phonograph.models.wav2vec2.masking_wav2vec2 import sample_negative_indices as _sample_negative_indices
from phonograph.models.wav2vec2.outputs_wav2vec2 import (
    CausalLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    Wav2Vec2BaseModelOutput,
    Wav2Vec2ForPreTrainingOutput,
    XVectorOutput,
)
from phonograph.models.wav2vec2.quantization_wav2vec2 import Wav2Vec2GumbelVectorQuantizer, contrastive_loss
from phonograph.models.wav2vec2.xvector_wav2vec2 import Wav2Vec2AMSoftmax, Wav2Vec2TDNNLayer, pooled_statistics
from phonograph.nn.attention import attention_function
from phonograph.nn.dropout import Dropout
from phonograph.nn.linear import Linear
from phonograph.nn.masks import inside

__all__ = [
    "CausalLMOutput",
    "SequenceClassifierOutput",
    "TokenClassifierOutput",
    "Wav2Vec2BaseModelOutput",
    "Wav2Vec2ForAudioFrameClassification",
    "Wav2Vec2ForCTC",
    "Wav2Vec2ForPreTraining",
    "Wav2Vec2ForPreTrainingOutput",
    "Wav2Vec2ForSequenceClassification",
    "Wav2Vec2ForXVector",
    "Wav2Vec2Model",
    "Wav2Vec2PreTrainedModel",
    "XVectorOutput",
    "_compute_mask_indices",
    "_sample_negative_indices",
]

H = TypeVar("H", bound="Wav2Vec2ForCTC")

_POSITION_CONV = "encoder.pos_conv_embed.conv."
_OLD_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}

# ----------------------------------------------------------------------------------------------------- what models share


class Wav2Vec2PreTrainedModel(PreTrainedModel):
    """Base of the model and its heads: lengths, freezing, language adapters, both namings of the weight norm."""

    config_class = Wav2Vec2Config
    config: Wav2Vec2Config
    base_model_prefix = "wav2vec2"
    _may_be_missing = ("masked_spec_embed",)
    _optional_parts = (r"adapter\..*", r"encoder\.layers\.\d+\.adapter_layer\..*")
    _other_heads = (
        *("masked_spec_embed", "layer_weights", "lm_head.", "quantizer.", "project_q.", "project_hid."),
        *("projector.", "classifier.", "tdnn.", "objective.", "feature_extractor.weight", "feature_extractor.bias"),
    )

    @property
    def _model(self) -> "Wav2Vec2Model":
        return cast("Wav2Vec2Model", self.base_model)

    def set_attn_implementation(self, name: str) -> None:
        """Choose "eager", "sdpa" or "flash_attention_2".

        Raises:
            ConfigError: no such implementation. MissingExtraError: flash attention is not installed.
        """
        attention_function(name)
        self._model.encoder.attn_implementation = name

    def freeze_feature_encoder(self) -> None:
        """Train the convolutions no further, as fine-tuning does."""
        self._model.feature_extractor.requires_grad_(False)

    def freeze_base_model(self) -> None:
        """Train nothing but the head."""
        self._model.requires_grad_(False)

    # Lengths

    def _is_exact(self, exact_padding: bool | None) -> bool:
        return bool(getattr(self.config, "exact_padding", False) if exact_padding is None else exact_padding)

    def _get_feat_extract_output_lengths(self, input_lengths: Tensor | int, add_adapter: bool | None = None) -> Tensor:
        """Steps that so many samples (any shape, int) become, after the adapter if the model has one or as told."""
        lengths = self._model.feature_extractor.out_lengths(torch.as_tensor(input_lengths))
        adapter = self._model.adapter
        return lengths if adapter is None or add_adapter is False else adapter.out_lengths(lengths)

    def _get_feature_vector_attention_mask(
        self, feature_vector_length: int, attention_mask: Tensor, add_adapter: bool | None = None
    ) -> Tensor:
        """(B, S) -> (B, feature_vector_length) bool, true for the steps that lie within the items."""
        lengths = self._get_feat_extract_output_lengths(attention_mask.long().sum(-1), add_adapter)
        return inside(lengths, feature_vector_length)

    # Language adapters

    def init_adapter_layers(self) -> None:
        """Start the language adapters of all layers, and a CTC head, from fresh values, to train another language."""
        for module in self.modules():
            if isinstance(module, Wav2Vec2AttnAdapterLayer):
                module.apply(self._init_weights)
        if isinstance(self, Wav2Vec2ForCTC):
            self.lm_head.apply(self._init_weights)

    def _get_adapters(self) -> dict[str, nn.Parameter]:
        """The parameters of the language adapters and of a CTC head by name: what the file of a language holds."""
        if self.config.adapter_attn_dim is None or not self.config.do_stable_layer_norm:
            raise ConfigError(
                f"expected a model with language adapters, got adapter_attn_dim={self.config.adapter_attn_dim}, "
                f"do_stable_layer_norm={self.config.do_stable_layer_norm}; load one such as facebook/mms-1b-all"
            )
        return {name: value for name, value in self.named_parameters() if ".adapter_layer." in name or "lm_head." in name}

    # Checkpoints

    @classmethod
    def _renaming(cls, config: PreTrainedConfig) -> weights.Renaming:
        prefixes = (_POSITION_CONV, f"{cls.base_model_prefix}.{_POSITION_CONV}")
        return weights.Renaming({p + old: p + new for p in prefixes for old, new in _OLD_WEIGHT_NORM.items()})

    def save_pretrained(self, folder: str | os.PathLike[str], *, old_weight_norm_names: bool = False) -> None:
        """Write config.json and model.safetensors; transformers loads the folder back with equal outputs.

        Args:
            old_weight_norm_names: `weight_g` and `weight_v`, for readers from before torch 2.1, rather than
                `parametrizations.weight.original0` and `original1`.

        Raises:
            OutputError: the folder can't be written.
        """
        tensors = self.state_dict()
        if old_weight_norm_names:
            old_names = {new: old for old, new in _OLD_WEIGHT_NORM.items()}
            tensors = {_renamed_leaf(name, old_names): tensor for name, tensor in tensors.items()}
        self._save(folder, tensors)

    # Initialisation

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published scheme: normal linear layers, He convolutions (arXiv:1502.01852), fairseq's position convolution."""
        if isinstance(module, nn.Linear):
            self._init_linear(module)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                bound = math.sqrt(module.groups / (module.in_channels * module.kernel_size[0]))
                nn.init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, Wav2Vec2PositionalConv):
            nn.init.zeros_(module.bias)
        elif isinstance(module, Wav2Vec2WeightNorm):
            weight = module.original1
            nn.init.normal_(weight, std=2 / math.sqrt(weight.shape[2] * self.config.hidden_size))
            module.original0.copy_(torch.linalg.vector_norm(weight, dim=(0, 1), keepdim=True))
        elif isinstance(module, Wav2Vec2Model) and module.masked_spec_embed is not None:
            nn.init.uniform_(module.masked_spec_embed)

    def _init_linear(self, module: nn.Linear) -> None:
        if module is self._model.feature_projection.projection:
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.uniform_(module.bias, -bound, bound)
            return
        nn.init.normal_(module.weight, std=self.config.initializer_range)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _renamed_leaf(name: str, leaves: dict[str, str]) -> str:
    head, inside_it, leaf = name.partition(_POSITION_CONV)
    return head + inside_it + leaves.get(leaf, leaf) if inside_it else name


# ------------------------------------------------------------------------------------------------------------------ model


class Wav2Vec2Model(Wav2Vec2PreTrainedModel):
    """The speech encoder without a head."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        self.feature_extractor = Wav2Vec2FeatureEncoder(config)
        self.feature_projection = Wav2Vec2FeatureProjection(config)
        self.masked_spec_embed: nn.Parameter | None = None
        if config.mask_time_prob > 0 or config.mask_feature_prob > 0:
            self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size))
        self.encoder = Wav2Vec2Encoder(config)
        self.adapter = Wav2Vec2Adapter(config) if config.add_adapter else None
        self.set_attn_implementation(config._attn_implementation or "sdpa")
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        exact_padding: bool | None = None,
        recording_sums: PatchSums | None = None,
    ) -> Wav2Vec2BaseModelOutput | tuple[Any, ...]:
        """Audio to states.

        Args:
            input_values: (B, S) audio at 16 kHz as `Wav2Vec2FeatureExtractor` prepares it, in the model's dtype.
            attention_mask: (B, S), 1 for audio and then 0 for padding. Models with feat_extract_norm="group" were trained
                without one, on clips padded by zeros.
            mask_time_indices: (B, T), true for the steps to be masked; None draws them in training, as the configuration says.
            output_attentions, output_hidden_states: return them; None as the configuration says.
            return_dict: False for a tuple; None as the configuration says.
            exact_padding: every item gets what it gets alone, also where the ecosystem lets padding in: in the norm over
                time of feat_extract_norm="group", at the ends of the convolutions of add_adapter, and in the statistics of
                x-vectors. None: as config.exact_padding says, or no.
            recording_sums: for parts of recordings, what `feature_extractor.recording_sums` gave for the whole ones, so that
                the norm over time of feat_extract_norm="group" is theirs.

        Returns:
            States (B, T, H) and the rest; those of steps after an item's end are arbitrary.

        Raises:
            AudioError: the input's shape, dtype or mask do not fit, or there are too few samples for a step.
            ConfigError: mask_time_indices do not fit.
        """
        self._check_dtype(input_values)
        lengths = checked_lengths(input_values, attention_mask, self.feature_extractor.receptive_field)
        exact = self._is_exact(exact_padding)
        features = self.feature_extractor(input_values, lengths if exact else None, recording_sums)
        steps = features.shape[1]
        step_lengths = None if lengths is None else self.feature_extractor.out_lengths(lengths)
        x, features = self.feature_projection(features)
        x = spec_augment(x, self.masked_spec_embed, self.config, mask_time_indices, step_lengths, self.training)
        encoded = self.encoder(
            x,
            None if step_lengths is None else inside(step_lengths, steps),
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            self.config.output_attentions if output_attentions is None else output_attentions,
        )
        x = encoded.last
        if self.adapter is not None:
            x = self.adapter(x, step_lengths if exact else None)
        return self._output(Wav2Vec2BaseModelOutput(x, features, encoded.hidden_states, encoded.attentions), return_dict)

    def _check_dtype(self, audio: Tensor) -> None:
        if audio.is_floating_point() and audio.dtype != self.dtype and not torch.is_autocast_enabled(audio.device.type):
            raise AudioError(f"expected audio in the model's {self.dtype}, got {audio.dtype}; pass audio.to(model.dtype)")


# ------------------------------------------------------------------------------------------------------------------ heads


class _Headed(Wav2Vec2PreTrainedModel):
    """A model with a head. Its `forward` takes, as **options, the keywords of `Wav2Vec2Model.forward`."""

    _takes_adapter: ClassVar[bool] = False  # whether the head can follow the strided convolutions of add_adapter

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        if config.add_adapter and not self._takes_adapter:
            raise ConfigError(
                f"expected add_adapter=False to build {type(self).__name__}, whose head takes every step; change the config"
            )
        self.wav2vec2 = Wav2Vec2Model(config)

    def _run(
        self, input_values: Tensor, attention_mask: Tensor | None, options: dict[str, Any], mask: Tensor | None = None
    ) -> Wav2Vec2BaseModelOutput:
        return cast(
            Wav2Vec2BaseModelOutput,
            self.wav2vec2(input_values, attention_mask, mask, **{**options, "return_dict": True}),
        )


class Wav2Vec2ForCTC(_Headed):
    """Speech to text: logits of tokens at each step, for CTC (Graves et al. 2006)."""

    _takes_adapter = True

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        if config.vocab_size is None:
            raise ConfigError(
                "expected vocab_size to build Wav2Vec2ForCTC, got None; set it to the number of the tokenizer's tokens"
            )
        self.dropout = Dropout(config.final_dropout)
        self.lm_head = Linear(self._head_width, config.vocab_size)
        self.target_lang: str | None = None
        self.post_init()

    @property
    def _head_width(self) -> int:
        return self.config.output_hidden_size if self.config.add_adapter else self.config.hidden_size

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **options: Any
    ) -> CausalLMOutput | tuple[Any, ...]:
        """Audio to logits (B, T, V), and the CTC loss where there are labels.

        Args:
            input_values, attention_mask, options: as `Wav2Vec2Model.forward` takes them.
            labels: (B, L) int64, token ids; negative ones are padding.

        Raises:
            AudioError: as `Wav2Vec2Model.forward`. ConfigError: labels that are no tokens.
        """
        if labels is not None and int(labels.max()) >= self.lm_head.out_features:
            raise ConfigError(
                f"expected labels below the vocabulary's {self.lm_head.out_features} tokens, got {int(labels.max())}; "
                "use the tokenizer of this model"
            )
        out = self._run(input_values, attention_mask, options)
        logits = self.lm_head(self.dropout(out.last_hidden_state))
        loss = None if labels is None else self._loss(logits, labels, input_values, attention_mask)
        return self._output(CausalLMOutput(loss, logits, out.hidden_states, out.attentions), options.get("return_dict"))

    def _loss(self, logits: Tensor, labels: Tensor, input_values: Tensor, attention_mask: Tensor | None) -> Tensor:
        real = labels >= 0
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.long)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return F.ctc_loss(
            logits.log_softmax(-1, dtype=wide).transpose(0, 1),
            labels[real].long(),
            self._get_feat_extract_output_lengths(attention_mask.long().sum(-1)),
            real.sum(-1),
            blank=self.config.pad_token_id or 0,
            reduction=self.config.ctc_loss_reduction,
            zero_infinity=self.config.ctc_zero_infinity,
        )

    # Languages

    @classmethod
    def from_pretrained(
        cls: type[H], name_or_path: str | os.PathLike[str], *, target_lang: str | None = None, **options: Any
    ) -> H:
        """As `PreTrainedModel.from_pretrained`.

        Args:
            target_lang: language whose adapter and head are loaded over those of the checkpoint (`load_adapter`).

        Raises:
            CheckpointError, ConfigError: as there, and as `load_adapter`.
        """
        model = super().from_pretrained(name_or_path, **options)
        if target_lang is not None:
            where, _ = hub.split_hub_options(options)
            model.load_adapter(target_lang, **where)
        return model

    def load_adapter(self, target_lang: str, force_load: bool = True, **hub_options: Any) -> None:
        """Let the model transcribe another language, from `adapter.{target_lang}.safetensors` beside its weights.

        The head gets as many tokens as that file has; an optimiser made before must be made anew.

        Args:
            target_lang: as the file names it, mostly ISO 639-3 ("fra").
            force_load: False does nothing where the language is loaded already.
            hub_options: any of HUB_OPTIONS.

        Raises:
            ConfigError: the model has no language adapters.
            CheckpointError: no such file, or one that doesn't fit; the model is then not changed.
        """
        wanted = self._get_adapters()
        if target_lang == self.target_lang and not force_load:
            return
        path = hub.resolve_file(beside(self.config.name_or_path), f"adapter.{target_lang}.safetensors", **hub_options)
        files = weights.open_tensors([path])
        tokens = files.shapes.get("lm_head.bias", (0,))[0]
        if tokens == 0:
            raise CheckpointError(f"expected a head (lm_head.weight, lm_head.bias) in {path}, got none; fetch it again")
        before = self.lm_head
        if tokens != before.out_features:
            self.lm_head = Linear(self._head_width, tokens).to(device=self.device, dtype=self.dtype)
        try:
            rules = weights.LoadRules(may_be_missing=lambda name: name not in wanted)
            weights.load_strict(self, files, weights.Renaming({}), self.device, rules)
        except CheckpointError:
            self.lm_head = before
            raise
        self.config.vocab_size = tokens
        self.target_lang = target_lang


class Wav2Vec2ForPreTraining(_Headed):
    """Self-supervised training: find the quantised features of masked steps among distractors (section 3)."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        if config.add_adapter:
            raise ConfigError(
                "expected add_adapter=False to build Wav2Vec2ForPreTraining, whose targets are the steps before it"
            )
        self.dropout_features = Dropout(config.feat_quantizer_dropout)
        self.quantizer = Wav2Vec2GumbelVectorQuantizer(config)
        self.project_hid = Linear(config.hidden_size, config.proj_codevector_dim)
        self.project_q = Linear(config.codevector_dim, config.proj_codevector_dim)
        self.post_init()

    def set_gumbel_temperature(self, temperature: float) -> None:
        """Set the temperature of the quantiser's choice; `gumbel_temperature(step)` is the published schedule."""
        self.quantizer.temperature = temperature

    @torch.no_grad()
    def sample_masks(self, samples: int, attention_mask: Tensor | None = None, batch: int = 1) -> tuple[Tensor, Tensor]:
        """Masked steps and distractors for a batch, drawn as the configuration says, within each item's true length.

        Args:
            samples: S of the batch.
            attention_mask: (B, S); without one, `batch` items are all S samples long.

        Returns:
            mask_time_indices (B, T) bool, sampled_negative_indices (B, T, num_negatives) int64.
        """
        config = self.config
        steps = int(self._get_feat_extract_output_lengths(samples))
        if attention_mask is None:
            lengths = torch.full((batch,), steps, device=self.device)
        else:
            lengths = self._get_feat_extract_output_lengths(attention_mask.long().sum(-1))
        mask = masked_spans(lengths, steps, config.mask_time_prob, config.mask_time_length, config.mask_time_min_masks)
        return mask, sampled_negatives(mask, config.num_negatives)

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        sampled_negative_indices: Tensor | None = None,
        **options: Any,
    ) -> Wav2Vec2ForPreTrainingOutput | tuple[Any, ...]:
        """Audio to predictions and targets, and the losses where there are negatives.

        Args:
            input_values, attention_mask, options: as `Wav2Vec2Model.forward` takes them.
            mask_time_indices: (B, T), true for masked steps. `sample_masks` draws both.
            sampled_negative_indices: (B, T, num_negatives) int64, indices b * T + t of each masked step's distractors.

        Raises:
            AudioError: as `Wav2Vec2Model.forward`. ConfigError: masked steps or negatives that do not fit.
        """
        mask = None if mask_time_indices is None else mask_time_indices.to(device=input_values.device, dtype=torch.bool)
        out = self._run(input_values, attention_mask, options, mask)
        predicted = self.project_hid(out.last_hidden_state)
        quantized = self.quantizer(self.dropout_features(out.extract_features), mask)
        targets = self.project_q(quantized.vectors.to(self.project_q.weight.dtype))
        loss = contrastive = diversity = None
        if sampled_negative_indices is not None:
            negatives = self._checked_negatives(sampled_negative_indices, mask, predicted.shape)
            masked, temperature = cast(Tensor, mask), self.config.contrastive_logits_temperature
            contrastive = contrastive_loss(predicted, targets, quantized.codes, masked, negatives, temperature)
            entries = self.quantizer.num_groups * self.quantizer.num_vars
            diversity = (entries - quantized.perplexity) / entries * masked.sum()
            loss = contrastive + self.config.diversity_loss_weight * diversity
        output = Wav2Vec2ForPreTrainingOutput(
            loss,
            predicted,
            targets,
            quantized.perplexity,
            out.hidden_states,
            out.attentions,
            contrastive,
            diversity,
        )
        return self._output(output, options.get("return_dict"))

    @staticmethod
    def _checked_negatives(negatives: Tensor, mask: Tensor | None, shape: Sequence[int]) -> Tensor:
        if mask is None:
            raise ConfigError("expected mask_time_indices beside sampled_negative_indices, got none; sample_masks draws both")
        if negatives.dim() != 3 or negatives.shape[:2] != tuple(shape[:2]) or negatives.is_floating_point():
            raise ConfigError(
                f"expected sampled_negative_indices of shape {(*shape[:2], 'negatives')} and an integer type, got "
                f"{tuple(negatives.shape)} of {negatives.dtype}; sample_masks draws them"
            )
        return negatives.long().to(mask.device)

    def _init_linear(self, module: nn.Linear) -> None:
        if module is self.project_hid or module is self.project_q:
            module.reset_parameters()
        elif module is self.quantizer.weight_proj:
            nn.init.normal_(module.weight)
            nn.init.zeros_(module.bias)
        else:
            super()._init_linear(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.quantizer:
            nn.init.uniform_(self.quantizer.codevectors)


class _Classifier(_Headed):
    """A head on the last states, or on a learnt mean of all layers' (Yang et al. 2021, arXiv:2105.01051)."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        if config.add_adapter:
            raise ConfigError(
                f"expected add_adapter=False to build {type(self).__name__}, which has no adapter; change the config"
            )
        self.layer_weights: nn.Parameter | None = None
        if config.use_weighted_layer_sum:
            self.layer_weights = nn.Parameter(torch.empty(config.num_hidden_layers + 1))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.layer_weights is not None:
            nn.init.constant_(self.layer_weights, 1 / len(self.layer_weights))

    def _states(
        self, input_values: Tensor, attention_mask: Tensor | None, options: dict[str, Any]
    ) -> tuple[Tensor, Wav2Vec2BaseModelOutput]:
        """(B, T, H), and what the base model gave."""
        if self.layer_weights is None:
            out = self._run(input_values, attention_mask, options)
            return cast(Tensor, out.last_hidden_state), out
        out = self._run(input_values, attention_mask, {**options, "output_hidden_states": True})
        layers = cast(tuple[Tensor, ...], out.hidden_states)
        wanted = options.get("output_hidden_states")
        if not (self.config.output_hidden_states if wanted is None else wanted):
            out.hidden_states = None
        shares = self.layer_weights.softmax(-1)
        return cast(Tensor, sum(share * layer for share, layer in zip(shares, layers, strict=True))), out


class Wav2Vec2ForSequenceClassification(_Classifier):
    """One class for a clip: keyword, language, emotion."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        self.projector = Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = Linear(config.classifier_proj_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **options: Any
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Audio to logits (B, V), and the cross-entropy where there are labels.

        Args:
            input_values, attention_mask, options: as `Wav2Vec2Model.forward` takes them.
            labels: (B,) int64.

        Raises:
            AudioError: as `Wav2Vec2Model.forward`.
        """
        x, out = self._states(input_values, attention_mask, options)
        x = self.projector(x)
        if attention_mask is None:
            pooled = x.mean(1)
        else:
            mask = self._get_feature_vector_attention_mask(x.shape[1], attention_mask)[..., None]
            pooled = (x * mask).sum(1) / mask.sum(1)
        logits = self.classifier(pooled)
        loss = None if labels is None else F.cross_entropy(logits, labels.flatten())
        output = SequenceClassifierOutput(loss, logits, out.hidden_states, out.attentions)
        return self._output(output, options.get("return_dict"))


class Wav2Vec2ForAudioFrameClassification(_Classifier):
    """A class for each step: who speaks when."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.classifier = Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **options: Any
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Audio to logits (B, T, V), and the cross-entropy over all steps where there are labels.

        Args:
            input_values, attention_mask, options: as `Wav2Vec2Model.forward` takes them.
            labels: (B, T, V), one-hot.

        Raises:
            AudioError: as `Wav2Vec2Model.forward`.
        """
        x, out = self._states(input_values, attention_mask, options)
        logits = self.classifier(x)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.view(-1, self.num_labels).argmax(-1))
        output = TokenClassifierOutput(loss, logits, out.hidden_states, out.attentions)
        return self._output(output, options.get("return_dict"))


class Wav2Vec2ForXVector(_Classifier):
    """A vector for who is speaking, and logits over the speakers of a training."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        self.projector = Linear(config.hidden_size, config.tdnn_dim[0])
        self.tdnn = nn.ModuleList([Wav2Vec2TDNNLayer(config, layer) for layer in range(len(config.tdnn_dim))])
        self.feature_extractor = Linear(2 * config.tdnn_dim[-1], config.xvector_output_dim)
        self.classifier = Linear(config.xvector_output_dim, config.xvector_output_dim)
        self.objective = Wav2Vec2AMSoftmax(config.xvector_output_dim, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Wav2Vec2AMSoftmax):
            nn.init.normal_(module.weight)

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **options: Any
    ) -> XVectorOutput | tuple[Any, ...]:
        """Audio to x-vectors and logits, each (B, xvector_output_dim), and the AM-softmax loss where there are labels.

        Args:
            input_values, attention_mask, options: as `Wav2Vec2Model.forward` takes them.
            labels: (B,) int64 below config.num_labels.

        Raises:
            AudioError: as `Wav2Vec2Model.forward`, or an item too short for mean and deviation.
        """
        x, out = self._states(input_values, attention_mask, options)
        lengths = None if attention_mask is None else self._get_feat_extract_output_lengths(attention_mask.long().sum(-1))
        looked_at = lengths is not None and lengths.device.type == "cpu"  # on a GPU a look would stall it
        self._check_steps(int(cast(Tensor, lengths).min()) if looked_at else x.shape[1])
        x = self.projector(x)
        for layer in self.tdnn:
            x = layer(x)
        if lengths is not None:
            lengths = self._tdnn_lengths(lengths, x.shape[1], self._is_exact(options.get("exact_padding")))
        embeddings = self.feature_extractor(pooled_statistics(x, lengths))
        logits = self.classifier(embeddings)
        loss = None if labels is None else self.objective(logits, labels)
        output = XVectorOutput(loss, logits, embeddings, out.hidden_states, out.attentions)
        return self._output(output, options.get("return_dict"))

    @property
    def _reach(self) -> int:
        return sum(cast(Wav2Vec2TDNNLayer, layer).reach for layer in self.tdnn)

    def _tdnn_lengths(self, lengths: Tensor, steps: int, exact: bool) -> Tensor:
        """Steps of each item after the dilated layers; the ecosystem counts them as if they were not dilated."""
        reach = self._reach if exact else sum(kernel - 1 for kernel in self.config.tdnn_kernel)
        return (lengths - reach).clamp_max(steps)

    def _check_steps(self, steps: int) -> None:
        fewest = 2 + self._reach
        if steps < fewest:
            raise AudioError(
                f"expected at least {fewest} steps ({fewest * self.config.inputs_to_logits_ratio} samples or so) for an "
                f"x-vector, got {steps}; pass a longer clip"
            )
