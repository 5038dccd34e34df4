"""Kaldi's log-mel filterbank features and utterance normalisation, for whole batches on any device.

    features, lengths = fbank(waveforms, lengths=lengths)       # (batch, frames, 80) of samples at 16-bit scale
    features = utterance_cmvn(features, lengths)

The recipe is that of Kaldi's `compute-fbank-feats` with its usual options for speech: whole frames of 25 ms every 10 ms
(`snip_edges`), each less its mean, pre-emphasised by 0.97 and weighted by the povey window; the power spectrum at the next
power of two; triangles equally spaced and shaped on the mel scale from 20 Hz to half the sampling rate; natural logarithm,
floored at float32's epsilon. Samples are at the scale of 16-bit integers, and nothing is random unless `dither` asks for it.

Knows torch and no model. No gradients flow through `fbank`.

How it is fast: a frame's mean and pre-emphasis are linear, and the window is 0 at a frame's first sample, so pre-emphasis runs
once over the signal instead of in every frame; frames are views of the signal; work goes by blocks that stay in the
processor's cache; and each few mel bands are multiplied only with the part of the spectrum that they cover.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import numpy as np
import torch
from torch import Tensor

from phonograph.audio.mel import hz_to_mel, triangles
from phonograph.errors import AudioError

__all__ = ["fbank", "frame_count", "frame_samples", "hop_samples", "utterance_cmvn"]

_EMPHASIS = 0.97
_LOWEST_HZ = 20.0
_FLOOR = torch.finfo(torch.float32).eps

_CPU_BLOCK_FRAMES = 1024  # for each thread, whose spectra then stay in the processor's cache
_MOST_THREADS = 16  # bounds the memory for spectra to about 100 MB
_GPU_BLOCK_FRAMES = 1 << 17  # bounds the memory for spectra to about 1 GB
_CPU_BANDS = 16  # bands multiplied at a time: wide enough for a matrix product, narrow enough to skip most zeros


def frame_samples(sampling_rate: int) -> int:
    """Samples in a frame of 25 ms."""
    return sampling_rate * 25 // 1000


def hop_samples(sampling_rate: int) -> int:
    """Samples from the start of one frame to the next, 10 ms."""
    return sampling_rate * 10 // 1000


def frame_count(samples: int, sampling_rate: int = 16000) -> int:
    """Frames of a signal of so many samples; 0 below 25 ms."""
    return max(0, (samples - frame_samples(sampling_rate)) // hop_samples(sampling_rate) + 1)


@overload
def fbank(
    waveforms: Tensor, sampling_rate: int = 16000, num_mel_bins: int = 80, *, lengths: None = None, dither: float = 0.0
) -> Tensor: ...


@overload
def fbank(
    waveforms: Tensor, sampling_rate: int = 16000, num_mel_bins: int = 80, *, lengths: Tensor, dither: float = 0.0
) -> tuple[Tensor, Tensor]: ...


@torch.no_grad()
def fbank(
    waveforms: Tensor,
    sampling_rate: int = 16000,
    num_mel_bins: int = 80,
    *,
    lengths: Tensor | None = None,
    dither: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-mel features of one signal or a batch of signals.

    Args:
        waveforms: (samples,) or (batch, samples), of any floating dtype, at 16-bit scale (-32768 to 32767).
        sampling_rate: in Hz.
        num_mel_bins: bands of the filterbank.
        lengths: (batch,), the samples of each signal of a batch that are its own, at most `samples`; None means all.
        dither: standard deviation of normal noise that is added to the samples.

    Returns:
        Features (frames, num_mel_bins) or (batch, frames, num_mel_bins), float64 for float64 and float32 for all else. With
        `lengths` also each signal's frames (batch,); features beyond them are 0. Signals of less than a frame have none.

    Raises:
        AudioError: integers, or another number of dimensions.
    """
    if waveforms.ndim not in (1, 2) or not waveforms.is_floating_point():
        raise AudioError(
            f"expected floating-point waveforms (samples,) or (batch, samples), got {waveforms.dtype} of shape "
            f"{tuple(waveforms.shape)}; convert or reshape them"
        )
    dtype = torch.float64 if waveforms.dtype == torch.float64 else torch.float32
    samples = waveforms.to(dtype)
    if dither:
        samples = samples + dither * torch.randn_like(samples)
    features = _features(samples[None] if samples.ndim == 1 else samples, sampling_rate, num_mel_bins)
    if lengths is None:
        return features[0] if samples.ndim == 1 else features
    frames = (lengths - frame_samples(sampling_rate)).div(hop_samples(sampling_rate), rounding_mode="floor") + 1
    frames = frames.clamp(min=0)
    return features.masked_fill_(~_is_real(features, frames), 0.0), frames


