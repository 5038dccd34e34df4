"""The losses of whole tasks, from audio and text, against transformers with its processors and the same weights and masks."""

import pytest
import torch
from bundled_clips import NAMES, SEQ2SEQ, WAV2VEC2, recipe, table
from peers import peer
from random_wav2vec2 import shake_

from phonograph import audio
from phonograph.loading.hub import BUNDLED_SPEECH
from phonograph.training.data import BatchPlan, SpeechBatch
from phonograph.training.task import RunContext

SECONDS = [1.9, 2.6, 2.2]
SMALL = WAV2VEC2 | {"hidden_size": 32, "intermediate_size": 48, "conv_dim": [16] * 4, "num_conv_pos_embeddings": 16}
HEADS = {"tdnn_dim": [16, 24], "tdnn_kernel": [3, 1], "tdnn_dilation": [1, 1], "xvector_output_dim": 12}
GROUP = {"feat_extract_norm": "group", "do_stable_layer_norm": False}


def built(tmp_path, task, **options):
    """A task with weights that all matter, without anything random, and its result in a folder."""
    torch.manual_seed(0)
    tmp_path.mkdir(exist_ok=True)
    made = recipe(task, table(tmp_path, segments=[[[0.5, 1.5, "a"]]] * 3), **options).build(RunContext(tmp_path / "run"))
    shake_(made.modules)
    made.modules.eval()
    made.save(tmp_path)
    return made


def clips(seconds):
    found = (audio.load(BUNDLED_SPEECH / f"{name}.flac", sampling_rate=16000, mono=True).samples[0] for name in NAMES)
    return [samples[: round(length * 16000)] for samples, length in zip(found, seconds, strict=True)]


def batch_of(task, speech):
    lengths = torch.tensor(list(map(len, speech)))
    rows = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(samples) for samples in speech], batch_first=True)
    return task.collate(SpeechBatch(rows, lengths, task.training, BatchPlan((0, 1, 2), rows.shape[1], 0, 0)))


def only_loss(task, batch, step=0):
    [losses] = task.losses(batch, step)
    return losses


@pytest.mark.parametrize("family", ["layer", "group"])
def test_ctc(family, tmp_path):
    # Of the group family there is no mask, so transformers takes padding for speech: items of one length are compared.
    seconds = SECONDS if family == "layer" else [2.0] * 3
    task = built(tmp_path, "ctc", model=SMALL | (GROUP if family == "group" else {}))
    losses = only_loss(task, batch_of(task, clips(seconds)))
    transformers = peer("transformers")
    theirs = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path).eval()
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path)
    inputs = processor(clips(seconds), sampling_rate=16000, padding=True, return_tensors="pt")
    labels = processor.tokenizer([item.text for item in task.training], padding=True, return_tensors="pt")
    labels = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)
    torch.testing.assert_close(losses.total, theirs(**inputs, labels=labels).loss, rtol=1e-4, atol=1e-5)
    assert losses.weight == 3
    assert ("attention_mask" in inputs) == (family == "layer")


def test_seq2seq_with_and_without_smoothed_labels(tmp_path):
    task = built(tmp_path, "seq2seq", model=SEQ2SEQ, pieces=60, label_smoothing=0.1)
    batch = batch_of(task, clips(SECONDS))
    smoothed = only_loss(task, batch)
    transformers = peer("transformers")
    theirs = transformers.Speech2TextForConditionalGeneration.from_pretrained(tmp_path).eval()
    processor = transformers.Speech2TextProcessor.from_pretrained(tmp_path)
    inputs = processor(clips(SECONDS), sampling_rate=16000, padding=True, return_tensors="pt")
    out = theirs(**inputs, labels=batch["labels"])
    from transformers.trainer_pt_utils import LabelSmoother

    expected = LabelSmoother(epsilon=0.1)(out, batch["labels"])
    torch.testing.assert_close(smoothed.total, expected, rtol=1e-3, atol=1e-4)
    assert smoothed.weight == int((batch["labels"] >= 0).sum())
    plain = built(tmp_path / "plain", "seq2seq", model=SEQ2SEQ, pieces=60, label_smoothing=0.0)
    plain.modules.load_state_dict(task.modules.state_dict())
    torch.testing.assert_close(only_loss(plain, batch).total, out.loss, rtol=1e-3, atol=1e-4)
    ids = processor.tokenizer([item.text for item in task.training], padding=True, return_tensors="pt")
    assert batch["labels"].tolist() == ids.input_ids.masked_fill(ids.attention_mask == 0, -100).tolist()


