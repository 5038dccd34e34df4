"""The value: what it says about itself, how it is cut, what it refuses, and the formats other tools read."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from phonograph.errors import ConfigError, OutputError, TokenFileError
from phonograph.tokens import SpeechTokens, TokenFileHeader

SUFFIXES = (".mimi", ".npz", ".safetensors")


def make_header(num_codebooks=4, codebook_size=2048, **changes):
    fields = {
        "model_id": "kyutai/mimi",
        "weights_hash": "ab" * 32,
        "sampling_rate": 24000,
        "frame_samples": 1920,
    }
    return TokenFileHeader(**{**fields, "num_codebooks": num_codebooks, "codebook_size": codebook_size, **changes})


def make_tokens(num_frames=25, num_samples=None, **header):
    header = make_header(**header)
    random = np.random.default_rng(num_frames)
    codes = random.integers(0, header.codebook_size, (header.num_codebooks, num_frames))
    return SpeechTokens(codes, header, num_samples)


def test_numbers_of_a_recording():
    tokens = make_tokens(25, 47000, num_codebooks=8)
    assert tokens.codes.dtype == np.int16
    assert (tokens.model_id, tokens.weights_hash) == ("kyutai/mimi", "ab" * 32)
    assert (tokens.sampling_rate, tokens.frame_samples) == (24000, 1920)
    assert (tokens.num_codebooks, tokens.codebook_size, tokens.num_frames) == (8, 2048, 25)
    assert (tokens.frame_rate, tokens.bits_per_code, tokens.bitrate) == (12.5, 11, 1100.0)
    assert tokens.duration_seconds == 47000 / 24000
    assert make_tokens(25).duration_seconds == 2.0


@pytest.mark.parametrize(
    ("codebook_size", "bits", "dtype"),
    [
        (2, 1, np.int16),
        (3, 2, np.int16),
        (2048, 11, np.int16),
        (2049, 12, np.int16),
        (32768, 15, np.int16),
        (32769, 16, np.int32),
        (65536, 16, np.int32),
    ],
)
def test_types_by_codebook_size(codebook_size, bits, dtype):
    tokens = make_tokens(codebook_size=codebook_size)
    assert (tokens.bits_per_code, tokens.codes.dtype) == (bits, dtype)


def test_equality_is_by_value():
    assert make_tokens() == make_tokens()
    assert make_tokens() != make_tokens(num_samples=1)
    assert make_tokens() != make_tokens(sampling_rate=16000)
    assert make_tokens() != make_tokens(num_frames=26)
    assert make_tokens() != "tokens"


def test_codes_of_the_right_type_are_not_copied():
    codes = np.zeros((4, 3), np.int16)
    assert SpeechTokens(codes, make_header()).codes is codes


def test_truncate_keeps_the_first_codebooks():
    tokens = make_tokens(25, 47000)
    low = tokens.truncate(2)
    assert np.array_equal(low.codes, tokens.codes[:2])
    assert (low.num_codebooks, low.bitrate, low.num_samples) == (2, 275.0, 47000)
    assert tokens.truncate(4) == tokens


def test_slice_covers_the_time_range_with_whole_frames():
    tokens = make_tokens(25, 47000)
    part = tokens.slice(0.1, 0.2)
    assert np.array_equal(part.codes, tokens.codes[:, 1:3])
    assert part.num_samples == 2 * 1920
    assert tokens.slice(1.9).num_samples == 47000 - 23 * 1920
    assert tokens.slice(1.9, 99.0) == tokens.slice(1.9)
    assert tokens.slice(5.0).num_frames == 0
    assert tokens.slice(1e300, 1e308).num_frames == 0
    assert tokens.slice() == tokens
    assert make_tokens(25).slice(1.0).num_samples is None
    assert make_tokens(25).slice(1.0, 1.5).num_samples == 7 * 1920


@given(frame=st.integers(0, 10**6), frames=st.integers(1, 10**4), rate=st.sampled_from([24000, 16000, 44100]))
def test_a_frames_own_time_finds_that_frame(frame, frames, rate):
    header = make_header(sampling_rate=rate)
    seconds = [place * header.frame_samples / rate for place in (frame, frame + frames)]
    assert header.frame_range(*seconds, 2 * 10**6) == (frame, frame + frames)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((3, 5), int), r"expected integer codes of shape \(4, frames\), got shape \(3, 5\)"),
        (np.zeros(4, int), r"got shape \(4,\)"),
        (np.zeros((4, 2)), "got float64"),
        ([[1], [2, 3], [1], [1]], "got rows of unequal length"),
        ([[0, 0], [0, 0], [0, 2048], [0, 0]], "from 0 to 2047, got 2048 in codebook 2 at frame 1; were they"),
        ([[0, 0], [-1, 0], [0, 0], [0, 0]], "got -1 in codebook 1 at frame 0"),
    ],
)
def test_other_codes_are_refused(codes, message):
    with pytest.raises(ConfigError, match=message):
        SpeechTokens(codes, make_header())


@pytest.mark.parametrize("num_samples", [-1, 25 * 1920 + 1, 0.5, True])
def test_other_sample_counts_are_refused(num_samples):
    with pytest.raises(ConfigError, match=r"num_samples to be None or from 0 to 48000 \(25 frames of 1920 samp"):
        make_tokens(25, num_samples)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_rate": 0}, "expected sampling_rate to be an integer from 1 to 4294967295, got 0"),
        ({"sampling_rate": 24000.0}, "expected sampling_rate to be an integer .*got 24000.0"),
        ({"frame_samples": -1}, "expected frame_samples to be"),
        ({"num_codebooks": 65536}, "expected num_codebooks to be an integer from 1 to 65535, got 65536"),
        ({"codebook_size": 1}, "expected codebook_size to be an integer from 2 to 65536, got 1"),
        ({"model_id": "é" * 513}, "expected a model_id of at most 1024 bytes"),
        ({"model_id": "\ud800"}, "expected model_id to be text that UTF-8 can hold"),
        ({"model_id": "a\0"}, "expected a model_id without NUL characters"),
        ({"model_id": None}, "expected model_id to be text"),
        ({"weights_hash": "ab"}, "expected weights_hash to be empty or 64 lower-case hex digits"),
        ({"weights_hash": "AB" * 32}, "64 lower-case hex digits, not all 0, got 'ABAB"),
        ({"weights_hash": "00" * 32}, "not all 0"),
        ({"weights_hash": None}, "not all 0, got None"),
        ({"sampling_rate": 0, "codebook_size": 1}, "sampling_rate .*; expected codebook_size"),
    ],
)
def test_other_headers_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_header(**changes)


@pytest.mark.parametrize("num_codebooks", [0, 5, -1])
def test_truncate_refuses_what_is_not_there(num_codebooks):
    with pytest.raises(ConfigError, match=f"expected 1 to 4 codebooks, got {num_codebooks}"):
        make_tokens().truncate(num_codebooks)


@pytest.mark.parametrize("times", [(-1.0,), (2.0, 1.0), (float("nan"),), (0.0, float("nan")), (0.0, float("inf"))])
def test_slice_refuses_other_times(times):
    with pytest.raises(ConfigError, match="expected 0 <= start_seconds <= end_seconds, got"):
        make_tokens().slice(*times)


@pytest.mark.parametrize("frames", [(-1, 3), (3, 2), (0, 26)])
def test_slice_frames_refuses_other_frames(frames):
    with pytest.raises(ConfigError, match=r"expected frames within \[0, 25\), got"):
        make_tokens().slice_frames(*frames)


@settings(max_examples=60, deadline=None)
@given(
    suffix=st.sampled_from(SUFFIXES),
    num_codebooks=st.integers(1, 40),
    num_frames=st.integers(0, 200),
    codebook_size=st.integers(2, 65536),
    known=st.booleans(),
    model_id=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    weights_hash=st.sampled_from(["", "cd" * 32]),
)
def test_every_format_gives_back_what_was_saved(
    tmp_path_factory, suffix, num_codebooks, num_frames, codebook_size, known, model_id, weights_hash
):
    header = {"num_codebooks": num_codebooks, "codebook_size": codebook_size}
    num_samples = max(0, num_frames * 1920 - 7) if known else None
    tokens = make_tokens(num_frames, num_samples, model_id=model_id, weights_hash=weights_hash, **header)
    path = tmp_path_factory.mktemp("formats") / f"tokens{suffix.upper() if known else suffix}"
    tokens.save(path)
    loaded = SpeechTokens.load(str(path))
    assert loaded == tokens
    assert loaded.codes.dtype == tokens.codes.dtype
    assert SpeechTokens.from_arrays(tokens.to_arrays()) == tokens


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saving_is_repeatable_and_replaces(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    make_tokens(3).save(path)
    make_tokens(25).save(path)
    first = path.read_bytes()
    make_tokens(25).save(path)
    assert SpeechTokens.load(path) == make_tokens(25)
    assert suffix == ".safetensors" or path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_other_tools_read_the_exports(tmp_path):
    tokens = make_tokens(25, 47000)
    tokens.save(tmp_path / "a.npz")
    tokens.save(tmp_path / "a.safetensors")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["codes"].dtype == np.int16
        assert np.array_equal(arrays["codes"], tokens.codes)
        assert arrays["sampling_rate"] == 24000
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert list(file.keys()) == ["codes"]
        assert file.metadata()["num_samples"] == "47000"


def test_arrays_survive_a_table():
    tokens = make_tokens(25, 47000)
    row = tokens.to_arrays()
    scalars = ["model_id", "weights_hash", "sampling_rate", "frame_samples", "num_codebooks", "codebook_size"]
    assert list(row) == ["codes", *scalars, "num_samples"]
    as_json = json.loads(json.dumps({**row, "codes": row["codes"].tolist()}))
    assert SpeechTokens.from_arrays({**as_json, "another column": 1}) == tokens
    rows = np.empty(4, object)
    rows[:] = list(row["codes"])
    assert SpeechTokens.from_arrays({**row, "codes": rows, "num_samples": 47000.0}) == tokens
    unknown = make_tokens(25)
    assert SpeechTokens.from_arrays({**unknown.to_arrays(), "num_samples": float("nan")}) == unknown
    empty = make_tokens(0)
    assert SpeechTokens.from_arrays({**empty.to_arrays(), "codes": [[], [], [], []]}) == empty


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": None}, r"expected integer codes of shape \(4, frames\), got object"),
        ({"sampling_rate": "24000"}, "expected sampling_rate to be an integer, got '24000'"),
        ({"num_codebooks": 4.5}, "expected num_codebooks to be an integer, got 4.5"),
        ({"num_samples": True}, "expected num_samples to be an integer, got True"),
        ({"num_codebooks": 5}, r"expected integer codes of shape \(5, frames\), got shape \(4, 25\)"),
        ({"model_id": None}, "expected model_id to be text"),
    ],
)
def test_from_arrays_refuses_other_columns(changes, message):
    with pytest.raises(ConfigError, match=message):
        SpeechTokens.from_arrays({**make_tokens().to_arrays(), **changes})


def test_from_arrays_names_missing_columns():
    with pytest.raises(ConfigError, match="frame_samples, num_codebooks, codebook_size missing"):
        SpeechTokens.from_arrays({"codes": [[1]], "sampling_rate": 1})


@pytest.mark.parametrize("name", ["a.wav", "a", "mimi"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"expected a token file's name to end in \.mimi, \.npz, \.safetens"):
        make_tokens().save(tmp_path / name)
    with pytest.raises(ConfigError, match=r"expected a token file's name to end in \.mimi, \.npz, \.safetens"):
        SpeechTokens.load(tmp_path / name)


def test_other_ways_to_take_damage_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected on_damage to be 'raise' or 'prefix', got 'skip'"):
        SpeechTokens.load(tmp_path / "a.mimi", on_damage="skip")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_files_and_folders(tmp_path, suffix):
    with pytest.raises(TokenFileError, match=r"cannot read .*a\..*: No such file.*; check its name"):
        SpeechTokens.load(tmp_path / f"a{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(TokenFileError, match=r"cannot read .*folder\..*irectory|cannot read .*folder.*device"):
        SpeechTokens.load(tmp_path / f"folder{suffix}")
    with pytest.raises(OutputError, match=r"cannot write .*No such file or directory; choose another place"):
        make_tokens().save(tmp_path / "nowhere" / f"a{suffix}")


def test_pickles_are_never_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", codes=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(TokenFileError, match=r"cannot read speech tokens from .*Object arrays cannot be loaded"):
        SpeechTokens.load(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(pickle.dumps({"codes": [1]}))
    with pytest.raises(TokenFileError, match="it is no npz archive"):
        SpeechTokens.load(tmp_path / "b.npz")


def test_other_contents_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(()))
    with pytest.raises(TokenFileError, match=r"cannot read speech tokens from .*codes, sampling_rate"):
        SpeechTokens.load(tmp_path / "a.npz")
    (tmp_path / "a.safetensors").write_bytes(safetensors.numpy.save({"codes": np.zeros((1, 1), np.int16)}))
    with pytest.raises(TokenFileError, match=r"cannot read speech tokens from .*sampling_rate"):
        SpeechTokens.load(tmp_path / "a.safetensors")
    metadata = {"sampling_rate": "fast"}
    data = safetensors.numpy.save({"codes": np.zeros((1, 1), np.int16)}, metadata=metadata)
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(TokenFileError, match=r"invalid literal for int\(\) with base 10: 'fast'"):
        SpeechTokens.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_mutated_exports_are_a_typed_error_or_valid_tokens(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    make_tokens(40).save(path)
    original = path.read_bytes()
    random = np.random.default_rng(1)
    for _ in range(400):
        data = bytearray(original[: random.integers(1, len(original) + 1)] if random.random() < 0.3 else original)
        for _ in range(random.integers(0, 4)):
            data[random.integers(len(data))] = random.integers(256)
        path.write_bytes(data)
        try:
            tokens = SpeechTokens.load(path)
        except TokenFileError:
            pass
        else:
            assert tokens.codes.shape == (tokens.num_codebooks, tokens.num_frames)


def test_no_torch_is_loaded():
    program = "import sys, phonograph.tokens, phonograph.tokens.formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
