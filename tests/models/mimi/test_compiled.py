"""Mimi with compiled steps: what the plain steps give, in float32 to rounding, and plain steps wherever they don't fit."""

import pytest
import torch
from random_mimi import TINY, assert_close, noise, random_mimi

from phonograph import MimiModel
from phonograph.errors import ConfigError
from phonograph.models.mimi import seanet_mimi
from phonograph.streaming import MimiBatch, MimiDecoderSession, MimiEncoderSession

STEPS = 3


@pytest.fixture(scope="module")
def compiled() -> MimiModel:
    model = random_mimi(**TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seanet_mimi, "_TILE_VALUES", model.encoder.values_per_step * STEPS)
        model.compile_for("offline")
    model.compile_for("live")
    return model


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what went through compiled steps."""
    from phonograph.nn.compiled import CompiledStep

    sizes, call = [], CompiledStep.__call__

    def counted(self: CompiledStep, x: torch.Tensor, states: list[object]) -> torch.Tensor:
        sizes.append(x.shape[-2] * x.shape[-1])
        return call(self, x, states)

    monkeypatch.setattr(CompiledStep, "__call__", counted)
    return sizes


def test_live(compiled: MimiModel, taken: list[int]) -> None:
    plain = random_mimi(**TINY)
    frames = 2 * plain.config.sliding_window
    audio = noise(1, 1, frames * plain.frame_samples)
    expected = plain.encode(audio).audio_codes[0]
    encoder, decoder = MimiEncoderSession(compiled), MimiDecoderSession(compiled)
    codes = torch.cat([encoder.feed(part) for part in audio[0].split(plain.frame_samples, -1)], -1)
    assert torch.equal(codes, expected)
    sound = torch.cat([decoder.feed(frame) for frame in codes.split(1, -1)], -1)
    assert len(taken) == 2 * frames
    with torch.no_grad():
        assert_close(sound, plain.decode(expected[None]).audio_values[0])


@torch.no_grad()
def test_offline_and_in_blocks(compiled: MimiModel, taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = random_mimi(**TINY)
    monkeypatch.setattr(seanet_mimi, "_TILE_VALUES", plain.encoder.values_per_step * STEPS)
    audio = noise(1, 1, 20 * plain.frame_samples + 5)
    expected = plain.encode(audio).audio_codes
    assert torch.equal(compiled.encode(audio).audio_codes, expected)
    assert_close(compiled.decode(expected).audio_values, plain.decode(expected).audio_values)
    whole = 20 * plain.frame_samples // plain.encoder.hop // STEPS
    assert len(taken) == whole + 42 // STEPS  # the rest of each signal goes the plain way
    session = MimiEncoderSession(compiled)
    assert torch.equal(torch.cat([session.feed(audio[0]), session.flush()], -1), expected[0])
    assert len(taken) == 2 * whole + 42 // STEPS


def test_what_does_not_fit_goes_the_plain_way(compiled: MimiModel, taken: list[int]) -> None:
    plain = random_mimi(**TINY)
    frame = noise(2, 1, plain.frame_samples)
    for model in (plain, compiled):
        batch = MimiBatch(model, 2)
        batch.join()
        codes = batch.encode(frame)
    assert torch.equal(codes[0], plain.encode(frame).audio_codes[0])
    assert taken == []


def test_refusals(compiled: MimiModel) -> None:
    with pytest.raises(ConfigError, match=r"expected use 'live' or 'offline' and way .* got 'speed' and None"):
        compiled.compile_for("speed")
    with pytest.raises(ConfigError, match="got 'live' and 'back'"):
        compiled.compile_for("live", "back")
    with pytest.raises(ConfigError, match="expected a model in evaluation mode on a CPU, got one in training mode on cpu"):
        random_mimi(**TINY).train().compile_for("live")
