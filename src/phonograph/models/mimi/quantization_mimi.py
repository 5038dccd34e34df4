"""Mimi's quantiser: split residual vector quantisation (arXiv:2410.00037, section 3.3; SoundStream, arXiv:2107.03312).

One semantic codebook and a residual stack of acoustic ones quantise the same latents, each in a projected space, and their
results are added. Training moves the codebooks by exponential averages and lets gradients pass straight through.

Shapes: B batch, F frames, H hidden size, Q codebooks, K codebook entries, D codebook dimension, N = B x F.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.models.base import ModelOutput
from phonograph.models.mimi.configuration_mimi import MimiConfig
from phonograph.nn.linear import linear
from phonograph.nn.packed import Derived, fast_path, pack_linear, packed_linear

__all__ = ["MimiQuantizerOutput", "MimiSplitResidualVectorQuantizer"]


@dataclass
class MimiQuantizerOutput(ModelOutput):
    """Codes (B, Q, F), quantised latents (B, F, H), and the mean squared distance of latents from their codewords."""

    codes: Tensor
    quantized: Tensor
    commitment_loss: Tensor


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
        self._plain, self._packed = Derived(), Derived()

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
            return packed_linear(x, packed, half_norms).argmin(-1)
        return _nearest(x, *self._plain.get(lambda: self._centroids(x.dtype), *sources, dtype=x.dtype))

    def decode(self, codes: Tensor) -> Tensor:
        """(...) int64 -> (..., D) float32."""
        usage = self.cluster_usage[codes].clamp_min(self.epsilon)
        return F.embedding(codes, self.embed_sum) / usage[..., None]

    def _centroids(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The centroids with their signs turned (K, D), and half their squared norms (K,)."""
        embed = (self.embed_sum / self.cluster_usage.clamp_min(self.epsilon)[:, None]).to(dtype)
        return -embed, 0.5 * embed.square().sum(-1)

    def _packed_centroids(self) -> tuple[Tensor, Tensor]:
        turned_centroids, half_norms = self._centroids(torch.float32)
        return pack_linear(turned_centroids), half_norms

    @torch.no_grad()
    def update(self, x: Tensor, codes: Tensor, decay: float) -> None:
        """Move, in place, each centroid towards the mean of the x (N, D) that `codes` (N,) assign to it."""
        usage = torch.bincount(codes, minlength=self.cluster_usage.shape[0]).to(x.dtype)
        self.cluster_usage.lerp_(usage, 1 - decay)
        self.embed_sum.lerp_(torch.zeros_like(self.embed_sum).index_add_(0, codes, x), 1 - decay)

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
            residual = residual - codebook.decode(index)
            codes.append(index)
        return torch.stack(codes).view(-1, *latents.shape[:2])

    def decode(self, codes: Tensor) -> Tensor:
        """(Q, B, F) int64 -> (B, F, H)."""
        quantized = sum(book.decode(index) for book, index in zip(self.codebooks(len(codes)), codes, strict=True))
        return self._project_out(cast(Tensor, quantized))

    def forward(self, latents: Tensor, num_quantizers: int, mask: Tensor, decay: float) -> tuple[Tensor, Tensor, Tensor]:
        """Training: quantise with straight-through gradients and update the codebooks from the frames in `mask` (B, F).

        Returns:
            codes (Q, B, F), quantised latents (B, F, H), and the mean squared residual after each codebook, averaged.
        """
        projected = self._project_in(latents)
        kept = mask.flatten()
        residual, quantized = projected, torch.zeros_like(projected)
        codes, losses = [], []
        for codebook in self.codebooks(num_quantizers):
            seen = residual.detach()[kept]
            if not codebook.initialized.item():
                codebook.initialize(seen)
            index = codebook.encode(residual.detach())
            codeword = codebook.decode(index)
            losses.append(F.mse_loss(residual[kept], codeword[kept]))
            codebook.update(seen, index[kept], decay)
            residual, quantized = residual - codeword, quantized + codeword
            codes.append(index)
        straight_through = projected + (quantized - projected).detach()
        out = self._project_out(straight_through.view(*latents.shape[:2], -1))
        return torch.stack(codes).view(-1, *latents.shape[:2]), out, torch.stack(losses).mean()

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
    ) -> MimiQuantizerOutput:
        """Quantise for training: gradients pass straight through, and the codebooks follow the latents.

        As batch normalisation does, this updates buffers in place: each codebook moves by 1 - `decay` towards the latents
        (B, F, H) of the frames in `mask` (B, F) bool, or all; codebooks that never saw data start by k-means.
        """
        number = self.num_quantizers if num_quantizers is None else num_quantizers
        if mask is None:
            mask = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
        codes, quantized, loss = self.semantic_residual_vector_quantizer(latents, self.num_semantic, mask, decay)
        if number > self.num_semantic:
            rest = self.acoustic_residual_vector_quantizer(latents, number - self.num_semantic, mask, decay)
            codes, quantized, loss = torch.cat([codes, rest[0]]), quantized + rest[1], loss + rest[2]
        return MimiQuantizerOutput(codes.transpose(0, 1), quantized, loss)
