"""MimiFeatureExtractor against the ecosystem's codec extractor, and what only one of them refuses."""

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
from phonograph.models.mimi.feature_extraction_mimi import MimiFeatureExtractor

RATE = 24000


def noise(length: int, channels: int | None = None) -> np.ndarray:
    shape = (length,) if channels is None else (channels, length)
    return np.random.default_rng(length).uniform(-1, 1, shape).astype(np.float32)


def is_ragged(value: Any) -> bool:
    return getattr(value, "dtype", None) == np.dtype(object)


OPTIONS = st.fixed_dictionaries(
    {
        "padding": st.sampled_from([None, True, False, "longest", "max_length", "do_not_pad"]),
        "truncation": st.booleans(),
        "max_length": st.sampled_from([None, 1, 33, 70, 300]),
        "return_tensors": st.sampled_from([None, "np", "pt"]),
    }
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(1, 250), min_size=1, max_size=4),
    channels=st.sampled_from([1, 2]),
    chunks=st.sampled_from([(None, None), (50 / RATE, 0.2), (50 / RATE, 0.0), (50 / RATE, None), (50 / RATE, 0.99)]),
    padding_side=st.sampled_from(["right", "left"]),
    options=OPTIONS,
)
def test_equals_transformers(
    lengths: list[int],
    channels: int,
    chunks: tuple[float | None, float | None],
    padding_side: str,
    options: dict[str, Any],
) -> None:
    chunk_length_s, overlap = chunks
    arguments = {
        "feature_size": channels,
        "chunk_length_s": chunk_length_s,
        "overlap": overlap,
        "padding_side": padding_side,
        "padding_value": 0.125,
    }
    ours = MimiFeatureExtractor(**arguments)
    theirs = peer("transformers").EncodecFeatureExtractor(**arguments)
    clips = [noise(length, None if channels == 1 else channels) for length in lengths]
    raw = clips if len(clips) > 1 else clips[0]
    try:
        expected = theirs(raw, sampling_rate=RATE, **options)
    except ValueError:
        expected = None
    unequal = expected is not None and any(map(is_ragged, expected.values()))
    empty = expected is not None and any(len(clip[0]) == 0 for clip in expected["input_values"])
    if expected is None or empty or (unequal and options["return_tensors"]):
        with pytest.raises(ConfigError, match=r"expected (padding or truncation|\w+ of one length|a .*max_length)"):
            ours(raw, sampling_rate=RATE, **options)
    else:
        assert_same(ours(raw, sampling_rate=RATE, **options), expected)


@pytest.mark.parametrize(
    "raw",
    [
        noise(100).tolist(),
        tuple(noise(100).tolist()),
        list(noise(100)),
        [1, 2, 3],
        [noise(100).tolist(), noise(60).tolist()],
        (noise(100), noise(60)),
        noise(100).astype(np.float64),
        [noise(100).astype(np.float64), noise(60)],
        torch.from_numpy(noise(100)),
    ],
    ids=[
        "list",
        "tuple",
        "list of numpy floats",
        "list of ints",
        "lists",
        "tuple of arrays",
        "float64",
        "mixed",
        "tensor",
    ],
)
@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
def test_forms_of_input_equal_transformers(raw: Any, return_tensors: str | None) -> None:
    theirs = peer("transformers").EncodecFeatureExtractor()
    expected = theirs(raw, sampling_rate=RATE, return_tensors=return_tensors)
    assert_same(MimiFeatureExtractor()(raw, sampling_rate=RATE, return_tensors=return_tensors), expected)


def test_forms_of_input_beyond_transformers() -> None:
    extractor = MimiFeatureExtractor()
    expected = extractor([noise(100), noise(60)], return_tensors="np")
    for raw in (
        [noise(100)[np.newaxis], noise(60)[np.newaxis]],
        [torch.from_numpy(noise(100)), torch.from_numpy(noise(60))],
    ):
        assert_same(extractor(raw, return_tensors="np"), expected)
    alone = extractor(noise(100)[np.newaxis], return_tensors="np")
    assert_same(alone, extractor(noise(100), return_tensors="np"))
    assert extractor(noise(100).astype(np.float16), return_tensors="pt").input_values.dtype == torch.float32


def test_batch_is_each_alone() -> None:
    clips = [noise(length) for length in (100, 60, 1)]
    batch = MimiFeatureExtractor()(clips, return_tensors="np")
    assert batch.input_values.shape == (3, 1, 100)
    for row, mask, clip in zip(batch.input_values, batch.padding_mask, clips, strict=True):
        assert mask.sum() == len(clip)
        np.testing.assert_array_equal(row[0, : len(clip)], clip)
        assert not row[0, len(clip) :].any()


def test_input_is_neither_changed_nor_shared() -> None:
    clip = noise(100)
    batch = MimiFeatureExtractor()(clip, return_tensors="pt")
    batch.input_values.zero_()
    np.testing.assert_array_equal(clip, noise(100))


