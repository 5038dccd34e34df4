"""N-gram models against kenlm, and fused scores against their definition."""

import base64
import gzip
import itertools
import math
import re
import subprocess
import sys
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from peers import peer

from phonograph.decoding.ctc import BeamOptions, CTCDecoder
from phonograph.decoding.language_model import (
    ArpaLanguageModel,
    FusionOptions,
    KenLMLanguageModel,
    WordFusion,
    load_language_model,
)
from phonograph.decoding.vocabulary import Vocabulary
from phonograph.errors import CheckpointError, ConfigError, MissingExtraError

SENTENCES = ("the cat sat on the mat", "the dog sat on the cat", "a mat is on the dog")
# `build_binary trie` of KenLM 0.3.0 on arpa(SENTENCES), zlib, base 85.
BINARY = (
    "c-qU&O)OBz$yLZGDJihh*U!#KO-##7%}LQq&d=3P&QD2INXswEO)OC;OD!tS%+FIW<zhg9274f}pAks>2Lg}?BUFYNOdhajf{KAKH&l)vN(&;H"
    "1T(duPI0egTPcHJcJ}2<;^OS8D{73D?6f7E?%xfYwAEjiE9d*i+TsV<`**fKcYeTGuD$4~)Eaf`CF#3udqQ3R-*nv7ZkkiQ;OVAK4Cz5}_r4=+"
    "P&fc`FoJ*V5RkhM#`6{0yMNY9NjP7vYubL0JR=&P8R7T+Ac7T5o&(B%ZsHE+b0V34_KeRyZY2F6J`b9HJ_c04&ww2$9+CMpd*;lqtlR!gdk1Fh"
    "f--o8UcGz>bmkY)?WHTff<$Du0Hr_<SJ?(-=<I?rOr96q_yAI4yRdHhD-gq15~%(1nKNH}w?GYy6$Xlc7^xCasZyA(T9|V>V2tfRO}oEtFNtrd"
    "s`?SsVfmzd;XJv0(e>Wn@BWJ3rGM@IrCLpp(*ykZ<=cQtRIXe;oDNiC$NTlmhrkuf+u=%>k-ckEnwM?IU{h?zkjPM+Si%5IkqkEaKyEUSQIe6$"
    "kXg)-pU04rpUwaP<z(m="
)
LOWER = Vocabulary(["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"])
UPPER = Vocabulary([*LOWER.tokens[:5], *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"])
SMALL = Vocabulary(["<pad>", "|", "a", "b"])
EVERYTHING = {"beam_width": 10**6, "beam_prune_logp": -math.inf, "token_min_logp": -math.inf, "num_results": 10**6}


def arpa(sentences, order=3):
    """A model of some sentences in ARPA text, with arbitrary discounts and back-off weights."""
    counts = [Counter() for _ in range(order)]
    for sentence in sentences:
        words = ["<s>", *sentence.split(), "</s>"]
        for length, start in itertools.product(range(1, order + 1), range(len(words))):
            if start + length <= len(words):
                counts[length - 1][tuple(words[start : start + length])] += 1
    lines = ["\\data\\", *(f"ngram {i + 1}={len(grams) + (i == 0)}" for i, grams in enumerate(counts))]
    for i, grams in enumerate(counts):
        lines += ["", f"\\{i + 1}-grams:", *(["-2.5\t<unk>\t0"] if i == 0 else [])]
        for gram, count in sorted(grams.items()):
            total = sum(counts[0].values()) - counts[0]["<s>",] if i == 0 else counts[i - 1][gram[:-1]]
            log10 = -99 if gram == ("<s>",) else math.log10(0.7 * count / total)
            backoff = "" if i == order - 1 or gram[-1] == "</s>" else f"\t{-0.1 * (i + 1) - 0.05 * len(gram[0]):.4f}"
            lines.append(f"{log10:.6f}\t{' '.join(gram)}{backoff}")
    return "\n".join([*lines, "", "\\end\\", ""])


@pytest.fixture
def arpa_path(tmp_path):
    path = tmp_path / "toy.arpa"
    path.write_text(arpa(SENTENCES))
    return path


@pytest.fixture
def binary_path(tmp_path):
    path = tmp_path / "toy.bin"
    path.write_bytes(zlib.decompress(base64.b85decode(BINARY)))
    return path


def without_kenlm(monkeypatch):
    monkeypatch.setitem(sys.modules, "kenlm", None)


def score(lm, text, boundary=True):
    state, total = lm.begin(boundary), 0.0
    for word in text.split():
        log_prob, state = lm.score(state, word)
        total += log_prob
    return total + (lm.score_end(state) if boundary else 0.0)


TEXTS = [*SENTENCES, "", "mat", "the the the", "the zebra sat on a zebra mat", "zebra", "is on the mat a dog is"]


class TestModels:
    @pytest.mark.parametrize("order", [1, 2, 3, 4])
    @pytest.mark.parametrize("boundary", [True, False])
    def test_the_arpa_reader_is_kenlm(self, tmp_path, order, boundary):
        kenlm = peer("kenlm")
        path = tmp_path / "toy.arpa"
        path.write_text(arpa(SENTENCES, order))
        if order == 1:
            # kenlm reads no unigram models.
            lm = ArpaLanguageModel(path)
            assert score(lm, "cat dog", boundary) == pytest.approx(
                sum(lm.score((), word)[0] for word in ("cat", "dog", *["</s>"][:boundary]))
            )
            return
        theirs = kenlm.Model(str(path))
        for lm in (ArpaLanguageModel(path), KenLMLanguageModel(path)):
            for text in TEXTS:
                expected = theirs.score(text, bos=boundary, eos=boundary) * math.log(10)
                assert score(lm, text, boundary) == pytest.approx(expected, abs=1e-4)

    def test_files_as_text_gzip_and_binary(self, arpa_path, binary_path, tmp_path, monkeypatch):
        peer("kenlm")
        zipped = tmp_path / "toy.arpa.gz"
        zipped.write_bytes(gzip.compress(arpa_path.read_bytes()))
        models = [load_language_model(path) for path in (arpa_path, zipped, binary_path)]
        assert all(isinstance(lm, KenLMLanguageModel) for lm in models)
        without_kenlm(monkeypatch)
        models += [load_language_model(path) for path in (arpa_path, zipped)]
        assert all(isinstance(lm, ArpaLanguageModel) for lm in models[3:])
        for lm in models:
            assert lm.unigrams == set(" ".join(SENTENCES).split())
            assert "cat" in lm
            assert "zebra" not in lm
            assert "<unk>" not in lm
            for text in TEXTS:
                assert score(lm, text) == pytest.approx(score(models[0], text), abs=1e-4)

    def test_scoring_leaves_the_state(self, arpa_path):
        peer("kenlm")
        for lm in (ArpaLanguageModel(arpa_path), KenLMLanguageModel(arpa_path)):
            state = lm.begin()
            first = lm.score(state, "the")
            lm.score(state, "a")
            assert lm.score(state, "the") == first

    def test_states_hold_no_more_than_the_model_looks_back(self, arpa_path):
        lm = ArpaLanguageModel(arpa_path)
        state = lm.begin()
        for word in ["the", "cat", "sat", "on", "the"]:
            state = lm.score(state, word)[1]
        assert state == ("on", "the")

    def test_a_model_without_unk(self, tmp_path):
        path = tmp_path / "no.arpa"
        path.write_text("\\data\\\nngram 1=3\n\n\\1-grams:\n-1 <s> 0\n-0.5 </s>\n-0.25 a -0.5\n\n\\end\\\n")
        lm = ArpaLanguageModel(path)
        assert lm.score((), "b")[0] == pytest.approx(-100 * math.log(10))
        assert lm.unigrams == {"a"}

    def test_a_binary_without_its_words_is_refused(self, binary_path):
        peer("kenlm")
        data = binary_path.read_bytes()
        binary_path.write_bytes(data[: data.rfind(b"<unk>")])
        with pytest.raises(CheckpointError, match=r"expected an n-gram model .* in .*toy\.bin, got Cannot read model"):
            load_language_model(binary_path)

    def test_binaries_need_kenlm(self, binary_path, monkeypatch):
        without_kenlm(monkeypatch)
        message = r"needs the package kenlm, which is not installed; run: pip install 'phonograph\[lm\]'"
        with pytest.raises(MissingExtraError, match=f"reading KenLM binaries {message}"):
            load_language_model(binary_path)
        with pytest.raises(MissingExtraError, match=f"this language model {message}"):
            KenLMLanguageModel(binary_path)

    def test_missing_files_are_refused(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"cannot read .*none\.arpa: No such file or directory; check its name"):
            load_language_model(tmp_path / "none.arpa")

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (b"", r"a file without \\end\\"),
            (b"hello\n", r"a file without \\end\\"),
            (b"\\data\\\n\\1-grams:\n-1 a\n", r"a file without \\end\\"),
            (b"\\data\\\n\\1-grams:\nx a\n\\end\\", "the line b'x a'"),
            (b"\\data\\\n\\1-grams:\n-1 \xff\n\\end\\", r"the line b'-1 \\xff'"),
            (b"\\data\\\n\\2-grams:\n-1 a\n\\end\\", "the line b'-1 a' among 2-grams"),
            # mtime: names of tests must not depend on the time
            (gzip.compress(b"\\data\\\n\\1-grams:\n" + b"-1 a\n" * 99, mtime=0)[:-9], "an unreadable file"),
        ],
    )
    def test_damaged_files_are_refused(self, tmp_path, text, reason, monkeypatch):
        path = tmp_path / "bad.arpa"
        path.write_bytes(text)
        message = rf"expected an n-gram model \(ARPA or KenLM binary\) in .*bad\.arpa, got {reason}.*; fetch it again"
        with pytest.raises(CheckpointError, match=message):
            ArpaLanguageModel(path)
        without_kenlm(monkeypatch)
        with pytest.raises(CheckpointError, match=message):
            load_language_model(path)

    def test_what_kenlm_refuses_is_refused_in_one_line(self, arpa_path):
        peer("kenlm")
        arpa_path.write_text(arpa_path.read_text().replace("ngram 2=", "ngram 2=9"))
        with pytest.raises(
            CheckpointError, match=r"expected an n-gram model .* in .*toy\.arpa, got .*; fetch it again"
        ) as caught:
            load_language_model(arpa_path)
        assert "\n" not in str(caught.value)


