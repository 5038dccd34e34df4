"""N-gram language models, and what they, word lists and hotwords add to a beam search.

    lm = load_language_model("4-gram.arpa")     # or .arpa.gz, or a KenLM binary
    lm.score(lm.begin(), "HELLO")               # natural logarithm of the probability, and the state after the word

Anything with the methods of `LanguageModel` works. Files are read by `kenlm` where it is installed (extra `[lm]`). That package
comes as C++ source only, so for machines without a compiler there is `ArpaLanguageModel`: the back-off arithmetic of ARPA files
in Python, with the same numbers, for models of some million n-grams at most. `WordFusion` is the part of the score of a prefix
that depends on its words; it knows no acoustics.
"""

import gzip
import math
import mmap
import os
import re
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import numpy.typing as npt

from phonograph.decoding.vocabulary import Vocabulary
from phonograph.errors import CheckpointError, ConfigError, MissingExtraError

__all__ = [
    "ArpaLanguageModel",
    "FusionOptions",
    "KenLMLanguageModel",
    "LanguageModel",
    "WordFusion",
    "load_language_model",
]

_BEGIN, _END, _UNKNOWN = "<s>", "</s>", "<unk>"
_LN_10 = math.log(10)
_UNKNOWN_LOG10 = -100.0
"""For an unknown word where the model has no <unk>, as KenLM has it."""
_KENLM_MAGIC = b"mmap lm http://kheafield.com"
_GZIP_MAGIC = b"\x1f\x8b"
_LEAST_SPELLABLE = 0.5
_CACHED_PREFIXES = 1 << 16


class LanguageModel(Protocol):
    """Probabilities of words, each given those before it. States are values: scoring a word leaves the state as it was."""

    @property
    def unigrams(self) -> Collection[str] | None:
        """All words known, without <s>, </s> and <unk>; None where they can't be listed."""

    def begin(self, sentence_start: bool = True) -> Any:
        """The state at the start of a sentence, or with nothing known of what came before."""

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """Natural logarithm of P(word | state), and the state after the word."""

    def score_end(self, state: Any) -> float:
        """Natural logarithm of the probability that the sentence ends here."""

    def __contains__(self, word: str) -> bool:
        """Whether the word is known."""


def load_language_model(path: str | os.PathLike[str]) -> LanguageModel:
    """Read an n-gram model: ARPA text, also gzipped, or a KenLM binary.

    Raises:
        CheckpointError: the file is missing or damaged.
        MissingExtraError: a KenLM binary, and `kenlm` is not installed.
    """
    with _open_bytes(path) as file:
        binary = file.read(len(_KENLM_MAGIC)) == _KENLM_MAGIC
    try:
        import kenlm  # noqa: F401
    except ImportError as error:
        if binary:
            raise MissingExtraError("reading KenLM binaries", "kenlm", "lm") from error
        return ArpaLanguageModel(path)
    return KenLMLanguageModel(path)


