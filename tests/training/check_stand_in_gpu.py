"""Steps of every task on a stand-in for a GPU, as the loop does them: everything stays there, and waits are those said here.

torch's CTC loss copies lengths and offsets there itself, whatever it is given, once forward and once backward; of the mean it
also copies the lengths of the labels. All CTC losses of a step take the lengths of the steps from one look at them.
"""

import json
from dataclasses import replace

import pytest
import torch
from bundled_clips import SEQ2SEQ, WAV2VEC2, recipe, table
from random_mimi import TINY
from stand_in_gpu import DEVICE, StandInGpu

from phonograph import Wav2Vec2Config, Wav2Vec2Model
from phonograph.loading.hub import BUNDLED_SPEECH
from phonograph.training import RunOptions, Trainer, loop, parse_recipe
from phonograph.training.engine import Engine, Phases

SMALL = WAV2VEC2 | {"hidden_size": 32, "intermediate_size": 48, "conv_dim": [16] * 4, "num_conv_pos_embeddings": 16}
HEADS = {"tdnn_dim": [16, 24], "tdnn_kernel": [3, 1], "tdnn_dilation": [1, 1], "xvector_output_dim": 12}
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "final_dropout": 0.1}
CODES = {"num_negatives": 20, "num_codevectors_per_group": 16, "codevector_dim": 32, "proj_codevector_dim": 32}
WAVEFORM = {"room_probability": 0.5, "noise_probability": 0.5, "band_probability": 0.5, "gain_db": 6.0}
FASTER = {"waveform": WAVEFORM | {"speed_factors": [1.1]}}
SEGMENTS = [[[0.2, 0.8, "a"]], [[0.0, 1.0, "b"]], [[0.5, 1.5, "c"]]]
CODEC = TINY | {"upsampling_ratios": [8, 6, 5, 4], "num_quantizers": 6}


class StandInEngine(Engine):
    """The engine with the stand-in for its device, where Fabric would have a GPU."""

    def __init__(self, options, device="auto"):
        super().__init__(options, "cpu")
        from lightning_fabric.utilities import move_data_to_device

        self.device = DEVICE
        self._narrow = options.precision == "bfloat16"
        self.fabric.to_device = lambda batch: move_data_to_device(batch, DEVICE)

    def set_up(self, modules):
        self._phases = Phases(StandInGpu.move(modules))

    def _wrapped(self, iterator):
        with torch.autocast("gpu", torch.bfloat16, enabled=self._narrow):
            return self._phases(iterator)


