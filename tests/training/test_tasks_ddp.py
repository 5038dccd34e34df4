"""Real tasks on two processes under torchrun, on the CPU by gloo, do what one does with the joined batch.

What differs by definition is left out, or compared with something else:

- What is drawn at random (masks, distractors, noise, dropped layers, quantiser dropout) each process draws by itself. Here it
  follows from the utterance. Distractors come from an utterance's own masked steps, so that a batch can be split.
- Wav2Vec2's diversity is that of the codebooks' use in a micro-batch of one process, as where gradients are accumulated: it is
  that of one process which has the batches of both as its micro-batches.
- Codebooks that start by k-means, and entries that are revived, take their points from the first process's frames.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import speech_processes
import torch
from bundled_clips import log_of
from safetensors.torch import load_file
from speech_processes import CASES, DIVERSE, KEPT, RUNS, UTTERANCES, keep_layers, made_table, one_step, recipe
from torch import Tensor

from phonograph import Wav2Vec2ForCTC
from phonograph.training import RunOptions, Trainer


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the two processes have left everything; they have said nothing, and warned of nothing."""
    folder = tmp_path_factory.mktemp("two-processes")
    made_table(folder)
    script = speech_processes.__file__
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout, done.stderr[-4000:]) == (0, "", "")
    return folder


def assert_close(given: dict[str, Tensor], wanted: dict[str, Tensor], share: float) -> None:
    """Tensors of the same names, equal up to a share of the largest number in each."""
    assert set(given) ^ set(wanted) == set()
    apart = {name: float((given[name].double() - value.double()).abs().max()) for name, value in wanted.items()}
    # A bias of keys changes no attention: its gradient is 0, but for rounding.
    limits = {name: max(share * float(value.abs().max()), 1e-9) for name, value in wanted.items()}
    assert {name: value for name, value in apart.items() if value > limits[name]} == {}


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_the_joined_batch(ran: Path, tmp_path: Path, case: str) -> None:
    """Also where processes have batches of unequal size, and accumulate gradients over two of them; buffers too."""
    trainer = Trainer(recipe(case, ran / "manifest.jsonl", processes=1), RunOptions(tmp_path, device="cpu", quiet=True))
    assert len(trainer.task.training) == UTTERANCES  # type: ignore[attr-defined]
    wanted = one_step(trainer)
    for rank in (0, 1):
        assert_close(torch.load(ran / f"{case}-{rank}.pt"), wanted, 2e-3 if case == "codec" else 5e-5)


def test_gradients_of_sharded_parameters_are_the_same(ran: Path) -> None:
    """But that what no loss uses has a gradient of 0, rather than none."""
    for rank in (0, 1):
        given = torch.load(ran / f"sharded-{rank}.pt")
        assert given.pop("model.wav2vec2.masked_spec_embed").abs().max() == 0
        assert_close(given, torch.load(ran / "ctc-0.pt"), 5e-5)


def with_batches_of_both(made: Any, folder: Path) -> Trainer:
    """One process that has the micro-batches of two, one after the other."""
    trainer = Trainer(made, RunOptions(folder, device="cpu", quiet=True))
    both = [itertools.islice(trainer.task.batches(rank, 2, 0), 2) for rank in (0, 1)]
    trainer.batches = itertools.chain(*both)  # type: ignore[assignment]
    return trainer


def test_layers_may_be_dropped_by_one_process_and_not_by_another(ran: Path, tmp_path: Path) -> None:
    trainer = with_batches_of_both(recipe("ctc", ran / "manifest.jsonl", loop={"accumulate": 4}), tmp_path)
    keep_layers(trainer, [*KEPT[0], *KEPT[1]])
    wanted = one_step(trainer)
    assert any("encoder.layers.1" in name for name in wanted)
    for rank in (0, 1):
        assert_close(torch.load(ran / f"dropped-{rank}.pt"), wanted, 5e-5)


def test_diversity_is_that_of_each_processs_micro_batches(ran: Path, tmp_path: Path) -> None:
    wanted = one_step(
        with_batches_of_both(recipe("pretraining", ran / "manifest.jsonl", loop={"accumulate": 4}, **DIVERSE), tmp_path)
    )
    assert_close(torch.load(ran / "diverse-1.pt"), wanted, 5e-5)
    without = torch.load(ran / "pretraining-1.pt")
    name = "model.quantizer.weight_proj.weight"
    assert (wanted[name] - without[name]).abs().max() > 1e-3 * wanted[name].abs().max()


@pytest.mark.parametrize("name", RUNS)
def test_runs_of_the_command_end_and_go_on_as_if_never_stopped(ran: Path, name: str) -> None:
    run = ran / name
    whole, again = log_of(run / "first.jsonl"), log_of(run / "log.jsonl")
    assert [line["step"] for line in whole if line["event"] == "steps"] == [1, 2, 3, 4]
    assert again == [line for line in whole if line["step"] > 2]
    for file in ("weights", "ema", "model/model"):
        first, last = (load_file(run / folder / f"{file}.safetensors") for folder in ("first", "checkpoints/step-00000004"))
        assert first.keys() == last.keys()
        assert all(torch.equal(value, last[tensor]) for tensor, value in first.items())
    said = [json.loads((ran / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    assert [json.loads(text)["step"] for text in said[0]] == [4, 4]
    assert said[1] == ["", ""]


def test_processes_hold_the_same_codebooks_though_each_draws_by_itself(ran: Path) -> None:
    """Started by k-means, followed, and revived: what the others hold is what the first one saves."""
    states = [torch.load(ran / f"run-codec-buffers-{rank}.pt") for rank in (0, 1)]
    assert any("embed_sum" in name for name in states[0])
    assert any("balancer" in name for name in states[0])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_sharded_run_s_result_loads(ran: Path) -> None:
    assert Wav2Vec2ForCTC.from_pretrained(ran / "run-fsdp/model").config.num_hidden_layers == 2


def test_fsdp_refuses_the_codec(ran: Path) -> None:
    message = "expected one optimiser and nothing frozen for a while with distributed: fsdp, got more; set it to ddp"
    assert [(ran / f"refused-{rank}.txt").read_text() for rank in (0, 1)] == [message] * 2


def test_only_the_first_process_writes(ran: Path) -> None:
    """But for each process's own state in checkpoints."""
    first, other = (json.loads((ran / f"written-{rank}.json").read_text()) for rank in (0, 1))
    assert any(path.startswith("run-ctc/vocabulary") for path in first)
    assert any(path.startswith("run-ctc/samples") for path in first)
    assert len(other) == 3 * len(RUNS)
    assert all(".part/.rank-1.pt." in path for path in other)
