"""A compiled step gives what the plain one gives, and is taken only where it fits."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from phonograph.errors import ConfigError
from phonograph.nn.compiled import CompiledStep, CompiledSteps
from phonograph.nn.packed import reference_path
from phonograph.nn.state import State


@dataclass
class Sum(State):
    """What came before, added up, and how much of it there was."""

    total: Tensor
    steps: Tensor


class Running(nn.Module):
    """The mean of all inputs so far, through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.unused = nn.Linear(8, 4)
        self.compiled = CompiledSteps()

    def step(self, x: Tensor, states: list[Sum]) -> Tensor:
        """(B, 8) -> (B, 4)."""
        states[0].total.add_(x)
        states[0].steps.add_(1)
        mean: Tensor = self.linear(states[0].total / states[0].steps)
        return mean


def fresh() -> list[Sum]:
    return [Sum(torch.zeros(2, 8), torch.zeros(2, 1))]


@pytest.fixture(scope="module")
def running() -> Running:
    torch.manual_seed(0)
    module = Running().eval()
    module.compiled.compile(module, module.step, torch.zeros(2, 8), fresh())
    return module


@torch.no_grad()
def test_gives_what_the_plain_step_gives(running: Running) -> None:
    plain, states = fresh(), fresh()
    for x in torch.randn(5, 2, 16):
        part = x[:, ::2]  # not contiguous
        step = running.compiled.find(part)
        assert step is not None
        torch.testing.assert_close(step(part, states), running.step(part, plain))
    torch.testing.assert_close(states[0].total, plain[0].total)
    assert states[0].steps.tolist() == [[5], [5]]


def test_states_of_inference_mode(running: Running) -> None:
    with torch.inference_mode():
        states = fresh()
        step = running.compiled.find(torch.ones(2, 8))
        assert step is not None
        step(torch.ones(2, 8), states)
        assert float(states[0].total.sum()) == 16


@torch.no_grad()
def test_taken_only_where_it_fits(running: Running) -> None:
    x = torch.zeros(2, 8)
    assert running.compiled.find(x) is not None
    assert running.compiled.find(torch.zeros(3, 8)) is None
    assert running.compiled.find(x.double()) is None
    with torch.enable_grad():
        assert running.compiled.find(x) is None
    with reference_path():
        assert running.compiled.find(x) is None
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert running.compiled.find(x) is None
    finally:
        torch.set_num_threads(threads)
    assert running.train().compiled.find(x) is None
    running.eval()
    assert copy.deepcopy(running).compiled.find(x) is None
    running.unused.weight.add_(1)
    assert running.compiled.find(x) is not None


@torch.no_grad()
def test_weights_that_changed_are_not_used_as_they_were() -> None:
    module, x = Running().eval(), torch.zeros(2, 8)
    module.compiled.compile(module, module.step, x, fresh())
    before, other = module.linear.bias.data, module.linear.bias.data + 1
    module.linear.bias.data = other
    assert module.compiled.find(x) is None
    module.linear.bias.data = before
    assert module.compiled.find(x) is not None
    module.linear.bias.add_(1)
    assert module.compiled.find(x) is None


def test_without_a_compiler(running: Running) -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "/nonexistent")}),
        pytest.raises(ConfigError, match=r"expected a C\+\+ compiler that torch can use, got .*; install g\+\+ or clang\+\+"),
    ):
        CompiledStep(running, running.step, torch.zeros(2, 8), fresh())
