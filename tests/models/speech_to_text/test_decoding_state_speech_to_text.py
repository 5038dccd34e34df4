"""Stepping a decoder: one step after another equals the whole sequence, however rows are reordered and utterances leave."""

from typing import Any

import pytest
import torch
from random_speech_to_text import CONFIGS, TINY, assert_close, features, padded, random_speech_to_text, tokens
from stand_in_graph import stand_in
from torch import Tensor

from phonograph.errors import ConfigError, StreamError
from phonograph.models.speech_to_text.modeling_speech_to_text import Speech2TextForConditionalGeneration
from phonograph.models.speech_to_text.stepping_speech_to_text import Speech2TextDecoderState, Speech2TextStepper
from phonograph.nn.packed import reference_path

Model = Speech2TextForConditionalGeneration
BEAMS = 3


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def model(request: pytest.FixtureRequest) -> Model:
    return random_speech_to_text(**CONFIGS[request.param])


@pytest.fixture(scope="module")
def tiny() -> Model:
    return random_speech_to_text(**TINY)


@torch.no_grad()
def encoded(model: Model, frames: tuple[int, ...] = (50, 31)) -> tuple[Tensor, Tensor]:
    """States of the encoder for a ragged batch, and their mask."""
    batch, mask = padded([features(model, 1, count, seed)[0] for seed, count in enumerate(frames)])
    states = model.get_encoder()(batch, mask).last_hidden_state
    return states, model._get_feature_vector_attention_mask(states.shape[1], mask)


@torch.no_grad()
def whole(model: Model, states: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """Logits of whole sequences (U x K, T), each over the states of its utterance."""
    beams = target.shape[0] // states.shape[0]
    hidden = model.get_decoder()(
        target,
        encoder_hidden_states=states.repeat_interleave(beams, 0),
        encoder_attention_mask=mask.repeat_interleave(beams, 0),
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden)


def stepped(model: Model, state: Speech2TextDecoderState, target: Tensor) -> Tensor:
    return torch.stack([model.decode_step(column.contiguous(), state) for column in target.unbind(1)], 1)


@pytest.mark.parametrize("path", ["packed", "reference"])
@pytest.mark.parametrize("beams", [1, BEAMS])
def test_steps_are_the_whole(model: Model, beams: int, path: str) -> None:
    states, mask = encoded(model)
    target = tokens(model, 2 * beams, 9)
    expected = whole(model, states, mask, target)
    state = model.new_decoder_state(states, mask, beams, 12)
    if path == "packed":
        logits = stepped(model, state, target)
    else:
        with reference_path():
            logits = stepped(model, state, target)
    assert_close(logits, expected)
    assert (state.steps, state.beams, state.max_steps) == (9, beams, 12)


def test_padding_tokens_have_no_position(tiny: Model) -> None:
    states, mask = encoded(tiny)
    target = tokens(tiny, 2, 4)
    target[0, 3] = tiny.config.pad_token_id
    state = tiny.new_decoder_state(states, mask, 1, 4)
    assert_close(stepped(tiny, state, target), whole(tiny, states, mask, target))


def test_without_a_mask(tiny: Model) -> None:
    states, _ = encoded(tiny, (40, 40))
    target = tokens(tiny, 2, 5)
    state = tiny.new_decoder_state(states, None, 1, 5)
    assert_close(stepped(tiny, state, target), whole(tiny, states, torch.ones(states.shape[:2]), target))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_number_types(dtype: torch.dtype) -> None:
    model = random_speech_to_text(**TINY).to(dtype)
    batch = features(model, 2, 30).to(dtype)
    with torch.no_grad():
        states = model.get_encoder()(batch).last_hidden_state
    mask = torch.ones(states.shape[:2])
    target = tokens(model, 2, 5)
    logits = stepped(model, model.new_decoder_state(states, None, 1, 5), target)
    assert logits.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 0.05, torch.float16: 0.005}[dtype]
    assert_close(logits, whole(model, states, mask, target), tolerance)


