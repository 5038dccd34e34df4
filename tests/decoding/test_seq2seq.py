"""Decoding step by step: beside transformers' generate, by brute force, and what must not change the result."""

import itertools
import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import peer
from torch import Tensor

from phonograph.decoding import seq2seq
from phonograph.decoding.seq2seq import Generated, GenerationOptions, generate
from phonograph.errors import ConfigError

START, PAD, EOS = 2, 1, 2
STATES = 1009


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_table(utterances: int, vocabulary: int, seed: int, scale: float = 2.0) -> Tensor:
    return torch.randn(utterances, STATES, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


class TableModel:
    """What follows depends on the utterance and on all tokens before; wrong after a reorder or select that isn't followed."""

    def __init__(self, table: Tensor, rows_per_utterance: int) -> None:
        self.table, self.rows_per_utterance = table, rows_per_utterance
        self.utterance = torch.arange(table.shape[0]).repeat_interleave(rows_per_utterance)
        self.state = torch.zeros_like(self.utterance)
        self.rows_stepped: list[int] = []
        self.buffer = torch.empty(0)
        self.written = self.buffer

    def step(self, tokens: Tensor) -> Tensor:
        assert torch.equal(self.buffer, self.written), "the logits are the model's own"
        assert tokens.shape == self.state.shape
        self.rows_stepped.append(len(tokens))
        self.state = (self.state * 31 + tokens * 7 + 1) % STATES
        self.buffer = self.table[self.utterance, self.state]
        self.written = self.buffer.clone()
        return self.buffer

    def reorder(self, rows: Tensor) -> None:
        assert torch.equal(self.utterance[rows], self.utterance), "beams stay with their utterance"
        self.state = self.state[rows]

    def select(self, utterances: Tensor) -> None:
        rows = (utterances[:, None] * self.rows_per_utterance + torch.arange(self.rows_per_utterance)).flatten()
        self.state, self.utterance = self.state[rows], self.utterance[rows]


def decode(table: Tensor, options: GenerationOptions, **kwargs: Any) -> Generated:
    return generate(TableModel(table, options.rows_per_utterance), table.shape[0], options, **kwargs)


def log_probabilities(table: Tensor, ids: list[int]) -> list[float]:
    """Of each token after the start, by the table's one utterance."""
    state, found = 0, []
    for token, following in itertools.pairwise(ids):
        state = (state * 31 + token * 7 + 1) % STATES
        found.append(float(table[0, state].log_softmax(0)[following]))
    return found


def assert_same(one: Generated, other: Generated, tolerance: float = 0.0) -> None:
    assert [[h.ids for h in row] for row in one.hypotheses] == [[h.ids for h in row] for row in other.hypotheses]
    torch.testing.assert_close(one.scores, other.scores, rtol=tolerance, atol=tolerance)


def random_settings(chance: random.Random) -> dict[str, Any]:
    """Settings of a search that transformers has too, in all combinations."""
    beams = chance.choice([1, 2, 3, 4, 5])
    values: dict[str, Any] = {"num_beams": beams, "max_length": chance.choice([3, 6, 12, 20, 30])}
    values["length_penalty"] = chance.choice([1.0, 0.0, 0.5, 2.0, -1.0])
    values["early_stopping"] = chance.choice([True, False, "never"])
    values["num_return_sequences"] = chance.randint(1, beams)
    extra: dict[str, list[Any]] = {
        "no_repeat_ngram_size": [1, 2, 3],
        "min_length": [2, 5, 9],
        "min_new_tokens": [2, 5],
        "max_new_tokens": [4, 8],
        "forced_bos_token_id": [4, 7],
        "forced_eos_token_id": [2, 7, [2, 5]],
        "repetition_penalty": [0.8, 1.3, 2.0],
        "eos_token_id": [[2, 4], [2, 5], [9]],
        "bad_words_ids": [[[2], [3]], [[4, 5], [2, 6]], [[7, 8, 9], [4, 4]]],
        "suppress_tokens": [[5, 8]],
        "begin_suppress_tokens": [[6, 2]],
    }
    return values | {name: chance.choice(choices) for name, choices in extra.items() if chance.random() < 0.2}


# ------------------------------------------------------------------------------------------------ beside transformers


def speech2text(seed: int, vocabulary: int, scale: float, eos_bias: float) -> Any:
    """transformers' own model, small, its head such that some tokens are clearly likelier than others."""
    transformers = peer("transformers")
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "conv_channels": 16, "input_feat_per_channel": 8, "max_source_positions": 64}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_ffn_dim": 16, f"{side}_attention_heads": 2}
    config = transformers.Speech2TextConfig(vocab_size=vocabulary, init_std=0.3, tie_word_embeddings=False, **sizes)
    model = transformers.Speech2TextForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=scale)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(vocabulary))
    model.lm_head.bias.data[EOS] = eos_bias
    model.lm_head.bias.data[PAD] = -30  # a generated pad gets another position with transformers' cache than without
    return model


