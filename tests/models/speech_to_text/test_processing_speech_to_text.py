"""Audio and text through one object, and the files of public checkpoints in their several forms."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import peer
from tiny_tokenizers import pieces_folder, write_json

from phonograph.errors import ConfigError
from phonograph.models.speech_to_text.feature_extraction_speech_to_text import Speech2TextFeatureExtractor
from phonograph.models.speech_to_text.processing_speech_to_text import Speech2TextProcessor
from phonograph.models.speech_to_text.tokenization_speech_to_text import LANGUAGES, Speech2TextTokenizer

RNG = np.random.default_rng(0)
CLIPS = [RNG.standard_normal(length).astype(np.float32) for length in (4000, 2500)]
TEXTS = ["the fox", "a dog"]
PREPROCESSOR = {
    "do_ceptral_normalize": True,
    "feature_size": 80,
    "num_mel_bins": 80,
    "normalize_means": True,
    "normalize_vars": True,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 16000,
}


def both(folder: Path) -> tuple[Speech2TextProcessor, Any]:
    pieces_folder(folder)
    files = [str(folder / name) for name in ("vocab.json", "sentencepiece.bpe.model")]
    transformers = peer("transformers")
    ours = Speech2TextProcessor(Speech2TextFeatureExtractor(), Speech2TextTokenizer(*files))
    other = transformers.Speech2TextFeatureExtractor(), transformers.Speech2TextTokenizer(*files)
    return ours, transformers.Speech2TextProcessor(*other)


@pytest.mark.parametrize("return_tensors", ["np", "pt"])
def test_equals_transformers(return_tensors: str, tmp_path: Path) -> None:
    ours, other = both(tmp_path)
    options: dict[str, Any] = {"sampling_rate": 16000, "return_tensors": return_tensors, "padding": True}
    for arguments in ({"audio": CLIPS}, {"audio": CLIPS, "text": TEXTS}, {"text": TEXTS}):
        call = {**arguments, **options}
        if "audio" not in arguments:
            del call["sampling_rate"]
        result, expected = ours(**call), other(**call)
        assert set(result) == set(expected)
        for name, value in expected.items():
            assert type(result[name]) is type(value)
            assert (result[name].dtype, result[name].shape) == (value.dtype, value.shape)
            np.testing.assert_allclose(
                np.asarray(result[name]), np.asarray(value), atol=2e-3 if name == "input_features" else 0
            )


def test_text_alone_and_decoding(tmp_path: Path) -> None:
    ours, other = both(tmp_path)
    assert ours(text="the fox").data == dict(other(text="the fox"))
    ids = ours(text=TEXTS).input_ids
    assert ours.batch_decode(ids, skip_special_tokens=True) == other.batch_decode(ids, skip_special_tokens=True) == TEXTS
    assert ours.decode(ids[0], skip_special_tokens=True) == TEXTS[0]
    assert ours.pad(labels=[{"input_ids": [5, 6, 2]}, {"input_ids": [2]}]).input_ids == [[5, 6, 2], [2, 1, 1]]


def test_older_form(tmp_path: Path) -> None:
    languages = LANGUAGES["mustc"]
    folder = pieces_folder(tmp_path, languages, preprocessor_config=PREPROCESSOR, tokenizer_config={"lang_codes": "mustc"})
    processor = Speech2TextProcessor.from_pretrained(folder, tgt_lang="de")
    assert (processor.tokenizer.tgt_lang, processor.feature_extractor.num_mel_bins) == ("de", 80)
    labels = processor(CLIPS[0], "the fox", sampling_rate=16000).labels
    assert labels[0] == processor.tokenizer.lang_code_to_id["de"]
    with pytest.raises(ConfigError, match=r"expected a target language of the checkpoint .* got 'xx'"):
        Speech2TextProcessor.from_pretrained(folder, tgt_lang="xx")


def test_files_go_both_ways(tmp_path: Path) -> None:
    ours, other = both(tmp_path / "first")
    other.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    processor = Speech2TextProcessor.from_pretrained(tmp_path / "theirs")
    by_them = peer("transformers").Speech2TextProcessor.from_pretrained(tmp_path / "ours")
    assert processor.feature_extractor.to_dict() == by_them.feature_extractor.to_dict() == other.feature_extractor.to_dict()
    assert processor(text="the fox").data == dict(by_them(text="the fox")) == dict(other(text="the fox"))
    stored = json.loads((tmp_path / "ours" / "processor_config.json").read_text())
    assert stored == json.loads((tmp_path / "theirs" / "processor_config.json").read_text())
    write_json(tmp_path / "ours" / "config.json", {"model_type": "speech_to_text"})
    assert type(peer("transformers").AutoProcessor.from_pretrained(tmp_path / "ours")).__name__ == "Speech2TextProcessor"


def test_refuses(tmp_path: Path) -> None:
    ours, _ = both(tmp_path)
    with pytest.raises(
        ConfigError, match="expected a Speech2TextFeatureExtractor and a Speech2TextTokenizer, got a Speech2Text"
    ):
        Speech2TextProcessor(ours.tokenizer, ours.feature_extractor)  # type: ignore[arg-type]
