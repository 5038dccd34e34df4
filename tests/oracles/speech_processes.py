"""What two processes under torchrun do with speech in tests/training/test_tasks_ddp.py: `torchrun speech_processes.py FOLDER`.

The cases are the same for one process, which has twice as many utterances in a batch: of five in all, one of two processes has
three and the other two.
"""

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed
import torch.nn.functional as F
from bundled_clips import CODEC, PRETRAINING, RESTLESS, SEQ2SEQ, WAV2VEC2, table
from torch import Tensor

from phonograph import Wav2Vec2ForPreTraining
from phonograph.errors import ConfigError
from phonograph.models.wav2vec2.masking_wav2vec2 import sampled_negatives
from phonograph.training import Losses, RunOptions, Trainer, parse_recipe
from phonograph.training.tasks.speech import SpeechTask

UTTERANCES = 5
CASES: dict[str, dict[str, Any]] = {
    "ctc": {"model": WAV2VEC2 | {"apply_spec_augment": False}, "intermediate_layers": [1], "even_alignment_steps": 4},
    "pretraining": {"model": WAV2VEC2 | PRETRAINING | {"diversity_loss_weight": 0.0}},
    "seq2seq": {"model": SEQ2SEQ, "pieces": 60, "ctc_weight": 0.5, "label_smoothing": 0.1},
    "classification": {
        "model": WAV2VEC2 | {"apply_spec_augment": False},
        "kind": "frames",
        "label": "segments",
        "freeze_features": False,
    },
    "codec": {
        "config": CODEC,
        "mel_windows": [1024, 256],
        "adversary": {"windows": [512], "channels": 4},
        "quantizer": {"decay": 0.9, "revive_below": 0.0, "dropout_share": 0.0, "unquantized_share": 0.0},
    },
}
KEPT = [[True, False], [False, False]]
"""Of each process: whether it has all layers in a micro-batch, or none."""
DIVERSE = {"model": WAV2VEC2 | PRETRAINING | {"diversity_loss_weight": 1.0}}


def made_table(folder: Path) -> Path:
    """Five utterances: two of the three clips twice."""
    path = table(folder, segments=[[[0.2, 0.8, "a"]], [[0.0, 1.0, "b"]], [[0.5, 1.5, "c"]]])
    rows = path.read_text().splitlines()
    path.write_text("\n".join((rows * 2)[:UTTERANCES]))
    return path


