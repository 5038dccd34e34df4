"""Speech2Text: filterbank features to text of the same or another language (Wang et al. 2020, arXiv:2010.05171, section 2.1).

    model = Speech2TextForConditionalGeneration.from_pretrained("facebook/s2t-small-librispeech-asr")
    ids = model.generate(input_features, attention_mask)

Its blocks are in encoder_decoder_speech_to_text.py; what the decoder remembers, and how it is stepped fast, in
stepping_speech_to_text.py; which token comes next is decided by decoding/seq2seq.py, which knows no model.

Shapes: B batch, L feature frames (100 a second), F mel bins, S encoder steps (25 a second), T target tokens, d width, H heads,
D head size, V vocabulary; U utterances of K beams each, R = U x K rows.

Padding: features are padded on the right. With an attention_mask each clip gives what it gives alone: every layer before the
attention sees zeros past its end, as a lone clip's convolutions do. Steps past a clip's end are arbitrary.
"""

import os
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.decoding.seq2seq import Generated, OnTokens, generate
from phonograph.errors import ConfigError
from phonograph.loading import hub
from phonograph.models.base import ModelOutput, PreTrainedModel
from phonograph.models.speech_to_text.configuration_speech_to_text import Speech2TextConfig
from phonograph.models.speech_to_text.encoder_decoder_speech_to_text import (
    Conv1dSubsampler,
    Speech2TextDecoder,
    Speech2TextEncoder,
    subsampled,
)
from phonograph.models.speech_to_text.generation_speech_to_text import GenerationConfig
from phonograph.models.speech_to_text.outputs_speech_to_text import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from phonograph.models.speech_to_text.positions_speech_to_text import Speech2TextSinusoidalPositionalEmbedding
from phonograph.models.speech_to_text.stepping_speech_to_text import (
    Speech2TextDecoderState,
    Speech2TextStepper,
    StepWeights,
)
from phonograph.nn.attention import attention_function
from phonograph.nn.linear import Linear
from phonograph.nn.masks import inside
from phonograph.nn.packed import Derived, fast_path

__all__ = [
    "BaseModelOutput",
    "BaseModelOutputWithPastAndCrossAttentions",
    "Conv1dSubsampler",
    "GenerationConfig",
    "Seq2SeqLMOutput",
    "Seq2SeqModelOutput",
    "Speech2TextDecoder",
    "Speech2TextEncoder",
    "Speech2TextForConditionalGeneration",
    "Speech2TextModel",
    "Speech2TextPreTrainedModel",
    "Speech2TextSinusoidalPositionalEmbedding",
    "shift_tokens_right",
]

_IGNORED_LABEL = -100


class Speech2TextPreTrainedModel(PreTrainedModel):
    """What both models share."""

    config_class = Speech2TextConfig
    config: Speech2TextConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    _other_heads = ("lm_head",)

    @property
    def _core(self) -> "Speech2TextModel":
        return cast(Speech2TextModel, self.base_model)

    def get_encoder(self) -> Speech2TextEncoder:
        """The encoder."""
        return self._core.encoder

    def get_decoder(self) -> Speech2TextDecoder:
        """The decoder, without the head."""
        return self._core.decoder

    def get_input_embeddings(self) -> nn.Embedding:
        """The decoder's token embedding."""
        return self._core.decoder.embed_tokens

    def set_attn_implementation(self, name: str) -> None:
        """Choose "eager", "sdpa" or "flash_attention_2" for encoder and decoder.

        Raises:
            ConfigError: no such implementation. MissingExtraError: flash attention is not installed.
        """
        attention_function(name)
        self._core.encoder.attn_implementation = self._core.decoder.attn_implementation = name

    def _get_feat_extract_output_lengths(self, input_lengths: Tensor) -> Tensor:
        return subsampled(input_lengths, self.config)

    def _get_feature_vector_attention_mask(self, feature_vector_length: int, attention_mask: Tensor) -> Tensor:
        """(B, L) over frames -> (B, S) bool over encoder steps."""
        return inside(subsampled(attention_mask.bool().sum(-1), self.config), feature_vector_length)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)
        if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()