class WrappedModel:
    """transformers' model, stepped: each time over the whole sequence, without a cache."""

    def __init__(self, model: Any, features: Tensor, rows_per_utterance: int) -> None:
        self.model, self.rows_per_utterance = model, rows_per_utterance
        with torch.no_grad():
            self.encoded = model.get_encoder()(features)[0].repeat_interleave(rows_per_utterance, 0)
        self.prefix = torch.empty(len(self.encoded), 0, dtype=torch.int64)

    def step(self, tokens: Tensor) -> Tensor:
        self.prefix = torch.cat([self.prefix, tokens[:, None]], 1)
        logits: Tensor = self.model(encoder_outputs=(self.encoded,), decoder_input_ids=self.prefix, use_cache=False).logits
        return logits[:, -1]

    def reorder(self, rows: Tensor) -> None:
        self.prefix = self.prefix[rows]

    def select(self, utterances: Tensor) -> None:
        rows = (utterances[:, None] * self.rows_per_utterance + torch.arange(self.rows_per_utterance)).flatten()
        self.prefix, self.encoded = self.prefix[rows], self.encoded[rows]


def compare(model: Any, features: Tensor, values: dict[str, Any]) -> Generated:
    beams = values["num_beams"] > 1
    theirs = model.generate(features, return_dict_in_generate=True, output_scores=beams, **values)
    options = GenerationOptions.from_settings(values)
    ours = generate(WrappedModel(model, features, options.rows_per_utterance), len(features), options)
    assert ours.padded.tolist() == theirs.sequences.tolist(), values
    if beams:
        torch.testing.assert_close(ours.scores.flatten(), theirs.sequences_scores, rtol=1e-5, atol=1e-5)
    return ours


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("first", range(0, 80, 20))
def test_ids_and_scores_are_those_of_transformers(first: int) -> None:
    ended = several = 0
    for seed in range(first, first + 20):
        chance = random.Random(seed)
        model = speech2text(seed, chance.choice([16, 30, 50]), chance.choice([0.5, 1.0, 2.0]), chance.choice([0.0, 2.0, 4.0]))
        features = torch.randn(chance.choice([1, 2, 4]), 40, 8, generator=torch.Generator().manual_seed(seed))
        ours = compare(model, features, random_settings(chance))
        ended += len(ours.lengths.unique()) > 1
        several += ours.lengths.numel() > len(features)
    assert ended >= 4, "sequences should end at different times"
    assert several >= 5


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_where_few_or_no_tokens_are_allowed(early_stopping: bool | str) -> None:
    """Then scores of -1e9 decide, and their ties; whatever comes out is the same."""
    common = {"num_beams": 3, "num_return_sequences": 3, "early_stopping": early_stopping}
    features = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0))
    model = speech2text(0, 12, 1.0, 0.0)
    compare(model, features, {**common, "max_length": 30, "no_repeat_ngram_size": 1})
    compare(model, features, {**common, "max_length": 12, "eos_token_id": [2, 4], "forced_bos_token_id": 4})
    compare(model, features, {**common, "max_length": 2, "forced_bos_token_id": 4})


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0])
def test_when_it_is_never_early(length_penalty: float) -> None:
    values = {"num_beams": 3, "num_return_sequences": 3, "max_length": 30, "early_stopping": "never"}
    features = torch.randn(4, 40, 8, generator=torch.Generator().manual_seed(0))
    for seed in range(4):
        compare(speech2text(seed, 16, 1.0, 3.0), features, {**values, "length_penalty": length_penalty})


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_defaults_are_those_of_transformers() -> None:
    """An empty generation_config.json means the same in both."""
    config = peer("transformers").GenerationConfig()
    assert GenerationOptions.from_settings(config.to_dict()) == GenerationOptions()
    model = speech2text(3, 30, 1.0, 1.0)
    features = torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(3))
    theirs = model.generate(features)
    ours = generate(WrappedModel(model, features, 1), 3, GenerationOptions())
    assert ours.padded.tolist() == theirs.tolist()


