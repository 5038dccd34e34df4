"""How much codes and samples depend on what they should not depend on, measured on given speech.

    results = verify(model, [audio.load("speech.wav").samples])
    for result in results:
        print(result.name, result.mismatch, result.sample_difference)

Each comparison computes the same thing twice: with an exact or a fast model, in one pass or in pieces, alone or in a batch.
What differs is counted code by code. For the way back both sides decode the codes of the fast model, and the largest difference
of a sample is given beside the largest sample.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phonograph.errors import AudioError
from phonograph.models.mimi.modeling_mimi import MimiModel
from phonograph.nn.masks import inside
from phonograph.nn.packed import reference_path
from phonograph.streaming import MimiDecoderSession, MimiEncoderSession

__all__ = ["COMPARISONS", "Comparison", "compare_codes", "largest_difference", "verify"]

COMPARISONS = {
    "fast | exact": "float32 as it runs, against float64",
    "bfloat16 | float32": "the faster type, against float32",
    "streaming | one pass": "chunks of random sizes, against the whole",
    "batched | alone": "all in one padded batch, against each alone",
    "threads 1 | 2": "one processor thread, against two",
    "reference | fast": "plain functions of torch, against packed weights",
}
"""What is compared, by name; `verify` goes in this order."""

_LONGEST_CHUNK_FRAMES = 3

Clips: TypeAlias = list[Tensor]
"""Each (C, S) audio."""
Way: TypeAlias = Callable[[list[Tensor]], list[Tensor]]
"""Clips (C, S) to codes (Q, F), or codes to clips."""


@dataclass(frozen=True)
class Comparison:
    """One thing that should make no difference, and how much it made.

    Attributes:
        name: a key of COMPARISONS.
        codes: how many were compared, of all codebooks.
        different: how many of them differ.
        semantic_codes, semantic_different: the same of the semantic codebooks alone.
        sample_difference: the largest difference of a sample, for the largest sample of its clip.
    """

    name: str
    codes: int
    different: int
    semantic_codes: int
    semantic_different: int
    sample_difference: float

    @property
    def mismatch(self) -> float:
        """Share of codes that differ."""
        return self.different / self.codes

    @property
    def semantic_mismatch(self) -> float:
        """Share of codes of the semantic codebooks that differ."""
        return self.semantic_different / self.semantic_codes


@dataclass(frozen=True)
class _Pair:
    """Two ways to encode and to decode; None stands for the fast model, each clip alone."""

    encode: tuple[Way | None, Way | None]
    decode: tuple[Way | None, Way | None]


def verify(
    model: MimiModel,
    speech: Sequence[npt.NDArray[np.float32]],
    num_quantizers: int | None = None,
    *,
    seed: int = 0,
    on_begin: Callable[[str], None] | None = None,
) -> Iterator[Comparison]:
    """Compare on `speech`, arrays (C, S) at the model's rate, one comparison after the other.

    Args:
        model: in float32 and evaluation mode.
        num_quantizers: codebooks to encode and decode; None is all.
        seed: of the chunks' sizes.
        on_begin: called with the name of each comparison before it is made.

    Raises:
        AudioError: no speech. ConfigError: num_quantizers out of range. StreamError: a model that can't stream.
    """
    if not speech:
        raise AudioError("expected at least one recording to compare on, got none")
    number = model.check_num_quantizers(num_quantizers)
    clips = [torch.from_numpy(samples).to(model.device) for samples in speech]
    begin = on_begin or (lambda name: None)
    begin(next(iter(COMPARISONS)))
    codes = _encode_alone(model, number)(clips)
    samples = _decode_alone(model)(codes)
    for name, pair in _pairs(model, number, seed):
        begin(name)
        encoded = [codes if way is None else way(clips) for way in pair.encode]
        decoded = [samples if way is None else way(codes) for way in pair.decode]
        counts = compare_codes(zip(*encoded, strict=True), model.config.num_semantic_quantizers)
        yield Comparison(name, *counts, largest_difference(zip(*decoded, strict=True)))


def _pairs(model: MimiModel, number: int, seed: int) -> Iterator[tuple[str, _Pair]]:
    """Made one after the other, so that no two copies of the model are there at a time."""
    names = iter(COMPARISONS)
    for dtype in (torch.float64, torch.bfloat16):
        other = copy.deepcopy(model).to(dtype)
        ours, theirs = (_encode_alone(other, number), None), (_decode_alone(other), None)
        yield next(names), _Pair(ours, theirs)
    del other
    encode, decode = _encode_alone(model, number), _decode_alone(model)
    yield next(names), _Pair((_encode_in_chunks(model, number, seed), None), (_decode_in_chunks(model, seed), None))
    yield next(names), _Pair((_encode_together(model, number), None), (_decode_together(model), None))
    yield (
        next(names),
        _Pair(
            (_with_threads(1, encode), _with_threads(2, encode)),
            (_with_threads(1, decode), _with_threads(2, decode)),
        ),
    )
    yield next(names), _Pair((_by_reference(encode), None), (_by_reference(decode), None))


# Ways -------------------------------------------------------------------------------------------------------------------


def _encode_alone(model: MimiModel, number: int) -> Way:
    @torch.inference_mode()
    def encode(clips: Clips) -> list[Tensor]:
        return [_codes(model, clip[None].to(model.dtype), None, number)[0] for clip in clips]

    return encode


def _decode_alone(model: MimiModel) -> Way:
    @torch.inference_mode()
    def decode(codes: list[Tensor]) -> Clips:
        return [_samples(model, item[None])[0] for item in codes]

    return decode


def _encode_in_chunks(model: MimiModel, number: int, seed: int) -> Way:
    def encode(clips: Clips) -> list[Tensor]:
        sizes = np.random.default_rng(seed)
        results = []
        for clip in clips:
            session = MimiEncoderSession(model, number)
            chunks = _cut(clip, _LONGEST_CHUNK_FRAMES * model.frame_samples, sizes)
            results.append(torch.cat([*(session.feed(chunk) for chunk in chunks), session.flush()], dim=-1))
        return results

    return encode


def _decode_in_chunks(model: MimiModel, seed: int) -> Way:
    def decode(codes: list[Tensor]) -> Clips:
        sizes = np.random.default_rng(seed)
        results = []
        for item in codes:
            session = MimiDecoderSession(model)
            results.append(torch.cat([session.feed(chunk) for chunk in _cut(item, _LONGEST_CHUNK_FRAMES, sizes)], dim=-1))
        return results

    return decode


def _cut(value: Tensor, longest: int, sizes: np.random.Generator) -> Iterator[Tensor]:
    start = 0
    while start < value.shape[-1]:
        end = start + int(sizes.integers(1, longest + 1))
        yield value[:, start:end]
        start = end


def _encode_together(model: MimiModel, number: int) -> Way:
    @torch.inference_mode()
    def encode(clips: Clips) -> list[Tensor]:
        lengths = torch.tensor([clip.shape[-1] for clip in clips])
        padded = _padded(clips).to(model.dtype)
        mask = inside(lengths, padded.shape[-1])
        codes = _codes(model, padded, mask.to(model.device), number)
        return [item[:, :frames] for item, frames in zip(codes, model.get_encoded_length(lengths).tolist(), strict=True)]

    return encode


def _decode_together(model: MimiModel) -> Way:
    @torch.inference_mode()
    def decode(codes: list[Tensor]) -> Clips:
        audio = _samples(model, _padded(codes))
        return [row[:, : item.shape[-1] * model.frame_samples] for row, item in zip(audio, codes, strict=True)]

    return decode


def _padded(values: list[Tensor]) -> Tensor:
    """Each (rows, any) -> (B, rows, the longest), zeros on the right."""
    longest = max(value.shape[-1] for value in values)
    return torch.stack([torch.nn.functional.pad(value, (0, longest - value.shape[-1])) for value in values])


def _with_threads(number: int, way: Way) -> Way:
    def run(values: list[Tensor]) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        with contextlib.ExitStack() as stack:
            stack.callback(torch.set_num_threads, before)
            return way(values)

    return run


def _by_reference(way: Way) -> Way:
    def run(values: list[Tensor]) -> list[Tensor]:
        with reference_path():
            return way(values)

    return run


def _codes(model: MimiModel, audio: Tensor, mask: Tensor | None, number: int) -> Tensor:
    return cast(Tensor, model.encode(audio, mask, number, return_dict=False)[0])


def _samples(model: MimiModel, codes: Tensor) -> Tensor:
    return cast(Tensor, model.decode(codes, return_dict=False)[0])


# Counting ---------------------------------------------------------------------------------------------------------------


def compare_codes(pairs: Iterable[tuple[Tensor, Tensor]], num_semantic: int = 1) -> tuple[int, int, int, int]:
    """Pairs of codes (Q, F), the semantic ones first -> codes, different ones, and both of the semantic codebooks alone."""
    differences = [ours != theirs for ours, theirs in pairs]
    semantic = [difference[:num_semantic] for difference in differences]
    codes, semantic_codes = (sum(item.numel() for item in part) for part in (differences, semantic))
    different, semantic_different = (sum(int(item.sum()) for item in part) for part in (differences, semantic))
    return codes, different, semantic_codes, semantic_different


def largest_difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Over pairs of clips, the largest difference of a sample, each for the largest sample of its clip."""
    return max(
        float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp_min(1e-30))
        for ours, theirs in pairs
    )
