"""Captured steps, with a stand-in for the capture where there is no GPU."""

import pytest
import torch
from stand_in_graph import StandInGraph, stand_in
from torch import Tensor

from phonograph.nn.graphs import CapturedStep

ON_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.fixture(params=["cpu", ON_GPU])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu":
        stand_in(monkeypatch)
    return str(request.param)


def test_results_follow_the_inputs(device: str) -> None:
    seen = torch.zeros(3, device=device)

    def step(value: Tensor, factor: Tensor) -> Tensor:
        seen.copy_(value)  # what a state is to a model
        return value * factor

    first, factor = torch.ones(3, device=device), torch.full((1,), 2.0, device=device)
    captured = CapturedStep(step, first, factor)
    first.fill_(9)  # the inputs of the capture are not kept
    for number in (1.0, 5.0, -3.0):
        result = captured(torch.full((3,), number, device=device), factor)
        assert result.tolist() == [2 * number] * 3
        assert seen.tolist() == [number] * 3


def test_the_next_call_overwrites_the_result(device: str) -> None:
    captured = CapturedStep(lambda value: value + 1, torch.zeros(2, device=device))
    before = captured(torch.zeros(2, device=device))
    kept = before.clone()
    after = captured(torch.ones(2, device=device))
    assert before.data_ptr() == after.data_ptr()
    assert (kept.tolist(), after.tolist()) == ([1, 1], [2, 2])


def test_is_replayed_not_run(device: str) -> None:
    calls = []

    def step(value: Tensor) -> Tensor:
        calls.append(value)
        return value * 2

    captured = CapturedStep(step, torch.zeros(2, device=device))
    before = len(calls)
    for _ in range(5):
        captured(torch.ones(2, device=device))
    assert len(calls) == before
    assert not isinstance(captured.graph, StandInGraph) or captured.graph.replays == 5


def test_a_step_may_not_wait_for_the_device(device: str) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        CapturedStep(lambda value: value * value.sum().item(), torch.ones(2, device=device))