# ------------------------------------------------------------------------------------------------------ by brute force


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("early_stopping", [False, "never"])
def test_enough_beams_find_the_best_of_all(length_penalty: float, early_stopping: bool | str) -> None:
    vocabulary, longest = 4, 5
    table = random_table(1, vocabulary, seed=5)
    free = [token for token in range(vocabulary) if token != EOS]
    everything = [
        [START, *body, EOS]
        for count in range(longest - 1)
        for body in itertools.product(free, repeat=count)
        if count < longest - 2
    ] + [[START, *body, last] for body in itertools.product(free, repeat=longest - 2) for last in range(vocabulary)]
    scored = [(sum(p) / len(p) ** length_penalty, ids) for ids in everything for p in [log_probabilities(table, ids)]]
    best = sorted(scored, reverse=True)[:3]
    options = GenerationOptions(
        num_beams=100,
        num_return_sequences=3,
        max_length=longest,
        length_penalty=length_penalty,
        early_stopping=early_stopping,  # type: ignore[arg-type]
    )
    found = decode(table, options).hypotheses[0]
    assert [h.ids for h in found] == [ids for _, ids in best]
    assert [h.score for h in found] == pytest.approx([score for score, _ in best], abs=1e-5)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_scores_are_the_models(num_beams: int) -> None:
    table = random_table(1, 12, seed=2)
    options = GenerationOptions(num_beams=num_beams, num_return_sequences=num_beams, length_penalty=0.7)
    found = decode(table, options).hypotheses[0]
    assert len(found) == num_beams
    for hypothesis in found:
        gains = log_probabilities(table, hypothesis.ids)
        assert hypothesis.score == pytest.approx(sum(gains) / len(gains) ** 0.7, abs=1e-5)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


# ------------------------------------------------------------------------------------------- what changes no result

SEARCHES = st.integers(0, 10_000).map(lambda seed: random_settings(random.Random(seed)))


def table_options(values: dict[str, Any], seed: int) -> tuple[Tensor, GenerationOptions]:
    values = {name: value for name, value in values.items() if name != "no_repeat_ngram_size" or value > 1}  # no dead ends
    table = random_table(4, 20, seed)
    table[..., EOS] += 2
    return table, GenerationOptions(**values)


