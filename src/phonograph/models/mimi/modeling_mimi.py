"""Mimi: speech to 12.5 frames of codes a second and back (Défossez et al. 2024, arXiv:2410.00037, section 3.3).

Read from top to bottom: outputs, states, the transformer, and the model that joins it with the convolutions of seanet_mimi.py
and the quantiser of quantization_mimi.py.

Shapes: B batch, C audio channels, S samples (24 kHz), T steps of any layer, H hidden size, Q codebooks, F frames (12.5 Hz),
W attention window. Inside the model activations are (B, T, features); (B, C, S) and
(B, Q, F) appear only at the public methods.

State: each layer that remembers takes and gives its own typed state (nn/state.py). Without one, a call is a whole signal;
with one, it is the next whole frames of a stream, and gives what the whole signal would give there.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from phonograph.configuration import PreTrainedConfig
from phonograph.errors import AudioError, CheckpointError, ConfigError, StreamError
from phonograph.loading.weights import Renaming, TensorFiles
from phonograph.models.base import ModelOutput, PreTrainedModel
from phonograph.models.mimi.configuration_mimi import MimiConfig
from phonograph.models.mimi.moshi_layout import is_moshi_layout, moshi_renaming
from phonograph.models.mimi.quantization_mimi import MimiSplitResidualVectorQuantizer
from phonograph.models.mimi.seanet_mimi import MimiDecoder, MimiEncoder, new_conv_states
from phonograph.nn.attention import (
    AttentionState,
    RingStep,
    attention_function,
    cached_attention,
    new_attention_state,
    ring_step,
    windowed_attention,
)
from phonograph.nn.compiled import CompiledSteps
from phonograph.nn.conv import (
    Conv1dState,
    ConvTranspose1dState,
    StreamingConv1d,
    StreamingConvTranspose1d,
    ceil_div,
)
from phonograph.nn.linear import Linear, linear_together
from phonograph.nn.masks import can_look, lengths_of
from phonograph.nn.packed import Derived
from phonograph.nn.positions import apply_rotary, inverse_frequencies, rotary_angles
from phonograph.nn.state import State

__all__ = [
    "MimiConvState",
    "MimiDecoderOutput",
    "MimiDecoderState",
    "MimiEncoderOutput",
    "MimiModel",
    "MimiOutput",
    "MimiTransformerState",
]


# ---------------------------------------------------------------------------------------------------------------- outputs


@dataclass
class MimiEncoderOutput(ModelOutput):
    """Codes (B, Q, F) int64, and the states to go on from where a stream is encoded."""

    audio_codes: Tensor | None = None
    encoder_past_key_values: "MimiTransformerState | None" = None
    padding_cache: "MimiConvState | None" = None


@dataclass
class MimiDecoderOutput(ModelOutput):
    """Audio (B, C, S), and the state to go on from where a stream is decoded."""

    audio_values: Tensor | None = None
    decoder_past_key_values: "MimiDecoderState | None" = None


@dataclass
class MimiOutput(ModelOutput):
    """Codes (B, Q, F) int64, the audio (B, C, S) they decode to, and the states where streams were given."""

    audio_codes: Tensor | None = None
    audio_values: Tensor | None = None
    encoder_past_key_values: "MimiTransformerState | None" = None
    decoder_past_key_values: "MimiDecoderState | None" = None


# ----------------------------------------------------------------------------------------------------------------- states


@dataclass
class MimiConvState(State):
    """One state for each convolution of the encoder, in the order they run, the downsampling one last."""

    layers: list[Conv1dState]


@dataclass
class MimiTransformerState(State):
    """The steps that each stream has had, (B,) int64, and one ring of keys and values a layer."""

    seen: Tensor
    layers: list[AttentionState]


@dataclass
class MimiDecoderState(State):
    """Everything the way back remembers: upsampling, transformer, and the decoder's convolutions in the order they run."""

    upsample: list[ConvTranspose1dState]
    transformer: MimiTransformerState
    layers: list[Conv1dState | ConvTranspose1dState]


