"""Every item of a ragged batch gives what it gives alone: with exact_padding always, else in the layer-norm family."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_wav2vec2 import CLASSES, FAMILIES, STABLE, TINY, WITH_ADAPTER, assert_close, ragged_batch, random_wav2vec2

from phonograph.errors import AudioError
from phonograph.models.base import ModelOutput
from phonograph.nn.packed import reference_path

FEWEST = 250
"""Samples that an x-vector of these configurations needs, and more than any other."""

lengths_of_batches = st.lists(st.integers(FEWEST, 900), min_size=1, max_size=5).map(tuple)
MODELS = {
    (name, family): random_wav2vec2(name, **fields)
    for name in CLASSES
    for family, fields in (FAMILIES | (WITH_ADAPTER if name in CLASSES[:2] else {})).items()
    if family != "deep"
}
WITHOUT_OPTION = [
    key for key, model in MODELS.items() if model.config.feat_extract_norm == "layer" and not model.config.add_adapter
]


def assert_items_are_as_alone(model: Any, lengths: tuple[int, ...], seed: int, **options: Any) -> float:
    """The largest distance between an item in the batch and alone, as a share of the largest value."""
    audio, mask = ragged_batch(lengths, seed)
    batch: ModelOutput = model(audio, mask, output_hidden_states=True, **options)
    farthest = 0.0
    for item, length in enumerate(lengths):
        alone = model(audio[item : item + 1, :length], output_hidden_states=True)
        for name in batch:
            if name == "codevector_perplexity":
                continue  # of the whole batch
            pairs = zip(batch[name], alone[name], strict=True) if name == "hidden_states" else [(batch[name], alone[name])]
            for together, single in pairs:
                found = together[item : item + 1, : single.shape[1]]
                farthest = max(farthest, float((found - single).abs().max() / single.abs().max()))
    return farthest


@pytest.mark.parametrize("reference", [False, True], ids=["fast", "reference"])
@pytest.mark.parametrize("key", MODELS, ids="-".join)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(lengths=lengths_of_batches, seed=st.integers(0, 99))
@torch.no_grad()
def test_exact_padding(key: tuple[str, str], reference: bool, lengths: tuple[int, ...], seed: int) -> None:
    if not reference:
        assert assert_items_are_as_alone(MODELS[key], lengths, seed, exact_padding=True) < 2e-5
        return
    with reference_path():
        assert assert_items_are_as_alone(MODELS[key], lengths, seed, exact_padding=True) < 2e-5


@pytest.mark.parametrize("key", [key for key in WITHOUT_OPTION if key[0] != "Wav2Vec2ForXVector"], ids="-".join)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(lengths=lengths_of_batches, seed=st.integers(0, 99))
@torch.no_grad()
def test_layer_norm_needs_no_option(key: tuple[str, str], lengths: tuple[int, ...], seed: int) -> None:
    assert assert_items_are_as_alone(MODELS[key], lengths, seed) < 2e-5


@torch.no_grad()
def test_the_ecosystem_lets_padding_in() -> None:
    """What the option is for."""
    for key in (("Wav2Vec2Model", "group"), ("Wav2Vec2Model", "adapter"), ("Wav2Vec2ForXVector", "layer")):
        assert assert_items_are_as_alone(MODELS[key], (900, 330), 0) > 1e-4


@torch.no_grad()
def test_in_exact_numerics_to_fifteen_digits() -> None:
    model = random_wav2vec2("Wav2Vec2ForCTC", **TINY).double()
    audio, mask = ragged_batch((900, 333, 612))
    together = model(audio.double(), mask, exact_padding=True).logits
    for item, length in enumerate((900, 333, 612)):
        alone = model(audio[item : item + 1, :length].double()).logits
        assert_close(together[item : item + 1, : alone.shape[1]], alone, 1e-13)


@torch.no_grad()
def test_the_configuration_can_ask_for_it() -> None:
    model = random_wav2vec2("Wav2Vec2ForCTC", **TINY)
    audio, mask = ragged_batch((900, 400))
    expected = model(audio, mask, exact_padding=True).logits
    assert not torch.equal(model(audio, mask).logits, expected)
    model.config.exact_padding = True
    assert torch.equal(model(audio, mask).logits, expected)
    assert not torch.equal(model(audio, mask, exact_padding=False).logits, expected)


def test_gradients_are_those_of_the_items_alone() -> None:
    lengths = (900, 400, 613)
    audio, mask = ragged_batch(lengths)
    labels = torch.tensor([[1, 2], [3, 4], [5, 6]])
    together, alone = (random_wav2vec2("Wav2Vec2ForCTC", **TINY) for _ in range(2))
    together(audio, mask, labels, exact_padding=True).loss.backward()
    for item, length in enumerate(lengths):
        alone(audio[item : item + 1, :length], labels=labels[item : item + 1]).loss.backward()
    for (name, parameter), other in zip(together.named_parameters(), alone.parameters(), strict=True):
        if "k_proj.bias" in name or parameter.grad is None:
            continue
        assert_close(parameter.grad, other.grad)


class TestRefusals:
    MODEL = random_wav2vec2("Wav2Vec2ForCTC", **TINY | STABLE)

    def refused(self, match: str, *arguments: Any) -> None:
        with pytest.raises(AudioError, match=match) as caught:
            self.MODEL(*arguments)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("samples", [0, 1, 29])
    def test_too_short(self, samples: int) -> None:
        self.refused(
            f"expected at least 30 samples, which give one step, got {samples}; pass a longer clip", torch.zeros(2, samples)
        )

    def test_the_shortest(self) -> None:
        assert self.MODEL(torch.randn(2, 30)).logits.shape == (2, 1, 11)

    def test_an_item_too_short(self) -> None:
        audio, mask = ragged_batch((100, 29))
        self.refused("at least 30 samples in each item, which give one step, got 29; leave it out", audio, mask)

    @pytest.mark.parametrize("shape", [(100,), (1, 1, 100)])
    def test_rank(self, shape: tuple[int, ...]) -> None:
        self.refused(
            r"floating-point audio of shape \(batch, samples\), got torch.float32 of shape .*Extractor makes that shape",
            torch.zeros(shape),
        )

    def test_integers(self) -> None:
        self.refused(r"expected floating-point audio .* got torch.int16", torch.zeros(1, 100, dtype=torch.int16))

    def test_another_dtype(self) -> None:
        self.refused(
            r"audio in the model's torch.float32, got torch.float64; pass audio.to\(model.dtype\)", torch.zeros(1, 100).double()
        )

    def test_a_mask_of_another_shape(self) -> None:
        self.refused(
            r"an attention_mask of shape \(1, 100\), got \(1, 99\); pass the one", torch.zeros(1, 100), torch.ones(1, 99)
        )

    def test_padding_on_the_left(self) -> None:
        mask = torch.ones(1, 100).long()
        mask[0, :10] = 0
        self.refused("an attention_mask of ones, then zeros, got padding elsewhere; pad on", torch.zeros(1, 100), mask)

    def test_too_short_for_statistics(self) -> None:
        model = random_wav2vec2("Wav2Vec2ForXVector", **TINY)
        audio, mask = ragged_batch((300, 100))
        with pytest.raises(AudioError, match=r"at least 6 steps \(120 samples or so\) for an x-vector, got 4; pass a longer"):
            model(audio, mask)
        with pytest.raises(AudioError, match="for an x-vector, got 4"):
            model(audio[1:, :100])