def random_log_probs(*shape, seed=0, scale=2.0):
    logits = torch.tensor(np.random.default_rng(seed).normal(size=shape) * scale, dtype=torch.float32)
    return torch.log_softmax(logits, -1)


def spoken(text, vocabulary, doubts=None, confidence=0.9):
    """Clear log-probabilities of a text, a blank after each character; `doubts` has characters almost as likely, by index."""
    rows = []
    for index, letter in enumerate(text):
        row = torch.full((len(vocabulary.tokens),), (1 - confidence) / len(vocabulary.tokens))
        row[vocabulary.id_of_surface[letter]] += confidence
        if doubts and index in doubts:
            row[vocabulary.id_of_surface[letter]] = 0.5
            row[vocabulary.id_of_surface[doubts[index]]] = 0.4
        silence = torch.full((len(vocabulary.tokens),), (1 - confidence) / len(vocabulary.tokens))
        silence[vocabulary.blank] += confidence
        rows += [row, silence]
    return torch.stack(rows).log()


class ToyModel:
    """Any object with the methods is a language model; this one prefers words that start otherwise than the last one did."""

    unigrams = None

    def __init__(self, known):
        self.known = known

    def begin(self, sentence_start=True):
        return "b" if sentence_start else ""

    def score(self, state, word):
        return -1.0 - len(word) / 2 - 2.0 * word.startswith(state or "?"), word[0]

    def score_end(self, state):
        return -0.25 if state == "a" else -1.75

    def __contains__(self, word):
        return word in self.known


