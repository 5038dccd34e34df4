"""The configuration base: common fields, aliases, labels, files, and what it refuses."""

import json
import subprocess
import sys
from typing import Annotated, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import peer

from phonograph.configuration import PreTrainedConfig, PretrainedConfig, Relation, Rule, field_rules
from phonograph.errors import ConfigError, OutputError, PhonographError

transformers = peer("transformers")


class ToyConfig(PreTrainedConfig):
    model_type = "toy"
    attribute_map = {"hidden_size": "d_model"}  # noqa: RUF012 (the ecosystem's form)
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    d_model: Annotated[int, Rule("width", minimum=1)]
    heads: Annotated[int, Rule("heads", minimum=1)]
    strides: Annotated[list[int], Rule("strides", minimum=1)]
    dropout: Annotated[float, Rule("share dropped", minimum=0, maximum=1)]
    is_encoder_decoder: Annotated[bool, Rule("always stored by this family")]

    _relations = (
        Relation(
            ("d_model", "heads"),
            lambda c: c.d_model % c.heads == 0,
            "heads must divide d_model",
            building=True,
        ),
        Relation(("strides",), lambda c: len(c.strides) < 4, "there can be three strides"),
    )

    def __init__(
        self,
        /,
        d_model: int = 8,
        heads: int = 2,
        strides: Any = (2, 2),
        dropout: float = 0.1,
        is_encoder_decoder: bool = True,
        **kwargs: Any,
    ) -> None:
        self._assign_fields(locals())
        super().__init__(**kwargs)


def without_stamp(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "transformers_version"}


COMMON_KEYWORDS = [
    {},
    {"dtype": "float16"},
    {"torch_dtype": "bfloat16"},
    {"dtype": torch.float32},
    {"dtype": "float16", "torch_dtype": "float32"},
    {"num_labels": 2},
    {"num_labels": 3},
    {"id2label": {0: "a"}, "label2id": {"a": 0}},
    {"id2label": {0: "a"}, "label2id": {"a": "0"}},
    {"num_labels": 3, "id2label": {0: "a"}},
    {"num_labels": 3, "label2id": {"a": 0}},
    {"output_attentions": True, "output_hidden_states": True, "return_dict": False},
    {"chunk_size_feed_forward": 5, "is_encoder_decoder": True, "architectures": ["BertModel"]},
    {"problem_type": "regression", "torchscript": True, "finetuning_task": "translation"},
    {"bos_token_id": 1, "pad_token_id": None, "tie_word_embeddings": False},
    {"name_or_path": "x"},
    {"_name_or_path": "x"},
    {"attn_implementation": "eager"},
    {"_commit_hash": "abc"},
    {"foo": 1, "_bar": 2, "task_specific_params": {"a": [1, {"b": None}]}, "baz": "é"},
    {"limit": float("inf"), "floor": float("-inf"), "cutoffs": [1.5, float("inf")]},
]