# ------------------------------------------------------------------------------------------------------------ transformer


class MimiLayerScale(nn.Module):
    """Learnt factor a channel, small at first, for the branches of a deep residual network (arXiv:2103.17239)."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_initial_scale))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """x (B, T, H) + scaled branch (B, T, H)."""
        return torch.addcmul(x, branch, self.scale)


@dataclass(frozen=True)
class _Place:
    """Where the steps of one call lie in time: rotary angles and, on a stream, what the rings hold."""

    cos: Tensor
    sin: Tensor
    step: RingStep | None


class MimiAttention(nn.Module):
    """Rotary multi-head attention over the last W steps."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.window = config.sliding_window
        self.dropout = config.attention_dropout
        self.num_heads, self.num_key_value_heads = config.num_attention_heads, config.num_key_value_heads
        inner, key_value = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        self._packed = Derived()
        self.q_proj = Linear(config.hidden_size, inner, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, key_value, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, key_value, bias=config.attention_bias)
        self.o_proj = Linear(inner, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: Tensor, place: _Place, state: AttentionState | None, implementation: str) -> Tensor:
        """(B, T, H) -> (B, T, H); `state` is updated in place."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        heads = linear_together(x, projections, self._packed).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
        queries_keys = apply_rotary(heads[:, : self.num_heads + self.num_key_value_heads], place.cos, place.sin)
        queries, keys = queries_keys.split([self.num_heads, self.num_key_value_heads], dim=1)
        values = heads[:, self.num_heads + self.num_key_value_heads :]
        if state is None or place.step is None:
            dropout = self.dropout if self.training else 0.0
            out = windowed_attention(queries, keys, values, self.window, implementation, dropout)
        else:
            out = cached_attention(queries, keys, values, state, place.step, implementation)
        return cast(Tensor, self.o_proj(out.transpose(1, 2).flatten(2)))


class MimiMLP(nn.Module):
    """Two linear layers without bias."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = config.hidden_act

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        return cast(Tensor, self.fc2(self.fc1(x, self.activation)))


class MimiTransformerLayer(nn.Module):
    """Pre-norm attention and MLP, each scaled and added."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.self_attn = MimiAttention(config)
        self.mlp = MimiMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn_layer_scale = MimiLayerScale(config)
        self.mlp_layer_scale = MimiLayerScale(config)

    def forward(self, x: Tensor, place: _Place, state: AttentionState | None, implementation: str) -> Tensor:
        """(B, T, H) -> (B, T, H); `state` is updated in place."""
        attended = self.self_attn(self.input_layernorm(x), place, state, implementation)
        x = self.self_attn_layer_scale(x, attended)
        return cast(Tensor, self.mlp_layer_scale(x, self.mlp(self.post_attention_layernorm(x))))


class MimiTransformer(nn.Module):
    """A stack of layers, causal and with a window, without a final norm."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([MimiTransformerLayer(config) for _ in range(config.num_hidden_layers)])
        self.window = config.sliding_window
        self.head_dim = config.head_dim
        self.num_key_value_heads = config.num_key_value_heads
        with torch.device("cpu"):  # a model built on the meta device still needs these numbers
            self.frequencies = inverse_frequencies(config.rope_parameters, self.head_dim)
        self.attn_implementation = "sdpa"

    def new_state(self, batch_size: int) -> MimiTransformerState:
        """A state in which nothing came before."""
        weight = next(self.parameters())
        like = weight.new_zeros(self.head_dim)
        rings = [new_attention_state(batch_size, self.num_key_value_heads, self.window, like) for _ in self.layers]
        return MimiTransformerState(torch.zeros(batch_size, dtype=torch.int64, device=weight.device), rings)

    def forward(self, x: Tensor, state: MimiTransformerState | None = None, active: Tensor | None = None) -> Tensor:
        """(B, T, H) -> (B, T, H); `state` is updated in place, in the `active` (B,) streams or all."""
        if state is None:
            positions = torch.arange(x.shape[1], device=x.device)
            return self._run(x, positions, [None] * len(self.layers), None)
        blocks = [self._advance(block, state, active) for block in x.split(self.window, dim=1)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)

    def _advance(self, x: Tensor, state: MimiTransformerState, active: Tensor | None) -> Tensor:
        steps = x.shape[1]
        positions = state.seen[:, None, None] + torch.arange(steps, device=x.device)  # (B, 1, T): one for all heads
        x = self._run(x, positions, state.layers, ring_step(state.seen, steps, self.window, state.layers[0], active))
        state.seen.add_(steps if active is None else steps * active)
        return x

    def _run(self, x: Tensor, positions: Tensor, states: Any, step: RingStep | None) -> Tensor:
        if self.frequencies.device != x.device:  # once, so that no step copies between devices
            self.frequencies = self.frequencies.to(x.device)
        place = _Place(*rotary_angles(positions, self.frequencies, x.dtype), step)
        for layer, state in zip(self.layers, states, strict=True):
            x = layer(x, place, state, self.attn_implementation)
        return x


