"""CTC decoding: from log-probabilities of tokens for each frame to the text, greedily or by prefix beam search.

    (tokens,) = greedy(log_probs, blank=0)                                    # TokenSpan after TokenSpan
    decoder = CTCDecoder(vocabulary, BeamOptions(beam_width=100, lm=load_language_model("4-gram.arpa")))
    best = decoder.decode(log_probs)[0]                                       # best.text, best.tokens, best.score

A path is one token per frame; its text is what is left after runs of one token become one and blanks go (Graves et al. 2006).
Greedy takes the best path. The beam search adds up all paths of a text, and fuses word scores (Hannun et al. 2014). Knows no
model.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt
import torch

from phonograph.decoding.language_model import FusionOptions, FusionState, WordFusion
from phonograph.decoding.vocabulary import LogProbs, TokenSpan, Vocabulary, as_array, mean_over_runs
from phonograph.errors import ConfigError

__all__ = ["BeamOptions", "BestPath", "CTCDecoder", "Hypothesis", "best_path", "collapse", "greedy"]

Array: TypeAlias = npt.NDArray[np.float64]
_Chain: TypeAlias = Union[tuple["_Chain", int, int], None]  # noqa: UP007 (a value, on Python 3.10)
"""The chain up to the token before, and the first and last + 1 frame of a token."""


@dataclass(frozen=True, eq=False)
class BestPath:
    """The likeliest token of each frame, (batch, time), and its probability.

    Frames don't depend on one another, so paths of consecutive chunks, joined along time, are the path of the whole.
    """

    token_ids: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]

    @staticmethod
    def joined(paths: "Sequence[BestPath]") -> "BestPath":
        """Consecutive chunks as one."""
        return BestPath(
            np.concatenate([path.token_ids for path in paths], axis=1),
            np.concatenate([path.probabilities for path in paths], axis=1),
        )


def best_path(log_probs: LogProbs) -> BestPath:
    """The likeliest token of each frame of log-probabilities (batch, time, vocabulary) or (time, vocabulary)."""
    log_probs = torch.as_tensor(log_probs)
    batch = log_probs[None] if log_probs.dim() == 2 else log_probs
    values, token_ids = batch.detach().max(dim=-1)
    return BestPath(token_ids.cpu().numpy(), as_array(values.float().exp()))


def collapse(path: BestPath, lengths: Sequence[int] | npt.ArrayLike | None = None, blank: int = 0) -> list[list[TokenSpan]]:
    """Runs of one token become one, and blanks go.

    Args:
        path: of a batch.
        lengths: true frames of each item; None where all are.
        blank: id of the CTC blank.

    Returns:
        The tokens of each item in order, special tokens other than the blank among them.
    """
    frames = path.token_ids.shape[1]
    ends = np.full(len(path.token_ids), frames) if lengths is None else np.asarray(lengths)
    batch = []
    for token_ids, probabilities, length in zip(path.token_ids, path.probabilities, ends, strict=True):
        runs = mean_over_runs(token_ids[:length], probabilities[:length])
        kept = token_ids[runs[0]] != blank
        columns = [token_ids[runs[0]][kept], *(column[kept] for column in runs)]
        batch.append([TokenSpan(*span) for span in zip(*(column.tolist() for column in columns), strict=True)])
    return batch


def greedy(log_probs: LogProbs, lengths: Sequence[int] | npt.ArrayLike | None = None, blank: int = 0) -> list[list[TokenSpan]]:
    """The tokens of the best path, with their frames and confidence.

    Args:
        log_probs: (batch, time, vocabulary), or (time, vocabulary) for a batch of one.
        lengths: true frames of each item; None where all are.
        blank: id of the CTC blank.

    Returns:
        The tokens of each item; `align.words_from_tokens` makes words of them.
    """
    return collapse(best_path(log_probs), lengths, blank)


@dataclass(frozen=True, kw_only=True)
class BeamOptions(FusionOptions):
    """How far a beam search looks, and what decides besides the acoustics; the rest is in `FusionOptions`.

    Args:
        beam_width: prefixes kept from frame to frame.
        beam_prune_logp: prefixes this much below the best are dropped.
        token_min_logp: tokens below this are not tried in a frame, but the best always is.
        num_results: hypotheses returned at most.

    Raises:
        ConfigError: a width or number below 1, a threshold above 0, or what `FusionOptions` refuses.
    """

    beam_width: int = 100
    beam_prune_logp: float = -10.0
    token_min_logp: float = -5.0
    num_results: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beam_width", "num_results"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of at least 1, got {getattr(self, name)}; raise it")
        for name in ("beam_prune_logp", "token_min_logp"):
            if not getattr(self, name) <= 0:
                raise ConfigError(f"expected {name} of at most 0, got {getattr(self, name)}; pass a logarithm such as -10")


@dataclass(frozen=True)
class Hypothesis:
    """A text and its scores, all natural logarithms.

    Attributes:
        text: words with single spaces.
        tokens: with word delimiters; their frames are those of the likeliest path of the text.
        acoustic_score: of all paths of the text together.
        lm_score: ln P(text) by the language model, unweighted; 0 without one.
        score: what hypotheses are ranked by (`FusionOptions` says how).
    """

    text: str
    tokens: tuple[TokenSpan, ...]
    acoustic_score: float
    lm_score: float
    score: float


class CTCDecoder:
    """Prefix beam search.

    Special tokens are silent: their probability counts as the blank's. Word delimiters at the ends, and repeated ones, are
    no part of the text, so all paths with the same words add up.

    Args:
        vocabulary: the model's tokens.
        options: widths, language model, unigrams, hotwords.

    Raises:
        ConfigError: a language model, unigrams or hotwords that the vocabulary can't spell, or that delimits no words.
    """

    def __init__(self, vocabulary: Vocabulary, options: BeamOptions | None = None) -> None:
        self.vocabulary = vocabulary
        self.options = options or BeamOptions()
        self._fusion = None if self.options.is_empty else WordFusion(vocabulary, self.options)
        self._audible_ids = np.setdiff1d(np.arange(len(vocabulary.tokens)), vocabulary.silent_ids)

    def decode(self, log_probs: LogProbs) -> list[Hypothesis]:
        """The best texts, best first; at least one, which may be empty.

        Args:
            log_probs: (time, vocabulary); cut at the true length, for padding would be decoded too.

        Raises:
            ConfigError: another number of tokens than the vocabulary's.
        """
        self.vocabulary.check_width(log_probs)
        emissions = as_array(log_probs)
        beams = _first_beams(self._fusion, self.vocabulary.delimiter_id)
        for time, emission in enumerate(emissions):
            beams = self._step(beams, emission.astype(np.float64), time)
        return self._ranked(beams, emissions)

    def _step(self, beams: "_Beams", emission: Array, time: int) -> "_Beams":
        blank = self.vocabulary.blank
        emission[blank] = np.logaddexp.reduce(emission[self.vocabulary.silent_ids])
        audible = emission[self._audible_ids]
        threshold = min(self.options.token_min_logp, max(emission[blank], audible.max(initial=-math.inf)))
        moves = _Moves.of(beams, self._audible_ids[audible >= threshold], self.vocabulary)
        sums = _advanced(np.logaddexp, beams.sums, emission, moves, blank)
        best = _advanced(np.maximum, beams.best, emission, moves, blank)

        staying, extending = np.logaddexp(sums.blank, sums.token), sums.extended
        if self._fusion is not None:
            staying = staying + beams.word_scores
            rows = [self._fusion.extended_scores(prefix.known_words) for prefix in beams.prefixes]
            extending = extending + np.array(rows)[:, moves.token_ids]
        stay, row, column = self._kept(staying, extending)
        return self._next_beams(beams, moves, sums, best, (stay, row, column), time)

    def _kept(self, staying: Array, extending: Array) -> tuple[npt.NDArray[np.intp], ...]:
        """Rows of the prefixes that go on, then row and column of the extensions that do."""
        scores = np.concatenate([staying, extending.ravel()])
        kept = np.flatnonzero(scores >= max(scores.max() + self.options.beam_prune_logp, np.finfo(np.float64).min))
        if len(kept) > self.options.beam_width:
            kept = kept[np.argpartition(-scores[kept], self.options.beam_width - 1)[: self.options.beam_width]]
        extensions = kept[kept >= len(staying)] - len(staying)
        return (kept[kept < len(staying)], *np.divmod(extensions, max(extending.shape[1], 1)))

    def _next_beams(
        self, beams: "_Beams", moves: "_Moves", sums: "_Scores", best: "_Scores", kept: tuple[Any, ...], time: int
    ) -> "_Beams":
        stay, row, column = kept
        tokens = moves.token_ids[column]
        spoken = [beams.spoken(i, time) for i in range(len(beams.prefixes))]
        entered = dict(zip(moves.children[best.entered].tolist(), moves.parents[best.entered].tolist(), strict=True))

        def chain_before(parent: int, token_id: int) -> _Chain:
            return beams.closed[parent] if moves.last[parent] == token_id else spoken[parent]

        prefixes, closed, opened = [], [], []
        for i in stay.tolist():
            prefixes.append(beams.prefixes[i])
            closed.append(spoken[i])
            opened.append((chain_before(entered[i], moves.last[i]), time) if i in entered else beams.opened[i])
        for i, token_id in zip(row.tolist(), tokens.tolist(), strict=True):
            prefixes.append(beams.prefixes[i].child(token_id, self._fusion))
            closed.append(None)
            opened.append((chain_before(i, token_id), time))
        _forget(beams.prefixes, set(prefixes))
        return _Beams(prefixes, sums.of(stay, row, column), best.of(stay, row, column), closed, opened)

    def _ranked(self, beams: "_Beams", emissions: npt.NDArray[np.float32]) -> list[Hypothesis]:
        by_text: dict[str, tuple[float, int]] = {}
        acoustic = np.logaddexp(*beams.sums).tolist()
        likeliest = np.maximum(*beams.best)
        for i, prefix in enumerate(beams.prefixes):
            text = "".join(self.vocabulary.surfaces[token_id] for token_id in prefix.token_ids()).strip()
            score, chosen = by_text.get(text, (-math.inf, i))
            by_text[text] = float(np.logaddexp(score, acoustic[i])), i if likeliest[i] > likeliest[chosen] else chosen
        scored = []
        for text, (score, i) in by_text.items():
            lm_score, words_score = 0.0, 0.0
            if self._fusion is not None:
                lm_score, words_score = self._fusion.finish(beams.prefixes[i].known_words)
            scored.append((score + words_score, text, i, score, lm_score))
        scored.sort(key=lambda item: -item[0])
        return [
            Hypothesis(text, self._tokens(beams, i, emissions), score, lm_score, total)
            for total, text, i, score, lm_score in scored[: self.options.num_results]
        ]

    def _tokens(self, beams: "_Beams", index: int, emissions: npt.NDArray[np.float32]) -> tuple[TokenSpan, ...]:
        token_ids = beams.prefixes[index].token_ids()
        chain = beams.spoken(index, len(emissions))
        spans = []
        for token_id in reversed(token_ids):
            assert chain is not None
            chain, start, end = chain
            spans.append(TokenSpan(token_id, start, end, float(np.exp(emissions[start:end, token_id]).mean())))
        while spans and spans[0].token_id == self.vocabulary.delimiter_id:
            del spans[0]
        return tuple(reversed(spans))


class _Prefix:
    """A node of the tree of prefixes, so that each prefix is one object."""

    __slots__ = ("children", "parent", "token_id", "words")

    def __init__(self, token_id: int, parent: "_Prefix | None", words: FusionState | None) -> None:
        self.token_id = token_id
        self.parent = parent
        self.words = words
        self.children: dict[int, _Prefix] = {}

    @property
    def known_words(self) -> FusionState:
        assert self.words is not None
        return self.words

    def child(self, token_id: int, fusion: WordFusion | None) -> "_Prefix":
        known = self.children.get(token_id)
        if known is None:
            words = None if fusion is None else fusion.extended(self.known_words, token_id)
            known = self.children[token_id] = _Prefix(token_id, self, words)
        return known

    def token_ids(self) -> list[int]:
        """Tokens from the first on; the root has none."""
        found = []
        prefix = self
        while prefix.parent is not None:
            found.append(prefix.token_id)
            prefix = prefix.parent
        return found[::-1]


def _forget(prefixes: list[_Prefix], alive: set[_Prefix]) -> None:
    """Cut off those that nothing alive descends from, so that the tree stays small on long recordings."""
    for prefix in prefixes:
        if prefix not in alive and prefix.words is not None:
            prefix.words.scores = None
        dead = prefix
        while dead not in alive and not dead.children and dead.parent is not None:
            dead.parent.children.pop(dead.token_id, None)
            dead = dead.parent


@dataclass
class _Beams:
    """The prefixes alive, and of each the log-probabilities of its paths that end in blank, and in its last token.

    `sums` is over all paths, `best` of the likeliest; `closed` has the spans of the likeliest path that ends in blank, `opened`
    those before the last token, and its first frame, of the likeliest that ends in that token.
    """

    prefixes: list[_Prefix]
    sums: tuple[Array, Array]
    best: tuple[Array, Array]
    closed: list[_Chain]
    opened: list[tuple[_Chain, int]]

    @property
    def word_scores(self) -> Array:
        states = [prefix.known_words for prefix in self.prefixes]
        return np.array([state.words_score + state.partial_score for state in states])

    def spoken(self, index: int, time: int) -> _Chain:
        """Spans of the likeliest path before the frame `time`."""
        blank, token = self.best
        return self.closed[index] if blank[index] >= token[index] else (*self.opened[index], time)


def _first_beams(fusion: WordFusion | None, delimiter_id: int | None) -> _Beams:
    # The root counts as ending in a delimiter, so that one at the start changes nothing.
    root = _Prefix(-1 if delimiter_id is None else delimiter_id, None, None if fusion is None else fusion.begin())
    scores = (np.zeros(1), np.full(1, -math.inf))
    return _Beams([root], scores, scores, [None], [(None, 0)])


@dataclass
class _Moves:
    """How prefixes may go on in a frame, and which of them are others' extensions."""

    token_ids: npt.NDArray[np.intp]
    last: npt.NDArray[np.intp]
    repeats: npt.NDArray[np.bool_]
    at_delimiter: npt.NDArray[np.bool_]
    children: npt.NDArray[np.intp]
    parents: npt.NDArray[np.intp]
    columns: npt.NDArray[np.intp]

    @staticmethod
    def of(beams: _Beams, token_ids: npt.NDArray[np.intp], vocabulary: Vocabulary) -> "_Moves":
        last = np.array([prefix.token_id for prefix in beams.prefixes])
        row_of = {prefix: row for row, prefix in enumerate(beams.prefixes)}
        parents = np.array([row_of.get(prefix.parent, -1) if prefix.parent else -1 for prefix in beams.prefixes])
        column_of = np.full(len(vocabulary.tokens), -1)
        column_of[token_ids] = np.arange(len(token_ids))
        columns = column_of[last]
        children = np.flatnonzero((parents >= 0) & (columns >= 0))
        at_delimiter = last == (-2 if vocabulary.delimiter_id is None else vocabulary.delimiter_id)
        repeats = token_ids == last[:, None]
        return _Moves(token_ids, last, repeats, at_delimiter, children, parents[children], columns[children])


