"""`generate` against transformers' with the same weights, its settings' order, and what it refuses."""

import random
from typing import Any

import pytest
import torch
from peers import peer
from random_speech_to_text import CONFIGS, TINY, Pair, assert_close, features, padded, random_pair, random_speech_to_text

from phonograph.errors import AudioError, ConfigError

transformers = peer("transformers")

MODELS = ["tiny", "untied head", "three convolutions", "other special tokens"]


@pytest.fixture(scope="module", params=MODELS, ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    return random_pair(spread=6.0, **CONFIGS[request.param])


def settings_for(seed: int) -> dict[str, Any]:
    """Settings of a random case; each third one is greedy."""
    choose = random.Random(seed)
    settings: dict[str, Any] = {
        "max_length": choose.choice([2, 12, 20, 40, 40]),
        "num_beams": 1 if seed % 3 == 0 else choose.choice([2, 3, 5]),
        "no_repeat_ngram_size": choose.choice([0, 0, 2, 3]),
        "repetition_penalty": choose.choice([1.0, 1.0, 1.3]),
        "min_length": choose.choice([0, 0, 6]),
        "forced_bos_token_id": choose.choice([None, 9, 11]),
        "eos_token_id": choose.choice([None, [6, 24, 8, 34, 28], [2, 3, 39]]),
    }
    if settings["num_beams"] > 1:
        settings |= {
            "length_penalty": choose.choice([1.0, 0.0, 2.0, 0.6]),
            "early_stopping": choose.choice([True, False, "never"]),
            "num_return_sequences": choose.randint(1, settings["num_beams"]),
        }
    return {name: value for name, value in settings.items() if value is not None}


@pytest.mark.parametrize("seed", range(13))
def test_ids_are_theirs(pair: Pair, seed: int) -> None:
    """52 cases over four models, with scaled-up logits so that nothing ties."""
    clip = features(pair.ours, 1 + seed % 4, 20 + 3 * seed, seed)
    settings = settings_for(seed)
    ours = pair.ours.generate(clip, **settings)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, pair.theirs.generate(clip, **settings)), settings


@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_ragged_batch_is_each_clip_alone(num_beams: int) -> None:
    model = random_speech_to_text(spread=6.0, **TINY)
    clips = [features(model, 1, frames, seed)[0] for seed, frames in enumerate((52, 33, 47, 8))]
    settings: dict[str, Any] = {"num_beams": num_beams, "max_length": 30, "eos_token_id": [8, 24]}
    generated = model.generate_hypotheses(*padded(clips), **settings)
    assert len(set(generated.lengths.flatten().tolist())) > 1  # they leave the batch at different steps
    for clip, (hypothesis,) in zip(clips, generated.hypotheses, strict=True):
        (alone,) = model.generate_hypotheses(clip[None], **settings).hypotheses[0]
        assert hypothesis.ids == alone.ids
        assert hypothesis.score == pytest.approx(alone.score, abs=1e-5)


def test_scores_are_log_probabilities_of_the_model() -> None:
    model = random_speech_to_text(spread=6.0, **TINY)
    clip = features(model, 2, 40)
    settings: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "max_length": 12, "eos_token_id": [8, 24]}
    # A padding token in the middle has no position, which makes those after it differ between a step and the whole.
    generated = model.generate_hypotheses(clip, **settings, suppress_tokens=[model.config.pad_token_id])
    for item, hypotheses in enumerate(generated.hypotheses):
        assert hypotheses[0].score >= hypotheses[1].score
        for hypothesis in hypotheses:
            ids = torch.tensor([hypothesis.ids])
            with torch.no_grad():
                logits = model(clip[item : item + 1], decoder_input_ids=ids[:, :-1]).logits
            gains = logits.log_softmax(-1).gather(2, ids[:, 1:, None])
            assert_close(gains.sum() / (ids.shape[1] - 1), torch.tensor(hypothesis.score))


def test_encoder_outputs_in_place_of_features() -> None:
    model = random_speech_to_text(spread=6.0, **TINY)
    clip = features(model, 2, 40)
    with torch.no_grad():
        encoded = model.get_encoder()(clip)
    expected = model.generate(clip)
    assert torch.equal(model.generate(encoder_outputs=encoded), expected)
    assert torch.equal(model.generate(encoder_outputs=(encoded[0],), attention_mask=torch.ones(2, 40)), expected)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_tokens_are_reported_as_they_become_final(num_beams: int) -> None:
    model = random_speech_to_text(spread=6.0, **TINY)
    heard: dict[int, list[int]] = {}
    ids = model.generate(
        features(model, 3, 40),
        num_beams=num_beams,
        max_length=30,
        on_tokens=lambda clip, new: heard.setdefault(clip, []).extend(new),
    )
    for clip, row in enumerate(ids.tolist()):
        end = len(heard[clip]) + 1
        assert row[:end] == [model.config.decoder_start_token_id, *heard[clip]]
        assert set(row[end:]) <= {model.config.pad_token_id}


def test_keywords_win_over_generation_config_over_config() -> None:
    model = random_speech_to_text(spread=6.0, **TINY, max_length=9, num_beams=3, early_stopping=True)
    clip = features(model, 1, 60)
    assert (model.generation_config.max_length, model.generation_config.num_beams) == (9, 3)
    assert torch.equal(model.generate(clip), model.generate(clip, max_length=9, num_beams=3, early_stopping=True))
    model.generation_config.max_length = 5
    assert model.generate(clip, eos_token_id=49).shape == (1, 5)
    assert model.generate(clip, eos_token_id=49, max_length=7).shape == (1, 7)
    assert model.generate(clip, eos_token_id=49, max_length=None).shape == (1, 5)
    assert model.generate(clip, eos_token_id=49, max_new_tokens=7).shape == (1, 8)


def test_the_default_length_stays_within_the_model() -> None:
    model = random_speech_to_text(**TINY | {"max_target_positions": 12})
    assert model.generate(features(model, 1, 60), eos_token_id=[]).shape == (1, 12)


def test_generating_changes_nothing() -> None:
    model = random_speech_to_text(**TINY)
    clip = features(model, 2, 40)
    before, kept = {name: value.clone() for name, value in model.state_dict().items()}, clip.clone()
    model.generate(clip, num_beams=2)
    assert torch.equal(clip, kept)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ids = model.generate(clip)
    ids += 1  # the result is the caller's own
    assert not ids.is_inference()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 41}, r"expected targets of at most 40 tokens \(max_target_positions\), got 41; lower max_length"),
        ({"max_new_tokens": 40}, r"expected targets of at most 40 tokens \(max_target_positions\), got 41"),
        ({"num_beamz": 2}, "expected generation settings .*, got num_beamz; check the spelling"),
        ({"num_beams": 0}, "num_beams=0 must be an integer >= 1"),
        ({"penalty_alpha": 0.5}, "penalty_alpha=0.5 is not supported; leave it out"),
        ({"forced_bos_token_id": 50}, r"expected token ids below the vocabulary's 50, got \[50\]"),
    ],
)
def test_refuses_settings(settings: dict[str, Any], message: str) -> None:
    model = random_speech_to_text(**TINY)
    with pytest.raises(ConfigError, match=message):
        model.generate(features(model, 1, 20), **settings)


def test_refuses_input() -> None:
    model = random_speech_to_text(**TINY)
    with pytest.raises(ConfigError, match="expected input_features or encoder_outputs, got neither"):
        model.generate()
    with pytest.raises(AudioError, match=r"expected features of shape \(batch, frames, 10\) with at least one frame"):
        model.generate(torch.zeros(1, 0, 10))
