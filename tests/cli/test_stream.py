"""`phonograph stream`: the codes and samples of the library, each frame at once, and an end that loses nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import phonograph
from phonograph import MimiConfig, MimiModel, SpeechTokens, audio
from phonograph.cli.live import Latency
from phonograph.tokens import TokenReader

Run = Callable[..., "object"]

COMMAND = [sys.executable, "-c", "import sys; from phonograph.cli import main; sys.exit(main())"]
ONE_THREAD = ("--threads", "1")


@pytest.fixture
def pcm(work: Path) -> bytes:
    """speech.wav, 16 frames and a part of one, as s16le."""
    return np.rint(audio.load("speech.wav").samples[0] * 32768).clip(-32768, 32767).astype("<i2").tobytes()


def samples_of(pcm: bytes) -> np.ndarray:
    return np.frombuffer(pcm, "<i2").astype(np.float32)[None] / 32768


def start(*arguments: str, **options: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([*COMMAND, "stream", *arguments, *ONE_THREAD], **options)


def test_the_pair_gives_the_samples_of_the_library(work: Path, pcm: bytes) -> None:
    """cat speech.raw | phonograph stream encode | phonograph stream decode."""
    Path("speech.raw").write_bytes(pcm)
    with open("speech.raw", "rb") as file:
        encode = start("encode", "--quiet", stdin=file, stdout=subprocess.PIPE)
        decode = start("decode", "--json", stdin=encode.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        encode.stdout.close()
        back, told = decode.communicate()
    assert (encode.wait(), decode.returncode) == (0, 0)
    assert json.loads(told)["frames"] == 17
    expected = phonograph.decode(phonograph.encode(samples_of(pcm), sampling_rate=24000)).samples
    assert samples_of(back).shape == expected.shape
    assert np.abs(samples_of(back) - expected).max() <= 1 / 32768


def test_each_frame_comes_out_before_the_next_goes_in_and_an_interrupt_loses_nothing(work: Path, pcm: bytes) -> None:
    encode = start("encode", "--output-format", "text", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    expected = phonograph.encode(samples_of(pcm)).codes.T
    for frame in range(3):
        encode.stdin.write(pcm[frame * 3840 : (frame + 1) * 3840])
        encode.stdin.flush()
        assert encode.stdout.readline().split() == [str(code).encode() for code in expected[frame]]
    encode.send_signal(signal.SIGINT)
    rest, told = encode.communicate()
    assert (encode.returncode, rest) == (130, b"")
    assert re.fullmatch(rb"stream encode: 3 frames, 0\.24 s; per frame p50 .* \d+ took longer than 80 ms\n", told)
    assert b"error" not in told


def test_a_growing_file_is_whole_after_kill(work: Path, pcm: bytes) -> None:
    encode = start("encode", "-o", "live.mimi", "--json", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    encode.stdin.write(pcm[: 2 * 3840 + 100])
    encode.stdin.flush()
    while not Path("live.mimi").exists() or Path("live.mimi").stat().st_size < 150:
        assert encode.poll() is None
    with TokenReader("live.mimi") as reader:
        assert reader.num_frames >= 1
        assert not reader.finished
    encode.terminate()
    assert json.loads(encode.communicate()[1])["frames"] >= 2
    assert encode.returncode == 143
    tokens = SpeechTokens.load("live.mimi")
    assert tokens == phonograph.encode(samples_of(pcm)[:, : tokens.num_samples])
    assert tokens.num_samples == 2 * 1920 + 50


def test_a_reader_that_goes_away_is_no_error(work: Path, pcm: bytes) -> None:
    encode = start("encode", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    encode.stdout.close()
    assert encode.communicate(pcm)[1] == b""
    assert encode.returncode == 1


def test_encode_gives_the_tokens_of_the_library(run: Run, pcm: bytes) -> None:
    done = run("stream", "encode", "--quiet", stdin=pcm)
    assert (done.code, done.err) == (0, "")
    Path("live.mimi").write_bytes(done.out)
    assert SpeechTokens.load("live.mimi") == phonograph.encode(samples_of(pcm))
    assert run("stream", "encode", "-o", "new/file.mimi", "-q", "3", stdin=pcm).out == b""
    assert SpeechTokens.load("new/file.mimi") == phonograph.encode(samples_of(pcm), num_quantizers=3)


@pytest.mark.parametrize("token_format", ["mimi", "text", "raw"])
@pytest.mark.parametrize("codebooks", [2, 16])
def test_all_token_formats_decode_to_the_same(run: Run, pcm: bytes, token_format: str, codebooks: int) -> None:
    options = ("-q", codebooks, "--quiet")
    encoded = run("stream", "encode", "--output-format", token_format, *options, stdin=pcm).out
    expected = phonograph.encode(samples_of(pcm), num_quantizers=codebooks)
    if token_format == "text":
        assert np.array_equal([line.split() for line in encoded.decode().splitlines()], expected.codes.T.astype(str))
    if token_format == "raw":
        assert encoded == expected.codes.T.astype("<i2").tobytes()
    decoded = run("stream", "decode", "--input-format", token_format, "--format", "f32le", *options, stdin=encoded)
    assert (decoded.code, decoded.err) == (0, "")
    speech = phonograph.decode(expected).samples[0]
    samples = np.frombuffer(decoded.out, "<f4")
    assert len(samples) == (len(speech) if token_format == "mimi" else 17 * 1920)
    assert np.abs(samples[: len(speech)] - speech).max() < 1e-5


def test_stereo_floats_of_another_rate(run: Run, work: Path) -> None:
    left = audio.load("speech.wav").resample(16000).samples[0]
    both = np.stack([left, left], axis=1).astype("<f4")
    done = run("stream", "encode", "--rate", 16000, "--format", "f32le", "--channels", 2, "--quiet", stdin=both.tobytes())
    Path("live.mimi").write_bytes(done.out)
    expected = phonograph.encode(left[None], sampling_rate=16000)
    tokens = SpeechTokens.load("live.mimi")
    assert tokens.num_samples == expected.num_samples
    assert (tokens.codes == expected.codes).mean() > 0.99


def test_decode_of_fewer_codebooks_and_of_saved_files(run: Run, work: Path) -> None:
    decoded = run("stream", "decode", "-q", 4, "--quiet", stdin=Path("speech.mimi").read_bytes())
    expected = phonograph.decode(SpeechTokens.load("speech.mimi").truncate(4)).samples
    assert np.abs(samples_of(decoded.out) - expected).max() <= 1 / 32768


def test_nothing_in_is_an_empty_recording(run: Run) -> None:
    done = run("stream", "encode", stdin=b"")
    assert (done.code, done.err) == (0, "stream encode: 0 frames, 0.00 s; 0 took longer than 80 ms\n")
    decoded = run("stream", "decode", "--json", stdin=done.out)
    assert (decoded.code, decoded.out) == (0, b"")
    assert json.loads(decoded.err)["p50_ms"] is None


def test_the_report(run: Run, pcm: bytes) -> None:
    assert run("stream", "encode", "--quiet", stdin=pcm).err == ""
    told = run("stream", "encode", stdin=pcm).err
    numbers = r"p50 [\d.]+ ms, p95 [\d.]+ ms, p99 [\d.]+ ms, max [\d.]+ ms; real-time factor [\d.]+; \d+ took longer than 80 ms"
    assert re.fullmatch(rf"stream encode: 17 frames, 1\.36 s; per frame {numbers}\n", told)
    report = json.loads(run("stream", "encode", "--json", "--quiet", stdin=pcm).err)
    assert list(report) == ["command", "frames", "seconds", "p50_ms", "p95_ms", "p99_ms", "max_ms", "rtf", "late_frames"]
    assert report["p50_ms"] <= report["p95_ms"] <= report["p99_ms"] <= report["max_ms"]


def test_latency_counts_as_numpy_does() -> None:
    times = np.random.default_rng(0).lognormal(-4, 1, 5000)
    latency = Latency(0.08)
    for time in times:
        latency.add(float(time))
    report = latency.report()
    for percent in (50, 95, 99):
        assert report[f"p{percent}_ms"] == pytest.approx(1000 * np.quantile(times, percent / 100), rel=0.02)
    assert report["max_ms"] == pytest.approx(1000 * times.max(), abs=1e-3)
    assert report["rtf"] == pytest.approx(times.mean() / 0.08, rel=1e-4)
    assert report["late_frames"] == (times > 0.08).sum()


# The microphone ---------------------------------------------------------------------------------------------------------


class FakeStream:
    """Gives blocks of the sound, then ^C comes."""

    sound = b""

    def __init__(self, **options: object) -> None:
        self.options = options
        type(self).opened = options

    def __enter__(self) -> "FakeStream":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, samples: int) -> tuple[bytes, bool]:
        block, FakeStream.sound = FakeStream.sound[: 2 * samples], FakeStream.sound[2 * samples :]
        if not block:
            os.kill(os.getpid(), signal.SIGINT)
        return block, False


@pytest.fixture
def sounddevice(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    module = types.ModuleType("sounddevice")
    module.PortAudioError = type("PortAudioError", (Exception,), {})
    module.RawInputStream = FakeStream
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


def test_the_microphone_until_an_interrupt(run: Run, sounddevice: types.ModuleType, pcm: bytes) -> None:
    FakeStream.sound = pcm
    before = signal.getsignal(signal.SIGINT)
    done = run("stream", "encode", "--microphone", "--quiet")
    assert (done.code, done.err) == (130, "")
    assert signal.getsignal(signal.SIGINT) is before
    assert FakeStream.opened == {"samplerate": 24000, "channels": 1, "dtype": "int16", "blocksize": 1920}
    Path("live.mimi").write_bytes(done.out)
    assert SpeechTokens.load("live.mimi") == phonograph.encode(samples_of(pcm))


def test_no_sounddevice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    done = run("stream", "encode", "--microphone")
    assert (done.code, done.out) == (2, b"")
    assert done.err == (
        "error: --microphone needs the package sounddevice, which is not installed; run: pip install 'phonograph[live]'\n"
    )


def test_no_device(run: Run, sounddevice: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise sounddevice.PortAudioError("Invalid sample rate")

    monkeypatch.setattr(sounddevice, "RawInputStream", refuse)
    done = run("stream", "encode", "--microphone", "--rate", 44100)
    assert done.code == 2
    assert "expected a microphone that gives 1 x 44100 Hz, got: Invalid sample rate; check the device" in done.err


# Refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "stdin", "message"),
    [
        ("encode --format s24le", b"", "expected --format to be one of s16le, f32le, got 's24le'"),
        ("encode --output-format npz", b"", "expected --output-format to be one of mimi, text, raw, got 'npz'"),
        ("encode -o a.wav", b"", "expected a name ending in .mimi and --output-format mimi for -o, got a.wav and mimi"),
        ("encode -o a.mimi --output-format raw", b"", "for -o, got a.mimi and raw"),
        ("encode -o speech.mimi", b"", "expected new files to write, but speech.mimi exists; pass --overwrite"),
        ("encode -o speech.wav/a.mimi", b"", "expected a folder to write to, but"),
        ("encode -q 17", b"", "expected num_quantizers from 1 to 16, got 17"),
        ("encode -m nothing", b"", "expected a bundled model, a folder or a hub id"),
        ("encode --format f32le", b"\x00\x00\xc0\x7f", "expected finite samples, got NaN or infinite ones"),
        ("decode", b"hello", "cannot read standard input: it does not begin with"),
        ("decode", b"", "cannot read standard input: the file is empty"),
        ("decode --input-format npz", b"", "expected --input-format to be one of mimi, text, raw, got 'npz'"),
        ("decode --format mp3", b"", "expected --format to be one of s16le, f32le, got 'mp3'"),
        ("decode --input-format text", b"1 2\nthree 4\n", "expected codes as whole numbers in line 2, got 'three 4'"),
        ("decode --input-format text", b"1 2\n3 4", "expected a line's end after '3 4', got the end of the input"),
        ("decode --input-format text", b"5000\n", "expected codes from 0 to 1023, got 5000"),
        ("decode --input-format raw -q 3", b"\0" * 8, "expected whole frames of 3 codes, 6 bytes each, got 2 bytes at the end"),
    ],
)
def test_refusals(run: Run, line: str, stdin: bytes, message: str) -> None:
    done = run("stream", *line.split(), stdin=stdin)
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_refusals_of_tokens(run: Run, work: Path) -> None:
    tokens = Path("speech.mimi").read_bytes()
    assert "expected --codebooks from 1 to 16 for these tokens, got 17" in run("stream", "decode", "-q", 17, stdin=tokens).err
    cut = run("stream", "decode", stdin=tokens[:-40])
    assert (cut.code, cut.out) == (2, b"")
    assert "standard input is damaged at byte" in cut.err
    MimiModel(MimiConfig.from_pretrained("mimi-mini")).save_pretrained("fresh")
    assert "got tokens of another model" in run("stream", "decode", "-m", "fresh", stdin=tokens).err


def test_bytes_are_not_poured_over_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch, pcm: bytes) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for line in ("encode", "encode --output-format raw", "decode"):
        done = run("stream", *line.split(), stdin=pcm)
        assert done.code == 2
        assert "got a terminal, which can't show this; use > or |" in done.err
    assert run("stream", "encode", "--output-format", "text", stdin=pcm).code == 0
