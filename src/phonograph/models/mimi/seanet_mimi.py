"""Mimi's convolutional encoder and decoder, SEANet (Tagliasacchi et al. 2020, arXiv:2009.02095; EnCodec, arXiv:2210.13438).

The encoder takes 24 kHz samples to 25 steps a second, and the decoder back. Both run on a whole signal or on the next part of a
stream; on a CPU, what is long goes through as a stream of tiles, which stay in its cache and can be compiled.

Shapes: B batch, C audio channels, S samples, T steps (25 Hz), H hidden size. Activations are (B, T, features).
"""

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.models.mimi.configuration_mimi import MimiConfig
from phonograph.nn.activations import ELU
from phonograph.nn.compiled import CompiledSteps
from phonograph.nn.conv import (
    Conv1dState,
    ConvTranspose1dState,
    StreamingConv1d,
    StreamingConvTranspose1d,
    ceil_div,
)
from phonograph.nn.packed import fast_path

__all__ = ["MimiDecoder", "MimiEncoder", "MimiResidualUnit", "new_conv_states"]


class MimiResidualUnit(nn.Module):
    """ELU, convolution, ELU, 1x1 convolution, added to the input."""

    def __init__(self, config: MimiConfig, channels: int, dilation: int) -> None:
        super().__init__()
        hidden = channels // config.compress
        self.block = nn.ModuleList(
            [
                ELU(),
                _conv(config, channels, hidden, config.residual_kernel_size, dilation=dilation),
                ELU(inplace=True),
                _conv(config, hidden, channels, 1),
            ]
        )
        self.shortcut = _conv(config, channels, channels, 1) if config.use_conv_shortcut else None

    def forward(
        self, x: Tensor, states: "Iterator[Any]", lengths: Tensor | None = None, active: Tensor | None = None
    ) -> Tensor:
        """(B, T, channels), states, true lengths (B,), streams that move on (B,) -> the same shape."""
        first, narrow, second, widen = self.block
        hidden = second(narrow(first(x), next(states), lengths, active))
        state = next(states)
        residual = x if self.shortcut is None else self.shortcut(x, next(states), None, active)
        return cast(StreamingConv1d, widen).add_to(residual, hidden, state, active)