def defined_score(text, acoustic, options, known):
    """The score of a text as the documentation of the options has it."""
    total, words = acoustic, text.split()
    if options.lm is not None:
        total += options.alpha * score(options.lm, text, options.lm_score_boundary) + options.beta * len(words)
    hot = {word for phrase in options.hotwords for word in phrase.split()}
    total += options.unk_score_offset * sum(1 for word in words if known is not None and word not in known | hot)
    for phrase, weight in options.hotwords.items():
        total += weight * len(re.findall(rf"(?=(?:^| ){phrase}(?: |$))", text))
    return total


FUSIONS = {
    "lm": {"lm": ToyModel({"a", "b", "ab"}), "alpha": 0.7, "beta": 0.3},
    "piece": {"lm": ToyModel({"a", "b", "ab"}), "lm_score_boundary": False},
    "unigrams": {"unigrams": ["a", "ab", "bab"], "unk_score_offset": -3.0},
    "hotwords": {"hotwords": {"ab": 2.0, "a": -1.0, "b a": 3.0, "a b": 1.0, "bb": 0.5}},
    "all": {
        "lm": ToyModel({"b"}),
        "unigrams": ["a", "ab"],
        "hotwords": {"ba": 2.5},
        "unk_score_offset": -1.0,
    },
    "unlisted": {"lm": ToyModel({"b"}), "hotwords": {"ba": 2.5}},
}


