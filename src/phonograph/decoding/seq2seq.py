"""Token sequences from a model that is stepped: greedy search, beam search and sampling.

It knows no model. Whatever offers the three methods of `StepModel` can be decoded, in four decisions: step the model, forbid
(`_constraints`), choose (`_Sampler`, `_BeamSearch`), rank (the finished hypotheses of each).

    options = GenerationOptions.from_settings(json.loads(Path("generation_config.json").read_text()))
    generated = generate(model, utterances=2, options=options)
    generated.hypotheses[0][0].ids  # the best of the first utterance, start token and end token included
    generated.padded  # (utterances * num_return_sequences, longest), as transformers gives it

Shapes: U utterances that are still being decoded, K rows of each (beams or samples), R = U * K, V vocabulary, L the longest
sequence allowed, N sequences asked for, C candidates of a beam step.

Beam search follows an utterance's K best unfinished hypotheses. A step scores their K * V continuations by the sum of log
probabilities and keeps the best C = K * (1 + number of end tokens), 2 * K at least. Of these, those among the first K that end
are finished, with the score sum / (tokens generated, end token included) ** length_penalty; the K best finished are remembered.
An utterance is done at max_length, where all K count as finished; or once the best unfinished score at its present length is no
better than the worst of K finished ones; with early_stopping=True already once K are finished, with "never" and a positive
length_penalty only when the best unfinished score would be no better at max_length.

Ids and scores are those of transformers 5 for the same settings, also where its choices are arguable:

- Equal scores are ordered as `torch.topk` and `torch.argmax` order them, which may differ between a CPU and a GPU.
- The start token counts in max_length and min_length, and in the history that no_repeat_ngram_size and repetition_penalty see.
- Log probabilities are normalised before tokens are forbidden and not again after; a forced token adds nothing to a score.
- Beams start equal, all but one with the score -1e9. Where few tokens are allowed such beams survive, and fill up the sequences
  asked for with scores near -1e9, sometimes equal ones. So it is where every continuation is forbidden, whatever finished.
- repetition_penalty works on logits in greedy search and sampling, on log probabilities in beam search.
- min_new_tokens takes the place of min_length, and max_new_tokens of max_length. A forbidden word that is just an end token is
  ignored. With forced_bos_token_id, begin_suppress_tokens applies to the token after it.
- Sampling with num_beams > 1 draws the C candidates without replacement, by accumulated scores that contain the temperature.

Where transformers gives no score, to greedy search and sampling, it is defined as for beams, on the model's own probabilities.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import Tensor

from phonograph.configuration import CheckedOptions, Field, Rule
from phonograph.errors import ConfigError

__all__ = ["Generated", "GenerationOptions", "Hypothesis", "OnTokens", "StepModel", "generate"]

OnTokens = Callable[[int, list[int]], None]
"""Called with an utterance's place in the batch and the tokens that are new and final, the start token not among them."""

_FORBIDDEN = float("-inf")
_NEVER_BEST = -1e9  # below any sum of log probabilities, above what is forbidden
# Reading what is finished makes a GPU wait for its queue to empty; steps past the end change nothing.
_STEPS_BETWEEN_CHECKS = {"cpu": 1}
_STEPS_BETWEEN_CHECKS_ELSEWHERE = 8


class StepModel(Protocol):
    """What the loop needs of a model. Its rows are utterance-major: row u * K + k is beam (or sample) k of utterance u.

    K is `GenerationOptions.rows_per_utterance` and stays the same; the utterances become fewer. The order of calls is step,
    reorder (beam search only), select (only when utterances have finished), step, ...; at most `total_length` - 1 steps.
    """

    def step(self, tokens: Tensor) -> Tensor:
        """Advance each row by one step: its last token (rows,) int64 -> the logits of what follows, (rows, vocabulary).

        The first call gets the start token in every row. The logits may be of any floating dtype and may live in a buffer
        that the next step overwrites; the loop never writes to them.
        """

    def reorder(self, rows: Tensor) -> None:
        """Let row i continue what row `rows[i]` was; (rows,) int64. `rows[i]` lies within the utterance of i."""

    def select(self, utterances: Tensor) -> None:
        """Keep the utterances at these places only, (fewer,) int64 and increasing, with their K rows each."""


