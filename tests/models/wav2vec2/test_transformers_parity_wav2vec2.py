"""Wav2Vec2 beside transformers, same weights and same input: every class, both norm families, losses and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peers import peer
from random_wav2vec2 import (
    CLASSES,
    FAMILIES,
    LENGTHS,
    STABLE,
    TINY,
    WITH_ADAPTER,
    assert_close,
    ragged_batch,
    random_wav2vec2,
)
from torch import Tensor, nn

from phonograph.models.base import ModelOutput
from phonograph.models.wav2vec2 import modeling_wav2vec2
from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from phonograph.nn.packed import reference_path

transformers = peer("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

NO_DROPOUT = dict.fromkeys(
    (
        *("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"),
        *("feat_quantizer_dropout", "final_dropout", "layerdrop"),
    ),
    0.0,
)
WEIGHTED = {f"{name}, weighted": fields | {"use_weighted_layer_sum": True} for name, fields in FAMILIES.items()}
CASES = [(name, family) for name in CLASSES for family in FAMILIES]
CASES += [(name, family) for name in CLASSES[:2] for family in WITH_ADAPTER]
CASES += [(name, family) for name in CLASSES[3:] for family in WEIGHTED]
ALL = FAMILIES | WITH_ADAPTER | WEIGHTED


def pair(name: str, family: str, **fields: Any) -> tuple[Any, Any]:
    """One set of weights in both libraries, by strict loading in both directions."""
    ours = random_wav2vec2(name, **ALL[family], **fields)
    theirs = getattr(transformers, name)(transformers.Wav2Vec2Config(**ALL[family], **fields)).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def assert_same(ours: ModelOutput, theirs: Any, tolerance: float = 1e-4) -> None:
    assert ours.keys() == list(theirs.keys())
    for value, expected in zip(ours.values(), theirs.values(), strict=True):
        values, others = (x if isinstance(x, tuple) else (x,) for x in (value, expected))
        for mine, other in zip(values, others, strict=True):
            assert_close(mine, other, tolerance)


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize(("name", "family"), CASES)
def test_outputs(name: str, family: str, masked: bool) -> None:
    ours, theirs = pair(name, family)
    audio, mask = ragged_batch()
    arguments: dict[str, Any] = {"attention_mask": mask if masked else None}
    with torch.no_grad():
        expected = theirs(audio, **arguments, output_hidden_states=True)
        assert_same(ours(audio, **arguments, output_hidden_states=True), expected)
        with reference_path():
            assert_same(ours(audio, **arguments, output_hidden_states=True), expected)
        assert_same(ours(audio, **arguments), theirs(audio, **arguments))
        parts = ours(audio, **arguments, return_dict=False)
    assert type(parts) is tuple
    assert len(parts) == len(theirs(audio, **arguments, return_dict=False))
    with torch.enable_grad():
        assert_same(ours(audio, **arguments, output_hidden_states=True), expected)


@pytest.mark.parametrize("family", ["group", "language adapters"])
@torch.no_grad()
def test_attention_weights_and_implementations(family: str) -> None:
    ours, theirs = pair("Wav2Vec2Model", family)
    audio, mask = ragged_batch()
    expected = {}
    theirs.set_attn_implementation("eager")
    for given in (mask, None):
        expected = theirs(audio, attention_mask=given, output_attentions=True)
        for implementation in ("sdpa", "eager"):
            ours.set_attn_implementation(implementation)
            found = ours(audio, given, output_attentions=True)
            assert_same(found, expected)
            assert_close(ours(audio, given).last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("family", ["group", "layer"])
@torch.no_grad()
def test_bfloat16(family: str) -> None:
    ours, theirs = pair("Wav2Vec2ForCTC", family)
    audio, mask = ragged_batch()
    expected = theirs(audio, attention_mask=mask).logits
    ours, audio = ours.to(torch.bfloat16), audio.to(torch.bfloat16)
    fast = ours(audio, mask).logits
    with reference_path():
        plain = ours(audio, mask).logits
    for found in (fast, plain):
        assert found.dtype is torch.bfloat16
        assert_close(found.float(), expected, 0.05)


def seed_quantizer(model: nn.Module) -> None:
    """The same Gumbel noise on both sides."""

    def seed(*_: Any) -> None:
        torch.manual_seed(5)

    if hasattr(model, "quantizer"):
        model.quantizer.register_forward_pre_hook(seed)


def targets(name: str, model: Any, mask: Tensor | None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    steps = int(model._get_feat_extract_output_lengths(max(LENGTHS), False))
    if name == "Wav2Vec2ForPreTraining":
        torch.manual_seed(1)
        indices, negatives = model.sample_masks(max(LENGTHS), mask, len(LENGTHS))
        return {"mask_time_indices": indices, "sampled_negative_indices": negatives}
    if name == "Wav2Vec2Model":
        return {"mask_time_indices": torch.rand(len(LENGTHS), steps, generator=generator) < 0.3}
    if name == "Wav2Vec2ForCTC":
        labels = torch.randint(1, 11, (len(LENGTHS), 3), generator=generator)
        labels[1, 2:] = -100
        return {"labels": labels}
    labels = torch.randint(0, 5, (len(LENGTHS), steps if "Frame" in name else 1), generator=generator)
    return {"labels": nn.functional.one_hot(labels, 5) if "Frame" in name else labels[:, 0]}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize(("name", "family"), CASES)
def test_losses_and_gradients(name: str, family: str, masked: bool, training: bool) -> None:
    augment = name in ("Wav2Vec2Model", "Wav2Vec2ForPreTraining")
    ours, theirs = pair(name, family, **NO_DROPOUT, apply_spec_augment=augment)
    audio, mask = ragged_batch()
    given = mask if masked else None
    arguments = targets(name, ours, given)
    results = []
    for model in (ours, theirs):
        model.train(training)
        seed_quantizer(model)
        result = model(audio, attention_mask=given, **arguments)
        (result.last_hidden_state.square().mean() if name == "Wav2Vec2Model" else result.loss).backward()
        results.append(result)
    assert_same(*results)
    mine, other = ({key: value.grad for key, value in model.named_parameters()} for model in (ours, theirs))
    largest = max(float(value.abs().max()) for value in other.values() if value is not None)
    for key, value in mine.items():
        if other[key] is None or value is None:
            assert value is other[key], key
        elif "k_proj.bias" not in key:  # which changes no softmax: its gradient is rounding
            assert (value - other[key]).abs().max() <= 1e-4 * other[key].abs().max() + 1e-8 * largest, key


@pytest.mark.parametrize("options", [{"ctc_loss_reduction": "mean"}, {"ctc_loss_reduction": "mean", "ctc_zero_infinity": True}])
def test_ctc_options(options: dict[str, Any]) -> None:
    ours, theirs = pair("Wav2Vec2ForCTC", "layer", **options)
    audio, mask = ragged_batch()
    labels = torch.randint(1, 11, (len(LENGTHS), 30), generator=torch.Generator().manual_seed(0))
    mine, other = (model(audio, attention_mask=mask, labels=labels).loss for model in (ours, theirs))
    assert torch.isfinite(mine) == ("ctc_zero_infinity" in options)
    if torch.isfinite(mine):
        assert_close(mine, other)
    else:
        assert other == mine


@pytest.mark.parametrize("family", ["group", "layer", *WITH_ADAPTER])
def test_lengths_and_masks(family: str) -> None:
    ours, theirs = pair("Wav2Vec2ForCTC", family)
    lengths = torch.tensor([30, 31, 49, 50, 1003, 16000])
    for adapter in (None, True, False):
        if adapter and family not in WITH_ADAPTER:
            continue
        expected = theirs._get_feat_extract_output_lengths(lengths, adapter)
        assert torch.equal(ours._get_feat_extract_output_lengths(lengths, adapter), expected)
        assert int(ours._get_feat_extract_output_lengths(16000, adapter)) == int(expected[-1])
        mask = ragged_batch()[1]
        steps = int(ours._get_feat_extract_output_lengths(max(LENGTHS), adapter))
        mine, other = (model._get_feature_vector_attention_mask(steps, mask, adapter) for model in (ours, theirs))
        assert torch.equal(mine, other)


@pytest.mark.parametrize(("name", "family"), [(name, "language adapters") for name in CLASSES] + CASES[:3] + CASES[-1:])
@torch.no_grad()
def test_files_go_both_ways(name: str, family: str, tmp_path: Path) -> None:
    """Ours -> theirs -> ours, in both namings of the weight norm: every tensor to the bit."""
    ours = random_wav2vec2(name, **ALL[family])
    audio, mask = ragged_batch()
    before = ours.state_dict()
    for old in (False, True):
        ours.save_pretrained(tmp_path / "ours", old_weight_norm_names=old)
        theirs = getattr(transformers, name).from_pretrained(tmp_path / "ours")
        assert_same(ours(audio, mask), theirs(audio, attention_mask=mask))
        theirs.save_pretrained(tmp_path / "theirs")
        again = type(ours).from_pretrained(tmp_path / "theirs")
        after = again.state_dict()
        assert list(before) == list(after)
        for key, value in before.items():
            assert torch.equal(value, after[key]), key
        assert all(torch.equal(x, y) for x, y in zip(ours(audio).to_tuple(), again(audio).to_tuple(), strict=True))


@pytest.mark.parametrize("name", CLASSES)
def test_fresh_weights_are_spread_as_theirs(name: str) -> None:
    """Mean and spread of every parameter of some size, so that a training from scratch starts alike.

    The position convolution's weight is left out: theirs keeps the initialisation of torch, as setting a normed weight in
    place does nothing, where fairseq's, which ours is, is normal.
    """
    fields = (
        TINY
        | STABLE
        | {
            "hidden_size": 128,
            "intermediate_size": 256,
            "conv_dim": [64] * 3,
            "codevector_dim": 64,
            "adapter_attn_dim": 32,
            "proj_codevector_dim": 64,
            "tdnn_dim": [64] * 3,
            "xvector_output_dim": 64,
            "num_labels": 64,
            "vocab_size": 64,
            "classifier_proj_size": 64,
            "use_weighted_layer_sum": True,
        }
    )
    torch.manual_seed(0)
    mine = getattr(modeling_wav2vec2, name)(Wav2Vec2Config(**fields)).state_dict()
    other = getattr(transformers, name)(transformers.Wav2Vec2Config(**fields)).state_dict()
    for key, value in mine.items():
        if "pos_conv_embed.conv.parametrizations" in key:
            continue
        expected, spread = other[key], float(other[key].std())
        tolerance = 6 / value.numel() ** 0.5
        assert value.std().item() == pytest.approx(spread, rel=tolerance, abs=1e-8), key
        assert value.mean().item() == pytest.approx(expected.mean().item(), abs=tolerance * spread + 1e-6), key


def test_fresh_position_convolution_is_as_published() -> None:
    """fairseq: normal with the deviation 2 / sqrt(kernel x channels), of norm one before weight norm scales it back."""
    model = modeling_wav2vec2.Wav2Vec2Model(Wav2Vec2Config(**TINY | {"hidden_size": 128, "num_conv_pos_embeddings": 32}))
    conv = model.encoder.pos_conv_embed.conv
    assert conv.weight.std().item() == pytest.approx(2 / (32 * 128) ** 0.5, rel=0.02)
    assert_close(conv.weight, conv.parametrizations["weight"].original1, 1e-6)
    assert not conv.bias.any()
