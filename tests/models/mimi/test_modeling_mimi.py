"""MimiModel's surface: outputs, codebook counts, number types, loading options, and what it refuses."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_mimi import ODD, TINY, assert_close, noise, random_mimi
from torch import Tensor

from phonograph import MimiConfig, MimiModel
from phonograph.errors import AudioError, CheckpointError, ConfigError, MissingExtraError
from phonograph.models.base import ModelOutput


@pytest.fixture(scope="module")
def tiny() -> MimiModel:
    return random_mimi(**TINY)


@pytest.fixture(scope="module")
def folder(tiny: MimiModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tiny.save_pretrained(path)
    return path


AUDIO = noise(2, 1, 500)


class TestOutputs:
    def test_by_name_index_and_key(self, tiny: MimiModel) -> None:
        output = tiny(AUDIO)
        assert output.audio_codes.shape == (2, 4, 11)
        assert output.audio_codes.dtype == torch.int64
        assert output.audio_values.shape == (2, 1, 500)
        assert output[0] is output.audio_codes is output["audio_codes"]
        assert output[1] is output[-1] is output.audio_values
        assert output[:2] == output.to_tuple() == (output.audio_codes, output.audio_values)
        assert list(output) == output.keys() == ["audio_codes", "audio_values"]
        assert len(output) == 2
        assert "audio_codes" in output
        assert "encoder_past_key_values" not in output
        assert output.encoder_past_key_values is None
        assert output.items() == list(zip(output.keys(), output.values(), strict=True))

    def test_index_skips_what_is_none(self, tiny: MimiModel) -> None:
        state = tiny.new_decoder_state(2)
        output = tiny.decode(torch.zeros(2, 4, 1, dtype=torch.int64), None, state)
        assert output[1] is state
        with pytest.raises(IndexError):
            tiny.decode(torch.zeros(2, 4, 1, dtype=torch.int64))[1]

    @pytest.mark.parametrize("by_config", [True, False])
    def test_tuples(self, tiny: MimiModel, by_config: bool) -> None:
        model = random_mimi(**TINY, return_dict=False) if by_config else tiny
        argument = {} if by_config else {"return_dict": False}
        encoded = model.encode(AUDIO, **argument)
        decoded = model.decode(encoded[0], **argument)
        both = model(AUDIO, **argument)
        assert [type(result) for result in (encoded, decoded, both)] == [tuple] * 3
        assert [len(result) for result in (encoded, decoded, both)] == [1, 1, 2]
        assert torch.equal(both[0], encoded[0])
        assert torch.equal(both[1], decoded[0][..., :500])
        assert isinstance(model.encode(AUDIO, return_dict=True), ModelOutput)

    @pytest.mark.parametrize("name", ["tiny", *ODD])
    def test_fewer_codebooks_are_the_first_rows(self, name: str) -> None:
        model = random_mimi(**TINY if name == "tiny" else ODD[name])
        audio = noise(2, model.config.audio_channels, 500)
        codes = model.encode(audio).audio_codes
        for number in range(model.config.num_semantic_quantizers, model.config.num_quantizers + 1):
            fewer = model.encode(audio, num_quantizers=number).audio_codes
            assert torch.equal(fewer, codes[:, :number])
            assert torch.equal(model(audio, num_quantizers=number).audio_codes, fewer)

    def test_missing_codebooks_are_not_code_zero(self, tiny: MimiModel) -> None:
        codes = tiny.encode(AUDIO).audio_codes
        zeroed = codes.clone()
        zeroed[:, 2:] = 0
        assert not torch.equal(tiny.decode(codes[:, :2])[0], tiny.decode(zeroed)[0])

    def test_forward_with_codes_decodes_those(self, tiny: MimiModel) -> None:
        codes = torch.randint(0, 64, (2, 3, 11), generator=torch.Generator().manual_seed(0))
        output = tiny(AUDIO, audio_codes=codes)
        assert output.audio_codes is codes
        assert torch.equal(output.audio_values, tiny.decode(codes)[0][..., :500])

    def test_input_is_not_changed(self, tiny: MimiModel) -> None:
        audio, codes = AUDIO.clone(), torch.zeros(2, 4, 3, dtype=torch.int64)
        mask = torch.arange(500) < torch.tensor([[500], [100]])
        tiny.encode(audio, mask)
        tiny.decode(codes)
        with torch.no_grad():
            tiny.encode(audio, mask)
            tiny.decode(codes)
        assert torch.equal(audio, AUDIO)
        assert not codes.any()

    def test_input_need_not_be_contiguous(self, tiny: MimiModel) -> None:
        spread = torch.stack([AUDIO, AUDIO], -1)[..., 0]
        assert torch.equal(tiny.encode(spread)[0], tiny.encode(AUDIO)[0])
        codes = tiny.encode(AUDIO)[0]
        assert torch.equal(tiny.decode(codes.transpose(1, 2).contiguous().transpose(1, 2))[0], tiny.decode(codes)[0])

    def test_narrow_codes_decode(self, tiny: MimiModel) -> None:
        codes = tiny.encode(AUDIO)[0]
        assert torch.equal(tiny.decode(codes.to(torch.int32))[0], tiny.decode(codes)[0])

    def test_evaluation_changes_nothing(self, tiny: MimiModel) -> None:
        before = {name: value.clone() for name, value in tiny.state_dict().items()}
        for context in (torch.no_grad(), torch.enable_grad(), torch.inference_mode()):
            with context:
                tiny(AUDIO, torch.ones(2, 500))
        assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


class TestNumberTypes:
    @pytest.mark.parametrize(
        "convert",
        [
            lambda model: model.to(torch.bfloat16),
            lambda model: model.half(),
            lambda model: model.to(torch.float64),
            lambda model: model.bfloat16().float(),
        ],
        ids=["bfloat16", "half", "float64", "there and back"],
    )
    def test_codebooks_stay_float32(self, tiny: MimiModel, convert: Callable[[MimiModel], MimiModel]) -> None:
        model = convert(copy.deepcopy(tiny))
        for name, buffer in model.named_buffers():
            assert buffer.dtype == torch.float32
            assert torch.equal(buffer, tiny.get_buffer(name))
        assert len(list(model.named_buffers())) == 12
        assert model.codebook_hash() == tiny.codebook_hash()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @torch.no_grad()
    def test_half_types_are_near_float32(self, mini: MimiModel, speech: dict[str, Tensor], dtype: torch.dtype) -> None:
        model = MimiModel.from_pretrained("mimi-mini", dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        clip = speech["librispeech_1688-142285-0003"][None]
        expected = mini.encode(clip).audio_codes
        codes = model.encode(clip.to(dtype)).audio_codes
        assert (codes[:, 0] == expected[:, 0]).float().mean() > (0.75 if dtype is torch.bfloat16 else 0.95)
        decoded, reference = model.decode(expected).audio_values, mini.decode(expected).audio_values
        assert decoded.dtype == dtype
        error = (decoded.float() - reference).norm() / reference.norm()
        assert error < (0.02 if dtype is torch.bfloat16 else 0.003)

    @torch.no_grad()
    def test_float64_equals_float32(self, tiny: MimiModel) -> None:
        model = copy.deepcopy(tiny).to(torch.float64)
        assert_close(model.encode_latents(AUDIO.double()).float(), tiny.encode_latents(AUDIO))
        codes = tiny.encode(AUDIO).audio_codes
        assert_close(model.decode(codes).audio_values.float(), tiny.decode(codes).audio_values)

    @torch.no_grad()
    def test_streams_in_bfloat16(self) -> None:
        model = random_mimi(**TINY).to(torch.bfloat16)
        audio = noise(1, 1, 20 * 48).bfloat16()
        codes = model.encode(audio, use_streaming=True).audio_codes
        state = model.new_decoder_state(1)
        pieces = [model.decode(part, None, state).audio_values for part in codes.split(3, -1)]
        whole = model.decode(codes).audio_values
        assert pieces[0].dtype == torch.bfloat16
        assert (torch.cat(pieces, -1) - whole).float().norm() < 0.05 * whole.float().norm()


class TestUse:
    """Whatever was called before, the next call works."""

    def test_gradients_after_inference_mode(self) -> None:
        model = random_mimi(**TINY)
        with torch.inference_mode():
            expected = model(AUDIO).audio_codes.clone()
        output = model(AUDIO)
        assert torch.equal(output.audio_codes, expected)
        output.audio_values.sum().backward()
        model.train()
        with torch.inference_mode():
            model.encode(AUDIO)
        model(AUDIO).audio_values.sum().backward()
        assert model.encoder.layers[0].conv.weight.grad is not None

    def test_loaded_in_inference_mode(self, tiny: MimiModel, folder: Path) -> None:
        with torch.inference_mode():
            model = MimiModel.from_pretrained(folder)
            codes = model.encode(AUDIO).audio_codes
            assert torch.equal(codes, tiny.encode(AUDIO).audio_codes)
        with torch.no_grad():
            assert_close(model.decode(codes.clone()).audio_values, tiny.decode(codes.clone()).audio_values)

    @torch.no_grad()
    def test_used_models_can_be_copied_pickled_and_converted(self, tiny: MimiModel) -> None:
        codes = tiny.encode(AUDIO).audio_codes
        audio = tiny.decode(codes).audio_values
        for twin in (copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))):
            assert torch.equal(twin.encode(AUDIO).audio_codes, codes)
            twin.half().float()
            fresh = MimiModel(tiny.config).eval()
            fresh.load_state_dict(twin.state_dict())
            assert_close(twin.decode(codes).audio_values, fresh.decode(codes).audio_values)
            assert (twin.decode(codes).audio_values - audio).abs().max() > 1e-5 * audio.abs().max()

    @torch.no_grad()
    def test_changed_codebooks_are_used(self) -> None:
        model, other = random_mimi(**TINY), random_mimi(seed=1, **TINY)
        codes = model.encode(AUDIO).audio_codes
        for _ in range(2):
            model.load_state_dict(other.state_dict())
            assert torch.equal(model.encode(AUDIO).audio_codes, other.encode(AUDIO).audio_codes)
            model.load_state_dict(random_mimi(**TINY).state_dict(), assign=True)
            assert torch.equal(model.encode(AUDIO).audio_codes, codes)

    def test_builds_on_the_meta_device(self) -> None:
        with torch.device("meta"):
            model = MimiModel(MimiConfig())
        assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
        assert model.num_parameters() == 79_308_609  # as transformers counts them
        assert model.frame_samples == 1920

    def test_counts_and_facts(self, tiny: MimiModel) -> None:
        assert tiny.num_parameters() == sum(parameter.numel() for parameter in tiny.parameters())
        frozen = copy.deepcopy(tiny).requires_grad_(False)
        assert frozen.num_parameters(only_trainable=True) == 0
        assert (tiny.device, tiny.dtype) == (torch.device("cpu"), torch.float32)
        assert random_mimi(seed=1, **TINY).codebook_hash() != tiny.codebook_hash()

    def test_the_hash_follows_the_codebooks(self, tiny: MimiModel) -> None:
        model = copy.deepcopy(tiny)
        before = model.codebook_hash()
        model.quantizer.codebooks()[-1].embed_sum[0, 0] += 1
        assert model.codebook_hash() != before
        model.load_state_dict(tiny.state_dict())
        assert model.codebook_hash() == before


class TestAttention:
    @torch.no_grad()
    def test_implementations_agree(self, tiny: MimiModel, folder: Path) -> None:
        eager = MimiModel.from_pretrained(folder, attn_implementation="eager")
        assert {eager.encoder_transformer.attn_implementation, eager.decoder_transformer.attn_implementation} == {"eager"}
        assert tiny.encoder_transformer.attn_implementation == "sdpa"
        audio = noise(1, 1, 30 * 48)
        assert_close(eager.encode_latents(audio), tiny.encode_latents(audio))
        codes = tiny.encode(audio).audio_codes
        assert torch.equal(eager.encode(audio, use_streaming=True).audio_codes, codes)
        eager.set_attn_implementation("sdpa")
        assert torch.equal(eager.decode(codes).audio_values, tiny.decode(codes).audio_values)

    def test_refusals(self, tiny: MimiModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigError, match="eager, sdpa or flash_attention_2, got 'paged'"):
            tiny.set_attn_implementation("paged")
        with pytest.raises(ConfigError, match="got 'paged'"):
            MimiModel.from_pretrained(folder, attn_implementation="paged")
        monkeypatch.setitem(__import__("sys").modules, "flash_attn", None)
        with pytest.raises(MissingExtraError, match="needs the package flash-attn"):
            tiny.set_attn_implementation("flash_attention_2")
        assert tiny.encoder_transformer.attn_implementation == "sdpa"


class TestFromPretrained:
    @pytest.mark.parametrize(
        ("options", "dtype"),
        [
            ({}, torch.float32),
            ({"dtype": None}, torch.float32),
            ({"dtype": "auto"}, torch.float16),
            ({"dtype": "bfloat16"}, torch.bfloat16),
            ({"dtype": "torch.bfloat16"}, torch.bfloat16),
            ({"dtype": torch.float64}, torch.float64),
            ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ],
        ids=str,
    )
    def test_dtype(self, options: dict[str, Any], dtype: torch.dtype) -> None:
        model = MimiModel.from_pretrained("mimi-mini", **options)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
        assert not model.training

    @pytest.mark.parametrize("dtype", ["int8", torch.int64, "float99", 3])
    def test_refuses_a_dtype(self, folder: Path, dtype: Any) -> None:
        with pytest.raises(ConfigError, match=r"expected a floating-point dtype \(float16, bfloat16, .*\), got"):
            MimiModel.from_pretrained(folder, dtype=dtype)

    def test_fields_of_the_configuration(self, folder: Path) -> None:
        model = MimiModel.from_pretrained(folder, sliding_window=4, use_streaming=True)
        assert (model.config.sliding_window, model.encoder_transformer.window) == (4, 4)
        assert model.encode(noise(1, 1, 48)).padding_cache is not None

    def test_a_configuration(self, folder: Path) -> None:
        config = MimiConfig(**TINY, use_cache=True)
        assert MimiModel.from_pretrained(folder, config=config).config is config
        with pytest.raises(ConfigError, match=r"either config=\.\.\. or fields of it, got both \(use_cache\)"):
            MimiModel.from_pretrained(folder, config=config, use_cache=True)

    def test_refuses_unknown_keywords(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="fields of MimiConfig, got sliding_windows; check the spelling"):
            MimiModel.from_pretrained(folder, sliding_windows=4)

    def test_refuses_a_configuration_of_other_weights(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match=r"the tensors of MimiModel in .*config.json belongs to these weights"):
            MimiModel.from_pretrained(folder, num_quantizers=3)

    def test_saved_equals_loaded(self, tiny: MimiModel, folder: Path, tmp_path: Path) -> None:
        loaded = MimiModel.from_pretrained(folder)
        for name, value in tiny.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name])
            assert value.stride() == loaded.state_dict()[name].stride(), "channels last, as it was built"
        with torch.no_grad():
            assert torch.equal(loaded(AUDIO).audio_values, tiny(AUDIO).audio_values)
        loaded.to(torch.bfloat16).save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "config.json").read_text())
        assert (stored["dtype"], stored["architectures"]) == ("bfloat16", ["MimiModel"])
        again = MimiModel.from_pretrained(tmp_path, dtype="auto")
        assert again.dtype == torch.bfloat16
        assert again.codebook_hash() == tiny.codebook_hash()

    def test_unknown_keys_survive(self, folder: Path, tmp_path: Path) -> None:
        model = MimiModel.from_pretrained(folder)
        model.config.normalize = False
        model.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["normalize"] is False
        assert MimiModel.from_pretrained(tmp_path).config.normalize is False

    def test_the_bundled_name_is_remembered(self, mini: MimiModel) -> None:
        assert mini.config.name_or_path == "mimi-mini"


class TestRefusals:
    @pytest.mark.parametrize(
        ("audio", "match"),
        [
            (torch.zeros(100), r"shape \(batch, 1, samples\) with at least one sample, got \(100,\); MimiFeatureExtractor"),
            (torch.zeros(2, 100), r"got \(2, 100\)"),
            (torch.zeros(1, 2, 100), r"got \(1, 2, 100\)"),
            (torch.zeros(1, 1, 0), r"got \(1, 1, 0\)"),
            (torch.zeros(0, 1, 100), r"with at least one sample, got \(0, 1, 100\); MimiFeatureExtractor"),
            (np.zeros((1, 1, 100), np.float32), r"a tensor \(batch, 1, samples\), got ndarray; MimiFeatureExtractor makes one"),
            (torch.zeros(1, 1, 100, dtype=torch.int16), r"floating-point audio in \[-1, 1\], got torch.int16; convert it"),
            (torch.zeros(1, 1, 100, dtype=torch.float64), r"model's torch.float32, got torch.float64; pass audio.to"),
        ],
    )
    def test_audio(self, tiny: MimiModel, audio: Tensor, match: str) -> None:
        for call in (tiny.encode, tiny, copy.deepcopy(tiny).train()):
            with pytest.raises(AudioError, match=match):
                call(audio)

    @pytest.mark.parametrize(
        ("mask", "match"),
        [
            (torch.ones(1, 500), r"padding_mask of shape \(2, 500\), got \(1, 500\); pass the one that MimiFeatureExtractor"),
            (torch.ones(2, 499), r"got \(2, 499\)"),
            ((torch.arange(500) >= 3).expand(2, -1), "ones, then zeros, got padding elsewhere; pad on the right"),
            ((torch.arange(500) != 250).expand(2, -1), "got padding elsewhere"),
        ],
    )
    def test_masks(self, tiny: MimiModel, mask: Tensor, match: str) -> None:
        for call in (tiny.encode, tiny, copy.deepcopy(tiny).train()):
            with pytest.raises(AudioError, match=match):
                call(AUDIO, mask)

    @pytest.mark.parametrize("number", [0, -1, 5])
    def test_num_quantizers(self, tiny: MimiModel, number: int) -> None:
        for call in (tiny.encode, tiny, copy.deepcopy(tiny).train()):
            with pytest.raises(ConfigError, match=f"expected num_quantizers from 1 to 4, got {number}; choose"):
                call(AUDIO, num_quantizers=number)

    def test_fewer_than_the_semantic_codebooks(self) -> None:
        model = random_mimi(**ODD["stereo, attention bias, two semantic"])
        with pytest.raises(ConfigError, match="expected num_quantizers from 2 to 5, got 1"):
            model.encode(noise(1, 2, 100), num_quantizers=1)
        with pytest.raises(ConfigError, match=r"\(batch, 2 to 5, frames\)"):
            model.decode(torch.zeros(1, 1, 4, dtype=torch.int64))

    @pytest.mark.parametrize(
        ("codes", "match"),
        [
            (torch.zeros(4, 3, dtype=torch.int64), r"\(batch, 1 to 4, frames\) with at least one frame, got \(4, 3\)"),
            (torch.zeros(1, 5, 3, dtype=torch.int64), r"got \(1, 5, 3\)"),
            (torch.zeros(1, 0, 3, dtype=torch.int64), r"got \(1, 0, 3\)"),
            (torch.zeros(1, 4, 0, dtype=torch.int64), r"got \(1, 4, 0\)"),
            (torch.zeros(1, 4, 3), "expected integer codes, got torch.float32"),
            (torch.full((1, 4, 3), 64), "codes from 0 to 63, got 64 to 64; these codes are of another model"),
            (torch.full((1, 4, 3), -1), "got -1 to -1"),
        ],
    )
    def test_codes(self, tiny: MimiModel, codes: Tensor, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            tiny.decode(codes)
        with pytest.raises(ConfigError, match=match):
            tiny(AUDIO, audio_codes=codes)

    def test_configurations(self) -> None:
        with pytest.raises(ConfigError, match="a MimiConfig to build MimiModel, got dict; make one with MimiConfig"):
            MimiModel(TINY)  # type: ignore[arg-type]
        config = MimiConfig(**TINY)
        config.num_semantic_quantizers = 4
        with pytest.raises(ConfigError, match="number of semantic quantizers should be lower"):
            MimiModel(config)
