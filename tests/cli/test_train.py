"""`phonograph train` with the small task that tests of the loop have."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "object"]

ORACLES = Path(__file__).parents[1] / "oracles"
COMMAND = "import sys; from phonograph.cli import main; sys.exit(main())"
TEXT = """
task: linear_task:LinearTask
loop: {steps: 6, log_every: 1, save_every: 2}
optimizers: {main: {lr: 0.05}}
"""


@pytest.fixture(autouse=True)
def _recipe(work: Path) -> None:
    (work / "linear.yaml").write_text(TEXT)


def test_a_run_and_its_table(run: Run, work: Path) -> None:
    result = run("train", "linear.yaml", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    out = result.out.decode()
    assert "Held out" in out
    assert "error" in out
    assert out.endswith("runs/linear/model is trained\n")
    assert (work / "runs/linear/model/README.md").exists()
    again = run("train", "linear.yaml", "--device", "cpu")
    assert again.code == 2
    message = "expected a new folder for the run, got runs/linear, which has step-00000006; go on with it (--resume) or choose"
    assert again.err.startswith(f"error: {message}")
    assert again.err.count("\n") == 1


def test_values_set_and_resumed(run: Run, work: Path) -> None:
    assert run("train", "linear.yaml", "-o", "out", "--set", "loop.steps=4", "--set", "optimizers.main.lr=1e-3").code == 0
    lines = [json.loads(line) for line in (work / "out/log.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines if line["event"] == "steps"] == [1e-3] * 4
    result = run("train", "linear.yaml", "-o", "out", "--resume", "--json", "--threads", 1, "--quiet")
    assert result.code == 0
    values = result.json()
    assert (values["step"], values["signal"], values["output"], values["model"]) == (6, None, "out", "out/model")
    assert values["figures"].keys() == {"all/error", "all/step"}


def test_a_dry_run_leaves_nothing(run: Run, work: Path) -> None:
    before = set(work.rglob("*"))
    result = run("train", "linear.yaml", "--dry-run", "--set", "loop.steps=100000")
    assert (result.code, result.err) == (0, "")
    assert result.out.decode().endswith("the recipe runs; nothing was kept\n")
    assert set(work.rglob("*")) == before
    values = run("train", "linear.yaml", "--dry-run", "--json").json()
    assert (values["step"], values["model"], values["output"]) == (3, None, None)
    assert run("train", "linear.yaml", "--dry-run", "-o", "kept").code == 0
    assert (work / "kept/model/model.safetensors").exists()


def test_stages_one_after_the_other(run: Run, work: Path) -> None:
    one = "{task: 'linear_task:LinearTask', loop: {steps: 2}, optimizers: {main: {lr: 0.05}}%s}"
    (work / "two.yaml").write_text(f"stages:\n  a: {one % ''}\n  b: {one % ', options: {init: stage:a}'}\n")
    assert run("train", "two.yaml", "--dry-run").out.decode().endswith("the recipe runs; nothing was kept\n")
    result = run("train", "two.yaml", "--set", "stages.b.loop.steps=5", "--json")
    assert (result.code, result.err) == (0, "")
    values = result.json()
    assert (values["step"], values["output"], values["model"]) == (5, "runs/two", "runs/two/model")
    assert "Stage before: a" in (work / "runs/two/model/README.md").read_text()
    stopped = run("train", "two.yaml", "-o", "out", "--set", "stages.a.options.signal_step=0")
    assert (stopped.code, stopped.err) == (143, "stopped after step 1; go on with --resume -o out\n")
    assert run("train", "two.yaml", "-o", "out", "--resume").code == 0
    wrong = run("train", "two.yaml", "--set", "stages.b.options.init=stage:c")
    assert wrong.err == "error: two.yaml: stages.b: stage:c is no stage before it\n"


def test_skipped_steps_are_told(run: Run) -> None:
    result = run("train", "linear.yaml", "--set", "options.nan_steps=[1, 3]")
    assert result.code == 0
    assert result.err == "2 steps changed nothing: their gradients were not finite\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.yaml",), "cannot read the recipe gone.yaml: No such file or directory"),
        (("no-such",), "expected a YAML file or a recipe of the package ("),
        (
            ("linear.yaml", "--set", "loop.steps"),
            "expected --set KEY=VALUE, got 'loop.steps'; write it like --set loop.steps=100",
        ),
        (("linear.yaml", "--set", "loop.stops=1"), "linear.yaml: loop.stops is no key here (steps,"),
        (("linear.yaml", "--set", "loop.steps=["), "'[' is not valid YAML"),
        (("linear.yaml", "--device", "tpu"), "expected --device auto, cpu, or a cuda or mps device that is here, got tpu"),
        (
            ("linear.yaml", "--set", "options.nan_steps=[0, 1]", "--set", "loop.max_nonfinite=2"),
            "expected finite gradients, got 2",
        ),
    ],
)
def test_refusals(run: Run, arguments: tuple[str, ...], message: str) -> None:
    result = run("train", *arguments)
    assert result.code == 2
    assert result.err.startswith(f"error: {message}")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_an_interrupt_saves_and_says_so(work: Path, name: str, code: int) -> None:
    import signal

    command = ["train", "linear.yaml", "-o", "out", "--set", "loop.steps=1000000", "--set", "loop.save_every=null"]
    environment = {**os.environ, "PYTHONPATH": str(ORACLES)}
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *command], stderr=subprocess.PIPE, text=True, env=environment)
    log = work / "out/log.jsonl"
    while not (log.exists() and '"steps"' in log.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    saved = [path.name for path in (work / "out/checkpoints").iterdir()]
    assert len(saved) == 1
    step = int(saved[0].removeprefix("step-"))
    assert err == f"stopped after step {step}; go on with --resume -o out\n"


def test_only_the_first_process_speaks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    result = run("train", "linear.yaml", "--dry-run")
    assert (result.code, result.out, result.err) == (0, b"", "")
