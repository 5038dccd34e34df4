"""Streaming is offline with a past: any chunks give the codes and samples of one pass, and state is a value."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_mimi import ODD, TINY, assert_close, noise, random_mimi
from torch import Tensor

from phonograph import MimiModel
from phonograph.errors import StreamError

CONFIGS = {"tiny": TINY} | ODD
FRAMES = 40  # the window of ten steps is five frames


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> MimiModel:
    return random_mimi(**CONFIGS[request.param])


@pytest.fixture(scope="module")
def tiny() -> MimiModel:
    return random_mimi(**TINY)


def signal(model: MimiModel, batch: int = 2, frames: int = FRAMES, seed: int = 0) -> Tensor:
    return noise(batch, model.config.audio_channels, frames * model.frame_samples, seed)


def encode_in_chunks(model: MimiModel, audio: Tensor, frames: list[int]) -> Tensor:
    states, codes = (None, None), []
    for part in audio.split([n * model.frame_samples for n in frames], -1):
        output = model.encode(part, None, None, *states, use_streaming=True)
        states = output.encoder_past_key_values, output.padding_cache
        codes.append(output.audio_codes)
    return torch.cat(codes, -1)


def decode_in_chunks(model: MimiModel, codes: Tensor, frames: list[int]) -> Tensor:
    state = model.new_decoder_state(codes.shape[0])
    return torch.cat([model.decode(part, None, state).audio_values for part in codes.split(frames, -1)], -1)


def pieces(total: int, sizes: list[int]) -> list[int]:
    """The sizes, repeated and cut to make up `total`."""
    result = []
    for size in itertools.cycle(sizes):
        result.append(min(size, total - sum(result)))
        if sum(result) == total:
            return result
    raise AssertionError


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 17), min_size=1, max_size=8), grad=st.booleans())
def test_any_chunks_equal_one_pass(model: MimiModel, sizes: list[int], grad: bool) -> None:
    frames = pieces(FRAMES, sizes)
    audio = signal(model)
    with torch.no_grad():
        codes = model.encode(audio).audio_codes
        whole = model.decode(codes).audio_values
    with torch.set_grad_enabled(grad):
        assert torch.equal(encode_in_chunks(model, audio, frames), codes)
        assert_close(decode_in_chunks(model, codes, frames), whole)


@torch.no_grad()
def test_bundled_model(mini: MimiModel) -> None:
    """Past its window of 250 steps, in chunks that are no divisor of it."""
    audio = noise(1, 1, 140 * mini.frame_samples)
    codes = mini.encode(audio).audio_codes
    frames = pieces(140, [1, 1, 37, 2])
    streamed = encode_in_chunks(mini, audio, frames)
    assert torch.equal(streamed, codes)
    assert_close(decode_in_chunks(mini, codes, frames), mini.decode(codes).audio_values)


@torch.no_grad()
def test_state_does_not_grow(tiny: MimiModel) -> None:
    convs, transformer = tiny.new_padding_cache(2), tiny.encoder_transformer.new_state(2)
    decoder = tiny.new_decoder_state(2)
    states = (convs, transformer, decoder)
    before = [(state.nbytes, [tensor.data_ptr() for tensor in state.tensors()]) for state in states]
    for part in signal(tiny).split(5 * tiny.frame_samples, -1):
        output = tiny.encode(part, None, None, transformer, convs)
        assert output.padding_cache is convs
        assert output.encoder_past_key_values is transformer
        assert tiny.decode(output.audio_codes, None, decoder).decoder_past_key_values is decoder
    assert [(state.nbytes, [tensor.data_ptr() for tensor in state.tensors()]) for state in states] == before


@torch.no_grad()
def test_reset_begins_anew_in_those_streams_only(tiny: MimiModel) -> None:
    first, second = signal(tiny, seed=1), signal(tiny, seed=2)
    convs, transformer, decoder = tiny.new_padding_cache(2), tiny.encoder_transformer.new_state(2), tiny.new_decoder_state(2)
    tiny.decode(tiny.encode(first, None, None, transformer, convs).audio_codes, None, decoder)
    for state in (convs, transformer, decoder):
        state.reset(torch.tensor([False, True]))
    codes = tiny.encode(second, None, None, transformer, convs).audio_codes
    audio = tiny.decode(codes, None, decoder).audio_values
    whole = tiny.encode(torch.cat([first, second], -1)).audio_codes
    fresh = tiny.encode(second).audio_codes
    assert torch.equal(codes[0], whole[0, :, FRAMES:])
    assert torch.equal(codes[1], fresh[1])
    assert not torch.equal(codes[0], fresh[0])
    assert_close(audio[1], tiny.decode(fresh).audio_values[1])
    expected = tiny.decode(whole).audio_values[0, :, first.shape[-1] :]
    assert_close(audio[0], expected)


@pytest.mark.parametrize("order", [[1, 0], [0, 0], [1, 1]])
@pytest.mark.parametrize("way", ["reorder", "select"])
@torch.no_grad()
def test_reordered_equals_recomputed(tiny: MimiModel, order: list[int], way: str) -> None:
    indices = torch.tensor(order)
    first, second = signal(tiny, seed=1), signal(tiny, seed=2)
    states = [tiny.encoder_transformer.new_state(2), tiny.new_padding_cache(2), tiny.new_decoder_state(2)]
    tiny.decode(tiny.encode(first, None, None, *states[:2]).audio_codes, None, states[2])
    if way == "select":
        states = [state.select(indices) for state in states]
    else:
        for state in states:
            state.reorder(indices)
    codes = tiny.encode(second, None, None, *states[:2]).audio_codes
    audio = tiny.decode(codes, None, states[2]).audio_values
    whole = tiny.encode(torch.cat([first[indices], second], -1)).audio_codes
    assert torch.equal(codes, whole[..., FRAMES:])
    assert_close(audio, tiny.decode(whole).audio_values[..., first.shape[-1] :])


@torch.no_grad()
def test_a_stream_without_audio_waits(model: MimiModel) -> None:
    """Two streams of one batch, each fed in its own rhythm; the padding in between leaves no trace."""
    audio = signal(model, frames=12)
    frame = model.frame_samples
    transformer, convs = model.encoder_transformer.new_state(2), model.new_padding_cache(2)
    places, codes = [0, 0], [[], []]
    for rhythm in ([1, 1], [1, 0], [0, 1], [1, 0], [1, 1], [0, 1], [1, 1], [1, 0], [1, 1]):
        chunk = torch.full((2, model.config.audio_channels, frame), 7.0)
        for stream, goes in enumerate(rhythm):
            if goes:
                chunk[stream] = audio[stream, :, places[stream] * frame : (places[stream] + 1) * frame]
        mask = torch.tensor(rhythm)[:, None].expand(2, frame)
        output = model.encode(chunk, mask, None, transformer, convs).audio_codes
        for stream, goes in enumerate(rhythm):
            if goes:
                codes[stream].append(output[stream])
                places[stream] += 1
    assert transformer.seen.tolist() == [place * transformer.seen.max() // max(places) for place in places]
    for stream in (0, 1):
        expected = model.encode(audio[stream : stream + 1, :, : places[stream] * frame]).audio_codes[0]
        assert torch.equal(torch.cat(codes[stream], -1), expected)


@torch.no_grad()
def test_a_clone_is_a_fork(tiny: MimiModel) -> None:
    first, second, other = (signal(tiny, 1, 8, seed) for seed in (1, 2, 3))
    states = [tiny.encoder_transformer.new_state(1), tiny.new_padding_cache(1)]
    tiny.encode(first, None, None, *states)
    fork = [state.clone() for state in states]
    tiny.encode(other, None, None, *states)
    codes = tiny.encode(second, None, None, *fork).audio_codes
    assert torch.equal(codes, tiny.encode(torch.cat([first, second], -1)).audio_codes[..., 8:])


@torch.no_grad()
def test_gradients_do_not_reach_into_the_past(tiny: MimiModel) -> None:
    state = tiny.new_decoder_state(1)
    with torch.enable_grad():
        tiny.decode(torch.zeros(1, 4, 2, dtype=torch.int64), None, state)
    assert not any(tensor.requires_grad for tensor in state.tensors())


class TestWhatIsReturned:
    """Which calls hand back a state, as in the ecosystem."""

    def test_nothing_by_default(self, tiny: MimiModel) -> None:
        output = tiny.encode(signal(tiny))
        assert output.keys() == ["audio_codes"]
        assert tiny.decode(output.audio_codes).keys() == ["audio_values"]

    def test_use_streaming(self, tiny: MimiModel) -> None:
        output = tiny.encode(signal(tiny), use_streaming=True)
        assert output.keys() == ["audio_codes", "encoder_past_key_values", "padding_cache"]

    def test_config_use_streaming(self) -> None:
        model = random_mimi(**TINY, use_streaming=True)
        assert model.encode(signal(model)).padding_cache is not None
        assert model.encode(signal(model), use_streaming=False).padding_cache is None
        with pytest.raises(StreamError, match="whole frames"):
            model.encode(noise(1, 1, 49))

    @torch.no_grad()
    def test_config_use_cache(self) -> None:
        """One pass, with the transformers' past handed back."""
        model = random_mimi(**TINY, use_cache=True)
        audio = signal(model)
        output = model.encode(audio)
        assert output.keys() == ["audio_codes", "encoder_past_key_values"]
        plain = random_mimi(**TINY)
        assert torch.equal(output.audio_codes, plain.encode(audio).audio_codes)
        decoded = model.decode(output.audio_codes)
        expected = plain.decode(output.audio_codes).audio_values
        assert_close(decoded.audio_values, expected)
        assert decoded.decoder_past_key_values.transformer.seen.tolist() == [2 * FRAMES] * 2
        assert len(model(audio)) == 4

    @torch.no_grad()
    def test_forward_continues_a_decoder(self, tiny: MimiModel) -> None:
        codes = tiny.encode(signal(tiny)).audio_codes
        audio, state = torch.zeros(2, 1, 20 * tiny.frame_samples), tiny.new_decoder_state(2)
        halves = [tiny(audio, audio_codes=part, decoder_past_key_values=state) for part in codes.split(20, -1)]
        assert halves[0].decoder_past_key_values is state
        joined = torch.cat([half.audio_values for half in halves], -1)
        assert_close(joined, tiny.decode(codes).audio_values)


