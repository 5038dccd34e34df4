"""When what was said was said: words and characters with times, from decoded tokens or from a text that is known.

    words_from_tokens(tokens, vocabulary, frame_seconds=0.02)                   # of what `ctc` decoded
    align_text(log_probs, "The text, as written.", vocabulary, frame_seconds=0.02)

`forced_align` finds the likeliest CTC path of given tokens (Viterbi over blank, token, blank, ..., as Graves et al. 2006 define
paths) for a whole batch at once. `WILDCARD` stands for sounds of unknown spelling. Knows no model.
"""

import itertools
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phonograph.decoding.transcript import Character, Word
from phonograph.decoding.vocabulary import LogProbs, TokenSpan, Vocabulary, as_array, mean_over_runs
from phonograph.errors import ConfigError

__all__ = ["WILDCARD", "Alignment", "align_text", "forced_align", "words_from_tokens"]

WILDCARD = -1
"""A target that any sound fits: it begins in a frame with the probability of the likeliest token other than the blank, and goes
on with that of the likeliest token, the blank included; of equally likely paths it takes the one where it ends first. So it
covers a word of several characters, but not the silence after it."""

_FLOOR = -1e4
"""Below this log-probabilities make no difference; -inf would leave targets that a model rules out without any path."""
_BLOCK_BYTES = 1 << 26
_SPOKEN_SIGNS = frozenset("%&@#+=\u00b1\u00d7\u00f7")
_PLAIN = {"\u2019": "'", "\u2018": "'", "\u02bc": "'"}


@dataclass(frozen=True)
class Alignment:
    """The likeliest path of some targets: the frames of each, in order, and the path's log-probability."""

    spans: tuple[TokenSpan, ...]
    score: float


def forced_align(
    log_probs: LogProbs,
    targets: Sequence[Sequence[int]],
    lengths: Sequence[int] | npt.ArrayLike | None = None,
    blank: int = 0,
) -> list[Alignment]:
    """Find the likeliest CTC path of each item's targets.

    Memory is bounded: beyond 64 MiB of steps, each batch's trellis is computed twice, from states kept at every so many frames.

    Args:
        log_probs: (batch, time, vocabulary).
        targets: token ids of each item, without blanks; `WILDCARD` for what has no token.
        lengths: true frames of each item; None where all are.
        blank: id of the CTC blank.

    Raises:
        ConfigError: an item's frames are too few for its targets, or a target is no token or the blank.
    """
    emissions = as_array(log_probs)
    frames = emissions.shape[1]
    ends = np.full(len(emissions), frames) if lengths is None else np.asarray(lengths)
    for index, (ids, length) in enumerate(zip(targets, ends.tolist(), strict=True)):
        _refuse_impossible(ids, length, emissions.shape[2], blank, f"item {index}")
    emissions = _with_wildcards(emissions, blank)
    trellis = _Trellis.of(targets, ends, emissions.shape[2], blank)
    states, scores = trellis.best_states(emissions)
    return [
        Alignment(tuple(trellis.spans(item, ids, states[item, :length], emissions[item])), scores[item])
        for item, (ids, length) in enumerate(zip(targets, ends.tolist(), strict=True))
    ]


def _refuse_impossible(ids: Sequence[int], length: int, num_tokens: int, blank: int, item: str) -> None:
    for token_id in ids:
        if token_id == blank or not (token_id == WILDCARD or 0 <= token_id < num_tokens):
            raise ConfigError(
                f"expected targets among the {num_tokens} tokens other than the blank, {blank}, got {token_id} in {item}; "
                "spell the text in this vocabulary"
            )
    repeats = sum(1 for one, next_one in itertools.pairwise(ids) if one == next_one != WILDCARD)
    if len(ids) + repeats > length:
        raise ConfigError(
            f"expected at least {len(ids) + repeats} frames for {len(ids)} tokens with {repeats} repeats, "
            f"got {length} in {item}; check that the text belongs to this audio"
        )


def _with_wildcards(emissions: npt.NDArray[np.float32], blank: int) -> npt.NDArray[np.float32]:
    """Two columns more: what a wildcard begins with, and what it goes on with."""
    audible = np.delete(emissions, blank, axis=2).max(axis=2, initial=-math.inf)
    columns = [emissions, audible[..., None], np.maximum(audible, emissions[..., blank])[..., None]]
    return np.concatenate(columns, axis=2).clip(min=_FLOOR)


