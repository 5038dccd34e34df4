"""Wav2Vec2FeatureExtractor against transformers, and where a batch is each clip alone only here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import assert_same, peer

from phonograph.errors import AudioError, ConfigError
from phonograph.models.wav2vec2.feature_extraction_wav2vec2 import Wav2Vec2FeatureExtractor

RATE = 16000


def noise(length: int, *batch: int) -> np.ndarray:
    return np.random.default_rng(length).uniform(-0.5, 1, (*batch, length)).astype(np.float32)


def theirs(**arguments: Any) -> Any:
    return peer("transformers").Wav2Vec2FeatureExtractor(**arguments)


def is_ragged(value: Any) -> bool:
    return getattr(value, "dtype", None) == np.dtype(object)


OPTIONS = st.fixed_dictionaries(
    {
        "padding": st.sampled_from([True, False, "longest", "max_length", "do_not_pad"]),
        "truncation": st.booleans(),
        "max_length": st.sampled_from([None, 1, 33, 70, 300]),
        "pad_to_multiple_of": st.sampled_from([None, 16]),
        "return_tensors": st.sampled_from([None, "np", "pt"]),
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(1, 250), min_size=1, max_size=4),
    do_normalize=st.booleans(),
    padding_side=st.sampled_from(["right", "left"]),
    mask=st.booleans(),
    options=OPTIONS,
)
def test_equals_transformers(
    lengths: list[int], do_normalize: bool, padding_side: str, mask: bool, options: dict[str, Any]
) -> None:
    arguments = {"do_normalize": do_normalize, "padding_side": padding_side, "padding_value": 0.125}
    ours = Wav2Vec2FeatureExtractor(return_attention_mask=mask, **arguments)
    clips = [noise(length) for length in lengths]
    raw = clips if len(clips) > 1 else clips[0]
    try:
        expected = theirs(return_attention_mask=mask, **arguments)(raw, sampling_rate=RATE, **options)
    except ValueError:
        expected = None
    if expected is None or (options["return_tensors"] and any(map(is_ragged, expected.values()))):
        with pytest.raises(ConfigError, match=r"expected (a max_length with|\w+ of one length)"):
            ours(raw, sampling_rate=RATE, **options)
        return
    batch = ours(raw, sampling_rate=RATE, **options)
    if options["return_tensors"] is None:  # theirs are one array where nothing is normalised
        expected = {name: list(value) for name, value in expected.items()}
    unpadded = sum(min(length, len(row)) for length, row in zip(lengths, batch.input_values, strict=True)) == sum(
        map(len, batch.input_values)
    )
    if not do_normalize or unpadded or (mask and padding_side == "right"):
        assert_same(batch, expected)
    else:  # theirs takes in the padding: without a mask all of it, on the left as much as there is
        assert set(batch) == set(expected)
        for row, clip, length in zip(batch.input_values, clips, lengths, strict=True):
            limit = options["max_length"] if options["truncation"] else None
            limit = limit and -(-limit // (options["pad_to_multiple_of"] or 1)) * (options["pad_to_multiple_of"] or 1)
            kept = min(length, limit or length)
            alone = ours(clip[:kept], return_tensors="np").input_values[0]
            padding = np.full(len(row) - kept, 0.125, np.float32)
            parts = [alone, padding] if padding_side == "right" else [padding, alone]
            np.testing.assert_array_equal(np.asarray(row), np.concatenate(parts))


@pytest.mark.parametrize(
    "raw",
    [
        noise(100).tolist(),
        tuple(noise(100).tolist()),
        [noise(100).tolist(), noise(60).tolist()],
        (noise(100), noise(60)),
        noise(100, 3),
        noise(100, 1),
        noise(100).astype(np.float64),
        [noise(100).astype(np.float64), noise(60)],
    ],
    ids=["list", "tuple", "lists", "tuple of arrays", "rows", "row", "float64", "mixed"],
)
@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
def test_forms_of_input_equal_transformers(raw: Any, return_tensors: str | None) -> None:
    options = {"padding": True, "return_attention_mask": True, "return_tensors": return_tensors, "sampling_rate": RATE}
    assert_same(Wav2Vec2FeatureExtractor()(raw, **options), theirs()(raw, **options))


def test_forms_of_input_beyond_transformers() -> None:
    extractor = Wav2Vec2FeatureExtractor()
    expected = extractor([noise(100), noise(60)], padding=True, return_tensors="np")
    for raw in (
        [noise(100)[np.newaxis], noise(60)[np.newaxis]],
        [torch.from_numpy(noise(100)), torch.from_numpy(noise(60))],
    ):
        assert_same(extractor(raw, padding=True, return_tensors="np"), expected)
    assert_same(extractor(torch.from_numpy(noise(100))), extractor(noise(100)))
    assert_same(extractor(torch.from_numpy(noise(100, 3))), extractor(noise(100, 3)))
    assert_same(extractor([1, 2, 3]), extractor([1.0, 2.0, 3.0]))
    half = extractor(noise(100).astype(np.float16), return_tensors="pt").input_values
    assert half.dtype == torch.float32
    assert half.mean().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("mask", [True, False])
def test_batch_is_each_alone(padding_side: str, mask: bool) -> None:
    extractor = Wav2Vec2FeatureExtractor(padding_side=padding_side, return_attention_mask=mask)
    clips = [noise(length) for length in (100, 60, 1)]
    batch = extractor(clips, padding=True, return_tensors="np")
    assert ("attention_mask" in batch) == mask
    for index, (row, clip) in enumerate(zip(batch.input_values, clips, strict=True)):
        if padding_side == "left":
            row = row[::-1]
        alone = extractor(clip, return_tensors="np").input_values[0]
        np.testing.assert_array_equal(row[: len(clip)], alone if padding_side == "right" else alone[::-1])
        assert not row[len(clip) :].any()
        if mask:
            assert batch.attention_mask[index].sum() == len(clip)


def test_silence_stays_silent() -> None:
    assert not Wav2Vec2FeatureExtractor()(np.zeros(100), return_tensors="np").input_values.any()


class TestZeroMeanUnitVarNorm:
    def test_equals_transformers(self) -> None:
        clips = [noise(100), noise(60)]
        norm = theirs().zero_mean_unit_var_norm
        for value, other in zip(Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm(clips), norm(clips, None), strict=True):
            np.testing.assert_array_equal(value, other)
        rows, masks = list(noise(100, 2)), [np.arange(100) < 30, np.ones(100, np.int32)]
        ours = Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm(rows, masks, padding_value=7.0)
        for value, other in zip(ours, norm(rows, masks, padding_value=7.0), strict=True):
            np.testing.assert_array_equal(value, other)

    def test_counts_only_real_samples_on_either_side(self) -> None:
        clip = noise(100)
        (value,) = Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm([clip], [np.arange(100) >= 40])
        np.testing.assert_array_equal(value[40:], Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm([clip[40:]])[0])
        assert not value[:40].any()


class TestFile:
    ARGUMENTS = (
        {},
        {"return_attention_mask": True, "do_normalize": False, "sampling_rate": 8000},
        {"padding_value": 0.5, "padding_side": "left", "feature_dim": 1},
    )

    @pytest.mark.parametrize("arguments", ARGUMENTS)
    def test_transformers_reads_what_we_write(self, tmp_path: Path, arguments: dict[str, Any]) -> None:
        extractor = Wav2Vec2FeatureExtractor(**arguments)
        extractor.save_pretrained(tmp_path)
        loaded = peer("transformers").AutoFeatureExtractor.from_pretrained(tmp_path)
        assert type(loaded).__name__ == "Wav2Vec2FeatureExtractor"
        assert loaded.to_dict() == extractor.to_dict()

    @pytest.mark.parametrize("arguments", ARGUMENTS)
    def test_we_read_what_transformers_writes(self, tmp_path: Path, arguments: dict[str, Any]) -> None:
        theirs(**arguments).save_pretrained(tmp_path)
        written = (tmp_path / "preprocessor_config.json").read_text()
        loaded = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
        assert loaded.to_dict() == theirs(**arguments).to_dict()
        loaded.save_pretrained(tmp_path)
        assert (tmp_path / "preprocessor_config.json").read_text() == written

    def test_obeys_the_file(self, tmp_path: Path) -> None:
        settings = {"do_normalize": False, "return_attention_mask": True, "padding_value": 0.5, "sampling_rate": 8000}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        batch = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)(
            [noise(9), noise(5)], padding=True, return_tensors="np", sampling_rate=8000
        )
        np.testing.assert_array_equal(batch.input_values[1], [*noise(5), *[0.5] * 4])
        assert batch.attention_mask.sum() == 14


def test_arrays_need_no_torch() -> None:
    program = (
        "import sys; from phonograph.models.wav2vec2.feature_extraction_wav2vec2 import Wav2Vec2FeatureExtractor as E; "
        "E()([[0.1, 0.2], [0.3]], padding=True, return_tensors='np'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        ([noise(9, 2)], r"mono audio .* got shape \(2, 9\); average its channels, or pass two clips"),
        (noise(2, 9), r"mono audio .* got shape \(9, 2\); average its channels"),
        (noise(1, 9), r"got shape \(9, 1\); pass its transpose"),
        (noise(9, 2, 2), r"got shape \(2, 2, 9\); pass several clips as a list of arrays"),
        (np.zeros(9, np.int16), r"expected float samples in \[-1, 1\], got int16; divide integers"),
        (np.zeros(0), "at least one sample in each clip, got none; drop empty clips"),
        ([], "at least one sample in each clip, got none"),
        ([noise(9), noise(0)], "at least one sample in each clip, got none"),
        ([0.0] * 8000 + [np.nan, np.inf], "got 2 NaN or infinite, the first at 0.500 s; repair"),
        ("speech.wav", "expected float samples .* got <U10"),
    ],
)
def test_refuses_audio(raw: Any, match: str) -> None:
    with pytest.raises(AudioError, match=match):
        Wav2Vec2FeatureExtractor()(raw)


def test_refuses_another_rate() -> None:
    match = r"expected 16000 Hz audio, got 8000 Hz; resample it first: phonograph\.audio\.load\(path, sampling_rate=16000\)"
    with pytest.raises(AudioError, match=match):
        Wav2Vec2FeatureExtractor()(noise(9), sampling_rate=8000)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"truncation": True}, "a max_length with truncation=True"),
        ({"padding": "max_length"}, "a max_length with padding='max_length'"),
        ({"padding": "shortest"}, "got 'shortest'"),
        ({"return_tensors": "jax"}, "among 'np', 'pt' and None, got 'jax'"),
        ({"return_tensors": "np"}, r"input_values of one length .* got shapes \(60,\), \(100,\); pass padding=True"),
    ],
)
def test_refuses_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Wav2Vec2FeatureExtractor()([noise(100), noise(60)], **options)