# ---------------------------------------------------------------------------------------------------------------- options

_TOKEN = Rule("a token's id", minimum=0)
_TOKENS = Field(list[int], False, Rule("tokens' ids", minimum=0))
# Settings that would change the result and that this module doesn't have, with the values that leave them off.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "constraints": (),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "guidance_scale": (1,),
    "max_time": (),
    "min_p": (0,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "sequence_bias": (),
    "stop_strings": (),
    "top_h": (),
    "typical_p": (1,),
    "watermarking_config": (),
}


@dataclass(frozen=True)
class GenerationOptions(CheckedOptions):
    """How to decode; names, meanings and defaults are those of transformers' generation_config.json.

    What a file leaves out has the default here: 20 new tokens, top_k 50. Lengths count the start token. `seed` is ours alone:
    utterance u of a batch draws as it would by itself with seed + u; None takes a seed from torch's global generator.

    Raises:
        ConfigError: values that can't be decoded with; the message holds every fault.
    """

    num_beams: Annotated[int, Rule("hypotheses followed at a time; 1 for greedy search or plain sampling", minimum=1)] = 1
    num_return_sequences: Annotated[int, Rule("sequences returned for each utterance", minimum=1)] = 1
    max_length: Annotated[int, Rule("tokens of a sequence at most, with the start token", minimum=2)] = 21
    max_new_tokens: Annotated[int | None, Rule("the same without the start token; overrides max_length", minimum=1)] = None
    min_length: Annotated[int, Rule("tokens before which the end token is forbidden", minimum=0)] = 0
    min_new_tokens: Annotated[int | None, Rule("the same without the start token; overrides min_length", minimum=0)] = None
    length_penalty: Annotated[float, Rule("exponent of the length that beam scores are divided by")] = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram_size: Annotated[int, Rule("no sequence of so many tokens twice; 0 allows it", minimum=0)] = 0
    repetition_penalty: Annotated[float, Rule("factor against tokens that occurred; 1 is none", above=0)] = 1.0
    bad_words_ids: list[list[int]] | None = None
    suppress_tokens: Annotated[list[int] | None, Rule("tokens never generated", minimum=0)] = None
    begin_suppress_tokens: Annotated[list[int] | None, Rule("tokens not generated first", minimum=0)] = None
    forced_bos_token_id: Annotated[int | None, _TOKEN] = None
    forced_eos_token_id: int | list[int] | None = None
    do_sample: Annotated[bool, Rule("draw tokens rather than take the likeliest")] = False
    temperature: Annotated[float, Rule("divides the logits before drawing", above=0)] = 1.0
    top_k: Annotated[int, Rule("draw among so many likeliest tokens; 0 for all", minimum=0)] = 50
    top_p: Annotated[float, Rule("draw among the likeliest tokens of this total probability", minimum=0, maximum=1)] = 1.0
    seed: Annotated[int | None, Rule("of the draws", minimum=0)] = None
    decoder_start_token_id: Annotated[int, _TOKEN] = 2
    eos_token_id: int | list[int] | None = 2
    pad_token_id: Annotated[int, _TOKEN] = 1

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "GenerationOptions":
        """Options from what generation_config.json or config.json holds. Null means not set; other keys are ignored.

        Raises:
            ConfigError: a value breaks its rule, or a setting that would change the result is not supported here.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        unsupported = [
            f"{name}={given[name]!r} is not supported; leave it out"
            for name, off in _UNSUPPORTED.items()
            if name in given and given[name] not in off
        ]
        if unsupported:
            raise ConfigError("GenerationOptions: " + "; ".join(unsupported))
        return cls(**{field.name: given[field.name] for field in fields(cls) if field.name in given})

    @property
    def rows_per_utterance(self) -> int:
        """Rows that the model steps for each utterance: the beams, or the samples."""
        return self.num_beams if self.num_beams > 1 else self.num_return_sequences

    @property
    def total_length(self) -> int:
        """Tokens of a sequence at most, with the start token."""
        return self.max_length if self.max_new_tokens is None else 1 + self.max_new_tokens

    @property
    def eos_token_ids(self) -> list[int]:
        """The tokens that end a sequence; none when only the length does."""
        return _listed(self.eos_token_id)

    def _first_end(self) -> int:
        """Length from which a sequence may be ended."""
        return self.min_length if self.min_new_tokens is None else 1 + self.min_new_tokens

    def _forced(self, length: int) -> list[int]:
        """The tokens one of which must follow the first `length` of a sequence; none when it's free."""
        if length == self.total_length - 1 and self.forced_eos_token_id is not None:
            return _listed(self.forced_eos_token_id)
        return _listed(self.forced_bos_token_id) if length == 1 else []

    def _forbids_words(self) -> bool:
        """Whether other tokens than end tokens may be forbidden."""
        words = (self.bad_words_ids, self.suppress_tokens, self.begin_suppress_tokens, self.no_repeat_ngram_size)
        return self.do_sample or any(words) or (self.forced_bos_token_id, self.forced_eos_token_id) != (None, None)

    def _faults(self) -> list[str]:
        words = self.bad_words_ids or []
        listed = {"eos_token_id": self.eos_token_ids, "forced_eos_token_id": _listed(self.forced_eos_token_id)}
        listed |= {f"bad_words_ids[{place}]": word for place, word in enumerate(words)}
        faults = super()._faults() + [fault for name, value in listed.items() if (fault := _TOKENS.fault(name, value))]
        faults += [f"bad_words_ids[{place}] must hold a token" for place, word in enumerate(words) if word == []]
        if self.early_stopping not in (True, False, "never"):
            faults.append(f"early_stopping={self.early_stopping!r} must be true, false or 'never'")
        return faults

    def _relation_faults(self) -> list[str]:
        returned = f"num_return_sequences={self.num_return_sequences}"
        if self.num_beams == 1:
            if self.num_return_sequences > 1 and not self.do_sample:
                return [f"{returned}: greedy search finds one; set num_beams or do_sample"]
        elif self.num_return_sequences > self.num_beams:
            return [f"num_beams={self.num_beams}, {returned}: there must be as many beams as returned sequences"]
        return []

    def _check_vocabulary(self, size: int) -> None:
        single = (self.forced_bos_token_id, self.decoder_start_token_id, self.pad_token_id)
        listed = (self.eos_token_ids, _listed(self.forced_eos_token_id), self.suppress_tokens, self.begin_suppress_tokens)
        used = [token for token in single if token is not None]
        used += [token for tokens in (*listed, *(self.bad_words_ids or [])) for token in tokens or []]
        if outside := sorted({token for token in used if token >= size}):
            raise ConfigError(f"expected token ids below the vocabulary's {size}, got {outside}; use the model's own tokenizer")


