"""Losses and figures of training steps that the models do not compute themselves.

    loss = ctc_loss(out.logits, step_lengths, labels, label_lengths, config)
    loss = intermediate_ctc_loss(model, out.hidden_states, [5], CTCTargets(...))
    right = contrastive_accuracy(out.projected_states, out.projected_quantized_states, mask, negatives)

They take tensors, and models only to reuse their heads.

Shapes: B batch, T steps, H hidden size, V tokens, L labels, D width, N negatives, M masked steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from phonograph.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForCTC
from phonograph.models.wav2vec2.quantization_wav2vec2 import own_places
from phonograph.training.features import full_precision

__all__ = ["CTCTargets", "contrastive_accuracy", "ctc_loss", "even_alignment_loss", "intermediate_ctc_loss"]

_SAME = 1 - 1e-6  # cosine of two copies of one codebook entry, up to rounding


@dataclass(frozen=True)
class CTCTargets:
    """What a batch says.

    torch's CTC wants lengths on the CPU. Those on a GPU are asked for once, for all losses of the same targets.

    Attributes:
        step_lengths: (B,) int64, steps of each item.
        labels: (B, L) int64, padded with anything.
        label_lengths: (B,) int64, best left on the CPU.
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

    @cached_property
    def lengths(self) -> tuple[Tensor, Tensor]:
        """`step_lengths` and `label_lengths` on the CPU."""
        return self.step_lengths.cpu(), self.label_lengths.cpu()

    def repeated(self, times: int) -> "CTCTargets":
        """Of `times` such batches, one after the other."""
        steps, labels = (lengths.repeat(times) for lengths in self.lengths)
        return replace(self, step_lengths=steps, labels=self.labels.repeat(times, 1), label_lengths=labels)


def ctc_loss(logits: Tensor, targets: CTCTargets) -> Tensor:
    """CTC (Graves et al. 2006) of logits (B, T, V), in float32 at least: () or, unreduced, (B,)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    steps, labels = (cast(Tensor, lengths.tolist()) for lengths in targets.lengths)  # it takes lists, and does not say so
    return F.ctc_loss(
        logits.log_softmax(-1, dtype=wide).transpose(0, 1),
        targets.labels.clamp_min(0),
        steps,
        labels,
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
    states = torch.cat([hidden_states[layer] for layer in layers])  # one loss, as each makes a GPU wait
    if encoder.stable:
        states = encoder.layer_norm(states)  # which the last states have behind them
    loss = ctc_loss(model.lm_head(model.dropout(states)), targets.repeated(len(layers)))
    return loss / len(layers) if targets.reduction == "sum" else loss.mean()


def even_alignment_loss(logits: Tensor, targets: CTCTargets) -> Tensor:
    """Cross-entropy () of labels spread evenly over the steps of their item: a mean over items, each over its steps.

    A start for CTC, as flat starts were for hidden Markov models: wrong in its times, right in which sounds there are and in
    their order, and without blanks, so that a model cannot begin by saying nothing.

    Args:
        logits: (B, T, V).
    """
    steps = torch.arange(logits.shape[1], device=logits.device)[None]
    lengths, counts = targets.step_lengths[:, None], targets.label_lengths.to(logits.device, non_blocking=True)[:, None]
    places = (steps * counts // lengths).clamp_max(targets.labels.shape[1] - 1)
    spread = targets.labels.clamp_min(0).gather(1, places)
    spread = spread.masked_fill((steps >= lengths) | (counts == 0), -100)
    every = F.cross_entropy(logits.float().flatten(0, 1), spread.flatten(), reduction="none").view_as(spread)
    return (every.sum(1, keepdim=True) / lengths.clamp_min(1)).mean()


def contrastive_accuracy(predicted: Tensor, targets: Tensor, mask: Tensor, negatives: Tensor) -> Tensor:
    """Share of masked steps whose prediction is nearer to the true target than to each other one among the negatives.

    A step whose negatives all equal its target counts as wrong, so that a codebook of which one entry is used earns nothing.

    Args:
        predicted, targets: (B, T, D).
        mask: (B, T) bool.
        negatives: (B, T, N) int64, indices b * T + t of steps of the same item.
    """
    places = own_places(negatives, mask)
    with full_precision(predicted.device):
        asked, vectors = (F.normalize(x.float(), dim=-1) for x in (predicted, targets))
        every = asked @ vectors.transpose(1, 2)  # (B, T, T)
        same = (vectors @ vectors.transpose(1, 2)).gather(2, places) > _SAME
    best_wrong = every.gather(2, places).masked_fill(same, -2.0).amax(-1)
    right = (every.diagonal(dim1=1, dim2=2) > best_wrong) & ~same.all(-1)
    return (right & mask).sum() / mask.sum()