class TestFusion:
    @pytest.mark.parametrize("name", FUSIONS)
    @pytest.mark.parametrize("seed", range(3))
    def test_scores_are_as_defined(self, name, seed):
        options = BeamOptions(**FUSIONS[name], **EVERYTHING)
        log_probs = random_log_probs(6, 4, seed=seed)
        acoustic = {h.text: h.score for h in CTCDecoder(SMALL, BeamOptions(**EVERYTHING)).decode(log_probs)}
        known = set(options.unigrams) if options.unigrams else options.lm.known if options.lm else None
        expected = {text: defined_score(text, value, options, known) for text, value in acoustic.items()}
        found = CTCDecoder(SMALL, options).decode(log_probs)
        assert {h.text: h.score for h in found} == pytest.approx(expected, abs=1e-6)
        assert {h.text: h.acoustic_score for h in found} == pytest.approx(acoustic, abs=1e-9)
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        if options.lm is not None:
            lm_scores = {text: score(options.lm, text, options.lm_score_boundary) for text in acoustic}
            assert {h.text: h.lm_score for h in found} == pytest.approx(lm_scores, abs=1e-9)

    @pytest.mark.parametrize("name", FUSIONS)
    def test_scores_of_all_extensions_are_those_of_each(self, name):
        fusion = WordFusion(SMALL, FusionOptions(**FUSIONS[name]))
        rng = np.random.default_rng(0)
        for _ in range(30):
            state = fusion.begin()
            for _ in range(8):
                tokens = [2, 3] + [1] * bool(state.word)
                each = [fusion.extended(state, token) for token in tokens]
                assert fusion.extended_scores(state)[tokens] == pytest.approx([s.words_score + s.partial_score for s in each])
                state = each[rng.integers(len(each))]

    def test_a_language_model_decides_what_is_unclear(self, arpa_path):
        log_probs = spoken("the cat sat", LOWER, doubts={4: "m"})
        log_probs[8:10] = spoken("m", LOWER, doubts={0: "c"})
        assert CTCDecoder(LOWER).decode(log_probs)[0].text == "the mat sat"
        options = BeamOptions(lm=load_language_model(arpa_path), beam_width=20, num_results=2)
        found = CTCDecoder(LOWER, options).decode(log_probs)
        assert [h.text for h in found] == ["the cat sat", "the mat sat"]
        assert found[0].acoustic_score < found[1].acoustic_score

    def test_unigrams_keep_words_to_the_list(self):
        log_probs = spoken("the bat", LOWER, doubts={4: "c"})
        for unigrams in (["the", "cat"], {"THE", "CAT"}):
            assert CTCDecoder(LOWER, BeamOptions(unigrams=unigrams)).decode(log_probs)[0].text == "the cat"
        assert CTCDecoder(LOWER, BeamOptions(unigrams=["the", "bat"])).decode(log_probs)[0].text == "the bat"

    def test_a_hotword_is_found_in_any_case_and_a_clear_word_stays(self):
        log_probs = spoken("AND MYLA SAID", UPPER, doubts={5: "I"})
        assert CTCDecoder(UPPER).decode(log_probs)[0].text == "AND MYLA SAID"
        assert CTCDecoder(UPPER, BeamOptions(hotwords={"mila": 2.0})).decode(log_probs)[0].text == "AND MILA SAID"
        assert CTCDecoder(UPPER, BeamOptions(hotwords={"SAND": 3.0})).decode(log_probs)[0].text == "AND MYLA SAID"

    def test_a_hotword_in_the_making_survives_a_narrow_beam(self):
        log_probs = spoken("myla", LOWER, doubts={1: "i", 0: "n"}, confidence=0.97)
        options = {"beam_width": 2, "unk_score_offset": 0.0}
        assert CTCDecoder(LOWER, BeamOptions(hotwords={"nila": 4.0}, **options)).decode(log_probs)[0].text == "nila"
        fusion = WordFusion(LOWER, FusionOptions(hotwords={"nila": 4.0}))
        state, shares = fusion.begin(), []
        for letter in "nilk":
            state = fusion.extended(state, LOWER.id_of_surface[letter])
            shares.append(state.partial_score)
        assert shares == [1.0, 2.0, 3.0, 0.0]

    @pytest.mark.parametrize("hotwords", [{"nila": 4.0, "nil": 1.5}, {"nil": 1.5, "nila": 4.0}])
    def test_a_common_start_counts_for_the_hotword_that_gives_most(self, hotwords):
        fusion = WordFusion(LOWER, FusionOptions(hotwords=hotwords))
        assert fusion.extended(fusion.begin(), LOWER.id_of_surface["n"]).partial_score == 1.0

    def test_hotwords_need_not_be_among_the_unigrams(self):
        log_probs = spoken("the myla", LOWER)
        options = BeamOptions(unigrams=["the"], hotwords={"myla": 1.0}, num_results=1)
        assert CTCDecoder(LOWER, options).decode(log_probs)[0].text == "the myla"

    def test_tokens_of_several_letters_are_spelled_like_the_rest(self):
        vocabulary = Vocabulary(["<pad>", "|", "s", "ch", "u", "h", "ö", "n"])
        ids = [2, 0, 3, 0, 6, 0, 7]
        log_probs = torch.full((7, 8), 0.02)
        log_probs[range(7), ids] = 0.4
        log_probs[4, 4] = 0.45
        log_probs = log_probs.log()
        assert CTCDecoder(vocabulary).decode(log_probs)[0].text == "schun"
        assert CTCDecoder(vocabulary, BeamOptions(hotwords={"schön": 3.0})).decode(log_probs)[0].text == "schön"
        fusion = WordFusion(vocabulary, FusionOptions(unigrams=["schön", "uhu", "nn"]))
        assert np.flatnonzero(fusion.extended_scores(fusion.begin()) == 0).tolist() == [2, 4, 7]
        state = fusion.extended(fusion.begin(), 2)
        assert np.flatnonzero(fusion.extended_scores(state)[2:] == 0).tolist() == [1]

    def test_the_case_of_the_language_model_can_be_given(self, arpa_path):
        lm = load_language_model(arpa_path)
        log_probs = spoken("THE DOG", UPPER)
        upper = CTCDecoder(UPPER, BeamOptions(lm=lm, lm_case="lower")).decode(log_probs)[0]
        lower = CTCDecoder(LOWER, BeamOptions(lm=lm)).decode(log_probs)[0]
        assert (upper.text, lower.text) == ("THE DOG", "the dog")
        assert upper.score == lower.score
        assert upper.lm_score == pytest.approx(score(lm, "the dog"))

    def test_a_language_model_of_another_alphabet_is_refused(self, arpa_path, tmp_path):
        lm = load_language_model(arpa_path)
        message = (
            r"expected a language model in the vocabulary's characters \('ABCDEFGHIJKLMNOPQRSTUVWXYZ\), got one of which these "
            r"spell 0% of 8 words, not for example 'a'; pass lm_case='lower'"
        )
        with pytest.raises(ConfigError, match=message):
            CTCDecoder(UPPER, BeamOptions(lm=lm))
        greek = tmp_path / "greek.arpa"
        greek.write_text(arpa(["η γάτα και το σκύλος", "the σκύλος"]))
        with pytest.raises(
            ConfigError, match=r"spell 17% of 6 words, not for example .*; use one of the same language and alphabet"
        ):
            CTCDecoder(LOWER, BeamOptions(lm=load_language_model(greek)))

    def test_some_words_of_other_alphabets_are_no_fault(self, tmp_path):
        path = tmp_path / "mixed.arpa"
        path.write_text(arpa(["the cat sat on the 猫"]))
        options = BeamOptions(lm=load_language_model(path))
        assert CTCDecoder(LOWER, options).decode(spoken("the cat", LOWER))[0].text == "the cat"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"unigrams": []}, "expected unigrams with words, got none; leave it out or pass another"),
            ({"unigrams": ["猫", "犬"]}, "expected unigrams in the vocabulary's characters .* spell 0% of 2 words"),
            (
                {"hotwords": {"r2d2": 1.0}},
                "expected hotwords in the vocabulary's characters, got 'r2d2'; spell it as it is spoken",
            ),
            ({"hotwords": {" ": 1.0}}, "expected hotwords in the vocabulary's characters, got ''"),
        ],
    )
    def test_words_that_cannot_be_spelled_are_refused(self, options, message):
        with pytest.raises(ConfigError, match=message):
            CTCDecoder(LOWER, BeamOptions(**options))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lm_case": "title"}, "expected lm_case 'lower', 'upper' or None, got 'title'; pass one of these"),
            ({"alpha": math.nan}, "expected a finite number as alpha, got nan; pass another"),
            ({"unk_score_offset": -math.inf}, "expected a finite number as unk_score_offset, got -inf; pass another"),
            ({"hotwords": {"cat": math.inf}}, "expected a finite number as hotword 'cat', got inf; pass another"),
        ],
    )
    def test_impossible_options_are_refused(self, options, message):
        with pytest.raises(ConfigError, match=message):
            FusionOptions(**options)

    def test_a_vocabulary_without_words_is_refused(self):
        vocabulary = Vocabulary(["<pad>", "a"], word_delimiter=None)
        with pytest.raises(
            ConfigError, match="expected a vocabulary with a word delimiter for a language model, unigrams or hot"
        ):
            CTCDecoder(vocabulary, BeamOptions(unigrams=["a"]))


def test_kenlm_is_loaded_only_for_language_models():
    code = "import sys, phonograph.decoding.ctc; assert 'kenlm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