def recipe(case: str, path: Path, processes: int = 2, loop: dict[str, Any] | None = None, **options: Any) -> Any:
    """A recipe for so many processes: five utterances a step, in two micro-batches.

    The codec has them in one: its codebooks and its balancer move with each micro-batch.
    """
    micro_batches = 1 if case == "codec" else 2
    batches = {"batch_seconds": 100.0, "size_ratio": 2.0, "most_padding": 0.9, "most_items": 8 // processes // micro_batches}
    if case == "codec":
        batches["crop_seconds"] = 6.0  # longer than all: each is one item
    data = {"path": str(path), "held_out": str(path), "held_out_most": 1, "batches": batches, "workers": 1}
    adamw = {"lr": 1e-3, "betas": [0.5, 0.9]}
    values = {
        "task": case,
        "options": {**CASES[case], "data": data, **options},
        "loop": {"steps": 4, "log_every": 1, "save_minutes": None, "keep": 9, "accumulate": micro_batches, **(loop or {})},
        "optimizers": {"generator": adamw, "discriminator": adamw} if case == "codec" else {"main": adamw},
    }
    return parse_recipe(json.dumps(values))


# ---------------------------------------------------------------------------------------------------- one step, nothing random


def _third_steps(model: Wav2Vec2ForPreTraining, samples: int, attention_mask: Tensor, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Every third step masked, and as distractors of each the next masked ones of its item."""
    steps = int(model._get_feat_extract_output_lengths(samples))
    lengths = model._get_feat_extract_output_lengths(attention_mask.long().sum(-1))
    places = torch.arange(steps)
    mask = (places % 3 == 0) & (places < lengths[:, None])
    drawn = torch.linspace(0, 0.999, model.config.num_negatives).expand(len(lengths), steps, -1)
    with mock.patch.object(torch, "rand", return_value=drawn):
        return mask, sampled_negatives(mask, model.config.num_negatives)


def _noiseless(logits: Tensor, tau: float, hard: bool) -> Tensor:
    soft = (logits / tau).softmax(-1)
    return F.one_hot(soft.argmax(-1), soft.shape[-1]) + soft - soft.detach()


def _as_loud_as_long(task: SpeechTask, waveforms: Tensor, lengths: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Levels by which the batches of the processes differ: the shortest clip is a tenth as loud as the longest."""
    return waveforms * (lengths[:, None] / waveforms.shape[1]) ** 6, lengths


@contextlib.contextmanager
def nothing_random() -> Iterator[None]:
    """Masks, distractors, levels and the Gumbel softmax follow from the utterance alone: processes draw by themselves."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(Wav2Vec2ForPreTraining, "sample_masks", _third_steps))
        stack.enter_context(mock.patch.object(F, "gumbel_softmax", _noiseless))
        stack.enter_context(mock.patch.object(SpeechTask, "augmented", _as_loud_as_long))
        yield


def one_step(trainer: Trainer) -> dict[str, Tensor]:
    """The gradients that the optimisers are given in one step, and what the step makes of the buffers."""
    modules = trainer.task.modules
    if "codec" in modules:
        for book in modules["codec"].quantizer.codebooks():  # type: ignore[operator, union-attr]
            book.initialized.fill_(1)  # k-means would start from points drawn at random
        for name, parameter in modules["discriminators"].named_parameters():
            if name.endswith("original0"):
                parameter.data.mul_(8)  # as they begin they tell nothing apart, and their gradients are what rounding leaves
    found: dict[str, Tensor] = {}

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        named = [(name, p.grad) for name, p in modules.named_parameters() if id(p) in mine and p.grad is not None]
        found.update({name: torch.as_tensor(getattr(g, "full_tensor", g.clone)()) for name, g in named})

    for part in trainer.parts:
        part.optimizer.register_step_pre_hook(note)
    with nothing_random():
        trainer.train_step()
    return found | {name: buffer.clone() for name, buffer in modules.named_buffers() if name in modules.state_dict()}


def keep_layers(trainer: Trainer, kept: Sequence[bool]) -> None:
    """Have all layers of a CTC task's encoder in some micro-batches of a step, and none in the others."""
    encoder, losses, each = trainer.task.modules["model"].wav2vec2.encoder, trainer.task.losses, iter(kept)  # type: ignore[union-attr]

    def dropping(*arguments: Any) -> Iterator[Losses]:
        encoder.layerdrop = 0.0 if next(each) else 1.1
        return losses(*arguments)

    trainer.task.losses = dropping  # type: ignore[method-assign]


# -------------------------------------------------------------------------------------------------------------- two processes


def main(folder: Path) -> None:
    """Everything that the tests look at, below the folder."""
    rank = int(os.environ["RANK"])
    path = folder / "manifest.jsonl"  # made by the test
    written: set[str] = set()
    sys.addaudithook(lambda event, arguments: _note_write(event, arguments, folder, written))

    for case in CASES:
        trainer = Trainer(recipe(case, path), _options(folder / case))
        torch.save(one_step(trainer), folder / f"{case}-{rank}.pt")
    more = {
        "diverse": recipe("pretraining", path, **DIVERSE),
        "sharded": recipe("ctc", path, loop={"distributed": "fsdp"}),
    }
    for name, made in more.items():
        torch.save(one_step(Trainer(made, _options(folder / name))), folder / f"{name}-{rank}.pt")
    trainer = Trainer(recipe("ctc", path), _options(folder / "dropped"))
    keep_layers(trainer, KEPT[rank])
    torch.save(one_step(trainer), folder / f"dropped-{rank}.pt")

    for name in RUNS:
        _run_and_resume(name, folder, path, rank)
    _move_codebooks(folder, path, rank)
    refused = ""
    try:
        Trainer(recipe("codec", path, loop={"distributed": "fsdp"}), _options(folder / "refused"))
    except ConfigError as error:
        refused = str(error)
    (folder / f"refused-{rank}.txt").write_text(refused)
    (folder / f"written-{rank}.json").write_text(json.dumps(sorted(written)))


RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "run-ctc": (
        "ctc",
        {"ema_decay": 0.9, "evaluate_every": 2},
        {"model": RESTLESS, "augmentation": {"waveform": {"noise_probability": 0.5}}},
    ),
    "run-codec": (
        "codec",
        {"ema_decay": 0.9},
        {"quantizer": {"decay": 0.8, "revive_below": 0.5}, "judging": {"codebooks": [3], "samples": 1}},
    ),
    "run-fsdp": ("ctc", {"distributed": "fsdp", "ema_decay": 0.9, "precision": "bfloat16"}, {"model": RESTLESS}),
}
"""Runs to their end with everything random: the task, and what changes in its loop and its options."""


def _run_and_resume(name: str, folder: Path, path: Path, rank: int) -> None:
    """By the command, twice: to the end, then once more from the checkpoint in the middle."""
    from phonograph.cli import main as command

    case, loop, options = RUNS[name]
    if rank == 0:
        made = recipe(case, path, loop={"save_every": 2, **loop}, **options)
        (folder / f"{name}.yaml").write_text(made.to_yaml())
    torch.distributed.barrier()
    arguments = ["train", str(folder / f"{name}.yaml"), "-o", str(folder / name), "--device", "cpu", "--json", "--quiet"]
    said = []
    for more in ([], ["--resume"]):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert command([*arguments, *more]) == 0
        said.append(printed.getvalue())
        torch.distributed.barrier()
        if rank == 0 and not more:
            (folder / name / "log.jsonl").rename(folder / name / "first.jsonl")
            (folder / name / "checkpoints/step-00000004").rename(folder / name / "first")
        torch.distributed.barrier()
    (folder / f"{name}-{rank}.json").write_text(json.dumps(said))


def _move_codebooks(folder: Path, path: Path, rank: int) -> None:
    """Three steps of the codec with everything random, and what they make of each process's buffers."""
    case, loop, options = RUNS["run-codec"]
    trainer = Trainer(recipe(case, path, loop=loop, **options), _options(folder / "moved"))
    for _ in range(3):
        trainer.train_step()
    torch.save(dict(trainer.task.modules.named_buffers()), folder / f"run-codec-buffers-{rank}.pt")


def _options(folder: Path) -> RunOptions:
    return RunOptions(folder, device="cpu", quiet=True)


def _note_write(event: str, arguments: Any, folder: Path, written: set[str]) -> None:
    """Files below the folders of runs that this process opens to write, or makes."""
    place = str(arguments[0]) if event in ("open", "os.mkdir") else ""
    writes = event == "os.mkdir" or (event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)))
    if writes and place.startswith(f"{folder}/") and Path(place).parent != folder:
        written.add(place.removeprefix(f"{folder}/"))


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(Path(sys.argv[1]))
