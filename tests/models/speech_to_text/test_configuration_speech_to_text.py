"""Speech2TextConfig against transformers key by key, every stored form, and what it refuses."""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
from peers import peer

from phonograph.configuration import field_rules
from phonograph.errors import ConfigError
from phonograph.models.speech_to_text.configuration_speech_to_text import Speech2TextConfig
from phonograph.models.speech_to_text.modeling_speech_to_text import Speech2TextModel

transformers = peer("transformers")

LIBRISPEECH = {
    "architectures": ["Speech2TextForConditionalGeneration"],
    "attention_dropout": 0.1,
    "classifier_dropout": 0.0,
    "conv_kernel_sizes": [5, 5],
    "early_stopping": True,
    "gradient_checkpointing": False,
    "max_length": 200,
    "model_type": "speech_to_text",
    "num_beams": 5,
    "num_hidden_layers": 12,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.27.0.dev0",
}
"""What facebook/s2t-small-librispeech-asr holds beyond the defaults, generation settings among it."""

GENERATION = {"early_stopping", "max_length", "num_beams"}

STORED_FORMS = [
    {},
    {name: value for name, value in LIBRISPEECH.items() if name not in GENERATION},
    {"d_model": 512, "encoder_attention_heads": 8, "decoder_attention_heads": 8},
    {"hidden_size": 1024, "num_attention_heads": 16},
    {"encoder_layers": 4, "num_hidden_layers": 9},
    {"num_conv_layers": 3, "conv_kernel_sizes": (3, 5, 7)},
    {"is_encoder_decoder": False, "use_cache": False, "scale_embedding": False},
    {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None},
    {"num_labels": 3, "tie_word_embeddings": False, "_name_or_path": "facebook/s2t"},
    {"activation_function": "gelu", "encoder_layerdrop": 0.1, "decoder_layerdrop": 1.0},
]


def without_stamp(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "transformers_version"}


@pytest.mark.parametrize("stored", STORED_FORMS, ids=str)
def test_every_stored_form_reads_as_in_transformers(stored: dict[str, Any]) -> None:
    ours = Speech2TextConfig.from_dict(stored)
    theirs = transformers.Speech2TextConfig.from_dict(copy.deepcopy(stored))
    for ours_dict, theirs_dict in ((ours.to_dict(), theirs.to_dict()), (ours.to_diff_dict(), theirs.to_diff_dict())):
        theirs_dict["conv_kernel_sizes"] = list(theirs_dict["conv_kernel_sizes"])  # theirs keeps a tuple until it is stored
        assert without_stamp(ours_dict) == without_stamp(theirs_dict)
    for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "num_labels"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("stored", STORED_FORMS, ids=str)
def test_files_go_both_ways(stored: dict[str, Any], tmp_path: Path) -> None:
    ours = Speech2TextConfig.from_dict(stored)
    theirs = transformers.Speech2TextConfig.from_dict(copy.deepcopy(stored))
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    ours_by_them = transformers.Speech2TextConfig.from_pretrained(tmp_path / "ours")
    theirs_by_us = Speech2TextConfig.from_json_file(tmp_path / "theirs" / "config.json")
    again = transformers.Speech2TextConfig.from_pretrained(tmp_path / "theirs")
    assert without_stamp(ours_by_them.to_diff_dict()) == without_stamp(again.to_diff_dict())
    assert theirs_by_us == ours
    assert Speech2TextConfig.from_json_file(tmp_path / "ours" / "config.json") == ours


def test_the_saved_file_is_theirs_to_the_byte() -> None:
    ours = Speech2TextConfig(transformers_version=transformers.__version__)
    assert ours.to_json_string() == transformers.Speech2TextConfig().to_json_string()


