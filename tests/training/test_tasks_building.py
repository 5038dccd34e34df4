"""How tasks are built: data, stages, freezing, adapters, what they refuse."""

import json

import pytest
import torch
from bundled_clips import NAMES, SEQ2SEQ, recipe, table
from tiny_arpa import write_arpa
from tiny_checkpoints import SMALL, checkpoint

from phonograph import (
    Speech2TextForConditionalGeneration,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)
from phonograph.errors import ConfigError
from phonograph.nn.dropout import Dropout
from phonograph.training import RunOptions, train
from phonograph.training.task import RunContext
from phonograph.training.tasks.speech import AugmentationOptions, Stages, split_decayed


def built(tmp_path, task="ctc", *, columns=None, context=None, **options):
    tmp_path.mkdir(exist_ok=True)
    made = recipe(task, table(tmp_path, **(columns or {})), **options)
    return made.build(RunContext(tmp_path / "run", **(context or {})))


def first_losses(task, step=0):
    [losses] = task.losses(next(task.batches(0, 1, 0)), step)
    return losses


# Data


def test_texts_are_spelled_and_what_is_left_out_is_written(tmp_path):
    path = table(tmp_path, text=["Well, it's SO.", "...", "two  words"])
    task = recipe("ctc", path, model=SMALL).build(RunContext(tmp_path / "run"))
    assert [item.text for item in task.training] == ["WELL IT'S SO", "TWO WORDS"]
    [fault] = map(json.loads, (tmp_path / "run" / "left_out.jsonl").read_text().splitlines())
    assert fault["kind"] == "untranscribed"
    assert task.describe()["data"]["training"].startswith("kept 2 utterances")


def test_rows_are_chosen_by_their_columns(tmp_path):
    columns = {"source": ["x", "y", "z"]}
    task = built(tmp_path, model=SMALL, columns=columns, data={"where": {"source": ["x", "z"]}})
    assert [item.extra["source"] for item in task.training] == ["x", "z"]
    only = built(tmp_path, model=SMALL, columns=columns, data={"where": {"speaker": NAMES[1]}})
    assert [item.speaker for item in only.training] == [NAMES[1]]


def test_the_folder_of_the_command_line_wins_and_more_can_stand_beside(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    beside = table(other)
    task = built(tmp_path, model=SMALL, context={"data": table(tmp_path)}, data={"path": "nowhere", "beside": [str(beside)]})
    assert len(task.training) == 2 * len(NAMES)


def test_part_is_held_out_and_a_dry_run_takes_little(tmp_path):
    path = table(tmp_path)
    rows = path.read_text().splitlines()
    many = [json.dumps({**json.loads(rows[0]), "offset": place / 100, "duration": 0.5}) for place in range(100)]
    path.write_text("\n".join(many))
    data = {"held_out": None, "held_out_share": 0.2, "held_out_most": 10}
    made = recipe("ctc", path, model=SMALL, data=data)
    whole = made.build(RunContext(tmp_path / "run"))
    assert (len(whole.training) > 70, len(whole.held_out)) == (True, 10)
    places = [{item.offset_seconds for item in side} for side in (whole.training, whole.held_out)]
    assert not places[0] & places[1]
    dry = made.build(RunContext(tmp_path / "run", dry_run=True))
    assert (len(dry.training), len(dry.held_out)) == (24, 4)


@pytest.mark.parametrize(
    ("task", "options"), [("ctc", {}), ("seq2seq", {"pieces": 60}), ("classification", {"kind": "frames"})]
)
def test_what_has_a_text_or_times_is_not_cut(task, options, tmp_path):
    data = {"batches": {"crop_seconds": 1.5}}
    with pytest.raises(ConfigError, match=r"expected whole utterances for \w+Task, got data.batches.crop_seconds=1.5; leave"):
        built(tmp_path, task, model=SMALL if task != "seq2seq" else SEQ2SEQ, data=data, **options)


def test_no_speech_is_refused(tmp_path):
    path = table(tmp_path, text="")
    with pytest.raises(ConfigError, match=r"speech to train on, got none that is of use \(kept 0 utterances"):
        recipe("ctc", path, model=SMALL).build(RunContext(tmp_path / "run"))
    with pytest.raises(ConfigError, match="folder with speech, got none; pass --data"):
        recipe("ctc", path, model=SMALL, data={"path": None}).build(RunContext(tmp_path / "run"))


def test_short_utterances_come_first_and_a_resumed_run_goes_on_there(tmp_path):
    data = {"first_seconds": 4.5, "first_batches": 3}

    def rows(batches):
        return [len(next(batches)["label_lengths"]) for _ in range(3)]

    task = built(tmp_path, model=SMALL, data=data)
    batches = task.batches(0, 1, 0)
    assert rows(batches) == [2, 2, 2]  # one clip is longer
    state = batches.state()
    after = [next(batches) for _ in range(2)]
    assert len(after[0]["label_lengths"]) == 3
    again = built(tmp_path, model=SMALL, data=data).batches(0, 1, 0)
    again.restore(state)
    for expected in after:
        assert torch.equal(next(again)["waveforms"], expected["waveforms"])
    with pytest.raises(ConfigError, match="a position in 2 stages of data, got 1; resume with the same recipe"):
        again.restore({"handed": 1, "stages": [{}]})
    with pytest.raises(ConfigError, match=r"first_seconds=4\.0, first_batches=0: a beginning with short utterances needs both"):
        recipe("ctc", table(tmp_path), model=SMALL, data={"first_seconds": 4.0})


def test_stages_hand_over_after_their_number_of_batches():
    class Counting:
        def __init__(self, name):
            self.name, self.count = name, 0

        def __next__(self):
            self.count += 1
            return {self.name: self.count}

        def state(self):
            return {"count": self.count}

        def restore(self, state):
            self.count = state["count"]

    def stages():
        return Stages([(Counting("a"), 2), (Counting("b"), 1), (Counting("c"), 0)])

    first = stages()
    assert [next(first) for _ in range(5)] == [{"a": 1}, {"a": 2}, {"b": 1}, {"c": 1}, {"c": 2}]
    second = stages()
    next(second)
    third = stages()
    third.restore(second.state())
    assert [next(third) for _ in range(3)] == [{"a": 2}, {"b": 1}, {"c": 1}]


# Augmentation


def test_augmentation_grows_from_its_step_on():
    options = AugmentationOptions(from_step=10, ramp_steps=4)
    assert [options.strength(step) for step in (0, 9, 10, 12, 14, 99)] == [0, 0, 0.2, 0.6, 1, 1]
    assert AugmentationOptions().strength(0) == 1


def test_speech_is_unchanged_before_augmentation_and_changed_after(tmp_path):
    augmentation = {"from_step": 5, "waveform": {"gain_db": 6.0, "speed_factors": [0.9]}}
    task = built(tmp_path, model=SMALL, augmentation=augmentation)
    waveforms, lengths = torch.randn(2, 8000), torch.tensor([8000, 4000])
    assert task.augmented(waveforms, lengths, 4)[0] is waveforms
    torch.manual_seed(0)
    changed, longer = task.augmented(waveforms, lengths, 5)
    assert longer.tolist() == [8889, 4445]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task.augmented(waveforms, lengths, 5)[0], changed)


