"""How soon CTC from nothing leaves the plateau of blanks, with the remedies of the recipe wav2vec2-mini and without them.

    python benchmarks/bench_ctc_start.py --data SPEECH [--sources kathleen tts] [--steps 900] [--arms recipe plain]

Each arm trains the same small model (four layers of 144) on the same speech for as many steps of 40 seconds, by the recipe's
second stage and the loop that `phonograph train` has, up to where augmentation would set in, and is judged on the same held-out
utterances. `plain` has none of what the recipe does about the plateau; `random-start` lacks only the filter bank that the first
convolution begins as, `no-curriculum` only the order from easy to hard; `pretrained` begins with the recipe's first stage.
Prints a table and ends with one JSON line.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from phonograph.benchmarks import installed
from phonograph.training import RunOptions, StagedRecipe, parse_recipe, read_recipe, train

SMALL = {
    "hidden_size": 144,
    "num_hidden_layers": 4,
    "intermediate_size": 576,
    "conv_dim": [192, 192],
    "num_conv_pos_embeddings": 32,
    "hidden_dropout": 0.05,
    "attention_dropout": 0.05,
}
# Short filters, one layer upon another, as in wav2vec 2.0.
STRIDED = {"model.conv_dim": [64] * 4, "model.conv_kernel": [10, 8, 8, 4], "model.conv_stride": [5, 4, 4, 4]}
NO_CURRICULUM = {"augmentation.from_step": 0, "augmentation.ramp_steps": 0, "data.first_seconds": None, "data.first_batches": 0}
ARMS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "plain": {"filterbank_start": False, "intermediate_layers": [], **STRIDED, **NO_CURRICULUM},
    "random-start": {"filterbank_start": False},
    "no-curriculum": NO_CURRICULUM,
    "pretrained": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder or table of transcribed speech")
    parser.add_argument("--sources", nargs="*", default=[], help="values of the table's column source to take; all by default")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--pretraining-steps", type=int, default=900, help="of 80 seconds, for the arm `pretrained`")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["recipe", "plain"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="keep the runs here")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as temporary:
        curves = {arm: curve(arm, chosen, (chosen.output or Path(temporary)) / arm) for arm in chosen.arms}
    about = {"processor": platform.processor(), "torch": installed("torch"), "steps": chosen.steps, "sources": chosen.sources}
    print(json.dumps({**about, "arms": curves}))


def curve(arm: str, chosen: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """What each evaluation of an arm found."""
    run = RunOptions(folder, chosen.data, "cpu", quiet=True)
    train(parse_recipe(json.dumps(values(arm, chosen))), run)
    log = folder / ("2-ctc" if arm == "pretrained" else "") / "log.jsonl"
    rows, told, start = [], {}, 0.0
    for line in map(json.loads, log.read_text().splitlines()):
        start = start or line["time"]
        told = line if line["event"] == "steps" else told
        if line["event"] == "figures":
            shown = {"step": line["step"], "loss": told["ctc"], "blanks": told["blank"], "cer": line["cer"], "wer": line["wer"]}
            rows.append({**shown, "minutes": (line["time"] - start) / 60})
            print(f"{arm:14}", *(f"{name} {value:<8.4g}" for name, value in rows[-1].items()), flush=True)
    return rows


def values(arm: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """The recipe of an arm."""
    recipe = read_recipe("wav2vec2-mini")
    assert isinstance(recipe, StagedRecipe)
    pretrain, ctc = (recipe.stages[name].values for name in ("pretrain", "ctc"))
    # What the recipe says in steps, in proportion to those there are here.
    parts = {"data.first_batches": chosen.steps // 3, "augmentation.from_step": chosen.steps, "intermediate_layers": [2]}
    if arm != "pretrained":
        ctc["options"].pop("init")
        ctc["options"] |= {"filterbank_start": True, "model": {**pretrain["options"]["model"], **ctc["options"]["model"]}}
        parts |= {f"model.{name}": value for name, value in SMALL.items()}
    for stage, seconds, steps in ((pretrain, 80, chosen.pretraining_steps), (ctc, 40, chosen.steps)):
        stage["options"]["data"] |= {"where": {"source": chosen.sources} if chosen.sources else {}, "workers": 1}
        stage["options"]["data"]["batches"]["batch_seconds"] = seconds
        stage["loop"] |= {"steps": steps, "max_minutes": None, "evaluate_every": max(steps // 6, 1), "precision": "float32"}
        stage["optimizers"]["main"]["schedule"] = {"kind": "cosine", "warmup_steps": steps // 8, "final_factor": 0.1}
    ctc["options"]["data"]["held_out_most"] = 80
    ctc["loop"]["ema_decay"] = 0.99
    for path, value in {**parts, **ARMS[arm]}.items():
        section, _, name = path.rpartition(".")
        (ctc["options"][section] if section else ctc["options"])[name] = value
    pretrain["options"]["model"] |= SMALL
    return {"stages": {"pretrain": pretrain, "ctc": ctc}} if arm == "pretrained" else ctc


if __name__ == "__main__":
    main()
