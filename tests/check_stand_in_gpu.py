"""The stand-in itself: it refuses what a GPU refuses, notes every wait, and has a CPU's numbers."""

import pytest
import torch
import torch.nn.functional as F
from stand_in_gpu import DEVICE, StandInGpu
from torch import nn


@pytest.fixture
def gpu():
    with StandInGpu() as device:
        yield device


WAITS = {
    "item": (lambda x: x.sum().item(), "read"),
    "bool": (lambda x: bool((x > 9).any()), "read"),
    "tolist": (lambda x: x.tolist(), "read"),
    "cpu": (lambda x: x.cpu(), "read"),
    "copy to the processor": (lambda x: torch.zeros(4, 3).copy_(x, non_blocking=True), "read"),
    "equal": (lambda x: torch.equal(x, x), "read"),
    "nonzero": (lambda x: x.nonzero(), "shape"),
    "mask": (lambda x: x[x > 0], "shape"),
    "assignment by a mask": (lambda x: x.__setitem__(x > 9, x[0, :0]), "shape"),
    "bincount": (lambda x: x.long().clamp(0).flatten().bincount(minlength=9), "shape"),
    "upload": (lambda x: torch.ones(3).to("gpu"), "upload"),
    "a tensor of numbers": (lambda x: torch.tensor([1, 2], device="gpu"), "upload"),
    "copy from the processor": (lambda x: x.copy_(torch.zeros(4, 3)), "upload"),
    "indices on the processor": (lambda x: x[torch.tensor([0, 2])], "upload"),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_noted(name, gpu):
    x = torch.randn(4, 3).to("gpu")
    gpu.forget()
    call, kind = WAITS[name]
    call(x)
    assert gpu.kinds == {kind: 1}


def test_ctc_waits_for_lengths_there_and_for_itself(gpu):
    logits = torch.randn(20, 2, 5).to("gpu").requires_grad_()
    targets = torch.ones(2, 4, dtype=torch.int64).to("gpu")
    lengths = torch.tensor([20, 18]), torch.tensor([2, 1])
    gpu.forget()
    F.ctc_loss(logits.log_softmax(-1), targets, *(value.tolist() for value in lengths), reduction="sum").backward()
    assert gpu.kinds == {"ctc": 2}
    gpu.forget()
    F.ctc_loss(logits.log_softmax(-1), targets, *(value.to("gpu", non_blocking=True) for value in lengths)).sum().backward()
    assert gpu.kinds == {"ctc": 2, "read": 4}


def test_what_does_not_wait(gpu):
    x = torch.randn(4, 3).to("gpu")
    gpu.forget()
    x[x > 0] = 0
    x[1] = 5
    x *= torch.tensor(2.0)
    torch.where(x > 0, x, 1.0)[torch.arange(2, device="gpu")].sum().add_(1)
    torch.ones(3).to("gpu", non_blocking=True)
    assert gpu.waits == []
    assert [str(upload) for upload in gpu.uploads] == ["upload by _to_copy at elsewhere"]


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: x + y,
        lambda x, y: torch.stack([x.sum(), y.sum()]),
        lambda x, y: F.embedding(torch.tensor([1]), x),
        lambda x, y: x @ y,
        lambda x, y: F.scaled_dot_product_attention(x, y, y),
        lambda x, y: y[x > 0],
    ],
)
def test_two_devices_are_refused(call, gpu):
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        call(torch.randn(1, 3, 3).to("gpu"), torch.randn(1, 3, 3))


def test_numbers_and_gradients_are_those_of_the_processor(gpu):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv1d(3, 8, 3), nn.GELU(), nn.BatchNorm1d(8), nn.Flatten(), nn.Linear(48, 5))
    x = torch.randn(4, 3, 8)
    expected = layers(x).square().sum()
    expected.backward()
    gradients = [parameter.grad for parameter in layers.parameters()]
    layers.zero_grad()
    found = gpu.move(layers)(x.to("gpu")).square().sum()
    found.backward()
    torch.testing.assert_close(found.cpu(), expected)
    for parameter, gradient in zip(layers.parameters(), gradients, strict=True):
        assert parameter.grad.device == DEVICE
        torch.testing.assert_close(parameter.grad.cpu(), gradient)


def test_attention_has_its_numbers_its_gradients_and_one_kernel_each_way(gpu):
    given = [torch.randn(2, 4, 9, 8, requires_grad=True) for _ in range(3)]
    mask = torch.rand(2, 1, 9, 9) > 0.2
    F.scaled_dot_product_attention(*given, mask).square().sum().backward()
    there = [value.detach().to("gpu").requires_grad_() for value in given]
    gpu.forget()
    F.scaled_dot_product_attention(*there, mask.to("gpu", non_blocking=True)).square().sum().backward()
    assert gpu.kernels["scaled_dot_product_attention"] == 2
    assert gpu.kernels["bmm"] == 0
    for one, other in zip(given, there, strict=True):
        torch.testing.assert_close(other.grad.cpu(), one.grad)


def test_dropout_in_attention_drops_the_same_both_ways(gpu):
    queries = torch.randn(1, 1, 5, 4).to("gpu")
    values = torch.eye(5)[None, None].to("gpu").requires_grad_()
    weights = F.scaled_dot_product_attention(queries, queries, values, dropout_p=0.5)
    weights.sum().backward()
    torch.testing.assert_close(values.grad.sum(-1).cpu(), 5 * weights.detach().sum(-2).cpu())


def test_autocast_has_the_types_of_cuda(gpu):
    layer, norm = gpu.move(nn.Linear(4, 4)), gpu.move(nn.LayerNorm(4))
    x = torch.randn(2, 4).to("gpu")
    with torch.autocast("gpu", torch.bfloat16):
        y = layer(x)
        types = [value.dtype for value in (y, norm(y), y.softmax(-1), y.sum(), y.exp(), torch.cat([x, y]), y * y, y @ y.T)]
        gpu.forget()
        layer(x)
        assert gpu.kernels["_to_copy"] == 1  # of x: weights are kept
        y.sum().backward()
    narrow, wide = torch.bfloat16, torch.float32
    assert types == [narrow, wide, wide, wide, wide, wide, narrow, narrow]
    assert layer.weight.grad.dtype == wide
    with torch.autocast("gpu", torch.bfloat16):
        gpu.forget()
        layer(x)
        assert gpu.kernels["_to_copy"] == 3  # of x, weight and bias


def test_what_was_one_parameter_stays_one(gpu):
    head, embedding = nn.Linear(4, 9, bias=False), nn.Embedding(9, 4)
    head.weight = embedding.weight
    moved = gpu.move(nn.ModuleDict({"head": head, "embedding": embedding}))
    assert moved["head"].weight is moved["embedding"].weight
    assert moved["head"].weight.device == DEVICE


def test_views_share_memory_and_the_fused_optimiser_steps(gpu):
    weight = nn.Parameter(torch.ones(2, 3).to("gpu"))
    optimizer = torch.optim.AdamW([weight], lr=0.5, fused=True)
    weight.grad = torch.ones(2, 3).to("gpu")
    gpu.forget()
    optimizer.step()
    assert gpu.waits == []
    assert {value.device for value in optimizer.state[weight].values()} == {DEVICE}
    with torch.no_grad():
        weight[0].fill_(7)
    assert weight.tolist()[0] == [7, 7, 7]
    assert weight.tolist()[1][0] < 1
