"""What feature extractors share: their file, batches of features, padding."""

import copy
import itertools
import json
import os
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from peers import assert_same

from phonograph.errors import AudioError, CheckpointError, ConfigError, OutputError
from phonograph.models.features import PREPROCESSOR_NAME, BatchFeature, FeatureExtractor


class Extractor(FeatureExtractor):
    feature_extractor_type = "EncodecFeatureExtractor"
    model_input_names: ClassVar[list[str]] = ["input_values", "padding_mask"]

    def __init__(self, feature_size: int = 1, sampling_rate: int = 16000, **kwargs: Any) -> None:
        super().__init__(feature_size, sampling_rate, kwargs.pop("padding_value", 0.0), **kwargs)


def peer(**settings: Any) -> Any:
    """The same extractor of transformers."""
    if os.environ.get("CI"):
        import transformers
    else:
        transformers = pytest.importorskip("transformers")
    return transformers.EncodecFeatureExtractor(**settings)


CLIPS = [np.arange(1, 7, dtype=np.float32), np.arange(1, 5, dtype=np.float64), np.array([0.5], np.float32)]


class TestPad:
    @pytest.mark.parametrize("padding_side", ["right", "left"])
    @pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
    @pytest.mark.parametrize("feature_size", [1, 3])
    def test_equals_transformers(self, padding_side: str, return_tensors: str | None, feature_size: int) -> None:
        settings = {"feature_size": feature_size, "padding_side": padding_side, "padding_value": 0.25}
        ours, theirs = Extractor(**settings), peer(**settings)
        clips = CLIPS if feature_size == 1 else [np.stack([clip] * 3, axis=1) for clip in CLIPS]
        for padding, limit, multiple, mask in itertools.product(
            [True, False, "longest", "max_length", "do_not_pad"],
            [None, (3, True), (3, False), (9, True), (9, False)],
            [None, 4],
            [None, False],
        ):
            max_length, truncation = limit or (None, False)
            options = {
                "padding": padding,
                "max_length": max_length,
                "truncation": truncation,
                "pad_to_multiple_of": multiple,
                "return_attention_mask": mask,
                "return_tensors": return_tensors,
            }
            try:
                expected = theirs.pad({"input_values": clips}, **options)
                unequal = any(value.dtype == np.dtype(object) for value in expected.values())
            except ValueError:
                expected, unequal = None, True
            if expected is None or (unequal and return_tensors):
                with pytest.raises(ConfigError, match=r"expected (a max_length with|input_values of one length)"):
                    ours.pad({"input_values": clips}, **options)
            else:
                assert_same(ours.pad({"input_values": clips}, **options), expected)

    def test_forms_of_batches(self) -> None:
        ours, theirs = Extractor(), peer()
        for features in (
            [{"input_values": clip} for clip in CLIPS],
            BatchFeature({"input_values": CLIPS}),
            {"input_values": [clip.tolist() for clip in CLIPS]},
            {"input_values": [torch.from_numpy(clip) for clip in CLIPS]},
            {"input_values": CLIPS, "labels": [1, 2, 3]},
            {"input_values": CLIPS, "attention_mask": [np.array([0] + [1] * (len(c) - 1)) for c in CLIPS]},
        ):
            assert_same(ours.pad(features), theirs.pad(copy.copy(features)))

    def test_leaves_its_input_alone(self) -> None:
        features = {"input_values": list(CLIPS)}
        Extractor().pad(features)
        assert list(features) == ["input_values"]
        assert [len(clip) for clip in features["input_values"]] == [6, 4, 1]

    @pytest.mark.parametrize(
        ("features", "options", "error", "match"),
        [
            ([], {}, AudioError, "expected at least one clip, got none"),
            ({"input_values": []}, {}, AudioError, "expected at least one clip in 'input_values', got none"),
            ({"labels": [1]}, {}, AudioError, r"with 'input_values', got \['labels'\]; pass"),
            ({"input_values": CLIPS}, {"padding": "middle"}, ConfigError, "as a bool, .* got 'middle'"),
            ({"input_values": CLIPS}, {"max_length": 0}, ConfigError, "positive max_length, got 0"),
            ({"input_values": CLIPS}, {"truncation": True}, ConfigError, "max_length with truncation=True"),
            (
                {"input_values": CLIPS},
                {"return_tensors": "tf"},
                ConfigError,
                "among 'np', 'pt' and None, got 'tf'",
            ),
        ],
    )
    def test_refuses(self, features: Any, options: dict[str, Any], error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            Extractor().pad(features, **options)


class TestBatchFeature:
    def test_is_a_dict_with_attributes(self) -> None:
        batch = BatchFeature({"input_values": [1.0]})
        assert batch.input_values is batch["input_values"]
        assert dict(**batch) == {"input_values": [1.0]}
        for other in (pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch), batch.copy()):
            assert type(other) is BatchFeature
            assert other == batch
        with pytest.raises(AttributeError, match=r"no attribute 'labels'; its items are \['input_values'\]"):
            _ = batch.labels

    def test_tensors(self) -> None:
        batch = BatchFeature({"input_values": [np.zeros(3, np.float32)], "padding_mask": np.ones((1, 3), np.int32)})
        assert batch.convert_to_tensors() is batch
        assert batch.convert_to_tensors("np").input_values.shape == (1, 3)
        assert batch.convert_to_tensors("pt").input_values.shape == (1, 3)
        assert batch.to("cpu") is batch
        assert batch.to(torch.float16).input_values.dtype == torch.float16
        assert batch.to("cpu", torch.bfloat16).input_values.dtype == torch.bfloat16
        assert batch.to("meta", dtype=torch.float64).input_values.device.type == "meta"
        assert batch.input_values.dtype == torch.float64
        assert batch.padding_mask.dtype == torch.int32

    def test_leaves_arrays_where_they_are(self) -> None:
        batch = BatchFeature({"input_values": np.zeros(3, np.float32), "names": ["a"]}).to(torch.float16)
        assert batch.input_values.dtype == np.float32
        assert batch.names == ["a"]


