"""MimiConfig against transformers key by key, its computed rates, every stored form, and what it refuses."""

import copy
import inspect
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import peer

from phonograph.configuration import field_rules
from phonograph.errors import ConfigError
from phonograph.models.mimi.configuration_mimi import ROPE_TYPES, MimiConfig

transformers = peer("transformers")

KYUTAI_FIRST_FORM = {
    "architectures": ["MimiModel"],
    "frame_rate": 12.5,
    "rope_theta": 10000.0,
    "normalize": False,
    "upsample_groups": 512,
    "sliding_window": 250,
    "trim_right_ratio": 1.0,
    "use_conv_shortcut": False,
    "torch_dtype": "float32",
    "transformers_version": "4.45.0.dev0",
    "model_type": "mimi",
}
LLAMA3 = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
STORED_FORMS = [
    {},
    KYUTAI_FIRST_FORM,
    {
        "_frame_rate": None,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "chunk_in_sec": None,
    },
    {"_frame_rate": 20.0, "frame_rate": 10.0, "use_streaming": True},
    {"frame_rate": 20, "sampling_rate": 16000, "upsampling_ratios": [5, 4, 2]},
    {"upsampling_ratios": []},
    {"hidden_size": 100},
    {"hidden_size": 37, "tie_word_embeddings": False},
    {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    {"num_labels": 3, "pad_token_id": 0, "_name_or_path": "kyutai/mimi"},
    {"rope_theta": 5.0},
    {"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
    {"rope_theta": 5.0, "rope_parameters": {"rope_type": "default"}},
    {"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
    {"rope_scaling": None, "partial_rotary_factor": 0.5},
    {"rope_parameters": {}},
    {"rope_parameters": {"rope_type": "dynamic", "factor": 2}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4000}},
    {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}},
    {"rope_parameters": LLAMA3},
    {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"type": "linear", "factor": 2.0}},
]


def without_stamp(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "transformers_version"}