@pytest.mark.parametrize("keywords", COMMON_KEYWORDS, ids=str)
def test_common_keywords_are_stored_as_transformers_stores_them(keywords: dict[str, Any]) -> None:
    ours, theirs = PreTrainedConfig(**keywords), transformers.PretrainedConfig(**keywords)
    assert without_stamp(ours.to_dict()) == without_stamp(theirs.to_dict())
    assert without_stamp(ours.to_diff_dict()) == without_stamp(theirs.to_diff_dict())
    for use_diff in (True, False):
        our_text, their_text = ours.to_json_string(use_diff), theirs.to_json_string(use_diff)
        assert without_stamp(json.loads(our_text)) == without_stamp(json.loads(their_text))
        assert our_text.endswith("}\n")
    for name in (
        "num_labels",
        "use_return_dict",
        "name_or_path",
        "output_attentions",
        "_attn_implementation",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_json_text_is_byte_for_byte_theirs_but_for_the_stamp() -> None:
    keywords = {"num_labels": 12, "baz": "é", "limit": float("inf")}
    theirs = transformers.PretrainedConfig(**keywords).to_json_string()
    stamp = f'"transformers_version": "{transformers.__version__}"'
    # Keeping a stamp that was read is what makes the texts comparable as a whole.
    ours = PreTrainedConfig(**keywords, transformers_version=transformers.__version__).to_json_string()
    assert stamp in theirs
    assert ours == theirs


@pytest.mark.parametrize("keywords", COMMON_KEYWORDS, ids=str)
def test_files_are_read_alike_in_both_directions(keywords: dict[str, Any], tmp_path: Any) -> None:
    ours, theirs = PreTrainedConfig(**keywords), transformers.PretrainedConfig(**keywords)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    ours_by_them = transformers.PretrainedConfig.from_pretrained(tmp_path / "ours")
    theirs_by_us = PreTrainedConfig.from_json_file(tmp_path / "theirs" / "config.json")
    assert without_stamp(ours_by_them.to_diff_dict()) == without_stamp(theirs.to_diff_dict())
    assert without_stamp(theirs_by_us.to_diff_dict()) == without_stamp(ours.to_diff_dict())
    assert theirs_by_us == PreTrainedConfig.from_json_file(tmp_path / "ours" / "config.json")
    assert theirs_by_us.transformers_version == transformers.__version__


def test_from_dict_takes_overrides_as_transformers_does() -> None:
    keywords = {
        "return_unused_kwargs": True,
        "dtype": "float16",
        "bar": 2,
        "foo": 3,
        "output_attentions": True,
    }
    ours, our_rest = PreTrainedConfig.from_dict({"foo": 1}, **keywords)
    theirs, their_rest = transformers.PretrainedConfig.from_dict({"foo": 1}, **keywords)
    assert our_rest == their_rest == {"bar": 2}
    assert without_stamp(ours.to_diff_dict()) == without_stamp(theirs.to_diff_dict())
    assert PreTrainedConfig.from_dict({"foo": 1}, bar=2) == PreTrainedConfig(foo=1)


def test_generation_keys_survive_although_transformers_drops_them() -> None:
    config = PreTrainedConfig(num_beams=4, temperature=0.5, use_cache=True)
    read = PreTrainedConfig.from_dict(json.loads(config.to_json_string()))
    assert (read.num_beams, read.temperature, read.use_cache) == (4, 0.5, True)


def test_labels_are_kept_consistent() -> None:
    config = PreTrainedConfig(id2label={"0": "a", "1": "b", "2": "c"})
    assert config.id2label == {0: "a", 1: "b", 2: "c"}
    assert config.label2id == {"a": 0, "b": 1, "c": 2}
    assert config.num_labels == 3
    config.num_labels = 3
    assert config.id2label[0] == "a"
    config.num_labels = 1
    assert (config.id2label, config.label2id) == ({0: "LABEL_0"}, {"LABEL_0": 0})
    assert PreTrainedConfig(label2id={"x": 0, "y": 1}).id2label == {0: "x", 1: "y"}
    assert PreTrainedConfig(id2label={0: "x"}, label2id={"stale": 0}).label2id == {"x": 0}


def test_label_overrides_replace_both_maps() -> None:
    stored = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    assert PreTrainedConfig.from_dict(stored, id2label={"0": "z"}).label2id == {"z": 0}
    assert PreTrainedConfig.from_dict(stored, num_labels=2).label2id == {"a": 0, "b": 1}
    assert PreTrainedConfig.from_dict(stored, num_labels=3).num_labels == 3


def test_aliases_read_and_write_the_real_name() -> None:
    config = ToyConfig(hidden_size=16)
    assert (config.d_model, config.hidden_size) == (16, 16)
    config.hidden_size = 32
    config.torch_dtype = torch.float16
    config.name_or_path = "somewhere"
    assert (config.d_model, config.dtype, config.torch_dtype, config._name_or_path) == (
        32,
        "float16",
        "float16",
        "somewhere",
    )
    assert config.to_dict().keys().isdisjoint({"hidden_size", "torch_dtype", "name_or_path"})
    assert ToyConfig.from_dict({"hidden_size": 24}).d_model == 24
    assert ToyConfig.from_dict({"d_model": 24}, hidden_size=40).d_model == 40


def test_stored_forms_are_plain_json_values() -> None:
    config = ToyConfig(strides=(3, 1), extra=(1, (2, 3)), inner={"dtype": torch.float16})
    assert config.strides == [3, 1]
    values = config.to_dict()
    assert values["extra"] == [1, [2, 3]]
    assert values["inner"] == {"dtype": "float16"}
    values["strides"].append(9)
    assert config.strides == [3, 1]
    assert ToyConfig.from_dict(json.loads(config.to_json_string())) == config
    config.nested = ToyConfig(d_model=4)
    nested = json.loads(config.to_json_string())["nested"]
    assert ToyConfig.from_dict(nested) == config.nested


def test_a_family_field_is_always_stored_and_a_common_one_only_when_changed() -> None:
    stored = ToyConfig(is_encoder_decoder=False).to_diff_dict()
    assert stored["is_encoder_decoder"] is False
    assert "return_dict" not in stored
    assert ToyConfig.from_dict(stored).is_encoder_decoder is False


def test_from_dict_leaves_its_argument_alone() -> None:
    stored = {"id2label": {"0": "x"}, "deep": {"list": [1]}}
    config = PreTrainedConfig.from_dict(stored)
    config.deep["list"].append(2)
    assert stored == {"id2label": {"0": "x"}, "deep": {"list": [1]}}


def test_equality_compares_class_and_contents() -> None:
    assert ToyConfig() == ToyConfig(name_or_path="x", attn_implementation="eager", transformers_version="4.45")
    assert ToyConfig() != ToyConfig(d_model=4)
    assert ToyConfig() != PreTrainedConfig()
    assert ToyConfig() != 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(ToyConfig())


def test_repr_and_rules_are_readable() -> None:
    assert repr(ToyConfig()).startswith('ToyConfig {\n  "d_model": 8,')
    assert field_rules(ToyConfig)["d_model"].rule.meaning == "width"
    assert PretrainedConfig is PreTrainedConfig
    assert ToyConfig.keys_to_ignore_at_inference == ["past_key_values"]


def test_saving_and_reading(tmp_path: Any) -> None:
    config = ToyConfig(d_model=12, foo={"a": 1}, dtype="float16")
    config.save_pretrained(tmp_path / "new" / "folder")
    path = tmp_path / "new" / "folder" / "config.json"
    assert ToyConfig.from_json_file(path) == config
    assert ToyConfig.from_pretrained(path) == config
    assert ToyConfig.from_pretrained(path.parent) == config
    assert ToyConfig.from_pretrained(tmp_path / "new", subfolder="folder") == config
    changed, unused = ToyConfig.from_pretrained(
        path.parent, return_unused_kwargs=True, cache_dir=tmp_path, local_files_only=True, d_model=4, bar=1
    )
    assert (changed.d_model, unused) == (4, {"bar": 1})
    assert ToyConfig.get_config_dict(path.parent, token=None, bar=1) == (
        json.loads(path.read_text()),
        {"bar": 1},
    )
    config.to_json_file(tmp_path / "all.json", use_diff=False)
    assert ToyConfig.from_json_file(tmp_path / "all.json") == config
    assert [file.name for file in path.parent.iterdir()] == ["config.json"]


def test_update_and_later_changes_are_checked_by_validate() -> None:
    config = ToyConfig()
    config.update({"hidden_size": 0, "dropout": 2, "zz": 3})
    config.strides = "abc"
    assert (config.d_model, config.zz) == (0, 3)
    with pytest.raises(
        ConfigError,
        match=r"^ToyConfig: d_model=0 must be an integer >= 1; "
        r"strides='abc' must be a list of integers each >= 1; "
        r"dropout=2 must be a finite number >= 0 and <= 1$",
    ):
        config.validate()


def test_rules_for_building_are_left_to_validate() -> None:
    config = ToyConfig(d_model=9)
    assert config.faults(building=False) == []
    with pytest.raises(ConfigError, match=r"d_model=9, heads=2: heads must divide d_model"):
        config.validate()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"d_model": "8"}, r"d_model='8' must be an integer >= 1"),
        ({"d_model": True}, r"d_model=True must be an integer"),
        ({"d_model": 8.0}, r"d_model=8\.0 must be an integer"),
        ({"d_model": None}, r"d_model=None must be an integer"),
        ({"hidden_size": -1}, r"d_model=-1 must be an integer >= 1"),
        ({"strides": [2, 0]}, r"strides=\[2, 0\] must be a list of integers each >= 1"),
        ({"strides": [1, 1, 1, 1]}, r"strides=\[1, 1, 1, 1\]: there can be three strides"),
        ({"dropout": float("nan")}, r"dropout=nan must be a finite number"),
        ({"dropout": False}, r"dropout=False must be a finite number"),
        ({"return_dict": 1}, r"return_dict=1 must be true or false"),
        ({"dtype": "float17"}, r"dtype='float17' must be one of float16, bfloat16, float32, float64 or None"),
        ({"dtype": torch.int8}, r"dtype='int8' must be one of"),
        ({"architectures": "Toy"}, r"architectures='Toy' must be a list of strings or None"),
        ({"chunk_size_feed_forward": -1}, r"chunk_size_feed_forward=-1 must be an integer >= 0"),
        ({"problem_type": "guess"}, r"problem_type='guess' must be one of regression, "),
        ({"id2label": {"zero": "a"}}, r"id2label=\{'zero': 'a'\} must be a dict from integers to strings"),
        ({"id2label": [["a"]]}, r"id2label=\[\['a'\]\] must be a dict from integers to strings"),
        ({"id2label": {0: ["a"]}}, r"id2label=\{0: \['a'\]\} must be a dict from integers to strings"),
        ({"num_labels": -1}, r"num_labels=-1 must be an integer >= 0"),
        ({"num_labels": "3"}, r"num_labels='3' must be an integer >= 0"),
        ({"validate": 1}, r"the key 'validate' names a method; rename it"),
        ({"__class__": 1}, r"the key '__class__' names a method; rename it"),
        ({"architectures": "x" * 500}, r"architectures='x{70,77}\.\.\. must be"),
    ],
)
def test_refused_values_name_field_value_and_rule(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ToyConfig(**keywords)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_refused_overrides() -> None:
    with pytest.raises(ConfigError, match=r"d_model=0 must be an integer >= 1"):
        ToyConfig.from_dict({}, d_model=0)
    with pytest.raises(ConfigError, match="use_return_dict is computed, set the fields it is computed from"):
        ToyConfig.from_dict({}, use_return_dict=False)
    with pytest.raises(ConfigError, match="num_labels=None must be an integer"):
        PreTrainedConfig().num_labels = None
    with pytest.raises(AttributeError, match="'ToyConfig' object has no attribute 'pad_token_id'"):
        _ = ToyConfig().pad_token_id
    assert ToyConfig(use_return_dict=False, model_type="other").model_type == "toy"
    assert ToyConfig(use_return_dict=False).use_return_dict is True


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", r"bad\.json is not valid JSON at line 1 column 2: "),
        (b'{"a": 1,\n "b" 2}', r"bad\.json is not valid JSON at line 2 column 6: "),
        (b"", r"bad\.json is not valid JSON at line 1 column 1: "),
        (b"[1]", r"bad\.json must hold a JSON object of a configuration's fields, got \[1\]"),
        (b'{"__float__": "NaN"}', r"bad\.json must hold a JSON object of a configuration's fields, got nan"),
        (b'{"a": "\xff"}', r"bad\.json is not valid JSON at byte 7: "),
        (b'{"a":' + b"[" * 200_000, r"bad\.json is not usable JSON: "),
    ],
)
def test_damaged_files_are_refused_in_one_line(data: bytes, message: str, tmp_path: Any) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(data)
    for read in (PreTrainedConfig.from_json_file, PreTrainedConfig.from_pretrained):
        with pytest.raises(ConfigError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_missing_files_and_unwritable_places(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.json: No such file"):
        PreTrainedConfig.from_pretrained(tmp_path / "none.json")
    with pytest.raises(PhonographError, match=r"config\.json"):
        PreTrainedConfig.from_pretrained(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        PreTrainedConfig().save_pretrained(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot write"):
        PreTrainedConfig().to_json_file(tmp_path / "no" / "folder.json")
    with pytest.raises(ConfigError, match=r"ToyConfig can't be written as JSON: .*set"):
        ToyConfig(foo={1, 2}).save_pretrained(tmp_path / "other")


def test_a_file_of_another_model_is_reported() -> None:
    with pytest.warns(UserWarning, match="expected a configuration of model type 'toy', got 'bert'"):
        config = ToyConfig.from_dict({"model_type": "bert", "d_model": 4})
    assert (config.model_type, config.d_model) == ("toy", 4)


RESERVED = {name for base in (PreTrainedConfig, object) for name in vars(base)} | {
    "d_model",
    "heads",
    "strides",
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text().filter(lambda key: key != "__float__"), inner),
    max_leaves=8,
)
unknown_keys = st.text(min_size=1).filter(
    lambda key: (
        not key.startswith("_")
        and key not in RESERVED | ToyConfig().to_dict().keys() | {"hidden_size", "torch_dtype", "name_or_path"}
        and key not in ("attn_implementation", "transformers_version")
    )
)


@given(st.dictionaries(unknown_keys, json_values))
def test_unknown_keys_survive_the_round_trip(unknown: dict[str, Any]) -> None:
    config = ToyConfig.from_dict(unknown)
    assert {name: config.to_dict()[name] for name in unknown} == unknown
    assert ToyConfig.from_dict(config.to_dict()) == config
    assert ToyConfig.from_dict(config.to_diff_dict()) == config


def test_importing_it_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, phonograph.models.mimi.configuration_mimi as m; m.MimiConfig(); "
        "assert not {'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
