"""When the paths made for inference are taken; what they compute is tested with the layers that take them."""

from collections.abc import Callable, Iterator

import pytest
import torch
from random_mimi import TINY, random_mimi
from random_wav2vec2 import FAMILIES, random_wav2vec2
from torch import nn

from phonograph.nn.linear import Linear
from phonograph.nn.packed import reference_path

LAYERS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "linear": lambda: (Linear(48, 64), (2, 40, 48)),
    "mimi convolutions": lambda: (random_mimi(**TINY).encoder, (2, 480, 1)),
    "mimi transformer": lambda: (random_mimi(**TINY).encoder_transformer, (2, 12, 32)),
    "wav2vec2 convolutions": lambda: (random_wav2vec2("Wav2Vec2Model", **FAMILIES["group"]).feature_extractor, (2, 640)),
    "wav2vec2 positions": lambda: (
        random_wav2vec2("Wav2Vec2Model", **FAMILIES["group"]).encoder.pos_conv_embed,
        (2, 40, 32),
    ),
    "wav2vec2 adapter": lambda: (
        random_wav2vec2("Wav2Vec2Model", **FAMILIES["language adapters"]).encoder.layers[0].adapter_layer,
        (2, 40, 32),
    ),
}


@torch.no_grad()
def test_autocast_takes_the_plain_functions() -> None:
    """A model in float32 under autocast to bfloat16: activations and weights of two types."""
    module = random_wav2vec2("Wav2Vec2Model", **FAMILIES["group"])
    x = torch.randn(1, 640, generator=torch.Generator().manual_seed(0))
    expected = module(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x)[0]
    assert (found.float() - expected).norm() < 0.05 * expected.norm()


@pytest.fixture
def compiled_afresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiled_afresh")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", LAYERS)
def test_compiled_graphs_stay_whole(name: str, mode: type[torch.no_grad] | type[torch.inference_mode]) -> None:
    module, shape = LAYERS[name]()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(module.eval(), backend="eager", fullgraph=True)
    with mode():
        ours, fast = compiled(x), module(x)
        with reference_path():
            plain = module(x)
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)
    torch.testing.assert_close(ours, fast, rtol=1e-4, atol=1e-4)