@pytest.mark.parametrize("stored", STORED_FORMS, ids=str)
def test_every_stored_form_reads_as_in_transformers(stored: dict[str, Any]) -> None:
    # transformers completes the dicts it is given in place.
    ours, theirs = MimiConfig.from_dict(stored), transformers.MimiConfig.from_dict(copy.deepcopy(stored))
    assert without_stamp(ours.to_dict()) == without_stamp(theirs.to_dict())
    assert without_stamp(ours.to_diff_dict()) == without_stamp(theirs.to_diff_dict())
    for name in ("frame_rate", "frame_size", "encodec_frame_rate", "num_codebooks", "num_labels"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("stored", STORED_FORMS, ids=str)
def test_files_go_both_ways(stored: dict[str, Any], tmp_path: Any) -> None:
    ours = MimiConfig.from_dict(stored)
    theirs = transformers.MimiConfig.from_dict(copy.deepcopy(stored))
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    ours_by_them = transformers.MimiConfig.from_pretrained(tmp_path / "ours")
    theirs_by_us = MimiConfig.from_json_file(tmp_path / "theirs" / "config.json")
    assert without_stamp(ours_by_them.to_diff_dict()) == without_stamp(theirs.to_diff_dict())
    assert theirs_by_us == ours
    assert MimiConfig.from_json_file(tmp_path / "ours" / "config.json") == ours


def test_the_saved_file_is_theirs_to_the_byte() -> None:
    ours = MimiConfig(transformers_version=transformers.__version__)
    assert ours.to_json_string() == transformers.MimiConfig().to_json_string()
    assert repr(ours) == repr(transformers.MimiConfig())


def test_the_first_published_form_keeps_what_it_does_not_know() -> None:
    config = MimiConfig.from_dict(KYUTAI_FIRST_FORM)
    assert config.normalize is False
    assert (config.num_quantizers, config.frame_rate, config.dtype) == (32, 12.5, "float32")
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert "rope_theta" not in config.to_dict()
    assert "frame_rate" not in config.to_dict()
    assert config.transformers_version == "4.45.0.dev0"


def test_signature_and_defaults_are_the_documented_ones() -> None:
    parameters = inspect.signature(MimiConfig).parameters
    names = [name for name in parameters if name != "kwargs"]
    assert names[:5] == ["sampling_rate", "frame_rate", "audio_channels", "hidden_size", "num_filters"]
    assert names[-3:] == ["attention_dropout", "layer_scale_initial_scale", "attention_bias"]
    assert len(names) == 38
    assert {p.kind for p in parameters.values()} == {
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_KEYWORD,
    }
    assert set(names) - {"frame_rate"} <= field_rules(MimiConfig).keys()
    assert MimiConfig(16000, 50.0, 2).frame_rate == 50.0


def test_computed_rates() -> None:
    config = MimiConfig()
    assert (config.frame_size, config.frame_rate, config.encodec_frame_rate, config.num_codebooks) == (
        1920,
        12.5,
        25,
        32,
    )
    assert isinstance(config.frame_rate, float)
    odd = MimiConfig(sampling_rate=16000, upsampling_ratios=(7, 3), num_residual_layers=2, use_conv_shortcut=True)
    assert (odd.frame_size, odd.frame_rate, odd.encodec_frame_rate) == (42, 16000 / 42, 762)
    assert odd.upsampling_ratios == [7, 3]
    config.num_quantizers = 8
    assert config.num_codebooks == 8


def test_frame_rate_is_kept_for_older_files() -> None:
    assert MimiConfig(frame_rate=10.0).frame_rate == 10.0
    assert MimiConfig(_frame_rate=20.0).frame_rate == 20.0
    assert MimiConfig(frame_rate=10.0, _frame_rate=20.0).frame_rate == 20.0
    assert MimiConfig(frame_rate=10.0, _frame_rate=None).frame_rate == 10.0
    assert MimiConfig(frame_rate=10.0).to_dict()["_frame_rate"] == 10.0


def test_stored_values_of_computed_properties_are_dropped() -> None:
    config = MimiConfig.from_dict({"frame_size": 3, "encodec_frame_rate": 4, "num_codebooks": 5})
    assert (config.frame_size, config.encodec_frame_rate, config.num_codebooks) == (1920, 25, 32)
    assert config == MimiConfig()
    with pytest.raises(AttributeError, match="frame_size"):
        config.frame_size = 3
    with pytest.raises(ConfigError, match="frame_size is computed, set the fields it is computed from"):
        MimiConfig.from_dict({}, frame_size=3)


def test_none_is_filled_in() -> None:
    config = MimiConfig(codebook_dim=None, hidden_size=384, head_dim=None)
    assert (config.codebook_dim, config.head_dim) == (384, 48)
    rope = {"rope_type": "longrope", "short_factor": (1,) * 32, "long_factor": (2,) * 32}
    assert MimiConfig(rope_parameters=rope).rope_parameters["short_factor"] == [1] * 32
    assert rope.keys() == {"rope_type", "short_factor", "long_factor"}
    integers_for_floats = {
        "norm_eps": 1,
        "attention_dropout": 0,
        "trim_right_ratio": 1,
        "initializer_range": 1,
    }
    assert MimiConfig(**integers_for_floats).norm_eps == 1


def test_a_config_nested_in_a_larger_model(tmp_path: Any) -> None:
    csm = {"model_type": "csm", "hidden_size": 99, "codec_config": {"model_type": "mimi", "num_filters": 16}}
    assert MimiConfig.from_dict(csm) == MimiConfig(num_filters=16)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(csm))
    assert MimiConfig.from_pretrained(path) == MimiConfig(num_filters=16)
    theirs = transformers.MimiConfig.from_pretrained(tmp_path)
    assert without_stamp(MimiConfig.from_pretrained(tmp_path).to_diff_dict()) == without_stamp(theirs.to_diff_dict())
    with pytest.warns(UserWarning, match="expected a configuration of model type 'mimi', got 'csm'"):
        MimiConfig.from_dict({"model_type": "csm", "codec_config": {"model_type": "encodec"}})


def test_copies_are_equal() -> None:
    config = MimiConfig(foo={"a": [1]}, num_labels=3)
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config


