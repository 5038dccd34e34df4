"""Speech2TextFeatureExtractor against transformers, and where a batch is each clip alone only here."""

import itertools
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from peers import peer

from phonograph import audio
from phonograph.audio.fbank import fbank
from phonograph.errors import AudioError, ConfigError
from phonograph.models.features import BatchFeature
from phonograph.models.speech_to_text.feature_extraction_speech_to_text import Speech2TextFeatureExtractor

RATE = 16000
CLOSE = 1e-3


def noise(length: int, *batch: int) -> np.ndarray:
    return np.random.default_rng(length).uniform(-1, 1, (*batch, length)).astype(np.float32)


CLIPS = [noise(4000), noise(2500), noise(900)]


def theirs(**arguments: Any) -> Any:
    return peer("transformers").Speech2TextFeatureExtractor(**arguments)


def assert_close(ours: BatchFeature, other: Any) -> None:
    """The same items in the same containers and dtypes, features within 1e-3, masks equal."""
    assert set(ours) == set(other)
    for name, expected in other.items():
        assert type(ours[name]) is type(expected)
        for value, row in zip(ours[name], expected, strict=True):
            assert (value.dtype, value.shape) == (row.dtype, row.shape)
            tolerance = CLOSE if name == "input_features" else 0
            np.testing.assert_allclose(np.asarray(value), np.asarray(row), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "settings", [{}, {"normalize_means": False}, {"normalize_vars": False}, {"do_ceptral_normalize": False}]
)
def test_speech_equals_transformers(clip: Path, settings: dict[str, Any]) -> None:
    speech = audio.load(clip, sampling_rate=RATE, mono=True).samples[0]
    options = {"padding": True, "return_tensors": "np", "sampling_rate": RATE}
    clips = [speech, speech[:20000]]
    assert_close(Speech2TextFeatureExtractor(**settings)(clips, **options), theirs(**settings)(clips, **options))


@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
def test_padding_equals_transformers(return_tensors: str | None) -> None:
    settings = {"padding_value": 0.25}
    ours, other = Speech2TextFeatureExtractor(**settings), theirs(**settings)
    for padding, (limit, truncation), multiple in itertools.product(
        [True, False, "longest", "max_length", "do_not_pad"],
        [(None, False), (5, True), (30, True), (30, False)],
        [None, 8],
    ):
        options = {
            "padding": padding,
            "max_length": limit,
            "truncation": truncation,
            "pad_to_multiple_of": multiple,
            "return_tensors": return_tensors,
            "sampling_rate": RATE,
        }
        try:
            expected = other(CLIPS, **options)
        except ValueError:
            expected = None
        ragged = expected is not None and len({len(row) for row in expected["input_features"]}) > 1
        if expected is None or (ragged and return_tensors):
            with pytest.raises(ConfigError, match=r"expected (a max_length with|\w+ of one length)"):
                ours(CLIPS, **options)
        else:
            assert_close(ours(CLIPS, **options), expected)


@pytest.mark.parametrize(
    "raw",
    [
        CLIPS[0].tolist(),
        tuple(CLIPS[0].tolist()),
        [clip.tolist() for clip in CLIPS],
        tuple(CLIPS),
        noise(900, 3),
        noise(900, 1),
        CLIPS[0].astype(np.float64),
        [CLIPS[0].astype(np.float64), CLIPS[1]],
        [clip[np.newaxis] for clip in CLIPS],
    ],
    ids=["list", "tuple", "lists", "tuple of arrays", "rows", "row", "float64", "mixed", "(1, time)"],
)
@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
def test_forms_of_input_equal_transformers(raw: Any, return_tensors: str | None) -> None:
    options = {"padding": True, "return_tensors": return_tensors, "sampling_rate": RATE}
    assert_close(Speech2TextFeatureExtractor()(raw, **options), theirs()(raw, **options))


