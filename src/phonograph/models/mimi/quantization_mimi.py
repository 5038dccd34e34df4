"""Mimi's quantiser: split residual vector quantisation (arXiv:2410.00037, section 3.3; SoundStream, arXiv:2107.03312).

One semantic codebook and a residual stack of acoustic ones quantise the same latents, each in a projected space, and their
results are added. Training moves the codebooks by exponential averages and lets gradients pass straight through; the search
goes from codebook to codebook, everything else is done for all of them at once, and nothing waits for the device.

Shapes: B batch, F frames, H hidden size, Q codebooks, K codebook entries, D codebook dimension, N = B x F.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.models.base import ModelOutput
from phonograph.models.mimi.configuration_mimi import MimiConfig
from phonograph.nn.linear import linear
from phonograph.nn.packed import Derived, fast_path, pack_linear, packed_linear

__all__ = ["MimiQuantizerOutput", "MimiSplitResidualVectorQuantizer"]


@dataclass
class MimiQuantizerOutput(ModelOutput):
    """Codes (B, Q, F), quantised latents (B, F, H), and the mean squared distance of latents from their codewords.

    `semantic` (B, F, H) is what the semantic codebooks alone give, of every item.
    """

    codes: Tensor
    quantized: Tensor
    commitment_loss: Tensor
    semantic: Tensor


class MimiEuclideanCodebook(nn.Module):
    """K centroids that follow the latents by exponential moving averages (van den Oord et al. 2017, appendix A.1).

    The buffers are float32 in a model of any type: codes are comparisons, and must not change with the weights' type.
    """

    embed_sum: Tensor
    cluster_usage: Tensor
    initialized: Tensor
    epsilon = 1e-5
    kmeans_iterations = 10

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.zeros(1))
        self.register_buffer("cluster_usage", torch.ones(config.codebook_size))
        self.register_buffer("embed_sum", torch.randn(config.codebook_size, config.codebook_dim))
        self._plain, self._packed, self._started = Derived(), Derived(), Derived()

    @property
    def started(self) -> bool:
        """Whether the centroids have been placed; a device is asked only after that may have changed."""
        found: bool = self._started.get(lambda: bool(self.initialized.item()), self.initialized)
        return found

    def _apply(self, fn: Any, recurse: bool = True) -> "MimiEuclideanCodebook":
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = cast(Tensor, fn(tensor))
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """(N, D) float32 or float64 -> (N,) int64, the nearest centroid by Euclidean distance."""
        sources = (self.embed_sum, self.cluster_usage)
        if fast_path(x, self):
            packed, half_norms = self._packed.get(self._packed_centroids, *sources)
            return _first_least(packed_linear(x, packed, half_norms))
        return _nearest(x, *self._plain.get(lambda: self._centroids(x.dtype), *sources, dtype=x.dtype))

    def decode(self, codes: Tensor) -> Tensor:
        """(...) int64 -> (..., D) float32."""
        usage = self.cluster_usage[codes].clamp_min(self.epsilon)
        return F.embedding(codes, self.embed_sum) / usage[..., None]

    def residual(self, x: Tensor, codes: Tensor) -> Tensor:
        """What the centroids of codes (N,) leave of x (N, D)."""
        if x.dtype != self.embed_sum.dtype:
            return x - self.decode(codes)
        usage = self.cluster_usage.index_select(0, codes).clamp_min_(self.epsilon)
        # The same to the last bit in fewer calls: a live frame waits for 32 of them.
        return torch.addcdiv(x, self.embed_sum.index_select(0, codes), usage[:, None], value=-1)

    def _centroids(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The centroids with their signs turned (K, D), and half their squared norms (K,)."""
        embed = (self.embed_sum / self.cluster_usage.clamp_min(self.epsilon)[:, None]).to(dtype)
        return -embed, 0.5 * embed.square().sum(-1)

    def _packed_centroids(self) -> tuple[Tensor, Tensor]:
        turned_centroids, half_norms = self._centroids(torch.float32)
        return pack_linear(turned_centroids), half_norms

    def update(self, x: Tensor, codes: Tensor, decay: float) -> None:
        """Move, in place, each centroid towards the mean of the x (N, D) that `codes` (N,) assign to it."""
        _follow([self], x[None], codes[None], _Motion(x.new_ones(x.shape[0]), decay))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Place the centroids, in place, by k-means on x (N, D); the first batch of a training does this once."""
        entries = self.embed_sum.shape[0]
        means = x[torch.randint(x.shape[0], (entries,), device=x.device)]
        usage = torch.ones(entries, device=x.device)
        for _ in range(self.kmeans_iterations):
            codes = _nearest(x, -means, 0.5 * means.square().sum(-1))
            usage = torch.bincount(codes, minlength=entries).to(x.dtype)
            sums = torch.zeros_like(means).index_add_(0, codes, x)
            means = torch.where(usage[:, None] > 0, sums / usage.clamp_min(1)[:, None], means)
        self.cluster_usage.copy_(usage.clamp_min(1))
        self.embed_sum.copy_(means * self.cluster_usage[:, None])
        self.initialized.fill_(1)


def _nearest(x: Tensor, turned_centroids: Tensor, half_norms: Tensor) -> Tensor:
    """Index (N,) of the centroid c nearest to each x: the least |x - c|^2 / 2 without |x|^2 / 2, which all c share."""
    return linear(x, turned_centroids, half_norms).argmin(-1)


_GROUP = 32


def _first_least(distances: Tensor) -> Tensor:
    """(N, K) -> argmin (N,). torch vectorises the least value of a group, but not its place."""
    rows, entries = distances.shape
    if rows < 8 or entries % _GROUP:
        return distances.argmin(-1)
    groups = distances.view(rows, -1, _GROUP)
    group = groups.amin(-1).argmin(-1)
    return group * _GROUP + groups[torch.arange(rows), group].argmin(-1)


# -------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class _Motion:
    """How codebooks move: 1.0 for the points (N,) that count and 0.0 for others, and the options of `forward`."""

    counted: Tensor
    decay: float
    revive_below: float = 0.0

    def only_finite(self, x: Tensor) -> "_Motion":
        """The same without the points x (N, D) that aren't finite: one bad step must not spoil the codebooks for ever."""
        return replace(self, counted=self.counted * x.isfinite().all(-1))