@pytest.mark.parametrize("family", ["layer", "group"])
def test_pretraining_with_the_same_masks_and_negatives(family, tmp_path):
    seconds = SECONDS if family == "layer" else [2.0] * 3
    model = SMALL | {"num_negatives": 7, "mask_time_prob": 0.4, "num_codevectors_per_group": 8, "codevector_dim": 16}
    task = built(tmp_path, "pretraining", model=model | (GROUP if family == "group" else {}))
    batch = batch_of(task, clips(seconds))
    torch.manual_seed(7)
    losses = only_loss(task, batch)
    torch.manual_seed(7)
    real = torch.arange(batch["waveforms"].shape[1]) < batch["lengths"][:, None]
    masked, negatives = task.model.sample_masks(batch["waveforms"].shape[1], real)
    transformers = peer("transformers")
    theirs = transformers.Wav2Vec2ForPreTraining.from_pretrained(tmp_path).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    inputs = extractor(clips(seconds), sampling_rate=16000, padding=True, return_tensors="pt")
    out = theirs(**inputs, mask_time_indices=masked, sampled_negative_indices=negatives)
    torch.testing.assert_close(losses.total, out.loss / masked.sum(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.parts["contrastive"], out.contrastive_loss / masked.sum(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.parts["perplexity"], out.codevector_perplexity, rtol=1e-4, atol=1e-5)
    assert losses.weight == masked.sum()


@pytest.mark.parametrize("kind", ["sequence", "speaker", "frames"])
def test_classification(kind, tmp_path):
    # transformers has no way to leave padded steps out of the loss of frames: items of one length are compared.
    seconds = [2.0] * 3 if kind == "frames" else SECONDS
    label = "segments" if kind == "frames" else "speaker"
    task = built(tmp_path, "classification", kind=kind, label=label, model=SMALL | HEADS | {"use_weighted_layer_sum": True})
    batch = batch_of(task, clips(seconds))
    losses = only_loss(task, batch)
    transformers = peer("transformers")
    names = {"sequence": "SequenceClassification", "frames": "AudioFrameClassification", "speaker": "XVector"}
    theirs = getattr(transformers, f"Wav2Vec2For{names[kind]}").from_pretrained(tmp_path).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    inputs = extractor(clips(seconds), sampling_rate=16000, padding=True, return_tensors="pt")
    labels = batch["labels"] if kind != "frames" else torch.nn.functional.one_hot(batch["labels"], 2)
    torch.testing.assert_close(losses.total, theirs(**inputs, labels=labels).loss, rtol=1e-4, atol=1e-5)


def test_frames_have_the_class_at_their_middle_and_padding_has_none(tmp_path):
    task = built(tmp_path, "classification", kind="frames", label="segments", model=SMALL)
    batch = batch_of(task, clips(SECONDS))
    steps = task.model._get_feat_extract_output_lengths(batch["lengths"])
    assert ((batch["labels"] >= 0).sum(1) == steps).all()
    named = (batch["labels"] == task.classes["a"]).sum(1)
    assert named.tolist() == [50, 50, 50]  # a second of 20 ms
    first = int((batch["labels"][0] == task.classes["a"]).nonzero()[0])
    field = task.model.wav2vec2.feature_extractor.receptive_field
    assert abs((first * 320 + field / 2) / 16000 - 0.5) <= 0.02
    assert only_loss(task, batch).weight == steps.sum()