@dataclass
class _Scores:
    """Of each prefix, its paths that end in blank and in its last token; of its extensions (prefixes, tokens) the latter.

    `entered` says, for each of the moves' children, whether its parent's paths did more than its own.
    """

    blank: Array
    token: Array
    extended: Array
    entered: npt.NDArray[np.bool_]

    def of(self, stay: Any, row: Any, column: Any) -> tuple[Array, Array]:
        blank = np.concatenate([self.blank[stay], np.full(len(row), -math.inf)])
        return blank, np.concatenate([self.token[stay], self.extended[row, column]])


def _advanced(
    add: Callable[[Any, Any], Array], scores: tuple[Array, Array], emission: Array, moves: _Moves, blank: int
) -> _Scores:
    """One frame: `add` joins paths, logaddexp for all, maximum for the likeliest."""
    after_blank, after_token = scores
    total = add(after_blank, after_token)
    # A repeat is a new token only after a blank; a delimiter after a delimiter never is.
    repeated = np.where(moves.at_delimiter, -math.inf, after_blank)
    extended = np.where(moves.repeats, repeated[:, None], total[:, None]) + emission[moves.token_ids]
    token = np.where(moves.at_delimiter, total, after_token) + emission[moves.last]
    into = extended[moves.parents, moves.columns]
    entered = into > token[moves.children]
    token[moves.children] = add(token[moves.children], into)
    extended[moves.parents, moves.columns] = -math.inf
    return _Scores(total + emission[blank], token, extended, entered)
