"""The three families on a stand-in for a GPU: everything stays there, nothing waits, and the numbers are those of a CPU."""

import copy
from collections import Counter

import pytest
import torch
from random_mimi import TINY as MIMI
from random_mimi import random_mimi
from random_speech_to_text import TINY as SPEECH_TO_TEXT
from random_speech_to_text import random_speech_to_text
from random_wav2vec2 import FAMILIES, random_wav2vec2
from stand_in_gpu import DEVICE, StandInGpu

from phonograph.models.wav2vec2.masking_wav2vec2 import sampled_negatives
from phonograph.nn.packed import reference_path


@pytest.fixture
def gpu():
    with StandInGpu() as device:
        yield device


def there(value):
    return value.to("gpu", non_blocking=True)


def compare(found, expected):
    """The same numbers, which were computed on the device."""
    assert found.device == DEVICE
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), rtol=1e-4, atol=1e-5)


# Mimi

FRAME = 48


def audio_and_mask(steps=7 * FRAME):
    audio, mask = torch.randn(2, 1, steps), torch.ones(2, steps, dtype=torch.int64)
    mask[1, 4 * FRAME + 11 :] = 0
    return audio, mask


def test_mimi_encodes_and_decodes_without_a_wait(gpu):
    model = random_mimi(**MIMI)
    audio, _ = audio_and_mask()
    with torch.inference_mode(), reference_path():
        codes = model.encode(audio)[0]
        expected = model.decode(codes)[0]
    moved = gpu.move(copy.deepcopy(model))
    with torch.inference_mode():
        moved(there(audio))  # the first time a table goes there
        gpu.forget()
        found = moved.encode(there(audio))[0]
        out = moved.decode(found)[0]
    assert gpu.waits == []
    assert torch.equal(found.cpu(), codes)
    compare(out, expected)


def test_mimi_looks_at_a_mask_only(gpu):
    model = random_mimi(**MIMI)
    audio, mask = audio_and_mask()
    with torch.inference_mode(), reference_path():
        codes = model.encode(audio, mask)[0]
    gpu.move(model)
    with torch.inference_mode():
        model.encode(there(audio))
        gpu.forget()
        found = model.encode(there(audio), there(mask))[0]
    assert {wait.where.split()[-1] for wait in gpu.waits} <= {"_lengths"}
    assert len(gpu.waits) <= 2
    frames = model.get_audio_codes_mask(mask)
    assert torch.equal(found.cpu().transpose(1, 2)[frames], codes.transpose(1, 2)[frames])


def test_mimi_trains_without_a_wait_once_its_codebooks_have_begun(gpu):
    model = gpu.move(random_mimi(**MIMI)).train()
    audio, _ = audio_and_mask()
    before = model.quantizer.codebooks()[0].embed_sum.clone()
    counts = there(torch.tensor([0, 3]))
    for turn in range(2):
        gpu.forget()
        latents = model.encode_latents(there(audio))
        quantized = model.quantizer(latents, counts=counts, revive_below=0.1)
        (model.decode_latents(quantized.quantized).square().mean() + quantized.commitment_loss).backward()
        if turn:
            assert gpu.waits == []
    assert {parameter.grad.device for parameter in model.parameters()} == {DEVICE}
    assert not torch.equal(before, model.quantizer.codebooks()[0].embed_sum)


def test_codebooks_begin_on_the_device(gpu):
    model = gpu.move(random_mimi(**MIMI)).train()
    for book in model.quantizer.codebooks():
        book.initialized.zero_()
    model.quantizer(torch.randn(2, 50, 32).to("gpu"))
    books = model.quantizer.codebooks()
    assert all(book.started for book in books)
    assert {buffer.device for book in books for buffer in book.buffers()} == {DEVICE}


# Wav2Vec2

HEADS = ("CTC", "SequenceClassification", "AudioFrameClassification", "XVector", "PreTraining")


def ragged():
    audio, mask = torch.randn(2, 3000), torch.ones(2, 3000, dtype=torch.int64)
    audio[1, 2000:] = 0
    mask[1, 2000:] = 0
    return audio, mask


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("family", "exact"), [("group", True), ("layer", False)])
def test_wav2vec2_waits_for_nothing(head, family, exact, gpu):
    model = random_wav2vec2(f"Wav2Vec2For{head}", **FAMILIES[family])
    audio, mask = ragged()
    with torch.inference_mode(), reference_path():
        expected = model(audio, mask, exact_padding=exact)[0]
    gpu.move(model)
    gpu.forget()
    with torch.inference_mode():
        found = model(there(audio), there(mask), exact_padding=exact)[0]
    assert gpu.waits == []
    compare(found[0], expected[0])  # which is no padding


