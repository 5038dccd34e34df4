"""More speech out of what there is: other speeds, rooms, noises, bands and levels, for whole batches on their device.

    augment = Augmenter(AugmentOptions(speed_factors=[0.9, 1.0, 1.1], noise_probability=0.5), 16000, device=device)
    waveforms, lengths = augment(waveforms, lengths)

Noise needs no recordings, though it takes them: it is made of random spectra and of the batch's other speakers. Rooms are made
too, of a direct sound and a decaying tail. Whatever is drawn comes from torch's default generators, of the device and, for the
speed, of the CPU; nothing is read back from the device. Spectra have one of a few fixed sizes, so that plans are made once.

Shapes: B utterances, S samples, K samples of a filter. What lies beyond an utterance's length is 0, before and after.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from phonograph.configuration import CheckedOptions, Rule
from phonograph.errors import ConfigError
from phonograph.nn.masks import inside
from phonograph.training.data.manifest import read_manifest
from phonograph.training.data.store import AudioStore

__all__ = [
    "AugmentOptions",
    "Augmenter",
    "add_noise",
    "band_filters",
    "change_speed",
    "coloured_noise",
    "convolve",
    "fft_samples",
    "recordings",
    "room_responses",
]

_SILENCE = 1e-10  # mean square below which there is nothing to set a level by
_ATTENUATION_DB = 64.0  # two edges together come to less
_TRANSITION_HZ = 200.0
_ROOMS = 64
_TAIL_DELAY_SECONDS = 0.003
_TALKERS = 3
_ZERO_CROSSINGS = 24
_ROLL_OFF = 0.945


@dataclass(frozen=True)
class AugmentOptions(CheckedOptions):
    """What is done to a batch, in this order; the defaults do nothing.

    Raises:
        ConfigError: values that can't be; the message holds every fault.
    """

    speed_factors: Annotated[list[float], Rule("one for each batch; pitch changes too", minimum=0.5, maximum=2)] = field(
        default_factory=lambda: [1.0]
    )
    room_probability: Annotated[float, Rule("share of utterances in a room", minimum=0, maximum=1)] = 0.0
    room_folder: Annotated[str | None, Rule("recorded impulse responses, instead of made ones")] = None
    reverberation_seconds: Annotated[list[float], Rule("RT60 of made rooms, from and to", above=0)] = field(
        default_factory=lambda: [0.1, 0.8]
    )
    noise_probability: Annotated[float, Rule("share of utterances with noise", minimum=0, maximum=1)] = 0.0
    noise_folder: Annotated[str | None, Rule("recorded noises, beside made ones")] = None
    snr_db: Annotated[list[float], Rule("of speech to noise, from and to")] = field(default_factory=lambda: [5.0, 30.0])
    band_probability: Annotated[float, Rule("share of utterances with a narrower band", minimum=0, maximum=1)] = 0.0
    band_low_hz: Annotated[list[float], Rule("lower edges of bands; 0 is none", minimum=0)] = field(
        default_factory=lambda: [0.0, 300.0]
    )
    band_high_hz: Annotated[list[float], Rule("upper edges of bands", above=0)] = field(
        default_factory=lambda: [3400.0, 4000.0, 6000.0]
    )
    gain_db: Annotated[float, Rule("level up or down by up to this", minimum=0)] = 0.0

    def _relation_faults(self) -> list[str]:
        pairs = [(name, getattr(self, name)) for name in ("reverberation_seconds", "snr_db")]
        wrong = [(name, pair) for name, pair in pairs if len(pair) != 2 or pair[0] > pair[1]]
        faults = [f"{name}={pair} must be two numbers, the lower first" for name, pair in wrong]
        lists = ("speed_factors", "band_low_hz", "band_high_hz")
        return faults + [f"{name}=[] must have a value" for name in lists if not getattr(self, name)]


class Augmenter:
    """Changes batches of speech at random.

    Args:
        options: what is done.
        sampling_rate: in Hz.
        device: where batches will be.
        seed: of the rooms that are made, once; not of what is drawn for each batch.

    Raises:
        ConfigError: no band left below half the sampling rate, or a folder without recordings.
    """

    def __init__(
        self, options: AugmentOptions, sampling_rate: int, *, device: torch.device | str = "cpu", seed: int = 0
    ) -> None:
        self.options = options
        self._rooms = self._noises = self._bands = None
        if options.room_probability:
            if options.room_folder is not None:
                rooms = _aligned(recordings(options.room_folder, sampling_rate, seconds=options.reverberation_seconds[1]))
            else:
                rooms = room_responses(_ROOMS, sampling_rate, options.reverberation_seconds, seed=seed)
            self._rooms = rooms.to(device)
        if options.noise_probability and options.noise_folder is not None:
            self._noises = recordings(options.noise_folder, sampling_rate, seconds=30.0).to(device)
        if options.band_probability:
            edges = [(low, high) for low in options.band_low_hz for high in options.band_high_hz if low < high]
            self._bands = band_filters(edges, sampling_rate).to(device)

    @torch.no_grad()
    def __call__(self, waveforms: Tensor, lengths: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Another batch, made of this one.

        Args:
            waveforms: (B, S) float32, zeros beyond the lengths.
            lengths: (B,) int64 on the same device.
            strength: multiplies every probability and the range of levels, so that training may begin with easy speech.

        Returns:
            (B, S') and (B,); S' is S over the speed, rounded up.
        """
        options = self.options
        # Chosen on the CPU: the shapes of all that follows depend on it.
        factor = options.speed_factors[int(torch.randint(len(options.speed_factors), ()))]
        if factor != 1 and float(torch.rand(())) < strength:
            waveforms, lengths = change_speed(waveforms, lengths, factor)
        if self._rooms is not None:
            changed = convolve(waveforms, _drawn(self._rooms, waveforms))
            waveforms = self._some(waveforms, changed, options.room_probability * strength)
        within = inside(lengths, waveforms.shape[1])
        waveforms = waveforms * within
        if options.noise_probability:
            changed = self._noisy(waveforms, lengths)
            waveforms = self._some(waveforms, changed, options.noise_probability * strength)
        if self._bands is not None:
            changed = convolve(waveforms, _drawn(self._bands, waveforms), delay=self._bands.shape[1] // 2)
            waveforms = self._some(waveforms, changed, options.band_probability * strength)
        if options.gain_db:
            decibels = (2 * torch.rand(len(waveforms), 1, device=waveforms.device) - 1) * options.gain_db * strength
            waveforms = waveforms * 10 ** (decibels / 20)
        return waveforms * within, lengths

    def _some(self, waveforms: Tensor, changed: Tensor, probability: float) -> Tensor:
        chosen = torch.rand(len(waveforms), 1, device=waveforms.device) < probability
        return torch.where(chosen, changed, waveforms)

    def _noisy(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Each utterance with one kind of noise."""
        kinds = [coloured_noise(waveforms)]
        if len(waveforms) > 1:
            kinds.append(_babble(waveforms))
        if self._noises is not None:
            kinds.append(_stretches(self._noises, waveforms))
        draws = torch.rand(2, len(waveforms), device=waveforms.device)
        kind = (draws[0] * len(kinds)).long()
        noise = torch.stack(kinds)[kind, torch.arange(len(waveforms), device=waveforms.device)]
        low, high = self.options.snr_db
        return add_noise(waveforms, lengths, noise, low + (high - low) * draws[1])


# What is done -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def add_noise(waveforms: Tensor, lengths: Tensor, noise: Tensor, snr_db: Tensor) -> Tensor:
    """Speech and noise at exactly the wanted ratio of their energies over an utterance's length.

    Args:
        waveforms: (B, S), zeros beyond the lengths.
        lengths: (B,).
        noise: (B, S), of any level; an utterance with silence for noise, or silent itself, stays as it is.
        snr_db: (B,) decibels.

    Returns:
        (B, S), zeros beyond the lengths.
    """
    noise = noise * inside(lengths, waveforms.shape[1])
    count = lengths.clamp_min(1)
    speech_power, noise_power = (value.square().sum(1) / count for value in (waveforms, noise))
    scale = (speech_power / noise_power / 10 ** (snr_db / 10)).sqrt()
    scale = torch.where((noise_power > _SILENCE) & (speech_power > _SILENCE), scale, 0)
    return waveforms + scale[:, None] * noise


@torch.no_grad()
def convolve(waveforms: Tensor, kernels: Tensor, *, delay: int = 0) -> Tensor:
    """Each signal through its own filter.

    Args:
        waveforms: (B, S).
        kernels: (B, K).
        delay: the filter's own, in samples, which is taken off.

    Returns:
        (B, S): samples `delay` to `delay` + S of the convolution.
    """
    size = fft_samples(waveforms.shape[1] + kernels.shape[1] - 1)
    spectra = torch.fft.rfft(waveforms, size) * torch.fft.rfft(kernels, size)
    filtered: Tensor = torch.fft.irfft(spectra, size)
    return filtered[:, delay : delay + waveforms.shape[1]]


@torch.no_grad()
def change_speed(waveforms: Tensor, lengths: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Speech that is spoken faster (above 1) or slower, and higher or lower with it, as by a tape.

    Resampling by a windowed sinc (Smith, Digital Audio Resampling, ccrma.stanford.edu/~jos/resample); what would lie above half
    the sampling rate is filtered out.

    Args:
        waveforms: (B, S), zeros beyond the lengths.
        lengths: (B,) int64.
        factor: of the speed, taken to a hundredth.

    Returns:
        (B, ceil(S / factor)), and the new lengths (B,), ceil(length / factor).
    """
    ratio = Fraction(factor).limit_denominator(100)
    down, up = ratio.numerator, ratio.denominator
    kernels, half = _speed_kernels(up, down, waveforms.device, waveforms.dtype)
    samples = -(-waveforms.shape[1] * up // down)
    blocks = -(-samples // up)
    right = (blocks - 1) * down + kernels.shape[1] - half - waveforms.shape[1]
    padded = functional.pad(waveforms[:, None], (half, max(0, right)))
    # Output sample n * up + p lies at n * down + p * down / up: each p is a filter, applied every `down` samples.
    with torch.autocast(waveforms.device.type, enabled=False):
        made = functional.conv1d(padded, kernels[:, None], stride=down)[..., :blocks]
    changed = made.transpose(1, 2).flatten(1)[:, :samples]
    lengths = (lengths * up + down - 1).div(down, rounding_mode="floor")
    return changed * inside(lengths, samples), lengths


@lru_cache(maxsize=16)  # on the device too: a copy to it in each step would wait for the step before
def _speed_kernels(up: int, down: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, int]:
    """(up, K) filters, and how far before a block of samples they begin."""
    cutoff = _ROLL_OFF * min(1.0, up / down)
    half = math.ceil(_ZERO_CROSSINGS / cutoff)
    times = np.arange(-half, half + down) - (np.arange(up) * down / up)[:, None]
    window = np.cos(np.pi / 2 * np.clip(times * cutoff / _ZERO_CROSSINGS, -1, 1)) ** 2
    return torch.from_numpy(cutoff * np.sinc(cutoff * times) * window).to(device, dtype), half


def _babble(waveforms: Tensor) -> Tensor:
    """(B, S): for each utterance others of the batch, one upon another, each shifted in time."""
    size = waveforms.shape[1]
    talkers = range(1, min(_TALKERS, len(waveforms) - 1) + 1)
    return torch.stack([waveforms.roll((talker, talker * size // 7), (0, 1)) for talker in talkers]).sum(0)


def _stretches(bank: Tensor, waveforms: Tensor) -> Tensor:
    """(B, S) pieces of the signals of a bank (N, T), from anywhere and round the end."""
    batch, size = waveforms.shape
    draws = torch.rand(2, batch, 1, device=bank.device)
    row, start = (draws[0] * len(bank)).long(), (draws[1] * bank.shape[1]).long()
    places = (start + torch.arange(size, device=bank.device)) % bank.shape[1]
    return bank.flatten()[row * bank.shape[1] + places]


def _drawn(bank: Tensor, waveforms: Tensor) -> Tensor:
    """(B, K): for each utterance one of (N, K)."""
    return bank[(torch.rand(len(waveforms), device=bank.device) * len(bank)).long()]


# What it is done with -----------------------------------------------------------------------------------------------------


def fft_samples(samples: int) -> int:
    """The smallest of the sizes 4, 5, 6 and 7 times a power of two that holds so many samples; at most a quarter too large."""
    power = max(0, (samples - 1).bit_length() - 3)
    return next(quarter << power for quarter in (4, 5, 6, 7, 8) if quarter << power >= samples)


@torch.no_grad()
def coloured_noise(like: Tensor) -> Tensor:
    """Noise (B, S) whose power falls with frequency as f ** -c, c between 0 (white) and 2 (brown) for each row.

    Below a thousandth of half the sampling rate it is flat.
    """
    size = fft_samples(like.shape[1])
    exponent = torch.rand(len(like), 1, device=like.device)
    frequency = torch.linspace(0, 1, size // 2 + 1, device=like.device).clamp_min(1e-3)
    noise = torch.randn(len(like), size, device=like.device)
    coloured: Tensor = torch.fft.irfft(torch.fft.rfft(noise) * frequency**-exponent, size)
    return coloured[:, : like.shape[1]]


def room_responses(
    count: int, sampling_rate: int, reverberation_seconds: Sequence[float] = (0.1, 0.8), *, seed: int = 0
) -> Tensor:
    """Impulse responses of rooms by the statistical model (Polack 1988): a direct sound, then noise that dies away.

    Args:
        count: N, of rooms.
        reverberation_seconds: RT60, in which the tail falls by 60 dB, is drawn from and to these.
        seed: of all that is drawn.

    Returns:
        (N, K) float32; the direct sound is 1 at sample 0, the tail's energy 0 to 15 dB below its. K spans the longest RT60.
    """
    random = np.random.default_rng(seed)
    size = math.ceil(reverberation_seconds[1] * sampling_rate)
    decay_seconds = random.uniform(reverberation_seconds[0], reverberation_seconds[1], (count, 1))
    seconds = np.arange(size) / sampling_rate
    tail = random.standard_normal((count, size)) * 10 ** (-3 * seconds / decay_seconds) * (seconds >= _TAIL_DELAY_SECONDS)
    tail *= 10 ** (-random.uniform(0, 15, (count, 1)) / 20) / np.sqrt((tail**2).sum(1, keepdims=True))
    tail[:, 0] = 1
    return torch.from_numpy(tail.astype(np.float32))


def band_filters(bands_hz: Sequence[tuple[float, float]], sampling_rate: int) -> Tensor:
    """Linear-phase filters that leave a band, by the window method (Kaiser 1974).

    Args:
        bands_hz: N lower and upper edges, where the level is halved; 0 has no lower, half the rate or more no upper edge. From
            100 Hz inside an edge on, levels are within 0.01 dB, and from 100 Hz outside of it at least 60 dB down.

    Returns:
        (N, K) float32, K odd; the delay is K // 2 samples.

    Raises:
        ConfigError: no band, or a band without a frequency below half the rate.
    """
    if not bands_hz or any(not 0 <= low < min(high, sampling_rate / 2) for low, high in bands_hz):
        raise ConfigError(
            f"expected bands within 0 to {sampling_rate / 2:g} Hz, the lower edge first, got {list(bands_hz)}; choose others"
        )
    beta = 0.1102 * (_ATTENUATION_DB - 8.7)
    half = math.ceil((_ATTENUATION_DB - 7.95) / (2.285 * 2 * math.pi * _TRANSITION_HZ / sampling_rate) / 2)
    times = np.arange(-half, half + 1)
    edges = np.array(bands_hz, dtype=np.float64)[:, :, None].clip(max=sampling_rate / 2) * 2 / sampling_rate
    ideal = edges[:, 1] * np.sinc(edges[:, 1] * times) - edges[:, 0] * np.sinc(edges[:, 0] * times)
    return torch.from_numpy((ideal * np.kaiser(2 * half + 1, beta)).astype(np.float32))


def recordings(folder: str | os.PathLike[str], sampling_rate: int, *, seconds: float, most: int = 512) -> Tensor:
    """The beginnings of the recordings anywhere below a folder, those too short repeated.

    Args:
        seconds: length of each.
        most: take so many of them, evenly from all.

    Returns:
        (N, T) float32.

    Raises:
        ConfigError: no such folder, or no recordings in it. AudioError: one that can't be decoded.
    """
    utterances = read_manifest(Path(folder), layout="files")
    store, size = AudioStore(sampling_rate), round(seconds * sampling_rate)
    chosen = utterances[:: math.ceil(len(utterances) / most)]
    return torch.from_numpy(np.stack([np.resize(store.samples(item, 0, size), size) for item in chosen]))


def _aligned(rooms: Tensor) -> Tensor:
    """Impulse responses (N, K) whose direct sound, the loudest sample, is 1 at sample 0."""
    peak = rooms.abs().argmax(1, keepdim=True)
    places = peak + torch.arange(rooms.shape[1])
    moved = rooms.gather(1, places.clamp_max(rooms.shape[1] - 1)) * (places < rooms.shape[1])
    return moved / rooms.gather(1, peak)