def test_forms_of_input_beyond_transformers() -> None:
    extractor = Speech2TextFeatureExtractor()
    expected = extractor(CLIPS, padding=True, return_tensors="np")
    assert_close(extractor([torch.from_numpy(clip) for clip in CLIPS], padding=True, return_tensors="np"), expected)
    assert_close(extractor(torch.from_numpy(CLIPS[0])), extractor(CLIPS[0]))
    assert_close(extractor(torch.from_numpy(noise(900, 3))), extractor(noise(900, 3)))
    uncut = extractor(CLIPS, padding="max_length", max_length=5)
    assert [len(row) for row in uncut.input_features] == [23, 14, 5]
    unmasked = extractor(CLIPS, padding=True, return_tensors="np", return_attention_mask=False)
    assert set(unmasked) == {"input_features"}
    np.testing.assert_array_equal(unmasked.input_features, expected.input_features)


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_batch_is_each_alone(padding_side: str) -> None:
    extractor = Speech2TextFeatureExtractor(padding_side=padding_side)
    batch = extractor(CLIPS, padding=True, return_tensors="np")
    for row, mask, clip in zip(batch.input_features, batch.attention_mask, CLIPS, strict=True):
        alone = extractor(clip, return_tensors="np").input_features[0]
        assert mask.tolist() == sorted(mask, reverse=padding_side == "right")
        np.testing.assert_array_equal(row[mask == 1], alone)
        assert not row[mask == 0].any()


def test_other_bands_equal_transformers() -> None:
    settings = {"num_mel_bins": 40, "feature_size": 40, "do_ceptral_normalize": False}
    options = {"return_tensors": "np", "sampling_rate": RATE}
    assert_close(Speech2TextFeatureExtractor(**settings)(CLIPS[0], **options), theirs(**settings)(CLIPS[0], **options))


def test_frames_are_of_25_ms_at_any_rate() -> None:
    """Theirs have as many samples as at 16 kHz."""
    extractor = Speech2TextFeatureExtractor(sampling_rate=8000, do_ceptral_normalize=False)
    features = extractor(CLIPS[0], return_tensors="pt").input_features
    expected = fbank(torch.from_numpy(CLIPS[0]) * 32768, 8000)
    torch.testing.assert_close(features[0], expected, rtol=0, atol=CLOSE)


def test_dither_is_in_steps_of_16_bits() -> None:
    torch.manual_seed(0)
    extractor = Speech2TextFeatureExtractor(dither=3.0, do_ceptral_normalize=False)
    features = extractor(np.zeros(32000), return_tensors="pt").input_features[0]
    reference = fbank(3.0 * torch.randn(32000))
    assert features.mean().item() == pytest.approx(reference.mean().item(), abs=0.1)


def test_silence_has_no_features() -> None:
    """Theirs are infinite or NaN."""
    extractor = Speech2TextFeatureExtractor()
    for clip in (np.zeros(4000), noise(400)):
        assert not extractor(clip, return_tensors="np").input_features.any()


class TestNormalize:
    FEATURES = np.random.default_rng(0).normal(3, 2, (20, 80)).astype(np.float32)

    @pytest.mark.parametrize(("means", "variances"), [(True, True), (True, False), (False, True), (False, False)])
    @pytest.mark.parametrize("length", [20, 12])
    def test_utterance_cmvn_equals_transformers(self, means: bool, variances: bool, length: int) -> None:
        arguments = (length, means, variances, 0.5)
        ours = Speech2TextFeatureExtractor.utterance_cmvn(self.FEATURES, *arguments)
        expected = theirs().utterance_cmvn(self.FEATURES.copy(), *arguments)
        assert ours.dtype == expected.dtype
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)

    def test_normalize_equals_transformers(self) -> None:
        ours, other = Speech2TextFeatureExtractor(padding_value=0.5), theirs(padding_value=0.5)
        features = [self.FEATURES, self.FEATURES + 1]
        for masks in (None, np.stack([np.arange(20) < 12, np.ones(20, bool)])):
            expected = other.normalize([value.copy() for value in features], masks)
            for value, row in zip(ours.normalize(features, masks), expected, strict=True):
                np.testing.assert_allclose(value, row, rtol=0, atol=1e-5)

    def test_input_is_not_changed(self) -> None:
        before = self.FEATURES.copy()
        Speech2TextFeatureExtractor.utterance_cmvn(self.FEATURES, 12)
        np.testing.assert_array_equal(self.FEATURES, before)


