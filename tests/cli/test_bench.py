"""`phonograph bench`: what is installed takes turns, and the report says what was measured."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peers import peer
from random_mimi import TINY, random_mimi

from phonograph import MimiModel, benchmarks
from phonograph.benchmarks import Options, Report, medians
from phonograph.benchmarks import run as measure
from phonograph.cli.bench import print_report

Run = Callable[..., "object"]

OURS = ["phonograph fp32", "phonograph bf16"]


@pytest.fixture
def tiny(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model in the folder tiny, and no peers."""
    random_mimi(**TINY).save_pretrained("tiny")
    monkeypatch.setattr(benchmarks, "installed", lambda package: "1.0" if package in ("torch", "phonograph") else None)
    monkeypatch.setattr(benchmarks, "WARM_FRAMES", 3)


@pytest.mark.usefixtures("tiny")
def test_a_table_and_what_is_missing(run: Run) -> None:
    done = run("bench", "-m", "tiny", "--seconds", 0.1, "--rounds", 2, "--threads", 1)
    assert (done.code, done.err) == (0, "")
    text = done.out.decode()
    assert "mimi offline, 0.1 s" in text
    assert re.search(r"phonograph fp32 +[\d.]+ +1\.00 +[\d.]+ +1\.00 +100\.000%", text)
    assert "1 threads, medians of 2 rounds; times: as fast as phonograph fp32." in text
    assert "Not installed: transformers, moshi, rustymimi." in text


@pytest.mark.usefixtures("tiny")
def test_json(run: Run) -> None:
    offline = run("bench", "-m", "tiny", "--seconds", 0.1, "--rounds", 1, "--threads", 1, "--json").json()
    assert list(offline) == [
        *("benchmark", "seconds_of_audio", "threads", "rounds", "processor", "versions", "seconds"),
        "quantizer_share_of_encode",
    ]
    assert {way: list(times) for way, times in offline["seconds"].items()} == dict.fromkeys(
        ("encode", "decode", "codes_equal"), OURS
    )
    assert (offline["benchmark"], offline["rounds"], offline["threads"]) == ("mimi offline", 1, 1)
    assert 0 < offline["quantizer_share_of_encode"] < 1
    live = run("bench", "-m", "tiny", "--live", "--rounds", 1, "--json").json()
    assert (live["benchmark"], live["seconds_of_audio"]) == ("mimi live", 0.002)
    assert {way: list(times) for way, times in live["seconds"].items()} == dict.fromkeys(("encode", "decode"), OURS)
    assert "quantizer_share_of_encode" not in live


@pytest.mark.usefixtures("tiny")
def test_ours_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "DTYPES", {"fp32": torch.float32})
    uses: list[str] = []
    monkeypatch.setattr(MimiModel, "compile_for", lambda self, use: uses.append(use))
    for live in (True, False):
        report = measure(Options(live, seconds=0.1, rounds=1, compiled=True), random_mimi(**TINY))
        assert list(report.seconds["encode"]) == ["phonograph fp32", "phonograph fp32 compiled"]
    assert uses == ["live", "offline"]


@pytest.mark.usefixtures("tiny")
def test_threads_and_gradients_are_as_before() -> None:
    before = torch.get_num_threads()
    measure(Options(seconds=0.01, rounds=1, threads=before + 1), random_mimi(**TINY))
    assert torch.get_num_threads() == before
    assert torch.is_grad_enabled()


@pytest.mark.filterwarnings("default")  # a peer's own
def test_a_peer_runs_the_same_weights(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer("transformers")
    monkeypatch.setattr(benchmarks, "DTYPES", {"fp32": torch.float32})
    report = measure(Options(seconds=0.1, rounds=1), random_mimi(**TINY))
    assert report.reference == "transformers fp32"
    assert report.seconds["codes_equal"] == {"phonograph fp32": 1.0, "transformers fp32": 1.0}  # moshi has one size only


def test_a_median_leaves_out_the_first_turn() -> None:
    turns: list[str] = []
    times = medians({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, rounds=3, repeats=2)
    assert "".join(turns) == "aabb" * 4
    assert list(times) == ["a", "b"]


def test_the_fastest_comes_first(capfd: pytest.CaptureFixture[str]) -> None:
    seconds = {"encode": {"phonograph fp32": 0.002, "moshi fp32": 0.004, "rustymimi fp32": 0.001}}
    seconds["decode"] = {"phonograph fp32": 0.002, "moshi fp32": 0.004, "rustymimi fp32": 0.008}
    print_report(Report("mimi live", 0.08, 2, 5, "x86", {"torch": "2"}, seconds))
    lines = capfd.readouterr().out.splitlines()
    rows = [line.split() for line in lines if "fp32 " in line]
    assert rows[:3] == [
        ["phonograph", "fp32", "2.000", "2.00", "2.000", "2.00"],
        ["moshi", "fp32", "4.000", "1.00", "4.000", "1.00"],
        ["rustymimi", "fp32", "1.000", "4.00", "8.000", "0.50"],
    ]
    assert not any("Not installed" in line for line in lines)


def test_the_scripts_know_their_options() -> None:
    for name in ("bench_mimi", "exactness"):
        script = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
        done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
        assert "--threads" in done.stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bench --seconds nan", "expected --seconds above 0, got nan"),
        ("bench --seconds inf", "expected --seconds above 0, got inf"),
        ("bench --seconds 0", "expected --seconds above 0, got 0; 10 is usual"),
        ("bench -m nothing", "expected a bundled model, a folder or a hub id"),
    ],
)
def test_refusals(run: Run, line: str, message: str) -> None:
    done = run(*line.split())
    assert (done.code, done.out) == (2, b"")
    assert message in done.err


def test_a_stereo_model_is_refused(run: Run) -> None:
    random_mimi(**{**TINY, "audio_channels": 2}).save_pretrained("stereo")
    for line in ("bench -m stereo", "stream encode -m stereo"):
        done = run(*line.split())
        assert done.code == 2
        assert "expected a codec of one channel" in done.err
