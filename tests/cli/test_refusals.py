"""Everything that can't be used: one line on stderr, exit code 2, nothing on stdout and no new file."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from phonograph import MimiConfig, MimiModel, SpeechTokens, audio

Run = Callable[..., "object"]


def write(name: str, samples: np.ndarray, rate: int = 24000, subtype: str = "FLOAT") -> None:
    soundfile.write(name, samples, rate, subtype=subtype)


def one_hertz() -> None:
    write("slow.wav", np.zeros(100, np.float32), 1)


def wrong_codes() -> None:
    arrays = {name: value for name, value in SpeechTokens.load("speech.mimi").to_arrays().items() if value is not None}
    np.savez("wrong.npz", **{**arrays, "codes": arrays["codes"] + 1000})


def foreign_tokens() -> None:
    arrays = SpeechTokens.load("speech.mimi").to_arrays()
    SpeechTokens.from_arrays({**arrays, "weights_hash": "ab" * 32}).save("foreign.mimi")


def no_frames() -> None:
    SpeechTokens.load("speech.mimi").slice(0, 0).save("none.mimi")


def cut_tokens() -> None:
    Path("cut.mimi").write_bytes(Path("speech.mimi").read_bytes()[:-40])


def nameless_tokens() -> None:
    arrays = SpeechTokens.load("speech.mimi").to_arrays()
    SpeechTokens.from_arrays({**arrays, "model_id": ""}).save("nameless.mimi")


REFUSALS: dict[str, tuple[Callable[[], object], str | list[str], str]] = {
    "empty file": (lambda: Path("a.wav").touch(), "encode a.wav", r"a\.wav is empty \(0 bytes\); expected an audio file"),
    "text renamed": (
        lambda: Path("a.wav").write_text("hello\n"),
        "encode a.wav",
        "expected an audio file .* got text in a.wav",
    ),
    "no samples": (lambda: write("a.wav", np.zeros(0, np.float32)), "encode a.wav", "a.wav has no samples; expected at least"),
    "NaN": (lambda: write("a.wav", np.full(99, np.nan)), "encode a.wav", "expected finite samples, got 99 NaN or infinite"),
    "8 channels": (
        lambda: write("a.wav", np.zeros((9, 8))),
        "encode a.wav",
        "expected 1 or 2 channels, got 8 .* channel=0 to 7",
    ),
    "no such channel": (lambda: None, "encode speech.wav -o a.mimi --channel 3", "expected a channel below 1, got channel=3"),
    "1 Hz": (one_hertz, "encode slow.wav", "expected a sampling rate from 1000 to 768000 Hz, got 1 Hz in slow.wav"),
    "missing file": (lambda: None, "encode a.wav", "expected a file to read, but a.wav does not exist; check the name"),
    "empty folder": (lambda: Path("d").mkdir(), "encode d", r"expected files ending in \.wav.* in d, found none"),
    "empty pattern": (lambda: None, "encode *.ogg", r"expected files that match \*\.ogg, found none"),
    "empty stdin": (lambda: None, "encode - -o a.mimi", r"empty \(0 bytes\); expected an audio file"),
    "token file as speech": (lambda: None, "encode speech.mimi -o a.mimi", "expected an audio file .* in speech.mimi"),
    "exists": (lambda: None, "encode speech.wav", "expected new files to write, but speech.mimi exists; pass --overwrite"),
    "decode exists": (lambda: None, "decode speech.mimi", "but speech.wav exists; pass --overwrite, or another -o"),
    "unknown suffix": (lambda: None, "encode speech.wav -o a.txt", r"expected a.txt to end in \.mimi, \.npz, .* got \.txt"),
    "folder as a file": (lambda: Path("d.mimi").mkdir(), "encode speech.wav -o d.mimi/../d.mimi/x.txt", "to end in .mimi"),
    "file as a folder": (
        lambda: None,
        "encode speech.wav -o speech.wav/a.mimi",
        "expected a folder to write to, but .* is a file",
    ),
    "unwritable place": (
        lambda: None,
        "encode speech.wav -o /proc/a.mimi",
        "cannot write /proc/a.mimi: .*; choose another place",
    ),
    "unwritable folder": (
        lambda: None,
        "encode speech.wav -o /proc/a/b.mimi",
        "cannot write /proc/a: .*; choose another place",
    ),
    "one file for two": (
        lambda: None,
        "encode speech.wav speech.mimi -o a.mimi",
        "expected a folder for 2 results, got a.mimi",
    ),
    "one name": (
        lambda: write("speech.flac", np.zeros(99), subtype="PCM_16"),
        "encode speech.wav speech.flac -o d",
        "expected inputs of different names, got speech.wav and speech.flac; write them to two folders",
    ),
    "stdout twice": (lambda: None, "encode speech.wav -o - --json", "expected stdout for the result or for --json, got both"),
    "unknown model": (lambda: None, "encode speech.wav -o a.mimi -m nothing", "expected a bundled model, a folder or a hub id"),
    "no model's name": (
        lambda: None,
        ["encode", "speech.wav", "-o", "a.mimi", "-m", ""],
        "expected a bundled model, a folder or",
    ),
    "no connection": (lambda: None, "encode speech.wav -o a.mimi -m some/model", "expected some/model in the hub's cache"),
    "bad dtype": (lambda: None, "encode speech.wav -o a.mimi --dtype int8", "expected a floating-point dtype .* got 'int8'"),
    "odd dtype": (lambda: None, "encode speech.wav -o a.mimi --dtype float8_e4m3fn", "expected a floating-point dtype"),
    "bad device": (lambda: None, "encode speech.wav -o a.mimi --device toaster", r"expected a device that works here \(cpu"),
    "meta device": (lambda: None, "encode speech.wav -o a.mimi --device meta", r"expected a device that works here \(cpu"),
    "99 codebooks": (lambda: None, "encode speech.wav -o a.mimi -q 99", "expected --codebooks from 1 to 16 .* got 99"),
    "no codebooks": (lambda: None, "encode speech.wav -o a.mimi -q 0", "expected --codebooks from 1 to 16 .* got 0"),
    "both": (lambda: None, "encode speech.wav -o a.mimi -q 4 -b 1k", "expected --codebooks or --bitrate, got both; pass one"),
    "no bitrate": (lambda: None, "encode speech.wav -o a.mimi -b fast", "expected a bitrate in bit/s such as 1100 or 1.1k"),
    "low bitrate": (lambda: None, "encode speech.wav -o a.mimi -b 100", "expected a bitrate of at least 125 bit/s"),
    "encode format": (lambda: None, "encode speech.wav -o d/ --format wav", "expected --format to be one of mimi, npz, safet"),
    "missing tokens": (lambda: None, "decode a.mimi", "expected a file to read, but a.mimi does not exist; check the name"),
    "speech as tokens": (lambda: None, "decode speech.wav -o a.wav", r"expected a token file's name to end in \.mimi"),
    "not tokens": (lambda: Path("a.mimi").write_text("hi"), "decode a.mimi", "cannot read a.mimi: "),
    "empty tokens": (lambda: Path("a.mimi").touch(), "decode a.mimi", "cannot read a.mimi: "),
    "stdin is no tokens": (lambda: None, "decode -", "cannot read standard input: "),
    "codes out of range": (wrong_codes, "decode wrong.npz", "expected codes from 0 to 1023, got 1[0-9]{3} in codebook"),
    "another model": (foreign_tokens, "decode foreign.mimi", "expected tokens of mimi-mini, got tokens of another model"),
    "no frames": (no_frames, "decode none.mimi", "expected at least one frame of tokens, got none"),
    "cut tokens": (cut_tokens, "decode cut.mimi", r"cut\.mimi is damaged: block 0, .* pass on_damage='prefix'"),
    "no model named": (nameless_tokens, "decode nameless.mimi", "expected tokens that name their model"),
    "part beyond": (
        lambda: None,
        "decode speech.mimi -o a.wav --start 5",
        r"expected a part of the 1\.30 s .* got 5 to the end s",
    ),
    "part backwards": (lambda: None, "decode speech.mimi -o a.wav --start 1 --end 0.5", "expected 0 <= start_seconds <= end"),
    "decode codebooks": (lambda: None, "decode speech.mimi -o a.wav -q 17", "expected --codebooks from 1 to 16 .* got 17"),
    "decode format": (lambda: None, "decode speech.mimi -o d/ --format aac", "expected --format to be one of wav, flac, ogg"),
    "on damage": (lambda: None, "decode speech.mimi -o a.wav --on-damage no", "expected --on-damage raise or prefix, got 'no'"),
    "info of nothing": (lambda: None, "info a.wav", "expected a file to read, but a.wav does not exist"),
    "info of stdin": (lambda: None, "info -", "expected names of files, got - .stdin."),
    "config of nothing": (lambda: None, "config show nothing", "expected a bundled model, a folder or a hub id"),
    "config of no model": (
        lambda: Path("a.json").write_text("{}"),
        "config show a.json",
        "expected a configuration with a model_t",
    ),
    "config of another": (
        lambda: Path("a.json").write_text('{"model_type": "bert"}'),
        "config show a.json",
        "expected a model_type of mimi .* got 'bert'",
    ),
    "config is no JSON": (lambda: Path("a.json").write_text("{"), "config validate a.json", "a.json is not valid JSON"),
    "demo in a file": (lambda: None, "demo -o speech.wav", "cannot write speech.wav: File exists; choose another place"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_one_line_and_nothing_written(run: Run, work: Path, case: str) -> None:
    prepare, line, message = REFUSALS[case]
    prepare()
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    result = run(*(line.split() if isinstance(line, str) else line))
    assert result.code == 2
    assert result.out == b""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before


def test_a_codec_with_other_codebooks_is_another_model(run: Run, work: Path) -> None:
    config = MimiConfig.from_pretrained("mimi-mini")
    MimiModel(config).save_pretrained("fresh")
    result = run("decode", "speech.mimi", "-m", "fresh", "-o", "a.wav")
    assert result.code == 2
    assert "got tokens of another model (mimi-mini, codebooks " in result.err


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission(run: Run, work: Path) -> None:
    (work / "locked").mkdir(mode=0o555)
    result = run("encode", "speech.wav", "-o", "locked/a.mimi")
    assert result.code == 2
    assert "permission denied" in result.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("encode", r"Missing argument 'SPEECH'?.*; see phonograph encode --help"),
        ("encode speech.wav --nonsense", "No such option:? .*--nonsense.*; see phonograph encode --help"),
        ("nonsense", "No such command 'nonsense'; see phonograph --help"),
        ("encode speech.wav --threads 0", "Invalid value for '--threads': .*; see phonograph encode --help"),
        ("encode speech.wav --threads 99999999", "Invalid value for '--threads': .*; see phonograph encode --help"),
        ("config show", "Missing argument .*; see phonograph config show --help"),
    ],
)
def test_a_usage_error_is_one_line(run: Run, line: str, message: str) -> None:
    result = run(*line.split())
    assert (result.code, result.out) == (2, b"")
    assert re.fullmatch(f"error: {message}\n", result.err), result.err


def test_a_missing_file_is_refused_before_a_model_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        pytest.fail("a model was loaded for nothing")

    monkeypatch.setattr("phonograph.api.load_codec", load)
    assert run("encode", "a.wav").code == 2


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")])
def test_too_little_memory(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def encode(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("phonograph.api.encode", encode)
    result = run("encode", "speech.wav", "-o", "a.mimi")
    assert result.code == 2
    assert result.err.startswith("error: expected enough memory for this, got too little; lower --batch-size")


def test_what_is_no_refusal_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*_: object, **__: object) -> None:
        raise RuntimeError("our mistake")

    monkeypatch.setattr("phonograph.api.encode", encode)
    with pytest.raises(RuntimeError, match="our mistake"):
        run("encode", "speech.wav", "-o", "a.mimi")


def test_a_refusal_among_several_leaves_what_others_wrote(run: Run, work: Path) -> None:
    audio.load("speech.wav").save("b.flac")
    result = run("encode", "b.flac", "missing.wav", "-o", "out")
    assert result.code == 2
    assert SpeechTokens.load("out/b.mimi").num_frames == 17