def test_reordered_is_recomputed(tiny: Model) -> None:
    """Beams that continue others give what a decoder gives that has seen those others' tokens all along."""
    states, mask = encoded(tiny)
    generator = torch.Generator().manual_seed(0)
    state = tiny.new_decoder_state(states, mask, BEAMS, 12)
    history = torch.empty(2 * BEAMS, 0, dtype=torch.int64)
    for step in range(8):
        history = torch.cat([history, tokens(tiny, 2 * BEAMS, 1, seed=step)], 1)
        assert_close(tiny.decode_step(history[:, -1], state), whole(tiny, states, mask, history)[:, -1])
        rows = torch.randint(BEAMS, (2, BEAMS), generator=generator) + BEAMS * torch.arange(2)[:, None]
        state.reorder(rows.flatten())
        history = history[rows.flatten()]


def test_what_beams_share_is_left_where_it_is(tiny: Model) -> None:
    """What all beams of each utterance took from one row is not copied again, until everything is forgotten."""
    states, mask = encoded(tiny)
    state = tiny.new_decoder_state(states, mask, BEAMS, 8)
    target = tokens(tiny, 2 * BEAMS, 8)
    shared = []
    for step, rows in enumerate(([0, 0, 0, 5, 5, 5], [1, 0, 2, 4, 3, 5], [2, 2, 2, 3, 4, 5], [0, 1, 2, 4, 4, 4])):
        tiny.decode_step(target[:, step].contiguous(), state)
        before = state.self_attention.clone()
        start, chosen = state.shared, torch.tensor(rows)
        state.reorder(chosen)
        assert torch.equal(state.self_attention[..., :start, :], before[..., :start, :])
        assert torch.equal(state.self_attention[..., : step + 1, :], before[:, :, chosen][..., : step + 1, :])
        shared.append(state.shared)
    assert shared == [1, 1, 1, 3]
    assert state.select(torch.tensor([1])).shared == 3
    state.reset()
    assert state.shared == 0
    assert torch.equal(state.writers, torch.arange(2 * BEAMS)[:, None].expand(-1, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_cpu_remembers_in_float32_at_least(dtype: torch.dtype) -> None:
    model = random_speech_to_text(**TINY).to(dtype)
    with torch.no_grad():
        states = model.get_encoder()(features(model, 2, 30).to(dtype)).last_hidden_state
    state = model.new_decoder_state(states, None, 1, 5)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    assert {state.self_attention.dtype, state.cross_attention.dtype} == {wide}
    target = tokens(model, 2, 4)
    with torch.no_grad():
        encoded = {"encoder_outputs": (states,)}
        logits = [model(decoder_input_ids=part, past_key_values=state, **encoded).logits for part in target.split(2, 1)]
        expected = model(decoder_input_ids=target, use_cache=False, **encoded).logits
    assert logits[0].dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.005}[dtype]
    assert_close(torch.cat(logits, 1).double(), expected.double(), tolerance)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_fast_step_is_the_plain_one(rows: int) -> None:
    """At a published size, where products of one row and of more take different kernels, from a state of random values."""
    model = random_speech_to_text(vocab_size=300, encoder_layers=1, decoder_layers=2)
    states = torch.randn(1, 20, 256)
    target = tokens(model, rows, 3, seed=int(torch.randint(2**31, ())))
    fast = stepped(model, model.new_decoder_state(states, None, rows, 3), target)
    with reference_path():
        plain = stepped(model, model.new_decoder_state(states, None, rows, 3), target)
    assert_close(fast, plain)


def test_selected_go_on_alone(tiny: Model) -> None:
    states, mask = encoded(tiny, (50, 31, 44))
    target = tokens(tiny, 3 * BEAMS, 8)
    state = tiny.new_decoder_state(states, mask, BEAMS, 8)
    stepped(tiny, state, target[:, :3])
    rows = torch.cat([torch.arange(BEAMS), 2 * BEAMS + torch.arange(BEAMS)])
    fewer = state.select(torch.tensor([0, 2]))
    assert (fewer.batch_size, fewer.beams, fewer.steps) == (2 * BEAMS, BEAMS, 3)
    assert_close(stepped(tiny, fewer, target[rows, 3:]), whole(tiny, states, mask, target)[rows, 3:])
    assert_close(stepped(tiny, state, target[:, 3:]), whole(tiny, states, mask, target)[:, 3:])  # the first is unchanged


def test_the_stepper_steps_reorders_and_selects(tiny: Model) -> None:
    states, mask = encoded(tiny, (50, 31, 44))
    stepper = tiny.stepper(tiny.new_decoder_state(states, mask, 2, 6))
    assert stepper.vocab_size == tiny.config.vocab_size
    target = tokens(tiny, 6, 6)
    for column in target[:, :2].unbind(1):
        stepper.step(column.contiguous())
    rows = torch.tensor([1, 0, 2, 2, 5, 4])
    stepper.reorder(rows)
    stepper.select(torch.tensor([1, 2]))
    history = torch.cat([target[rows, :2], target[:, 2:]], 1)[2:]
    logits = [stepper.step(column.contiguous()) for column in history[:, 2:].unbind(1)]
    assert_close(torch.stack(logits, 1), whole(tiny, states[1:], mask[1:], history)[:, 2:])


def test_beams_share_what_the_encoder_gave(tiny: Model) -> None:
    states, mask = encoded(tiny)
    one, five = (tiny.new_decoder_state(states, mask, beams, 7) for beams in (1, 5))
    assert one.cross_attention.shape == five.cross_attention.shape == (2, 2, 2, 4, states.shape[1], 8)
    assert torch.equal(one.cross_attention, five.cross_attention)
    assert five.self_attention.shape == (2, 2, 10, 4, 7, 8)
    before = five.cross_attention.clone()
    stepped(tiny, five, tokens(tiny, 10, 3))
    five.reorder(torch.tensor([4, 3, 2, 1, 0, 9, 9, 9, 9, 9]))
    assert torch.equal(five.cross_attention, before)


def test_reset_copies_and_sizes(tiny: Model) -> None:
    states, mask = encoded(tiny)
    state = tiny.new_decoder_state(states, mask, 2, 6)
    target = tokens(tiny, 4, 6)
    first = stepped(tiny, state, target)
    copy, moved = state.clone(), state.to("cpu")
    assert (copy.steps, moved.steps) == (6, 6)
    assert copy.self_attention.data_ptr() != state.self_attention.data_ptr()
    state.reset()
    assert state.steps == 0
    assert torch.equal(stepped(tiny, state, target), first)
    assert state.nbytes == 4 * 2 * 2 * 6 * 32 * 4 + 2 * 2 * 2 * states.shape[1] * 32 * 4 + 4 * 6 * 8 + mask.numel()
    assert len(list(tiny.new_decoder_state(states, None, 2, 6).clone().tensors())) == 3
    with pytest.raises(StreamError, match="expected all rows to be reset, which share their steps, got a mask"):
        state.reset(torch.tensor([True, False]))


def test_a_step_allocates_and_moves_nothing(tiny: Model) -> None:
    states, mask = encoded(tiny)
    state = tiny.new_decoder_state(states, mask, 2, 6)
    places = [tensor.data_ptr() for tensor in state.tensors()]
    stepped(tiny, state, tokens(tiny, 4, 6))
    state.reorder(torch.tensor([1, 0, 3, 2]))
    assert [tensor.data_ptr() for tensor in state.tensors()] == places


def test_changed_weights_are_seen(tiny: Model) -> None:
    model = random_speech_to_text(**TINY)
    states, mask = encoded(model)
    target = tokens(model, 2, 3)
    before = stepped(model, model.new_decoder_state(states, mask, 1, 3), target)
    with torch.no_grad():
        model.model.decoder.layers[1].fc2.bias.add_(1)
    after = stepped(model, model.new_decoder_state(states, mask, 1, 3), target)
    assert_close(after, whole(model, states, mask, target))
    assert not torch.allclose(after, before)


ON_GPU = pytest.param("gpu", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


class TestGraphs:
    """Steps captured as a CUDA graph: on a GPU in float64, or on the CPU with a stand-in for the capture."""

    @pytest.fixture(params=["stand-in", ON_GPU])
    def steppers(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Makes two steppers of one utterance batch: one that captures, and one that does not."""
        if request.param == "stand-in":
            stand_in(monkeypatch)

        def make(fields: dict[str, Any], frames: tuple[int, ...]) -> list[Speech2TextStepper]:
            model = random_speech_to_text(**fields)
            states, mask = encoded(model, frames)
            if request.param == "gpu":
                model, states, mask = model.double().cuda(), states.double().cuda(), mask.cuda()
            made = []
            for cuda_graph in (True, False):
                stepper = model.stepper(model.new_decoder_state(states, mask, BEAMS, 12), cuda_graph)
                stepper.state.self_attention.zero_()  # a masked attention reads all of it; on a GPU it is zeros already
                made.append(stepper)
            return made

        return make

    @pytest.mark.parametrize("name", CONFIGS)
    def test_captured_is_not_captured(self, steppers: Any, name: str) -> None:
        """Through reorderings, and utterances that leave: in the captured one they stay, in the other they are gone."""
        captured, plain = steppers(CONFIGS[name], (50, 31, 44, 20))
        device = plain.state.self_attention.device
        generator = torch.Generator().manual_seed(0)
        utterances = 4
        for step in range(10):
            rows = BEAMS * utterances
            column = torch.randint(8, 50, (rows,), generator=generator).to(device)
            assert_close(captured.step(column), plain.step(column))
            order = torch.randint(BEAMS, (utterances, BEAMS), generator=generator) + BEAMS * torch.arange(utterances)[:, None]
            for stepper in (captured, plain):
                stepper.reorder(order.flatten().to(device))
            if step in (3, 6):
                kept = torch.tensor([0, 2, 3] if step == 3 else [1, 2], device=device)
                for stepper in (captured, plain):
                    stepper.select(kept)
                utterances = len(kept)
        assert captured.state.batch_size == 4 * BEAMS
        assert plain.state.batch_size == 2 * BEAMS
        graph = captured._captured.graph
        assert getattr(graph, "replays", 10) == 10

    def test_generation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stand_in(monkeypatch)
        model = random_speech_to_text(spread=6.0, **TINY)
        clips = padded([features(model, 1, frames)[0] for frames in (40, 31, 55)])
        settings: dict[str, Any] = {"num_beams": 3, "max_length": 15, "eos_token_id": [8, 24, 6]}
        expected = model.generate(*clips, **settings)
        plain = model.stepper

        def captured(state: Speech2TextDecoderState) -> Speech2TextStepper:
            state.self_attention.zero_()
            return plain(state, cuda_graph=True)

        monkeypatch.setattr(model, "stepper", captured)
        assert torch.equal(model.generate(*clips, **settings), expected)


class TestPastKeyValues:
    """The same state through `forward`, as the ecosystem's generation loops use it."""

    def forward(self, model: Model, states: Tensor, target: Tensor, **keywords: Any) -> Any:
        return model(encoder_outputs=(states,), decoder_input_ids=target, **keywords)

    @pytest.mark.parametrize("grad", [False, True])
    @pytest.mark.parametrize("split", [[7], [1] * 7, [3, 1, 3], [1, 6]])
    def test_any_split_is_the_whole(self, model: Model, split: list[int], grad: bool) -> None:
        states, _ = encoded(model, (40, 40))
        target = tokens(model, 2, 7)
        expected = self.forward(model, states, target, use_cache=False)
        assert expected.past_key_values is None
        longer = model.config.max_target_positions < 7  # than what forward makes room for by itself
        state, logits = model.new_decoder_state(states, None, 1, 7) if longer else None, []
        with torch.set_grad_enabled(grad):
            for part in target.split(split, 1):
                output = self.forward(model, states, part, past_key_values=state, use_cache=True)
                state = output.past_key_values
                logits.append(output.logits)
        assert state.steps == 7
        assert_close(torch.cat(logits, 1), expected.logits)

    def test_steps_go_on_from_it(self, tiny: Model) -> None:
        states, _ = encoded(tiny, (40, 40))
        target = tokens(tiny, 2, 7)
        with torch.no_grad():
            state = self.forward(tiny, states, target[:, :4]).past_key_values
            expected = self.forward(tiny, states, target, use_cache=False).logits
        assert_close(stepped(tiny, state, target[:, 4:]), expected[:, 4:])

    def test_gradients_are_those_of_the_whole(self, tiny: Model) -> None:
        states, _ = encoded(tiny, (40, 40))
        target = tokens(tiny, 2, 7)
        gradients = []
        for use_cache in (False, True):
            leaf = states.clone().requires_grad_()
            loss = self.forward(tiny, leaf, target, use_cache=use_cache).logits.square().sum()
            gradients.append(torch.autograd.grad(loss, [leaf, *tiny.model.decoder.parameters()]))
        for mine, other in zip(*gradients, strict=True):
            assert_close(mine, other)

    def test_token_masks_cover_the_past(self, tiny: Model) -> None:
        states, _ = encoded(tiny, (40, 40))
        target, mask = tokens(tiny, 2, 6), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1]])
        with torch.no_grad():
            expected = self.forward(tiny, states, target, decoder_attention_mask=mask, use_cache=False).logits
            first = self.forward(tiny, states, target[:, :3], decoder_attention_mask=mask[:, :3])
            past = first.past_key_values
            rest = self.forward(tiny, states, target[:, 3:], decoder_attention_mask=mask, past_key_values=past).logits
        assert_close(torch.cat([first.logits, rest], 1)[0], expected[0])
        assert_close(rest, expected[:, 3:])

    def test_training_and_labels_make_none(self, tiny: Model) -> None:
        states, _ = encoded(tiny, (40, 40))
        target = tokens(tiny, 2, 6)
        assert self.forward(tiny, states, target).past_key_values.max_steps == tiny.config.max_target_positions
        assert self.forward(tiny, states, None, labels=target).past_key_values is None
        model = random_speech_to_text(**TINY).train()
        assert self.forward(model, states, target).past_key_values is None

    def test_a_target_longer_than_the_tables(self, tiny: Model) -> None:
        states, _ = encoded(tiny, (40, 40))
        output = self.forward(tiny, states, tokens(tiny, 2, 45))
        assert output.past_key_values.max_steps == 45

    def test_refuses_what_does_not_fit(self, tiny: Model) -> None:
        states, mask = encoded(tiny, (40, 40))
        state = tiny.new_decoder_state(states, mask, 1, 3)
        with pytest.raises(StreamError, match="expected a batch of 2, one beam each, as in the state, got 1 and 1 beams"):
            self.forward(tiny, states[:1], tokens(tiny, 1, 1), past_key_values=state)
        beams = tiny.new_decoder_state(states, mask, 2, 3)
        with pytest.raises(StreamError, match="got 4 and 2 beams; use a new state, or decode_step for beams"):
            self.forward(tiny, states.repeat(2, 1, 1), tokens(tiny, 4, 1), past_key_values=beams)
        with pytest.raises(ConfigError, match="expected at most 3 target tokens, as the state has room for, got 4"):
            self.forward(tiny, states, tokens(tiny, 2, 4), past_key_values=state)
        stepped(tiny, state, tokens(tiny, 2, 3))
        with pytest.raises(ConfigError, match="got 4; make it with more max_steps"):
            tiny.decode_step(tokens(tiny, 2, 1)[:, 0], state)
        with pytest.raises(ConfigError, match="expected encoder_hidden_states or past_key_values, got neither"):
            tiny.get_decoder()(tokens(tiny, 2, 1))
