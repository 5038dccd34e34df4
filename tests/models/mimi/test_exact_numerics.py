"""numerics="exact": the same codes whatever the batch, the chunks, the threads and the path; float32's save at ties."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_mimi import ODD, TINY, assert_close, assert_same_codes, noise, random_mimi
from torch import Tensor

from phonograph import MimiModel, audio
from phonograph.api import encode, load_codec
from phonograph.errors import ConfigError
from phonograph.nn.packed import reference_path
from phonograph.streaming import MimiBatch, MimiDecoderSession, MimiEncoderSession

CONFIGS = {"tiny": TINY} | ODD


@pytest.fixture(scope="module", params=list(CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[MimiModel, MimiModel]:
    """One model in exact numerics and in float32."""
    folder = tmp_path_factory.mktemp("model")
    random_mimi(**CONFIGS[request.param]).save_pretrained(folder)
    return MimiModel.from_pretrained(folder, numerics="exact"), MimiModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def exact_mini() -> MimiModel:
    return MimiModel.from_pretrained("mimi-mini", numerics="exact")


def with_threads(number: int, call: Callable[[], Tensor]) -> Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


def streamed(model: MimiModel, samples: Tensor, size: int) -> Tensor:
    session = MimiEncoderSession(model)
    return torch.cat([*(session.feed(part) for part in samples.split(size, -1)), session.flush()], -1)


@torch.no_grad()
def assert_codes_do_not_depend(model: MimiModel, samples: Tensor, chunks: list[int]) -> Tensor:
    """Codes (Q, F) of (C, S) samples: alone, in batches, by the reference path, on threads, in chunks."""
    codes = model.encode(samples[None]).audio_codes[0]
    batch = torch.stack([samples, -samples.flip(-1), samples, samples.roll(100, -1)])
    assert torch.equal(model.encode(batch[:2]).audio_codes[0], codes)
    assert torch.equal(model.encode(batch).audio_codes[::2], codes.expand(2, -1, -1))
    with reference_path():
        assert torch.equal(model.encode(samples[None]).audio_codes[0], codes)
        assert torch.equal(streamed(model, samples, chunks[0]), codes)
    for threads in (1, 2):
        assert torch.equal(with_threads(threads, lambda: model.encode(samples[None]).audio_codes[0]), codes)
    for size in chunks:
        assert torch.equal(streamed(model, samples, size), codes)
    return codes


@torch.no_grad()
def test_random_models(pair: tuple[MimiModel, MimiModel]) -> None:
    exact, fast = pair
    assert exact.dtype is torch.float64
    samples = noise(1, exact.config.audio_channels, 130 * exact.frame_samples + 5)[0]
    codes = assert_codes_do_not_depend(exact, samples.double(), [exact.frame_samples, 1001])
    equal = assert_same_codes(exact, samples[None].double(), fast.encode(samples[None]).audio_codes, codes[None])
    assert equal >= 0.99 * codes.numel()
    again = MimiDecoderSession(exact)
    sound = torch.cat([again.feed(part) for part in codes.split(7, -1)], -1)
    assert_close(sound, exact.decode(codes[None]).audio_values[0], tolerance=1e-12)
    assert_close(fast.decode(codes[None]).audio_values[0].double(), sound, tolerance=1e-4)


def test_slots(pair: tuple[MimiModel, MimiModel]) -> None:
    exact, _ = pair
    samples = noise(3, exact.config.audio_channels, 20 * exact.frame_samples).double()
    batch = MimiBatch(exact, 3)
    for _ in range(3):
        batch.join()
    codes = torch.cat([batch.encode(frames) for frames in samples.split(exact.frame_samples, -1)], -1)
    with torch.no_grad():
        assert torch.equal(codes, exact.encode(samples).audio_codes)


@torch.no_grad()
def test_bundled_model_on_real_speech(exact_mini: MimiModel, mini: MimiModel, clip: Path) -> None:
    """0.8 s of each recording."""
    samples = torch.from_numpy(audio.load(clip, sampling_rate=24000, mono=True).samples)
    samples = samples[:, 20_000:40_345].double()
    codes = assert_codes_do_not_depend(exact_mini, samples, [14_321])
    equal = assert_same_codes(exact_mini, samples[None], mini.encode(samples[None].float()).audio_codes, codes[None])
    assert equal >= 0.999 * codes.numel()


@torch.no_grad()
def test_float32_on_one_and_two_threads(mini: MimiModel, clip: Path) -> None:
    """Not promised, but so on the processors seen, for the whole recordings, too."""
    samples = torch.from_numpy(audio.load(clip, sampling_rate=24000, mono=True, duration_seconds=2.5).samples)[None]
    one, two = (with_threads(number, lambda: mini.encode(samples).audio_codes) for number in (1, 2))
    assert_same_codes(mini, samples, one, two)
    assert torch.equal(one, two)


def test_through_the_calls(exact_mini: MimiModel, clip: Path) -> None:
    assert load_codec("mimi-mini", numerics="exact").dtype is torch.float64
    sound = audio.load(clip, sampling_rate=24000, duration_seconds=1.5)
    alone = encode(sound, exact_mini)
    assert encode([sound, sound.samples[0, :9999], sound], exact_mini, batch_size=3)[2] == alone


class TestRefusals:
    @pytest.mark.parametrize("name", ["foo", "", "Exact", None, True])
    def test_unknown(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"expected numerics 'fast' or 'exact', got {name!r}; choose one of them"):
            MimiModel.from_pretrained("mimi-mini", numerics=name)

    @pytest.mark.parametrize("dtype", [torch.float32, "bfloat16", "auto"])
    def test_a_dtype_beside_exact(self, dtype: torch.dtype | str) -> None:
        match = f"expected no dtype beside numerics='exact', which is float64, got {dtype}; leave it out"
        with pytest.raises(ConfigError, match=match):
            MimiModel.from_pretrained("mimi-mini", numerics="exact", dtype=dtype)
        with pytest.raises(ConfigError, match=match):
            MimiModel.from_pretrained("mimi-mini", numerics="exact", torch_dtype=dtype)

    @pytest.mark.parametrize("dtype", [torch.float64, "float64", None])
    def test_its_own_dtype_is_welcome(self, dtype: torch.dtype | str | None) -> None:
        assert MimiModel.from_pretrained("mimi-mini", numerics="exact", dtype=dtype).dtype is torch.float64

    def test_fast_takes_any_dtype(self) -> None:
        assert MimiModel.from_pretrained("mimi-mini", numerics="fast", dtype="bfloat16").dtype is torch.bfloat16
