"""Classes by model_type, and what names none."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from random_mimi import TINY, random_mimi

from phonograph import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoProcessor,
    MimiConfig,
    MimiFeatureExtractor,
    MimiModel,
    PreTrainedConfig,
)
from phonograph.errors import CheckpointError, ConfigError

LOADERS: list[Any] = [AutoConfig, AutoModel, AutoFeatureExtractor, AutoProcessor]


def test_bundled_model_by_each_class() -> None:
    assert type(AutoConfig.from_pretrained("mimi-mini")) is MimiConfig
    assert AutoConfig.from_pretrained("mimi-mini") == MimiConfig.from_pretrained("mimi-mini")
    assert type(AutoModel.from_pretrained("mimi-mini")) is MimiModel
    for loader in (AutoFeatureExtractor, AutoProcessor):
        assert type(loader.from_pretrained("mimi-mini")) is MimiFeatureExtractor


def test_options_are_passed_on(tmp_path: Path) -> None:
    random_mimi(**TINY).save_pretrained(tmp_path / "tiny")
    model = AutoModel.from_pretrained(tmp_path, subfolder="tiny", dtype="bfloat16", sliding_window=4)
    assert (str(model.dtype), model.config.sliding_window) == ("torch.bfloat16", 4)
    assert AutoConfig.from_pretrained(tmp_path, subfolder="tiny", sliding_window=4).sliding_window == 4


def test_new_ones() -> None:
    config = AutoConfig.for_model("mimi", **TINY)
    assert config == MimiConfig(**TINY)
    assert type(AutoModel.from_config(config)) is MimiModel


@pytest.mark.parametrize("loader", LOADERS)
def test_unknown_model_type(loader: Any, tmp_path: Path) -> None:
    for content, named in (
        ({"model_type": "whisper"}, "'whisper'"),
        ({}, "None"),
        ([], "None"),
        ({"model_type": ["x"]}, r"\['x"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        match = rf"expected a model_type of mimi in .*config\.json, got {named}.*; phonograph has no such model"
        with pytest.raises(ConfigError, match=match):
            loader.from_pretrained(tmp_path)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_broken_json(loader: Any, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"expected JSON in .*config\.json, got something else"):
        loader.from_pretrained(tmp_path)


@pytest.mark.parametrize("loader", LOADERS)
def test_nothing_there(loader: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a file config\.json in"):
        loader.from_pretrained(tmp_path)


def test_unknown_model_types_of_new_ones() -> None:
    with pytest.raises(ConfigError, match="expected a model_type of mimi in for_model, got 'bert'"):
        AutoConfig.for_model("bert")
    with pytest.raises(ConfigError, match="in PreTrainedConfig, got ''"):
        AutoModel.from_config(PreTrainedConfig())


def test_the_table_imports_nothing() -> None:
    program = "import sys; import phonograph.models.auto; assert not {'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