def test_time_masks_grow_with_augmentation(tmp_path):
    model = SMALL | {"apply_spec_augment": True, "mask_time_prob": 0.5, "mask_time_length": 5}
    task = built(tmp_path, model=model, augmentation={"from_step": 5, "ramp_steps": 9})
    lengths = torch.tensor([64000, 32000])
    torch.manual_seed(0)
    shares = [task._masked(64000, lengths, step).float().mean().item() for step in (0, 7, 13)]
    assert shares[0] == 0 < shares[1] < shares[2]
    assert task._masked(64000, lengths, 14) is None


def test_feature_masks_grow_with_augmentation(tmp_path):
    model = SMALL | {"apply_spec_augment": True, "mask_time_prob": 0.0, "mask_feature_prob": 0.6, "mask_feature_length": 2}
    quiet = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "final_dropout": 0.0, "layerdrop": 0.0}
    made = built(tmp_path, model=model | quiet, augmentation={"from_step": 4})
    made.modules.train()
    totals = {step: {first_losses(made, step).total.item() for _ in range(2)} for step in (3, 4)}
    assert {step: len(total) for step, total in totals.items()} == {3: 1, 4: 2}
    assert made.model.config.mask_feature_prob == 0.6


@pytest.mark.parametrize("task", ["ctc", "seq2seq"])
def test_dropout_grows_with_augmentation(task, tmp_path):
    ctc = {"model": SMALL | {"apply_spec_augment": False, "layerdrop": 0.0, "hidden_dropout": 0.4, "attention_dropout": 0.2}}
    seq2seq = {"model": SEQ2SEQ | {"dropout": 0.4, "attention_dropout": 0.2}, "pieces": 60}
    made = built(tmp_path, task, augmentation={"from_step": 4, "ramp_steps": 1}, **(ctc if task == "ctc" else seq2seq))
    made.modules.train()
    totals = {step: {first_losses(made, step).total.item() for _ in range(2)} for step in (0, 4, 5, 3)}
    assert {step: len(total) for step, total in totals.items()} == {0: 1, 4: 2, 5: 2, 3: 1}
    first_losses(made, 4)
    assert {round(part.p, 6) for part in made.modules.modules() if isinstance(part, Dropout)} >= {0.2, 0.1}
    first_losses(made, 5)
    assert {part.p for part in made.modules.modules() if isinstance(part, Dropout)} >= {0.4, 0.2}