@torch.no_grad()
def _search(books: Sequence[MimiEuclideanCodebook], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, D) -> what each codebook quantises (Q, N, D), its codes (Q, N), and its codewords (Q, N, D)."""
    sums = torch.stack([book.embed_sum for book in books])
    usage = torch.stack([book.cluster_usage for book in books])
    centroids = (sums / usage.clamp_min(MimiEuclideanCodebook.epsilon)[..., None]).to(x.dtype)
    turned, half_norms = -centroids, 0.5 * centroids.square().sum(-1)
    points, codes, codewords = [], [], []
    for place in range(len(books)):
        points.append(x)
        codes.append(_nearest(x, turned[place], half_norms[place]))
        codewords.append(F.embedding(codes[-1], centroids[place]))
        x = x - codewords[-1]
    return torch.stack(points), torch.stack(codes), torch.stack(codewords)


@torch.no_grad()
def _start(books: Sequence[MimiEuclideanCodebook], x: Tensor) -> None:
    """Place the centroids of those codebooks that have none yet, each by what those before leave of x (N, D)."""
    for book in books:
        if not book.started:
            book.initialize(x)
            if _distributed():
                for buffer in (book.embed_sum, book.cluster_usage):
                    torch.distributed.broadcast(buffer, 0)
        x = book.residual(x, book.encode(x))


@torch.no_grad()
def _follow(books: Sequence[MimiEuclideanCodebook], points: Tensor, codes: Tensor, motion: _Motion) -> None:
    """Move all codebooks, in place, towards the points (Q, N, D) that codes (Q, N) assign to their entries.

    Processes of one training move their codebooks by the points of all.
    """
    old_usage = torch.stack([book.cluster_usage for book in books])
    old_sums = torch.stack([book.embed_sum for book in books])
    number, entries, dim = old_sums.shape
    rows = (codes + entries * torch.arange(number, device=codes.device)[:, None]).flatten()
    counted = motion.counted.to(old_usage.dtype)
    points = points.to(old_sums.dtype)
    usage = torch.zeros_like(old_usage).view(-1).index_add_(0, rows, counted.repeat(number)).view_as(old_usage)
    members = torch.where(counted[:, None] > 0, points, 0).flatten(0, 1)
    sums = torch.zeros_like(old_sums).view(-1, dim).index_add_(0, rows, members)
    if _distributed():
        torch.distributed.all_reduce(usage)
        torch.distributed.all_reduce(sums)
    usage, sums = old_usage.lerp(usage, 1 - motion.decay), old_sums.lerp(sums.view_as(old_sums), 1 - motion.decay)
    if motion.revive_below > 0:
        usage, sums = _revive(usage, sums, points, motion)
    torch._foreach_copy_([book.cluster_usage for book in books], list(usage))
    torch._foreach_copy_([book.embed_sum for book in books], list(sums))


def _revive(usage: Tensor, sums: Tensor, points: Tensor, motion: _Motion) -> tuple[Tensor, Tensor]:
    """Usage (Q, K) and sums (Q, K, D) in which entries hardly used have become points (Q, N, D) drawn at random."""
    fair = usage.mean(1, keepdim=True).expand_as(usage)
    dead = usage < motion.revive_below * fair
    passed = motion.counted.cumsum(0)
    drawn = torch.searchsorted(passed, torch.rand_like(usage) * passed[-1], right=True).clamp_max(len(passed) - 1)
    fresh = points.gather(1, drawn[..., None].expand(-1, -1, points.shape[-1])) * fair[..., None]
    if _distributed():
        torch.distributed.broadcast(fresh, 0)  # each process draws by itself, and all must hold the same codebooks
    return torch.where(dead, fair, usage), torch.where(dead[..., None], fresh, sums)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


# ------------------------------------------------------------------------------------------------------------- quantisers


class MimiVectorQuantization(nn.Module):
    """One codebook, under the name that checkpoints give it."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.codebook = MimiEuclideanCodebook(config)