def _listed(tokens: int | list[int] | None) -> list[int]:
    return [] if tokens is None else [tokens] if isinstance(tokens, int) else tokens


# ----------------------------------------------------------------------------------------------------------------- result


@dataclass(frozen=True)
class Hypothesis:
    """One generated sequence: its ids, start and end token included, and its score.

    The score is the sum of the tokens' log probabilities / (their number, start token excluded) ** length_penalty.
    """

    ids: list[int]
    score: float


@dataclass
class Generated:
    """N sequences for each of U utterances, the best first (samples: in the order drawn).

    Args:
        tokens: (U, N, longest) int64, padded with pad_token_id.
        lengths: (U, N) int64, start and end token included.
        scores: (U, N) float32, as in `Hypothesis`.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor

    @property
    def padded(self) -> Tensor:
        """(U * N, longest) int64, utterance by utterance, as transformers' generate returns it."""
        return self.tokens.flatten(0, 1)

    @property
    def hypotheses(self) -> list[list[Hypothesis]]:
        """By utterance, without padding."""
        rows = zip(self.tokens.tolist(), self.lengths.tolist(), self.scores.tolist(), strict=True)
        return [[Hypothesis(ids[:n], score) for ids, n, score in zip(*row, strict=True)] for row in rows]


# ----------------------------------------------------------------------------------------------------------------- forbid