def test_features_of_seq2seq_are_masked_from_the_step_on(tmp_path):
    options = {"pieces": 60, "spec_augment": {"frequency_masks": 2}, "augmentation": {"from_step": 2}}
    task = built(tmp_path, "seq2seq", model=SEQ2SEQ, **options)
    waveforms, lengths = torch.randn(2, 16000).clamp(-1, 1), torch.tensor([16000, 12000])
    plain, frames = task._features(waveforms, lengths, 1)
    torch.manual_seed(1)
    masked, _ = task._features(waveforms, lengths, 2)
    assert frames.tolist() == [98, 73]
    assert (plain[0] == 0).sum() == 0 < (masked[0] == 0).sum()


# CTC


def test_what_is_frozen_is_not_trained(tmp_path):
    task = built(tmp_path, model=SMALL, freeze_features=True, freeze_encoder_steps=7, head_lr_factor=3.0)
    groups = task.parameter_groups()
    trained = {id(parameter) for group in groups for parameter in group.parameters}
    frozen = {id(parameter) for parameter in task.model.wav2vec2.feature_extractor.parameters()}
    everything = {id(parameter) for parameter in task.model.parameters()}
    assert trained == everything - frozen
    steps = {group.name.split(",")[0]: (group.frozen_steps, group.lr_factor) for group in groups}
    assert steps == {"head": (0, 3.0), "encoder": (7, 1.0)}


def test_vectors_do_not_decay():
    groups = split_decayed("main", list(torch.nn.Linear(2, 3).parameters()), "head")
    assert [(group.parameters[0].dim(), group.weight_decay) for group in groups] == [(2, None), (1, 0.0)]


def test_a_checkpoint_keeps_its_vocabulary_or_gets_a_new_head(tmp_path):
    init = checkpoint(tmp_path / "init")
    kept = built(tmp_path, init=init, vocabulary="checkpoint", model={"hidden_dropout": 0.0})
    stored = Wav2Vec2ForCTC.from_pretrained(init)
    assert torch.equal(kept.model.lm_head.weight, stored.lm_head.weight)
    assert kept.model.config.hidden_dropout == 0
    fresh = built(tmp_path, init=init, vocabulary="transcripts")
    assert fresh.model.config.vocab_size == len(fresh.processor.tokenizer) != 32
    ours, theirs = fresh.model.wav2vec2.state_dict(), stored.wav2vec2.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_adapter_alone_is_trained_and_becomes_a_file_that_the_original_model_loads(tmp_path):
    init = checkpoint(tmp_path / "init", adapter_attn_dim=6)
    made = recipe("ctc", table(tmp_path), 2, 1e-2, init=init, adapter="swh", spelling={"case": "lower"})
    outcome = train(made, RunOptions(output=tmp_path / "run", device="cpu", quiet=True))
    stored, tuned = Wav2Vec2ForCTC.from_pretrained(init), Wav2Vec2ForCTC.from_pretrained(outcome.model)
    before, after = stored.state_dict(), tuned.state_dict()
    changed = {name for name in before if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])}
    assert changed == set(tuned._get_adapters())
    (outcome.model / "adapter.swh.safetensors").rename(tmp_path / "init" / "adapter.swh.safetensors")
    stored.load_adapter("swh")
    assert all(torch.equal(value, after[name]) for name, value in stored.state_dict().items())
    processor = Wav2Vec2Processor.from_pretrained(outcome.model)
    assert processor.tokenizer.target_lang == "swh"
    assert len(processor.tokenizer) == stored.config.vocab_size


def test_a_language_model_decodes_held_out_speech_a_second_time(tmp_path):
    arpa = write_arpa(tmp_path / "one.arpa", ["he", "was"])
    task = built(tmp_path, model=SMALL, language_model={"path": str(arpa), "case": "lower", "beam_width": 4})
    with torch.no_grad():
        assert set(task.evaluate(0)) == {"wer", "cer", "wer_lm", "cer_lm"}


