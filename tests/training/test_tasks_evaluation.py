"""Figures of held-out speech against their definitions and independent implementations."""

import sys

import pytest
import torch

from phonograph.errors import ConfigError, MissingExtraError
from phonograph.training.evaluation import bleu, equal_error_rate, error_rates, trial_scores


def test_error_rates_count_edits_over_all_texts_together():
    rates = error_rates(["he was determined", "now"], ["he is determined", "now then"])
    assert rates.words == pytest.approx(2 / 4)
    # was -> is: one deletion, one substitution; " then": five insertions; 17 + 3 characters.
    assert rates.characters == pytest.approx(7 / 20)


def test_error_rates_of_the_same_texts_are_zero():
    rates = error_rates(["a b", "c"], ["a b", "c"])
    assert (rates.words, rates.characters) == (0, 0)


def test_bleu_is_that_of_sacrebleu_itself():
    import sacrebleu

    references = ["the cat is on the mat", "there is a cat on the mat"]
    hypotheses = ["the cat sat on the mat", "there is a cat on a mat"]
    assert bleu(references, hypotheses) == pytest.approx(sacrebleu.BLEU().corpus_score(hypotheses, [references]).score)
    assert bleu(references, references) == pytest.approx(100)


@pytest.mark.parametrize("measure", [error_rates, bleu])
def test_texts_that_do_not_pair_or_say_nothing_are_refused(measure):
    with pytest.raises(ConfigError, match="as many hypotheses as references, got 1 and 2"):
        measure(["a", "b"], ["a"])
    with pytest.raises(ConfigError, match="references with words, got 2 without any"):
        measure(["", " "], ["a", "b"])


@pytest.mark.parametrize(("measure", "package"), [(error_rates, "jiwer"), (bleu, "sacrebleu")])
def test_missing_packages_are_named(measure, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package {package}.*phonograph\[train\]"):
        measure(["a"], ["a"])


def test_equal_error_rate_of_separated_and_of_swapped_scores():
    scores, same = torch.tensor([0.9, 0.8, 0.2, 0.1]), torch.tensor([True, True, False, False])
    assert equal_error_rate(scores, same) == 0
    assert equal_error_rate(-scores, same) == 1


def test_equal_error_rate_is_where_normal_distributions_cross():
    generator = torch.Generator().manual_seed(0)
    same = torch.arange(400_000) % 2 == 0
    scores = torch.randn(len(same), generator=generator) + 2 * same
    expected = torch.special.ndtr(torch.tensor(-1.0)).item()  # half way between the means, one deviation from each
    assert equal_error_rate(scores, same) == pytest.approx(expected, abs=2e-3)


def test_equal_error_rate_between_two_corners():
    # Corners (accepted false, refused true): (0, 1), (0, 1/2), (1, 1/2): the flat piece is crossed at 1/2.
    scores, same = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, False, True])
    assert equal_error_rate(scores, same) == pytest.approx(0.5)
    # All scores alike: chance.
    assert equal_error_rate(torch.zeros(4), torch.tensor([True, False, True, False])) == pytest.approx(0.5)


def test_equal_error_rate_needs_both_kinds_of_pairs():
    with pytest.raises(ConfigError, match="pairs of one speaker and of two, got 2 and 0"):
        equal_error_rate(torch.rand(2), torch.tensor([True, True]))


def test_trials_are_all_pairs_with_their_cosines():
    embeddings = torch.tensor([[1.0, 0], [2.0, 0], [0, 3.0]])
    scores, same = trial_scores(embeddings, ["ann", "ann", "bob"])
    assert scores.tolist() == [1, 0, 0]
    assert same.tolist() == [True, False, False]
