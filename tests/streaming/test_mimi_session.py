"""Sessions: any chunk in, whole frames through, flush at the end; exactly one pass over the whole."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_mimi import ODD, TINY, assert_close, noise, random_mimi
from torch import Tensor

from phonograph import MimiModel
from phonograph.errors import AudioError, ConfigError, StreamError
from phonograph.streaming import MimiDecoderSession, MimiEncoderSession

CONFIGS = {"tiny": TINY} | ODD
SETTINGS = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> MimiModel:
    return random_mimi(**CONFIGS[request.param])


@pytest.fixture(scope="module")
def tiny() -> MimiModel:
    return random_mimi(**TINY)


def encode(session: MimiEncoderSession, audio: Tensor, sizes: list[int]) -> Tensor:
    """Feed (C, S) in chunks of these sizes, repeated to the end, and flush."""
    codes, place = [], 0
    for size in itertools.cycle(sizes):
        if place >= audio.shape[-1]:
            break
        codes.append(session.feed(audio[:, place : place + size]))
        place += size
    return torch.cat([*codes, session.flush()], -1)


@torch.no_grad()
def whole(model: MimiModel, audio: Tensor) -> tuple[Tensor, Tensor]:
    codes = model.encode(audio[None]).audio_codes
    return codes[0], model.decode(codes).audio_values[0]


@SETTINGS
@given(
    length=st.integers(1, 2500),
    sizes=st.lists(st.one_of(st.integers(1, 150), st.integers(1, 3000)), min_size=1, max_size=6),
    frames=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
)
def test_any_chunks_equal_one_pass(model: MimiModel, length: int, sizes: list[int], frames: list[int]) -> None:
    """Up to fifty frames, where the window is five."""
    audio = noise(1, model.config.audio_channels, length, seed=length)[0]
    codes, expected = whole(model, audio)
    assert torch.equal(encode(MimiEncoderSession(model), audio, sizes), codes)
    session, pieces, place = MimiDecoderSession(model), [], 0
    for number in itertools.cycle(frames):
        if place >= codes.shape[1]:
            break
        pieces.append(session.feed(codes[:, place : place + number]))
        place += number
    assert_close(torch.cat(pieces, -1), expected)


def test_single_samples(tiny: MimiModel) -> None:
    audio = noise(1, 1, 500)[0]
    assert torch.equal(encode(MimiEncoderSession(tiny), audio, [1]), whole(tiny, audio)[0])


def test_frames_come_as_soon_as_they_are_complete(tiny: MimiModel) -> None:
    session = MimiEncoderSession(tiny)
    given_out = [session.feed(torch.zeros(size)).shape for size in (47, 1, 0, 100, 44, 1)]
    assert given_out == [(4, 0), (4, 1), (4, 0), (4, 2), (4, 1), (4, 0)]
    assert session.flush().shape == (4, 1)


@pytest.mark.parametrize("clip_seconds", [1.0, 2.77])
def test_real_speech(mini: MimiModel, speech: dict[str, Tensor], clip_seconds: float) -> None:
    audio = speech["librispeech_1998-15444-0003"][:, : round(clip_seconds * 24_000)]
    codes, expected = whole(mini, audio)
    assert torch.equal(encode(MimiEncoderSession(mini), audio, [480, 7, 4800]), codes)
    session = MimiDecoderSession(mini)
    assert_close(torch.cat([session.feed(part) for part in codes.split(1, -1)], -1), expected)


def test_interleaved_sessions_do_not_meet(model: MimiModel) -> None:
    signals = [noise(1, model.config.audio_channels, 1000, seed=seed)[0] for seed in range(3)]
    encoders, decoders = [MimiEncoderSession(model) for _ in signals], [MimiDecoderSession(model) for _ in signals]
    codes: list[list[Tensor]] = [[] for _ in signals]
    audio: list[list[Tensor]] = [[] for _ in signals]
    for turn in range(10):
        for number, signal in enumerate(signals):
            new = encoders[number].feed(signal[:, turn * 100 : turn * 100 + 100])
            codes[number].append(new)
            audio[number].append(decoders[number].feed(new))
    for number, signal in enumerate(signals):
        expected, sound = whole(model, signal)
        streamed = torch.cat([*codes[number], encoders[number].flush()], -1)
        assert torch.equal(streamed, expected)
        heard = torch.cat(audio[number], -1)
        assert_close(heard, sound[:, : heard.shape[-1]])


@pytest.mark.parametrize("number", [1, 3])
def test_fewer_codebooks(tiny: MimiModel, number: int) -> None:
    audio = noise(1, 1, 500)[0]
    session = MimiEncoderSession(tiny, num_quantizers=number)
    assert session.feed(audio[:, :10]).shape == (number, 0)
    codes = torch.cat([session.feed(audio[:, 10:]), session.flush()], -1)
    expected = whole(tiny, audio)[0][:number]
    assert torch.equal(codes, expected)
    with torch.no_grad():
        assert_close(MimiDecoderSession(tiny).feed(codes), tiny.decode(expected[None]).audio_values[0])


def test_reset_begins_anew(tiny: MimiModel) -> None:
    audio, other = noise(2, 1, 500).unbind()
    encoder, decoder = MimiEncoderSession(tiny), MimiDecoderSession(tiny)
    encoder.feed(other)
    decoder.feed(whole(tiny, other)[0])
    encoder.reset()
    decoder.reset()
    codes, expected = whole(tiny, audio)
    assert torch.equal(encode(encoder, audio, [77]), codes)
    encoder.reset()
    assert torch.equal(encode(encoder, audio, [500]), codes)
    assert_close(decoder.feed(codes), expected)


def test_nothing_gives_nothing(tiny: MimiModel) -> None:
    session = MimiEncoderSession(tiny)
    assert session.feed(torch.zeros(0)).shape == (4, 0)
    assert session.flush().shape == (4, 0)
    assert MimiDecoderSession(tiny).feed(torch.zeros(4, 0, dtype=torch.int64)).shape == (1, 0)


def test_memory_does_not_grow(tiny: MimiModel) -> None:
    encoder, decoder = MimiEncoderSession(tiny), MimiDecoderSession(tiny)

    def size() -> int:
        held = encoder._held
        return encoder._convs.nbytes + encoder._transformer.nbytes + decoder._state.nbytes + held.untyped_storage().nbytes()

    sizes = []
    for part in noise(1, 1, 48 * 60 + 20)[0].split(70, -1):
        decoder.feed(encoder.feed(part))
        sizes.append(size())
    assert max(sizes) - min(sizes) <= 4 * 2 * (70 + 48)


def test_gradients_are_not_kept(tiny: MimiModel) -> None:
    encoder, decoder = MimiEncoderSession(tiny), MimiDecoderSession(tiny)
    codes = encoder.feed(noise(1, 1, 96)[0].requires_grad_())
    assert not decoder.feed(codes).requires_grad
    assert not encoder._held.requires_grad


def test_model_in_bfloat16() -> None:
    model = random_mimi(**TINY).to(torch.bfloat16)
    codes = encode(MimiEncoderSession(model), noise(1, 1, 500)[0], [77])
    assert codes.shape == (4, 11)
    assert MimiDecoderSession(model).feed(codes).dtype == torch.bfloat16


class TestRefusals:
    @pytest.mark.parametrize(
        ("samples", "match"),
        [
            (torch.zeros(2, 10), r"samples of shape \(1, any\), got \(2, 10\); one stream at a time"),
            (torch.zeros(1, 1, 10), r"got \(1, 1, 10\)"),
            (torch.tensor(0.0), r"got \(\)"),
            (torch.zeros(10, dtype=torch.int16), r"floating-point samples in \[-1, 1\], got torch.int16; convert them"),
            (torch.tensor([0.0, float("nan")]), "finite samples, got NaN or infinite ones"),
            (torch.tensor([0.5, -float("inf")]), "finite samples, got NaN or infinite ones"),
            (torch.tensor([0.0, -20000.0]), r"samples in \[-1, 1\], got a peak of 20000; divide integers"),
        ],
    )
    def test_samples(self, tiny: MimiModel, samples: Tensor, match: str) -> None:
        with pytest.raises(AudioError, match=match):
            MimiEncoderSession(tiny).feed(samples)

    def test_mono_for_a_stereo_model(self) -> None:
        model = random_mimi(**ODD["stereo, attention bias, two semantic"])
        with pytest.raises(AudioError, match=r"\(2, any\), got \(10,\)"):
            MimiEncoderSession(model).feed(torch.zeros(10))

    @pytest.mark.parametrize(
        ("codes", "match"),
        [
            (torch.zeros(1, 4, 2, dtype=torch.int64), r"codes of shape \(codebooks, frames\), got \(1, 4, 2\); one stream"),
            (torch.zeros(5, 2, dtype=torch.int64), r"got \(1, 5, 2\)"),
            (torch.zeros(4, 2), "integer codes, got torch.float32"),
            (torch.full((4, 2), 64), "codes from 0 to 63, got 64"),
        ],
    )
    def test_codes(self, tiny: MimiModel, codes: Tensor, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            MimiDecoderSession(tiny).feed(codes)

    def test_refused_input_changes_nothing(self, tiny: MimiModel) -> None:
        audio = noise(1, 1, 500)[0]
        codes, expected = whole(tiny, audio)
        encoder, decoder = MimiEncoderSession(tiny), MimiDecoderSession(tiny)
        first = encoder.feed(audio[:, :100])
        with pytest.raises(AudioError):
            encoder.feed(torch.zeros(2, 10))
        with pytest.raises(AudioError):
            encoder.feed(torch.full((1, 10), float("nan")))
        assert torch.equal(torch.cat([first, encoder.feed(audio[:, 100:]), encoder.flush()], -1), codes)
        head = decoder.feed(codes[:, :3])
        with pytest.raises(ConfigError):
            decoder.feed(torch.full((4, 2), 64))
        assert_close(torch.cat([head, decoder.feed(codes[:, 3:])], -1), expected)

    @pytest.mark.parametrize("number", [0, 5])
    def test_num_quantizers(self, tiny: MimiModel, number: int) -> None:
        with pytest.raises(ConfigError, match=f"num_quantizers from 1 to 4, got {number}"):
            MimiEncoderSession(tiny, num_quantizers=number)

    @pytest.mark.parametrize("kind", [MimiEncoderSession, MimiDecoderSession])
    def test_a_model_that_looks_ahead(self, kind: Callable[[MimiModel], object]) -> None:
        with pytest.raises(StreamError, match="run this model in one pass"):
            kind(random_mimi(**TINY | {"pad_mode": "reflect"}))

    def test_after_the_end(self, tiny: MimiModel) -> None:
        match = r"a session that has not ended, got one that has; call reset\(\) to begin a new stream"
        with MimiEncoderSession(tiny) as encoder, MimiDecoderSession(tiny) as decoder:
            decoder.feed(encoder.feed(torch.zeros(48)))
            encoder.flush()
            for call in (lambda: encoder.feed(torch.zeros(48)), encoder.flush):
                with pytest.raises(StreamError, match=match):
                    call()
        with pytest.raises(StreamError, match=match):
            decoder.feed(torch.zeros(4, 1, dtype=torch.int64))
        encoder.reset()
        assert encoder.feed(torch.zeros(48)).shape == (4, 1)