class TestFile:
    def test_saved_is_loaded(self, tmp_path: Path) -> None:
        extractor = Extractor(2, 48000, padding_side="left", processor_class="SomeProcessor", extra={"a": [1]})
        folder = tmp_path / "a" / "b"
        assert extractor.save_pretrained(folder) == [str(folder / PREPROCESSOR_NAME)]
        stored = json.loads((folder / PREPROCESSOR_NAME).read_text())
        assert stored["feature_extractor_type"] == "EncodecFeatureExtractor"
        assert (stored["processor_class"], stored["extra"]) == ("SomeProcessor", {"a": [1]})
        for loaded in (
            Extractor.from_pretrained(folder),
            Extractor.from_pretrained(str(tmp_path), subfolder="a/b"),
            Extractor.from_json_file(folder / PREPROCESSOR_NAME),
            Extractor.from_dict(stored),
        ):
            assert loaded.to_dict() == extractor.to_dict() == stored
        assert repr(extractor) == f"Extractor {extractor.to_json_string()}"

    def test_settings_replace_stored_ones(self, tmp_path: Path) -> None:
        Extractor(extra=1).save_pretrained(tmp_path)
        loaded = Extractor.from_pretrained(tmp_path, sampling_rate=8000, extra=2, unknown=3)
        assert (loaded.sampling_rate, loaded.extra) == (8000, 2)
        assert "unknown" not in loaded.to_dict()

    def test_settings_are_copied_out(self) -> None:
        extractor = Extractor(extra=[1])
        extractor.to_dict()["extra"].append(2)
        assert extractor.extra == [1]

    @pytest.mark.parametrize(
        ("text", "match"),
        [("{", "expected JSON in .*; fetch it again"), ("[]", "a JSON object in .*, got a list")],
    )
    def test_refuses_other_files(self, tmp_path: Path, text: str, match: str) -> None:
        (tmp_path / PREPROCESSOR_NAME).write_text(text)
        with pytest.raises(CheckpointError, match=match):
            Extractor.from_pretrained(tmp_path)

    def test_refuses_places(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"none\.json: No such file"):
            Extractor.from_json_file(tmp_path / "none.json")
        with pytest.raises(CheckpointError, match=f"expected a file {PREPROCESSOR_NAME}"):
            Extractor.from_pretrained(tmp_path)
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"cannot write .*file"):
            Extractor().save_pretrained(tmp_path / "file")

    def test_refuses_settings(self) -> None:
        with pytest.raises(ConfigError, match="padding_side 'right' or 'left', got 'top'"):
            Extractor(padding_side="top")
        with pytest.raises(ConfigError, match="expected settings, got pad=1, which Extractor computes"):
            Extractor(pad=1)
