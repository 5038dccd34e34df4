"""Audio and text through one object, and the files of public checkpoints in their several forms."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import peer
from tiny_tokenizers import LETTERS, MULTILINGUAL, letters_folder, write_json

from phonograph.errors import AudioError, CheckpointError, ConfigError, OutputError
from phonograph.models.wav2vec2.feature_extraction_wav2vec2 import Wav2Vec2FeatureExtractor
from phonograph.models.wav2vec2.processing_wav2vec2 import Wav2Vec2Processor
from phonograph.models.wav2vec2.tokenization_wav2vec2 import Wav2Vec2CTCTokenizer

RNG = np.random.default_rng(0)
CLIPS = [RNG.standard_normal(length).astype(np.float32) for length in (900, 400)]
TEXTS = ["HELLO", "A"]
PREPROCESSOR = {
    "do_normalize": True,
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
    "sampling_rate": 16000,
}


def both(folder: Path, **settings: Any) -> tuple[Wav2Vec2Processor, Any]:
    path = letters_folder(folder) / "vocab.json"
    transformers = peer("transformers")
    ours = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(**settings), Wav2Vec2CTCTokenizer(path))
    other = transformers.Wav2Vec2FeatureExtractor(**settings), transformers.Wav2Vec2CTCTokenizer(str(path))
    return ours, transformers.Wav2Vec2Processor(*other)


def assert_same(ours: Any, other: Any) -> None:
    assert set(ours) == set(other)
    for name, expected in other.items():
        assert type(ours[name]) is type(expected)
        if isinstance(expected, list) and name not in ("labels", "input_ids", "attention_mask"):
            pairs = zip(ours[name], expected, strict=True)
        else:
            pairs = iter([(np.asarray(ours[name]), np.asarray(expected))])
        for value, wanted in pairs:
            assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape)
            np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)


class TestCall:
    @pytest.mark.parametrize("return_tensors", ["np", "pt"])
    @pytest.mark.parametrize("masked", [False, True])
    def test_equals_transformers(self, return_tensors: str, masked: bool, tmp_path: Path) -> None:
        ours, other = both(tmp_path, return_attention_mask=masked)
        audio_options: dict[str, Any] = {"sampling_rate": 16000, "return_tensors": return_tensors, "padding": True}
        # without a mask, transformers counts the padding in a clip's mean
        clips = CLIPS if masked else [CLIPS[0], CLIPS[0][::-1].copy()]
        assert_same(ours(clips, **audio_options), other(clips, **audio_options))
        assert_same(ours(audio=clips, text=TEXTS, **audio_options), other(audio=clips, text=TEXTS, **audio_options))
        assert_same(ours(CLIPS[0], TEXTS[0], **audio_options), other(CLIPS[0], TEXTS[0], **audio_options))
        text_options: dict[str, Any] = {"return_tensors": return_tensors, "padding": True}
        assert_same(ours(text=TEXTS, **text_options), other(text=TEXTS, **text_options))

    def test_options_for_one_of_the_two(self, tmp_path: Path) -> None:
        ours, other = both(tmp_path)
        for options in (
            {"max_length": 3, "truncation": True},
            {"audio_kwargs": {"max_length": 200, "truncation": True}, "padding": True},
            {"text_kwargs": {"max_length": 2, "truncation": True}, "padding": True},
            {"padding": "max_length", "max_length": 1000, "truncation": True},
            {"pad_to_multiple_of": 7, "padding": True},
        ):
            arguments: dict[str, Any] = {"audio": CLIPS, "text": TEXTS, "sampling_rate": 16000, **options}
            result, expected = ours(**arguments), other(**arguments)
            assert np.asarray(result.input_values).shape == np.asarray(expected["input_values"]).shape
            assert result.labels == expected["labels"]

    def test_one_clip_and_one_text(self, tmp_path: Path) -> None:
        ours, other = both(tmp_path)
        assert ours(text="HELLO").data == dict(other(text="HELLO"))
        assert ours(CLIPS[0], "HELLO", sampling_rate=16000).labels == [LETTERS[letter] for letter in "HELLO"]

    def test_refuses(self, tmp_path: Path) -> None:
        processor, _ = both(tmp_path)
        with pytest.raises(ConfigError, match="expected audio, text or both, got neither; pass"):
            processor()
        with pytest.raises(AudioError, match="expected 16000 Hz audio, got 8000 Hz"):
            processor(CLIPS[0], sampling_rate=8000)
        with pytest.raises(ConfigError, match="got a Wav2Vec2CTCTokenizer for the Wav2Vec2FeatureExtractor; pass"):
            Wav2Vec2Processor(processor.tokenizer, processor.feature_extractor)  # type: ignore[arg-type]


class TestPadAndDecode:
    def test_pad(self, tmp_path: Path) -> None:
        ours, other = both(tmp_path)
        inputs, labels = [{"input_values": clip} for clip in CLIPS], [{"input_ids": [5, 6, 7]}, {"input_ids": [5]}]
        assert_same(ours.pad(inputs, return_tensors="pt"), other.pad(inputs, return_tensors="pt"))
        assert_same(ours.pad(labels=labels, return_tensors="pt"), other.pad(labels=labels, return_tensors="pt"))
        assert_same(ours.pad(inputs, labels, return_tensors="pt"), other.pad(inputs, labels=labels, return_tensors="pt"))
        with pytest.raises(ConfigError, match="expected input features, labels or both, got neither"):
            ours.pad()

    def test_decode(self, tmp_path: Path) -> None:
        ours, other = both(tmp_path)
        ids = [5, 5, 0, 5, 4, 6]
        assert ours.decode(ids) == other.decode(ids) == "EE T"
        assert ours.batch_decode([ids, [6]]) == other.batch_decode([ids, [6]])
        assert (
            ours.decode(ids, output_word_offsets=True).word_offsets == other.decode(ids, output_word_offsets=True).word_offsets
        )


class TestFiles:
    def test_older_form(self, tmp_path: Path) -> None:
        folder = letters_folder(
            tmp_path,
            preprocessor_config=PREPROCESSOR,
            tokenizer_config={"bos_token": "<s>", "do_lower_case": False, "return_attention_mask": False, "do_normalize": True},
            special_tokens_map={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        )
        processor = Wav2Vec2Processor.from_pretrained(folder, do_lower_case=True, do_normalize=False)
        assert (processor.feature_extractor.do_normalize, processor.tokenizer.do_lower_case) == (False, True)
        assert Wav2Vec2Processor.from_pretrained(folder).feature_extractor.do_normalize is True

    def test_written_by_transformers(self, tmp_path: Path) -> None:
        ours, other = both(tmp_path / "first", return_attention_mask=True, do_normalize=False)
        other.save_pretrained(tmp_path / "theirs")
        assert not (tmp_path / "theirs" / "preprocessor_config.json").exists()
        processor = Wav2Vec2Processor.from_pretrained(tmp_path / "theirs")
        assert processor.feature_extractor.to_dict() == ours.feature_extractor.to_dict()
        assert processor.tokenizer.get_vocab() == ours.tokenizer.get_vocab()
        # where both files are, transformers goes by the processor's
        write_json(tmp_path / "theirs" / "preprocessor_config.json", {**PREPROCESSOR, "padding_value": 7.0})
        again, by_them = (kind.from_pretrained(tmp_path / "theirs") for kind in (Wav2Vec2Processor, type(other)))
        assert again.feature_extractor.padding_value == by_them.feature_extractor.padding_value == 0.0

    def test_read_by_transformers(self, tmp_path: Path) -> None:
        ours, other = both(tmp_path / "first", return_attention_mask=True)
        paths = ours.save_pretrained(tmp_path / "ours")
        assert {Path(path).name for path in paths} >= {"preprocessor_config.json", "processor_config.json", "vocab.json"}
        for removed in (None, "processor_config.json"):
            if removed:
                (tmp_path / "ours" / removed).unlink()
            by_them = peer("transformers").Wav2Vec2Processor.from_pretrained(tmp_path / "ours")
            assert by_them.feature_extractor.to_dict() == other.feature_extractor.to_dict()
            assert by_them.tokenizer.get_vocab() == other.tokenizer.get_vocab()
        write_json(tmp_path / "ours" / "config.json", {"model_type": "wav2vec2"})
        assert type(peer("transformers").AutoProcessor.from_pretrained(tmp_path / "ours")).__name__ == "Wav2Vec2Processor"

    def test_saved_over_what_transformers_wrote(self, tmp_path: Path) -> None:
        ours, other = both(tmp_path / "first", do_normalize=False)
        other.save_pretrained(tmp_path / "saved")
        ours.feature_extractor.do_normalize = True
        ours.save_pretrained(tmp_path / "saved")
        assert Wav2Vec2Processor.from_pretrained(tmp_path / "saved").feature_extractor.do_normalize is True

    def test_language(self, tmp_path: Path) -> None:
        folder = letters_folder(
            tmp_path, MULTILINGUAL, preprocessor_config=PREPROCESSOR, tokenizer_config={"target_lang": "eng"}
        )
        processor = Wav2Vec2Processor.from_pretrained(folder, target_lang="fra")
        assert processor(text="échz").input_ids == [5, 7, 8]
        with pytest.raises(ConfigError, match=r"expected a target_lang of the vocabulary \(eng, fra\), got 'deu'"):
            Wav2Vec2Processor.from_pretrained(folder, target_lang="deu")

    def test_missing_or_unwritable(self, tmp_path: Path) -> None:
        folder = letters_folder(tmp_path / "letters")
        with pytest.raises(CheckpointError, match=r"expected a file preprocessor_config\.json in"):
            Wav2Vec2Processor.from_pretrained(folder)
        write_json(folder / "preprocessor_config.json", PREPROCESSOR)
        processor = Wav2Vec2Processor.from_pretrained(folder)
        assert json.loads(processor.feature_extractor.to_json_string())["sampling_rate"] == 16000
        (folder / "vocab.json").unlink()
        with pytest.raises(CheckpointError, match=r"expected a file vocab\.json in"):
            Wav2Vec2Processor.from_pretrained(folder)
        shutil.rmtree(folder)
        folder.write_text("a file")
        with pytest.raises(OutputError, match=r"cannot write .*letters"):
            processor.save_pretrained(folder)

    def test_in_print(self, tmp_path: Path) -> None:
        processor, _ = both(tmp_path)
        assert repr(processor).startswith("Wav2Vec2Processor(Wav2Vec2FeatureExtractor {")
        assert "Wav2Vec2CTCTokenizer(vocab_size=32" in repr(processor)
