"""Losses of a codec: how far a reconstruction is from the original, and how real discriminators find it.

    MelLoss(windows, sampling_rate)(spectra(original), spectra(other))
    discriminator_loss(judgements of originals, of reconstructions)
    adversarial_loss(judgements of reconstructions), feature_loss(judgements of originals, of reconstructions)
    distillation_loss(semantic latents, teacher's features)

`GradientBalancer` adds them up so that each has the share of the gradient that its weight says, whatever its scale. Hinge
losses, relative feature matching and the balancer are those of EnCodec (arXiv:2210.13438, sections 3.4 and 3.5).

Shapes: B signals, S samples, F frames, J judgements (windows).
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.audio.mel import mel_filters
from phonograph.training.codec.discriminators import Judgement

__all__ = [
    "GradientBalancer",
    "MelLoss",
    "adversarial_loss",
    "discriminator_loss",
    "distillation_loss",
    "feature_loss",
]

_QUIETEST = 1e-5
_SAMPLES_PER_BAND = 6.4  # 5 bands of a window of 32 samples, 80 of one of 512 (arXiv:2306.06546, section 3.4)
_MOST_BANDS = 80


class MelLoss(nn.Module):
    """Mean absolute difference of log10 mel magnitudes, over windows of many sizes (arXiv:2306.06546, section 3.4).

    Args:
        windows: sizes in samples, as in `Spectra`.
        sampling_rate: in Hz.
    """

    def __init__(self, windows: Sequence[int], sampling_rate: int) -> None:
        super().__init__()
        self.sizes = tuple(windows)
        for size in self.sizes:
            filters = mel_filters(min(_MOST_BANDS, int(size / _SAMPLES_PER_BAND)), size, sampling_rate)
            self.register_buffer(f"filters_{size}", torch.from_numpy(filters), persistent=False)

    def forward(self, original: Mapping[int, Tensor], other: Mapping[int, Tensor]) -> Tensor:
        """Two sets of spectra (B, bins, frames) by window -> the distance in units of 20 dB, averaged over windows."""
        distances = [F.l1_loss(self._levels(other[size], size), self._levels(original[size], size)) for size in self.sizes]
        return torch.stack(distances).mean()

    def _levels(self, spectrum: Tensor, size: int) -> Tensor:
        magnitudes = spectrum.abs()
        filters = cast(Tensor, getattr(self, f"filters_{size}")).to(magnitudes.dtype)
        with torch.autocast(magnitudes.device.type, enabled=False):  # a logarithm magnifies what bf16 rounds off
            return (filters @ magnitudes).clamp_min(_QUIETEST).log10()


def discriminator_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Tensor:
    """Hinge loss of J discriminators: scores above 1 for what is real and below -1 for what is not cost nothing."""
    pairs = zip(real, fake, strict=True)
    losses = [F.relu(1 - one.scores.float()).mean() + F.relu(1 + other.scores.float()).mean() for one, other in pairs]
    return torch.stack(losses).mean()


def adversarial_loss(fake: Sequence[Judgement]) -> Tensor:
    """What is left of a score of 1, averaged over J discriminators."""
    return torch.stack([F.relu(1 - judgement.scores.float()).mean() for judgement in fake]).mean()


def feature_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Tensor:
    """Mean absolute difference of each layer's features, relative to their mean size for what is real, averaged.

    Under torch.distributed the sizes are those of all processes, which must call it together.
    """
    wanted = [feature.detach() for judgement in real for feature in judgement.features]
    given = [feature for judgement in fake for feature in judgement.features]
    apart = _mean_sizes([one - other for one, other in zip(given, wanted, strict=True)])
    sizes = _over_processes(_mean_sizes(wanted), items=len(wanted[0]))
    return (apart / sizes.clamp_min(_QUIETEST)).mean()


def _mean_sizes(tensors: Sequence[Tensor]) -> Tensor:
    """The mean of |x| for each x, added up in float32 at least, with neither x nor its gradient written down in that."""
    sums = [x.abs().sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in tensors]
    return torch.stack(torch._foreach_div(sums, [float(x.numel()) for x in tensors]))


@torch.no_grad()
def _over_processes(means: Tensor, items: int) -> Tensor:
    """Means (N,) over the items of all processes, from those over this one's items."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return means
    sums = torch.cat([means * items, means.new_full((1,), items)])
    torch.distributed.all_reduce(sums)
    return sums[:-1] / sums[-1]


def distillation_loss(semantic: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine similarity of (B, F, D) and a teacher's features (B, F, D), averaged (arXiv:2410.00037, section 3.3.2)."""
    return (1 - F.cosine_similarity(semantic.float(), teacher.detach().float(), dim=-1)).mean()


class GradientBalancer(nn.Module):
    """Adds losses of one output so that each has a fixed share of its gradient (arXiv:2210.13438, section 3.5).

    Each loss's gradient is divided by the running mean of its norm for an item of the batch, and weighted by its part of all
    weights given. Under torch.distributed the means are over all processes, which must call it together.

    Args:
        weights: by the losses' names.
        decay: of the running means.
    """

    totals: Tensor
    steps: Tensor

    def __init__(self, weights: Mapping[str, float], decay: float = 0.999) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.decay = decay
        self.register_buffer("totals", torch.zeros(len(self.weights)))
        self.register_buffer("steps", torch.zeros(len(self.weights)))

    def forward(self, losses: Mapping[str, Tensor], leaf: Tensor, output: Tensor) -> Tensor:
        """The loss to backpropagate: its value means nothing, its gradient is the balanced one; a mean over the B items.

        Args:
            losses: by name, means over the items, computed from `leaf`; those not given have no share this time.
            leaf: (B, ...) a detached copy of `output` that requires gradients.
            output: (B, ...) what is to get the gradient.
        """
        names = [name for name in self.weights if name in losses]
        gradients = [self._gradient(losses[name], leaf, last=name == names[-1]) for name in names]
        norms = torch.stack([gradient.flatten(1).norm(dim=1).mean() for gradient in gradients]) * len(leaf)
        means = self._follow(names, _over_processes(norms, len(leaf)))
        whole = sum(self.weights[name] for name in names)
        pairs = zip(gradients, names, means, strict=True)
        balanced = sum(gradient * (self.weights[name] / whole / mean) for gradient, name, mean in pairs)
        return (output * cast(Tensor, balanced).to(output.dtype)).sum()

    @staticmethod
    def _gradient(loss: Tensor, leaf: Tensor, *, last: bool) -> Tensor:
        return torch.autograd.grad(loss, leaf, retain_graph=not last)[0]

    @torch.no_grad()
    def _follow(self, names: Sequence[str], norms: Tensor) -> Tensor:
        """Running means, with this step's norms in them, of the losses named; what isn't finite is left out of them."""
        missing = norms.new_full((), float("nan"))
        given = dict(zip(names, norms, strict=True))
        known = torch.stack([given.get(name, missing) for name in self.weights]).to(self.totals.dtype)
        moved = known.isfinite()
        self.totals.copy_(torch.where(moved, self.totals * self.decay + known, self.totals))
        self.steps.copy_(torch.where(moved, self.steps * self.decay + 1, self.steps))
        means = dict(zip(self.weights, (self.totals / self.steps.clamp_min(1)).clamp_min(1e-12), strict=True))
        return torch.stack([means[name] for name in names])