_Constraint = Callable[[Tensor, Tensor], None]
"""Changes the scores (R, V) of what may follow the history (R, length), in place."""


def _constraints(options: GenerationOptions, device: torch.device) -> list[_Constraint]:
    """In transformers' order: where they meet, the later one wins."""
    found: list[_Constraint] = []
    if options.repetition_penalty != 1:
        found.append(_repetition_penalty(options.repetition_penalty))
    if options.no_repeat_ngram_size:
        found.append(_no_repeat_ngram(options.no_repeat_ngram_size))
    eos = options.eos_token_ids
    found += [
        _forbidden_word(torch.tensor(w, device=device)) for w in options.bad_words_ids or [] if w not in [[e] for e in eos]
    ]
    if eos:
        found.append(_forbid(torch.tensor(eos, device=device), lambda length: length < options._first_end()))
    if options.forced_bos_token_id is not None or options.forced_eos_token_id is not None:
        found.append(_force(options._forced))
    if options.suppress_tokens:
        found.append(_forbid(torch.tensor(options.suppress_tokens, device=device), lambda length: True))
    if options.begin_suppress_tokens:
        begin = 1 if options.forced_bos_token_id is None else 2
        found.append(_forbid(torch.tensor(options.begin_suppress_tokens, device=device), lambda length: length == begin))
    return found + (_warpers(options) if options.do_sample else [])


def _warpers(options: GenerationOptions) -> list[_Constraint]:
    """What narrows the distribution that is drawn from."""
    found: list[_Constraint] = []
    at_least = 1 if options.num_beams == 1 else 1 + max(1, len(options.eos_token_ids))
    if options.temperature != 1:
        found.append(_temperature(options.temperature))
    among = max(options.top_k, at_least) if options.top_k else None
    if among:
        found.append(_top_k(among))
    if options.top_p < 1:
        found.append(_top_p(options.top_p, among, at_least))
    return found


def _forbid(tokens: Tensor, at: Callable[[int], bool]) -> _Constraint:
    def forbid(scores: Tensor, history: Tensor) -> None:
        if at(history.shape[1]):
            scores.index_fill_(1, tokens, _FORBIDDEN)

    return forbid


def _force(forced: Callable[[int], list[int]]) -> _Constraint:
    def force(scores: Tensor, history: Tensor) -> None:
        if tokens := forced(history.shape[1]):
            scores.fill_(_FORBIDDEN)
            for token in tokens:
                scores[:, token] = 0

    return force


def _forbidden_word(word: Tensor) -> _Constraint:
    before = word.shape[0] - 1

    def forbid(scores: Tensor, history: Tensor) -> None:
        if history.shape[1] >= before:
            begun = (history[:, history.shape[1] - before :] == word[:before]).all(1, keepdim=True)
            last = word[before:].expand(scores.shape[0], 1)
            scores.scatter_(1, last, scores.gather(1, last).masked_fill(begun, _FORBIDDEN))

    return forbid


