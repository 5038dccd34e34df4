"""Every recipe of the package, dry and tiny, by the command that a user types; and what the bundled models are made from."""

import argparse
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from bundled_clips import SEQ2SEQ, table
from tiny_checkpoints import SMALL, checkpoint

from phonograph import Speech2TextConfig, Speech2TextForConditionalGeneration, Wav2Vec2Config, Wav2Vec2ForCTC
from phonograph.cli import main
from phonograph.training import RunContext, bundled_recipes, parse_recipe, read_recipe

TINY_ENCODER = {f"options.model.{name}": value for name, value in SMALL.items() if not name.startswith("conv_")}
TINY_ENCODER["options.model.conv_dim"] = [16, 16]
TINY_PRETRAINING = {"options.model.num_negatives": 5, "options.model.num_codevectors_per_group": 8}
STRIDED = {f"options.model.{name}": value for name, value in SMALL.items() if name.startswith("conv_")}
TINY_SEQ2SEQ = {f"options.model.{name}": value for name, value in SEQ2SEQ.items()} | {"options.pieces": 60}
TINY_CODEC = {
    "options.config.num_filters": 2,
    "options.config.num_hidden_layers": 1,
    "options.config.codebook_size": 8,
    "options.adversary.channels": 2,
    "options.adversary.from_step": 1,
    "options.quantizer.from_step": 2,
    "options.data.batches.batch_seconds": 3.84,
}
DRY: dict[str, dict[str, Any]] = {
    "wav2vec2-mini": TINY_ENCODER,
    "s2t-mini": TINY_SEQ2SEQ,
    "mimi-mini": TINY_CODEC,
    "mimi-decoder": {
        "options.pretrained": "mimi-mini",
        "options.judging.codebooks": [4],
        "options.adversary.channels": 2,
        "options.data.batches.batch_seconds": 3.84,
    },
    "pretrain-then-ctc": {f"stages.pretrain.{key}": value for key, value in (TINY_ENCODER | TINY_PRETRAINING).items()}
    | {"stages.ctc.options.intermediate_layers": [1]},
    "ctc-from-scratch": TINY_ENCODER | {"options.intermediate_layers": [1], "options.fewest": 1},
    "wav2vec2-pretrain": TINY_ENCODER | TINY_PRETRAINING | STRIDED,
    "s2t": TINY_SEQ2SEQ,
    "ctc-finetune": {},
    "mms-adapter": {},
    "classify": {},
    "frames": {},
    "speaker": {},
}
FROM_A_CHECKPOINT = [name for name, changes in DRY.items() if not changes]


def test_every_recipe_is_tried() -> None:
    assert DRY.keys() == set(bundled_recipes())


def test_every_recipe_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    _, _, table = text.partition("## The recipes\n")
    rows = [row for row in table.partition("\n## ")[0].splitlines() if row.startswith("| `")]
    named = [name.strip(" `") for row in rows for name in row.split("|")[1].split(",")]
    assert sorted(named) == sorted(bundled_recipes())


