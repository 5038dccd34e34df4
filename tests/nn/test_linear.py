"""The product with the faster kernel equals torch's, for any number of rows, and follows its weight."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from phonograph.nn.activations import ACTIVATIONS
from phonograph.nn.linear import Linear, linear, linear_together
from phonograph.nn.packed import Derived, reference_path

ROWS = [1, 2, 15, 16, 17, 31, 100, 511, 512, 513, 1024, 1025, 1500]


def close(y: torch.Tensor, reference: torch.Tensor) -> None:
    torch.testing.assert_close(y, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", ROWS)
def test_equals_torch(rows: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, 48, generator=generator), torch.randn(64, 48, generator=generator)
    added = torch.randn(64, generator=generator) if bias else None
    y = linear(x, weight, added)
    assert y.shape == (rows, 64)
    close(y, F.linear(x, weight, added))


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_module_equals_torch(dtype: torch.dtype, bias: bool, grad: bool) -> None:
    torch.manual_seed(0)
    module = Linear(48, 64, bias=bias).to(dtype).eval()
    with torch.set_grad_enabled(grad):
        for rows in ROWS[:8]:
            x = torch.randn(2, rows, 48).to(dtype)
            y = module(x)
            assert y.shape == (2, rows, 64)
            assert y.dtype is dtype
            tolerance = 0.05 if dtype is torch.bfloat16 else 1e-4
            torch.testing.assert_close(y, F.linear(x, module.weight, module.bias), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("needed", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("rows", [15, 16, 600])
def test_gradients(rows: int, needed: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = [torch.randn(rows, 48), torch.randn(64, 48), torch.randn(64)]
    towards = torch.randn(64, rows).t()  # as from a transposed view
    found = []
    for product in (linear, F.linear):
        inputs = [value.clone().requires_grad_(bool(wanted)) for value, wanted in zip(values, needed, strict=True)]
        product(*inputs).backward(towards)
        found.append([value.grad for value in inputs])
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            close(ours, theirs)


def test_gradients_of_gradients() -> None:
    torch.manual_seed(0)
    values, found = [torch.randn(40, 48), torch.randn(64, 48)], []
    for product in (linear, F.linear):
        x, weight = (value.clone().requires_grad_() for value in values)
        (gradient,) = torch.autograd.grad(product(x, weight).square().mean(), x, create_graph=True)
        gradient.square().sum().backward()
        found.append(weight.grad)
    close(*found)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_each_sample() -> None:
    torch.manual_seed(0)
    weight, samples, found = torch.randn(64, 48), torch.randn(3, 20, 48), []
    for product in (linear, F.linear):

        def loss(weight: torch.Tensor, x: torch.Tensor, product: Callable[..., torch.Tensor] = product) -> torch.Tensor:
            return product(x, weight).square().mean()

        found.append(torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, samples))
    close(*found)


def test_autocast_is_left_to_torch() -> None:
    x, weight = torch.randn(40, 48), torch.randn(64, 48, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype is torch.bfloat16


@torch.no_grad()
def test_changed_weights_are_used() -> None:
    torch.manual_seed(0)
    module = Linear(48, 64).eval()
    x = torch.randn(1, 40, 48)
    for change in (
        lambda: None,
        lambda: module.weight.mul_(2),
        lambda: module.half().float(),
        lambda: module.load_state_dict({"weight": torch.randn(64, 48), "bias": torch.randn(64)}),
        lambda: setattr(module, "weight", torch.nn.Parameter(torch.randn(64, 48))),
        lambda: module.load_state_dict({"weight": torch.randn(64, 48), "bias": torch.randn(64)}, assign=True),
    ):
        change()
        close(module(x), F.linear(x, module.weight, module.bias))


@torch.no_grad()
def test_half_and_back_is_seen_however_memory_is_reused() -> None:
    """The new weight lies where the old one lay, so an address tells nothing."""
    x = torch.randn(1, 40, 64)
    for seed in range(20):
        torch.manual_seed(seed)
        module = Linear(64, 64).eval()
        torch.nn.init.normal_(module.weight)
        module(x)
        module.bfloat16().float()
        close(module(x), F.linear(x, module.weight, module.bias))


@torch.no_grad()
def test_a_used_module_can_be_copied_and_pickled() -> None:
    module = Linear(48, 64).eval()
    x = torch.randn(1, 40, 48)
    expected = module(x)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        close(twin(x), expected)
        twin.weight.zero_()
        close(twin(x), twin.bias.expand(1, 40, 64))
        close(module(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@torch.no_grad()
def test_activation_and_residual(activation: str | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = Linear(48, 64).to(dtype).eval()
    tolerance = 0.05 if dtype is torch.bfloat16 else 1e-4
    for shape in ((3, 48), (2, 7, 48), (2, 3, 5, 48)):
        x = torch.randn(shape).to(dtype)
        plain = F.linear(x, module.weight, module.bias)
        expected = plain if activation is None else ACTIVATIONS[activation](plain)
        residual = torch.randn(plain.shape).to(dtype)
        for _ in range(2):
            torch.testing.assert_close(module(x, activation), expected, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(module(x, residual=residual), residual + plain, rtol=tolerance, atol=tolerance)
            with reference_path():
                torch.testing.assert_close(module(x, activation), expected, rtol=tolerance, atol=tolerance)
                torch.testing.assert_close(module(x, residual=residual), residual + plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_several_layers_together(bias: bool) -> None:
    torch.manual_seed(0)
    parts = [Linear(48, size, bias=bias).eval() for size in (64, 32, 16)]
    x, packed = torch.randn(2, 9, 48), Derived()
    for _ in range(2):
        expected = torch.cat([F.linear(x, part.weight, part.bias) for part in parts], -1)
        close(linear_together(x, parts, packed), expected)
        with reference_path():
            close(linear_together(x, parts, packed), expected)
        parts[1].weight.mul_(2)  # a change is seen