@pytest.fixture
def gpu(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(loop, "Engine", StandInEngine)
    with StandInGpu() as device:
        yield device


def trainer(folder, made, **settings):
    values = json.loads(json.dumps(made.values))
    values["loop"] |= {"ema_decay": 0.9, "precision": "bfloat16", "log_every": 1000, "steps": 1000, **settings}
    torch.manual_seed(0)
    return Trainer(parse_recipe(json.dumps(values)), RunOptions(folder / "run", quiet=True))


def codec(folder, **options):
    batches = {"crop_seconds": 0.48, "batch_seconds": 1.92, "size_ratio": 2.0, "most_padding": 1.0}
    data = {"path": str(BUNDLED_SPEECH), "held_out": str(BUNDLED_SPEECH), "batches": batches, "workers": 1}
    own = {"data": data, "config": CODEC, "mel_windows": [1024, 256, 64], "judging": {"codebooks": [6], "samples": 0}}
    optimizers = {"generator": {"lr": 1e-3, "clip_norm": 10.0}}
    if options["adversary"]["from_step"] is not None:
        optimizers["discriminator"] = {"lr": 1e-3}
    values = {"task": "codec", "options": {**own, **options}, "loop": {"steps": 1}, "optimizers": optimizers}
    return parse_recipe(json.dumps(values))


def ctc(folder):
    model = SMALL | DROPOUT | {"num_hidden_layers": 3, "mask_time_prob": 0.3}
    early = {"intermediate_layers": [1, 2], "even_alignment_steps": 1000}
    return recipe("ctc", table(folder), model=model, augmentation=FASTER, **early)


def ctc_of_the_group_family(folder):
    model = SMALL | {"feat_extract_norm": "group", "do_stable_layer_norm": False, "layerdrop": 0.1, "mask_feature_prob": 0.1}
    return recipe("ctc", table(folder), model=model, augmentation=FASTER | {"ramp_steps": 50})


def pretraining(folder):
    data = {"batches": {"crop_seconds": 2.0, "batch_seconds": 40}}
    model = SMALL | DROPOUT | CODES | {"mask_time_prob": 0.4}
    return recipe("pretraining", table(folder), model=model, augmentation=FASTER, data=data)


def seq2seq(folder):
    options = {"pieces": 60, "ctc_weight": 0.3, "spec_augment": {"time_width": 20}, "augmentation": FASTER}
    return recipe("seq2seq", table(folder), model=SEQ2SEQ | {"dropout": 0.1}, **options)


def classes(kind):
    def made(folder):
        options = {"kind": kind, "label": "segments" if kind == "frames" else "speaker", "freeze_features": False}
        options["augmentation"] = {"waveform": WAVEFORM} if kind == "frames" else FASTER
        model = SMALL | HEADS | {"use_weighted_layer_sum": True, "mask_time_prob": 0.1}
        return recipe("classification", table(folder, duration=1.5, segments=SEGMENTS), model=model, **options)

    return made


def codec_with_all(folder):
    quantizer = {"from_step": 0, "unquantized_share": 0.2, "dropout_share": 0.5, "revive_below": 0.1}
    adversary = {"windows": [512, 128], "channels": 4, "from_step": 0}
    return codec(folder, adversary=adversary, quantizer=quantizer, augmentation={"waveform": {"gain_db": 6.0}})


def codec_with_a_teacher(folder):
    Wav2Vec2Model(Wav2Vec2Config(**SMALL)).save_pretrained(folder / "teacher")
    teacher = {"teacher": str(folder / "teacher")}
    return codec(folder, adversary={"from_step": None}, quantizer={"from_step": 0}, distillation=teacher)


def codec_without_codebooks(folder):
    return codec(folder, adversary={"from_step": None}, quantizer={"from_step": 500})


TASKS = {
    "ctc": (ctc, {"read": 1, "ctc": 4, "upload": 2}),  # of the last layer, and of the others together
    "ctc, group family": (ctc_of_the_group_family, {"read": 1, "ctc": 2, "upload": 1}),
    "pretraining": (pretraining, {}),
    "seq2seq": (seq2seq, {"read": 1, "ctc": 2}),
    "sequence": (classes("sequence"), {}),
    "frames": (classes("frames"), {}),
    "speaker": (classes("speaker"), {}),
    "codec": (codec_with_all, {}),
    "codec with a teacher": (codec_with_a_teacher, {}),
    "codec without codebooks": (codec_without_codebooks, {}),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_step_stays_on_the_device_and_waits_as_said(name, gpu, tmp_path):
    made, expected = TASKS[name]
    training = trainer(tmp_path, made(tmp_path))
    for _ in range(2):  # tables go there and codebooks begin, and are asked whether they have
        training.train_step()
    gpu.forget()
    training.train_step()
    assert gpu.kinds == expected, "\n".join(map(str, gpu.waits))
    assert {upload.where.split()[-1] for upload in gpu.uploads} <= {"loop", "even_alignment_loss"}
    held = [*training.task.modules.parameters(), *training.task.modules.buffers(), *training.ema.averages.values()]
    for part in training.parts:
        held += [part.counters, part.grad_norm]
        held += [value for state in part.optimizer.state.values() for value in state.values()]
    assert {tensor.device for tensor in held} == {DEVICE}
    gpu.forget()
    means = training._sums.means()
    assert means["loss"] == means["loss"] > 0  # no NaN
    assert len(gpu.waits) == len(training.parts)  # one look at all sums


def test_a_step_has_the_numbers_of_the_processor(gpu, tmp_path, monkeypatch):
    def after_steps(folder):
        folder.mkdir()
        made = recipe("ctc", table(folder), model=SMALL | {"apply_spec_augment": False}, intermediate_layers=[1])
        training = trainer(folder, made, precision="float32")
        for _ in range(3):
            training.train_step()
        return training

    there = after_steps(tmp_path / "there")
    monkeypatch.setattr(loop, "Engine", Engine)
    here = after_steps(tmp_path / "here")
    assert here.parts[0].grad_norm.device.type == "cpu"
    found, expected = there._sums.means(), here._sums.means()
    assert {name: found[name] for name in ("loss", "ctc", "blank")} == pytest.approx(
        {name: expected[name] for name in ("loss", "ctc", "blank")}, rel=1e-4
    )
    for name, average in here.ema.averages.items():
        torch.testing.assert_close(there.ema.averages[name].cpu(), average, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("made", [ctc, codec_with_all])
def test_a_run_is_judged_saved_and_resumed_there(made, gpu, tmp_path):
    values = json.loads(json.dumps(made(tmp_path).values))
    values["options"]["data"]["held_out_most"] = 1
    values["loop"] = {"steps": 3, "log_every": 1, "ema_decay": 0.9}

    def training(folder, resume=False):
        torch.manual_seed(0)
        return Trainer(parse_recipe(json.dumps(values)), RunOptions(tmp_path / folder, quiet=True, resume=resume))

    assert training("whole").fit().step == 3
    stopped = training("stopped")
    stopped.loop = replace(stopped.loop, steps=2)
    assert stopped.fit().step == 2
    resumed = training("stopped", resume=True)
    assert {tensor.device for tensor in resumed.ema.averages.values()} == {DEVICE}
    assert resumed.fit().step == 3
    losses = []
    for folder in ("whole", "stopped"):
        lines = map(json.loads, (tmp_path / folder / "log.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if line.get("step") == 3 and "loss" in line])
    assert losses[0] == losses[1] != []


def test_what_a_wait_would_be_is_seen(gpu, tmp_path, monkeypatch):
    """A loss that looks at a value, and one that leaves a tensor on the processor."""
    training = trainer(tmp_path, classes("sequence")(tmp_path))
    augmented = training.task.augmented

    def looks(waveforms, lengths, step):
        float(waveforms.abs().max())
        return augmented(waveforms, lengths, step)

    monkeypatch.setattr(training.task, "augmented", looks)
    training.train_step()
    gpu.forget()
    training.train_step()
    assert gpu.kinds == {"read": 1}
    monkeypatch.setattr(training.task, "augmented", lambda waveforms, lengths, step: (waveforms.cpu(), lengths))
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        training.train_step()
