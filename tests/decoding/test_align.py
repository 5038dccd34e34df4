"""Forced alignment against every possible path, and the times of words and characters."""

import itertools
import math

import numpy as np
import pytest
import torch

from phonograph.decoding import align
from phonograph.decoding.align import WILDCARD, align_text, forced_align, words_from_tokens
from phonograph.decoding.vocabulary import TokenSpan, Vocabulary
from phonograph.errors import ConfigError

ENGLISH = Vocabulary(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"])


def random_log_probs(*shape, seed=0, scale=2.0):
    logits = torch.tensor(np.random.default_rng(seed).normal(size=shape) * scale, dtype=torch.float32)
    return torch.log_softmax(logits, -1)


def spoken(frames, vocabulary=ENGLISH, confidence=0.9):
    """Log-probabilities of clear speech, a character of `frames` per frame; "." is the blank, a space the delimiter."""
    ids = [0 if letter == "." else vocabulary.id_of_surface[letter] for letter in frames]
    probabilities = torch.full((len(ids), len(vocabulary.tokens)), (1 - confidence) / (len(vocabulary.tokens) - 1))
    probabilities[range(len(ids)), ids] = confidence
    return probabilities.log()


def all_alignments(rows, targets):
    """The score of every way to lay the targets into the frames, by the spans of each."""
    frames, scores = len(rows), {}
    blank = [row[0] for row in rows]
    for bounds in itertools.combinations_with_replacement(range(frames + 1), 2 * len(targets)):
        spans = list(zip(bounds[::2], bounds[1::2], strict=True))
        if any(start == end for start, end in spans):
            continue
        if any(
            one == other != WILDCARD and spans[i][1] == spans[i + 1][0]
            for i, (one, other) in enumerate(itertools.pairwise(targets))
        ):
            continue
        score = sum(blank)
        for target, (start, end) in zip(targets, spans, strict=True):
            for frame in range(start, end):
                wild = max(rows[frame][1:]) if frame == start else max(rows[frame])
                score += (wild if target == WILDCARD else rows[frame][target]) - blank[frame]
        scores[tuple(spans)] = score
    return scores


class TestForcedAlign:
    @pytest.mark.parametrize(
        "targets", [[], [1], [1, 2], [1, 1], [2, 1, 1], [WILDCARD], [1, WILDCARD, 2], [WILDCARD, WILDCARD], [1, WILDCARD, 1, 1]]
    )
    @pytest.mark.parametrize("seed", range(5))
    def test_the_best_of_all_alignments(self, targets, seed):
        log_probs = random_log_probs(1, 7, 4, seed=seed)
        scores = all_alignments(log_probs[0].tolist(), targets)
        (found,) = forced_align(log_probs, [targets])
        assert found.score == pytest.approx(max(scores.values()), abs=1e-5)
        spans = tuple((span.start_frame, span.end_frame) for span in found.spans)
        assert scores[spans] == pytest.approx(found.score, abs=1e-5)
        assert [span.token_id for span in found.spans] == targets

    def test_against_every_path_of_tokens(self):
        log_probs = random_log_probs(1, 6, 3)
        best = -math.inf
        for path in itertools.product(range(3), repeat=6):
            if [token for token, _ in itertools.groupby(path) if token] == [1, 2, 2]:
                best = max(best, log_probs[0][range(6), path].sum().item())
        assert forced_align(log_probs, [[1, 2, 2]])[0].score == pytest.approx(best, abs=1e-5)

    def test_a_ragged_batch_is_its_items(self):
        rng = np.random.default_rng(3)
        lengths = [50, 20, 33, 8, 1]
        targets = [rng.integers(-1, 9, length // 2).tolist() for length in lengths]
        targets = [[WILDCARD if token == 0 else token for token in ids] for ids in targets]
        log_probs = random_log_probs(5, 50, 9)
        batch = forced_align(log_probs, targets, lengths=lengths)
        for index, (ids, length) in enumerate(zip(targets, lengths, strict=True)):
            assert batch[index] == forced_align(log_probs[index : index + 1, :length], [ids])[0]
            assert [span.token_id for span in batch[index].spans] == ids

    def test_little_memory_changes_nothing(self, monkeypatch):
        rng = np.random.default_rng(4)
        targets = [rng.integers(1, 9, 30).tolist(), rng.integers(1, 9, 10).tolist()]
        log_probs = random_log_probs(2, 150, 9)
        whole = forced_align(log_probs, targets, lengths=[150, 61])
        monkeypatch.setattr(align, "_BLOCK_BYTES", 1)
        assert forced_align(log_probs, targets, lengths=[150, 61]) == whole

    def test_confidence_is_the_mean_probability(self):
        log_probs = spoken("..HHH.I.", confidence=0.8)
        log_probs[3, ENGLISH.id_of_surface["H"]] = math.log(0.5)
        (found,) = forced_align(log_probs[None], [[ENGLISH.id_of_surface["H"], ENGLISH.id_of_surface["I"]]])
        assert [(span.start_frame, span.end_frame) for span in found.spans] == [(2, 5), (6, 7)]
        assert [span.confidence for span in found.spans] == pytest.approx([0.7, 0.8])

    def test_tokens_ruled_out_still_get_frames(self):
        log_probs = torch.full((1, 6, 3), -math.inf)
        log_probs[0, :, 0] = 0.0
        log_probs[0, 4, 2] = -1.0
        (found,) = forced_align(log_probs, [[1, 2]])
        assert [(span.token_id, span.start_frame, span.end_frame) for span in found.spans][1] == (2, 4, 5)
        assert found.spans[0].confidence == 0.0

    def test_no_frames_and_no_targets(self):
        assert [(a.spans, a.score) for a in forced_align(torch.zeros(2, 0, 3), [[], []])] == [((), 0.0)] * 2

    @pytest.mark.parametrize(
        ("targets", "lengths", "message"),
        [
            (
                [[1, 2, 1]],
                [2],
                "expected at least 3 frames for 3 tokens with 0 repeats, got 2 in item 0; check that the text belongs",
            ),
            ([[1], [1, 1, 1]], [9, 4], "expected at least 5 frames for 3 tokens with 2 repeats, got 4 in item 1"),
            ([[1, 0]], [9], "expected targets among the 3 tokens other than the blank, 0, got 0 in item 0; spell the text"),
            ([[3]], [9], "expected targets among the 3 tokens other than the blank, 0, got 3 in item 0"),
            ([[-2]], [9], "expected targets among the 3 tokens other than the blank, 0, got -2 in item 0"),
        ],
    )
    def test_impossible_targets_are_refused(self, targets, lengths, message):
        with pytest.raises(ConfigError, match=message):
            forced_align(torch.zeros(len(targets), 9, 3), targets, lengths)

    def test_the_least_frames_suffice(self):
        (found,) = forced_align(random_log_probs(1, 5, 3), [[1, 1, 1]])
        assert [(span.start_frame, span.end_frame) for span in found.spans] == [(0, 1), (2, 3), (4, 5)]


def times(words):
    return [(word.text, word.start_seconds, word.end_seconds) for word in words]


class TestAlignText:
    def test_words_and_characters_of_a_sentence_as_written(self):
        words = align_text(spoken("..HH.E.LL.LO..  .WW.O.RL.D.."), "Hello, world!", ENGLISH, frame_seconds=0.02)
        assert times(words) == [("Hello,", 0.04, 0.24), ("world!", 0.34, 0.52)]
        assert times(words[0].characters) == [
            ("H", 0.04, 0.08),
            ("e", 0.1, 0.12),
            ("l", 0.14, 0.18),
            ("l", 0.2, 0.22),
            ("o", 0.22, 0.24),
        ]
        assert "".join(character.text for character in words[1].characters) == "world"
        assert words[0].confidence == pytest.approx(0.9)

    def test_offset(self):
        words = align_text(spoken(".HI."), "hi", ENGLISH, frame_seconds=0.02, offset_seconds=10.0)
        assert times(words) == [("hi", 10.02, 10.06)]

    def test_digits_cover_the_word_that_is_spoken_for_them(self):
        words = align_text(spoken("..A.T. .T.W.E.N.T.Y... ..O.N.E."), "at 20 one", ENGLISH, frame_seconds=1.0)
        assert times(words) == [("at", 2, 5), ("20", 8, 19), ("one", 25, 30)]
        assert len(words[1].characters) == 2

    def test_a_wildcard_at_the_end_leaves_out_the_silence(self):
        words = align_text(spoken(".A.T. .T.E.N....."), "at 10", ENGLISH, frame_seconds=1.0)
        assert times(words) == [("at", 1, 4), ("10", 7, 12)]

    def test_decomposed_letters_are_found(self):
        vocabulary = Vocabulary(["<pad>", "|", *"caf\u00e9"])
        (word,) = align_text(spoken(".c.a.f.\u00e9.", vocabulary), "Cafe\u0301", vocabulary, frame_seconds=1.0)
        assert times(word.characters)[-1] == ("\u00e9", 7, 8)

    def test_characters_of_other_scripts_get_times(self):
        words = align_text(spoken(".T.H.E. .C.A.T. .S.A.T."), "the 猫 sat", ENGLISH, frame_seconds=1.0)
        assert times(words) == [("the", 1, 6), ("猫", 9, 14), ("sat", 17, 22)]

    def test_accents_and_typographic_apostrophes_are_spelled_plainly(self):
        words = align_text(spoken(".C.A.F.E. .I.T.'.S. "), "Café it\u2019s", ENGLISH, frame_seconds=1.0)
        assert times(words) == [("Café", 1, 8), ("it\u2019s", 11, 18)]
        assert [word.confidence for word in words] == pytest.approx([0.9, 0.9])

    def test_a_letter_that_becomes_two_has_one_span(self):
        (word,) = align_text(spoken(".S.T.R.A.S.S.E."), "Straße", ENGLISH, frame_seconds=1.0)
        assert times(word.characters)[4:] == [("ß", 9, 12), ("e", 13, 14)]

    @pytest.mark.parametrize("letters", ["abc", "ABC", "aBc"])
    def test_letters_are_found_in_the_other_case(self, letters):
        # As a wildcard the last letter would begin with the one that is left out.
        vocabulary = Vocabulary(["<pad>", "|", *letters])
        log_probs = spoken(".{}.{}.{}.".format(*letters), vocabulary)
        for text in ("ac", "AC", "aC"):
            (word,) = align_text(log_probs, text, vocabulary, frame_seconds=1.0)
            assert times(word.characters) == [(text[0], 1, 2), (text[1], 5, 6)]

    def test_signs_alone_stay_in_the_text_of_a_neighbour(self):
        words = align_text(spoken(".T.H.E. .C.A.T."), "\u2013 the \u2014 cat ...", ENGLISH, frame_seconds=1.0)
        assert times(words) == [("\u2013 the \u2014", 1, 6), ("cat ...", 9, 14)]

    def test_spoken_signs_get_times(self):
        words = align_text(spoken(".C.A.T. .A.N.D. .D.O.G."), "cat & dog", ENGLISH, frame_seconds=1.0)
        assert times(words) == [("cat", 1, 6), ("&", 9, 14), ("dog", 17, 22)]

    def test_a_vocabulary_without_delimiter(self):
        vocabulary = Vocabulary(["<pad>", *"abc"], word_delimiter=None)
        words = align_text(spoken(".a.b.c.", vocabulary), "ab C", vocabulary, frame_seconds=1.0)
        assert times(words) == [("ab", 1, 4), ("C", 5, 6)]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "expected a text with at least one character to be spoken, got ''; pass the words spoken"),
            (" ... ", r"expected a text with at least one character to be spoken, got ' \.\.\. '"),
            ("a longer text", "expected at least 13 frames for 13 tokens with 0 repeats, got 4 in item 0; check that the text"),
        ],
    )
    def test_impossible_texts_are_refused(self, text, message):
        with pytest.raises(ConfigError, match=message):
            align_text(spoken(".HI."), text, ENGLISH, frame_seconds=0.02)

    def test_another_vocabulary_is_refused(self):
        with pytest.raises(ConfigError, match="expected log-probabilities over 32 tokens, got 5"):
            align_text(torch.zeros(4, 5), "hi", ENGLISH, frame_seconds=0.02)


class TestWordsFromTokens:
    def test_words_are_between_delimiters_and_specials_are_left_out(self):
        h, i = ENGLISH.id_of_surface["H"], ENGLISH.id_of_surface["I"]
        spans = [
            (4, 0, 1, 1.0),
            (h, 1, 2, 0.5),
            (1, 2, 3, 0.1),
            (i, 3, 5, 0.9),
            (4, 5, 7, 1.0),
            (4, 8, 9, 1.0),
            (i, 10, 11, 0.25),
        ]
        words = words_from_tokens([TokenSpan(*span) for span in spans], ENGLISH, frame_seconds=0.02, offset_seconds=1.0)
        assert times(words) == [("HI", 1.02, 1.1), ("I", 1.2, 1.22)]
        assert [word.confidence for word in words] == pytest.approx([0.7, 0.25])
        assert times(words[0].characters) == [("H", 1.02, 1.04), ("I", 1.06, 1.1)]

    def test_no_tokens_no_words(self):
        assert words_from_tokens([], ENGLISH, frame_seconds=0.02) == []