@given(SEARCHES, st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_a_batch_changes_nothing(values: dict[str, Any], seed: int) -> None:
    table, options = table_options(values, seed)
    together = decode(table, options)
    for utterance in range(4):
        alone = decode(table[utterance : utterance + 1], options)
        assert [h.ids for h in together.hypotheses[utterance]] == [h.ids for h in alone.hypotheses[0]]
        torch.testing.assert_close(together.scores[utterance], alone.scores[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "early_stopping": True},
        {"num_beams": 2, "early_stopping": "never", "length_penalty": 0.3},
        {"do_sample": True, "seed": 1, "num_return_sequences": 2},
        {"do_sample": True, "seed": 1, "num_beams": 2, "length_penalty": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("between", [3, 8, 1000])
def test_when_finished_utterances_leave(values: dict[str, Any], between: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = random_table(6, 10, seed=1, scale=1.0)
    table[..., EOS] += torch.tensor([3.0, 0.0, 6.0, 2.0, 4.0, 1.0])[:, None]
    options = GenerationOptions(max_length=40, **values)
    rows = options.rows_per_utterance
    model, later = TableModel(table, rows), TableModel(table, rows)
    at_once = generate(model, 6, options)
    monkeypatch.setattr(seq2seq, "_STEPS_BETWEEN_CHECKS", {"cpu": between})
    assert_same(generate(later, 6, options), at_once)
    assert len(set(model.rows_stepped)) >= 3
    assert model.rows_stepped == sorted(model.rows_stepped, reverse=True)
    assert sum(model.rows_stepped) < sum(later.rows_stepped)
    assert len(model.rows_stepped) == int(at_once.lengths.max()) - 1 or "num_beams" in values


@given(SEARCHES, st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_ranking_is_left_out_only_where_it_changes_nothing(values: dict[str, Any], seed: int) -> None:
    table, options = table_options(values | {"num_beams": 3, "num_return_sequences": 3}, seed)
    expected = decode(table, options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seq2seq._BeamSearch, "_none_finishes", lambda *_: False)
        assert_same(decode(table, options), expected)


@pytest.mark.parametrize(("values", "ranked"), [({}, 1), ({"suppress_tokens": [5]}, 11)], ids=str)
def test_ranking_waits_for_an_end(values: dict[str, Any], ranked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the last of eleven steps can end a sequence, and no other token is forbidden, ranking is done once."""
    calls: list[Tensor] = []
    finish = seq2seq._BeamSearch._finish
    monkeypatch.setattr(seq2seq._BeamSearch, "_finish", lambda self, *found: (calls.append(found[0]), finish(self, *found))[1])
    decode(random_table(2, 20, seed=5), GenerationOptions(num_beams=3, max_length=12, min_length=12, **values))
    assert len(calls) == ranked


@given(SEARCHES, st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_one_beam_is_greedy(values: dict[str, Any], seed: int) -> None:
    values = {**values, "num_beams": 1, "num_return_sequences": 1, "early_stopping": True, "repetition_penalty": 1.0}
    table, options = table_options(values, seed)
    greedy = decode(table, options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seq2seq, "_Sampler", seq2seq._BeamSearch)
        assert_same(decode(table, options), greedy, tolerance=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_scores_are_float32_whatever_the_logits_are(dtype: torch.dtype, num_beams: int) -> None:
    table = random_table(3, 20, seed=8).to(dtype)
    options = GenerationOptions(num_beams=num_beams)
    generated = decode(table, options)
    assert generated.scores.dtype == torch.float32
    assert_same(generated, decode(table.float(), options), tolerance=1e-5)


CONSTRAINED = GenerationOptions(
    num_beams=3,
    no_repeat_ngram_size=2,
    repetition_penalty=1.2,
    bad_words_ids=[[3], [4, 5]],
    min_length=4,
    forced_bos_token_id=5,
    forced_eos_token_id=2,
    suppress_tokens=[6],
    begin_suppress_tokens=[7],
)


@pytest.mark.parametrize("options", [CONSTRAINED, GenerationOptions(num_beams=3)], ids=["constrained", "free"])
@pytest.mark.parametrize("search", [seq2seq._BeamSearch, seq2seq._Sampler])
def test_a_step_waits_for_no_device(search: type[seq2seq._Search], options: GenerationOptions) -> None:
    """Tensors on the meta device have no values: a step that read one would fail."""
    meta = torch.device("meta")
    followed = search(2, options, meta)  # type: ignore[call-arg]
    rows = 2 * options.rows_per_utterance
    constraints = seq2seq._constraints(options, meta)
    for _ in range(options.total_length - 1):
        followed.advance(torch.empty(rows, 20, device=meta), constraints)
    assert followed.length == options.total_length
    with pytest.raises(RuntimeError, match="meta"):
        followed.done.tolist()


@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_no_ngram_comes_twice(size: int, length: int, seed: int) -> None:
    """What may follow is what completes no n-gram that the history, its start token included, already holds."""
    history = torch.randint(0, 3, (5, length), generator=torch.Generator().manual_seed(seed))
    scores = torch.zeros(5, 3)
    seq2seq._no_repeat_ngram(size)(scores, history)
    for row, allowed in zip(history.tolist(), (scores == 0).tolist(), strict=True):
        known = {tuple(row[at : at + size]) for at in range(length - size + 1)}
        assert allowed == [tuple([*row, token][length + 1 - size :]) not in known or length < size for token in range(3)]


def test_forbidden_words() -> None:
    """Of several tokens, the last is forbidden where the others come before it, the start token among them."""
    table = random_table(1, 20, seed=17)
    table[..., EOS] = -20
    a, b, c = decode(table, GenerationOptions(max_length=4)).tokens[0, 0, 1:].tolist()
    assert a != b

    def first_differing(word: list[int]) -> int:
        ids = decode(table, GenerationOptions(max_length=4, bad_words_ids=[word])).tokens[0, 0].tolist()
        return next((place for place, (one, other) in enumerate(zip(ids, [START, a, b, c], strict=True)) if one != other), 0)

    words = {(a,): 1, (b,): 2, (START, a): 1, (a, b): 2, (START, a, b): 2, (a, b, c): 3, (b, a): 0, (START, b): 0}
    assert {word: first_differing(list(word)) for word in words} == words


# ----------------------------------------------------------------------------------------------------------- streaming


class Listener:
    def __init__(self) -> None:
        self.heard: dict[int, list[int]] = {}
        self.pieces: Counter[int] = Counter()

    def __call__(self, utterance: int, tokens: list[int]) -> None:
        assert tokens
        self.heard.setdefault(utterance, []).extend(tokens)
        self.pieces[utterance] += 1


@given(SEARCHES, st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_what_is_reported_is_the_result(values: dict[str, Any], seed: int) -> None:
    table, options = table_options(values, seed)
    listener = Listener()
    generated = decode(table, options, on_tokens=listener)
    assert listener.heard == {place: row[0].ids[1:] for place, row in enumerate(generated.hypotheses)}
    if options.num_beams == 1:
        assert listener.pieces == {place: len(row[0].ids) - 1 for place, row in enumerate(generated.hypotheses)}
    assert_same(decode(table, options), generated)


def test_samples_are_reported_one_by_one() -> None:
    listener = Listener()
    options = GenerationOptions(do_sample=True, seed=4, max_length=12)
    generated = decode(random_table(3, 20, seed=4), options, on_tokens=listener)
    assert listener.heard == {place: row[0].ids[1:] for place, row in enumerate(generated.hypotheses)}
    assert listener.pieces == {place: len(row[0].ids) - 1 for place, row in enumerate(generated.hypotheses)}


def test_beams_are_reported_before_the_end() -> None:
    table = random_table(1, 20, seed=4, scale=5.0)
    table[..., EOS] = -20
    listener = Listener()
    decode(table, GenerationOptions(num_beams=4, max_length=40), on_tokens=listener)
    assert listener.pieces[0] >= 5


# ------------------------------------------------------------------------------------------------------------ sampling


def assert_drawn_from(counts: Counter[Any], expected: dict[Any, float]) -> None:
    """Pearson's chi-square, at five standard deviations of its normal limit; nothing from outside the support."""
    total = sum(counts.values())
    assert set(counts) <= {outcome for outcome, p in expected.items() if p > 0}
    assert sum(expected.values()) == pytest.approx(1)
    likely = {outcome: p for outcome, p in expected.items() if p * total >= 5}
    chi_square = sum((counts[outcome] - p * total) ** 2 / (p * total) for outcome, p in likely.items())
    freedom = len(likely) - 1
    assert freedom >= 2
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def first_step(table: Tensor) -> Tensor:
    return table[0, START * 7 + 1].double()


def draw(options: GenerationOptions, table: Tensor) -> Counter[int]:
    return Counter(decode(table, options).tokens[0, :, 1].tolist())


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_samples_follow_the_distribution(temperature: float) -> None:
    table = random_table(1, 12, seed=6)
    probabilities = (first_step(table) / temperature).softmax(0)
    options = GenerationOptions(
        do_sample=True, num_return_sequences=20_000, max_length=2, top_k=0, temperature=temperature, seed=0
    )
    assert_drawn_from(draw(options, table), dict(enumerate(probabilities.tolist())))


@pytest.mark.parametrize(("top_k", "top_p"), [(4, 1.0), (0, 0.8), (5, 0.9), (50, 0.6), (3, 0.999)])
def test_top_k_and_top_p(top_k: int, top_p: float) -> None:
    table = random_table(1, 30, seed=9, scale=1.5)
    likeliest = first_step(table).sort(descending=True)
    kept = likeliest.values[: top_k or 30].softmax(0)
    before = kept.cumsum(0) - kept
    kept = kept[before < top_p]
    expected = dict(zip(likeliest.indices.tolist(), (kept / kept.sum()).tolist(), strict=False))
    assert 3 <= len(expected) < 30
    options = GenerationOptions(do_sample=True, num_return_sequences=20_000, max_length=2, top_k=top_k, top_p=top_p, seed=0)
    counts = draw(options, table)
    assert set(counts) == set(expected)
    assert_drawn_from(counts, expected)


def test_whole_sequences_follow_the_distribution() -> None:
    table = random_table(1, 4, seed=12, scale=1.0)
    every = [[START, a, b] for a in range(4) for b in ([PAD] if a == EOS else range(4))]
    expected = {}
    for ids in every:
        gains = log_probabilities(table, ids[:2] if ids[1] == EOS else ids)
        expected[tuple(ids)] = math.exp(sum(gains))
    options = GenerationOptions(do_sample=True, num_return_sequences=20_000, max_length=3, top_k=0, seed=3)
    assert_drawn_from(Counter(map(tuple, decode(table, options).padded.tolist())), expected)


def test_sampled_beams_are_drawn_without_replacement() -> None:
    """At the last step the best of the first two drawn wins."""
    table = random_table(1, 5, seed=13, scale=1.0)
    p = first_step(table).softmax(0).tolist()
    expected = dict.fromkeys(range(5), 0.0)
    for a, b in itertools.permutations(range(5), 2):
        expected[max(a, b, key=lambda token: p[token])] += p[a] * p[b] / (1 - p[a])
    utterances = 4000
    options = GenerationOptions(do_sample=True, num_beams=2, max_length=2, top_k=0, seed=0)
    found = decode(table.expand(utterances, -1, -1), options).tokens[:, 0, 1]
    assert_drawn_from(Counter(found.tolist()), {token: chance for token, chance in expected.items() if chance > 0})


def test_narrow_sampling_leaves_beams_enough() -> None:
    """Two tokens and one more for each end token, whatever top_k and top_p say; without beams, one."""
    table = random_table(1, 20, seed=16)
    likeliest = first_step(table).argsort(descending=True).tolist()
    for narrow in ({"top_k": 1}, {"top_k": 0, "top_p": 0.0}, {"top_k": 1, "top_p": 0.0}):
        options = GenerationOptions(
            do_sample=True, num_beams=3, num_return_sequences=3, max_length=2, eos_token_id=[2, 5], **narrow
        )
        assert decode(table, options).tokens[0, :, 1].tolist() == likeliest[:3]
        assert set(draw(GenerationOptions(do_sample=True, num_return_sequences=9, max_length=2, **narrow), table)) == {
            likeliest[0]
        }


def test_cold_sampling_of_beams_is_beam_search() -> None:
    table = random_table(4, 20, seed=14)
    table[..., EOS] += 2
    common = {"num_beams": 3, "num_return_sequences": 3, "early_stopping": True}
    drawn = decode(table, GenerationOptions(do_sample=True, temperature=1e-5, **common))
    searched = decode(table, GenerationOptions(**common))
    assert drawn.tokens.tolist() == searched.tokens.tolist()


@pytest.mark.parametrize("values", [{"num_return_sequences": 3}, {"num_beams": 3, "temperature": 2.0}])
def test_seeds(values: dict[str, Any]) -> None:
    table = random_table(3, 20, seed=15, scale=1.0)
    options = GenerationOptions(do_sample=True, seed=7, **values)
    first = decode(table, options)
    assert_same(decode(table, options), first)
    for utterance in range(3):
        alone = GenerationOptions(do_sample=True, seed=7 + utterance, **values)
        one = decode(table[utterance : utterance + 1], alone)
        assert [h.ids for h in one.hypotheses[0]] == [h.ids for h in first.hypotheses[utterance]]
    unseeded = GenerationOptions(do_sample=True, **values)
    torch.manual_seed(0)
    second = decode(table, unseeded)
    third = decode(table, unseeded)
    assert second.tokens.tolist() != third.tokens.tolist()
    torch.manual_seed(0)
    assert_same(decode(table, unseeded), second)


# ------------------------------------------------------------------------------------------------- options and results


def test_result() -> None:
    generated = Generated(
        tokens=torch.tensor([[[2, 5, 2, 1], [2, 5, 6, 2]]]),
        lengths=torch.tensor([[3, 4]]),
        scores=torch.tensor([[-0.5, -1.0]]),
    )
    assert generated.padded.tolist() == [[2, 5, 2, 1], [2, 5, 6, 2]]
    best, second = generated.hypotheses[0]
    assert (best.ids, best.score) == ([2, 5, 2], -0.5)
    assert (second.ids, second.score) == ([2, 5, 6, 2], -1.0)


def test_results_carry_no_gradient() -> None:
    table = random_table(2, 10, seed=0).requires_grad_()
    assert not decode(table, GenerationOptions(num_beams=2)).scores.requires_grad


def test_settings_of_a_published_checkpoint() -> None:
    stored = {
        "bos_token_id": 0,
        "decoder_start_token_id": 2,
        "early_stopping": True,
        "eos_token_id": 2,
        "max_length": 200,
        "num_beams": 5,
        "pad_token_id": 1,
        "forced_bos_token_id": None,
        "num_beam_groups": 1,
        "use_cache": True,
        "transformers_version": "4.27.0.dev0",
        "d_model": 256,
    }
    options = GenerationOptions.from_settings(stored)
    assert options == GenerationOptions(num_beams=5, max_length=200, early_stopping=True)
    assert (options.rows_per_utterance, options.total_length, options.eos_token_ids) == (5, 200, [2])
    assert GenerationOptions(max_length=200, max_new_tokens=7).total_length == 8
    assert GenerationOptions(do_sample=True, num_return_sequences=4).rows_per_utterance == 4
    assert GenerationOptions(eos_token_id=None).eos_token_ids == []


REFUSED = [
    ({"num_beams": 0}, "num_beams=0 must be an integer >= 1"),
    ({"num_beams": "five"}, "num_beams='five' must be an integer"),
    ({"max_length": 1}, "max_length=1 must be an integer >= 2"),
    ({"max_new_tokens": 0}, "max_new_tokens=0 must be an integer >= 1 or None"),
    ({"min_length": -1}, "min_length=-1 must be an integer >= 0"),
    ({"length_penalty": float("nan")}, "length_penalty=nan must be a finite number"),
    ({"early_stopping": "always"}, "early_stopping='always' must be true, false or 'never'"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1 must be an integer >= 0"),
    ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be a finite number > 0"),
    ({"temperature": 0}, "temperature=0 must be a finite number > 0"),
    ({"top_k": -1}, "top_k=-1 must be an integer >= 0"),
    ({"top_p": 1.5}, "top_p=1.5 must be a finite number >= 0 and <= 1"),
    ({"eos_token_id": [2, -3]}, r"eos_token_id=\[2, -3\] must be a list of integers each >= 0"),
    ({"forced_eos_token_id": "</s>"}, "forced_eos_token_id='</s>' must be a list of integers"),
    ({"suppress_tokens": 5}, "suppress_tokens=5 must be a list of integers"),
    ({"bad_words_ids": [[3], 4]}, r"bad_words_ids\[1\]=4 must be a list of integers"),
    ({"bad_words_ids": [[3], []]}, r"bad_words_ids\[1\] must hold a token"),
    ({"num_beams": 0, "top_k": -1}, "num_beams=0 must be .*; top_k=-1 must be"),
    ({"num_return_sequences": 2}, "num_return_sequences=2: greedy search finds one; set num_beams or do_sample"),
    ({"num_beams": 2, "num_return_sequences": 3}, "num_beams=2, num_return_sequences=3: there must be as many beams"),
    ({"num_beam_groups": 2, "typical_p": 0.9}, "num_beam_groups=2 is not supported; leave it out; typical_p=0.9 is not"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=str)
def test_refused_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^GenerationOptions: {message}"):
        GenerationOptions.from_settings(values)


@pytest.mark.parametrize(
    "values",
    [
        {"forced_bos_token_id": 10},
        {"eos_token_id": [2, 10]},
        {"decoder_start_token_id": 10},
        {"pad_token_id": 10},
        {"bad_words_ids": [[4, 10]]},
        {"suppress_tokens": [10]},
    ],
    ids=str,
)
def test_a_token_beyond_the_vocabulary_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"expected token ids below the vocabulary's 10, got \[10\]; use the model's own"):
        decode(random_table(1, 10, seed=0), GenerationOptions(**values))


def test_reports_of_several_samples_are_refused() -> None:
    options = GenerationOptions(do_sample=True, num_return_sequences=3)
    with pytest.raises(ConfigError, match="expected one sample at a time to report, got 3; drop on_tokens"):
        decode(random_table(1, 10, seed=0), options, on_tokens=Listener())
