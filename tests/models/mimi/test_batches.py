"""A batch changes nothing: each item of a ragged batch gives what it gives alone, whatever lies in the padding."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_mimi import LOOKING_AHEAD, ODD, TINY, assert_close, noise, random_mimi
from torch import Tensor

from phonograph import MimiFeatureExtractor, MimiModel
from phonograph.models.mimi import seanet_mimi
from phonograph.nn.packed import reference_path

CONFIGS = {"tiny": TINY} | ODD | {name: fields for name, fields in LOOKING_AHEAD.items() if fields.get("pad_mode") != "reflect"}
SETTINGS = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> MimiModel:
    return random_mimi(**CONFIGS[request.param])


def ragged(model: MimiModel, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Noise, loud garbage and a NaN after each end, and the mask."""
    audio = noise(len(lengths), model.config.audio_channels, max(lengths), seed=sum(lengths))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    garbage = torch.where(torch.rand(audio.shape) < 0.1, torch.nan, 100.0)
    return torch.where(mask[:, None], audio, garbage), mask


@torch.no_grad()
def assert_each_as_alone(model: MimiModel, audio: Tensor, mask: Tensor) -> None:
    codes = model.encode(audio, mask).audio_codes
    codes_mask = model.get_audio_codes_mask(mask)
    assert codes.shape[2] == codes_mask.shape[1]
    for item, kept, row, inside in zip(audio, codes_mask, codes, mask, strict=True):
        alone = model.encode(item[None, :, inside.bool()]).audio_codes[0]
        assert torch.equal(row[:, kept], alone)


@SETTINGS
@given(lengths=st.lists(st.integers(1, 1500), min_size=2, max_size=6))
def test_ragged_batch(model: MimiModel, lengths: list[int]) -> None:
    assert_each_as_alone(model, *ragged(model, lengths))


@SETTINGS
@given(lengths=st.lists(st.integers(1, 12_000), min_size=2, max_size=4))
def test_ragged_batch_of_the_bundled_model(mini: MimiModel, lengths: list[int]) -> None:
    assert_each_as_alone(mini, *ragged(mini, lengths))


def test_real_speech_through_the_feature_extractor(mini: MimiModel, speech: dict[str, Tensor]) -> None:
    clips = [clip[0, : 24_000 + 5_001 * place] for place, clip in enumerate(list(speech.values())[:4])]
    batch = MimiFeatureExtractor()([clip.numpy() for clip in clips], sampling_rate=24_000, return_tensors="pt")
    assert_each_as_alone(mini, batch["input_values"], batch["padding_mask"])
    with torch.no_grad():
        output = mini(batch["input_values"], batch["padding_mask"])
        for row, clip in zip(output.audio_values, clips, strict=True):
            alone = mini(clip[None, None]).audio_values[0]
            assert_close(row[:, : clip.shape[-1]], alone)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", ["tiny", *ODD])
@torch.no_grad()
def test_tiles_of_a_long_signal_show_nowhere(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU long signals are worked through tile by tile; here tiles are far shorter than signals."""
    model = random_mimi(**CONFIGS[name])
    audio, mask = ragged(model, [999, 431, 17])
    with reference_path():
        expected = [model.encode(item[None, :, inside]).audio_codes[0] for item, inside in zip(audio, mask, strict=True)]
        sound = model.decode(expected[0][None]).audio_values
    codes_mask = model.get_audio_codes_mask(mask)
    for batch in (1, 3):
        monkeypatch.setattr(seanet_mimi, "_TILE_VALUES", model.encoder.values_per_step * steps * batch)
        codes = model.encode(audio[:batch], mask[:batch]).audio_codes
        for row, kept, alone in zip(codes, codes_mask, expected, strict=False):
            assert torch.equal(row[:, kept], alone)
        decoded = model.decode(expected[0].expand(batch, -1, -1)).audio_values
        assert_close(decoded, sound.expand(batch, -1, -1))


@torch.no_grad()
def test_the_same_clip_twice(mini: MimiModel, speech: dict[str, Tensor]) -> None:
    clip = speech["ljspeech_LJ002-0045"]
    alone = mini.encode(clip[None]).audio_codes
    both = mini.encode(torch.stack([clip, clip, clip])).audio_codes
    assert torch.equal(both, alone.expand(3, -1, -1))
    decoded = mini.decode(both).audio_values
    assert_close(decoded, mini.decode(alone).audio_values.expand(3, -1, -1))


@torch.no_grad()
def test_mask_of_ones_and_forms_of_masks(model: MimiModel) -> None:
    audio = noise(2, model.config.audio_channels, 333)
    plain = model.encode(audio).audio_codes
    for mask in (torch.ones(2, 333), torch.ones_like(audio), torch.ones(2, 333, dtype=torch.bool)):
        assert torch.equal(model.encode(audio, mask).audio_codes, plain)
    short = torch.arange(333)[None] < torch.tensor([[333], [100]])
    expected = model.encode(audio, short).audio_codes
    kept = model.get_audio_codes_mask(short)
    for form in (short.long(), short[:, None].expand_as(audio), short.float()):
        codes = model.encode(audio, form).audio_codes
        assert torch.equal(codes.transpose(1, 2)[kept], expected.transpose(1, 2)[kept])
    assert not torch.equal(expected[1], plain[1])


@torch.no_grad()
def test_an_item_of_nothing_but_padding_harms_no_other(model: MimiModel) -> None:
    audio = noise(2, model.config.audio_channels, 333)
    mask = torch.ones(2, 333)
    mask[1] = 0
    assert torch.equal(model.encode(audio, mask).audio_codes[0], model.encode(audio[:1]).audio_codes[0])
    assert model.get_audio_codes_mask(mask).sum(-1).tolist() == [model.get_encoded_length(torch.tensor(333)), 0]


@pytest.mark.parametrize("name", ["tiny", *ODD])
@torch.no_grad()
def test_padded_end_of_a_stream(name: str) -> None:
    model = random_mimi(**CONFIGS[name])
    frame = model.frame_samples
    audio = noise(2, model.config.audio_channels, 9 * frame)
    lengths = [8 * frame + 5, 9 * frame - 1]
    transformer, convs = model.encoder_transformer.new_state(2), model.new_padding_cache(2)
    head = model.encode(audio[..., : 8 * frame], None, None, transformer, convs).audio_codes
    mask = torch.arange(8 * frame, 9 * frame) < torch.tensor(lengths)[:, None]
    last = model.encode(audio[..., 8 * frame :].masked_fill(~mask[:, None], 9.0), mask, None, transformer, convs).audio_codes
    codes = torch.cat([head, last], -1)
    for row, item, length in zip(codes, audio, lengths, strict=True):
        assert torch.equal(row, model.encode(item[None, :, :length]).audio_codes[0])
