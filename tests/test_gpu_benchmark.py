"""benchmarks/gpu.py runs, every line of it, where there is no GPU."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_on_a_cpu() -> None:
    done = run("--device", "cpu", "--quick")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert [value for name, value in report["checks"].items() if "equal" in name] == [1, 1, 1]
    assert report["checks"]["audio apart by"] == 0
    assert len(report["times"]) == 8
    assert all(value > 0 for row in report["times"].values() for value in row.values())
    assert set(report["most_live_streams"]) == {"encode", "decode", "both"}
    waste = report["padding"]
    assert 0 < waste["sorted by length, as phonograph.encode does"] < waste["as they come"] < 1
    contestants = {name for row in report["times"].values() for name in row}
    peers = {f"{peer} bf16" for peer in ("transformers", "moshi") if report["versions"][peer]}
    assert contestants == {"phonograph bf16"} | peers
    assert "encode a frame of 2 streams, ms" in done.stdout


def test_without_a_gpu() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "expected a GPU, got none; pass --device cpu --quick to see the script run\n"


@pytest.mark.parametrize("most", [1, 2, 3, 5, 100, 777, 4096])
def test_the_most_that_fits(most: int) -> None:
    largest = runpy.run_path(str(SCRIPT))["largest"]
    asked = []
    found = largest(lambda number: asked.append(number) or number <= most, 10_000)
    assert most - max(1, most // 32) < found <= most
    assert len(asked) < 25
    assert largest(lambda number: False, 10_000) == 0
    assert largest(lambda number: True, 4) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["checks"]["codes of slots with graphs equal those without"] == 1
