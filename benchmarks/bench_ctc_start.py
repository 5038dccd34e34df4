"""How soon CTC from nothing leaves the plateau of blanks, with the remedies of the recipe wav2vec2-mini and without them.

    python benchmarks/bench_ctc_start.py --data SPEECH [--sources kathleen tts] [--steps 900] [--arms recipe plain]

Each arm trains the same small model (four layers of 144) on the same speech for as many steps of 40 seconds, by the recipe and
the loop that `phonograph train` has, up to where augmentation would set in, and is judged on the same held-out utterances.
`plain` has none of what the recipe does about the plateau; `random-start` lacks only the filter bank that the first convolution
begins as, `no-curriculum` only the order from easy to hard; `dropout` has dropout from the first step, `intermediate` a loss in
the middle too. Prints a table and ends with one JSON line.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from phonograph.benchmarks import installed, processor
from phonograph.training import RunOptions, parse_recipe, read_recipe, train

SMALL = {
    "hidden_size": 144,
    "num_hidden_layers": 4,
    "intermediate_size": 576,
    "conv_dim": [192, 192],
    "num_conv_pos_embeddings": 32,
}
# Short filters, one layer upon another, as in wav2vec 2.0.
STRIDED = {"model.conv_dim": [64] * 4, "model.conv_kernel": [10, 8, 8, 4], "model.conv_stride": [5, 4, 4, 4]}
AT_ONCE = {"augmentation.from_step": 0, "augmentation.ramp_steps": 0}
NO_CURRICULUM = {**AT_ONCE, "data.first_seconds": None, "data.first_batches": 0}
ARMS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "plain": {"filterbank_start": False, **STRIDED, **NO_CURRICULUM},
    "random-start": {"filterbank_start": False},
    "no-curriculum": NO_CURRICULUM,
    "dropout": {**AT_ONCE, "augmentation.waveform": None, "model.mask_time_prob": 0.0},
    "intermediate": {"intermediate_layers": [2], "intermediate_weight": 0.3},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder or table of transcribed speech")
    parser.add_argument("--sources", nargs="*", default=[], help="values of the table's column source to take; all by default")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["recipe", "plain"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="keep the runs here")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as temporary:
        curves = {arm: curve(arm, chosen, (chosen.output or Path(temporary)) / arm) for arm in chosen.arms}
    about = {"processor": processor(), "torch": installed("torch"), "steps": chosen.steps, "sources": chosen.sources}
    print(json.dumps({**about, "arms": curves}))


def curve(arm: str, chosen: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """What each evaluation of an arm found."""
    run = RunOptions(folder, chosen.data, "cpu", quiet=True)
    train(parse_recipe(json.dumps(values(arm, chosen))), run)
    rows, told, start = [], {}, 0.0
    for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()):
        start = start or line["time"]
        told = line if line["event"] == "steps" else told
        if line["event"] == "figures":
            shown = {"step": line["step"], "loss": told["ctc"], "blanks": told["blank"], "cer": line["cer"], "wer": line["wer"]}
            rows.append({**shown, "minutes": (line["time"] - start) / 60})
            print(f"{arm:14}", *(f"{name} {value:<8.4g}" for name, value in rows[-1].items()), flush=True)
    return rows


def values(arm: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """The recipe of an arm."""
    recipe = read_recipe("wav2vec2-mini").values
    options, loop = recipe["options"], recipe["loop"]
    options["data"] |= {"where": {"source": chosen.sources} if chosen.sources else {}, "workers": 1, "held_out_most": 80}
    options["data"]["batches"]["batch_seconds"] = 40
    evaluate_every = max(chosen.steps // 6, 1)  # each with a line of the log before it, for the loss
    loop |= {"steps": chosen.steps, "evaluate_every": evaluate_every, "log_every": min(loop["log_every"], evaluate_every)}
    loop |= {"max_minutes": None, "precision": "float32", "ema_decay": 0.99}
    recipe["optimizers"]["main"]["schedule"] = {"kind": "cosine", "warmup_steps": chosen.steps // 8, "final_factor": 0.1}
    # What the recipe says in steps, in proportion to those there are here.
    parts = {"data.first_batches": chosen.steps // 3, "augmentation.from_step": chosen.steps}
    parts |= {f"model.{name}": value for name, value in SMALL.items()}
    for path, value in {**parts, **ARMS[arm]}.items():
        section, _, name = path.rpartition(".")
        (options[section] if section else options)[name] = value
    return recipe


if __name__ == "__main__":
    main()
