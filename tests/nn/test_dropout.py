"""As many elements dropped as asked for, the others scaled, each by itself, and the same ones in the gradient."""

import pytest
import torch

from phonograph.nn.dropout import Dropout, dropout

SIZE = 200_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_share_and_scale(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    y = dropout(torch.ones(SIZE, dtype=dtype), p)
    kept = y != 0
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / SIZE) ** 0.5)
    scale = y[kept].unique()
    assert scale.numel() == 1
    torch.testing.assert_close(scale[0].double().item(), 1 / (1 - p), rtol=5e-3 if dtype == torch.bfloat16 else 2e-4, atol=0.0)


def test_elements_are_independent() -> None:
    """Four of them come from one word: neither these nor their places in it may tell of one another."""
    torch.manual_seed(0)
    kept = (dropout(torch.ones(SIZE, 4), 0.5) != 0).double() - 0.5
    products = kept.T @ kept / SIZE
    torch.testing.assert_close(products, torch.eye(4, dtype=torch.float64) / 4, rtol=0.0, atol=0.25 * 5 / SIZE**0.5)


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (0, 4), (2, 3, 6)])
def test_any_shape_and_layout(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape).add(1).transpose(0, -1)
    y = dropout(x, 0.5)
    assert y.shape == x.shape
    torch.testing.assert_close(y[y != 0], 2 * x[y != 0])


def test_the_gradient_is_dropped_likewise() -> None:
    x = torch.ones(1000, requires_grad=True)
    y = dropout(x, 0.3)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_drawn_from_the_generator_of_torch() -> None:
    torch.manual_seed(3)
    first, second = (dropout(torch.ones(100), 0.5) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(dropout(torch.ones(100), 0.5), first)
    assert not torch.equal(first, second)


def test_nothing_to_drop_and_everything() -> None:
    x = torch.rand(100)
    assert dropout(x, 0.0) is x
    assert not dropout(x, 1.0).any()
    torch.testing.assert_close(dropout(x, 1e-6), x, rtol=1e-3, atol=0.0)


def test_the_module() -> None:
    module, x = Dropout(0.5), torch.ones(1000)
    assert (module(x) == 0).any()
    assert module.eval()(x) is x
    with pytest.raises(ValueError, match="probability"):
        Dropout(1.5)
