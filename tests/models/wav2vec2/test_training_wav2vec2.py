"""Training: what is drawn at random and where, the losses' own properties, and that they can be brought down."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import peer
from random_wav2vec2 import FAMILIES, STABLE, TINY, ragged_batch, random_wav2vec2
from torch import Tensor

from phonograph.errors import ConfigError
from phonograph.models.wav2vec2 import modeling_wav2vec2
from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from phonograph.models.wav2vec2.masking_wav2vec2 import masked_spans, sampled_negatives, spec_augment
from phonograph.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForCTC, Wav2Vec2ForPreTraining
from phonograph.models.wav2vec2.quantization_wav2vec2 import contrastive_loss, gumbel_temperature

lengths_of_items = st.lists(st.integers(0, 40), min_size=1, max_size=6)


def runs(row: Tensor) -> list[int]:
    """Lengths of the runs of true values."""
    edges = torch.diff(torch.nn.functional.pad(row.int(), (1, 1)))
    return ((edges == -1).nonzero() - (edges == 1).nonzero()).flatten().tolist()


class TestMaskedSpans:
    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(
        lengths=lengths_of_items,
        probability=st.sampled_from([0.0, 0.05, 0.3, 0.65, 1.0]),
        span=st.integers(1, 12),
        least=st.integers(0, 3),
    )
    def test_whole_spans_within_the_items(self, lengths: list[int], probability: float, span: int, least: int) -> None:
        torch.manual_seed(0)
        steps = max(lengths) + 3
        mask = masked_spans(torch.tensor(lengths), steps, probability, span, least)
        assert mask.shape == (len(lengths), steps)
        for row, length in zip(mask, lengths, strict=True):
            assert not row[length:].any()
            found = runs(row)
            assert all(run >= span for run in found)
            assert len(found) <= length // span
            assert row.any() == bool(found)
            if length >= span and least:
                assert found

    def test_deterministic(self) -> None:
        draws = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            draws.append(masked_spans(torch.tensor([200, 150]), 200, 0.5, 10))
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])

    def test_places_have_equal_chances(self) -> None:
        torch.manual_seed(0)
        mask = masked_spans(torch.full((4000,), 12), 12, 0.25, 3)
        # One span, at each of ten places as often: a step lies in as many of them as places cover it, at most three.
        expected = torch.tensor([1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 2, 1]) / 10
        torch.testing.assert_close(mask.float().mean(0), expected, rtol=0, atol=0.03)

    def test_as_many_as_transformers_masks(self) -> None:
        theirs = peer("transformers.models.wav2vec2.modeling_wav2vec2")._compute_mask_indices
        ours = modeling_wav2vec2._compute_mask_indices
        mask = (torch.arange(200) < torch.tensor([200, 150, 77])[:, None]).long()
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 (theirs draws from it)
        for arguments in ((0.65, 10, None, 0), (0.05, 10, None, 2), (0.3, 4, mask, 0), (0.1, 10, mask, 2)):
            mine, other = (np.stack([draw((3, 200), *arguments) for _ in range(100)]).mean((0, 2)) for draw in (ours, theirs))
            np.testing.assert_allclose(mine, other, atol=0.03)

    def test_arguments_of_the_ecosystem(self) -> None:
        mask = modeling_wav2vec2._compute_mask_indices(shape=(2, 50), mask_prob=0.5, mask_length=5, min_masks=1)
        assert (type(mask), mask.dtype, mask.shape) == (np.ndarray, np.dtype(bool), (2, 50))
        assert not modeling_wav2vec2._compute_mask_indices((2, 4), 1.0, 5, min_masks=2).any(), "shorter than a span"
        with pytest.raises(ValueError, match="expected mask_length of at least 1, got 0; choose the steps of a span"):
            modeling_wav2vec2._compute_mask_indices((2, 50), 0.5, 0)


class TestNegatives:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(lengths=lengths_of_items, probability=st.floats(0, 1), number=st.integers(0, 7))
    def test_other_masked_steps_of_the_same_item(self, lengths: list[int], probability: float, number: int) -> None:
        torch.manual_seed(0)
        steps = max(lengths) + 2
        candidates = (torch.rand(len(lengths), steps) < probability) & (torch.arange(steps) < torch.tensor(lengths)[:, None])
        negatives = sampled_negatives(candidates, number)
        assert negatives.shape == (len(lengths), steps, number)
        for item, row in enumerate(candidates):
            allowed = set((row.nonzero().flatten() + item * steps).tolist())
            for step in range(steps):
                drawn, itself = set(negatives[item, step].tolist()), item * steps + step
                if not row[step]:
                    assert drawn <= {item * steps}
                elif len(allowed) == 1:
                    assert drawn <= {itself}
                else:
                    assert drawn <= allowed - {itself}

    def test_equal_chances(self) -> None:
        torch.manual_seed(0)
        candidates = torch.tensor([[True, False, True, True, True]])
        counts = torch.bincount(sampled_negatives(candidates, 30000)[0, 2], minlength=5) / 30000
        torch.testing.assert_close(counts, torch.tensor([1, 0, 0, 1, 1]) / 3, rtol=0, atol=0.02)

    def test_arguments_of_the_ecosystem(self) -> None:
        theirs = peer("transformers.models.wav2vec2.modeling_wav2vec2")._sample_negative_indices
        mask = modeling_wav2vec2._compute_mask_indices((3, 60), 0.4, 4)
        for given_mask in (mask, None):
            ours = modeling_wav2vec2._sample_negative_indices((3, 60), 9, mask_time_indices=given_mask)
            other = theirs((3, 60), 9, mask_time_indices=given_mask)
            assert ours.shape == other.shape == (3, 60, 9)
            assert (ours // 60 == np.arange(3)[:, None, None]).all()
            for item in range(3):
                assert set(np.unique(ours[item])) == set(np.unique(other[item]))


class TestSpecAugment:
    def test_only_in_training_and_only_if_asked(self) -> None:
        x, vector = torch.randn(2, 40, 32), torch.randn(32)
        config = Wav2Vec2Config(**TINY | {"mask_time_prob": 0.5})
        assert spec_augment(x, vector, config, None, None, training=False) is x
        config.apply_spec_augment = False
        assert spec_augment(x, vector, config, torch.ones(2, 40), None, training=True) is x
        config.apply_spec_augment = True
        masked = (spec_augment(x, vector, config, None, torch.tensor([40, 20]), training=True) == vector).all(-1)
        assert masked.any(1).all()
        assert not masked[1, 20:].any()

    def test_features(self) -> None:
        config = Wav2Vec2Config(**TINY | {"mask_time_prob": 0.0, "mask_feature_prob": 0.5})
        zero = spec_augment(torch.ones(2, 40, 32), None, config, None, None, training=True) == 0
        assert torch.equal(zero, zero[:, :1].expand_as(zero)), "a feature is masked at all steps"
        assert all(run >= 4 for row in zero[:, 0] for run in runs(row))
        assert zero[:, 0].any(1).all()

    def test_a_clip_shorter_than_a_span_is_trained_on(self) -> None:
        model = random_wav2vec2("Wav2Vec2ForCTC", **TINY | {"mask_time_length": 100}).train()
        model(torch.randn(1, 60), labels=torch.tensor([[1]])).loss.backward()
        assert model.wav2vec2.masked_spec_embed.grad is None or not model.wav2vec2.masked_spec_embed.grad.any()


class TestRandomness:
    def test_a_seed_repeats_a_step(self) -> None:
        model = random_wav2vec2("Wav2Vec2ForCTC", **TINY | STABLE | {"layerdrop": 0.5}).train()
        audio, mask = ragged_batch()
        results = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            results.append(model(audio, mask).logits)
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    @pytest.mark.parametrize("family", ["group", "layer"])
    def test_layer_drop(self, family: str) -> None:
        model = random_wav2vec2(**FAMILIES[family] | {"layerdrop": 1.0}).train()
        states = model(ragged_batch()[0], output_hidden_states=True).hidden_states
        assert len(states) == 3
        assert torch.equal(states[0], states[2])
        model.eval()
        states = model(ragged_batch()[0], output_hidden_states=True).hidden_states
        assert not torch.equal(states[0], states[2])

    def test_the_quantizer_explores_when_hot_and_settles_when_cold(self) -> None:
        model = random_wav2vec2("Wav2Vec2ForPreTraining", **TINY)
        assert isinstance(model, Wav2Vec2ForPreTraining)
        features = torch.randn(4, 50, 24)
        hard = model.quantizer(features).codes
        model.train()
        torch.manual_seed(0)
        model.quantizer.weight_proj.weight.data *= 30  # sure of its choices, beside the noise
        model.eval()
        sure = model.quantizer(features).codes
        model.train()
        agreement = (model.quantizer(features).codes == sure).float().mean()
        assert agreement > 0.9
        assert (hard == sure).float().mean() > 0.5
        model.set_gumbel_temperature(0.1)
        assert model.quantizer.temperature == 0.1
        cold, hot = self.gradient(model, features, 0.1), self.gradient(model, features, 5.0)
        assert cold != hot

    @staticmethod
    def gradient(model: Any, features: Tensor, temperature: float) -> float:
        torch.manual_seed(0)
        model.zero_grad()
        model.set_gumbel_temperature(temperature)
        model.quantizer(features).vectors.square().sum().backward()
        return float(model.quantizer.weight_proj.weight.grad.abs().sum())

    def test_temperature_schedule(self) -> None:
        assert gumbel_temperature(0) == 2
        assert gumbel_temperature(100_000) == pytest.approx(2 * 0.999995**100_000)
        assert gumbel_temperature(10**7) == 0.5
        assert gumbel_temperature(10**7, end=0.1) == 0.1


class TestContrastiveLoss:
    def test_written_out(self) -> None:
        generator = torch.Generator().manual_seed(0)
        predicted, targets = torch.randn(2, 6, 8, generator=generator), torch.randn(2, 6, 8, generator=generator)
        codes = torch.arange(12).view(2, 6, 1)
        mask = torch.rand(2, 6, generator=generator) < 0.7
        negatives = sampled_negatives(mask, 3)
        expected = 0.0
        for item, step in mask.nonzero().tolist():
            among = [targets[item, step], *(targets.flatten(0, 1)[index] for index in negatives[item, step])]
            logits = torch.stack([torch.cosine_similarity(predicted[item, step], other, dim=0) / 0.1 for other in among])
            expected -= float(logits.log_softmax(0)[0])
        assert float(contrastive_loss(predicted, targets, codes, mask, negatives, 0.1)) == pytest.approx(expected, rel=1e-5)

    def test_the_same_entry_is_no_distractor(self) -> None:
        predicted = torch.randn(1, 4, 8)
        mask = torch.ones(1, 4, dtype=torch.bool)
        targets, codes = torch.randn(1, 1, 8).expand(1, 4, 8), torch.zeros(1, 4, 2)
        loss = contrastive_loss(predicted, targets, codes, mask, sampled_negatives(mask, 5), 0.1)
        assert loss.item() == 0

    @pytest.mark.parametrize("wrong", [-1, 6])
    def test_negatives_of_another_item_are_refused(self, wrong: int) -> None:
        vectors, codes = torch.randn(2, 6, 8), torch.arange(12).view(2, 6, 1)
        mask = torch.zeros(2, 6, dtype=torch.bool)
        mask[0, 2] = mask[1, 3] = True
        negatives = torch.tensor([0, 6]).view(2, 1, 1).repeat(1, 6, 3)
        contrastive_loss(vectors, vectors, codes, mask, negatives, 0.1)
        negatives[1, 0] = 99  # of a step that is not masked, which does not matter
        contrastive_loss(vectors, vectors, codes, mask, negatives, 0.1)
        negatives[0, 2, 1] = wrong
        with pytest.raises(
            ConfigError, match=r"negatives b \* T \+ t of steps of the same item, got some of another; sample_masks"
        ):
            contrastive_loss(vectors, vectors, codes, mask, negatives, 0.1)

    def test_one_masked_step_has_nothing_to_be_told_from(self) -> None:
        model = random_wav2vec2("Wav2Vec2ForPreTraining", **TINY)
        mask = torch.zeros(1, 49, dtype=torch.bool)
        mask[0, 7] = True
        out = model(ragged_batch((1003,))[0], mask_time_indices=mask, sampled_negative_indices=sampled_negatives(mask, 5))
        assert out.contrastive_loss.item() == 0
        assert torch.isfinite(out.loss)


def test_masks_are_sampled_within_the_items() -> None:
    model = random_wav2vec2("Wav2Vec2ForPreTraining", **TINY | {"mask_time_prob": 0.5})
    assert isinstance(model, Wav2Vec2ForPreTraining)
    _, attention_mask = ragged_batch()
    torch.manual_seed(0)
    mask, negatives = model.sample_masks(1003, attention_mask)
    steps = model._get_feature_vector_attention_mask(49, attention_mask)
    assert mask.shape == (4, 49)
    assert not (mask & ~steps).any()
    assert steps.flatten()[negatives[mask]].all()
    assert model.sample_masks(1003, batch=2)[1].shape == (2, 49, 5)


def trained(model: Any, steps: int, **arguments: Any) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(steps):
        loss = model(**arguments).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("family", ["group", "layer"])
def test_ctc_learns_a_batch_by_heart(family: str) -> None:
    torch.manual_seed(0)
    quiet = {"hidden_dropout": 0.0, "layerdrop": 0.0, "apply_spec_augment": False, "ctc_loss_reduction": "mean"}
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**FAMILIES[family] | quiet)).train()
    audio, mask = ragged_batch()
    labels = torch.tensor([[1, 2, 3], [4, 5, -100], [6, 7, 8], [9, -100, -100]])
    losses = trained(model, 60, input_values=audio, attention_mask=mask, labels=labels)
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("family", ["group", "layer"])
def test_pretraining_brings_the_loss_down(family: str) -> None:
    torch.manual_seed(0)
    model = Wav2Vec2ForPreTraining(Wav2Vec2Config(**FAMILIES[family] | {"mask_time_prob": 0.5, "layerdrop": 0.0})).train()
    audio, attention_mask = ragged_batch()
    mask, negatives = model.sample_masks(audio.shape[1], attention_mask)
    losses = trained(
        model,
        40,
        input_values=audio,
        attention_mask=attention_mask,
        mask_time_indices=mask,
        sampled_negative_indices=negatives,
    )
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.parametrize("name", ["Wav2Vec2ForCTC", "Wav2Vec2ForPreTraining", "Wav2Vec2ForXVector"])
def test_autocast(name: str) -> None:
    """Half-precision arithmetic over float32 weights: losses stay float32 and near."""
    model = random_wav2vec2(name, **TINY | STABLE | {"num_codevectors_per_group": 2, "ctc_loss_reduction": "mean"})
    audio, mask = ragged_batch()
    arguments: dict[str, Any] = {"labels": torch.tensor([[1, 2], [3, 4], [1, 5], [6, 6]])}
    if name == "Wav2Vec2ForXVector":
        arguments = {"labels": torch.tensor([0, 1, 2, 3])}
    if name == "Wav2Vec2ForPreTraining":
        indices, negatives = model.sample_masks(1003, mask)
        arguments = {"mask_time_indices": indices, "sampled_negative_indices": negatives}
    expected = model(audio, mask, **arguments).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(audio, mask, **arguments).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=0.1)


def test_no_token_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_wav2vec2("Wav2Vec2ForCTC", **TINY)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(model.wav2vec2, "forward", never)
    with pytest.raises(ConfigError, match="labels below the vocabulary's 11 tokens, got 12"):
        model(ragged_batch()[0], labels=torch.full((4, 1), 12))