def _no_repeat_ngram(size: int) -> _Constraint:
    def forbid(scores: Tensor, history: Tensor) -> None:
        if history.shape[1] < size:
            return
        ngrams = history.unfold(1, size, 1)  # (R, places, size)
        again = (ngrams[..., :-1] == history[:, None, history.shape[1] - size + 1 :]).all(2)
        bound = torch.where(again, _FORBIDDEN, -_FORBIDDEN).to(scores)
        scores.scatter_reduce_(1, ngrams[..., -1], bound, "amin")

    return forbid


def _repetition_penalty(penalty: float) -> _Constraint:
    def penalise(scores: Tensor, history: Tensor) -> None:
        seen = scores.gather(1, history)
        scores.scatter_(1, history, torch.where(seen < 0, seen * penalty, seen / penalty))

    return penalise


def _temperature(temperature: float) -> _Constraint:
    def divide(scores: Tensor, history: Tensor) -> None:
        scores.div_(temperature)

    return divide


def _top_k(k: int) -> _Constraint:
    def narrow(scores: Tensor, history: Tensor) -> None:
        worst = scores.topk(min(k, scores.shape[1])).values[:, -1:]
        scores.masked_fill_(scores < worst, _FORBIDDEN)

    return narrow


def _top_p(p: float, among: int | None, at_least: int) -> _Constraint:
    def narrow(scores: Tensor, history: Tensor) -> None:
        vocabulary = scores.shape[1]
        descending, order = scores.topk(min(among or vocabulary, vocabulary))
        outside = descending.flip(1).softmax(1).cumsum(1).flip(1) <= 1 - p  # of what is left from here on
        outside[:, :at_least] = False
        scores.scatter_(1, order, descending.masked_fill(outside, _FORBIDDEN))

    return narrow


# ----------------------------------------------------------------------------------------------------------------- choose


class _Draws:
    """Uniform random numbers, each utterance's from a generator of its own, so that a batch changes nothing."""

    def __init__(self, utterances: int, seed: int | None, device: torch.device) -> None:
        first = int(torch.randint(2**31, ())) if seed is None else seed
        self._generators = [torch.Generator(device).manual_seed(first + place) for place in range(utterances)]

    def uniform(self, count: int) -> Tensor:
        """(U, count) float64 in (0, 1]."""
        drawn = [torch.rand(count, generator=g, device=g.device, dtype=torch.float64) for g in self._generators]
        return 1 - torch.stack(drawn)

    def select(self, places: list[int]) -> None:
        self._generators = [self._generators[place] for place in places]


@dataclass
class _Sequences:
    """K sequences of each utterance: tokens (U, K, L), and lengths, scores (sums or final), ended, (U, K) each."""

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    ended: Tensor

    @classmethod
    def new(cls, utterances: int, each: int, score: float, options: GenerationOptions, device: torch.device) -> "_Sequences":
        tokens = torch.full((utterances, each, options.total_length), options.pad_token_id, device=device)
        tokens[..., 0] = options.decoder_start_token_id
        lengths = torch.ones_like(tokens[..., 0])
        scores = torch.full_like(lengths, score, dtype=torch.float32)
        return cls(tokens, lengths, scores, torch.zeros_like(lengths, dtype=torch.bool))

    def select(self, utterances: Tensor) -> "_Sequences":
        return _Sequences(*(tensor[utterances] for tensor in vars(self).values()))

    def put(self, utterances: Tensor, others: "_Sequences") -> None:
        """Overwrite these utterances by the first K of others'."""
        for mine, other in zip(vars(self).values(), vars(others).values(), strict=True):
            mine[utterances] = other[:, : mine.shape[1]]