@pytest.mark.parametrize(
    ("chunk_length_s", "overlap", "length", "stride"),
    [(None, None, None, None), (1.0, None, 24000, None), (1.0, 0.01, 24000, 23760), (0.5, 1.0, 12000, 1)],
)
def test_chunks(chunk_length_s: float | None, overlap: float | None, length: int | None, stride: int | None) -> None:
    extractor = MimiFeatureExtractor(chunk_length_s=chunk_length_s, overlap=overlap)
    assert (extractor.chunk_length, extractor.chunk_stride) == (length, stride)
    theirs = peer("transformers").EncodecFeatureExtractor(chunk_length_s=chunk_length_s, overlap=overlap)
    assert (theirs.chunk_length, theirs.chunk_stride) == (length, stride)


class TestFile:
    ARGUMENTS = (
        {},
        {"feature_size": 2, "sampling_rate": 48000, "chunk_length_s": 1.0, "overlap": 0.01},
        {"padding_value": 0.5, "padding_side": "left", "return_attention_mask": False, "extra": [1]},
    )

    @pytest.mark.parametrize("arguments", ARGUMENTS)
    def test_transformers_reads_what_we_write(self, tmp_path: Path, arguments: dict[str, Any]) -> None:
        extractor = MimiFeatureExtractor(**arguments)
        extractor.save_pretrained(tmp_path)
        theirs = peer("transformers").AutoFeatureExtractor.from_pretrained(tmp_path)
        assert type(theirs).__name__ == "EncodecFeatureExtractor"
        assert theirs.to_dict() == extractor.to_dict()

    @pytest.mark.parametrize("arguments", ARGUMENTS)
    def test_we_read_what_transformers_writes(self, tmp_path: Path, arguments: dict[str, Any]) -> None:
        theirs = peer("transformers").EncodecFeatureExtractor(**arguments)
        theirs.save_pretrained(tmp_path)
        written = (tmp_path / "preprocessor_config.json").read_text()
        loaded = MimiFeatureExtractor.from_pretrained(tmp_path)
        assert loaded.to_dict() == theirs.to_dict()
        loaded.save_pretrained(tmp_path)
        assert (tmp_path / "preprocessor_config.json").read_text() == written


def test_arrays_need_no_torch() -> None:
    program = (
        "import sys; from phonograph.models.mimi.feature_extraction_mimi import MimiFeatureExtractor as E; "
        "E()([[0.1, 0.2], [0.3]], return_tensors='np'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("channels", "raw", "match"),
    [
        (1, noise(9, 2), r"mono audio .* got shape \(2, 9\); average its channels, or pass two clips"),
        (1, noise(1, 9), r"got shape \(9, 1\); pass its transpose"),
        (1, np.zeros((2, 1, 9)), r"got shape \(2, 1, 9\); pass several clips as a list of arrays"),
        (1, np.zeros(()), r"got shape \(\)"),
        (2, noise(9), r"stereo audio \(2, time\), got shape \(9,\)"),
        (2, noise(2, 9), r"got shape \(9, 2\); pass its transpose"),
        (2, [[0.1, 0.2], [0.3, 0.4]], r"stereo audio .* got shape \(2,\)"),
        (1, np.zeros(9, np.int16), r"expected float samples in \[-1, 1\], got int16; divide integers"),
        (1, [np.zeros(9, np.int16)], "got int16"),
        (1, np.zeros(0), "at least one sample in each clip, got none; drop empty clips"),
        (1, [], "at least one sample in each clip, got none"),
        (1, [noise(9), noise(0)], "at least one sample in each clip, got none"),
        (1, [0.0] * 12000 + [np.nan] * 2, "got 2 NaN or infinite, the first at 0.500 s; repair"),
        (1, "speech.wav", "expected float samples .* got <U10"),
        (1, None, "expected float samples .* got object"),
        (1, [[[0.1], [0.2, 0.3]]], "a list that makes no array; pass a float array"),
        (1, torch.ones(9, requires_grad=True), r"a Tensor that makes no array; .* tensor\.detach\(\)\.float\(\)"),
    ],
)
def test_refuses_audio(channels: int, raw: Any, match: str) -> None:
    with pytest.raises(AudioError, match=match):
        MimiFeatureExtractor(feature_size=channels)(raw)


def test_refuses_another_rate() -> None:
    match = (
        "expected 24000 Hz audio, got 16000 Hz; resample it first: "
        r"phonograph\.audio\.load\(path, sampling_rate=24000\)"
    )
    with pytest.raises(AudioError, match=match):
        MimiFeatureExtractor()(noise(9), sampling_rate=16000)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"padding": True, "truncation": True, "max_length": 3}, "padding or truncation, got both"),
        ({"truncation": True}, "a max_length with truncation=True"),
        ({"padding": "max_length"}, "a max_length with padding='max_length'"),
        ({"padding": "shortest"}, "got 'shortest'"),
        ({"return_tensors": "jax"}, "among 'np', 'pt' and None, got 'jax'"),
        ({"padding": False, "return_tensors": "np"}, r"got shapes \(1, 60\), \(1, 100\); pass padding=True"),
    ],
)
def test_refuses_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        MimiFeatureExtractor()([noise(100), noise(60)], **options)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"feature_size": 3}, "feature_size 1 or 2 .channels., got 3"),
        ({"chunk_length": 9}, "got chunk_length=9, which MimiFeatureExtractor computes; drop it"),
    ],
)
def test_refuses_settings(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        MimiFeatureExtractor(**arguments)