def utterance_cmvn(
    features: Tensor,
    lengths: Tensor | None = None,
    *,
    normalize_means: bool = True,
    normalize_vars: bool = True,
    padding_value: float = 0.0,
) -> Tensor:
    """Cepstral mean and variance normalisation: each band of each utterance less its mean, over its standard deviation.

    Statistics are over an utterance's own frames, with the variance of a population. A band that never changes has no scale:
    less its mean it is 0, and it is not divided.

    Args:
        features: (batch, frames, bands).
        lengths: (batch,), frames of each utterance; None means all.
        normalize_means: subtract the mean.
        normalize_vars: divide by the standard deviation.
        padding_value: what frames beyond the lengths are filled with.

    Returns:
        (batch, frames, bands), of the same dtype.
    """
    if not features.shape[1]:
        return features
    if lengths is None:
        lengths = torch.full(features.shape[:1], features.shape[1], device=features.device)
    padding = ~_is_real(features, lengths)
    count = lengths.clamp(min=1).to(features.dtype)[:, None, None]
    # Less its first frame, so that a constant is exactly 0 and a loud band's mean costs no precision.
    shifted = (features - features[:, :1]).masked_fill_(padding, 0.0)
    centred = shifted - shifted.sum(dim=1, keepdim=True) / count
    result = centred if normalize_means else features
    if normalize_vars:
        variance = centred.square().masked_fill_(padding, 0.0).sum(dim=1, keepdim=True) / count
        result = result / torch.where(variance > 0, variance, 1.0).sqrt()
    return result.masked_fill(padding, padding_value)


def _is_real(features: Tensor, lengths: Tensor) -> Tensor:
    """(batch, frames, 1), true for frames within each item's length."""
    positions = torch.arange(features.shape[1], device=features.device)
    return (positions < lengths[:, None])[..., None]


@dataclass(frozen=True)
class _Band:
    """Weights (last - first, bands) from a slice of the squared real and imaginary parts to neighbouring mel bands."""

    parts: slice
    bands: slice
    weights: Tensor


def _features(samples: Tensor, sampling_rate: int, num_mel_bins: int) -> Tensor:
    """(batch, samples) to (batch, frames, bands), block by block."""
    frame, hop = frame_samples(sampling_rate), hop_samples(sampling_rate)
    batch, count = len(samples), frame_count(samples.shape[1], sampling_rate)
    features = samples.new_empty(batch, count, num_mel_bins)
    if not features.numel():
        return features
    window, bank = _tables(sampling_rate, num_mel_bins, samples.dtype, samples.device)
    threads = min(torch.get_num_threads(), _MOST_THREADS)
    block = _CPU_BLOCK_FRAMES * threads if samples.device.type == "cpu" else _GPU_BLOCK_FRAMES
    rows = max(1, block // count)
    padded = samples.new_zeros(min(rows, batch), min(block, count), _fft_samples(sampling_rate))
    for row in range(0, batch, rows):
        for start in range(0, count, block):
            stop = min(start + block, count)
            part = samples[row : row + rows, start * hop : (stop - 1) * hop + frame]
            windowed = padded[: len(part), : stop - start]
            _window_frames(part, hop, window, windowed)
            _log_mel(windowed, bank, features[row : row + rows, start:stop])
    return features


def _window_frames(samples: Tensor, hop: int, window: Tensor, out: Tensor) -> None:
    """Frames of (batch, samples), pre-emphasised and weighted, into the start of each of (batch, frames, fft size)."""
    size = len(window)
    emphasised = torch.sub(samples[:, 1:], samples[:, :-1], alpha=_EMPHASIS)
    mean = samples.unfold(1, size + 1, hop).mean(dim=2, keepdim=True)
    frames = out[..., :size]
    torch.sub(emphasised.unfold(1, size, hop), mean, alpha=1 - _EMPHASIS, out=frames)
    frames.mul_(window)


def _log_mel(windowed: Tensor, bank: tuple[_Band, ...], out: Tensor) -> None:
    parts = torch.view_as_real(torch.fft.rfft(windowed)).flatten(0, 1).flatten(1).square_()
    energies = out.view(-1, out.shape[-1])
    for band in bank:
        torch.mm(parts[:, band.parts], band.weights, out=energies[:, band.bands])
    energies.clamp_(min=_FLOOR).log_()


def _fft_samples(sampling_rate: int) -> int:
    return 1 << (frame_samples(sampling_rate) - 1).bit_length()


@lru_cache(maxsize=16)
def _tables(
    sampling_rate: int, num_mel_bins: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, tuple[_Band, ...]]:
    """The window without its first weight, which is 0, and the filterbank."""
    size, fft_size = frame_samples(sampling_rate), _fft_samples(sampling_rate)
    hann = 0.5 - 0.5 * np.cos(2 * math.pi * np.arange(1, size) / (size - 1))
    window = torch.as_tensor(hann**0.85, dtype=dtype, device=device)
    limits = hz_to_mel([_LOWEST_HZ, sampling_rate / 2])
    corners = np.linspace(limits[0], limits[1], num_mel_bins + 2)
    weights = triangles(hz_to_mel(np.fft.rfftfreq(fft_size, 1 / sampling_rate)), corners)
    per_part = torch.as_tensor(np.repeat(weights.T, 2, axis=0), dtype=dtype, device=device)
    step = _CPU_BANDS if device.type == "cpu" else num_mel_bins
    return window, tuple(_band(per_part, slice(i, min(i + step, num_mel_bins))) for i in range(0, num_mel_bins, step))


def _band(per_part: Tensor, bands: slice) -> _Band:
    used = per_part[:, bands].any(dim=1).nonzero()
    parts = slice(int(used.min()), int(used.max()) + 1) if len(used) else slice(0, 1)
    return _Band(parts, bands, per_part[parts, bands].contiguous())
