"""Sinusoidal positions: their values, growth, number types, devices, and that nothing else touches them."""

import copy
import math
import pickle

import pytest
import torch
from peers import peer
from random_speech_to_text import TINY, features, random_speech_to_text, tokens
from torch import nn

from phonograph.models.speech_to_text.modeling_speech_to_text import Speech2TextModel, Speech2TextSinusoidalPositionalEmbedding

Positions = Speech2TextSinusoidalPositionalEmbedding


@pytest.fixture(scope="module")
def theirs() -> type:
    transformers = peer("transformers")
    config = transformers.Speech2TextConfig(**TINY)
    return type(transformers.Speech2TextModel(config).encoder.embed_positions)


@pytest.mark.parametrize("padding_idx", [0, 1, 3, None])
@pytest.mark.parametrize("size", [1, 4, 6, 7, 33, 256])
def test_table_is_theirs(theirs: type, size: int, padding_idx: int | None) -> None:
    table = Positions.get_embedding(6010, size, padding_idx)
    assert table.dtype == torch.float32
    assert torch.equal(table, theirs.get_embedding(6010, size, padding_idx))
    assert torch.equal(Positions(5, size, padding_idx).weights, theirs(5, size, padding_idx).weights)


def test_table_by_the_formula() -> None:
    table = Positions.get_embedding(50, 7, 2)
    for position in (0, 1, 3, 49):
        angles = [position * 10000 ** (-i / 2) for i in range(3)]
        expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles] + [0.0]
        torch.testing.assert_close(table[position], torch.tensor(expected), atol=1e-5, rtol=0)
    assert not table[2].any()
    assert not table[:, -1].any()


@pytest.mark.parametrize("size", [2, 3])
def test_widths_that_hold_one_frequency(size: int) -> None:
    table = Positions.get_embedding(4, size)
    torch.testing.assert_close(table[:, 0], torch.arange(4).sin())
    torch.testing.assert_close(table[:, 1], torch.arange(4).cos())


@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("padding_idx", [0, 1, 9])
def test_position_ids_and_rows_are_theirs(theirs: type, padding_idx: int, past: int) -> None:
    ids = torch.tensor([[3, 4, 5, 6], [3, padding_idx, 5, padding_idx], [padding_idx, padding_idx, 2, 8]])
    ours, other = Positions(20, 6, padding_idx), theirs(20, 6, padding_idx)
    rows = ours.create_position_ids_from_input_ids(ids, padding_idx, past)
    assert rows.dtype == torch.int64
    assert torch.equal(rows, other.create_position_ids_from_input_ids(ids, padding_idx, past))
    assert torch.equal(ours(ids, past), other(ids, past))
    assert not ours(ids, past)[ids == padding_idx].any()


def test_without_padding_every_token_has_a_position() -> None:
    positions = Positions(5, 6)
    ids = torch.tensor([[0, 1, 1], [7, 0, 2]])
    assert positions.create_position_ids_from_input_ids(ids, None, 2).tolist() == [[2, 3, 4]] * 2
    assert torch.equal(positions(ids, 2), positions.weights[2:5].expand(2, 3, 6))
    assert positions(torch.zeros(1, 30, dtype=torch.int64)).shape == (1, 30, 6)


@pytest.mark.parametrize("padding_idx", [1, 40])
def test_grows_when_it_must_and_only_then(theirs: type, padding_idx: int) -> None:
    positions = Positions(60, 6, padding_idx)
    first = positions.weights
    short, long = torch.full((1, 12), 3), torch.full((1, 70), 3)
    before = positions(short)
    assert positions.weights is first
    grown = positions(long)
    assert positions.weights.shape == (padding_idx + 1 + 70 + 2, 6)
    assert torch.equal(grown, theirs(60, 6, padding_idx)(long))
    assert torch.equal(positions(short), before)
    assert torch.equal(positions(short, 200), theirs(500, 6, padding_idx)(short, 200))


