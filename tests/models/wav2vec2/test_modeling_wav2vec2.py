"""Wav2Vec2's own behaviour: fast paths, changed weights, options, freezing, and what it refuses."""

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from random_wav2vec2 import CLASSES, FAMILIES, STABLE, TINY, assert_close, ragged_batch, random_wav2vec2

from phonograph.configuration import PreTrainedConfig
from phonograph.errors import ConfigError, MissingExtraError
from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from phonograph.models.wav2vec2.modeling_wav2vec2 import (
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2ForXVector,
    Wav2Vec2Model,
)
from phonograph.nn.packed import reference_path


@pytest.fixture(scope="module")
def ctc() -> Wav2Vec2ForCTC:
    model = random_wav2vec2("Wav2Vec2ForCTC", **TINY)
    assert isinstance(model, Wav2Vec2ForCTC)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_fast_path_equals_the_plain_functions(family: str, dtype: torch.dtype) -> None:
    model = random_wav2vec2("Wav2Vec2ForCTC", **FAMILIES[family]).to(dtype)
    for seed, lengths in enumerate([(1003, 640), (525,), (16000, 9000, 12000)]):
        audio, mask = ragged_batch(lengths, seed)
        fast = model(audio.to(dtype), mask).logits
        with reference_path():
            plain = model(audio.to(dtype), mask).logits
        assert_close(fast.float(), plain.float(), 1e-5 if dtype is torch.float32 else 0.05)


@torch.no_grad()
def test_changed_weights_are_used() -> None:
    model = random_wav2vec2("Wav2Vec2Model", **TINY)
    audio = ragged_batch()[0]
    before = model(audio).last_hidden_state
    for name in (
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        "encoder.layers.0.attention.v_proj.weight",
        "feature_extractor.conv_layers.1.conv.weight",
    ):
        model.get_parameter(name)[:2].mul_(3)
        after = model(audio).last_hidden_state
        with reference_path():
            assert_close(after, model(audio).last_hidden_state, 1e-5)
        assert not torch.allclose(before, after, atol=1e-4), name
        before = after


@torch.no_grad()
def test_copies_and_pickles(ctc: Wav2Vec2ForCTC) -> None:
    audio = ragged_batch()[0]
    expected = ctc(audio).logits
    for other in (copy.deepcopy(ctc), pickle.loads(pickle.dumps(ctc))):
        assert torch.equal(other(audio).logits, expected)


@torch.no_grad()
def test_outputs_by_option_and_by_configuration() -> None:
    model = random_wav2vec2("Wav2Vec2ForCTC", **TINY)
    audio, mask = ragged_batch()
    full = model(audio, mask, output_hidden_states=True, output_attentions=True)
    assert full.keys() == ["logits", "hidden_states", "attentions"]
    assert len(full.hidden_states) == 3
    assert [weights.shape for weights in full.attentions] == [(4, 4, 49, 49)] * 2
    assert not full.attentions[0][3, :, :, 26:].any(), "padding is not looked at"
    torch.testing.assert_close(full.attentions[0].sum(-1), torch.ones(4, 4, 49))
    model.config.output_hidden_states = model.config.output_attentions = True
    model.config.return_dict = False
    parts = model(audio, mask)
    assert [type(part) for part in parts] == [torch.Tensor, tuple, tuple]
    assert model(audio, mask, output_hidden_states=False, output_attentions=False, return_dict=True).keys() == ["logits"]


@torch.no_grad()
def test_a_mask_of_ones_changes_nothing(ctc: Wav2Vec2ForCTC) -> None:
    audio = ragged_batch()[0]
    assert torch.equal(ctc(audio, torch.ones_like(audio).long()).logits, ctc(audio).logits)
    assert torch.equal(ctc(audio, torch.ones_like(audio).bool()).logits, ctc(audio).logits)


@pytest.mark.parametrize("name", CLASSES)
def test_freezing(name: str) -> None:
    model = random_wav2vec2(name, **TINY)
    model.freeze_feature_encoder()
    frozen = {key for key, value in model.named_parameters() if not value.requires_grad}
    prefix = "" if name == "Wav2Vec2Model" else "wav2vec2."
    assert frozen == {key for key in model.state_dict() if key.startswith(f"{prefix}feature_extractor.")}
    model.freeze_base_model()
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    assert trained == {key for key in model.state_dict() if prefix and not key.startswith(prefix)}


@torch.no_grad()
def test_implementations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = random_wav2vec2("Wav2Vec2Model", **TINY)
    audio, mask = ragged_batch()
    expected = model(audio, mask).last_hidden_state
    model.set_attn_implementation("eager")
    assert_close(model(audio, mask).last_hidden_state, expected, 1e-5)
    model.save_pretrained(tmp_path)
    loaded = Wav2Vec2Model.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.encoder.attn_implementation == "eager"
    with pytest.raises(ConfigError, match="expected attn_implementation eager, sdpa or flash_attention_2, got 'paged'"):
        model.set_attn_implementation("paged")
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(MissingExtraError, match="needs the package flash-attn"):
        Wav2Vec2Model(Wav2Vec2Config(**TINY, attn_implementation="flash_attention_2"))


