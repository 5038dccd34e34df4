"""Greedy and beam search against sums over every path, torch's CTC loss and transformers' tokenizer."""

import itertools
import json
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from peers import peer

from phonograph.decoding.align import forced_align, words_from_tokens
from phonograph.decoding.ctc import BeamOptions, BestPath, CTCDecoder, best_path, collapse, greedy
from phonograph.decoding.vocabulary import TokenSpan, Vocabulary
from phonograph.errors import ConfigError

TINY = Vocabulary(["<pad>", "<s>", "|", "A", "B"])
DELIMITED = Vocabulary(["<pad>", "|", "A", "B"])
LETTERS = Vocabulary(["<pad>", *"ABCDE"], word_delimiter=None)
ENGLISH = Vocabulary(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"])
EVERYTHING = {"beam_width": 10**6, "beam_prune_logp": -math.inf, "token_min_logp": -math.inf, "num_results": 10**6}


def random_log_probs(*shape, seed=0, scale=2.0):
    logits = torch.tensor(np.random.default_rng(seed).normal(size=shape) * scale, dtype=torch.float32)
    return torch.log_softmax(logits, -1)


def spoken(text, vocabulary, silence=1, repeat=1, confidence=0.9):
    """Log-probabilities of a clear rendering: each character for `repeat` frames, then blanks."""
    ids = [vocabulary.id_of_surface[letter] for letter in text]
    frames = [i for token_id in ids for i in [token_id] * repeat + [vocabulary.blank] * silence]
    probabilities = torch.full((len(frames), len(vocabulary.tokens)), (1 - confidence) / (len(vocabulary.tokens) - 1))
    probabilities[range(len(frames)), frames] = confidence
    return probabilities.log()


def text_of_path(path, vocabulary):
    """By the definition: specials are blanks, runs are one, blanks go, spaces single and inside only."""
    silent = set(vocabulary.silent_ids.tolist())
    runs = [token_id for token_id, _ in itertools.groupby(vocabulary.blank if i in silent else i for i in path)]
    return " ".join("".join(vocabulary.surfaces[i] for i in runs).split())


def all_texts(log_probs, vocabulary):
    scores = defaultdict(lambda: -math.inf)
    for path in itertools.product(range(len(vocabulary.tokens)), repeat=len(log_probs)):
        score = sum(row[i] for row, i in zip(log_probs.tolist(), path, strict=True))
        text = text_of_path(path, vocabulary)
        scores[text] = float(np.logaddexp(scores[text], score))
    return scores


class TestGreedy:
    def test_runs_become_one_and_blanks_go(self):
        ids = [0, 3, 3, 0, 3, 2, 2, 4, 1]
        log_probs = torch.full((1, 9, 5), -9.0)
        log_probs[0, range(9), ids] = torch.tensor([0.9, 0.5, 0.7, 0.9, 0.4, 0.3, 0.5, 0.8, 0.2]).log() + 4
        log_probs -= 4
        (tokens,) = greedy(log_probs)
        assert [(t.token_id, t.start_frame, t.end_frame) for t in tokens] == [
            (3, 1, 3),
            (3, 4, 5),
            (2, 5, 7),
            (4, 7, 8),
            (1, 8, 9),
        ]
        assert [t.confidence for t in tokens] == pytest.approx([0.6, 0.4, 0.4, 0.8, 0.2], rel=1e-6)

    def test_transformers_offsets_and_text(self, tmp_path):
        transformers = peer("transformers")
        (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(ENGLISH.tokens)}))
        tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
        log_probs = random_log_probs(3, 400, 32)
        log_probs[:, :, [0, 4]] += 3
        # Asked to skip specials, transformers drops all, the blank too, before it joins repeats, and so loses double letters.
        log_probs[:, :, 1:4] -= 50
        for item, tokens in zip(log_probs, greedy(log_probs), strict=True):
            theirs = tokenizer.decode(item.argmax(-1), output_word_offsets=True)
            words = words_from_tokens(tokens, ENGLISH, frame_seconds=1.0)
            assert " ".join(word.text for word in words) == " ".join(theirs.text.split())
            expected = [
                (word["word"], word["start_offset"], word["end_offset"]) for word in theirs.word_offsets if word["word"]
            ]
            assert [(word.text, word.start_seconds, word.end_seconds) for word in words] == expected

    def test_padding_is_not_decoded_and_a_batch_is_its_items(self):
        log_probs = random_log_probs(4, 60, 5)
        lengths = [60, 1, 0, 37]
        batch = greedy(log_probs, torch.tensor(lengths))
        assert batch == [greedy(item[None, :length])[0] for item, length in zip(log_probs, lengths, strict=True)]
        assert batch[2] == []
        assert batch[3][-1].end_frame <= 37

    def test_chunks_of_any_size_give_what_the_whole_gives(self):
        log_probs = random_log_probs(2, 100, 5)
        for size in (1, 7, 100):
            chunks = [best_path(log_probs[:, start : start + size]) for start in range(0, 100, size)]
            assert collapse(BestPath.joined(chunks)) == greedy(log_probs)

    def test_one_clip_other_blank_and_dtype(self):
        log_probs = random_log_probs(30, 5)
        swapped = log_probs[:, [4, 1, 2, 3, 0]]
        back = {0: 4, 4: 0}
        (tokens,) = greedy(swapped.numpy(), blank=4)
        moved = [
            TokenSpan(back.get(t.token_id, t.token_id), t.start_frame, t.end_frame, t.confidence) for t in greedy(log_probs)[0]
        ]
        assert tokens == moved
        coarse = log_probs.bfloat16()
        assert greedy(coarse) == greedy(coarse.float())