def test_generation_settings_of_older_files_survive(tmp_path: Path) -> None:
    config = Speech2TextConfig.from_dict(LIBRISPEECH)
    config.save_pretrained(tmp_path)
    for read in (config, Speech2TextConfig.from_pretrained(tmp_path)):
        assert (read.max_length, read.num_beams, read.early_stopping, read.classifier_dropout) == (200, 5, True, 0.0)
    theirs = transformers.Speech2TextConfig.from_dict(copy.deepcopy(LIBRISPEECH)).to_dict()
    assert without_stamp(config.to_dict()) == without_stamp(theirs) | {name: LIBRISPEECH[name] for name in GENERATION}


def test_signature_and_defaults_are_the_documented_ones() -> None:
    parameters = inspect.signature(Speech2TextConfig).parameters
    names = [name for name in parameters if name != "kwargs"]
    assert names[:4] == ["vocab_size", "encoder_layers", "encoder_ffn_dim", "encoder_attention_heads"]
    assert names[-3:] == ["conv_channels", "input_feat_per_channel", "input_channels"]
    assert len(names) == 29
    assert set(names) <= field_rules(Speech2TextConfig).keys()
    assert parameters["conv_kernel_sizes"].default == (5, 5)
    assert Speech2TextConfig.attribute_map == {"num_attention_heads": "encoder_attention_heads", "hidden_size": "d_model"}
    assert Speech2TextConfig.keys_to_ignore_at_inference == ["past_key_values"]
    assert Speech2TextConfig.model_type == "speech_to_text"


def test_other_names_read_and_set_the_same() -> None:
    config = Speech2TextConfig(conv_kernel_sizes=(3, 3))
    assert config.conv_kernel_sizes == [3, 3]
    config.hidden_size, config.num_attention_heads, config.num_hidden_layers = 64, 2, 3
    assert (config.d_model, config.encoder_attention_heads, config.encoder_layers) == (64, 2, 3)
    assert not {"hidden_size", "num_attention_heads", "num_hidden_layers"} & config.to_dict().keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"conv_kernel_sizes": (5,)},
            r"conv_kernel_sizes=\[5\], num_conv_layers=2: conv_kernel_sizes must hold one kernel for",
        ),
        ({"num_conv_layers": 3}, r"conv_kernel_sizes=\[5, 5\], num_conv_layers=3: conv_kernel_sizes must hold one kernel"),
        ({"vocab_size": "a"}, "vocab_size='a' must be an integer >= 1"),
        ({"dropout": 2.0}, "dropout=2.0 must be a finite number >= 0 and <= 1"),
        ({"activation_function": "nope"}, "activation_function='nope' must be one of gelu"),
        ({"pad_token_id": -1}, "pad_token_id=-1 must be an integer >= 0 or None"),
        ({"scale_embedding": 1}, "scale_embedding=1 must be true or false"),
    ],
)
def test_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Speech2TextConfig(**fields)
    with pytest.raises(ValueError, match="Speech2TextConfig: "):
        Speech2TextConfig(**fields)


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(ConfigError, match=r"d_model=0 must .*; dropout=-1 must .*; conv_kernel_sizes=\[5, 5, 5\], num_conv"):
        Speech2TextConfig(d_model=0, dropout=-1, conv_kernel_sizes=[5, 5, 5])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 30}, "d_model=30, encoder_attention_heads=4: encoder_attention_heads must divide d_model"),
        ({"decoder_attention_heads": 3}, "d_model=256, decoder_attention_heads=3: decoder_attention_heads must divide"),
        ({"conv_channels": 7}, "conv_channels=7, num_conv_layers=2: conv_channels must be even"),
        ({"conv_kernel_sizes": [4, 5]}, r"conv_kernel_sizes=\[4, 5\]: kernels must be odd"),
        ({"vocab_size": 2}, "pad_token_id=1, decoder_start_token_id=2, vocab_size=2: both tokens must be in the vocabulary"),
    ],
)
def test_what_no_model_can_be_built_from(fields: dict[str, Any], message: str) -> None:
    config = Speech2TextConfig(**fields)  # as transformers' configuration, which checks none of these
    with pytest.raises(ConfigError, match=message):
        Speech2TextModel(config)