# ------------------------------------------------------------------------------------------------------------------ model


class MimiModel(PreTrainedModel):
    """The codec: `encode` speech to codes, `decode` codes to speech, `forward` does both."""

    config_class = MimiConfig
    config: MimiConfig

    def __init__(self, config: MimiConfig) -> None:
        super().__init__(config)
        self.encoder = MimiEncoder(config)
        self.encoder_transformer = MimiTransformer(config)
        self.decoder_transformer = MimiTransformer(config)
        self.decoder = MimiDecoder(config)
        self.quantizer = MimiSplitResidualVectorQuantizer(config)
        self.downsample, self.upsample = _resampling(config)
        self.frame_samples = math.prod(config.upsampling_ratios) * (self.downsample.stride if self.downsample else 1)
        self._compiled_encoding, self._compiled_decoding = CompiledSteps(), CompiledSteps()
        self.set_attn_implementation(config._attn_implementation or "sdpa")
        self.post_init()

    def set_attn_implementation(self, name: str) -> None:
        """Choose "eager", "sdpa" or "flash_attention_2" for both transformers.

        Raises:
            ConfigError: no such implementation. MissingExtraError: flash attention is not installed.
        """
        attention_function(name)
        self.encoder_transformer.attn_implementation = name
        self.decoder_transformer.attn_implementation = name

    # Public: audio and codes

    @torch.no_grad()  # codes carry no gradient; training goes through forward
    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        num_quantizers: int | None = None,
        encoder_past_key_values: MimiTransformerState | None = None,
        padding_cache: MimiConvState | None = None,
        use_streaming: bool | None = None,
        return_dict: bool | None = None,
    ) -> MimiEncoderOutput | tuple[Any, ...]:
        """Audio to codes.

        Args:
            input_values: (B, C, S) audio at config.sampling_rate, in the model's dtype.
            padding_mask: (B, S) or (B, C, S), 1 for audio and 0 for padding on the right. Each item then gets the codes that
                it gets alone; frames after its end are arbitrary, `get_audio_codes_mask` tells which. In a stream, an item
                without any audio stays as it was.
            num_quantizers: codebooks wanted, the semantic ones first; None is all.
            encoder_past_key_values: what the transformer saw before; updated in place.
            padding_cache: what the convolutions saw before; updated in place.
            use_streaming: start or go on with a stream: states are made where none is given, and returned. S must then be
                whole frames. None: as config.use_streaming says. A padding_cache makes it a stream in any case.
            return_dict: False for a tuple; None as config.return_dict says.

        Returns:
            Codes (B, Q, ceil(S / frame)), and the states.

        Raises:
            AudioError: the input's shape, channels or mask do not fit. ConfigError: num_quantizers out of range.
            StreamError: a stream fed with part of a frame, or a state of another batch size.
        """
        self._check_audio(input_values)
        number = self.check_num_quantizers(num_quantizers)
        lengths = None if padding_mask is None else _lengths(padding_mask, input_values)
        batch = input_values.shape[0]
        if padding_cache is not None or (self.config.use_streaming if use_streaming is None else use_streaming):
            if input_values.shape[-1] % self.frame_samples:
                raise StreamError(
                    f"expected whole frames of {self.frame_samples} samples in a stream, got {input_values.shape[-1]} samples; "
                    "buffer the rest, and end the stream with a frame padded by zeros and a padding_mask"
                )
            padding_cache = padding_cache or self.new_padding_cache(batch)
            encoder_past_key_values = encoder_past_key_values or self.encoder_transformer.new_state(batch)
        elif encoder_past_key_values is None and self.config.use_cache:
            encoder_past_key_values = self.encoder_transformer.new_state(batch)
        active = None if lengths is None or padding_cache is None else lengths > 0
        latents = self.encode_latents(input_values, lengths, encoder_past_key_values, padding_cache, active)
        codes = self.quantizer.encode(latents, number)
        return self._output(MimiEncoderOutput(codes, encoder_past_key_values, padding_cache), return_dict)

    def decode(
        self,
        audio_codes: Tensor,
        padding_mask: Tensor | None = None,
        decoder_past_key_values: MimiDecoderState | None = None,
        return_dict: bool | None = None,
    ) -> MimiDecoderOutput | tuple[Any, ...]:
        """Codes to audio.

        Args:
            audio_codes: (B, Q, F) int64, any number of codebooks from the semantic ones up.
            padding_mask: (B, S) or (B, C, S); the audio is cut to its length S.
            decoder_past_key_values: what came before (`new_decoder_state`); updated in place. The audio then joins that of the
                call before without a seam. None: a whole signal, or a new stream where config.use_cache says so.
            return_dict: False for a tuple; None as config.return_dict says.

        Returns:
            Audio (B, C, F x frame), and the state.

        Raises:
            ConfigError: codes of the wrong shape, or out of range. StreamError: a state of another batch size.
        """
        self._check_codes(audio_codes)
        if decoder_past_key_values is None and self.config.use_cache:
            decoder_past_key_values = self.new_decoder_state(audio_codes.shape[0])
        audio = self.decode_latents(self.quantizer.decode(audio_codes), decoder_past_key_values)
        if padding_mask is not None:
            audio = audio[..., : padding_mask.shape[-1]]
        return self._output(MimiDecoderOutput(audio, decoder_past_key_values), return_dict)

    def forward(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        num_quantizers: int | None = None,
        audio_codes: Tensor | None = None,
        encoder_past_key_values: MimiTransformerState | None = None,
        decoder_past_key_values: MimiDecoderState | None = None,
        return_dict: bool | None = None,
    ) -> MimiOutput | tuple[Any, ...]:
        """Audio to codes (unless `audio_codes` are given) and back; arguments as in `encode` and `decode`.

        In training mode the audio carries gradients to the encoder, straight through the quantiser, whose codebooks are
        updated (see MimiSplitResidualVectorQuantizer.forward, which also gives the commitment loss).

        Returns:
            Codes (B, Q, F), audio (B, C, S), and the states.
        """
        if self.training and audio_codes is None:
            codes, audio = self._train_step(input_values, padding_mask, num_quantizers)
            return self._output(MimiOutput(codes, audio[..., : input_values.shape[-1]]), return_dict)
        if audio_codes is None:
            encoded = cast(
                MimiEncoderOutput,
                self.encode(input_values, padding_mask, num_quantizers, encoder_past_key_values, return_dict=True),
            )
            audio_codes, encoder_past_key_values = (
                cast(Tensor, encoded.audio_codes),
                encoded.encoder_past_key_values,
            )
        decoded = cast(MimiDecoderOutput, self.decode(audio_codes, None, decoder_past_key_values, return_dict=True))
        audio = cast(Tensor, decoded.audio_values)[..., : input_values.shape[-1]]
        output = MimiOutput(audio_codes, audio, encoder_past_key_values, decoded.decoder_past_key_values)
        return self._output(output, return_dict)

    # Public: latents, the continuous values on either side of the quantiser

    def encode_latents(
        self,
        audio: Tensor,
        lengths: Tensor | None = None,
        transformer: MimiTransformerState | None = None,
        convs: MimiConvState | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """(B, C, S) audio -> (B, F, H), what the quantiser gets, with gradients.

        Args:
            lengths: (B,) true lengths in samples.
            transformer, convs: what came before; updated in place.
            active: (B,) bool, the streams that move on; the others keep their states and get arbitrary results.

        Raises:
            StreamError: a state of another batch size.
        """
        self._check_states(audio.shape[0], transformer, convs)
        if convs is not None and transformer is not None and lengths is None and active is None:
            compiled = self._compiled_encoding.find(audio)
            if compiled is not None:
                return compiled(audio, [convs, transformer])
        return self._encode_latents(audio, lengths, transformer, convs, active)

    def _encode_latents(
        self,
        audio: Tensor,
        lengths: Tensor | None,
        transformer: MimiTransformerState | None,
        convs: MimiConvState | None,
        active: Tensor | None,
    ) -> Tensor:
        layers, last = None if convs is None else convs.layers, None
        if layers is not None and self.downsample is not None:
            layers, last = layers[:-1], layers[-1]
        x, lengths = self.encoder(audio.transpose(1, 2).contiguous(), layers, lengths, active)
        x = self.encoder_transformer(x, transformer, active)
        if self.downsample is not None:
            x = self.downsample(x, last, lengths, active)
        return cast(Tensor, x)

    def decode_latents(self, latents: Tensor, state: MimiDecoderState | None = None, active: Tensor | None = None) -> Tensor:
        """(B, F, H) latents -> (B, C, S) audio, with gradients; `state` and `active` as in `encode_latents`.

        Raises:
            StreamError: a state of another batch size.
        """
        self._check_states(latents.shape[0], state)
        if state is not None and active is None:
            compiled = self._compiled_decoding.find(latents)
            if compiled is not None:
                return compiled(latents, [state])
        return self._decode_latents(latents, state, active)

    def _decode_latents(self, latents: Tensor, state: MimiDecoderState | None, active: Tensor | None) -> Tensor:
        x = latents
        if self.upsample is not None:
            x = self.upsample(x, None if state is None else state.upsample[0], active)
        x = self.decoder_transformer(x, None if state is None else state.transformer, active)
        x = self.decoder(x.contiguous(), None if state is None else state.layers, active)
        return cast(Tensor, x.transpose(1, 2).contiguous())

    # Public: compiled steps

    @torch.no_grad()
    def compile_for(self, use: str, way: str | None = None) -> None:
        """Compile what runs at fixed shapes on a CPU, for the weights and the number of threads as they are now.

        Takes some ten seconds each way, a C++ compiler, and memory for a second copy of the weights that it uses. Where a
        compiled step does not fit (another batch size or number of threads, weights that have changed, training), the plain
        one runs. Codes and samples agree with the plain ones as fast paths do: to rounding.

        Args:
            use: "live" for streams fed one frame at a time (MimiEncoderSession, MimiDecoderSession), "offline" for the
                convolutions of signals longer than some two seconds, one at a time.
            way: "encode" or "decode"; None is both.

        Raises:
            ConfigError: another use or way, a model that is not in evaluation mode on a CPU, or no compiler. StreamError: a
                model whose convolutions look ahead.
        """
        ways = ("encode", "decode")
        if use not in ("live", "offline") or way not in (None, *ways):
            raise ConfigError(f"expected use 'live' or 'offline' and way 'encode', 'decode' or None, got {use!r} and {way!r}")
        if self.training or self.device.type != "cpu":
            mode = "training" if self.training else "evaluation"
            raise ConfigError(
                f"expected a model in evaluation mode on a CPU, got one in {mode} mode on {self.device}; call eval(), or do "
                "without compiled steps on a GPU"
            )
        blank = next(self.parameters()).new_zeros
        for each in ways if way is None else (way,):
            if use == "live" and each == "encode":
                frame = blank(1, self.config.audio_channels, self.frame_samples)
                states = [self.new_padding_cache(1), self.encoder_transformer.new_state(1)]
                self._compiled_encoding.compile(self, self._encode_step, frame, states)
            elif use == "live":
                latents = blank(1, 1, self.config.hidden_size)
                self._compiled_decoding.compile(self, self._decode_step, latents, [self.new_decoder_state(1)])
            else:
                (self.encoder if each == "encode" else self.decoder).compile_tile()

    def _encode_step(self, audio: Tensor, states: list[Any]) -> Tensor:
        convs, transformer = states
        return self._encode_latents(audio, None, transformer, convs, None)

    def _decode_step(self, latents: Tensor, states: list[Any]) -> Tensor:
        return self._decode_latents(latents, states[0], None)

    # Public: lengths and states

    def get_encoded_length(self, input_length: Tensor) -> Tensor:
        """Frames that so many samples (any shape, int) become."""
        return ceil_div(input_length, self.frame_samples)

    def get_audio_codes_mask(self, padding_mask: Tensor, padding_side: str = "right") -> Tensor:
        """(B, S) or (B, C, S) -> (B, F) bool: the frames that hold audio."""
        lengths = self.get_encoded_length(_flat_mask(padding_mask).sum(-1))
        frames = torch.arange(int(self.get_encoded_length(torch.tensor(padding_mask.shape[-1]))), device=lengths.device)
        mask = frames < lengths[:, None]
        return mask if padding_side == "right" else mask.flip(-1)

    def check_num_quantizers(self, number: int | None) -> int:
        """`number`, or all codebooks for None.

        Raises:
            ConfigError: fewer than the semantic codebooks, or more than there are.
        """
        least, most = self.config.num_semantic_quantizers, self.config.num_quantizers
        if number is None:
            return most
        if not least <= number <= most:
            raise ConfigError(f"expected num_quantizers from {least} to {most}, got {number}; choose a number in that range")
        return number

    def new_padding_cache(self, batch_size: int) -> MimiConvState:
        """A state of the encoder's convolutions in which nothing came before."""
        down = [] if self.downsample is None else [self.downsample.new_state(batch_size)]
        return MimiConvState(new_conv_states(self.encoder, batch_size) + down)

    def new_decoder_state(self, batch_size: int) -> MimiDecoderState:
        """A state for `decode` in which nothing came before."""
        up = [] if self.upsample is None else [self.upsample.new_state(batch_size)]
        transformer = self.decoder_transformer.new_state(batch_size)
        return MimiDecoderState(up, transformer, new_conv_states(self.decoder, batch_size))

    def codebook_hash(self) -> str:
        """SHA-256, in hex, of all codebooks: two models whose hashes agree mean the same sounds by the same codes."""
        return self.quantizer.codebook_hash()

    def _train_step(self, audio: Tensor, padding_mask: Tensor | None, num_quantizers: int | None) -> tuple[Tensor, Tensor]:
        self._check_audio(audio)
        lengths = None if padding_mask is None else _lengths(padding_mask, audio)
        frames = None if padding_mask is None else self.get_audio_codes_mask(padding_mask)
        latents = self.encode_latents(audio, lengths)
        quantized = self.quantizer(latents, self.check_num_quantizers(num_quantizers), frames)
        return quantized.codes, self.decode_latents(quantized.quantized)

    # Checks at the edge

    def _check_audio(self, audio: Tensor) -> None:
        channels = self.config.audio_channels
        if not isinstance(audio, Tensor):
            raise AudioError(
                f"expected audio as a tensor (batch, {channels}, samples), got {type(audio).__name__}; "
                'MimiFeatureExtractor makes one with return_tensors="pt"'
            )
        if audio.dim() != 3 or audio.shape[1] != channels or audio.numel() == 0:
            raise AudioError(
                f"expected audio of shape (batch, {channels}, samples) with at least one sample, got {tuple(audio.shape)}; "
                "MimiFeatureExtractor makes that shape"
            )
        if not audio.is_floating_point():
            raise AudioError(f"expected floating-point audio in [-1, 1], got {audio.dtype}; convert it first")
        if audio.dtype != self.dtype and not torch.is_autocast_enabled(audio.device.type):
            raise AudioError(f"expected audio in the model's {self.dtype}, got {audio.dtype}; pass audio.to(model.dtype)")

    def _check_codes(self, codes: Tensor) -> None:
        least, most = self.config.num_semantic_quantizers, self.config.num_quantizers
        if codes.dim() != 3 or not least <= codes.shape[1] <= most or codes.shape[2] == 0:
            raise ConfigError(
                f"expected codes of shape (batch, {least} to {most}, frames) with at least one frame, got {tuple(codes.shape)}"
            )
        if codes.is_floating_point():
            raise ConfigError(f"expected integer codes, got {codes.dtype}; convert them first")
        # A look at the values would stall a GPU; there the lookup itself stops on a bad index.
        if codes.device.type == "cpu" and not (int(codes.min()) >= 0 and int(codes.max()) < self.config.codebook_size):
            raise ConfigError(
                f"expected codes from 0 to {self.config.codebook_size - 1}, got {int(codes.min())} to {int(codes.max())}; "
                "these codes are of another model, or damaged"
            )

    @staticmethod
    def _check_states(batch_size: int, *states: State | None) -> None:
        for state in states:
            if state is not None and state.batch_size != batch_size:
                raise StreamError(
                    f"expected a batch of {state.batch_size}, as the state has, got {batch_size}; use a new state"
                )

    # Checkpoints

    @classmethod
    def _find_config(
        cls, name_or_path: Any, files: TensorFiles, where: dict[str, Any], fields: dict[str, Any]
    ) -> PreTrainedConfig:
        try:
            return super()._find_config(name_or_path, files, where, fields)
        except CheckpointError:
            if is_moshi_layout(files.shapes):
                return MimiConfig(**fields)  # the moshi package has one Mimi, and its files no config.json
            raise

    @classmethod
    def _renaming(cls, config: Any) -> Renaming:
        return moshi_renaming(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """He initialisation of convolutions (arXiv:1502.01852), a normal distribution elsewhere, as the peers train from."""
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                bound = math.sqrt(module.groups / (module.in_channels * module.kernel_size[0]))
                nn.init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _resampling(config: MimiConfig) -> tuple[StreamingConv1d | None, StreamingConvTranspose1d | None]:
    """From the encoder's rate to the frame rate and back; nothing where they are the same."""
    stride = int(config.encodec_frame_rate / config.frame_rate)
    if config.frame_rate == config.encodec_frame_rate:
        return None, None
    size, kernel, causal = config.hidden_size, 2 * stride, config.use_causal_conv
    down = StreamingConv1d(size, size, kernel, stride=stride, bias=False, causal=causal, pad_mode="replicate")
    up = StreamingConvTranspose1d(
        size,
        size,
        kernel,
        stride=stride,
        groups=config.upsample_groups,
        bias=False,
        causal=causal,
        trim_right_ratio=config.trim_right_ratio,
    )
    return down, up


def _flat_mask(padding_mask: Tensor) -> Tensor:
    mask = padding_mask.bool()
    return mask.any(1) if mask.dim() == 3 else mask


def _lengths(padding_mask: Tensor, audio: Tensor) -> Tensor | None:
    """True lengths (B,) from a mask that pads on the right; None where it pads nothing."""
    mask = _flat_mask(padding_mask)
    if mask.shape != (audio.shape[0], audio.shape[2]):
        raise AudioError(
            f"expected a padding_mask of shape {(audio.shape[0], audio.shape[2])}, got {tuple(padding_mask.shape)}; "
            "pass the one that MimiFeatureExtractor returns"
        )
    lengths = lengths_of(mask, "a padding_mask")
    return None if can_look(mask) and bool(mask.all()) else lengths
