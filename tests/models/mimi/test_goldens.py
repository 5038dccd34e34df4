"""What transformers computed once, kept in tests/oracles, so that parity is checked where no peer is installed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from random_mimi import TINY as TINY_FIELDS
from random_mimi import assert_close, assert_same_codes, noise, random_mimi
from safetensors import safe_open

import phonograph
from phonograph import MimiModel

ORACLES = Path(__file__).parents[2] / "oracles"
TINY = ORACLES / "mimi_tiny"  # by make_mimi_goldens.py
# Codes (codebooks, frames) of the bundled recordings, resampled by soxr HQ, by the bundled model in transformers 5.23, float32
MINI = ORACLES / "mimi_mini_golden_codes.npz"


@pytest.fixture(scope="module")
def tiny() -> MimiModel:
    return MimiModel.from_pretrained(TINY)


@pytest.mark.parametrize("length", [1, 47, 48, 49, 1000, 3000])
@torch.no_grad()
def test_tiny_model(tiny: MimiModel, length: int) -> None:
    with safe_open(TINY / "expected.safetensors", "pt") as file:
        assert file.metadata()["transformers"] == "5.23.0"
        audio, latents, codes, decoded = (
            file.get_tensor(f"{length}.{name}") for name in ("audio", "latents", "codes", "decoded")
        )
    assert_same_codes(tiny, audio, tiny.encode(audio).audio_codes, codes.long())
    assert_close(tiny.encode_latents(audio), latents, tolerance=1e-4)
    assert_close(tiny.decode(codes.long()).audio_values, decoded, tolerance=1e-4)


def test_bundled_model_on_real_speech(mini: MimiModel, clip: Path) -> None:
    golden = np.load(MINI)[clip.stem]
    tokens = phonograph.encode(clip, mini)
    np.testing.assert_array_equal(tokens.codes, golden)
    with torch.no_grad():
        whole = phonograph.audio.load(clip, sampling_rate=24000, mono=True).samples
        codes = mini.encode(torch.from_numpy(whole)[None]).audio_codes[0].numpy()
    np.testing.assert_array_equal(codes, golden)


@torch.no_grad()
def test_the_check_for_ties_can_tell() -> None:
    """What the comparisons here and with the peers rest on."""
    model = random_mimi(**TINY_FIELDS)
    audio = noise(2, 1, 480)
    codes = model.encode(audio).audio_codes
    other = codes.clone()
    other[1, 2, 3] = (other[1, 2, 3] + 1) % 64
    with pytest.raises(AssertionError, match=r"codebook 1, frame 3: .* is no tie"):
        assert_same_codes(model, audio, codes, other)
    book, code = model.quantizer.codebooks()[2], int(codes[1, 2, 3])
    twin = (code + 1) % 64
    for buffer in (book.embed_sum, book.cluster_usage):
        buffer[twin] = buffer[code]
    codes = model.encode(audio).audio_codes
    other = codes.clone()
    other[1, 2, 3] = twin if codes[1, 2, 3] == code else code
    assert assert_same_codes(model, audio, codes, other) == codes.numel() - 1


def test_goldens_are_small() -> None:
    assert sum(path.stat().st_size for path in [MINI, *TINY.iterdir()]) < 300_000