class MimiResidualVectorQuantizer(nn.Module):
    """Codebooks that each quantise what those before left over, in a projected space."""

    def __init__(self, config: MimiConfig, num_quantizers: int) -> None:
        super().__init__()
        inner = config.vector_quantization_hidden_dimension
        self.layers = nn.ModuleList([MimiVectorQuantization(config) for _ in range(num_quantizers)])
        self.input_proj = nn.Conv1d(config.hidden_size, inner, 1, bias=False)
        self.output_proj = nn.Conv1d(inner, config.hidden_size, 1, bias=False)

    def codebooks(self, number: int) -> list[MimiEuclideanCodebook]:
        """The first `number` codebooks."""
        return [cast(MimiVectorQuantization, layer).codebook for layer in list(self.layers)[:number]]

    def encode(self, latents: Tensor, num_quantizers: int) -> Tensor:
        """(B, F, H) -> (Q, B, F) int64."""
        residual = self._project_in(latents)
        codes = []
        for codebook in self.codebooks(num_quantizers):
            index = codebook.encode(residual)
            residual = codebook.residual(residual, index)
            codes.append(index)
        return torch.stack(codes).view(-1, *latents.shape[:2])

    def decode(self, codes: Tensor) -> Tensor:
        """(Q, B, F) int64 -> (B, F, H)."""
        quantized = sum(book.decode(index) for book, index in zip(self.codebooks(len(codes)), codes, strict=True))
        return self._project_out(cast(Tensor, quantized))

    def forward(
        self, latents: Tensor, num_quantizers: int, motion: _Motion, counts: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Training: quantise with straight-through gradients and move the codebooks by the frames that count.

        Args:
            counts: (B,) int64, of how many codebooks each item's quantised latents are made; None is all.

        Returns:
            codes (Q, B, F), quantised latents (B, F, H), and the mean squared residual after each codebook, averaged.
        """
        books = self.codebooks(num_quantizers)
        projected = self._project_in(latents)
        if not all(book.started for book in books):
            _start(books, projected.detach()[motion.counted > 0])
        points, codes, codewords = _search(books, projected.detach())
        _follow(books, points, codes, motion.only_finite(projected.detach()))
        sums = codewords.cumsum(0)
        squares = (projected - sums).square().mean(-1) * motion.counted
        loss = squares.sum() / (motion.counted.sum().clamp_min(1) * len(books))
        out = self._project_out(self._straight_through(projected, sums, counts).view(*latents.shape[:2], -1))
        return codes.view(-1, *latents.shape[:2]), out, loss

    @staticmethod
    def _straight_through(projected: Tensor, sums: Tensor, counts: Tensor | None) -> Tensor:
        """The sums (Q, N, D) of codewords up to each item's last codebook, with the gradients of projected (N, D)."""
        passing = projected - projected.detach()
        if counts is None:
            return sums[-1] + passing
        last, used = (counts - 1).clamp(0, len(sums) - 1), counts > 0
        by_item = sums.view(len(sums), len(counts), -1, sums.shape[-1])
        chosen = by_item[last, torch.arange(len(counts), device=counts.device)]
        return (chosen + passing.view_as(chosen)) * used[:, None, None]

    def _project_in(self, latents: Tensor) -> Tensor:
        projected = F.linear(latents, self.input_proj.weight.squeeze(-1)).flatten(0, 1)
        return projected.to(torch.promote_types(projected.dtype, torch.float32))  # never narrower than the codebooks

    def _project_out(self, quantized: Tensor) -> Tensor:
        return F.linear(quantized.to(self.output_proj.weight.dtype), self.output_proj.weight.squeeze(-1))


class MimiSplitResidualVectorQuantizer(nn.Module):
    """Semantic and acoustic codebooks side by side: both quantise the same latents, and their results are added."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.num_semantic = config.num_semantic_quantizers
        self.num_quantizers = config.num_quantizers
        self.codebook_size = config.codebook_size
        self._hash = Derived()
        self.semantic_residual_vector_quantizer = MimiResidualVectorQuantizer(config, self.num_semantic)
        self.acoustic_residual_vector_quantizer = MimiResidualVectorQuantizer(config, config.num_quantizers - self.num_semantic)

    def codebooks(self) -> list[MimiEuclideanCodebook]:
        """All codebooks, the semantic ones first."""
        parts = (self.semantic_residual_vector_quantizer, self.acoustic_residual_vector_quantizer)
        return [codebook for part in parts for codebook in part.codebooks(len(part.layers))]

    def codebook_hash(self) -> str:
        """SHA-256, in hex, of the buffers that all codebooks are made of."""
        buffers = [buffer for codebook in self.codebooks() for buffer in (codebook.embed_sum, codebook.cluster_usage)]

        def compute() -> str:
            digest = hashlib.sha256()
            for buffer in buffers:
                digest.update(buffer.detach().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())
            return digest.hexdigest()

        found: str = self._hash.get(compute, *buffers)
        return found

    def encode(self, latents: Tensor, num_quantizers: int) -> Tensor:
        """(B, F, H) -> (B, Q, F) int64."""
        codes = [self.semantic_residual_vector_quantizer.encode(latents, self.num_semantic)]
        if num_quantizers > self.num_semantic:
            codes.append(self.acoustic_residual_vector_quantizer.encode(latents, num_quantizers - self.num_semantic))
        return torch.cat(codes).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, Q, F) int64 -> (B, F, H)."""
        semantic, acoustic = codes.transpose(0, 1).tensor_split([self.num_semantic])
        quantized = self.semantic_residual_vector_quantizer.decode(semantic)
        if len(acoustic):
            quantized = quantized + self.acoustic_residual_vector_quantizer.decode(acoustic)
        return quantized

    def forward(
        self,
        latents: Tensor,
        num_quantizers: int | None = None,
        mask: Tensor | None = None,
        decay: float = 0.99,
        counts: Tensor | None = None,
        revive_below: float = 0.0,
    ) -> MimiQuantizerOutput:
        """Quantise for training: gradients pass straight through, and the codebooks follow the latents.

        As batch normalisation does, this updates buffers in place: each codebook moves by 1 - `decay` towards the latents
        (B, F, H) of the frames in `mask` (B, F) bool, or all; codebooks that never saw data start by k-means. Under
        torch.distributed all processes must call it together, and move the same codebooks by the latents of all.

        Args:
            counts: (B,) int64, of how many codebooks each item is made, from the semantic ones up (quantiser dropout); 0
                leaves its latents as they are (arXiv:2410.00037, section 3.3.3). All codebooks follow all items
                nevertheless. None: all codebooks.
            revive_below: an entry used less than this share of its codebook's average becomes one of the latents, drawn at
                random, and starts with the average use (arXiv:2107.03312, section III-C). 0 leaves entries alone.
        """
        number = self.num_quantizers if num_quantizers is None else num_quantizers
        with torch.autocast(latents.device.type, enabled=False):  # codes are comparisons, as in evaluation
            latents = latents.to(self.semantic_residual_vector_quantizer.input_proj.weight.dtype)
            kept = torch.ones(latents.shape[:2], device=latents.device) if mask is None else mask.to(torch.float32)
            motion = _Motion(kept.flatten(), decay, revive_below)
            codes, semantic, loss = self.semantic_residual_vector_quantizer(latents, self.num_semantic, motion)
            quantized = semantic
            if number > self.num_semantic:
                others = None if counts is None else (counts - self.num_semantic).clamp_min(0)
                rest = self.acoustic_residual_vector_quantizer(latents, number - self.num_semantic, motion, others)
                codes, quantized, loss = torch.cat([codes, rest[0]]), semantic + rest[1], loss + rest[2]
            if counts is not None:
                quantized = torch.where((counts > 0)[:, None, None], quantized, latents)
        return MimiQuantizerOutput(codes.transpose(0, 1), quantized, loss, semantic)