class TestFile:
    LEGACY: ClassVar[dict[str, Any]] = {"input_channels": 1, "input_feat_per_channel": 80}
    ARGUMENTS = (
        {},
        {"num_mel_bins": 40, "feature_size": 40, "dither": 0.5, "normalize_vars": False, "padding_side": "left"},
        LEGACY,
    )

    @pytest.mark.parametrize("arguments", ARGUMENTS)
    def test_transformers_reads_what_we_write(self, tmp_path: Path, arguments: dict[str, Any]) -> None:
        extractor = Speech2TextFeatureExtractor(**arguments)
        extractor.save_pretrained(tmp_path)
        loaded = peer("transformers").AutoFeatureExtractor.from_pretrained(tmp_path)
        assert type(loaded).__name__ == "Speech2TextFeatureExtractor"
        assert loaded.to_dict() == extractor.to_dict()

    @pytest.mark.parametrize("arguments", ARGUMENTS)
    def test_we_read_what_transformers_writes(self, tmp_path: Path, arguments: dict[str, Any]) -> None:
        theirs(**arguments).save_pretrained(tmp_path)
        written = (tmp_path / "preprocessor_config.json").read_text()
        loaded = Speech2TextFeatureExtractor.from_pretrained(tmp_path)
        assert loaded.to_dict() == theirs(**arguments).to_dict()
        loaded.save_pretrained(tmp_path)
        assert (tmp_path / "preprocessor_config.json").read_text() == written

    def test_obeys_the_file(self, tmp_path: Path) -> None:
        stored = {"do_ceptral_normalize": False, "num_mel_bins": 40, "feature_size": 40, **self.LEGACY}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
        features = Speech2TextFeatureExtractor.from_pretrained(tmp_path)(CLIPS[0], return_tensors="pt").input_features
        expected = fbank(torch.from_numpy(CLIPS[0]) * 32768, num_mel_bins=40)
        torch.testing.assert_close(features[0], expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        ([noise(900, 2)], r"mono audio .* got shape \(2, 900\); average its channels, or pass two clips"),
        (noise(2, 900), r"mono audio .* got shape \(900, 2\); average its channels"),
        (noise(9, 2, 2), r"got shape \(2, 2, 9\); pass several clips as a list of arrays"),
        (np.zeros(900, np.int16), r"expected float samples in \[-1, 1\], got int16; divide integers"),
        (np.zeros(0), "at least one sample in each clip, got none; drop empty clips"),
        ([noise(900), noise(399)], r"at least 400 samples \(25 ms at 16000 Hz\) in each clip, got 399; drop clips this short"),
        ([0.0] * 8000 + [np.nan, np.inf], "got 2 NaN or infinite, the first at 0.500 s; repair"),
    ],
)
def test_refuses_audio(raw: Any, match: str) -> None:
    with pytest.raises(AudioError, match=match):
        Speech2TextFeatureExtractor()(raw)


def test_refuses_another_rate() -> None:
    match = r"expected 16000 Hz audio, got 8000 Hz; resample it first: phonograph\.audio\.load\(path, sampling_rate=16000\)"
    with pytest.raises(AudioError, match=match):
        Speech2TextFeatureExtractor()(noise(900), sampling_rate=8000)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"truncation": True}, "a max_length with truncation=True"),
        ({"padding": "shortest"}, "got 'shortest'"),
        (
            {"return_tensors": "np"},
            r"input_features of one length .* got shapes \(4, 80\), \(14, 80\), \(23, 80\); pass padding",
        ),
    ],
)
def test_refuses_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Speech2TextFeatureExtractor()(CLIPS, **options)