class TestBeamSearch:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("vocabulary", [TINY, LETTERS])
    def test_every_text_gets_the_sum_of_its_paths(self, vocabulary, seed):
        log_probs = random_log_probs(5, len(vocabulary.tokens), seed=seed)
        expected = all_texts(log_probs, vocabulary)
        found = CTCDecoder(vocabulary, BeamOptions(**EVERYTHING)).decode(log_probs)
        assert {h.text: h.score for h in found} == pytest.approx(expected, abs=1e-5)
        assert found[0].text == max(expected, key=expected.get)
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert all(h.acoustic_score == h.score and h.lm_score == 0 for h in found)

    def test_the_sum_is_that_of_the_ctc_loss(self):
        log_probs = random_log_probs(40, 6, scale=6.0)
        options = BeamOptions(beam_width=300, beam_prune_logp=-math.inf, token_min_logp=-math.inf)
        best = CTCDecoder(LETTERS, options).decode(log_probs)[0]
        target = torch.tensor([[t.token_id for t in best.tokens]])
        loss = torch.nn.functional.ctc_loss(
            log_probs[:, None], target, torch.tensor([40]), torch.tensor([target.shape[1]]), reduction="sum"
        )
        assert best.acoustic_score == pytest.approx(-loss.item(), rel=1e-3)

    @pytest.mark.parametrize("seed", range(4))
    def test_frames_are_those_of_the_forced_alignment(self, seed):
        log_probs = random_log_probs(6, 6, seed=seed)
        for hypothesis in CTCDecoder(LETTERS, BeamOptions(**EVERYTHING)).decode(log_probs)[:100]:
            (aligned,) = forced_align(log_probs[None], [[t.token_id for t in hypothesis.tokens]])
            path = [0] * 6
            for token in hypothesis.tokens:
                path[token.start_frame : token.end_frame] = [token.token_id] * (token.end_frame - token.start_frame)
            assert log_probs[range(6), path].sum().item() == pytest.approx(aligned.score, abs=1e-4)
            assert text_of_path(path, LETTERS) == hypothesis.text
            assert [t.confidence for t in hypothesis.tokens] == pytest.approx(
                [log_probs[t.start_frame : t.end_frame, t.token_id].exp().mean().item() for t in hypothesis.tokens], rel=1e-4
            )

    @pytest.mark.parametrize("seed", range(4))
    def test_frames_of_words_are_those_of_the_likeliest_path(self, seed):
        log_probs = random_log_probs(6, 4, seed=seed, scale=1.0)
        likeliest = {}
        for path in itertools.product(range(4), repeat=6):
            score, text = log_probs[range(6), path].sum().item(), text_of_path(path, DELIMITED)
            if score > likeliest.get(text, (-math.inf,))[0]:
                runs = [(token, len(list(run))) for token, run in itertools.groupby(path)]
                starts = itertools.accumulate([0, *(length for _, length in runs)])
                likeliest[text] = score, [(i, start, start + n) for (i, n), start in zip(runs, starts, strict=False) if i > 1]
        for hypothesis in CTCDecoder(DELIMITED, BeamOptions(**EVERYTHING)).decode(log_probs):
            spans = [(t.token_id, t.start_frame, t.end_frame) for t in hypothesis.tokens if t.token_id > 1]
            assert spans == likeliest[hypothesis.text][1]
            assert "".join(DELIMITED.surfaces[t.token_id] for t in hypothesis.tokens) == hypothesis.text

    @pytest.mark.parametrize("repeat", [1, 3])
    def test_clear_speech_is_decoded_as_greedy_does_with_its_frames(self, repeat):
        log_probs = spoken("HELLO  THERE", ENGLISH, repeat=repeat)
        best = CTCDecoder(ENGLISH, BeamOptions(beam_width=20)).decode(log_probs)[0]
        assert best.text == "HELLO THERE"
        words = words_from_tokens(best.tokens, ENGLISH, 1.0)
        greedy_words = words_from_tokens(greedy(log_probs)[0], ENGLISH, 1.0)
        assert [(w.text, w.start_seconds, w.end_seconds) for w in words] == [
            (w.text, w.start_seconds, w.end_seconds) for w in greedy_words
        ]
        assert [w.confidence for w in words] == pytest.approx([0.9, 0.9])

    def test_paths_of_one_text_together_beat_a_likelier_path(self):
        # The classic case: blank-blank is the best path (0.36), yet "A" has 0.64 in three.
        log_probs = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
        vocabulary = Vocabulary(["<pad>", "A"], word_delimiter=None)
        assert greedy(log_probs) == [[]]
        found = CTCDecoder(vocabulary, BeamOptions(num_results=9)).decode(log_probs)
        assert [(h.text, round(math.exp(h.score), 6)) for h in found] == [("A", 0.64), ("", 0.36)]

    def test_special_tokens_are_never_in_the_text(self):
        log_probs = random_log_probs(60, 32)
        log_probs[:, :4] += 4
        found = CTCDecoder(ENGLISH, BeamOptions(beam_width=20, num_results=20)).decode(torch.log_softmax(log_probs, -1))
        assert len(found) == 20
        assert not any(set("<>|") & set(h.text) for h in found)
        assert {t.token_id for h in found for t in h.tokens} <= set(range(4, 32))

    def test_a_prefix_that_comes_back_is_the_same_prefix(self):
        # "AB" may outlive "A", which then returns: were it another node, "AB" would take two places in the beam.
        vocabulary = Vocabulary(["<pad>", "A", "B"], word_delimiter=None)
        for seed in range(10):
            options = BeamOptions(**{**EVERYTHING, "beam_width": 16})
            assert len(CTCDecoder(vocabulary, options).decode(random_log_probs(12, 3, seed=seed, scale=4.0))) == 16

    def test_what_nothing_alive_descends_from_is_forgotten(self, monkeypatch):
        last = []
        ranked = CTCDecoder._ranked
        monkeypatch.setattr(CTCDecoder, "_ranked", lambda self, beams, rows: (last.append(beams), ranked(self, beams, rows))[1])
        CTCDecoder(ENGLISH, BeamOptions(beam_width=10, hotwords={"A": 1.0})).decode(random_log_probs(200, 32))
        needed = set()
        for prefix in last[0].prefixes:
            while prefix is not None:
                needed.add(prefix)
                root, prefix = prefix, prefix.parent
        found = [root]
        for prefix in found:
            found += prefix.children.values()
        assert set(found) == needed
        assert len(found) > 100
        assert all(prefix.words.scores is None for prefix in needed - set(last[0].prefixes))

    def test_wider_beams_find_better_texts_at_most_num_results(self):
        log_probs = random_log_probs(80, 32, scale=1.0)
        scores = []
        for width in (1, 4, 64):
            found = CTCDecoder(ENGLISH, BeamOptions(beam_width=width, num_results=3)).decode(log_probs)
            assert len(found) == min(width, 3)
            scores.append(found[0].score)
        assert scores[0] < scores[1] < scores[2]

    def test_thresholds_leave_the_best_token(self):
        log_probs = spoken("AB", LETTERS, confidence=0.5)
        options = BeamOptions(beam_prune_logp=0.0, token_min_logp=0.0, num_results=5)
        assert [h.text for h in CTCDecoder(LETTERS, options).decode(log_probs)] == ["AB"]

    def test_no_frames_no_text(self):
        (only,) = CTCDecoder(ENGLISH).decode(torch.zeros(0, 32))
        assert (only.text, only.tokens, only.score) == ("", (), 0.0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"beam_width": 0}, "expected beam_width of at least 1, got 0; raise it"),
            ({"num_results": 0}, "expected num_results of at least 1, got 0; raise it"),
            ({"beam_prune_logp": 1}, "expected beam_prune_logp of at most 0, got 1; pass a logarithm such as -10"),
            ({"token_min_logp": 0.5}, "expected token_min_logp of at most 0, got 0.5; pass a logarithm"),
            ({"token_min_logp": math.nan}, "expected token_min_logp of at most 0, got nan; pass a logarithm"),
        ],
    )
    def test_impossible_options_are_refused(self, options, message):
        with pytest.raises(ConfigError, match=message):
            BeamOptions(**options)

    def test_another_vocabulary_is_refused(self):
        with pytest.raises(
            ConfigError, match="expected log-probabilities over 32 tokens, got 5; use the vocabulary of the model"
        ):
            CTCDecoder(ENGLISH).decode(random_log_probs(4, 5))
