"""What Wav2Vec2's pretraining predicts: features as one of V entries in each of G codebooks (arXiv:2006.11477, sections 2, 3).

Shapes: B batch, T steps, C channels, G codebooks, V entries each, D width of a step, M masked steps, N negatives.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phonograph.errors import ConfigError
from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from phonograph.nn.linear import Linear

__all__ = ["Quantized", "Wav2Vec2GumbelVectorQuantizer", "contrastive_loss", "gumbel_temperature", "own_places"]

_IGNORED = -100


def gumbel_temperature(step: int, start: float = 2.0, end: float = 0.5, decay: float = 0.999995) -> float:
    """The published schedule: start x decay^step, but not below end (arXiv:2006.11477, section 4.2: 0.5 BASE, 0.1 LARGE)."""
    return max(start * decay**step, end)


@dataclass
class Quantized:
    """Quantised steps (B, T, D), which entries they are (B, T, G) int64, and the perplexity () of their use."""

    vectors: Tensor
    codes: Tensor
    perplexity: Tensor


class Wav2Vec2GumbelVectorQuantizer(nn.Module):
    """Entries chosen by the Gumbel softmax, with straight-through gradients (Jang et al. 2016, arXiv:1611.01144)."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.num_groups = config.num_codevector_groups
        self.num_vars = config.num_codevectors_per_group
        width = config.codevector_dim // self.num_groups
        self.codevectors = nn.Parameter(torch.empty(1, self.num_groups * self.num_vars, width))
        self.weight_proj = Linear(config.conv_dim[-1], self.num_groups * self.num_vars)
        self.temperature = 2.0

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        """(B, T, C) -> quantised; the perplexity is that of the steps in `mask` (B, T) bool, or of all."""
        shape = (*features.shape[:2], self.num_groups, self.num_vars)
        logits = self.weight_proj(features)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).view(shape)
        if self.training:
            chosen = F.gumbel_softmax(wide.flatten(0, 2), tau=self.temperature, hard=True).view(shape)
            codes, spread = chosen.argmax(-1), wide.softmax(-1)
        else:
            codes = wide.argmax(-1)
            chosen = spread = F.one_hot(codes, self.num_vars).to(wide.dtype)
        books = self.codevectors.view(self.num_groups, self.num_vars, -1)
        vectors = torch.einsum("btgv,gvd->btgd", chosen.to(books.dtype), books).flatten(2)
        return Quantized(vectors, codes, _perplexity(spread, mask))


def _perplexity(spread: Tensor, mask: Tensor | None) -> Tensor:
    """Number of entries in even use, summed over codebooks, from probabilities (B, T, G, V)."""
    masked = spread if mask is None else spread * mask[..., None, None]
    count = spread.shape[0] * spread.shape[1] if mask is None else mask.sum()
    mean = masked.sum((0, 1)) / count
    return torch.exp(-(mean * torch.log(mean + 1e-7)).sum(-1)).sum()


def contrastive_loss(
    predicted: Tensor, targets: Tensor, codes: Tensor, mask: Tensor, negatives: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy, summed over masked steps, of the true target among it and its negatives (equation 3).

    Cosines of all pairs of an item's steps are far fewer numbers than the vectors of all negatives, and take no wait for how
    many steps are masked.

    Args:
        predicted, targets: (B, T, D).
        codes: (B, T, G), the entries that the targets come from.
        mask: (B, T) bool.
        negatives: (B, T, N) int64, indices b * T + t of steps of the same item.
    """
    wide = torch.promote_types(predicted.dtype, torch.float32)
    places = own_places(negatives, mask)
    with torch.autocast(predicted.device.type, enabled=False):  # cosines need more than 8 bits
        asked, among = (F.normalize(x.to(wide), dim=-1, eps=1e-8) for x in (predicted, targets))
        cosines = asked @ among.transpose(1, 2)  # (B, T, T)
    # Distractors of the very entries that are sought are none. Codes are compared: vectors differ by rounding.
    same = (codes[:, :, None] == codes[:, None]).all(-1).gather(2, places)
    wrong = cosines.gather(2, places).masked_fill(same, float("-inf"))
    logits = torch.cat([cosines.diagonal(dim1=1, dim2=2)[..., None], wrong], dim=2) / temperature
    labels = torch.where(mask, 0, _IGNORED)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="sum")


def own_places(negatives: Tensor, mask: Tensor) -> Tensor:
    """Indices b * T + t (B, T, N) of steps of the same item -> t; 0 where `mask` (B, T) is false.

    Raises:
        ConfigError: steps of another item (seen on the CPU only).
    """
    batch, steps = mask.shape
    first = steps * torch.arange(batch, device=negatives.device)
    places = (negatives - first[:, None, None]).masked_fill(~mask[..., None], 0)
    # A look at the values would stall a GPU; there the lookup itself stops on a bad index.
    if places.device.type == "cpu" and bool(((places < 0) | (places >= steps)).any()):
        raise ConfigError(
            "expected negatives b * T + t of steps of the same item, got some of another; sample_masks draws them"
        )
    return places