def test_masked_spec_embed_is_there_when_something_can_be_masked() -> None:
    for fields, expected in (
        ({"mask_time_prob": 0.0}, False),
        ({"mask_time_prob": 0.0, "mask_feature_prob": 0.1}, True),
        ({}, True),
        ({"apply_spec_augment": False}, True),
    ):
        assert ("masked_spec_embed" in random_wav2vec2(**TINY | fields).state_dict()) is expected


class TestRefusals:
    @pytest.mark.parametrize("name", ["Wav2Vec2Model", "Wav2Vec2ForPreTraining"])
    def test_masked_steps_of_another_shape(self, name: str) -> None:
        model = random_wav2vec2(name, **TINY)
        audio = ragged_batch()[0]
        with pytest.raises(ConfigError, match=r"mask_time_indices of shape \(4, 49\) \(batch, steps\), got \(4, 50\); "):
            model(audio, mask_time_indices=torch.zeros(4, 50, dtype=torch.bool))

    def test_masked_steps_without_a_vector(self) -> None:
        model = random_wav2vec2(**TINY | {"mask_time_prob": 0.0})
        with pytest.raises(ConfigError, match=r"a vector for masked steps, got mask_time_indices for one with mask_time"):
            model(ragged_batch()[0], mask_time_indices=torch.zeros(4, 49, dtype=torch.bool))

    def test_negatives(self) -> None:
        model = random_wav2vec2("Wav2Vec2ForPreTraining", **TINY)
        audio = ragged_batch()[0]
        mask, negatives = model.sample_masks(audio.shape[1], batch=4)
        with pytest.raises(ConfigError, match="mask_time_indices beside sampled_negative_indices, got none; sample_masks"):
            model(audio, sampled_negative_indices=negatives)
        with pytest.raises(ConfigError, match=r"of shape \(4, 49, 'negatives'\) and an integer type, got \(4, 48, 5\) of"):
            model(audio, mask_time_indices=mask, sampled_negative_indices=negatives[:, 1:])
        with pytest.raises(ConfigError, match=r"and an integer type, got \(4, 49, 5\) of torch.float32"):
            model(audio, mask_time_indices=mask, sampled_negative_indices=negatives.float())

    def test_labels_that_are_no_tokens(self, ctc: Wav2Vec2ForCTC) -> None:
        audio = ragged_batch()[0]
        with pytest.raises(ValueError, match="labels below the vocabulary's 11 tokens, got 11; use the tokenizer"):
            ctc(audio, labels=torch.full((4, 2), 11))

    def test_no_vocabulary(self) -> None:
        with pytest.raises(ValueError, match="expected vocab_size to build Wav2Vec2ForCTC, got None; set it to the number"):
            Wav2Vec2ForCTC(Wav2Vec2Config(**TINY | {"vocab_size": None}))

    @pytest.mark.parametrize(
        "head", [Wav2Vec2ForPreTraining, Wav2Vec2ForSequenceClassification, Wav2Vec2ForXVector], ids=lambda head: head.__name__
    )
    def test_heads_without_an_adapter(self, head: Any) -> None:
        with pytest.raises(ValueError, match=f"expected add_adapter=False to build {head.__name__}, whose head takes every"):
            head(Wav2Vec2Config(**TINY, add_adapter=True))

    def test_a_configuration_of_another_family(self) -> None:
        with pytest.raises(ConfigError, match="expected a Wav2Vec2Config to build Wav2Vec2Model, got PreTrainedConfig"):
            Wav2Vec2Model(PreTrainedConfig())  # type: ignore[arg-type]

    def test_an_option_that_forward_does_not_have(self, ctc: Wav2Vec2ForCTC) -> None:
        with pytest.raises(TypeError, match="exact_paddings"):
            ctc(ragged_batch()[0], exact_paddings=True)

    def test_language_adapters_where_there_are_none(self, ctc: Wav2Vec2ForCTC) -> None:
        for model in (ctc, random_wav2vec2("Wav2Vec2ForCTC", **TINY | {"adapter_attn_dim": 6})):
            with pytest.raises(ValueError, match=r"expected a model with language adapters, got adapter_attn_dim=\w+, do_"):
                model.load_adapter("fra")

    def test_stable_is_needed_to_be_able_to_have_them(self) -> None:
        assert random_wav2vec2("Wav2Vec2ForCTC", **TINY | STABLE | {"adapter_attn_dim": 6})._get_adapters()