def test_pretraining_with_negatives_waits_for_nothing(gpu):
    model = random_wav2vec2("Wav2Vec2ForPreTraining", **FAMILIES["layer"])
    audio, mask = ragged()
    masked = model.sample_masks(3000, mask)[0]
    negatives = sampled_negatives(masked, 5)
    expected = model(audio, mask, masked, negatives).loss
    expected.backward()
    gradient = model.project_hid.weight.grad
    gpu.move(model).zero_grad()
    gpu.forget()
    model.sample_masks(3000, there(mask))
    loss = model(there(audio), there(mask), there(masked), there(negatives)).loss
    loss.backward()
    assert gpu.waits == []
    compare(loss, expected)
    compare(model.project_hid.weight.grad, gradient)


@pytest.mark.parametrize("masked", [False, True])
def test_ctc_loss_of_the_model_is_computed_there(masked, gpu):
    model = random_wav2vec2("Wav2Vec2ForCTC", **FAMILIES["layer"])
    audio, mask = ragged()
    labels = torch.tensor([[1, 2, -100], [3, 4, 5]])
    given = {"attention_mask": mask} if masked else {}
    expected = model(audio, labels=labels, **given).loss
    gpu.move(model)
    compare(model(there(audio), labels=there(labels), **{k: there(v) for k, v in given.items()}).loss, expected)


# Speech2Text


def features_and_mask():
    features, mask = torch.randn(3, 60, 10), torch.ones(3, 60, dtype=torch.int64)
    mask[1, 41:] = 0
    return features, mask


def test_speech_to_text_learns_without_a_wait(gpu):
    model = random_speech_to_text(**SPEECH_TO_TEXT)
    features, mask = features_and_mask()
    labels = torch.tensor([[5, 6, 7], [7, -100, -100], [8, 9, -100]])
    expected = model(features, mask, labels=labels, label_smoothing=0.1).loss
    expected.backward()
    gradient = model.model.decoder.embed_tokens.weight.grad
    gpu.move(model).zero_grad()
    gpu.forget()
    loss = model(there(features), there(mask), labels=there(labels), label_smoothing=0.1).loss
    loss.backward()
    assert gpu.waits == []
    compare(loss, expected)
    compare(model.model.decoder.embed_tokens.weight.grad, gradient)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 1},
        {"num_beams": 3, "early_stopping": True},
        {
            "num_beams": 3,
            "repetition_penalty": 1.2,
            "no_repeat_ngram_size": 2,
            "bad_words_ids": [[3, 4]],
            "suppress_tokens": [5],
        },
        {"num_beams": 2, "forced_bos_token_id": 5, "num_return_sequences": 2},
    ],
)
def test_generation_looks_at_its_results_every_eighth_step_only(settings, gpu):
    model = random_speech_to_text(**SPEECH_TO_TEXT)
    features, mask = features_and_mask()
    expected = model.generate(features, mask, max_length=20, eos_token_id=49, **settings)
    gpu.move(model)
    gpu.forget()
    found = model.generate(there(features), there(mask), max_length=20, eos_token_id=49, **settings)
    looks = Counter(wait.where.split()[-1] for wait in gpu.waits if wait.kind == "read")
    constants = {wait.where.split()[-1] for wait in gpu.waits if wait.kind == "upload"}
    assert found.device == DEVICE
    assert torch.equal(found.cpu(), expected)
    # Whether there is padding, who is done after 8 and 16 tokens and at the end, and which is the longest.
    assert looks.keys() == {"generate_hypotheses", "_retire", "generate"}
    assert (looks["generate_hypotheses"], looks["generate"]) == (1, 1)
    assert looks["_retire"] <= 3
    assert constants <= {"__init__", "_constraints", "<listcomp>", "_retire"}


def test_a_step_of_the_decoder_can_be_captured(gpu):
    """As `_step_fixed` captures it: its position is a tensor, and it waits for nothing."""
    model = random_speech_to_text(**SPEECH_TO_TEXT)
    features, _ = features_and_mask()
    tokens = torch.tensor([4, 5, 6])
    with torch.inference_mode():
        states = model.model.encoder(features).last_hidden_state
        expected = model.decode_step(tokens, model.new_decoder_state(states, None, 1, 20))
    gpu.move(model)
    with torch.inference_mode():
        state = model.new_decoder_state(there(states), None, 1, 20)
        stepper = model.stepper(state, cuda_graph=False)
        gpu.forget()
        found = stepper._run(there(tokens), torch.zeros(1, dtype=torch.int64, device="gpu"))
        state.reorder(torch.arange(3, device="gpu"))
    assert gpu.waits == []
    compare(found, expected)