def test_a_padding_row_beyond_the_table() -> None:
    positions = Positions(3, 4, 50)
    ids = torch.tensor([[50, 2, 3]])
    assert torch.equal(positions(ids)[0], torch.cat([torch.zeros(1, 4), Positions.get_embedding(54, 4)[51:53]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_its_dtype_when_it_grows(theirs: type, dtype: torch.dtype) -> None:
    ours, other = Positions(5, 6, 1).to(dtype), theirs(5, 6, 1).to(dtype)
    ids = torch.full((2, 30), 3)
    assert ours(ids).dtype == ours.weights.dtype == dtype
    assert torch.equal(ours(ids), other(ids))


def test_is_made_in_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        positions = Positions(5, 6, 1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert positions.weights.dtype == torch.float64
    assert torch.equal(positions.weights.float(), Positions(5, 6, 1).weights)


def test_is_in_no_checkpoint_and_needs_no_gradient() -> None:
    positions = Positions(5, 6, 1)
    assert list(positions.state_dict()) == list(positions.parameters()) == []
    assert [name for name, _ in positions.named_buffers()] == ["weights"]
    assert not positions(torch.full((1, 30), 3)).requires_grad


def test_growth_between_forward_and_backward() -> None:
    positions, weight = Positions(5, 6, 1), nn.Parameter(torch.ones(6))
    embedded = positions(torch.full((1, 4), 3))
    loss = ((embedded + weight) ** 2).sum()
    with torch.inference_mode():
        positions(torch.full((1, 50), 3))
    loss.backward()
    torch.testing.assert_close(weight.grad, 2 * (embedded + 1).sum((0, 1)))
    again = ((positions(torch.full((1, 50), 3)) * weight) ** 2).sum()  # a table that grew in inference mode serves training
    again.backward()


def test_compiled_graphs_stay_whole() -> None:
    positions = Positions(5, 6, 1)
    compiled = torch.compile(positions, fullgraph=True, backend="aot_eager")
    for length in (4, 30, 4, 90, 31):
        ids = torch.full((2, length), 3)
        ids[1, 2] = 1
        assert torch.equal(compiled(ids), Positions(5, 6, 1)(ids))
    torch.compiler.reset()


def test_meta_device_and_memory_without_values() -> None:
    with torch.device("meta"):
        positions = Positions(5, 6, 1)
        assert positions(torch.zeros(2, 30, dtype=torch.int64)).shape == (2, 30, 6)
    assert positions.weights.is_meta
    rows = positions.weights.shape[0]
    given = positions.half().to_empty(device="cpu")
    assert torch.equal(given.weights, Positions.get_embedding(rows, 6, 1).half())


def test_copies_and_pickles() -> None:
    positions = Positions(5, 7, 1)
    positions(torch.full((1, 30), 3))
    for other in (copy.deepcopy(positions), pickle.loads(pickle.dumps(positions))):
        assert torch.equal(other.weights, positions.weights)


def test_initialisation_leaves_it_alone() -> None:
    model = random_speech_to_text(**TINY)
    before = model.model.encoder.embed_positions.weights.clone()
    model.apply(model._init_weights)
    assert torch.equal(model.model.encoder.embed_positions.weights, before)


def test_a_model_goes_beyond_its_tables() -> None:
    short = random_speech_to_text(**TINY | {"max_source_positions": 2, "max_target_positions": 2})
    long = random_speech_to_text(**TINY)
    clip, target = features(short, 1, 60), tokens(short, 1, 9)
    ours = short(clip, decoder_input_ids=target).logits
    assert torch.equal(ours, long(clip, decoder_input_ids=target).logits)
    assert short.model.encoder.embed_positions.weights.shape[0] > 15
    assert "model.encoder.embed_positions.weights" not in short.state_dict()


def test_a_compiled_model_goes_beyond_its_tables() -> None:
    model: Speech2TextModel = random_speech_to_text(**TINY | {"max_source_positions": 2, "max_target_positions": 2}).model
    clip, target = features(model, 1, 60), tokens(model, 1, 9)
    states = model.encoder(clip).last_hidden_state.detach()
    compiled = torch.compile(model.decoder, fullgraph=True, backend="aot_eager")
    ours = compiled(target, encoder_hidden_states=states, use_cache=False).last_hidden_state
    expected = model.decoder(target, encoder_hidden_states=states, use_cache=False).last_hidden_state
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(x.sum(), model.decoder.layer_norm.weight) for x in (ours, expected)]
    for gradient, other in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, other)
    torch.compiler.reset()