class MimiEncoder(nn.Module):
    """SEANet encoder: (B, S, C) -> (B, S / 960, H)."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        channels = config.num_filters
        layers: list[nn.Module] = [_conv(config, config.audio_channels, channels, config.kernel_size)]
        for ratio in reversed(config.upsampling_ratios):
            layers += _residual_units(config, channels)
            layers += [ELU(inplace=True), _conv(config, channels, channels * 2, ratio * 2, stride=ratio)]
            channels *= 2
        layers += [ELU(inplace=True), _conv(config, channels, config.hidden_size, config.last_kernel_size)]
        self.layers = nn.ModuleList(layers)
        self.hop = math.prod(config.upsampling_ratios)
        self.streams = _streams(config)
        self.values_per_step = self.hop * config.num_filters
        self.compiled = CompiledSteps()

    def forward(
        self,
        x: Tensor,
        state: list[Conv1dState] | None = None,
        lengths: Tensor | None = None,
        active: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, C), states, true lengths (B,), streams that move on (B,) -> (B, T, H) and the lengths in its steps."""
        tile = self.hop * _tile_steps(x, self) if self.streams else x.shape[1]
        if x.shape[1] <= tile:
            return self._run(x, _states(state), lengths, active)
        # A long signal is a stream of tiles, the last of which is filled up to whole steps.
        samples = x.shape[1]
        ends = torch.full((x.shape[0],), samples, device=x.device) if lengths is None else lengths
        x = F.pad(x, (0, 0, 0, -samples % self.hop))
        tiles, states = [], new_conv_states(self, x.shape[0]) if state is None else state
        for start in range(0, samples, tile):
            whole = lengths is None and start + tile <= samples
            inside = None if whole else (ends - start).clamp(0, tile)
            tiles.append(self._tile(x[:, start : start + tile], states, inside, active))
        return torch.cat(tiles, dim=1), None if lengths is None else ceil_div(lengths, self.hop)

    def step(self, x: Tensor, states: list[Conv1dState]) -> Tensor:
        """The next part of a stream, (B, S, C) -> (B, S / 960, H); the states are updated in place."""
        return self._run(x, iter(states), None, None)[0]

    def compile_tile(self) -> None:
        """Compile `step` for the tiles of one signal; errors as of CompiledStep."""
        _compile_tile(self, self.hop)

    def _tile(self, x: Tensor, states: list[Conv1dState], lengths: Tensor | None, active: Tensor | None) -> Tensor:
        compiled = self.compiled.find(x) if lengths is None and active is None else None
        return self._run(x, iter(states), lengths, active)[0] if compiled is None else compiled(x, states)

    def _run(
        self, x: Tensor, states: Iterator[Any], lengths: Tensor | None, active: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        for layer in self.layers:
            if isinstance(layer, StreamingConv1d):
                x = layer(x, next(states), lengths, active)
                lengths = None if lengths is None else layer.out_lengths(lengths)
            else:
                x = layer(x, states, lengths, active) if isinstance(layer, MimiResidualUnit) else layer(x)
        return x, lengths


class MimiDecoder(nn.Module):
    """SEANet decoder: (B, T, H) -> (B, 960 T, C)."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        channels = config.num_filters * 2 ** len(config.upsampling_ratios)
        layers: list[nn.Module] = [_conv(config, config.hidden_size, channels, config.kernel_size)]
        for ratio in config.upsampling_ratios:
            up = StreamingConvTranspose1d(
                channels,
                channels // 2,
                ratio * 2,
                stride=ratio,
                causal=config.use_causal_conv,
                trim_right_ratio=config.trim_right_ratio,
            )
            channels //= 2
            layers += [ELU(inplace=True), up, *_residual_units(config, channels)]
        layers += [
            ELU(inplace=True),
            _conv(config, channels, config.audio_channels, config.last_kernel_size),
        ]
        self.layers = nn.ModuleList(layers)
        self.streams = _streams(config)
        self.values_per_step = math.prod(config.upsampling_ratios) * config.num_filters
        self.compiled = CompiledSteps()

    def forward(
        self,
        x: Tensor,
        state: list[Conv1dState | ConvTranspose1dState] | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """(B, T, H), the convolutions' states, streams that move on (B,) -> (B, 960 T, C)."""
        tile = _tile_steps(x, self) if self.streams else x.shape[1]
        if x.shape[1] <= tile:
            return self._run(x, _states(state), active)
        states = new_conv_states(self, x.shape[0]) if state is None else state
        return torch.cat([self._tile(part, states, active) for part in x.split(tile, dim=1)], dim=1)

    def step(self, x: Tensor, states: list[Conv1dState | ConvTranspose1dState]) -> Tensor:
        """The next part of a stream, (B, T, H) -> (B, 960 T, C); the states are updated in place."""
        return self._run(x, iter(states), None)

    def compile_tile(self) -> None:
        """Compile `step` for the tiles of one signal; errors as of CompiledStep."""
        _compile_tile(self, 1)

    def _tile(self, x: Tensor, states: list[Conv1dState | ConvTranspose1dState], active: Tensor | None) -> Tensor:
        compiled = self.compiled.find(x) if active is None else None
        return self._run(x, iter(states), active) if compiled is None else compiled(x, states)

    def _run(self, x: Tensor, states: Iterator[Any], active: Tensor | None) -> Tensor:
        for layer in self.layers:
            if isinstance(layer, MimiResidualUnit):
                x = layer(x, states, None, active)
            elif isinstance(layer, StreamingConv1d):
                x = layer(x, next(states), None, active)
            else:
                x = layer(x, next(states), active) if isinstance(layer, StreamingConvTranspose1d) else layer(x)
        return x


def _conv(config: MimiConfig, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> StreamingConv1d:
    return StreamingConv1d(
        inputs,
        outputs,
        kernel,
        stride=stride,
        dilation=dilation,
        causal=config.use_causal_conv,
        pad_mode=config.pad_mode,
    )


def _residual_units(config: MimiConfig, channels: int) -> list[nn.Module]:
    dilations = [config.dilation_growth_rate**depth for depth in range(config.num_residual_layers)]
    return [MimiResidualUnit(config, channels, dilation) for dilation in dilations]


def _streams(config: MimiConfig) -> bool:
    return config.use_causal_conv and config.trim_right_ratio == 1 and config.pad_mode != "reflect"


_TILE_VALUES = 50 * 960 * 64
"""Size of the largest activation of a tile: a few MB stay in a processor's cache, and a malloc reuses them."""


def _tile_steps(x: Tensor, module: "MimiEncoder | MimiDecoder") -> int:
    """Steps (25 Hz) of a tile in which a CPU works through a long signal; all of them elsewhere."""
    return _tile_steps_of(module, x.shape[0]) if fast_path(x, module) else x.shape[1]


def _tile_steps_of(module: "MimiEncoder | MimiDecoder", batch_size: int) -> int:
    """Steps (25 Hz) of a tile of so many signals."""
    return max(1, _TILE_VALUES // (module.values_per_step * batch_size))


def _compile_tile(module: "MimiEncoder | MimiDecoder", inputs_per_step: int) -> None:
    conv = cast(StreamingConv1d, module.layers[0]).conv
    tile = conv.weight.new_zeros(1, inputs_per_step * _tile_steps_of(module, 1), conv.in_channels)
    module.compiled.compile(module, module.step, tile, new_conv_states(module, 1))


def _states(state: list[Any] | None) -> Iterator[Any]:
    """The states in the order in which the layers take them, or None for each layer for ever."""
    return iter(lambda: None, ...) if state is None else iter(state)


def new_conv_states(module: nn.Module, batch_size: int) -> list[Any]:
    """A fresh state for each convolution inside, in the order they run, which is the order they are registered in."""
    kinds = (StreamingConv1d, StreamingConvTranspose1d)
    return [layer.new_state(batch_size) for layer in module.modules() if isinstance(layer, kinds)]
