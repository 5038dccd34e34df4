"""Speech2Text against transformers with the same weights: states, attention, logits, loss and gradients in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peers import peer
from random_speech_to_text import CONFIGS, TINY, Pair, assert_close, features, padded, random_pair, tokens
from safetensors.torch import load_file
from torch import Tensor

from phonograph.models.speech_to_text.configuration_speech_to_text import Speech2TextConfig
from phonograph.models.speech_to_text.modeling_speech_to_text import (
    Speech2TextForConditionalGeneration,
    Speech2TextModel,
    shift_tokens_right,
)

transformers = peer("transformers")

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    return random_pair(**CONFIGS[request.param])


def all_outputs(model: Any, *arguments: Any, **keywords: Any) -> Any:
    return model(*arguments, output_hidden_states=True, output_attentions=True, **keywords)


def assert_same_outputs(ours: Any, theirs: Any) -> None:
    assert list(ours.keys()) == [name for name in theirs if theirs[name] is not None]
    for name in set(ours.keys()) - {"past_key_values"}:
        parts = [value if isinstance(value, tuple) else (value,) for value in (ours[name], theirs[name])]
        assert len(parts[0]) == len(parts[1]), name
        for mine, other in zip(*parts, strict=True):
            assert_close(mine, other, TOLERANCE)


@torch.no_grad()
def test_every_output(pair: Pair) -> None:
    clip, target = features(pair.ours, 3, 47), tokens(pair.ours, 3, 9)
    target[1, 6:] = pair.ours.config.pad_token_id
    assert_same_outputs(*(all_outputs(model, clip, decoder_input_ids=target) for model in pair))


@torch.no_grad()
def test_the_base_model(pair: Pair) -> None:
    clip, target = features(pair.ours, 2, 33), tokens(pair.ours, 2, 5)
    mask = torch.ones(2, 33, dtype=torch.int64)
    assert_same_outputs(*(all_outputs(model.model, clip, mask, decoder_input_ids=target) for model in pair))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_attention_implementations(implementation: str) -> None:
    ours, theirs = random_pair(**TINY)  # theirs has eager attention only
    ours.set_attn_implementation(implementation)
    clip, target = features(ours, 2, 40), tokens(ours, 2, 7)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0, 0]])
    mine, other = (model(clip, decoder_input_ids=target, decoder_attention_mask=mask) for model in (ours, theirs))
    assert_close(mine.logits[0, :6], other.logits[0, :6], TOLERANCE)
    assert_close(mine.logits[1, :4], other.logits[1, :4], TOLERANCE)
    assert not torch.allclose(mine.logits, ours(clip, decoder_input_ids=target).logits)  # the masked tokens saw less


@torch.no_grad()
def test_targets_padded_on_the_left() -> None:
    ours, theirs = random_pair(**TINY)
    clip, target = features(ours, 1, 40), tokens(ours, 1, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    mine, other = (model(clip, decoder_input_ids=target, decoder_attention_mask=mask).logits for model in (ours, theirs))
    assert_close(mine[:, 2:], other[:, 2:], TOLERANCE)
    assert mine.isfinite().all()


@torch.no_grad()
def test_encoder_outputs_passed_in(pair: Pair) -> None:
    clip, target = features(pair.ours, 2, 33), tokens(pair.ours, 2, 5)
    encoded = pair.ours.get_encoder()(clip)
    for form in (encoded, (encoded.last_hidden_state,), [encoded.last_hidden_state]):
        mine = pair.ours(encoder_outputs=form, decoder_input_ids=target).logits
        assert_close(mine, pair.theirs(clip, decoder_input_ids=target).logits, TOLERANCE)


def padded_pair(pair: Pair, frames: list[int]) -> tuple[Tensor, Tensor, Tensor, list[Any]]:
    batch, mask = padded([features(pair.ours, 1, count, seed)[0] for seed, count in enumerate(frames)])
    batch = batch * mask[..., None]  # as transformers' extractor fills it
    target = tokens(pair.ours, len(frames), 5)
    return batch, mask, target, [model(batch, mask, decoder_input_ids=target) for model in pair]


@torch.no_grad()
def test_a_padded_batch_where_nothing_leaks() -> None:
    """One convolution: what it sees past a clip's end is zero in both, so both give what each clip gives alone."""
    pair = random_pair(**CONFIGS["one convolution, wide kernel"])
    _, _, _, (mine, other) = padded_pair(pair, [40, 33, 12])
    assert_close(mine.logits, other.logits, TOLERANCE)
    for item, steps in enumerate([20, 17, 6]):
        states = [output.encoder_last_hidden_state[item, :steps] for output in (mine, other)]
        assert_close(*states, TOLERANCE)