def test_losses_are_mixed_in_their_shares(tmp_path):
    options = {"intermediate_layers": [1], "intermediate_weight": 0.25, "even_alignment_steps": 4}
    task = built(tmp_path, model=SMALL | {"apply_spec_augment": False}, **options)
    mixed, later = first_losses(task, 1), first_losses(task, 4)
    parts = mixed.parts
    text = 0.75 * parts["ctc"] + 0.25 * parts["intermediate_ctc"]
    torch.testing.assert_close(mixed.total, 0.25 * text + 0.75 * parts["even_alignment"])
    torch.testing.assert_close(later.total, text)
    assert "even_alignment" not in later.parts
    assert 0 <= parts["blank"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "init=None, model={}: set a checkpoint to start from"),
        ({"model": SMALL, "vocabulary": "checkpoint"}, "vocabulary='checkpoint': there is none; choose transcripts or english"),
        ({"model": SMALL, "adapter": "swh"}, "adapter='swh': an adapter needs a checkpoint to adapt"),
        ({"model": SMALL, "intermediate_layers": [1, 2]}, r"intermediate_layers below the last, 2, got \[2\]"),
    ],
)
def test_ctc_options_that_contradict_each_other_are_refused(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        built(tmp_path, **options)


# Pretraining, sequence to sequence, classification


def test_the_temperature_falls_as_published(tmp_path):
    task = built(tmp_path, "pretraining", model=SMALL | {"num_negatives": 3}, temperature_decay=0.5)
    assert [first_losses(task, step).parts["temperature"].item() for step in (0, 1, 9)] == [2.0, 1.0, 0.5]
    with pytest.raises(ConfigError, match=r"temperature_start=0.1, temperature_end=0.5: it falls"):
        built(tmp_path, "pretraining", model=SMALL, temperature_start=0.1)


def test_held_out_masks_are_the_same_each_time_and_disturb_no_random_numbers(tmp_path):
    task = built(tmp_path, "pretraining", model=SMALL | {"num_negatives": 3})
    task.modules.eval()
    torch.manual_seed(5)
    with torch.no_grad():
        figures = task.evaluate(0)
        drawn = torch.rand(1)
        assert task.evaluate(1) == figures
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)


def test_joint_ctc_shares_the_loss_and_stays_out_of_the_result(tmp_path):
    task = built(tmp_path, "seq2seq", model=SEQ2SEQ, pieces=60, ctc_weight=0.25)
    losses = first_losses(task)
    torch.testing.assert_close(losses.total, 0.75 * losses.parts["cross_entropy"] + 0.25 * losses.parts["ctc"])
    names = {id(parameter) for group in task.parameter_groups() for parameter in group.parameters}
    assert id(task.modules["ctc_head"].weight) in names
    task.save(tmp_path)
    assert Speech2TextForConditionalGeneration.from_pretrained(tmp_path).generation_config.num_beams == 5


def test_each_text_begins_with_the_token_of_its_language(tmp_path):
    columns = {"language": ["de", "fr", "de"]}
    options = {"model": SEQ2SEQ, "pieces": 60, "languages": ["de", "fr"]}
    task = built(tmp_path, "seq2seq", columns=columns, ctc_weight=0.5, **options)
    tokens = task.processor.tokenizer.lang_code_to_id
    batch = next(task.batches(0, 1, 0))
    assert sorted(batch["labels"][:, 0].tolist()) == sorted([tokens["de"], tokens["fr"], tokens["de"]])
    assert batch["said_lengths"] == [int((row >= 0).sum()) - 2 for row in batch["labels"]]
    with pytest.raises(ConfigError, match="utterances in de, got some in fr; add these to languages"):
        built(tmp_path, "seq2seq", columns=columns, **{**options, "languages": ["de"]})


def test_an_encoder_is_taken_over_or_refused(tmp_path):
    first = built(tmp_path / "first", "seq2seq", model=SEQ2SEQ, pieces=60)
    first.save(tmp_path)
    second = built(tmp_path / "second", "seq2seq", model=SEQ2SEQ, pieces=50, init_encoder=str(tmp_path))
    ours, theirs = (task.model.model.encoder.state_dict() for task in (second, first))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ConfigError, match=r"an encoder of \d+ tensors like the new model's"):
        built(tmp_path, "seq2seq", model=SEQ2SEQ | {"encoder_layers": 1}, pieces=50, init_encoder=str(tmp_path))


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("seq2seq", {}, "init=None, pieces=None: set a checkpoint to start from"),
        ("seq2seq", {"init": "x", "pieces": 60}, "a checkpoint keeps its vocabulary; leave one out"),
        ("classification", {}, "init=None, model={}: set a checkpoint"),
        ("classification", {"model": SMALL, "label": "mood"}, "a column mood in the row of every utterance, got none for"),
        ("classification", {"model": SMALL, "label": "same"}, r"two classes in the column same, got \['x'\]"),
        (
            "classification",
            {"model": SMALL, "label": "same", "kind": "frames"},
            r"same of .*kathleen.* as a list of \[start_seconds, end_seconds, class\], got 'x'",
        ),
        (
            "classification",
            {"model": SMALL, "kind": "frames", "augmentation": {"waveform": {"speed_factors": [0.9, 1.0]}}},
            r"kind='frames', speed_factors=\[0.9, 1.0\]: segments would no longer lie where they are",
        ),
    ],
)
def test_options_that_contradict_each_other_or_the_data_are_refused(task, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        built(tmp_path, task, columns={"same": "x"}, **options)
