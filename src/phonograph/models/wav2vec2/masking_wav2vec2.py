"""What training draws at random: masked spans (Park et al. 2019, arXiv:1904.08779) and, for pretraining, distractors.

Everything is drawn by torch from its default generator, on the device of the lengths, so `torch.manual_seed` repeats it.

Shapes: B batch, T steps, H hidden size, N negatives. Nothing is drawn beyond an item's true length.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from phonograph.errors import ConfigError
from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from phonograph.nn.masks import inside

__all__ = ["compute_mask_indices", "masked_spans", "sample_negative_indices", "sampled_negatives", "spec_augment"]


def masked_spans(lengths: Tensor, steps: int, probability: float, span: int, min_spans: int = 0) -> Tensor:
    """Steps in randomly placed spans; spans may overlap, so that somewhat less than `probability` of the steps is masked.

    Each item gets `probability` x length / span spans, rounded up or down at random so that the mean is that, at least
    `min_spans`, and no more than fit; one shorter than a span gets none.

    Args:
        lengths: (B,) true lengths.

    Returns:
        (B, steps) bool.
    """
    device, batch = lengths.device, lengths.shape[0]
    wanted = (probability * lengths / span + torch.rand(batch, device=device)).floor().clamp_min(min_spans)
    places = (lengths - span + 1).clamp_min(0)
    spans = torch.minimum(torch.minimum(wanted, lengths // span), places)
    # The spans start at the places with the least of T random numbers, those outside being larger than any.
    scores = torch.rand(batch, steps, device=device).masked_fill(~inside(places, steps), 2.0)
    starts = scores.argsort(1).argsort(1) < spans[:, None]
    begun = starts.cumsum(1)
    ended = torch.nn.functional.pad(begun, (span, 0))[:, :steps]
    return begun > ended


def sampled_negatives(candidates: Tensor, num_negatives: int) -> Tensor:
    """For each true step of `candidates` (B, T) bool, other true steps of its item, drawn with equal chances.

    Returns:
        (B, T, N) int64, indices b * T + t into the flattened batch; where an item has no other true step, the step itself,
        and b * T at steps that are not true.
    """
    batch, steps = candidates.shape
    count = candidates.sum(1)[:, None, None]
    rank = (candidates.cumsum(1) - 1)[..., None]
    drawn = (torch.rand(batch, steps, num_negatives, device=candidates.device) * (count - 1)).long()
    drawn = torch.minimum(drawn, count - 2)  # the product may round up
    drawn = drawn + (drawn >= rank)  # each but the step itself
    drawn = torch.where(count > 1, drawn, rank)
    # Step number of the k-th true step of each item: true steps first, in their order.
    order = (~candidates).long().argsort(dim=1, stable=True)
    negatives = order.gather(1, drawn.clamp(0, steps - 1).flatten(1)).view(drawn.shape)
    negatives = negatives.masked_fill(~candidates[..., None], 0)
    return negatives + steps * torch.arange(batch, device=candidates.device)[:, None, None]


def spec_augment(
    x: Tensor,
    masked: Tensor | None,
    config: Wav2Vec2Config,
    mask_time_indices: Tensor | None,
    lengths: Tensor | None,
    training: bool,
) -> Tensor:
    """(B, T, H) with the vector `masked` (H,) in masked steps and, in training, zeros in masked features.

    Args:
        mask_time_indices: (B, T), the steps to mask; None draws them in training, as `config` says.
        lengths: (B,) true lengths; None is T.

    Raises:
        ConfigError: steps to mask of another shape, or no vector for them.
    """
    if not config.apply_spec_augment or (mask_time_indices is None and not training):
        return x
    batch, steps, size = x.shape
    mask = None
    if mask_time_indices is not None:
        mask = _checked_mask(mask_time_indices, masked, (batch, steps)).to(device=x.device, dtype=torch.bool)
    elif config.mask_time_prob > 0:
        full = torch.full((batch,), steps, device=x.device) if lengths is None else lengths
        mask = masked_spans(full, steps, config.mask_time_prob, config.mask_time_length, config.mask_time_min_masks)
    if mask is not None and masked is not None:
        x = torch.where(mask[..., None], masked.to(x.dtype), x)
    if training and config.mask_feature_prob > 0:
        span, least = config.mask_feature_length, config.mask_feature_min_masks
        features = masked_spans(torch.full((batch,), size, device=x.device), size, config.mask_feature_prob, span, least)
        x = x.masked_fill(features[:, None], 0)
    return x


def _checked_mask(mask: Tensor, masked: Tensor | None, shape: tuple[int, int]) -> Tensor:
    if tuple(mask.shape) != shape:
        raise ConfigError(
            f"expected mask_time_indices of shape {shape} (batch, steps), got {tuple(mask.shape)}; "
            "_get_feat_extract_output_lengths tells the steps"
        )
    if masked is None:
        raise ConfigError(
            "expected a model with a vector for masked steps, got mask_time_indices for one with mask_time_prob=0 and "
            "mask_feature_prob=0; build it with a probability above 0"
        )
    return mask


def compute_mask_indices(
    shape: tuple[int, int],
    mask_prob: float,
    mask_length: int,
    attention_mask: Tensor | None = None,
    min_masks: int = 0,
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """`masked_spans` with the arguments that training scripts of the ecosystem use.

    Args:
        shape: (B, T).
        attention_mask: (B, T), 1 for the steps of an item and then 0.

    Returns:
        (B, T) bool.

    Raises:
        ConfigError: a span of less than one step.
    """
    if mask_length < 1:
        raise ConfigError(f"expected mask_length of at least 1, got {mask_length}; choose the steps of a span")
    lengths = torch.full((shape[0],), shape[1]) if attention_mask is None else attention_mask.cpu().long().sum(1)
    return masked_spans(lengths, shape[1], mask_prob, mask_length, min_masks).numpy()


def sample_negative_indices(
    features_shape: tuple[int, ...], num_negatives: int, mask_time_indices: Any = None
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """`sampled_negatives` with the arguments that training scripts of the ecosystem use.

    Args:
        features_shape: (B, T, ...).
        mask_time_indices: (B, T), true for masked steps, array or tensor; None is all.

    Returns:
        (B, T, num_negatives) int64.
    """
    if mask_time_indices is None:
        candidates = torch.ones(tuple(features_shape[:2]), dtype=torch.bool)
    else:
        candidates = torch.as_tensor(mask_time_indices).cpu().bool()
    return sampled_negatives(candidates, num_negatives).numpy()
