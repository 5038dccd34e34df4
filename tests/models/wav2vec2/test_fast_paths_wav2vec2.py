"""Ways made for speed or for long recordings give what the plain functions give: tiles, folded norms, sums of a whole."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_wav2vec2 import FAMILIES, TINY, assert_close, ragged_batch, random_wav2vec2

from phonograph.errors import AudioError
from phonograph.models.wav2vec2.features_wav2vec2 import _TILE_STEPS, PatchSums, Wav2Vec2TimeNorm
from phonograph.nn.packed import reference_path

HOP, FIELD = 20, 30
"""Of the configurations below, in samples."""
MODELS = {name: random_wav2vec2("Wav2Vec2Model", **fields) for name, fields in FAMILIES.items()}


def samples_for(steps: int) -> int:
    return (steps - 1) * HOP + FIELD


@pytest.mark.parametrize("steps", [1, _TILE_STEPS - 1, _TILE_STEPS, _TILE_STEPS + 1, 3 * _TILE_STEPS + 41])
@pytest.mark.parametrize("family", ["group", "layer", "layer, post-norm, odd kernel"])
@torch.no_grad()
def test_tiles(family: str, steps: int) -> None:
    encoder = MODELS[family].feature_extractor
    audio = torch.randn(2, samples_for(steps) + 7, generator=torch.Generator().manual_seed(steps))
    fast = encoder(audio)
    with reference_path():
        plain = encoder(audio)
    assert fast.shape == plain.shape == (2, steps, 24)
    assert_close(fast, plain)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_long_ragged_batches(family: str, exact: bool) -> None:
    """Past one tile, and past the length from which attention goes head by head."""
    audio, mask = ragged_batch(tuple(map(samples_for, (_TILE_STEPS * 3 + 17, 256, 30))), seed=1)
    fast = MODELS[family](audio, mask, exact_padding=exact)[0]
    with reference_path():
        plain = MODELS[family](audio, mask, exact_padding=exact)[0]
    for item, steps in enumerate((_TILE_STEPS * 3 + 17, 256, 30)):
        assert_close(fast[item, :steps], plain[item, :steps])


@torch.no_grad()
def test_bfloat16_stays_near() -> None:
    model = random_wav2vec2("Wav2Vec2Model", **TINY)
    audio = torch.randn(1, samples_for(300), generator=torch.Generator().manual_seed(0))
    expected = model(audio)[0]
    found = model.to(torch.bfloat16)(audio.bfloat16())[0].float()
    assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("bias", [True, False])
def test_norms_follow_from_sums(bias: bool) -> None:
    """Mean and variance of the outputs, from the sums of the patches and from the outputs."""
    torch.manual_seed(0)
    audio = 3 + torch.randn(2, 500)
    weight, own = torch.randn(6, 1, 10), torch.randn(6) if bias else None
    outputs = torch.nn.functional.conv1d(audio[:, None].double(), weight.double(), own.double() if bias else None, stride=5)
    mean, variance = PatchSums.of(audio, 10, 5).outputs(weight, own)
    torch.testing.assert_close(mean, outputs.mean(-1))
    torch.testing.assert_close(variance, outputs.var(-1, correction=0))


def test_sums_of_parts_and_of_scaled_audio() -> None:
    torch.manual_seed(0)
    audio = 0.2 + 0.1 * torch.randn(1, 1000, dtype=torch.float64)
    whole = PatchSums.of(audio, 10, 5)
    parts = PatchSums.of(audio[:, :505], 10, 5) + PatchSums.of(audio[:, 500:], 10, 5)  # the parts share five samples
    scaled = PatchSums.of((audio - 0.2) / 0.1, 10, 5)
    for found, expected in ((parts, whole), (whole.scaled(0.2, 0.1), scaled)):
        for name in ("count", "total", "squares"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reference", [False, True], ids=["fast", "reference"])
@torch.no_grad()
def test_a_part_is_normed_as_the_recording(reference: bool) -> None:
    """With the sums of the recording the features of a part are those that the recording has there; without, they are not."""
    encoder = MODELS["group"].feature_extractor
    assert isinstance(encoder.conv_layers[0].layer_norm, Wav2Vec2TimeNorm)
    loudness = torch.linspace(0.1, 2, samples_for(400))
    audio = loudness * torch.randn(1, samples_for(400), generator=torch.Generator().manual_seed(0))
    part = audio[:, 100 * HOP : 100 * HOP + samples_for(150)]

    def features(audio: torch.Tensor, sums: PatchSums | None) -> torch.Tensor:
        if not reference:
            return encoder(audio, sums=sums)
        with reference_path():
            return encoder(audio, sums=sums)

    whole = features(audio, None)[:, 100:250]
    assert_close(features(part, encoder.recording_sums([audio])), whole)
    assert (features(part, None) - whole).norm() > 0.1 * whole.norm()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 700), max_size=6), length=st.integers(10, 700))
def test_sums_of_a_recording_in_any_parts(cuts: list[int], length: int) -> None:
    audio = torch.randn(1, length, generator=torch.Generator().manual_seed(length))
    places = sorted({0, length, *(cut for cut in cuts if cut < length)})
    found = MODELS["group"].feature_extractor.recording_sums(audio[:, a:b] for a, b in pairwise(places))
    whole = PatchSums.of(audio, 10, 5)
    assert found is not None
    for name in ("count", "total", "squares"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name))


def test_sums_of_too_little_and_of_models_without_the_norm() -> None:
    with pytest.raises(AudioError, match=r"expected at least 10 samples, .* got fewer; pass a longer recording"):
        MODELS["group"].feature_extractor.recording_sums([torch.zeros(1, 5), torch.zeros(1, 4)])
    seen = []
    assert MODELS["layer"].feature_extractor.recording_sums(seen.append(part) or part for part in torch.zeros(3, 1, 5)) is None
    assert len(seen) == 3