@dataclass
class _Trellis:
    """States of each item: blank, first target, blank, second target, ..., blank; shorter items have idle states at the end.

    `begin` and `go_on` are the columns of flattened emissions (batch x vocabulary) that a state is entered and held with;
    `skip` is 0 where the blank before a target may be left out, else -inf.
    """

    begin: npt.NDArray[np.intp]
    go_on: npt.NDArray[np.intp]
    skip: npt.NDArray[np.float64]
    num_targets: npt.NDArray[np.intp]
    lengths: npt.NDArray[np.intp]

    @staticmethod
    def of(targets: Sequence[Sequence[int]], lengths: npt.NDArray[np.intp], width: int, blank: int) -> "_Trellis":
        num_targets = np.array([len(ids) for ids in targets], dtype=np.intp)
        labels = np.full((len(targets), 2 * int(num_targets.max(initial=0)) + 1), blank)
        for row, ids in zip(labels, targets, strict=True):
            row[1 : 2 * len(ids) : 2] = ids
        wild = labels == WILDCARD
        may_skip = np.zeros(labels.shape, dtype=bool)
        may_skip[:, 3::2] = (labels[:, 3::2] != labels[:, 1:-2:2]) | wild[:, 3::2]
        rows = np.arange(len(targets))[:, None] * width
        begin, go_on = (np.where(wild, width + column, labels) + rows for column in (-2, -1))
        return _Trellis(begin, go_on, np.where(may_skip, 0.0, -math.inf), num_targets, lengths)

    def best_states(self, emissions: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], list[float]]:
        """The state of each item in each frame (batch, time), and the log-probability of the path."""
        frames = emissions.shape[1]
        block = max(math.isqrt(frames), _BLOCK_BYTES // self.begin.size, 1)
        starts = range(0, frames, block)
        scores = np.full(self.begin.shape, -math.inf)
        # As if a blank had come before the first frame: what follows is the same, and frame 0 is like any other.
        scores[:, 0] = 0.0
        entries, steps = [], np.zeros((0, *self.begin.shape), dtype=np.int8)
        for start in starts:
            entries.append(scores)
            scores, steps = self._forward(scores, emissions, start, start + block)

        rows = np.arange(len(scores))
        last = 2 * self.num_targets
        before = np.maximum(last - 1, 0)
        state = np.where(scores[rows, last] >= scores[rows, before], last, before)
        final = scores[rows, state].tolist()
        states = np.zeros((len(rows), frames), dtype=np.int32)
        for start, entry in zip(reversed(starts), reversed(entries), strict=True):
            if start + block < frames:
                steps = self._forward(entry, emissions, start, start + block)[1]
            for frame in reversed(range(start, start + len(steps))):
                states[:, frame] = state
                state = state - np.where(frame < self.lengths, steps[frame - start, rows, state], 0)
        return states, final

    def _forward(
        self, scores: npt.NDArray[np.float64], emissions: npt.NDArray[np.float32], start: int, end: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int8]]:
        """Scores of the states after some frames, and how many states each came up in each frame: 0, 1 or 2."""
        end = min(end, emissions.shape[1])
        padded = np.full((len(scores), scores.shape[1] + 2), -math.inf)
        padded[:, 2:] = scores
        held, previous, before = padded[:, 2:], padded[:, 1:-1], padded[:, :-2]
        steps = np.empty((end - start, *scores.shape), dtype=np.int8)
        wild = not np.array_equal(self.begin, self.go_on)
        shortest = int(self.lengths.min(initial=end))
        for frame in range(start, end):
            emission = emissions[:, frame].ravel()
            begin = emission[self.begin]
            skipping = before + self.skip
            entering = np.maximum(previous, skipping) + begin
            holding = held + (emission[self.go_on] if wild else begin)
            moved = entering > holding
            np.multiply(moved, 1 + (skipping > previous), out=steps[frame - start], casting="unsafe")
            after = np.where(moved, entering, holding)
            held[...] = after if frame < shortest else np.where((frame < self.lengths)[:, None], after, held)
        return held.copy(), steps

    def spans(
        self, item: int, ids: Sequence[int], states: npt.NDArray[np.int32], emissions: npt.NDArray[np.float32]
    ) -> Iterator[TokenSpan]:
        width = emissions.shape[1]
        entered = np.diff(states, prepend=-1) != 0
        columns = np.where(entered, self.begin[item, states], self.go_on[item, states]) - item * width
        probabilities = np.exp(emissions[np.arange(len(states)), columns])
        for start, end, confidence in zip(*(column.tolist() for column in mean_over_runs(states, probabilities)), strict=True):
            if states[start] % 2:
                yield TokenSpan(ids[states[start] // 2], start, end, confidence)


def words_from_tokens(
    tokens: Iterable[TokenSpan], vocabulary: Vocabulary, frame_seconds: float, offset_seconds: float = 0.0
) -> list[Word]:
    """Words with their characters' times, from tokens as `ctc` gives them.

    A word's confidence is the mean of its characters'. Special tokens are left out.

    Args:
        tokens: tokens in order of time.
        vocabulary: what the tokens stand for.
        frame_seconds: from frame to frame, 0.02 for most Wav2Vec2 models.
        offset_seconds: when the first frame is.
    """
    words: list[list[Character]] = [[]]
    for token in tokens:
        surface = vocabulary.surfaces[token.token_id]
        if surface == " ":
            words.append([])
        elif surface:
            words[-1].append(_character(surface, [token], frame_seconds, offset_seconds))
    return [_word("".join(character.text for character in word), word) for word in words if word]


def align_text(
    log_probs: LogProbs, text: str, vocabulary: Vocabulary, frame_seconds: float, offset_seconds: float = 0.0
) -> list[Word]:
    """When each word of a text is spoken.

    Characters are looked up as written, in the other case, then without accents. Letters and digits that are still unknown, and
    signs that are spoken (%, &, currencies), become wildcards. Other signs are not aligned but stay in the words' texts; where
    they stand alone, in that of the word before, so that the words joined by spaces are the text, in Unicode's form NFC.

    Args:
        log_probs: (time, vocabulary), of nothing but this text.
        text: words between white space.
        vocabulary: what the columns stand for.
        frame_seconds: from frame to frame, 0.02 for most Wav2Vec2 models.
        offset_seconds: when the first frame is.

    Raises:
        ConfigError: no character to be spoken, too few frames for the text, or another number of tokens than the vocabulary's.
    """
    vocabulary.check_width(log_probs)
    spelled = _spelled(text, vocabulary)
    delimiter = [] if vocabulary.delimiter_id is None else [vocabulary.delimiter_id]
    targets: list[int] = []
    for word in spelled:
        targets += delimiter if targets else []
        targets += [token_id for _, ids in word.characters for token_id in ids]
    (alignment,) = forced_align(log_probs[None], [targets], blank=vocabulary.blank)
    spans = iter(alignment.spans)
    words = []
    for index, word in enumerate(spelled):
        if index and delimiter:
            next(spans)
        timed = [(written, [next(spans) for _ in ids]) for written, ids in word.characters]
        words.append(_word(word.text, [_character(written, own, frame_seconds, offset_seconds) for written, own in timed]))
    return words


@dataclass
class _Spelled:
    """A word as written, and the tokens of each of its characters that is spoken."""

    text: str
    characters: list[tuple[str, list[int]]]


def _spelled(text: str, vocabulary: Vocabulary) -> list[_Spelled]:
    words: list[_Spelled] = []
    silent: list[str] = []
    for written in unicodedata.normalize("NFC", text).split():
        characters = [(character, ids) for character in written if (ids := _token_ids(character, vocabulary))]
        if characters:
            words.append(_Spelled(" ".join([*silent, written]), characters))
            silent = []
        elif words:
            words[-1].text += f" {written}"
        else:
            silent.append(written)
    if not words:
        raise ConfigError(f"expected a text with at least one character to be spoken, got {text[:40]!r}; pass the words spoken")
    return words


def _token_ids(character: str, vocabulary: Vocabulary) -> list[int]:
    """What a written character sounds as; nothing for punctuation."""
    plain = _PLAIN.get(character, character)
    bare = "".join(part for part in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(part))
    for form in (plain, bare):
        for spelling in (form, form.lower(), form.upper()):
            if ids := vocabulary.spell(spelling):
                return ids
    category = unicodedata.category(character)
    return [WILDCARD] if category[0] in "LN" or category == "Sc" or character in _SPOKEN_SIGNS else []


def _character(text: str, spans: Sequence[TokenSpan], frame_seconds: float, offset_seconds: float) -> Character:
    # Times are rounded to microseconds, so that 3 x 0.02 is written as 0.06.
    start, end = (round(frame * frame_seconds + offset_seconds, 6) for frame in (spans[0].start_frame, spans[-1].end_frame))
    return Character(text, start, end, sum(span.confidence for span in spans) / len(spans))


def _word(text: str, characters: Sequence[Character]) -> Word:
    confidence = sum(character.confidence for character in characters) / len(characters)
    return Word(text, characters[0].start_seconds, characters[-1].end_seconds, confidence, tuple(characters))