@pytest.mark.parametrize("name", DRY)
def test_recipes_run_dry(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = [[[0.5, 1.5, "a"]], [[0.0, 2.0, "b"]], [[1.0, 3.0, "c"]]]
    path = table(tmp_path, segments=label, label=["a", "b", "a"])
    path.write_text("\n".join([path.read_text(), path.read_text()]))  # two clips of each speaker
    stages = ["stages.pretrain.", "stages.ctc."] if name == "pretrain-then-ctc" else [""]
    changes = {f"{stage}options.data.held_out": str(path) for stage in stages}
    changes |= {f"{stage}options.data.memory_gib": 1 for stage in stages}
    if name in FROM_A_CHECKPOINT:
        changes["options.init"] = checkpoint(tmp_path / "init", **({"adapter_attn_dim": 6} if name == "mms-adapter" else {}))
    sets = [part for key, value in (changes | DRY[name]).items() for part in ("--set", f"{key}={json.dumps(value)}")]
    command = ["train", name, "--data", str(path), "--output", str(tmp_path / "run"), "--device", "cpu", "--dry-run", "--json"]
    assert main([*command, "--quiet", *sets]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["skipped"], told["signal"]) == (3, 0, None)
    assert told["figures"]
    assert told["model"] == str(tmp_path / "run" / "model")
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


# What the bundled models are made from


@pytest.mark.parametrize(("name", "least", "most"), [("wav2vec2-mini", 10, 20), ("s2t-mini", 21, 30)])
def test_bundled_models_stay_within_their_size_in_float16(name: str, least: float, most: float) -> None:
    options = read_recipe(name).options
    with torch.device("meta"):
        if name == "wav2vec2-mini":
            model: Any = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=32, **options.model))
        else:
            config = Speech2TextConfig(vocab_size=options.pieces + 4, **options.model)
            model = Speech2TextForConditionalGeneration(config)
    assert least < 2 * model.num_parameters() / 1e6 < most


@pytest.mark.parametrize("name", ["wav2vec2-mini", "s2t-mini", "mimi-mini"])
def test_bundled_models_take_25_minutes_and_save_every_two(name: str) -> None:
    recipe = read_recipe(name)
    assert 20 < recipe.loop.max_minutes < 25  # and something for decoding, evaluating and starting
    assert recipe.loop.save_minutes == 2
    assert {optimizer.schedule.kind for optimizer in recipe.optimizers.values()} == {"cosine"}  # done when the time is


def test_no_stage_of_a_recipe_hears_what_judges_the_next(tmp_path: Path) -> None:
    rows = table(tmp_path).read_text().splitlines()
    spoken = [json.dumps({**json.loads(rows[0]), "offset": place / 100, "duration": 1.0}) for place in range(100)]
    silent = [json.dumps({**json.loads(row), "text": "", "duration": 1.1}) for row in spoken]
    (tmp_path / "manifest.jsonl").write_text("\n".join([*spoken, *silent]))
    sets = {}
    tiny = {f"stages.pretrain.{key}": value for key, value in (TINY_ENCODER | TINY_PRETRAINING).items()}
    tiny["stages.ctc.options.model.num_hidden_layers"] = 2
    for name, stage in read_recipe("pretrain-then-ctc", tiny).stages.items():
        values = {**stage.values, "options": dict(stage.values["options"])}
        if name == "ctc":
            values["options"] |= {"model": SMALL, "intermediate_layers": []}
            del values["options"]["init"]
        task = parse_recipe(json.dumps(values)).build(RunContext(tmp_path / name, data=tmp_path / "manifest.jsonl"))
        sets[name] = [{(item.offset_seconds, item.text) for item in side} for side in (task.training, task.held_out)]
    assert len(sets["ctc"][1]) > 1
    assert not sets["pretrain"][0] & sets["ctc"][1]


def test_arms_of_the_benchmark_are_recipes() -> None:
    bench = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "bench_ctc_start.py"))
    chosen = argparse.Namespace(steps=60, sources=["x"])
    made = {arm: parse_recipe(json.dumps(bench["values"](arm, chosen))) for arm in bench["ARMS"]}
    whole, plain = made["recipe"].options, made["plain"].options
    assert (whole.filterbank_start, whole.data.first_batches, whole.augmentation.strength(59)) == (True, 20, 0)
    assert (plain.filterbank_start, plain.data.first_batches, plain.augmentation.strength(0)) == (False, 0, 1)
    dropout, intermediate = made["dropout"].options, made["intermediate"].options
    assert (dropout.augmentation.strength(0), dropout.augmentation.waveform, dropout.model["mask_time_prob"]) == (1, None, 0)
    assert (whole.intermediate_layers, intermediate.intermediate_layers) == ([], [2])
    assert {each.loop.steps for each in made.values()} == {60}
