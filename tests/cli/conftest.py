"""The command line in this process, in a folder of its own; importing torch anew for each test would take a second."""

import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import phonograph
from phonograph import audio
from phonograph.cli import main
from phonograph.loading.hub import BUNDLED_SPEECH

CLIP = BUNDLED_SPEECH / "ljspeech_LJ002-0045.flac"
_tokens: list[bytes] = []  # of speech.wav, encoded once


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored, and everything they start inherits that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: bytes
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class _Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty but for a second and a bit of speech.wav and its model's token file, speech.mimi."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    audio.load(CLIP, sampling_rate=24000, mono=True, duration_seconds=1.3).save("speech.wav")
    if not _tokens:
        phonograph.encode("speech.wav").save("speech.mimi")
        _tokens.append(Path("speech.mimi").read_bytes())
    Path("speech.mimi").write_bytes(_tokens[0])
    return tmp_path


@pytest.fixture
def run(work: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Result]:
    """`run("encode", "speech.wav", ...)` -> what `phonograph encode speech.wav ...` does."""

    def run_command(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", _Stdin(stdin))
        capfdbinary.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfdbinary.readouterr()
        return Result(code, captured.out, captured.err.decode())

    return run_command