class Speech2TextModel(Speech2TextPreTrainedModel):
    """Encoder and decoder, without the head."""

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__(config)
        self.encoder = Speech2TextEncoder(config)
        self.decoder = Speech2TextDecoder(config)
        self.set_attn_implementation(config._attn_implementation or "sdpa")
        self.post_init()

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: ModelOutput | tuple[Any, ...] | None = None,
        past_key_values: Speech2TextDecoderState | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqModelOutput | tuple[Any, ...]:
        """Features and the tokens so far to decoder states (B, T, d).

        Args:
            input_features: (B, L, F), not needed beside `encoder_outputs` (states (B, S, d) first).
            attention_mask: (B, L), 1 for frames and 0 for padding on the right.
            decoder_input_ids, decoder_attention_mask, past_key_values, decoder_inputs_embeds, use_cache, output_attentions,
                output_hidden_states, return_dict: as `Speech2TextDecoder` takes them.

        Raises:
            AudioError, ConfigError, StreamError: as encoder and decoder raise them.
        """
        encoded = self.encode(input_features, attention_mask, encoder_outputs, output_attentions, output_hidden_states)
        states = encoded[0]
        decoded = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            states,
            self.step_mask(states, attention_mask),
            past_key_values,
            decoder_inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            True,
        )
        output = Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=states,
            encoder_hidden_states=getattr(encoded, "hidden_states", None),
            encoder_attentions=getattr(encoded, "attentions", None),
        )
        return self._output(output, return_dict)

    def encode(
        self,
        input_features: Tensor | None,
        attention_mask: Tensor | None = None,
        encoder_outputs: ModelOutput | tuple[Any, ...] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ModelOutput:
        """What the encoder gives for the features, or the outputs that it gave before, in any of their forms.

        Raises:
            ConfigError: neither of the two.
        """
        if encoder_outputs is not None:
            return encoder_outputs if isinstance(encoder_outputs, ModelOutput) else BaseModelOutput(*encoder_outputs)
        if input_features is None:
            raise ConfigError("expected input_features or encoder_outputs, got neither; pass one of them")
        encoded: ModelOutput = self.encoder(input_features, attention_mask, output_attentions, output_hidden_states, True)
        return encoded

    def step_mask(self, states: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Encoder steps (B, S, d) and a mask over frames (B, L) -> (B, S) bool over steps; None for None."""
        return None if attention_mask is None else self._get_feature_vector_attention_mask(states.shape[1], attention_mask)


class Speech2TextForConditionalGeneration(Speech2TextPreTrainedModel):
    """The model with its head: the loss of given targets, logits, and `generate`."""

    _tied_weights: ClassVar[dict[str, str]] = {"lm_head.weight": "model.decoder.embed_tokens.weight"}

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__(config)
        self.model = Speech2TextModel(config)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        self.generation_config = GenerationConfig.from_model_config(config)
        self._step_weights = Derived(), Derived()
        self.post_init()

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> "Speech2TextForConditionalGeneration":
        """As `PreTrainedModel.from_pretrained`, with the checkpoint's generation settings as `generation_config`.

        Raises:
            CheckpointError, ConfigError: as there; or generation_config.json is no JSON object.
        """
        model = super().from_pretrained(name_or_path, **options)
        where, _ = hub.split_hub_options(options)
        path = Path(name_or_path)
        model.generation_config.read(path.parent if path.suffix == ".safetensors" else name_or_path, where)
        return model

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors and generation_config.json; transformers loads the folder back.

        Raises:
            OutputError: the folder can't be written.
        """
        super().save_pretrained(folder)
        self.generation_config.save_pretrained(folder)

    def get_output_embeddings(self) -> nn.Linear:
        """The head."""
        return self.lm_head

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: ModelOutput | tuple[Any, ...] | None = None,
        past_key_values: Speech2TextDecoderState | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        label_smoothing: float = 0.0,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Features and the tokens so far to logits (B, T, V) of the next tokens.

        Args:
            labels: (B, T) targets, -100 where there is none. They give the loss (cross-entropy, mean over targets), and the
                decoder's input where that is not given: `shift_tokens_right` of them.
            label_smoothing: share of each target spread over the vocabulary (arXiv:1512.00567), for training.

        The other arguments are those of `Speech2TextModel`, as are the errors.
        """
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                config = self.config
                decoder_input_ids = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
        out = self.model(
            input_features,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            past_key_values,
            decoder_inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            True,
        )
        logits = self.lm_head(out.last_hidden_state)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED_LABEL, label_smoothing=label_smoothing
            )
        rest = {name: value for name, value in out.items() if name != "last_hidden_state"}
        return self._output(Seq2SeqLMOutput(loss, logits, **rest), return_dict)

    # Public: text from features

    def generate(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        encoder_outputs: ModelOutput | tuple[Any, ...] | None = None,
        on_tokens: OnTokens | None = None,
        **settings: Any,
    ) -> Tensor:
        """Token ids of what is said, as transformers generates them.

        Args:
            input_features: (B, L, F), not needed beside `encoder_outputs` (states (B, S, d) first).
            attention_mask: (B, L), 1 for frames and 0 for padding on the right.
            on_tokens: called with a clip's index and its tokens that are new and final, as soon as they are.
            settings: fields of `phonograph.decoding.seq2seq.GenerationOptions` (num_beams, max_length, forced_bos_token_id,
                ...), which win over `generation_config`.

        Returns:
            (B x num_return_sequences, length) int64, the start token first, padded with pad_token_id.

        Raises:
            ConfigError: settings that can't be followed, or a target longer than max_target_positions.
            AudioError: features that do not fit.
        """
        return self.generate_hypotheses(
            input_features, attention_mask, encoder_outputs=encoder_outputs, on_tokens=on_tokens, **settings
        ).padded

    @torch.no_grad()
    def generate_hypotheses(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        encoder_outputs: ModelOutput | tuple[Any, ...] | None = None,
        on_tokens: OnTokens | None = None,
        **settings: Any,
    ) -> Generated:
        """As `generate`, with each sequence's length and score."""
        options = self.generation_config.options(self.config, settings)
        encoded = self.model.encode(input_features, attention_mask, encoder_outputs)
        states, mask = encoded[0], self.model.step_mask(encoded[0], attention_mask)
        mask = None if mask is None or bool(mask.all()) else mask  # attention over all steps is faster without
        state = self.new_decoder_state(states, mask, options.rows_per_utterance, options.total_length - 1)
        return generate(self.stepper(state), states.shape[0], options, states.device, on_tokens)

    # Public: the decoder, step by step

    def new_decoder_state(
        self, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor | None, beams: int, max_steps: int
    ) -> Speech2TextDecoderState:
        """A state of no tokens yet.

        Args:
            encoder_hidden_states: (U, S, d).
            encoder_attention_mask: (U, S), 0 for padding; None is no padding.
            beams: rows K of each utterance.
            max_steps: tokens to make room for.
        """
        mask = None if encoder_attention_mask is None else encoder_attention_mask.bool()
        return self.model.decoder.new_state(encoder_hidden_states, mask, beams, max_steps)

    def stepper(self, state: Speech2TextDecoderState, cuda_graph: bool | None = None) -> Speech2TextStepper:
        """The decoder with `state`, as a search steps it; weights are those of now.

        Args:
            cuda_graph: capture a step and replay it; None is yes on a GPU.
        """
        decoder = self.model.decoder
        with torch.no_grad():
            packed = fast_path(decoder.embed_tokens.weight, self)
        sources = [*decoder.parameters(), self.lm_head.weight]
        weights = self._step_weights[packed].get(lambda: StepWeights(decoder, self.lm_head, packed), *sources)
        return Speech2TextStepper(weights, decoder.embed_positions.table(state.max_steps), state, cuda_graph)

    def decode_step(self, tokens: Tensor, state: Speech2TextDecoderState) -> Tensor:
        """Each row's last token (U x K,) int64 -> logits (U x K, V) of the next; `state` is updated in place.

        Raises:
            ConfigError: the state has no room for another token.
        """
        return self.stepper(state, cuda_graph=False).step(tokens)


def shift_tokens_right(input_ids: Tensor, pad_token_id: int | None, decoder_start_token_id: int | None) -> Tensor:
    """Targets (B, T) to decoder inputs: the start token first, the last dropped, padding where there is no target.

    Raises:
        ConfigError: either token is None.
    """
    if pad_token_id is None or decoder_start_token_id is None:
        raise ConfigError(
            f"expected pad_token_id and decoder_start_token_id to shift labels, got {pad_token_id} and "
            f"{decoder_start_token_id}; set both in the configuration"
        )
    start = torch.full_like(input_ids[:, :1], decoder_start_token_id)
    shifted = torch.cat([start, input_ids[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == _IGNORED_LABEL, pad_token_id)
