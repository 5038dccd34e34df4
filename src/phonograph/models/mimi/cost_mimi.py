"""What a Mimi costs: how many values it holds and how many operations a second of audio takes, from its configuration alone.

    mimi_cost(MimiConfig()).encode_flops_per_second

The counts follow the layers of modeling_mimi.py one by one, without torch. Operations are those of convolutions, matrix
products and attention over a full window, a multiplication and an addition being two; activations, norms and look-ups, a few
percent, are not counted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from phonograph.models.mimi.configuration_mimi import MimiConfig

__all__ = ["MimiCost", "mimi_cost"]


@dataclass(frozen=True)
class MimiCost:
    """Sizes and operations of one Mimi.

    Attributes:
        parameters: values of the weights, without the codebooks (`MimiModel.num_parameters()`).
        codebook_values: values of the buffers that the codebooks are made of.
        encode_flops_per_second: floating-point operations for a second of audio to codes of all codebooks.
        decode_flops_per_second: the same for the way back.
    """

    parameters: int
    codebook_values: int
    encode_flops_per_second: float
    decode_flops_per_second: float


@dataclass(frozen=True)
class _Layer:
    """A convolution or linear layer: its weights are used `rate` times for a second of audio."""

    weights: int
    biases: int
    rate: float


def mimi_cost(config: MimiConfig) -> MimiCost:
    """Count the values and operations of a model with this configuration."""
    encoder, decoder = list(_encoder_layers(config)), list(_decoder_layers(config))
    attention = _attention_flops(config)
    quantizer = config.hidden_size * config.vector_quantization_hidden_dimension  # each of four projections
    frames = _frame_rate(config)
    search = 2 * config.num_quantizers * config.codebook_size * config.codebook_dim
    transformers = 2 * config.num_hidden_layers * _small_parameters(config)
    return MimiCost(
        parameters=sum(layer.weights + layer.biases for layer in encoder + decoder) + 4 * quantizer + transformers,
        codebook_values=config.num_quantizers * (config.codebook_size * (config.codebook_dim + 1) + 1),
        encode_flops_per_second=_flops(encoder) + attention + frames * (2 * 2 * quantizer + search),
        decode_flops_per_second=_flops(decoder) + attention + frames * 2 * 2 * quantizer,
    )


def _flops(layers: list[_Layer]) -> float:
    return sum(2 * layer.weights * layer.rate for layer in layers)


def _latent_rate(config: MimiConfig) -> float:
    return config.sampling_rate / math.prod(config.upsampling_ratios)


def _resampling_stride(config: MimiConfig) -> int:
    """Latent steps a frame; 1 where there is no resampling between them."""
    return int(config.encodec_frame_rate / config.frame_rate)


def _frame_rate(config: MimiConfig) -> float:
    return _latent_rate(config) / _resampling_stride(config)


def _conv(inputs: int, outputs: int, kernel: int, rate: float, bias: bool = True) -> _Layer:
    return _Layer(inputs * outputs * kernel, outputs if bias else 0, rate)


def _residual_units(config: MimiConfig, channels: int, rate: float) -> Iterator[_Layer]:
    hidden = channels // config.compress
    for _ in range(config.num_residual_layers):
        yield _conv(channels, hidden, config.residual_kernel_size, rate)
        yield _conv(hidden, channels, 1, rate)
        if config.use_conv_shortcut:
            yield _conv(channels, channels, 1, rate)


def _encoder_layers(config: MimiConfig) -> Iterator[_Layer]:
    rate, channels, size = float(config.sampling_rate), config.num_filters, config.hidden_size
    yield _conv(config.audio_channels, channels, config.kernel_size, rate)
    for ratio in reversed(config.upsampling_ratios):
        yield from _residual_units(config, channels, rate)
        rate /= ratio
        yield _conv(channels, channels * 2, ratio * 2, rate)
        channels *= 2
    yield _conv(channels, size, config.last_kernel_size, rate)
    yield from _transformer_layers(config)
    if config.frame_rate != config.encodec_frame_rate:
        yield _conv(size, size, 2 * _resampling_stride(config), _frame_rate(config), bias=False)


def _decoder_layers(config: MimiConfig) -> Iterator[_Layer]:
    size, rate = config.hidden_size, _latent_rate(config)
    if config.frame_rate != config.encodec_frame_rate:
        yield _conv(size // config.upsample_groups, size, 2 * _resampling_stride(config), _frame_rate(config), bias=False)
    yield from _transformer_layers(config)
    channels = config.num_filters * 2 ** len(config.upsampling_ratios)
    yield _conv(size, channels, config.kernel_size, rate)
    for ratio in config.upsampling_ratios:
        # A transposed convolution uses its weights once for each step that comes in.
        yield _conv(channels, channels // 2, ratio * 2, rate)
        rate *= ratio
        channels //= 2
        yield from _residual_units(config, channels, rate)
    yield _conv(channels, config.audio_channels, config.last_kernel_size, rate)


def _transformer_layers(config: MimiConfig) -> Iterator[_Layer]:
    size, rate, bias = config.hidden_size, _latent_rate(config), config.attention_bias
    inner = config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    for _ in range(config.num_hidden_layers):
        for inputs, outputs in ((size, inner), (size, key_value), (size, key_value), (inner, size)):
            yield _conv(inputs, outputs, 1, rate, bias)
        yield _conv(size, config.intermediate_size, 1, rate, bias=False)
        yield _conv(config.intermediate_size, size, 1, rate, bias=False)


def _small_parameters(config: MimiConfig) -> int:
    """Of a transformer layer: two norms with weight and bias, two layer scales."""
    return 6 * config.hidden_size


def _attention_flops(config: MimiConfig) -> float:
    """Scores and weighted sums of every step over its whole window."""
    per_step = 2 * 2 * config.sliding_window * config.num_attention_heads * config.head_dim
    return config.num_hidden_layers * per_step * _latent_rate(config)
