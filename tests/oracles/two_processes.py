"""What two processes under torchrun do in tests/training/test_ddp.py: `torchrun two_processes.py FOLDER`."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from phonograph.training import RunOptions, Trainer, loop, parse_recipe, train

FOLDER = Path(sys.argv[1])
RANK = int(os.environ["RANK"])
LOOP = {"steps": 6, "log_every": 1, "save_minutes": None, "keep": 9, "ema_decay": 0.9}


def recipe(**changes: Any) -> Any:
    values = {"task": "linear_task:LinearTask", "loop": LOOP, "optimizers": {"main": {"lr": 0.05, "clip_norm": 1.0}}}
    return parse_recipe(json.dumps(values), {path.replace("__", "."): value for path, value in changes.items()})


def run_options(name: str, **more: Any) -> RunOptions:
    return RunOptions(FOLDER / name, device="cpu", quiet=True, **more)


def gradients(name: str, **changes: Any) -> None:
    """The gradients that the optimiser gets in the first step, by each rank."""
    trainer = Trainer(recipe(**changes, optimizers__main__clip_norm=None), run_options(name))
    given: dict[str, torch.Tensor] = {}

    def note(*_: Any) -> None:
        model = trainer.task.modules["model"].named_parameters()
        given.update({name: torch.as_tensor(getattr(p.grad, "full_tensor", lambda p=p: p.grad)()) for name, p in model})

    trainer.parts[0].optimizer.register_step_pre_hook(note)
    trainer.train_step()
    torch.save({name: gradient.clone() for name, gradient in given.items()}, FOLDER / f"{name}-{RANK}.pt")


def run(name: str, resume: bool = False, **changes: Any) -> None:
    outcome = train(recipe(**changes), run_options(name, resume=resume))
    (FOLDER / f"{name}-{RANK}.json").write_text(json.dumps([outcome.step, outcome.signal, outcome.figures, outcome.skipped]))


def one_rank_fails() -> None:
    """Only rank 1 has losses that are not finite; both skip the step."""
    trainer = Trainer(recipe(), run_options("nan"))
    if RANK == 1:
        trainer.task.options = dataclasses.replace(trainer.task.options, nan_steps=[1])  # type: ignore[attr-defined]
    seen = []
    for _ in range(3):
        trainer.train_step()
        seen.append(trainer.task.modules["model"].weight.detach().flatten().tolist())
    (FOLDER / f"nan-{RANK}.json").write_text(json.dumps([seen, trainer.parts[0].counters.tolist()]))


def one_rank_is_told_to_stop() -> None:
    """Rank 1 gets the signal in step 2; both stop at the log's next line, or when next they ask each other, and go on later."""
    told = []
    for log_every, seconds in ((2, 1e9), (1000, 0.0)):
        changes = {"loop__log_every": log_every, "options__noise": 0.1}
        step = recipe(**changes, options__signal_step=2) if RANK == 1 else recipe(**changes)
        with mock.patch.object(loop, "_QUESTION_SECONDS", seconds):
            outcome = train(step, run_options(f"signal-{log_every}"))
        assert outcome.signal == signal.SIGTERM
        again = train(recipe(**changes), run_options(f"signal-{log_every}", resume=True))
        told += [outcome.step, again.step]
    (FOLDER / f"signal-{RANK}.json").write_text(json.dumps(told))


CRITIC = {"options__critic": True, "options__critic_every": 2, "optimizers__critic": {"lr": 0.02}}
UNEVEN = {"options__masked": True, "options__shuffle": False, "options__batch": 2}

gradients("plain", **UNEVEN)
patience = torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout
(FOLDER / f"patience-{RANK}.json").write_text(json.dumps(patience.total_seconds()))
gradients("accumulated", **UNEVEN, loop__accumulate=3)
gradients("fsdp", **UNEVEN, loop__distributed="fsdp", loop__accumulate=3)
run("critic", **UNEVEN, **CRITIC, loop__accumulate=2, options__hidden=True, options__frozen_steps=2)
for kind in ("ddp", "fsdp"):
    run(kind, **UNEVEN, loop__distributed=kind, options__noise=0.3, loop__save_every=3, loop__evaluate_every=3)
    if RANK == 0:
        os.rename(FOLDER / kind / "log.jsonl", FOLDER / kind / "first.jsonl")
        newest = FOLDER / kind / "checkpoints/step-00000006"
        os.rename(newest, FOLDER / kind / "first")
    torch.distributed.barrier()
    run(kind, **UNEVEN, resume=True, loop__distributed=kind, options__noise=0.3, loop__save_every=3, loop__evaluate_every=3)
run("fsdp-alike", **UNEVEN, loop__distributed="fsdp")
one_rank_fails()
one_rank_is_told_to_stop()
refused = ""
try:
    Trainer(recipe(**CRITIC, loop__distributed="fsdp"), run_options("refused"))
except ValueError as error:
    refused = str(error)
(FOLDER / f"refused-{RANK}.txt").write_text(refused)
