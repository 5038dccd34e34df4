"""Checkpoints of Speech2Text: the hub's layout, both ways with transformers, generation settings, heads, number types."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import peer
from random_speech_to_text import CONFIGS, TINY, assert_close, features, random_speech_to_text, tokens
from safetensors.torch import load_file, save_file

from phonograph.errors import CheckpointError
from phonograph.models.speech_to_text.configuration_speech_to_text import Speech2TextConfig
from phonograph.models.speech_to_text.modeling_speech_to_text import (
    Speech2TextForConditionalGeneration,
    Speech2TextModel,
)

Model = Speech2TextForConditionalGeneration
TIED = "lm_head.weight"


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """As the hub holds s2t-small-librispeech-asr, save for its sizes."""
    model = random_speech_to_text(spread=6.0, **TINY | {"tie_word_embeddings": False})
    fields = {**TINY, "tie_word_embeddings": False, "model_type": "speech_to_text", "num_hidden_layers": 2}
    fields |= {
        "max_length": 20,
        "num_beams": 5,
        "early_stopping": True,
        "architectures": ["Speech2TextForConditionalGeneration"],
    }
    fields |= {"bos_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    settings = {"_from_model_config": True, "early_stopping": True, "eos_token_id": 2, "max_length": 30, "num_beams": 3}
    settings |= {"bos_token_id": 0, "decoder_start_token_id": 2, "pad_token_id": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors")
    return tmp_path


def stored_settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / "generation_config.json").read_text())
    return settings


def test_the_hubs_layout(hub_folder: Path) -> None:
    model = Model.from_pretrained(hub_folder)
    assert not model.training
    stored = load_file(hub_folder / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    assert (model.config.max_length, model.config.num_beams) == (20, 5)
    settings = model.generation_config
    assert (settings.max_length, settings.num_beams, settings.early_stopping, settings.eos_token_id) == (30, 3, True, 2)
    assert (settings.decoder_start_token_id, settings.pad_token_id) == (2, 1)
    theirs = peer("transformers").Speech2TextForConditionalGeneration.from_pretrained(hub_folder).eval()
    clip = features(model, 2, 50)
    assert torch.equal(model.generate(clip), theirs.generate(clip))


def test_settings_in_config_json_only(hub_folder: Path) -> None:
    (hub_folder / "generation_config.json").unlink()
    model = Model.from_pretrained(hub_folder / "model.safetensors")
    assert (model.generation_config.max_length, model.generation_config.num_beams) == (20, 5)
    clip = features(model, 2, 50)
    theirs = peer("transformers").Speech2TextForConditionalGeneration.from_pretrained(hub_folder).eval()
    assert torch.equal(model.generate(clip), theirs.generate(clip))


def test_settings_beside_a_single_file(hub_folder: Path) -> None:
    assert Model.from_pretrained(hub_folder / "model.safetensors").generation_config.max_length == 30


def test_a_null_setting_is_not_set(hub_folder: Path) -> None:
    (hub_folder / "generation_config.json").write_text('{"max_length": null, "num_beams": 2}')
    settings = Model.from_pretrained(hub_folder).generation_config
    assert (settings.max_length, settings.num_beams) == (20, 2)


def test_settings_that_are_no_json(hub_folder: Path) -> None:
    (hub_folder / "generation_config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"expected JSON in .*generation_config\.json"):
        Model.from_pretrained(hub_folder)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_files_go_both_ways(name: str, tmp_path: Path) -> None:
    """Ours -> theirs -> ours: every tensor to the bit, the same ids and settings on each side."""
    ours = random_speech_to_text(spread=6.0, **CONFIGS[name])
    ours.generation_config.max_length, ours.generation_config.num_beams = 15, 2
    if name == "longer than the tables":
        ours.generation_config.max_length = 3
    ours.save_pretrained(tmp_path / "ours")
    theirs = peer("transformers").Speech2TextForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    assert (theirs.generation_config.max_length, theirs.generation_config.num_beams) == (
        ours.generation_config.max_length,
        2,
    )
    theirs.save_pretrained(tmp_path / "theirs")
    again = Model.from_pretrained(tmp_path / "theirs")
    before, after = ours.state_dict(), again.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    files = [load_file(tmp_path / side / "model.safetensors").keys() for side in ("ours", "theirs")]
    assert files[0] == files[1]
    assert (TIED in files[0]) is not ours.config.tie_word_embeddings
    clip = features(ours, 2, 40)
    ids = ours.generate(clip)
    assert torch.equal(again.generate(clip), ids)
    assert torch.equal(theirs.generate(clip), ids)


def test_settings_are_saved_with_what_is_unknown(hub_folder: Path, tmp_path: Path) -> None:
    model = Model.from_pretrained(hub_folder)
    model.generation_config.length_penalty = 0.5
    model.save_pretrained(tmp_path / "saved")
    settings = stored_settings(tmp_path / "saved")
    assert (settings["length_penalty"], settings["max_length"], settings["_from_model_config"]) == (0.5, 30, True)
    again = Model.from_pretrained(tmp_path / "saved")
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    assert (again.config.max_length, again.config.num_beams) == (20, 5)


@torch.no_grad()
def test_tied_weights_are_one(tmp_path: Path) -> None:
    tied = random_speech_to_text(**TINY)
    assert tied.lm_head.weight is tied.model.decoder.embed_tokens.weight
    tied.save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.decoder.embed_tokens.weight
    untied = random_speech_to_text(**TINY | {"tie_word_embeddings": False})
    assert not torch.equal(untied.lm_head.weight, untied.model.decoder.embed_tokens.weight)


def test_positions_are_made_on_loading(hub_folder: Path) -> None:
    model = Model.from_pretrained(hub_folder, dtype=torch.bfloat16)
    for stack, size in ((model.model.encoder, 100), (model.model.decoder, 40)):
        table = stack.embed_positions.get_embedding(size + 2, 32, 1)
        assert torch.equal(stack.embed_positions.weights, table.bfloat16())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    clip = features(model, 1, 40).bfloat16()
    assert model.generate(clip).shape[0] == 1


@torch.no_grad()
def test_exact_numerics(hub_folder: Path) -> None:
    fast, exact = Model.from_pretrained(hub_folder), Model.from_pretrained(hub_folder, numerics="exact")
    assert exact.dtype == torch.float64
    clip, target = features(fast, 1, 40), tokens(fast, 1, 5)
    ours = exact(clip.double(), decoder_input_ids=target).logits
    assert_close(fast(clip, decoder_input_ids=target).logits.double(), ours, 1e-4)


@torch.no_grad()
def test_the_base_model_reads_a_file_with_a_head_and_the_other_way(hub_folder: Path, tmp_path: Path) -> None:
    whole, base = Model.from_pretrained(hub_folder), Speech2TextModel.from_pretrained(hub_folder)
    clip, target = features(whole, 1, 40), tokens(whole, 1, 5)
    states = base(clip, decoder_input_ids=target).last_hidden_state
    assert torch.equal(whole.lm_head(states), whole(clip, decoder_input_ids=target).logits)
    base.save_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match=r"1 are not there and start from random values \(lm_head\.weight\)"):
        headed = Model.from_pretrained(tmp_path / "base")
    assert torch.equal(headed.model(clip, decoder_input_ids=target).last_hidden_state, states)
    tied = random_speech_to_text(**TINY)
    tied.model.save_pretrained(tmp_path / "tied")
    again = Model.from_pretrained(tmp_path / "tied")  # nothing is missing
    assert torch.equal(again.lm_head.weight, tied.lm_head.weight)


def test_attention_implementation_by_option(hub_folder: Path) -> None:
    model = Model.from_pretrained(hub_folder, attn_implementation="eager")
    assert model.model.encoder.attn_implementation == model.model.decoder.attn_implementation == "eager"


def test_refuses_what_does_not_fit(hub_folder: Path) -> None:
    tensors = load_file(hub_folder / "model.safetensors")
    tensors["model.encoder.layers.9.fc1.weight"] = tensors.pop("model.encoder.layers.0.fc1.weight")
    save_file(tensors, hub_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(model\.encoder\.layers\.0\.fc1\.weight\); 1 unexpected"):
        Model.from_pretrained(hub_folder)
    with pytest.raises(CheckpointError, match="of another shape"):
        Model.from_pretrained(hub_folder, config=Speech2TextConfig(**TINY | {"vocab_size": 60, "tie_word_embeddings": False}))