@pytest.mark.parametrize("use_streaming", [None, True, False])
def test_refuses_part_of_a_frame(tiny: MimiModel, use_streaming: bool | None) -> None:
    with pytest.raises(StreamError, match="whole frames of 48 samples in a stream, got 50 samples; buffer the rest"):
        tiny.encode(noise(1, 1, 50), padding_cache=tiny.new_padding_cache(1), use_streaming=use_streaming)


def test_refuses_a_state_of_another_batch(tiny: MimiModel) -> None:
    audio, codes = signal(tiny), torch.zeros(2, 4, 3, dtype=torch.int64)
    match = "expected a batch of 3, as the state has, got 2; use a new state"
    with pytest.raises(StreamError, match=match):
        tiny.encode(audio, padding_cache=tiny.new_padding_cache(3))
    with pytest.raises(StreamError, match=match):
        tiny.encode(audio, encoder_past_key_values=tiny.encoder_transformer.new_state(3))
    with pytest.raises(StreamError, match=match):
        tiny.decode(codes, decoder_past_key_values=tiny.new_decoder_state(3))


def test_refuses_to_stream_what_looks_ahead() -> None:
    model = random_mimi(**TINY | {"use_causal_conv": False})
    for start in (
        lambda: model.encode(signal(model), use_streaming=True),
        lambda: model.new_padding_cache(1),
        lambda: model.new_decoder_state(1),
    ):
        with pytest.raises(StreamError, match="run this model in one pass"):
            start()