REFUSED = [
    ({"num_semantic_quantizers": 32}, "num_semantic_quantizers=32, num_quantizers=32: the number of"),
    ({"num_quantizers": 1}, "semantic quantizers should be lower than the total number of quantizers"),
    ({"num_semantic_quantizers": 0}, "num_semantic_quantizers=0 must be an integer >= 1"),
    ({"num_key_value_heads": 3}, "num_attention_heads=8, num_key_value_heads=3: .* must divide"),
    ({"hidden_size": 4}, "head_dim=0 must be an integer >= 2"),
    ({"hidden_size": 40}, r"head_dim=5 \(hidden_size // num_attention_heads .*\): .* even .*, got 5"),
    ({"head_dim": 7}, "head_dim=7 .* even"),
    ({"head_dim": 6, "rope_parameters": {"partial_rotary_factor": 0.5}}, "head_dim=6 .* even .* got 3"),
    ({"hidden_size": "512"}, "hidden_size='512' must be an integer >= 1"),
    ({"hidden_size": 512.0}, r"hidden_size=512\.0 must be an integer"),
    ({"num_filters": True}, "num_filters=True must be an integer"),
    ({"num_attention_heads": 0}, "num_attention_heads=0 must be an integer >= 1"),
    ({"sampling_rate": 0}, "sampling_rate=0 must be an integer >= 1"),
    ({"sampling_rate": 24000.0}, r"sampling_rate=24000\.0 must be an integer"),
    ({"frame_rate": 0}, "_frame_rate=0 must be a finite number > 0 or None"),
    ({"frame_rate": "x"}, "_frame_rate='x' must be a finite number"),
    ({"upsampling_ratios": [8, 0]}, r"upsampling_ratios=\[8, 0\] must be a list of integers each >= 1"),
    ({"upsampling_ratios": 8}, "upsampling_ratios=8 must be a list"),
    ({"upsampling_ratios": 0}, "upsampling_ratios=0 must be a list"),
    ({"kernel_size": 0}, "kernel_size=0 must be"),
    ({"last_kernel_size": -1}, "last_kernel_size=-1 must be"),
    ({"residual_kernel_size": 0}, "residual_kernel_size=0 must be"),
    ({"dilation_growth_rate": 0}, "dilation_growth_rate=0 must be"),
    ({"num_residual_layers": -1}, "num_residual_layers=-1 must be an integer >= 0"),
    ({"audio_channels": 3}, "audio_channels=3 must be an integer >= 1 and <= 2"),
    ({"audio_channels": 0}, "audio_channels=0 must be"),
    ({"pad_mode": "circular"}, "pad_mode='circular' must be one of constant, reflect, replicate"),
    ({"hidden_act": "elu"}, "hidden_act='elu' must be one of gelu, "),
    ({"compress": 65}, "compress=65, num_filters=64: compress must leave"),
    ({"use_causal_conv": False, "trim_right_ratio": 0.5}, "must be 1 unless convolutions are causal"),
    ({"trim_right_ratio": 1.5}, r"trim_right_ratio=1\.5 must be a finite number >= 0 and <= 1"),
    ({"codebook_size": 1}, "codebook_size=1 must be an integer >= 2"),
    ({"codebook_dim": 0}, "codebook_dim=0 must be an integer >= 1"),
    ({"sliding_window": 0}, "sliding_window=0 must be an integer >= 1"),
    ({"sliding_window": None}, "sliding_window=None must be"),
    ({"attention_dropout": 1.5}, r"attention_dropout=1\.5 must be"),
    ({"norm_eps": float("nan")}, "norm_eps=nan must be a finite number"),
    ({"use_cache": 1}, "use_cache=1 must be true or false"),
    ({"tie_word_embeddings": None}, "tie_word_embeddings=None must be true or false"),
    ({"rope_parameters": []}, r"rope_parameters=\[\] must be a dict with string keys"),
    ({"rope_parameters": {"rope_type": "mrope"}}, r"\['rope_type'\]='mrope' must be one of default, "),
    ({"rope_parameters": {"rope_type": ["x"]}}, r"rope_parameters\['rope_type'\]=\['x'\] must be one of"),
    ({"rope_parameters": {"rope_theta": -1}}, r"\['rope_theta'\]=-1 must be a finite number > 0"),
    ({"rope_theta": "x"}, r"rope_parameters\['rope_theta'\]='x' must be"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, r"\['factor'\]=0\.5 must be .* >= 1"),
    ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 32}},
     r"rope_parameters\['short_factor'\] must hold 32 numbers \(one a rotated pair\), got 1"),
]  # fmt: skip


