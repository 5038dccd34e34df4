"""Wav2Vec2Config against transformers key by key, its computed sizes, every stored form, and what it refuses."""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import peer

from phonograph.configuration import field_rules
from phonograph.errors import ConfigError
from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config

transformers = peer("transformers")

BASE_960H = {
    "activation_dropout": 0.1,
    "architectures": ["Wav2Vec2ForCTC"],
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "hidden_dropout_prob": 0.1,
    "feat_proj_dropout": 0.1,
    "gradient_checkpointing": False,
    "do_stable_layer_norm": False,
    "num_feat_extract_layers": 7,
    "transformers_version": "4.7.0.dev0",
    "model_type": "wav2vec2",
}
MMS = {
    "adapter_attn_dim": 16,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "hidden_size": 1280,
    "num_attention_heads": 16,
    "vocab_size": 154,
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
    "model_type": "wav2vec2",
}
STORED_FORMS: list[dict[str, Any]] = [
    {},
    BASE_960H,
    MMS,
    {"hidden_size": 37},
    {"hidden_size": 64, "output_hidden_size": 32, "add_adapter": True},
    {"conv_dim": (3, 4), "conv_stride": (1, 2), "conv_kernel": (2, 2), "num_feat_extract_layers": 2},
    {"num_labels": 3, "dtype": "float16", "_name_or_path": "x/y"},
    {"vocab_size": None, "bos_token_id": None, "pad_token_id": 5},
    {"mask_time_prob": 0, "layerdrop": 0, "unheard_of": {"a": [1]}},
    {"output_hidden_states": True, "output_attentions": True, "return_dict": False},
]


def without_stamp(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "transformers_version"}


@pytest.mark.parametrize("stored", STORED_FORMS, ids=str)
def test_every_stored_form_reads_as_in_transformers(stored: dict[str, Any]) -> None:
    ours, theirs = Wav2Vec2Config.from_dict(stored), transformers.Wav2Vec2Config.from_dict(copy.deepcopy(stored))
    assert without_stamp(ours.to_dict()) == without_stamp(theirs.to_dict())
    assert without_stamp(ours.to_diff_dict()) == without_stamp(theirs.to_diff_dict())
    for name in ("inputs_to_logits_ratio", "num_feat_extract_layers", "num_labels"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("stored", STORED_FORMS, ids=str)
def test_files_go_both_ways(stored: dict[str, Any], tmp_path: Path) -> None:
    ours = Wav2Vec2Config.from_dict(stored)
    theirs = transformers.Wav2Vec2Config.from_dict(copy.deepcopy(stored))
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    ours_by_them = transformers.Wav2Vec2Config.from_pretrained(tmp_path / "ours")
    assert without_stamp(ours_by_them.to_diff_dict()) == without_stamp(theirs.to_diff_dict())
    assert Wav2Vec2Config.from_json_file(tmp_path / "theirs" / "config.json") == ours
    assert Wav2Vec2Config.from_json_file(tmp_path / "ours" / "config.json") == ours


def test_signature() -> None:
    theirs = inspect.signature(transformers.Wav2Vec2Config).parameters
    ours = inspect.signature(Wav2Vec2Config).parameters
    named = [name for name in ours if name != "kwargs"]
    assert named == [name for name in theirs if name in named]
    for name in named:
        assert ours[name].default == theirs[name].default, name


def test_computed() -> None:
    config = Wav2Vec2Config()
    assert (config.inputs_to_logits_ratio, config.num_feat_extract_layers, config.output_hidden_size) == (320, 7, 768)
    config.conv_stride = [2, 3]
    assert config.inputs_to_logits_ratio == 6
    assert isinstance(config.conv_dim, list)
    assert Wav2Vec2Config(num_feat_extract_layers=3).num_feat_extract_layers == 7
    with pytest.raises(ConfigError, match="num_feat_extract_layers is computed, set the fields it is computed from"):
        Wav2Vec2Config.from_dict({}, num_feat_extract_layers=3)


class TestRefusals:
    def test_convolutions_of_unequal_number(self) -> None:
        match = (
            r"conv_dim, conv_stride, conv_kernel must have one length, got lengths \[2, 3, 1\]: "
            r"conv_dim=\[4, 5\], conv_stride=\[1, 2, 3\], conv_kernel=\[6\]"
        )
        with pytest.raises(ValueError, match=match):
            Wav2Vec2Config(conv_dim=(4, 5), conv_stride=[1, 2, 3], conv_kernel=[6])

    def test_no_convolutions(self) -> None:
        with pytest.raises(ConfigError, match=r"conv_kernel must have one length, got lengths \[0, 0, 0\]"):
            Wav2Vec2Config(conv_dim=[], conv_stride=[], conv_kernel=[])

    def test_tdnn_of_unequal_number(self) -> None:
        match = r"tdnn_dim, tdnn_kernel, tdnn_dilation must have one length, got lengths \[1, 5, 5\]: tdnn_dim=\[7\]"
        with pytest.raises(ConfigError, match=match):
            Wav2Vec2Config(tdnn_dim=[7])

    def test_all_faults_at_once(self) -> None:
        with pytest.raises(ConfigError) as caught:
            Wav2Vec2Config(
                layerdrop=1.5, feat_extract_norm="batch", conv_dim=[512], hidden_dropout=-0.1, ctc_loss_reduction="max"
            )
        message = str(caught.value)
        for part in (
            "layerdrop=1.5 must be a finite number >= 0 and <= 1",
            "feat_extract_norm='batch' must be one of group, layer",
            "hidden_dropout=-0.1 must be a finite number >= 0 and <= 1",
            "ctc_loss_reduction='max' must be one of none, mean, sum",
            "must have one length, got lengths [1, 7, 7]",
        ):
            assert part in message
        assert "\n" not in message

    @pytest.mark.parametrize(
        ("fields", "match"),
        [
            ({"hidden_size": 30}, "num_attention_heads=12, hidden_size=30: num_attention_heads must divide hidden_size"),
            ({"num_conv_pos_embedding_groups": 7}, "num_conv_pos_embedding_groups must divide hidden_size"),
            ({"num_codevector_groups": 3}, "num_codevector_groups must divide codevector_dim"),
        ],
    )
    def test_what_no_model_can_be_built_from(self, fields: dict[str, Any], match: str) -> None:
        config = Wav2Vec2Config(**fields)  # transformers makes such configurations, too
        with pytest.raises(ConfigError, match=match):
            config.validate()

    @given(data=st.data())
    def test_a_value_of_another_type_names_its_field(self, data: st.DataObject) -> None:
        rules = {name: field for name, field in field_rules(Wav2Vec2Config).items() if hasattr(Wav2Vec2Config(), name)}
        name = data.draw(st.sampled_from(sorted(rules.keys() - {"id2label", "label2id"})))
        with pytest.raises(ConfigError, match=f"{name}="):
            Wav2Vec2Config(**{name: object()})
