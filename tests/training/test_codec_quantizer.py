"""Training of Mimi's codebooks: dropout by item, unquantised items, revival, steps that went wrong, and several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
from random_mimi import TINY, random_mimi
from torch import Tensor

from phonograph import MimiModel
from phonograph.models.mimi.quantization_mimi import MimiSplitResidualVectorQuantizer


def latents(batch: int = 5, frames: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(batch, frames, 32, generator=torch.Generator().manual_seed(seed))


def training_quantizer() -> MimiSplitResidualVectorQuantizer:
    return random_mimi(**TINY).train().quantizer


def books(quantizer: MimiSplitResidualVectorQuantizer) -> list[tuple[Tensor, Tensor]]:
    return [(book.cluster_usage.clone(), book.embed_sum.clone()) for book in quantizer.codebooks()]


def test_each_item_is_made_of_its_own_codebooks() -> None:
    quantizer, x = training_quantizer(), latents()
    codes = quantizer.encode(x, 4)
    expected = [x[0], *(quantizer.decode(codes[number : number + 1, :number])[0] for number in (1, 2, 3, 4))]
    output = quantizer(x, counts=torch.tensor([0, 1, 2, 3, 4]))
    assert torch.equal(output.codes, codes)
    assert torch.equal(output.quantized[0], x[0])
    torch.testing.assert_close(output.quantized, torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_the_semantic_part_is_that_of_every_item() -> None:
    quantizer, x = training_quantizer(), latents()
    expected = quantizer.decode(quantizer.encode(x, 1))
    torch.testing.assert_close(quantizer(x, counts=torch.tensor([0, 1, 2, 3, 4])).semantic, expected, rtol=1e-5, atol=1e-6)


def test_gradients_pass_through_the_codebooks_that_are_used_only() -> None:
    quantizer, x, wanted = training_quantizer(), latents(3).requires_grad_(), latents(3, seed=1)
    (quantizer(x, counts=torch.tensor([0, 1, 4])).quantized * wanted).sum().backward()
    parts = (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer)
    ways = [part.output_proj.weight.squeeze(-1) @ part.input_proj.weight.squeeze(-1) for part in parts]
    expected = torch.stack([wanted[0], wanted[1] @ ways[0], wanted[2] @ (ways[0] + ways[1])])
    torch.testing.assert_close(x.grad, expected.detach(), rtol=1e-4, atol=1e-5)


def test_codebooks_follow_all_items_however_many_they_use() -> None:
    first, second = training_quantizer(), training_quantizer()
    loss = first(latents()).commitment_loss
    assert torch.equal(second(latents(), counts=torch.tensor([0, 0, 1, 2, 3])).commitment_loss, loss)
    for one, other in zip(books(first), books(second), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_revival_equals_a_float64_reference() -> None:
    """Entries that are used become as a plain update makes them; all others become points that count, of average use."""
    quantizer, x = training_quantizer(), latents(batch=3)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[2, 2:] = False
    part = quantizer.semantic_residual_vector_quantizer
    book = part.codebooks(1)[0]
    book.cluster_usage.copy_(torch.linspace(0.001, 4, 64))
    points = part._project_in(x).double().detach()
    codes = quantizer.encode(x, 1)[:, 0].flatten()
    one_hot = torch.nn.functional.one_hot(codes, 64).double() * mask.flatten()[:, None]
    usage = 0.9 * book.cluster_usage.double() + 0.1 * one_hot.sum(0)
    sums = 0.9 * book.embed_sum.double() + 0.1 * one_hot.T @ points
    dead = usage < 0.5 * usage.mean()
    assert 5 < dead.sum() < 60
    torch.manual_seed(0)
    quantizer(x, mask=mask, decay=0.9, revive_below=0.5)
    torch.testing.assert_close(book.cluster_usage.double(), torch.where(dead, usage.mean(), usage), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(book.embed_sum.double()[~dead], sums[~dead], rtol=1e-4, atol=1e-5)
    revived = (book.embed_sum / book.cluster_usage[:, None]).double()[dead]
    distances = torch.cdist(revived, points[mask.flatten()])
    assert distances.min(1).values.max() < 1e-4
    assert len(distances.argmin(1).unique()) > 4


def test_revival_brings_dead_codebooks_to_use() -> None:
    """A codebook of which one entry has drawn everything comes to use many, without revival it doesn't."""
    used = {}
    for share in (0.0, 0.1):
        quantizer = training_quantizer()
        book = quantizer.codebooks()[0]
        book.embed_sum.copy_(torch.full_like(book.embed_sum, 50.0) * book.cluster_usage[:, None])
        book.embed_sum[0] = 0
        torch.manual_seed(0)
        for seed in range(30):
            quantizer(latents(20, seed=seed), decay=0.8, revive_below=share)
        used[share] = len(quantizer.encode(latents(20, seed=99), 1).unique())
    assert used[0.0] == 1
    assert used[0.1] > 20


def test_evaluation_sees_codebooks_that_training_moved() -> None:
    model = random_mimi(**TINY)
    x = latents()
    with torch.no_grad():
        before = model.quantizer.encode(x, 4)
        model.train().quantizer(x, decay=0.0, revive_below=0.5)
        model.eval()
        after = model.quantizer.encode(x, 4)
        fresh = random_mimi(**TINY)
        fresh.load_state_dict(model.state_dict())
        assert not torch.equal(before, after)
        assert torch.equal(after, fresh.quantizer.encode(x, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_move_nothing(value: float) -> None:
    first, second = training_quantizer(), training_quantizer()
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[1, 3] = False
    first(latents(), mask=mask)
    spoilt = latents()
    spoilt[1, 3] = value
    assert not second(spoilt).commitment_loss.isfinite()
    for one, other in zip(books(first), books(second), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_autocast_changes_no_code() -> None:
    x, quantizer = latents(50), training_quantizer()
    expected = training_quantizer()(x)
    with torch.autocast("cpu", torch.bfloat16):
        output = quantizer(x)
    assert torch.equal(output.codes, expected.codes)
    assert torch.equal(output.quantized, expected.quantized)


def train_on_a_part(rank: int, folder: str) -> None:
    """One of two processes, which runs this file as a program."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(rank)
    begun, fresh = random_mimi(**TINY).train(), random_mimi(**TINY).train()
    part = latents(6)[rank::2]
    begun.quantizer(part, decay=0.9)
    for book in fresh.quantizer.codebooks():
        book.initialized.zero_()
    for _ in range(2):
        fresh.quantizer(part, decay=0.9, revive_below=0.5)
    torch.save([model.quantizer.state_dict() for model in (begun, fresh)], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_move_codebooks_as_one_with_the_joined_batch(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    assert [(process.communicate(timeout=120)[1], process.returncode) for process in running] == [("", 0), ("", 0)]
    (begun, fresh), (begun_too, fresh_too) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone: MimiModel = random_mimi(**TINY).train()
    alone.quantizer(latents(6), decay=0.9)
    for name, value in alone.quantizer.state_dict().items():
        torch.testing.assert_close(begun[name], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(begun_too[name], begun[name]), name
        assert torch.equal(fresh_too[name], fresh[name]), name


if __name__ == "__main__":
    train_on_a_part(int(sys.argv[1]), sys.argv[2])