class KenLMLanguageModel:
    """A model read by `kenlm`.

    Raises:
        CheckpointError: the file is missing or damaged.
        MissingExtraError: `kenlm` is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import kenlm
        except ImportError as error:
            raise MissingExtraError("this language model", "kenlm", "lm") from error
        self.unigrams = _unigrams_of(path)
        config = kenlm.Config()
        config.show_progress = False
        config.arpa_complain = kenlm.ARPALoadComplain.NONE
        try:
            self._model = kenlm.Model(os.fspath(path), config)
        except (OSError, RuntimeError) as error:
            raise _damaged(path, " ".join(str(error).split())) from error
        self._new_state = kenlm.State

    def begin(self, sentence_start: bool = True) -> Any:
        """See `LanguageModel`."""
        state = self._new_state()
        if sentence_start:
            self._model.BeginSentenceWrite(state)
        else:
            self._model.NullContextWrite(state)
        return state

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """See `LanguageModel`."""
        after = self._new_state()
        return self._model.BaseScore(state, word, after) * _LN_10, after

    def score_end(self, state: Any) -> float:
        """See `LanguageModel`."""
        return self.score(state, _END)[0]

    def __contains__(self, word: str) -> bool:
        return word in self._model


class ArpaLanguageModel:
    """A model in ARPA text, held in dictionaries. Back-off as in Katz 1987; states are tuples of words.

    Raises:
        CheckpointError: the file is missing, damaged or of another format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._log10: dict[tuple[str, ...], float] = {}
        self._backoff_log10: dict[tuple[str, ...], float] = {}
        self.order = 1
        for order, words, log10, backoff in _arpa_entries(path):
            self.order = order
            self._log10[words] = log10
            if backoff:
                self._backoff_log10[words] = backoff
        self.unigrams = frozenset(key[0] for key in self._log10 if len(key) == 1 and key[0] not in (_BEGIN, _END, _UNKNOWN))

    def begin(self, sentence_start: bool = True) -> tuple[str, ...]:
        """See `LanguageModel`."""
        return (_BEGIN,) if sentence_start else ()

    def score(self, state: tuple[str, ...], word: str) -> tuple[float, tuple[str, ...]]:
        """See `LanguageModel`."""
        known = word if word in self else _UNKNOWN
        backoff = 0.0
        context = state
        while (*context, known) not in self._log10 and context:
            backoff += self._backoff_log10.get(context, 0.0)
            context = context[1:]
        log10 = self._log10.get((*context, known), _UNKNOWN_LOG10)
        after = (*state, known)
        return (log10 + backoff) * _LN_10, after[max(len(after) - self.order + 1, 0) :]

    def score_end(self, state: tuple[str, ...]) -> float:
        """See `LanguageModel`."""
        return self.score(state, _END)[0]

    def __contains__(self, word: str) -> bool:
        return (word,) in self._log10 and word != _UNKNOWN


def _damaged(path: str | os.PathLike[str], reason: str) -> CheckpointError:
    name = os.fspath(path)
    return CheckpointError(f"expected an n-gram model (ARPA or KenLM binary) in {name}, got {reason}; fetch it again")


