"""Vocabularies: what tokens stand for, and lists that can't be one."""

import numpy as np
import pytest

from phonograph.decoding.vocabulary import Vocabulary, mean_over_runs
from phonograph.errors import ConfigError

ENGLISH = Vocabulary(["<pad>", "<s>", "</s>", "<unk>", "|", *"ABC'"])


def test_silent_tokens_have_no_text_and_the_delimiter_is_a_space():
    assert ENGLISH.surfaces == ("", "", "", "", " ", "A", "B", "C", "'")
    assert ENGLISH.silent_ids.tolist() == [0, 1, 2, 3]
    assert ENGLISH.delimiter_id == 4
    assert ENGLISH.id_of_surface == {" ": 4, "A": 5, "B": 6, "C": 7, "'": 8}


def test_the_blank_is_silent_whatever_it_is_called():
    vocabulary = Vocabulary(["a", "b", "[blank]"], blank=2, word_delimiter=None)
    assert vocabulary.surfaces == ("a", "b", "")
    assert vocabulary.delimiter_id is None


@pytest.mark.parametrize(
    ("letters", "case", "folded"), [("AB'", "upper", "AB"), ("ab'", "lower", "ab"), ("aB", None, "aB"), ("אב", None, "aB")]
)
def test_case(letters, case, folded):
    vocabulary = Vocabulary(["<pad>", "|", *letters])
    assert vocabulary.case == case
    assert vocabulary.to_case("aB") == folded


def test_spell():
    assert ENGLISH.spell("A'B C") == [5, 8, 6, 4, 7]
    assert ENGLISH.spell("") == []
    assert ENGLISH.spell("ABD") is None
    assert ENGLISH.spell("a") is None


def test_spell_with_tokens_of_several_letters():
    vocabulary = Vocabulary(["<pad>", "|", "s", "sch", "h", "chs", "o"])
    assert vocabulary.spell("schos") == [3, 6, 2]
    assert vocabulary.spell("schs") == [2, 5]
    assert vocabulary.spell("sc") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blank": 3}, "expected the blank's id below 3, the number of tokens, got 3; pass another blank"),
        ({"blank": -1}, "expected the blank's id below 3, the number of tokens, got -1; pass another blank"),
        ({"word_delimiter": "_"}, "expected the word delimiter '_' among the 3 tokens, got none; pass word_delimiter=None if"),
    ],
)
def test_impossible_vocabularies_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Vocabulary(["<pad>", "|", "a"], **options)


def test_another_number_of_tokens_is_refused():
    with pytest.raises(ConfigError, match="expected log-probabilities over 9 tokens, got 32; use the vocabulary of the model"):
        ENGLISH.check_width(np.zeros((5, 32), np.float32))


def test_mean_over_runs():
    starts, ends, means = mean_over_runs(np.array([3, 3, 0, 3]), np.array([1, 2, 5, 7], np.float32))
    assert (starts.tolist(), ends.tolist(), means.tolist()) == ([0, 2, 3], [2, 3, 4], [1.5, 5, 7])
    assert [part.tolist() for part in mean_over_runs(np.zeros(0, int), np.zeros(0, np.float32))] == [[], [], []]
