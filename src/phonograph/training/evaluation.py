"""Figures of held-out speech: word and character error rates, BLEU, accuracy, equal error rate.

    rates = error_rates(["he was determined"], ["he is determined"])
    rates.words, rates.characters  # 0.333, 0.176
    equal_error_rate(scores, is_same_speaker)

It takes texts, labels and scores, and knows neither models nor data. Whatever texts should have in common before they are
compared, such as case, is the caller's business (`phonograph.training.transcripts`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phonograph.errors import ConfigError, MissingExtraError

__all__ = ["ErrorRates", "bleu", "equal_error_rate", "error_rates", "trial_scores"]


@dataclass(frozen=True)
class ErrorRates:
    """Substitutions, deletions and insertions over the number of what was said: 0 is perfect, and 1 can be exceeded."""

    words: float
    characters: float


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRates:
    """Word and character error rates over all texts together, as jiwer computes them.

    Raises:
        ConfigError: unequal numbers of texts, or nothing was said in any. MissingExtraError: jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise MissingExtraError("evaluation by word error rate", "jiwer", "train") from error
    _check_texts(references, hypotheses)
    said, heard = list(references), list(hypotheses)
    return ErrorRates(jiwer.process_words(said, heard).wer, jiwer.process_characters(said, heard).cer)


def bleu(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """BLEU of the corpus, 0 to 100, detokenised, as sacrebleu computes it by default (Post 2018, arXiv:1804.08771).

    Raises:
        ConfigError: unequal numbers of texts, or nothing was said in any. MissingExtraError: sacrebleu is not installed.
    """
    try:
        import sacrebleu
    except ImportError as error:
        raise MissingExtraError("evaluation by BLEU", "sacrebleu", "train") from error
    _check_texts(references, hypotheses)
    return float(sacrebleu.corpus_bleu(list(hypotheses), [list(references)]).score)


def _check_texts(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if len(references) != len(hypotheses):
        raise ConfigError(
            f"expected as many hypotheses as references, got {len(hypotheses)} and {len(references)}; pass one for each"
        )
    if not any(reference.strip() for reference in references):
        raise ConfigError(f"expected references with words, got {len(references)} without any; leave untranscribed speech out")


def trial_scores(embeddings: Tensor, speakers: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """All pairs of clips as trials of speaker verification.

    Args:
        embeddings: (N, D), one a clip.
        speakers: who speaks in each clip.

    Returns:
        Cosines (P,) of the N (N - 1) / 2 pairs, and whether both are of one speaker (P,) bool.
    """
    numbers = {speaker: number for number, speaker in enumerate(dict.fromkeys(speakers))}
    who = torch.tensor([numbers[speaker] for speaker in speakers])
    first, second = torch.triu_indices(len(who), len(who), offset=1)
    unit = torch.nn.functional.normalize(embeddings.detach().float().cpu(), dim=1)
    return (unit @ unit.T)[first, second], who[first] == who[second]


def equal_error_rate(scores: Tensor, same: Tensor) -> float:
    """Where the share of refused true pairs and that of accepted false pairs meet, from 0 to 1.

    Between two thresholds the curve is taken as straight, as ROC curves are drawn.

    Args:
        scores: (P,), higher for what is more alike.
        same: (P,) bool.

    Raises:
        ConfigError: no true or no false pairs.
    """
    true, false = int(same.sum()), int((~same).sum())
    if not true or not false:
        raise ConfigError(
            f"expected pairs of one speaker and of two, got {true} and {false}; evaluate on at least two clips of two speakers"
        )
    ordered, order = scores.double().sort(descending=True)
    hits = same[order].double()
    # Pairs of one score are accepted together: the curve has corners only where the score changes.
    corner = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])
    start = torch.zeros(1, dtype=torch.float64)
    accepted_true = torch.cat([start, hits.cumsum(0)[corner]]) / true
    accepted_false = torch.cat([start, (1 - hits).cumsum(0)[corner]]) / false
    refused_true = 1 - accepted_true
    after = int((accepted_false >= refused_true).nonzero()[0])
    before = after - 1
    gap_before = refused_true[before] - accepted_false[before]
    gap_after = accepted_false[after] - refused_true[after]
    share = gap_before / (gap_before + gap_after)
    return float(accepted_false[before] + share * (accepted_false[after] - accepted_false[before]))
