"""Losses and figures of training steps against transformers with the same weights, inputs and masks, and by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peers import peer
from random_wav2vec2 import FAMILIES, ragged_batch, random_wav2vec2

from phonograph import Speech2TextFeatureExtractor, Wav2Vec2FeatureExtractor
from phonograph.training.features import speech_to_text_features, wav2vec2_inputs
from phonograph.training.losses import (
    CTCTargets,
    contrastive_accuracy,
    ctc_loss,
    even_alignment_loss,
    intermediate_ctc_loss,
)

LABELS = torch.tensor([[3, 4, 4, 5], [6, 7, -100, -100], [8, -100, -100, -100], [9, 10, 3, -100]])


def their_ctc(ours, **fields):
    transformers = peer("transformers")
    theirs = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**fields)).eval()
    theirs.load_state_dict(ours.state_dict())
    return theirs


def targets_for(model, mask, **settings):
    lengths = model._get_feat_extract_output_lengths(mask.sum(-1))
    return CTCTargets(lengths, LABELS, (LABELS >= 0).sum(-1), **settings)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("zero_infinity", [False, True])
def test_ctc_loss_is_that_of_transformers(reduction, zero_infinity):
    fields = FAMILIES["layer"] | {"ctc_loss_reduction": reduction, "ctc_zero_infinity": zero_infinity}
    ours = random_wav2vec2("Wav2Vec2ForCTC", **fields)
    audio, mask = ragged_batch()
    theirs = their_ctc(ours, **fields)(audio, attention_mask=mask, labels=LABELS)
    targets = targets_for(ours, mask, reduction=reduction, zero_infinity=zero_infinity)
    torch.testing.assert_close(ctc_loss(ours(audio, mask).logits, targets), theirs.loss, rtol=1e-5, atol=1e-6)


def test_unreduced_ctc_loss_is_each_items_own():
    ours = random_wav2vec2("Wav2Vec2ForCTC", **FAMILIES["layer"])
    audio, mask = ragged_batch()
    logits = ours(audio, mask).logits
    every = ctc_loss(logits, targets_for(ours, mask, reduction="none"))
    assert every.shape == (4,)
    torch.testing.assert_close(every.sum(), ctc_loss(logits, targets_for(ours, mask, reduction="sum")))


def test_ctc_loss_of_texts_too_long_counts_nothing_when_asked():
    logits = torch.randn(1, 2, 11)
    labels = torch.tensor([[3, 3, 4]])
    targets = CTCTargets(torch.tensor([2]), labels, torch.tensor([3]))
    assert ctc_loss(logits, targets) == 0
    assert ctc_loss(logits, CTCTargets(torch.tensor([2]), labels, torch.tensor([3]), zero_infinity=False)).isinf()


@pytest.mark.parametrize("family", ["layer", "group"])
def test_intermediate_ctc_is_the_head_after_a_layer(family):
    fields = FAMILIES[family] | {"ctc_loss_reduction": "mean"}
    ours = random_wav2vec2("Wav2Vec2ForCTC", **fields)
    audio, mask = ragged_batch()
    hidden = ours(audio, mask, output_hidden_states=True).hidden_states
    mine = intermediate_ctc_loss(ours, hidden, [1], targets_for(ours, mask))
    theirs = their_ctc(ours, **fields)
    states = theirs(audio, attention_mask=mask, output_hidden_states=True).hidden_states[1]
    if fields.get("do_stable_layer_norm"):
        states = theirs.wav2vec2.encoder.layer_norm(states)
    log_probs = theirs.lm_head(states).log_softmax(-1).transpose(0, 1)
    lengths = theirs._get_feat_extract_output_lengths(mask.sum(-1))
    expected = F.ctc_loss(log_probs, LABELS.clamp_min(0), lengths, (LABELS >= 0).sum(-1), zero_infinity=True)
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_intermediate_ctc_after_the_last_layer_is_the_ctc_loss_and_several_are_averaged(reduction):
    ours = random_wav2vec2("Wav2Vec2ForCTC", **FAMILIES["group"])
    audio, mask = ragged_batch()
    out = ours(audio, mask, output_hidden_states=True)
    targets = targets_for(ours, mask, reduction=reduction)
    last, first = (intermediate_ctc_loss(ours, out.hidden_states, [layer], targets) for layer in (2, 1))
    torch.testing.assert_close(last, ctc_loss(out.logits, targets))
    both = intermediate_ctc_loss(ours, out.hidden_states, [1, 2], targets)
    torch.testing.assert_close(both, (first + last) / 2)


def test_even_alignment_spreads_labels_over_the_steps_of_their_item():
    logits = torch.randn(3, 6, 11, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[3, 4, 5], [6, 7, -100], [-100, -100, -100]])
    targets = CTCTargets(torch.tensor([6, 4, 5]), labels, torch.tensor([3, 2, 0]))
    spread = [[3, 3, 4, 4, 5, 5], [6, 6, 7, 7]]
    log_probs = logits.log_softmax(-1)
    said = [torch.stack([log_probs[row, step, label] for step, label in enumerate(each)]) for row, each in enumerate(spread)]
    expected = -(said[0].mean() + said[1].mean()) / 3  # one item says nothing
    torch.testing.assert_close(even_alignment_loss(logits, targets), expected)


def test_contrastive_accuracy_counts_steps_that_find_their_target():
    targets = torch.eye(4)[None]
    negatives = torch.tensor([[[1, 2], [0, 3], [0, 1], [0, 0]]])
    mask = torch.tensor([[True, True, False, True]])
    predicted = torch.stack([targets[0, 0], targets[0, 3], targets[0, 2], targets[0, 3]])[None] * 7
    # Step 0 finds its own, step 1 that of step 3, which is among its negatives, step 3 its own; step 2 is not masked.
    assert contrastive_accuracy(predicted, targets, mask, negatives) == pytest.approx(2 / 3)


def test_contrastive_accuracy_leaves_out_copies_of_the_target_and_gives_nothing_for_a_collapsed_codebook():
    targets = torch.eye(4)[None].clone()
    targets[0, 1] = targets[0, 0]
    mask = torch.ones(1, 4, dtype=torch.bool)
    negatives = torch.tensor([[[1, 2], [0, 2], [0, 1], [0, 1]]])
    assert contrastive_accuracy(targets, targets, mask, negatives) == 1
    alike = torch.full((1, 4, 5), 0.7)
    with torch.autocast("cpu", torch.bfloat16):
        assert contrastive_accuracy(alike, alike, mask, negatives) == 0


def test_chance_of_contrastive_accuracy():
    generator = torch.Generator().manual_seed(0)
    steps, count = 2000, 9
    targets, predicted = (torch.randn(1, steps, 16, generator=generator) for _ in range(2))
    own = torch.arange(steps)[:, None]
    negatives = (own + torch.randint(1, steps, (steps, count), generator=generator)) % steps
    accuracy = contrastive_accuracy(predicted, targets, torch.ones(1, steps, dtype=torch.bool), negatives[None])
    assert accuracy == pytest.approx(1 / (1 + count), abs=0.03)


def speech(lengths=(16000, 9000, 12345)):
    random = np.random.default_rng(0)
    return [(0.1 * random.standard_normal(length) + 0.02).astype(np.float32) for length in lengths]


def batched(clips):
    lengths = torch.tensor([len(clip) for clip in clips])
    rows = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(clip) for clip in clips], batch_first=True)
    return rows, lengths


def test_normalised_waveforms_are_the_feature_extractors():
    clips = speech()
    expected = Wav2Vec2FeatureExtractor(return_attention_mask=True)(clips, padding=True, return_tensors="pt")
    values, mask = wav2vec2_inputs(*batched(clips), Wav2Vec2FeatureExtractor(return_attention_mask=True))
    torch.testing.assert_close(values, expected.input_values, rtol=1e-5, atol=1e-6)
    assert mask.tolist() == expected.attention_mask.tolist()


def test_inputs_follow_the_settings_of_the_feature_extractor():
    rows, lengths = batched(speech())
    values, mask = wav2vec2_inputs(rows, lengths, Wav2Vec2FeatureExtractor(do_normalize=False))
    assert torch.equal(values, rows)
    assert mask is None


def test_autocast_takes_nothing_from_features():
    rows, lengths = batched(speech())
    plain, _ = speech_to_text_features(rows, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(speech_to_text_features(rows, lengths)[0], plain)


def test_filterbank_features_are_the_feature_extractors_up_to_float32():
    clips = speech()
    expected = Speech2TextFeatureExtractor()(clips, padding=True, return_tensors="pt")
    features, frames = speech_to_text_features(*batched(clips))
    assert frames.tolist() == expected.attention_mask.sum(1).tolist()
    torch.testing.assert_close(features, expected.input_features, rtol=0, atol=2e-3)