class _Search(ABC):
    """Follows K rows of each of U utterances, of which the first `length` tokens are chosen; `done` is (U,) bool."""

    def __init__(self, utterances: int, first_score: float, options: GenerationOptions, device: torch.device) -> None:
        self.length = 1
        self.done = torch.zeros(utterances, dtype=torch.bool, device=device)
        self._options = options
        self._rows = _Sequences.new(utterances, options.rows_per_utterance, first_score, options, device)
        self._eos = torch.tensor(options.eos_token_ids, dtype=torch.int64, device=device)
        self._draws = _Draws(utterances, options.seed, device) if options.do_sample else None

    @property
    def history(self) -> Tensor:
        """(R, length)."""
        return self._rows.tokens.flatten(0, 1)[:, : self.length]

    @property
    def last_step(self) -> bool:
        """Whether the next token is the last one allowed."""
        return self.length + 1 == self._options.total_length

    @abstractmethod
    def advance(self, logits: Tensor, constraints: list[_Constraint]) -> Tensor | None:
        """Choose one more token for each row, from logits (R, V). Gives the rows (R,) that the rows now continue, if others."""

    @abstractmethod
    def settled(self) -> tuple[Tensor, Tensor]:
        """The leading sequence of each utterance (U, L), and how many of its tokens no later step can change (U,)."""

    @abstractmethod
    def results(self) -> _Sequences:
        """The finished sequences, best first; meaningful where `done`."""

    def select(self, utterances: Tensor) -> None:
        """Keep these only."""
        self.done, self._rows = self.done[utterances], self._rows.select(utterances)
        if self._draws is not None:
            self._draws.select(utterances.tolist())

    def _ends(self, token: Tensor) -> Tensor:
        if self.last_step:
            return torch.ones_like(token, dtype=torch.bool)
        return (token[..., None] == self._eos).any(-1)


class _Sampler(_Search):
    """Greedy search and plain sampling: each row takes its likeliest token, or draws one, whatever the others do."""

    def __init__(self, utterances: int, options: GenerationOptions, device: torch.device) -> None:
        super().__init__(utterances, 0.0, options, device)

    def advance(self, logits: Tensor, constraints: list[_Constraint]) -> None:
        rows = self._rows
        scores = logits.to(torch.float32, copy=bool(constraints))
        for constrain in constraints:
            constrain(scores, self.history)
        token = self._choose(scores)  # (R, 1)
        if not self._options._forced(self.length):
            gain = logits.log_softmax(1, torch.float32).gather(1, token).view_as(rows.scores)
            rows.scores += gain.masked_fill(rows.ended, 0)
        token = token.view_as(rows.lengths).masked_fill(rows.ended, self._options.pad_token_id)
        rows.tokens[..., self.length] = token
        rows.lengths += ~rows.ended
        rows.ended |= self._ends(token)
        self.done = rows.ended.all(1)
        self.length += 1

    def _choose(self, scores: Tensor) -> Tensor:
        if self._draws is None:
            return scores.argmax(1, keepdim=True)
        reached = scores.softmax(1, torch.float64).cumsum(1)
        drawn = self._draws.uniform(self._rows.lengths.shape[1]).view(-1, 1)
        token: Tensor = torch.searchsorted(reached, drawn * reached[:, -1:])  # the first to reach it has some probability
        return token

    def settled(self) -> tuple[Tensor, Tensor]:
        return self._rows.tokens[:, 0], self._rows.lengths[:, 0]

    def results(self) -> _Sequences:
        rows = self._rows
        final = rows.scores / (rows.lengths - 1) ** self._options.length_penalty
        return _Sequences(rows.tokens, rows.lengths, final, rows.ended)