def _open_bytes(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        with open(path, "rb") as file:
            zipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        return cast(BinaryIO, gzip.open(path)) if zipped else open(path, "rb")
    except OSError as error:
        raise CheckpointError(f"cannot read {os.fspath(path)}: {error.strerror}; check its name and permissions") from error


def _arpa_entries(path: str | os.PathLike[str]) -> Iterator[tuple[int, tuple[str, ...], float, float]]:
    """Order, words, log10 probability and log10 back-off weight of each n-gram."""
    order = 0
    with _open_bytes(path) as file:
        for line in _lines(file, path):
            if line.startswith(b"\\"):
                if line == b"\\end\\":
                    return
                heading = re.fullmatch(rb"\\(\d+)-grams:", line)
                order = int(heading[1]) if heading else order
            elif order and line:
                # Words may hold Unicode spaces; split() of bytes knows those of ASCII only.
                fields = line.split()
                try:
                    words = tuple(word.decode() for word in fields[1 : order + 1])
                    log10, backoff = float(fields[0]), float(fields[order + 1]) if len(fields) > order + 1 else 0.0
                except ValueError as error:
                    raise _damaged(path, f"the line {line[:60]!r}") from error
                if len(words) < order:
                    raise _damaged(path, f"the line {line[:60]!r} among {order}-grams")
                yield order, words, log10, backoff
    raise _damaged(path, r"a file without \end\ ")


def _lines(file: BinaryIO, path: str | os.PathLike[str]) -> Iterator[bytes]:
    try:
        for line in file:
            yield line.strip()
    except (OSError, EOFError) as error:
        raise _damaged(path, f"an unreadable file ({error})") from error


def _unigrams_of(path: str | os.PathLike[str]) -> frozenset[str]:
    """The words of an ARPA file or a KenLM binary, which `kenlm` itself doesn't list."""
    with _open_bytes(path) as file:
        binary = file.read(len(_KENLM_MAGIC)) == _KENLM_MAGIC
    words: set[str] = set()
    if binary:
        # A binary ends with its words, each before a zero byte, <unk> first.
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            words.update(data[data.rfind(b"<unk>\0") :].decode(errors="replace").split("\0"))
    else:
        for order, gram, _, _ in _arpa_entries(path):
            if order > 1:
                break
            words.update(gram)
    return frozenset(words - {_BEGIN, _END, _UNKNOWN, ""})


@dataclass(frozen=True, kw_only=True)
class FusionOptions:
    """What besides the acoustics decides between texts.

    The score of a text is its acoustic log-probability, plus alpha x ln P(word | words before) + beta for each word, plus
    `unk_score_offset` for each unknown word, plus the bonuses of the hotwords in it. Names are pyctcdecode's; logarithms are
    natural.

    Args:
        lm: an n-gram model.
        lm_case: "lower" or "upper" if the model's words have that case and the vocabulary the other.
        alpha: weight of the language model.
        beta: bonus for each word, against the model's preference for few; only with a language model.
        lm_score_boundary: score the start and the end of the text as those of a sentence; not for pieces of one.
        unigrams: the known words, in either case if the vocabulary has but one; None takes those of the language model.
        unk_score_offset: added for each word that is not among the unigrams; -100 in effect forbids them.
        hotwords: words or phrases and their bonus, 5 to 10 being strong. Cases as for unigrams. The start of a hotword gets a
            share of the bonus in proportion to its characters, which is taken back when the word goes on differently.
            Hotwords count as known words; overlapping ones add up; negative bonuses fall due when the word is complete.

    Raises:
        ConfigError: another lm_case, or a weight that is not finite.
    """

    lm: LanguageModel | None = None
    lm_case: str | None = None
    alpha: float = 0.5
    beta: float = 1.5
    lm_score_boundary: bool = True
    unigrams: Collection[str] | None = None
    unk_score_offset: float = -10.0
    hotwords: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.lm_case not in (None, "lower", "upper"):
            raise ConfigError(f"expected lm_case 'lower', 'upper' or None, got {self.lm_case!r}; pass one of these")
        numbers = {"alpha": self.alpha, "beta": self.beta, "unk_score_offset": self.unk_score_offset}
        for name, value in {**numbers, **{f"hotword {word!r}": weight for word, weight in self.hotwords.items()}}.items():
            if not math.isfinite(value):
                raise ConfigError(f"expected a finite number as {name}, got {value}; pass another")

    @property
    def is_empty(self) -> bool:
        """Whether the acoustics alone decide."""
        return self.lm is None and self.unigrams is None and not self.hotwords


@dataclass(slots=True)
class FusionState:
    """The words of a prefix, as far as later words depend on them.

    `words_score` is that of the finished words, `partial_score` that of the word under way; `matches` are the starts of
    hotwords that the prefix ends with.
    """

    lm_state: Any
    lm_score: float
    words_score: float
    word: str
    matches: tuple[str, ...]
    partial_score: float
    scores: npt.NDArray[np.float64] | None = None
    completed: "FusionState | None" = None


class WordFusion:
    """Scores of prefixes by their words.

    Raises:
        ConfigError: the vocabulary separates no words, or can't spell the language model's words, the unigrams or a hotword.
    """

    def __init__(self, vocabulary: Vocabulary, options: FusionOptions) -> None:
        if vocabulary.delimiter_id is None:
            raise ConfigError(
                "expected a vocabulary with a word delimiter for a language model, unigrams or hotwords, got one without; "
                "decode without these"
            )
        self.vocabulary = vocabulary
        self.options = options
        self._delimiter_id = vocabulary.delimiter_id
        self._hotwords = _Hotwords(options.hotwords, vocabulary)
        self._lexicon = self._make_lexicon()

    def _make_lexicon(self) -> "_Lexicon | None":
        options, vocabulary = self.options, self.vocabulary
        known: Collection[str] | None = None
        if options.lm is not None and options.lm.unigrams is not None:
            known = options.lm.unigrams
            if options.lm_case is not None:
                known = {vocabulary.to_case(word) for word in known}
            _check_alphabet(known, vocabulary, "a language model")
        if options.unigrams is not None:
            known = {vocabulary.to_case(word) for word in options.unigrams}
            _check_alphabet(known, vocabulary, "unigrams")
        return None if known is None else _Lexicon({*known, *self._hotwords.words}, vocabulary)

    def begin(self) -> FusionState:
        """Before the first word."""
        lm = self.options.lm
        state = lm.begin(self.options.lm_score_boundary) if lm is not None else None
        return FusionState(state, 0.0, 0.0, "", ("",), 0.0)

    def extended(self, state: FusionState, token_id: int) -> FusionState:
        """After one more token."""
        if token_id == self._delimiter_id:
            return self._completed(state)
        surface = self.vocabulary.surfaces[token_id]
        matches = tuple(match + surface for match in state.matches if match + surface in self._hotwords.credit)
        word = state.word + surface
        partial = self._hotwords.credit_of(matches)
        if self._lexicon is not None and not self._lexicon.has_prefix(word):
            partial += self.options.unk_score_offset
        return FusionState(state.lm_state, state.lm_score, state.words_score, word, matches, partial)

    def extended_scores(self, state: FusionState) -> npt.NDArray[np.float64]:
        """(vocabulary,): the score after each token, of finished words and the word under way."""
        if state.scores is None:
            scores = np.zeros(len(self.vocabulary.tokens))
            for match in state.matches:
                for token_id, credit in self._hotwords.continuations(match):
                    scores[token_id] = max(scores[token_id], credit)
            if self._lexicon is not None:
                scores += np.where(self._lexicon.continuations(state.word), 0.0, self.options.unk_score_offset)
            scores += state.words_score
            if state.word:
                after = self._completed(state)
                scores[self._delimiter_id] = after.words_score + after.partial_score
            state.scores = scores
        return state.scores

    def finish(self, state: FusionState) -> tuple[float, float]:
        """Unweighted language model score of the whole text, and all that words add to its score."""
        options = self.options
        last = self._completed(state) if state.word else state
        if options.lm is None or not options.lm_score_boundary:
            return last.lm_score, last.words_score
        end = options.lm.score_end(last.lm_state)
        return last.lm_score + end, last.words_score + options.alpha * end

    def _completed(self, state: FusionState) -> FusionState:
        if state.completed is None:
            options, word = self.options, state.word
            lm_score, words_score, lm_state = state.lm_score, state.words_score, state.lm_state
            if options.lm is not None:
                log_prob, lm_state = options.lm.score(lm_state, self._as_in_lm(word))
                lm_score += log_prob
                words_score += options.alpha * log_prob + options.beta
            if not self._is_known(word):
                words_score += options.unk_score_offset
            words_score += sum(self._hotwords.weight.get(match, 0.0) for match in state.matches)
            phrases = (match + " " for match in state.matches)
            matches = (*(phrase for phrase in phrases if phrase in self._hotwords.credit), "")
            partial = self._hotwords.credit_of(matches)
            state.completed = FusionState(lm_state, lm_score, words_score, "", matches, partial)
        return state.completed

    def _as_in_lm(self, word: str) -> str:
        return word if self.options.lm_case is None else str(getattr(word, self.options.lm_case)())

    def _is_known(self, word: str) -> bool:
        if self._lexicon is not None:
            return word in self._lexicon
        lm = self.options.lm
        return lm is None or self._as_in_lm(word) in lm or word in self._hotwords.words


def _check_alphabet(words: Collection[str], vocabulary: Vocabulary, what: str) -> None:
    if not words:
        raise ConfigError(f"expected {what} with words, got none; leave it out or pass another")
    share = _share_spelled(words, vocabulary)
    if share >= _LEAST_SPELLABLE:
        return
    example = min(word for word in words if vocabulary.spell(word) is None)
    advice = "use one of the same language and alphabet"
    if _share_spelled([vocabulary.to_case(word) for word in words], vocabulary) >= _LEAST_SPELLABLE:
        advice = f"pass lm_case={ {'upper': 'lower', 'lower': 'upper'}[str(vocabulary.case)]!r}"
    letters = "".join(sorted(set(vocabulary.id_of_surface) - {" "}))
    letters = letters if len(letters) <= 40 else letters[:40] + "..."
    raise ConfigError(
        f"expected {what} in the vocabulary's characters ({letters}), got one of which these spell {share:.0%} of "
        f"{len(words)} words, not for example {example!r}; {advice}"
    )


def _share_spelled(words: Collection[str], vocabulary: Vocabulary) -> float:
    return sum(vocabulary.spell(word) is not None for word in words) / len(words)


class _Lexicon:
    """Known words, sorted, so that those with a common start are neighbours."""

    def __init__(self, words: Collection[str], vocabulary: Vocabulary) -> None:
        self._words = sorted(words)
        self._known = frozenset(words)
        self._vocabulary = vocabulary
        self._long = [(text, token_id) for text, token_id in vocabulary.id_of_surface.items() if len(text) > 1]
        self.has_prefix = lru_cache(_CACHED_PREFIXES)(self._has_prefix)
        self.continuations = lru_cache(_CACHED_PREFIXES)(self._continuations)

    def __contains__(self, word: str) -> bool:
        return word in self._known

    def _has_prefix(self, prefix: str) -> bool:
        index = bisect_left(self._words, prefix)
        return index < len(self._words) and self._words[index].startswith(prefix)

    def _continuations(self, prefix: str) -> npt.NDArray[np.bool_]:
        """(vocabulary,): whether some word starts with the prefix and the token."""
        allowed = np.zeros(len(self._vocabulary.tokens), dtype=bool)
        index = bisect_left(self._words, prefix)
        while index < len(self._words) and self._words[index].startswith(prefix):
            longer = self._words[index][: len(prefix) + 1]
            token_id = self._vocabulary.id_of_surface.get(longer[len(prefix) :])
            if token_id is not None:
                allowed[token_id] = True
            # On to the first word after all those that start so; the prefix itself, if a word, is passed singly.
            after = longer[:-1] + chr(ord(longer[-1]) + 1) if len(longer) > len(prefix) else ""
            index = bisect_left(self._words, after, index) if after else index + 1
        for text, token_id in self._long:
            allowed[token_id] = self.has_prefix(prefix + text)
        return allowed


class _Hotwords:
    """Hotwords in the vocabulary's case: `weight` of each, `credit` of each start of one."""

    def __init__(self, hotwords: Mapping[str, float], vocabulary: Vocabulary) -> None:
        self.weight = {" ".join(vocabulary.to_case(text).split()): weight for text, weight in hotwords.items()}
        self.credit: dict[str, float] = {"": 0.0}
        self.words = frozenset(word for text in self.weight for word in text.split())
        self._vocabulary = vocabulary
        self.continuations = lru_cache(_CACHED_PREFIXES)(self._continuations)
        for text, weight in self.weight.items():
            if not vocabulary.spell(text):
                raise ConfigError(f"expected hotwords in the vocabulary's characters, got {text!r}; spell it as it is spoken")
            for length in range(1, len(text) + 1):
                share = weight * length / len(text)
                self.credit[text[:length]] = max(self.credit.get(text[:length], 0.0), share)

    def credit_of(self, matches: tuple[str, ...]) -> float:
        return max((self.credit[match] for match in matches), default=0.0)

    def _continuations(self, match: str) -> list[tuple[int, float]]:
        surfaces = self._vocabulary.id_of_surface.items()
        return [(token_id, self.credit[match + text]) for text, token_id in surfaces if match + text in self.credit]
