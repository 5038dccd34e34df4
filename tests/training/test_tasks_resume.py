"""Real tasks on real clips, stopped and gone on with: the losses, weights and states of a run that was never stopped."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundled_clips import CODEC, PRETRAINING, RESTLESS, SEQ2SEQ, log_of, table
from safetensors.torch import load_file

from phonograph.cli import main
from phonograph.training import RunOptions, checkpoints, parse_recipe, train

STEPS, STOPPED_AT = 6, 3
WAVEFORM = {
    "speed_factors": [0.9, 1.0, 1.1],
    "room_probability": 0.5,
    "noise_probability": 0.5,
    "band_probability": 0.5,
    "gain_db": 6.0,
}
BATCHES = {"batch_seconds": 40, "size_ratio": 2.0, "most_padding": 0.6, "most_items": 1}
"""One clip in a batch, so that the first epoch ends where a run is stopped, or in the middle of a step of two."""

CASES: dict[str, dict[str, Any]] = {
    "ctc": {
        "options": {
            "model": RESTLESS,
            "intermediate_layers": [1],
            "even_alignment_steps": 4,
            "augmentation": {"waveform": WAVEFORM, "from_step": 1, "ramp_steps": 4},
            "data": {"batches": BATCHES, "first_seconds": 4.0, "first_batches": 5},
        },
        "loop": {"precision": "bfloat16", "accumulate": 2, "evaluate_every": 2},
    },
    "pretraining": {
        "options": {
            "model": RESTLESS | PRETRAINING,
            "temperature_decay": 0.8,
            "augmentation": {"waveform": WAVEFORM},
            "data": {"batches": BATCHES | {"crop_seconds": 2.0}},
        },
        "loop": {"evaluate_every": 2},
    },
    "seq2seq": {
        "options": {
            "model": SEQ2SEQ | {"dropout": 0.2, "encoder_layerdrop": 0.3, "decoder_layerdrop": 0.3},
            "pieces": 60,
            "ctc_weight": 0.3,
            "label_smoothing": 0.1,
            "spec_augment": {"time_width": 40},
            "augmentation": {"waveform": {"speed_factors": [0.9, 1.1], "noise_probability": 0.5}},
            "generation": {"num_beams": 1, "max_length": 4},
        },
        "loop": {"precision": "bfloat16", "accumulate": 2},
    },
    "classification": {
        "options": {
            "model": RESTLESS | {"num_hidden_layers": 1, "classifier_proj_size": 32},
            "freeze_features": False,
            "freeze_encoder_steps": 2,
            "head_lr_factor": 2.0,
            "augmentation": {"waveform": WAVEFORM},
        },
    },
    "codec": {
        "options": {
            "config": CODEC,
            "mel_windows": [1024, 256],
            "adversary": {"windows": [512], "channels": 4, "from_step": 1},
            "quantizer": {"from_step": 2, "decay": 0.8, "revive_below": 0.5},
            "judging": {"codebooks": [3], "samples": 0},
            "data": {
                "batches": {"crop_seconds": 0.48, "batch_seconds": 1.92, "size_ratio": 2.0, "most_padding": 1.0},
                "held_out_most": 1,
            },
        },
        "optimizers": {name: {"lr": 1e-3, "betas": [0.5, 0.9]} for name in ("generator", "discriminator")},
    },
}


def recipe_values(case: str, path: Path) -> dict[str, Any]:
    chosen = CASES[case]
    data = {"path": str(path), "held_out": str(path), "batches": BATCHES, "workers": 2}
    return {
        "task": case,
        "options": {**chosen["options"], "data": data | chosen["options"].get("data", {})},
        "loop": {"steps": STEPS, "log_every": 1, "save_every": STOPPED_AT, "save_minutes": None, "keep": 9, "ema_decay": 0.9}
        | chosen.get("loop", {}),
        "optimizers": chosen.get("optimizers", {"main": {"lr": 1e-3, "clip_norm": 1.0, "schedule": {"warmup_steps": 2}}}),
    }


def run(folder: Path, case: str, path: Path, **options: Any) -> None:
    made = parse_recipe(json.dumps(recipe_values(case, path)))
    train(made, RunOptions(folder, device="cpu", quiet=True, **options))


def same(left: Any, right: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(value, right[name]) for name, value in left.items())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@pytest.mark.parametrize("case", CASES)
def test_resuming_equals_never_stopping(tmp_path: Path, case: str) -> None:
    path, whole, parts = table(tmp_path), tmp_path / "whole", tmp_path / "parts"
    run(whole, case, path)
    name = f"checkpoints/step-{STOPPED_AT:08d}"
    shutil.copytree(whole / name, parts / name)
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002 (the generator that a run draws from)
    run(parts, case, path, resume=True)
    expected = log_of(whole / "log.jsonl", STOPPED_AT)
    assert [line["step"] for line in expected if line["event"] == "steps"] == [4, 5, 6]
    assert log_of(parts / "log.jsonl") == expected
    last = f"checkpoints/step-{STEPS:08d}"
    for file in ("weights.safetensors", "ema.safetensors"):
        assert same(load_file(parts / last / file), load_file(whole / last / file))
    states = [checkpoints.load_state(folder / last / "rank-0.pt") for folder in (parts, whole)]
    assert same(*states)
    assert states[0]["parts"].keys() == CASES[case].get("optimizers", {"main": None}).keys()


def test_a_signal_ends_a_command_that_another_one_goes_on_with(tmp_path: Path) -> None:
    """SIGTERM: a checkpoint, the documented exit code, and, once resumed, the losses of a run that was never stopped."""
    recipe, path = tmp_path / "recipe.yaml", table(tmp_path)
    values = recipe_values("ctc", path)
    values["loop"] |= {"evaluate_every": None, "save_every": None}
    recipe.write_text(json.dumps(values))  # which is YAML, too
    start = [sys.executable, "-c", "import sys; from phonograph.cli import main; sys.exit(main())", "train", str(recipe)]
    start += ["--device", "cpu", "--threads", "1", "-o", str(tmp_path / "parts")]
    with subprocess.Popen([*start, "--set", "loop.steps=100000"], stderr=subprocess.PIPE, text=True) as process:
        wait_for(tmp_path / "parts/log.jsonl", '"step": 2', process)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=240)
    assert process.returncode == 143
    (checkpoint,) = (tmp_path / "parts/checkpoints").iterdir()
    step = checkpoints.read_meta(checkpoint)["step"]
    assert said == f"stopped after step {step}; go on with --resume -o {tmp_path / 'parts'}\n"
    steps = ["--set", f"loop.steps={step + 2}", "--quiet"]
    assert main([*start[3:], "--resume", *steps]) == 0
    assert main([*start[3:-1], str(tmp_path / "whole"), *steps]) == 0
    expected = log_of(tmp_path / "whole/log.jsonl")
    assert log_of(tmp_path / "parts/log.jsonl") == expected
    assert [line["step"] for line in expected if line["event"] == "steps"] == list(range(1, step + 3))


def wait_for(log: Path, text: str, process: "subprocess.Popen[str]") -> None:
    """Until the log has a text."""
    while not (log.exists() and text in log.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