class _BeamSearch(_Search):
    """The K best unfinished hypotheses of each utterance (the rows), and the K best finished ones."""

    def __init__(self, utterances: int, options: GenerationOptions, device: torch.device) -> None:
        super().__init__(utterances, _NEVER_BEST, options, device)
        self._rows.scores[:, 0] = 0  # all start equal: one is enough
        self._finished = _Sequences.new(utterances, options.num_beams, _NEVER_BEST, options, device)
        self._rank = torch.arange(options.num_beams * max(2, 1 + len(options.eos_token_ids)), device=device)
        self._may_wait = device.type in _STEPS_BETWEEN_CHECKS

    def advance(self, logits: Tensor, constraints: list[_Constraint]) -> Tensor:
        scores = logits.log_softmax(1, torch.float32)
        for constrain in constraints:
            constrain(scores, self.history)
        score, parent, token = self._candidates(scores)
        ends, last_step = self._ends(token), self.last_step
        if not self._none_finishes(score, ends):
            self._finish(score, parent, token, ends)
        parent = self._go_on(score + ends * _NEVER_BEST, parent, token)
        self.length += 1
        self.done = torch.ones_like(self.done) if last_step else self.done | self._decided()
        first = torch.arange(parent.shape[0], device=parent.device)[:, None] * parent.shape[1]
        return (parent + first).flatten()

    def _candidates(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations, (U, C) each: sums of log probabilities, the beams they continue, and their tokens."""
        vocabulary = scores.shape[1]
        sums = (self._rows.scores[..., None] + scores.view(*self._rows.scores.shape, vocabulary)).flatten(1)  # (U, K * V)
        keys = sums
        if self._draws is not None:  # with Gumbel noise, the largest are a draw without replacement
            keys = sums - self._draws.uniform(sums.shape[1]).log().neg().log().to(torch.float32)
        index = keys.topk(min(self._rank.shape[0], sums.shape[1])).indices
        return sums.gather(1, index), index // vocabulary, index % vocabulary

    def _none_finishes(self, score: Tensor, ends: Tensor) -> bool:
        """Whether it's known that ranking can be left out. What is forbidden may leave nothing else than it ranks."""
        if not self._may_wait or self._options._forbids_words():
            return False
        return not bool(ends.any()) and bool(score.min() > _NEVER_BEST / 2)

    def _finish(self, score: Tensor, parent: Tensor, token: Tensor, ends: Tensor) -> None:
        """Rank the candidates that end among the finished hypotheses."""
        old, beams = self._finished, self._options.num_beams
        ends = ends & (self._rank[: ends.shape[1]] < beams)
        final = score / self.length**self._options.length_penalty + ~ends * _NEVER_BEST
        scores = torch.cat([old.scores, final], 1)
        best = scores.topk(beams).indices
        best = torch.where(self.done[:, None], self._rank[:beams], best)  # what is done stays, until it leaves

        def merged(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.cat([mine, theirs], 1).gather(1, best)

        source = merged(self._rank[:beams].expand_as(old.lengths), parent + beams)
        tokens = torch.cat([old.tokens, self._rows.tokens], 1).take_along_dim(source[..., None], 1)
        tokens[..., self.length] = merged(old.tokens[..., self.length], token)
        lengths = merged(old.lengths, torch.full_like(token, self.length + 1))
        self._finished = _Sequences(tokens, lengths, scores.gather(1, best), merged(old.ended, ends))

    def _go_on(self, score: Tensor, parent: Tensor, token: Tensor) -> Tensor:
        """The best candidates become the rows; gives the beams that they continue, (U, K)."""
        self._rows.scores, best = score.topk(self._options.num_beams)
        parent = parent.gather(1, best)
        self._rows.tokens = self._rows.tokens.take_along_dim(parent[..., None], 1)
        self._rows.tokens[..., self.length] = token.gather(1, best)
        return parent

    def _decided(self) -> Tensor:
        """(U,) bool: no unfinished hypothesis is expected to become one of the K best."""
        options = self._options
        longest = options.early_stopping == "never" and options.length_penalty > 0
        generated = (options.total_length if longest else self.length) - 1
        attainable = self._rows.scores[:, 0] / generated**options.length_penalty
        decided: Tensor = attainable <= self._finished.scores[:, -1]
        return decided | self._finished.ended.all(1) if options.early_stopping is True else decided

    def settled(self) -> tuple[Tensor, Tensor]:
        finished, running = self._finished, self._rows.tokens
        lead, place = running[:, :1], torch.arange(running.shape[2], device=running.device)
        rival = finished.ended & (finished.scores >= finished.scores[:, :1])  # the rest can't become the best
        agree = (running == lead).all(1) & (place < self.length)
        ended = (finished.tokens == lead) & (place < finished.lengths[..., None])
        agree &= (ended | ~rival[..., None]).all(1)
        common = agree.cumprod(1).sum(1)
        best = torch.where(self.done[:, None], finished.tokens[:, 0], running[:, 0])
        return best, torch.where(self.done, finished.lengths[:, 0], common)

    def results(self) -> _Sequences:
        return self._finished

    def select(self, utterances: Tensor) -> None:
        super().select(utterances)
        self._finished = self._finished.select(utterances)


# --------------------------------------------------------------------------------------------------------------- generate


@torch.no_grad()
def generate(
    model: StepModel,
    utterances: int,
    options: GenerationOptions,
    device: torch.device | str = "cpu",
    on_tokens: OnTokens | None = None,
) -> Generated:
    """Decode a batch.

    Args:
        model: at its beginning, with `options.rows_per_utterance` rows for each utterance.
        utterances: how many, at least 1.
        device: where the model wants its tokens and leaves its logits.
        on_tokens: called as soon as tokens of an utterance's best sequence are final. In greedy search and sampling that's
            each token at once; in beam search those that all beams and the best finished hypothesis have in common. What it
            was given in all is that sequence without its start token. Makes a GPU wait for each step.

    Raises:
        ConfigError: a token id beyond the model's vocabulary; or on_tokens for several samples of each utterance.
    """
    assert utterances > 0, utterances
    if on_tokens is not None and options.num_beams == 1 and options.num_return_sequences > 1:
        raise ConfigError(f"expected one sample at a time to report, got {options.num_return_sequences}; drop on_tokens")
    device = torch.device(device)
    search = (_BeamSearch if options.num_beams > 1 else _Sampler)(utterances, options, device)
    constraints = _constraints(options, device)
    output = _Sequences.new(utterances, options.num_return_sequences, 0.0, options, device)
    between = _STEPS_BETWEEN_CHECKS.get(device.type, _STEPS_BETWEEN_CHECKS_ELSEWHERE)
    alive = list(range(utterances))
    sent = [1] * utterances
    while alive:
        logits = model.step(search.history[:, -1].contiguous())
        if search.length == 1:
            options._check_vocabulary(logits.shape[1])
        last_step = search.last_step
        rows = search.advance(logits, constraints)
        if on_tokens is not None:
            _report(search, alive, sent, on_tokens)
        if rows is not None and not last_step:
            model.reorder(rows)
        if last_step or search.length % between == 0:
            alive = _retire(search, model, output, alive)
    longest = int(output.lengths.max())
    return Generated(output.tokens[..., :longest], output.lengths, output.scores)


def _report(search: _Search, alive: list[int], sent: list[int], on_tokens: OnTokens) -> None:
    tokens, counts = search.settled()
    for utterance, row, count in zip(alive, tokens.tolist(), counts.tolist(), strict=True):
        if count > sent[utterance]:
            on_tokens(utterance, row[sent[utterance] : count])
            sent[utterance] = count


def _retire(search: _Search, model: StepModel, output: _Sequences, alive: list[int]) -> list[int]:
    """Move finished utterances to the output; gives the rest."""
    done = search.done.tolist()
    if not any(done):
        return alive
    device = search.done.device
    leaving, staying = ([place for place, is_done in enumerate(done) if is_done is wanted] for wanted in (True, False))
    originals = torch.tensor([alive[place] for place in leaving], device=device)
    output.put(originals, search.results().select(torch.tensor(leaving, device=device)))
    if staying:
        places = torch.tensor(staying, device=device)
        search.select(places)
        model.select(places)
    return [alive[place] for place in staying]
