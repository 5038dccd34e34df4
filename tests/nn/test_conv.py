"""Convolutions against torch's own with the padding written out, whole against chunked, ragged against alone."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phonograph.errors import ConfigError, StreamError
from phonograph.nn.activations import ACTIVATIONS
from phonograph.nn.conv import Conv1d, StreamingConv1d, StreamingConvTranspose1d
from phonograph.nn.packed import reference_path

CLOSE = {"rtol": 1e-5, "atol": 1e-5}

# (kernel, stride, dilation): Mimi's, a kernel no longer than its stride, one shorter than two strides, even ones
SHAPES = [(7, 1, 1), (3, 1, 4), (1, 1, 1), (8, 4, 1), (4, 2, 1), (3, 3, 1), (4, 3, 1), (2, 1, 3), (6, 1, 1)]


def conv(kernel: int, stride: int, dilation: int, *, causal: bool = True, pad_mode: str = "constant") -> StreamingConv1d:
    torch.manual_seed(kernel * 100 + stride * 10 + dilation)
    return StreamingConv1d(3, 5, kernel, stride=stride, dilation=dilation, causal=causal, pad_mode=pad_mode).eval()


def transposed(kernel: int, stride: int, groups: int = 1, bias: bool = True) -> StreamingConvTranspose1d:
    torch.manual_seed(kernel * 100 + stride * 10 + groups)
    return StreamingConvTranspose1d(4, 4 if groups > 1 else 6, kernel, stride=stride, groups=groups, bias=bias).eval()


def signal(batch: int, steps: int, channels: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, steps, channels, generator=torch.Generator().manual_seed(seed))


def cuts(total: int, places: list[int]) -> list[int]:
    """Lengths of the pieces that `places` cut `total` steps into."""
    edges = [0, *sorted({place for place in places if 0 < place < total}), total]
    return [end - start for start, end in itertools.pairwise(edges)]


def padded(x: Tensor, layer: StreamingConv1d, causal: bool, mode: str) -> Tensor:
    """(B, T, C) -> (B, C, T'), padded as Mimi defines it, by torch's own padding."""
    kernel, dilation, stride = layer.conv.kernel_size[0], layer.conv.dilation[0], layer.conv.stride[0]
    total = (kernel - 1) * dilation + 1 - stride
    extra = math.ceil(x.shape[1] / stride) * stride - x.shape[1]
    right = 0 if causal else total // 2
    x = x.transpose(1, 2)
    if mode == "reflect" and max(total - right, right + extra) >= x.shape[2]:
        short = max(total - right, right + extra) - x.shape[2] + 1
        return F.pad(F.pad(x, (0, short)), (total - right, right + extra), mode=mode)[..., : -short or None]
    return F.pad(x, (total - right, right + extra), mode=mode)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("pad_mode", ["constant", "replicate", "reflect"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "looking ahead"])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), SHAPES)
def test_equals_torch(kernel: int, stride: int, dilation: int, causal: bool, pad_mode: str, grad: bool) -> None:
    layer = conv(kernel, stride, dilation, causal=causal, pad_mode=pad_mode)
    with torch.set_grad_enabled(grad):
        for steps in (1, 2, 3, 4, 7, 24, 25):
            x = signal(2, steps, 3, steps)
            y = layer(x)
            reference = F.conv1d(
                padded(x, layer, causal, pad_mode), layer.conv.weight, layer.conv.bias, stride=stride, dilation=dilation
            )
            assert y.shape == (2, math.ceil(steps / stride), 5)
            torch.testing.assert_close(y, reference.transpose(1, 2), **CLOSE)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from(SHAPES),
    pad_mode=st.sampled_from(["constant", "replicate"]),
    strides=st.integers(1, 40),
    places=st.lists(st.integers(1, 40), max_size=12),
    data=st.integers(0, 1000),
)
@torch.no_grad()
def test_any_chunking_equals_one_pass(
    shape: tuple[int, int, int], pad_mode: str, strides: int, places: list[int], data: int
) -> None:
    layer = conv(*shape, pad_mode=pad_mode)
    x = signal(2, strides * layer.stride, 3, data)
    state = layer.new_state(2)
    size = state.nbytes
    pieces = [layer(part, state) for part in x.split([n * layer.stride for n in cuts(strides, places)], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x), **CLOSE)
    assert state.nbytes == size


@pytest.mark.parametrize("pad_mode", ["constant", "replicate"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "looking ahead"])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), SHAPES)
@torch.no_grad()
def test_ragged_batch_equals_each_alone(kernel: int, stride: int, dilation: int, causal: bool, pad_mode: str) -> None:
    layer = conv(kernel, stride, dilation, causal=causal, pad_mode=pad_mode)
    lengths = torch.tensor([25, 1, 24, 7, 12])
    x = signal(5, 25, 3)
    garbage = torch.arange(25)[None] >= lengths[:, None]
    x[garbage] = 1e4
    given_x = x.clone()
    y, out_lengths = layer(x, None, lengths), layer.out_lengths(lengths)
    assert torch.equal(x, given_x)
    for row, item, length, out in zip(y, x, lengths.tolist(), out_lengths.tolist(), strict=True):
        alone = layer(item[None, :length])
        assert alone.shape[1] == out
        torch.testing.assert_close(row[None, :out], alone, **CLOSE)


@torch.no_grad()
def test_last_chunk_of_a_stream_may_be_padded() -> None:
    layer = conv(4, 2, 1, pad_mode="replicate")
    x = signal(2, 10, 3)
    state = layer.new_state(2)
    filled = x.clone()
    filled[0, 7:], filled[1, 10:] = 1e4, 1e4
    pieces = [layer(filled[:, :4], state), layer(filled[:, 4:], state, torch.tensor([3, 6]))]
    y = torch.cat(pieces, 1)
    torch.testing.assert_close(y[:1, :4], layer(x[:1, :7]), **CLOSE)
    torch.testing.assert_close(y[1:], layer(x[1:]), **CLOSE)


@torch.no_grad()
def test_state_can_be_reset_and_reordered() -> None:
    layer = conv(4, 2, 1, pad_mode="replicate")
    x = signal(3, 12, 3)
    state = layer.new_state(3)
    layer(x[:, :6], state)
    order = torch.tensor([2, 0, 1])
    state.reorder(order)
    state.reset(torch.tensor([False, True, False]))
    y = layer(x[order][:, 6:], state)
    whole = layer(x[order])
    torch.testing.assert_close(y[[0, 2]], whole[[0, 2], 3:], **CLOSE)
    torch.testing.assert_close(y[[1]], layer(x[order][1:2, 6:]), **CLOSE)


@pytest.mark.parametrize(("causal", "pad_mode"), [(True, "constant"), (True, "replicate"), (False, "reflect")])
def test_gradients(causal: bool, pad_mode: str) -> None:
    layer = conv(4, 2, 1, causal=causal, pad_mode=pad_mode).double()
    x = signal(2, 7, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (2, 1), (2, 2), (3, 2), (4, 4), (5, 4)])
@pytest.mark.parametrize("steps", [5, 6, 7, 64, 65])
def test_wide_convolutions_have_torch_s_gradients(steps: int, kernel: int, stride: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = Conv1d(256, 8, kernel, stride=stride, bias=bias)
    x = torch.randn(3, steps, 256, requires_grad=True)
    y = conv(x, "relu")
    twin = x.detach().double().requires_grad_()
    weight, added = (None if p is None else p.detach().double().requires_grad_() for p in (conv.weight, conv.bias))
    reference = F.relu(F.conv1d(twin.transpose(1, 2), weight, added, stride)).transpose(1, 2)
    torch.testing.assert_close(y.double(), reference, rtol=1e-4, atol=1e-5)
    towards = torch.randn_like(y)
    y.backward(towards)
    reference.backward(towards.double())
    pairs = [(x.grad, twin.grad), (conv.weight.grad, weight.grad), *([(conv.bias.grad, added.grad)] if bias else [])]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_what_is_too_short_is_refused_as_ever() -> None:
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
        Conv1d(256, 8, 3, stride=2)(torch.randn(1, 2, 256))


def test_gradients_of_a_transposed_convolution() -> None:
    layer = transposed(4, 2).double()
    x = signal(2, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize(
    ("causal", "ratio", "left", "right"),
    [(True, 1.0, 0, 6), (True, 0.5, 3, 3), (True, 0.3, 4, 2), (True, 0.0, 6, 0), (False, 1.0, 3, 3)],
)
def test_trimming_of_a_transposed_convolution(causal: bool, ratio: float, left: int, right: int, grad: bool) -> None:
    layer = StreamingConvTranspose1d(4, 6, 9, stride=3, causal=causal, trim_right_ratio=ratio).eval()
    with torch.set_grad_enabled(grad):
        for steps in (1, 2, 9):
            x = signal(2, steps, 4)
            full = F.conv_transpose1d(x.transpose(1, 2), layer.conv.weight, layer.conv.bias, stride=3).transpose(1, 2)
            y = layer(x)
            assert y.shape == (2, 3 * steps, 6)
            torch.testing.assert_close(y, full[:, left : full.shape[1] - right], **CLOSE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(8, 4, 1), (4, 2, 4), (3, 3, 1), (9, 2, 2), (5, 4, 1)])
@settings(max_examples=10, deadline=None, derandomize=True)
@given(steps=st.integers(1, 30), places=st.lists(st.integers(1, 30), max_size=8))
@torch.no_grad()
def test_transposed_in_any_chunking_equals_torch(
    kernel: int, stride: int, groups: int, bias: bool, steps: int, places: list[int]
) -> None:
    layer = transposed(kernel, stride, groups, bias)
    x = signal(2, steps, 4, steps)
    full = F.conv_transpose1d(x.transpose(1, 2), layer.conv.weight, layer.conv.bias, stride=stride, groups=groups)
    whole = layer(x)
    torch.testing.assert_close(whole, full.transpose(1, 2)[:, : steps * stride], **CLOSE)
    state = layer.new_state(2)
    size = state.nbytes
    pieces = [layer(part, state) for part in x.split(cuts(steps, places), 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, **CLOSE)
    assert state.nbytes == size


@pytest.mark.parametrize("make", [lambda: conv(8, 4, 1), lambda: transposed(8, 4)], ids=["conv", "transposed"])
@torch.no_grad()
def test_changed_weights_are_used(make: object) -> None:
    """Whatever a layer derives from its weight is derived again."""
    layer = make()  # type: ignore[operator]
    x = signal(1, 8, layer.conv.in_channels)
    layer(x)
    for change in (
        lambda: layer.conv.weight.mul_(2),
        lambda: layer.load_state_dict({name: torch.randn_like(value) for name, value in layer.state_dict().items()}),
        lambda: layer.half().float(),
        lambda: setattr(layer.conv, "weight", torch.nn.Parameter(torch.randn_like(layer.conv.weight))),
    ):
        change()
        fresh = make()  # type: ignore[operator]
        fresh.load_state_dict(layer.state_dict())
        torch.testing.assert_close(layer(x), fresh(x), **CLOSE)


@pytest.mark.parametrize(("causal", "pad_mode"), [(False, "constant"), (True, "reflect")])
def test_refuses_to_stream_what_looks_ahead(causal: bool, pad_mode: str) -> None:
    with pytest.raises(
        StreamError, match=rf"expected causal .* got causal={causal}, pad_mode='{pad_mode}'; run this model in one"
    ):
        conv(4, 2, 1, causal=causal, pad_mode=pad_mode).new_state(1)


def test_refuses_to_stream_what_is_trimmed_on_the_left() -> None:
    layer = StreamingConvTranspose1d(1, 1, 8, stride=4, trim_right_ratio=0.5)
    with pytest.raises(StreamError, match=r"trim_right_ratio=1\.0 .* trimmed by 2 steps on the left"):
        layer.new_state(1)


def test_refuses_ragged_batches_padded_by_reflection() -> None:
    with pytest.raises(ConfigError, match="'constant' or 'replicate' for a padded batch, got 'reflect'; encode the items one"):
        conv(4, 2, 1, pad_mode="reflect")(signal(2, 8, 3), None, torch.tensor([8, 3]))


class TestPlain:
    @pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
    @pytest.mark.parametrize(
        ("kernel", "stride", "padding"), [(10, 5, 0), (3, 2, 1), (2, 2, 0), (5, 2, 2), (1, 1, 0), (3, 1, 1)]
    )
    def test_equals_torch(self, kernel: int, stride: int, padding: int, activation: str | None) -> None:
        torch.manual_seed(kernel)
        for channels in (1, 8):
            layer = Conv1d(channels, 16, kernel, stride=stride, padding=padding).eval()
            for steps in (kernel, kernel + 1, 50, 53):
                x = signal(2, steps, channels, seed=steps)
                expected = F.conv1d(x.transpose(1, 2), layer.weight, layer.bias, stride, padding).transpose(1, 2)
                if activation is not None:
                    expected = ACTIVATIONS[activation](expected)
                torch.testing.assert_close(layer(x, activation), expected, **CLOSE)
                assert int(layer.out_lengths(torch.tensor(steps))) == expected.shape[1]
                with torch.no_grad():
                    torch.testing.assert_close(layer(x, activation), expected, **CLOSE)
                    with reference_path():
                        torch.testing.assert_close(layer(x, activation), expected, **CLOSE)

    def test_lengths_of_too_little(self) -> None:
        layer = Conv1d(1, 1, 3, stride=2)
        assert layer.out_lengths(torch.tensor([0, 1, 2, 3, 4, 5])).tolist() == [-1, 0, 0, 1, 1, 2]

    @torch.no_grad()
    def test_changed_weights_are_used(self) -> None:
        layer, x = Conv1d(4, 4, 3).eval(), signal(1, 9, 4)
        before = layer(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x) - layer.bias, 2 * (before - layer.bias), **CLOSE)
