"""How the command line starts and ends: fast, without torch, and with one line whatever happens."""

import os
import pty
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import phonograph
from phonograph import audio
from phonograph.cli import main

Run = Callable[..., "object"]

COMMAND = "import sys; from phonograph.cli import main; sys.exit(main())"
HELP = [
    [],
    ["--help"],
    *([name, "--help"] for name in ("encode", "decode", "transcribe", "translate", "align")),
    *([name, "--help"] for name in ("info", "models", "demo", "config", "verify", "bench")),
]
HELP += [["stream", name, "--help"] for name in ("encode", "decode")]
HELP += [["config", name, "--help"] for name in ("show", "validate", "diff")]


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "phonograph", "--version"], capture_output=True, text=True, check=True)
    assert phonograph.__version__ in done.stdout
    refused = subprocess.run([sys.executable, "-m", "phonograph", "info", "nothing.mimi"], capture_output=True, check=False)
    assert refused.returncode == 2


def processor_seconds_of(*command: str) -> float:
    """Unlike the clock's seconds, hardly those of other processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("command", "limit"), [(("-c", "import phonograph"), 0.15), (("-c", COMMAND, "--help"), 0.30)])
def test_start_up_time_beside_a_bare_interpreter(command: tuple[str, ...], limit: float) -> None:
    pairs = [(processor_seconds_of("-c", "pass"), processor_seconds_of(*command)) for _ in range(7)]
    assert statistics.median(ours - bare for bare, ours in pairs) < limit


def test_nothing_heavy_is_imported_for_help() -> None:
    script = f"""
import contextlib, io, sys
import phonograph
from phonograph.cli import main
for arguments in {HELP!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(arguments)
print(sorted({{"torch", "numpy", "rich", "huggingface_hub", "soundfile"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_configurations_and_models_are_shown_without_torch() -> None:
    script = """
import sys
from phonograph.cli import main
for line in ("models", "config show mimi-mini", "config diff mimi-mini"):
    assert main(line.split()) == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


@pytest.mark.parametrize("arguments", HELP[1:], ids=" ".join)
def test_help(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.code == 0
    assert b"Usage: phonograph" in result.out
    assert result.err == ""


def test_version(run: Run) -> None:
    assert run("--version").out.decode() == phonograph.__version__ + "\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_in_the_middle_of_a_write_leaves_nothing(
    run: Run, work: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    before = sorted(work.iterdir())
    seen: list[list[Path]] = []

    def interrupt(handle: int) -> None:
        seen.append(sorted(work.iterdir()))
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr(os, "fsync", interrupt)
    result = run("encode", "speech.wav", "-o", "a.mimi")
    assert len(seen[0]) == len(before) + 1  # the temporary file was there
    assert result.code == code
    assert result.err == "error: interrupted; files that were not finished have been removed, run it again for the rest\n"
    assert sorted(work.iterdir()) == before


def read_terminal(terminal: int) -> bytes:
    """What comes next; nothing once the last process has closed the other end."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_progress_at_a_terminal_and_an_interrupt_there(work: Path) -> None:
    audio.save("long.wav", np.tile(audio.load("speech.wav").samples, 400), 24000)
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", COMMAND, "encode", "long.wav"], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown, interrupted = b"", False
    # Read to the very end: a terminal that nobody reads would stop the process in the middle of a word.
    while news := read_terminal(ours):
        shown += news
        if b"x real time" in shown and not interrupted:
            process.send_signal(signal.SIGINT)
            interrupted = True
    os.close(ours)
    assert process.wait() == 130
    assert b"/520.0 s" in shown
    assert b"error: interrupted" in shown
    assert b"Traceback" not in shown
    assert not list(work.glob("*long.mimi*"))


def test_quiet_and_no_terminal_say_nothing(run: Run) -> None:
    assert run("encode", "speech.wav", "-o", "a.mimi").err == ""
    assert run("encode", "speech.wav", "-o", "b.mimi", "--quiet").err == ""


def test_a_summary_at_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "speech.wav -> a.mimi: 1.30 s, 17 frames, 2.00 kbit/s, " in run("encode", "speech.wav", "-o", "a.mimi").err
    assert run("encode", "speech.wav", "-o", "b.mimi", "--quiet").err == ""


@pytest.mark.parametrize(
    ("redirection", "error"),
    [
        ("encode - <&-", "standard input is empty (0 bytes); expected an audio file"),
        ("models >&-", "cannot write standard output: Bad file descriptor; choose another place or make room there"),
        ("nonsense 2>&-", None),
    ],
)
def test_closed_streams(work: Path, redirection: str, error: str | None) -> None:
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(COMMAND)} {redirection}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (f"error: {error}\n" if error else "")


def test_a_warning_is_one_line() -> None:
    script = """
import sys, warnings
import phonograph.cli.app as app
app._run = lambda arguments: warnings.warn("expected this,\\ngot that", stacklevel=1) or 0
sys.exit(app.main([]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "warning: expected this, got that\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("line", ["encode speech.wav -o -", "info speech.wav --json", "--help"])
def test_a_full_disk_behind_stdout(work: Path, line: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", COMMAND, *line.split()], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        b"error: cannot write standard output: No space left on device; choose another place or make room there\n"
    )


def test_no_room_for_the_file(work: Path) -> None:
    """A writer that may write 500 bytes, as a disk that is full after them."""
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)); " + COMMAND
    before = sorted(work.iterdir())
    audio.save("longer.wav", np.tile(audio.load("speech.wav").samples, 3), 24000)
    done = subprocess.run([sys.executable, "-c", script, "encode", "longer.wav"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write longer.mimi: File too large; choose another place or make room there\n"
    assert sorted(work.iterdir()) == sorted([*before, work / "longer.wav"])


@pytest.mark.parametrize("name", ["back.wav", "back.mp3"])
def test_no_room_for_speech(work: Path, name: str) -> None:
    """libsndfile's callbacks can't raise, and would print whatever they did."""
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)); " + COMMAND
    before = sorted(work.iterdir())
    command = [sys.executable, "-c", script, "decode", "speech.mimi", "-o", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: cannot write {name}: File too large; choose another place or make room there\n"
    assert sorted(work.iterdir()) == before


def test_a_reader_that_goes_away_is_no_error(work: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "decode", "speech.mimi", "-o", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_binary_output_is_not_poured_over_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    result = run("encode", "speech.wav", "-o", "-")
    assert result.code == 2
    assert "expected a file or a program behind stdout, got a terminal" in result.err


def test_main_puts_back_the_signal_handler(work: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    main(["--version"])
    assert signal.getsignal(signal.SIGTERM) is before