@torch.no_grad()
def test_a_padded_batch_where_theirs_leaks() -> None:
    """Theirs lets the first convolution's bias past a clip's end into its last steps; ours gives what the clip gives alone.

    The longest clip is equal in both; the shorter ones are what both give for them alone.
    """
    pair = random_pair(**TINY)
    batch, _, target, (mine, other) = padded_pair(pair, [40, 34, 21])
    assert_close(mine.logits[0], other.logits[0], TOLERANCE)
    for item, frames in ((1, 34), (2, 21)):
        alone = pair.theirs(batch[item : item + 1, :frames], decoder_input_ids=target[item : item + 1])
        steps = alone.encoder_last_hidden_state.shape[1]
        assert_close(mine.logits[item], alone.logits[0], TOLERANCE)
        assert_close(mine.encoder_last_hidden_state[item, :steps], alone.encoder_last_hidden_state[0], TOLERANCE)
        assert (other.logits[item] - alone.logits[0]).abs().max() > 1e-3


@torch.no_grad()
def test_positions_where_padding_is_token_zero() -> None:
    """Theirs takes every frame for padding when pad_token_id is 0, and gives it no position; ours does not."""
    ours, theirs = random_pair(**TINY | {"pad_token_id": 0})
    clip = features(ours, 1, 20)
    assert not torch.allclose(ours.model.encoder(clip)[0], theirs.model.encoder(clip)[0], atol=1e-2)
    theirs.model.encoder.embed_positions.forward = lambda ids, *_: ours.model.encoder.embed_positions(torch.ones_like(ids))
    assert_close(ours.model.encoder(clip)[0], theirs.model.encoder(clip)[0], TOLERANCE)


def labels_for(model: Any, batch: int, length: int) -> Tensor:
    labels = tokens(model, batch, length)
    labels[0, -2:] = -100
    return labels


def test_loss_and_gradients_in_training_mode(pair: Pair) -> None:
    clip, labels = features(pair.ours, 2, 40), labels_for(pair.ours, 2, 8)
    losses, gradients = [], []
    for model in pair:
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for name in ("dropout", "activation_dropout", "attention_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        model.zero_grad()
        output = model(clip, labels=labels)
        output.loss.backward()
        losses.append(output.loss.detach())
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        model.eval()
    assert_close(*losses, TOLERANCE)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert_close(gradient, gradients[1][name], TOLERANCE)


@torch.no_grad()
def test_loss_is_of_the_shifted_labels(pair: Pair) -> None:
    clip, labels = features(pair.ours, 2, 40), labels_for(pair.ours, 2, 8)
    config = pair.ours.config
    inputs = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
    assert_close(pair.ours(clip, labels=labels).loss, pair.theirs(clip, decoder_input_ids=inputs, labels=labels).loss)


@torch.no_grad()
def test_state_dicts_go_both_ways(pair: Pair) -> None:
    mine, other = pair.ours.state_dict(), pair.theirs.state_dict()
    assert {name: tensor.shape for name, tensor in mine.items()} == {name: tensor.shape for name, tensor in other.items()}
    again = Speech2TextForConditionalGeneration(pair.ours.config)
    again.load_state_dict(other)
    assert all(torch.equal(tensor, mine[name]) for name, tensor in again.state_dict().items())


def test_fresh_weights_are_spread_as_theirs(tmp_path: Path) -> None:
    """Mean and spread of every parameter group, so that a training from scratch starts alike."""
    fields = TINY | {"d_model": 64, "vocab_size": 300, "init_std": 0.05, "tie_word_embeddings": False}
    torch.manual_seed(0)
    ours = Speech2TextForConditionalGeneration(Speech2TextConfig(**fields))
    transformers.Speech2TextForConditionalGeneration(transformers.Speech2TextConfig(**fields)).save_pretrained(tmp_path)
    expected = load_file(tmp_path / "model.safetensors")
    groups: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, value in ours.named_parameters():
        group = ".".join(part for part in name.split(".") if not part.isdigit()) + str(tuple(value.shape))
        groups.setdefault(group, []).append((value.detach().flatten(), expected[name].flatten()))
    assert len(groups) > 30
    for group, members in groups.items():
        mine, other = (torch.cat([pair[side] for pair in members]) for side in (0, 1))
        tolerance = 6 / len(mine) ** 0.5
        assert mine.std(correction=0).item() == pytest.approx(other.std(correction=0).item(), rel=tolerance, abs=1e-8), group
        assert mine.mean().item() == pytest.approx(other.mean().item(), abs=tolerance * other.std().item() + 1e-6), group
    padding = ours.config.pad_token_id
    assert not ours.model.decoder.embed_tokens.weight[padding].any()
    assert not expected["model.decoder.embed_tokens.weight"][padding].any()


@torch.no_grad()
def test_lengths() -> None:
    ours, theirs = random_pair(**TINY)
    lengths = torch.arange(50)
    assert torch.equal(ours._get_feat_extract_output_lengths(lengths), theirs._get_feat_extract_output_lengths(lengths))
    mask = padded([torch.zeros(n, 1) for n in (30, 17, 1)])[1]
    expected = theirs.model._get_feature_vector_attention_mask(8, mask)
    assert torch.equal(ours._get_feature_vector_attention_mask(8, mask), expected.bool())
    assert Speech2TextModel(ours.config)._get_feat_extract_output_lengths(torch.tensor([1000])).tolist() == [250]