@pytest.mark.parametrize(("keywords", "message"), REFUSED, ids=lambda case: str(case)[:60])
def test_refused_values_name_field_value_and_rule(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        MimiConfig(**keywords)
    assert isinstance(caught.value, ValueError)
    assert ";" not in str(caught.value), "one fault is reported once"
    with pytest.raises(ConfigError, match=message):
        MimiConfig.from_dict(keywords)


@pytest.mark.parametrize(("rope_type", "key"), [(rope_type, key) for rope_type, keys in ROPE_TYPES.items() for key in keys])
def test_a_rope_type_needs_its_keys(rope_type: str, key: str) -> None:
    values = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    complete = {**values, "short_factor": [1.0] * 32, "long_factor": [1.0] * 32, "rope_type": rope_type}
    assert MimiConfig(rope_parameters=complete).rope_parameters["rope_type"] == rope_type
    incomplete = {name: value for name, value in complete.items() if name != key}
    with pytest.raises(ConfigError, match=f"rope_parameters of rope_type='{rope_type}' must hold '{key}'"):
        MimiConfig(rope_parameters=incomplete)
    with pytest.raises(KeyError, match=key):
        transformers.MimiConfig(rope_parameters=dict(incomplete))


def test_all_faults_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        MimiConfig(
            hidden_size=0,
            num_key_value_heads=3,
            num_semantic_quantizers=40,
            pad_mode="x",
            rope_scaling={"type": "linear"},
        )
    message = str(caught.value)
    assert message.startswith("MimiConfig: hidden_size=0 must be")
    for part in ("pad_mode='x'", "num_key_value_heads=3", "semantic quantizers", "must hold 'factor'"):
        assert part in message
    assert "head_dim" not in message, "what is derived from a refused value is not reported beside it"
    assert "\n" not in message


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"hidden_size": 100},
            "upsample_groups=512, hidden_size=100: upsample_groups must divide hidden_size",
        ),
        (
            {"codebook_dim": None},
            "codebook_dim=512, vector_quantization_hidden_dimension=256: codebook_dim must be",
        ),
    ],
)
def test_what_only_building_needs_is_refused_when_building(keywords: dict[str, Any], message: str) -> None:
    config = MimiConfig(**keywords)
    with pytest.raises(ConfigError, match=message):
        config.validate()


def test_later_changes_are_free_and_checked_when_building() -> None:
    config = MimiConfig()
    config.num_key_value_heads = 3
    config.rope_parameters = {"rope_type": "linear"}
    with pytest.raises(ConfigError, match=r"num_key_value_heads=3: .*must hold 'rope_theta'.*must hold 'factor'"):
        config.validate()


valid_fields = st.fixed_dictionaries(
    {},
    optional={
        "sampling_rate": st.integers(1, 192000),
        "frame_rate": st.none() | st.floats(0.1, 1000),
        "audio_channels": st.integers(1, 2),
        "hidden_size": st.integers(1, 64).map(lambda n: 16 * n),
        "upsampling_ratios": st.none() | st.lists(st.integers(1, 9), max_size=6),
        "use_causal_conv": st.booleans(),
        "codebook_size": st.integers(2, 1 << 20),
        "codebook_dim": st.none() | st.integers(1, 512),
        "num_quantizers": st.integers(2, 64),
        "rope_theta": st.floats(0.1, 1e9),
        "rope_parameters": st.none() | st.just({"rope_type": "dynamic", "factor": 2}) | st.just(LLAMA3),
        "dtype": st.none() | st.sampled_from(["float16", "bfloat16", "float32"]),
        "num_labels": st.integers(0, 12),
    },
)
unknown = st.dictionaries(st.from_regex(r"x_[a-z]{1,8}", fullmatch=True), st.none() | st.integers() | st.text())


@given(valid_fields, unknown)
def test_round_trips_lose_nothing(fields: dict[str, Any], further: dict[str, Any]) -> None:
    config = MimiConfig(**fields, **further)
    for values in (config.to_dict(), config.to_diff_dict(), json.loads(config.to_json_string())):
        read = MimiConfig.from_dict(values)
        assert read == config
        assert read.frame_rate == config.frame_rate
    assert {name: config.to_dict()[name] for name in further} == further
