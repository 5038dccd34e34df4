"""Classes by model_type, and what names none."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import peer
from random_mimi import TINY, random_mimi
from tiny_tokenizers import MULTILINGUAL, letters_folder, pieces_folder, write_json

from phonograph import MimiConfig, MimiFeatureExtractor, MimiModel, PreTrainedConfig
from phonograph.errors import CheckpointError, ConfigError
from phonograph.models import auto
from phonograph.models.auto import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCTC, AutoProcessor, AutoTokenizer
from phonograph.models.speech_to_text.feature_extraction_speech_to_text import Speech2TextFeatureExtractor
from phonograph.models.speech_to_text.processing_speech_to_text import Speech2TextProcessor
from phonograph.models.speech_to_text.tokenization_speech_to_text import Speech2TextTokenizer
from phonograph.models.wav2vec2.feature_extraction_wav2vec2 import Wav2Vec2FeatureExtractor
from phonograph.models.wav2vec2.processing_wav2vec2 import Wav2Vec2Processor
from phonograph.models.wav2vec2.tokenization_wav2vec2 import Wav2Vec2CTCTokenizer

MODEL_LOADERS: list[Any] = [getattr(auto, name) for name in auto.__all__ if name.startswith("AutoModel")]
LOADERS: list[Any] = [AutoConfig, AutoFeatureExtractor, AutoTokenizer, AutoProcessor, *MODEL_LOADERS]

SMALL: dict[str, dict[str, Any]] = {
    "wav2vec2": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "conv_dim": [8, 8],
        "conv_stride": [5, 2],
        "conv_kernel": [10, 3],
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "codevector_dim": 8,
        "proj_codevector_dim": 8,
        "num_codevectors_per_group": 4,
        "mask_time_length": 2,
        "mask_feature_length": 2,
    },
    "speech_to_text": {
        "vocab_size": 20,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "conv_channels": 8,
        "max_source_positions": 50,
        "max_target_positions": 20,
    },
}
MODELS = [(model_type, loader) for model_type in SMALL for loader in auto._FAMILIES[model_type].models]
PREPROCESSOR = {"feature_size": 1, "sampling_rate": 16000, "do_normalize": True, "return_attention_mask": False}


def test_bundled_model_by_each_class() -> None:
    assert type(AutoConfig.from_pretrained("mimi-mini")) is MimiConfig
    assert AutoConfig.from_pretrained("mimi-mini") == MimiConfig.from_pretrained("mimi-mini")
    assert type(AutoModel.from_pretrained("mimi-mini")) is MimiModel
    for loader in (AutoFeatureExtractor, AutoProcessor):
        assert type(loader.from_pretrained("mimi-mini")) is MimiFeatureExtractor


@pytest.mark.parametrize(("model_type", "loader"), MODELS)
def test_each_head(model_type: str, loader: str, tmp_path: Path) -> None:
    """The class is the one that transformers gives for the same name, and saved models come back as it."""
    kind = getattr(auto, loader)
    model = kind.from_config(AutoConfig.for_model(model_type, **SMALL[model_type]))
    transformers = peer("transformers")
    config = transformers.AutoConfig.for_model(model_type, **SMALL[model_type])
    assert type(model).__name__ == type(getattr(transformers, loader).from_config(config)).__name__
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("family", auto._FAMILIES.values())
def test_the_table_names_classes(family: Any) -> None:
    paths = [family.config, family.feature_extractor, family.tokenizer, family.processor, *family.models.values()]
    for path in paths:
        if path is not None:
            module, _, name = path.rpartition(".")
            assert getattr(importlib.import_module(f"phonograph.models.{module}"), name).__name__ == name


class TestTextAndAudio:
    def wav2vec2(self, folder: Path, **files: Any) -> Path:
        return letters_folder(folder, MULTILINGUAL, tokenizer_config={"target_lang": "eng"}, **files)

    def test_whole_checkpoints(self, tmp_path: Path) -> None:
        letters = self.wav2vec2(tmp_path / "w", config={"model_type": "wav2vec2"}, preprocessor_config=PREPROCESSOR)
        pieces = pieces_folder(
            tmp_path / "s", config={"model_type": "speech_to_text"}, preprocessor_config={"feature_size": 80}
        )
        for folder, extractor, tokenizer, processor in (
            (letters, Wav2Vec2FeatureExtractor, Wav2Vec2CTCTokenizer, Wav2Vec2Processor),
            (pieces, Speech2TextFeatureExtractor, Speech2TextTokenizer, Speech2TextProcessor),
        ):
            assert type(AutoFeatureExtractor.from_pretrained(folder)) is extractor
            assert type(AutoTokenizer.from_pretrained(folder)) is tokenizer
            assert type(AutoProcessor.from_pretrained(folder)) is processor
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, subfolder="w", target_lang="fra")
        assert tokenizer.get_vocab() == MULTILINGUAL["fra"]
        processor = AutoProcessor.from_pretrained(tmp_path, subfolder="w", target_lang="fra")
        assert isinstance(processor, Wav2Vec2Processor)
        assert processor.tokenizer.target_lang == "fra"

    def test_parts_of_a_checkpoint(self, tmp_path: Path) -> None:
        """A pretrained model has no text; a folder may have text alone."""
        write_json(
            letters_folder(tmp_path / "audio", config={"model_type": "wav2vec2"}) / "preprocessor_config.json", PREPROCESSOR
        )
        (tmp_path / "audio" / "vocab.json").unlink()
        assert type(AutoProcessor.from_pretrained(tmp_path / "audio")) is Wav2Vec2FeatureExtractor
        text = self.wav2vec2(tmp_path / "text", config={"model_type": "wav2vec2"})
        assert type(AutoProcessor.from_pretrained(text)) is type(AutoTokenizer.from_pretrained(text)) is Wav2Vec2CTCTokenizer
        with pytest.raises(CheckpointError, match=r"expected a file preprocessor_config\.json in"):
            AutoFeatureExtractor.from_pretrained(text)
        with pytest.raises(CheckpointError, match=r"expected a file vocab\.json in"):
            AutoTokenizer.from_pretrained(tmp_path / "audio")

    def test_without_a_configuration(self, tmp_path: Path) -> None:
        """What a processor of either library saves, without a model beside it."""
        path = letters_folder(tmp_path / "first") / "vocab.json"
        transformers = peer("transformers")
        other = transformers.Wav2Vec2FeatureExtractor(), transformers.Wav2Vec2CTCTokenizer(str(path))
        transformers.Wav2Vec2Processor(*other).save_pretrained(tmp_path / "theirs")
        Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), Wav2Vec2CTCTokenizer(path)).save_pretrained(tmp_path / "ours")
        Wav2Vec2CTCTokenizer(path).save_pretrained(tmp_path / "text")
        Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "audio")
        for name in ("ours", "theirs"):
            assert type(AutoProcessor.from_pretrained(tmp_path / name)) is Wav2Vec2Processor
            assert type(AutoTokenizer.from_pretrained(tmp_path / name)) is Wav2Vec2CTCTokenizer
            assert type(AutoFeatureExtractor.from_pretrained(tmp_path / name)) is Wav2Vec2FeatureExtractor
        assert type(AutoProcessor.from_pretrained(tmp_path / "text")) is Wav2Vec2CTCTokenizer
        assert type(AutoProcessor.from_pretrained(tmp_path / "audio")) is Wav2Vec2FeatureExtractor

    def test_what_a_family_lacks(self, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigError, match="a model_type of wav2vec2 or speech_to_text for AutoTokenizer, got a model without text"
        ):
            AutoTokenizer.from_pretrained("mimi-mini")
        match = r"a model_type of wav2vec2 for AutoModelForCTC in .*config\.json, got 'mimi'; it has AutoModel$"
        with pytest.raises(ConfigError, match=match):
            AutoModelForCTC.from_pretrained("mimi-mini")
        with pytest.raises(ConfigError, match="for AutoModelForCTC in MimiConfig, got 'mimi'"):
            AutoModelForCTC.from_config(MimiConfig())


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
        families = "mimi or wav2vec2 or speech_to_text"
        match = rf"expected a model_type of {families} in .*config\.json, got {named}.*; phonograph has no such model"
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
    with pytest.raises(
        ConfigError, match="expected a model_type of mimi or wav2vec2 or speech_to_text in for_model, got 'bert'"
    ):
        AutoConfig.for_model("bert")
    with pytest.raises(ConfigError, match="in PreTrainedConfig, got ''"):
        AutoModel.from_config(PreTrainedConfig())


def test_the_table_imports_nothing() -> None:
    program = "import sys; import phonograph.models.auto; assert not {'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
