"""Losses and figures of training steps that the models do not compute themselves.

    loss = ctc_loss(out.logits, step_lengths, labels, label_lengths, config)
    loss = intermediate_ctc_loss(model, out.hidden_states, [5], CTCTargets(...))
    right = contrastive_accuracy(out.projected_states, out.projected_quantized_states, mask, negatives)

They take tensors, and models only to reuse their heads.

Shapes: B batch, T steps, H hidden size, V tokens, L labels, D width, N negatives, M masked steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from phonograph.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForCTC
from phonograph.training.features import full_precision

__all__ = ["CTCTargets", "contrastive_accuracy", "ctc_loss", "even_alignment_loss", "intermediate_ctc_loss"]

_SAME = 1 - 1e-6  # cosine of two copies of one codebook entry, up to rounding


@dataclass(frozen=True)
class CTCTargets:
    """What a batch says.

    Attributes:
        step_lengths: (B,) int64, steps of each item.
        labels: (B, L) int64, padded with anything.
        label_lengths: (B,) int64.
        blank: id of the blank.
        reduction: mean (over items, each over its labels), sum or none, as torch has them.
        zero_infinity: texts too long for their audio count nothing.
    """

    step_lengths: Tensor
    labels: Tensor
    label_lengths: Tensor
    blank: int = 0
    reduction: str = "mean"
    zero_infinity: bool = True


def ctc_loss(logits: Tensor, targets: CTCTargets) -> Tensor:
    """CTC (Graves et al. 2006) of logits (B, T, V), in float32 at least: () or, unreduced, (B,)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.ctc_loss(
        logits.log_softmax(-1, dtype=wide).transpose(0, 1),
        targets.labels.clamp_min(0),
        targets.step_lengths,
        targets.label_lengths,
        blank=targets.blank,
        reduction=targets.reduction,
        zero_infinity=targets.zero_infinity,
    )


def intermediate_ctc_loss(
    model: Wav2Vec2ForCTC, hidden_states: Sequence[Tensor], layers: Sequence[int], targets: CTCTargets
) -> Tensor:
    """The mean CTC loss of the model's own head on the states after some of its layers (arXiv:2102.03216).

    Args:
        hidden_states: (B, T, H) before the first layer and after each, as the model returns them.
        layers: counted from 1.
    """
    encoder = model.wav2vec2.encoder
    losses = []
    for layer in layers:
        states = hidden_states[layer]
        if encoder.stable:
            states = encoder.layer_norm(states)  # which the last states have behind them
        losses.append(ctc_loss(model.lm_head(model.dropout(states)), targets))
    return torch.stack(losses).mean()


def even_alignment_loss(logits: Tensor, targets: CTCTargets) -> Tensor:
    """Cross-entropy () of labels spread evenly over the steps of their item, a mean over all steps.

    A start for CTC, as flat starts were for hidden Markov models: wrong in its times, right in which sounds there are and in
    their order, and without blanks, so that a model cannot begin by saying nothing.

    Args:
        logits: (B, T, V).
    """
    steps = torch.arange(logits.shape[1], device=logits.device)[None]
    lengths, counts = targets.step_lengths[:, None], targets.label_lengths.to(logits.device)[:, None]
    places = (steps * counts // lengths).clamp_max(targets.labels.shape[1] - 1)
    spread = targets.labels.clamp_min(0).gather(1, places)
    spread = spread.masked_fill((steps >= lengths) | (counts == 0), -100)
    return F.cross_entropy(logits.float().flatten(0, 1), spread.flatten())


def contrastive_accuracy(predicted: Tensor, targets: Tensor, mask: Tensor, negatives: Tensor) -> Tensor:
    """Share of masked steps whose prediction is nearer to the true target than to each other one among the negatives.

    A step whose negatives all equal its target counts as wrong, so that a codebook of which one entry is used earns nothing.

    Args:
        predicted, targets: (B, T, D).
        mask: (B, T) bool.
        negatives: (B, T, N) int64, indices b * T + t.
    """
    true = mask.flatten().nonzero().squeeze(1)  # (M,)
    asked = F.normalize(predicted.flatten(0, 1)[true].float(), dim=-1)
    vectors = F.normalize(targets.flatten(0, 1).float(), dim=-1)
    others = vectors[negatives.flatten(0, 1)[true]]  # (M, N, D)
    right = (asked * vectors[true]).sum(-1)
    with full_precision(asked.device):
        wrong = torch.einsum("md,mnd->mn", asked, others)
        same = torch.einsum("md,mnd->mn", vectors[true], others) > _SAME
    best_wrong = wrong.masked_fill(same, -2.0).amax(-1)
    return ((right > best_wrong) & ~same.all(-1)).float().mean()
