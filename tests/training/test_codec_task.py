"""The codec's recipe: it learns, from the bundled clips, in seconds; what it saves loads; what it is asked for is checked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bundled_clips
import memorised
import numpy as np
import peers
import pytest
import torch
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import phonograph
from phonograph import MimiConfig, MimiFeatureExtractor, MimiModel, Wav2Vec2Config, Wav2Vec2Model
from phonograph.audio import Audio
from phonograph.audio.quality import mel_distance
from phonograph.errors import ConfigError
from phonograph.training import RunContext, RunOptions, Trainer, parse_recipe, read_recipe
from phonograph.training.recipe import typed
from phonograph.training.task import Batch, Losses
from phonograph.training.tasks.codec import CodecOptions, CodecTask, DistillationOptions, TeacherFeatures

BUNDLED = Path(phonograph.__file__).parent / "loading" / "bundled"
SPEECH = str(BUNDLED / "speech")
TINY: dict[str, Any] = {
    "hidden_size": 48,
    "num_filters": 8,
    "codebook_size": 64,
    "codebook_dim": 24,
    "vector_quantization_hidden_dimension": 24,
    "num_quantizers": 6,
    "upsample_groups": 48,
    "num_hidden_layers": 1,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "sliding_window": 50,
}
SAID = [memorised.SENTENCES[name].english for name in bundled_clips.NAMES[:2]]
DATA: dict[str, Any] = {
    "path": SPEECH,
    "held_out": SPEECH,
    "batches": {"crop_seconds": 0.48, "batch_seconds": 1.92, "size_ratio": 2.0, "most_padding": 1.0},
    "workers": 1,
}


def values(**changed: Any) -> dict[str, Any]:
    """Options of a small codec, as a recipe has them."""
    return {
        "data": DATA,
        "config": TINY,
        "mel_windows": [1024, 256, 64],
        "adversary": {"windows": [512, 128], "channels": 4, "from_step": 80},
        "judging": {"codebooks": [6, 1], "samples": 1},
    } | changed


def task(folder: Path, **changed: Any) -> CodecTask:
    torch.manual_seed(0)
    return CodecTask(typed(CodecOptions, values(**changed)), RunContext(folder))


def first_batch(made: CodecTask) -> Batch:
    with made.batches(0, 1, 0) as batches:  # type: ignore[attr-defined]
        batch: Batch = next(batches)
    return batch


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], Trainer, Path]:
    """A whole run of 80 steps, 50 with codebooks, the last 15 against discriminators: figures before, and the run."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("codec")
    optimizer = {"lr": 2e-3, "betas": [0.5, 0.9], "schedule": {"kind": "cosine", "warmup_steps": 10}}
    recipe = {
        "task": "codec",
        "options": values(
            data=DATA | {"held_out": str(bundled_clips.table(folder, text=[*SAID, ""]))},
            judging={"codebooks": [6, 1], "samples": 1, "recognizer": str(memorised.CTC)},
            quantizer={"unquantized_share": 0.2, "from_step": 30, "decay": 0.9, "commitment": 0.002},
            adversary={"windows": [512, 128], "channels": 4, "from_step": 65},
        ),
        "loop": {"steps": 80, "save_minutes": None},
        "optimizers": {"generator": optimizer, "discriminator": {"lr": 1e-3}},
    }
    trainer = Trainer(parse_recipe(yaml.safe_dump(recipe)), RunOptions(folder, device="cpu", quiet=True))
    trainer.task.modules.eval()
    with torch.no_grad():
        before = trainer.task.evaluate(0)
    trainer.task.modules.train()
    assert trainer.fit().model == folder / "model"
    return before, trainer, folder


# --------------------------------------------------------------------------------------------------------------- learning


def test_mel_distance_falls_by_half(run: tuple[dict[str, float], Trainer, Path]) -> None:
    """To less than half of what it was, and well below that of silence, which knows no speech."""
    before, trainer, _ = run
    silences = []
    for utterance in trainer.task.held_out:  # type: ignore[attr-defined]
        samples = trainer.task.store.samples(utterance)[None]  # type: ignore[attr-defined]
        silences.append(mel_distance(Audio(samples, 24000), Audio(np.zeros_like(samples), 24000)))
    after = trainer.figures["6 codebooks/mel distance"]
    assert after < 0.5 * before["6 codebooks/mel distance"]
    assert after < 0.6 * np.mean(silences)


def test_figures_and_samples_are_of_every_number_of_codebooks(run: tuple[dict[str, float], Trainer, Path]) -> None:
    for package in ("pystoi", "pesq", "matplotlib"):
        peers.peer(package)
    _, trainer, folder = run
    rows, columns = ("6 codebooks", "1 codebooks"), ("mel distance", "STOI", "PESQ", "WER", "WER above original")
    assert list(trainer.figures) == [*(f"{row}/{column}" for row in rows for column in columns), "original/WER"]
    assert trainer.figures["original/WER"] == 0
    assert trainer.figures["6 codebooks/WER"] > 0.5
    names = {path.name for path in (folder / "samples" / "step-0000080").iterdir()}
    assert names == {"0-original.wav", "0-6-codebooks.wav", "0-1-codebooks.wav", "0.png"}


def test_figures_are_those_of_the_saved_codec(run: tuple[dict[str, float], Trainer, Path]) -> None:
    _, trainer, folder = run
    codec = MimiModel.from_pretrained(folder / "model").eval()
    distances = []
    for utterance in trainer.task.held_out:  # type: ignore[attr-defined]
        original = phonograph.audio.load(utterance.opened(), sampling_rate=24000)
        with torch.no_grad():
            codes = codec.encode(torch.from_numpy(original.samples)[None], num_quantizers=1).audio_codes
            made = codec.decode(codes)[0][0, :, : original.num_samples].clamp(-1, 1)
        distances.append(mel_distance(original, Audio(made.numpy(), 24000)))
    assert trainer.figures["1 codebooks/mel distance"] == pytest.approx(np.mean(distances), rel=1e-3)


def test_transformers_loads_what_is_saved(run: tuple[dict[str, float], Trainer, Path]) -> None:
    transformers = peers.peer("transformers")
    folder = run[2] / "model"
    ours, theirs = MimiModel.from_pretrained(folder).eval(), transformers.MimiModel.from_pretrained(folder).eval()
    audio = torch.randn(1, 1, 9600, generator=torch.Generator().manual_seed(0)) / 10
    with torch.no_grad():
        torch.testing.assert_close(ours(audio).audio_values, theirs(audio).audio_values[..., :9600], rtol=1e-3, atol=1e-4)
    ours_extractor = MimiFeatureExtractor.from_pretrained(folder)
    assert transformers.AutoFeatureExtractor.from_pretrained(folder).sampling_rate == ours_extractor.sampling_rate == 24000


def test_the_card_tells_bitrate_and_figures(run: tuple[dict[str, float], Trainer, Path]) -> None:
    card = (run[2] / "model" / "README.md").read_text()
    assert "75 bit/s a codebook, 0.45 kbit/s in all" in card
    table = card[card.index("\n|  | ") :].split("\n\n")[0].strip().splitlines()
    columns = [cell.strip() for cell in table[0].strip("|").split("|")]
    assert (columns[1], columns[-2:]) == ("mel distance", ["WER", "WER above original"])
    assert [row.split("|")[1].strip() for row in table[2:]] == ["6 codebooks", "1 codebooks", "original"]
    assert f"- WER: 2 of 3 recordings, those with transcripts; heard by {memorised.CTC}" in card
    assert "- mel distance: 3 of 3 recordings" in card


def test_weights_are_saved_in_the_type_wanted(tmp_path: Path) -> None:
    made = task(tmp_path, judging={"dtype": "float16"})
    made.save(tmp_path)
    saved = MimiModel.from_pretrained(tmp_path, dtype="auto")
    assert saved.dtype is torch.float16
    assert {buffer.dtype for buffer in saved.buffers()} == {torch.float32}
    assert made.codec.dtype is torch.float32


# ------------------------------------------------------------------------------------------------------------------ steps


class Reads(TorchDispatchMode):
    """Collects the operations that make a device wait, or whose results have shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique2", "equal"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def phases(made: CodecTask, batch: Batch, step: int) -> Iterator[Losses]:
    """As the loop takes them: the parameters of one optimiser at a time require gradients."""
    groups = made.parameter_groups()
    order = iter(("generator", "discriminator"))
    found = made.losses(batch, step)
    for name in order:
        for group in groups:
            for parameter in group.parameters:
                parameter.requires_grad_(group.optimizer == name)
        losses = next(found, None)
        if losses is None:
            return
        losses.total.backward()
        yield losses


def test_a_step_reads_nothing_back(tmp_path: Path) -> None:
    made = task(tmp_path, adversary={"windows": [512], "channels": 2})
    batch = first_batch(made)
    for step in range(2):  # k-means may look at its data, and whether it has been is asked once more
        assert [losses.optimizer for losses in phases(made, batch, step)] == ["generator", "discriminator"]
    with Reads() as reads:
        list(phases(made, batch, 2))
    assert reads.found == []


def test_every_parameter_is_trained_by_one_optimiser(tmp_path: Path) -> None:
    made = task(tmp_path, adversary={"windows": [512, 128], "channels": 2})
    batch = first_batch(made)
    grouped = [parameter for group in made.parameter_groups() for parameter in group.parameters]
    assert len({id(parameter) for parameter in grouped}) == len(grouped) == len(list(made.modules.parameters()))
    list(phases(made, batch, 0))
    without = [name for name, parameter in made.modules.named_parameters() if parameter.grad is None]
    assert without == []
    decays = {group.name: group.weight_decay for group in made.parameter_groups()}
    assert decays == {"transformers": None, "convolutions and vectors": 0.0, "discriminators": None}


def test_discriminators_come_when_the_recipe_says(tmp_path: Path) -> None:
    made = task(tmp_path)
    batch = first_batch(made)
    assert [losses.optimizer for losses in phases(made, batch, 79)] == ["generator"]
    both = list(phases(made, batch, 80))
    assert [losses.optimizer for losses in both] == ["generator", "discriminator"]
    assert set(both[0].parts) == {"mel", "waveform", "adversarial", "features", "commitment"}
    assert [group.frozen_steps for group in made.parameter_groups() if group.optimizer == "discriminator"] == [80]


def test_a_codec_with_nothing_to_learn_from_yet_stays_as_it_is(tmp_path: Path) -> None:
    adversary = {"windows": [512], "channels": 2, "from_step": 5}
    frozen = {"config": None, "pretrained": "mimi-mini", "freeze_encoder": True, "judging": {}}
    made = task(tmp_path, shares={"mel": 0.0, "waveform": 0.0}, adversary=adversary, **frozen)
    assert [losses.optimizer for losses in phases(made, first_batch(made), 0)] == ["generator"]
    gradients = [parameter.grad for parameter in made.codec.decoder.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_codebooks_come_when_the_recipe_says(tmp_path: Path) -> None:
    made = task(tmp_path, quantizer={"from_step": 5}, adversary={"from_step": None})
    batch = first_batch(made)
    (losses,) = phases(made, batch, 4)
    assert set(losses.parts) == {"mel", "waveform"}
    assert not any(book.started for book in made.codec.quantizer.codebooks())
    (losses,) = phases(made, batch, 5)
    assert set(losses.parts) == {"mel", "waveform", "commitment"}
    assert all(book.started for book in made.codec.quantizer.codebooks())


def test_an_untrained_codec_is_as_loud_as_speech(tmp_path: Path) -> None:
    made = task(tmp_path)
    with torch.no_grad():
        loud = MimiModel(MimiConfig(**TINY))
        audio = first_batch(made)["waveforms"][:, None]
        levels = [codec.decode_latents(codec.encode_latents(audio)).std().item() for codec in (made.codec, loud)]
    assert 0.02 < levels[0] < 0.2
    assert levels[1] > 10 * levels[0]


def test_training_can_be_adversarial_only(tmp_path: Path) -> None:
    made = task(tmp_path, shares={"mel": 0.0, "waveform": 0.0}, adversary={"windows": [512], "channels": 2})
    (generator, _) = phases(made, first_batch(made), 0)
    assert set(generator.parts) == {"adversarial", "features", "commitment"}
    gradients = [parameter.grad for parameter in made.codec.encoder.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_training_can_do_without_discriminators(tmp_path: Path) -> None:
    made = task(tmp_path, adversary={"from_step": None})
    assert [losses.optimizer for losses in phases(made, first_batch(made), 10**6)] == ["generator"]
    assert "discriminators" not in made.modules
    assert {group.optimizer for group in made.parameter_groups()} == {"generator"}


def test_items_use_codebooks_in_the_shares_wanted(tmp_path: Path) -> None:
    made = task(tmp_path, quantizer={"dropout_share": 0.5, "unquantized_share": 0.25})
    counts = torch.bincount(made._counts(torch.zeros(40000, 1, 1)), minlength=7) / 40000
    fewer = 0.75 * 0.5 / 6
    expected = [0.25, *[fewer] * 5, 0.75 * 0.5 + fewer]
    torch.testing.assert_close(counts, torch.tensor(expected), rtol=0, atol=0.01)


def test_an_epoch_takes_from_all_of_an_utterance(tmp_path: Path) -> None:
    made = task(tmp_path)
    counts = {item.name: made.training.count(item) for item in made.held_out}
    assert counts == {item.name: round((item.duration_seconds or 0) / 0.48) for item in made.held_out}


# ----------------------------------------------------------------------------------------------------------- distillation


def teacher(folder: Path) -> str:
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    torch.manual_seed(1)
    Wav2Vec2Model(config).save_pretrained(folder / "teacher")
    return str(folder / "teacher")


def test_the_semantic_codebooks_learn_from_a_speech_encoder(tmp_path: Path) -> None:
    name = teacher(tmp_path)
    made = task(tmp_path, distillation={"teacher": name, "weight": 2.0}, adversary={"from_step": None})
    (losses,) = phases(made, first_batch(made), 0)
    assert 0 < losses.parts["distillation"].item() < 2
    gradient = made.modules["to_teacher"].weight.grad
    assert isinstance(gradient, Tensor)
    assert gradient.abs().sum() > 0
    assert not any(key.startswith("teacher") for key in made.modules.state_dict())
    assert id(made.modules["to_teacher"].weight) in {id(p) for group in made.parameter_groups() for p in group.parameters}


@pytest.mark.parametrize("layer", [None, 0, 1])
def test_a_teacher_s_features_are_averages_at_the_codec_s_frames(tmp_path: Path, layer: int | None) -> None:
    """Of 24 kHz audio of 16 kHz made, each frame is the mean of the 8 hidden states around it."""
    codec = MimiConfig(**TINY)
    features = TeacherFeatures(DistillationOptions(teacher(tmp_path), layer), codec)
    seconds = np.arange(24 * 1920) / 24000
    audio = np.sin(2 * np.pi * 440 * seconds) * np.exp(-((seconds - 1) ** 2) * 20)
    found = features(torch.from_numpy(audio.astype(np.float32))[None])
    resampled = Audio(audio[None].astype(np.float32), 24000).resample(16000).samples
    normal = (resampled - resampled.mean()) / np.sqrt(resampled.var() + 1e-7)
    padded = np.pad(normal, ((0, 0), (0, 80)))
    with torch.no_grad():
        states = features.model(torch.from_numpy(padded), output_hidden_states=True).hidden_states
    states = states[2 if layer is None else layer][0]
    expected = torch.stack([states[max(0, 4 * frame - 2) : 4 * frame + 6].mean(0) for frame in range(24)])
    assert found.shape == (1, 24, 16)
    torch.testing.assert_close(found[0], expected, rtol=0.05, atol=0.02)


# --------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": None}, "exactly one of config and pretrained"),
        ({"pretrained": "mimi-mini"}, "exactly one of config and pretrained"),
        ({"config": TINY | {"codebook_size": 0}}, "codebook_size"),
        ({"data": DATA | {"batches": {}}}, "crop_seconds must be given"),
        ({"judging": {"codebooks": [7]}}, r"judging.codebooks=\[7\] must be from 1 to 6"),
        ({"mel_windows": [1022]}, r"windows of \[1022\] samples must be multiples of four"),
        ({"adversary": {"from_step": None}, "shares": {"mel": 0.0, "waveform": 0.0}}, "one loss must be left"),
        ({"shares": {"adversarial": 0.0}}, "shares.adversarial"),
        ({"freeze_encoder": True}, "freeze_encoder=True needs pretrained"),
        ({"config": None, "pretrained": "mimi-mini", "freeze_encoder": True, "quantizer": {"from_step": 1}}, "and neither"),
    ],
)
def test_options_are_checked(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        typed(CodecOptions, values(**changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": TINY | {"audio_channels": 2}}, "expected a codec of one channel, got 2"),
        ({"data": DATA | {"batches": {"crop_seconds": 0.02}}}, "crop_seconds above half the longest window"),
        ({"config": None, "pretrained": "mimi-mini", "judging": {"codebooks": [17]}}, "must be from 1 to 16"),
        ({"judging": {"recognizer": "mimi-mini"}}, "expected a model that writes text .* got mimi-mini, which is mimi"),
    ],
)
def test_what_the_codec_tells_is_checked(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        task(tmp_path, **changed)


@pytest.mark.parametrize(("fields", "layer"), [({}, 3), ({"upsampling_ratios": [8, 6, 5, 1]}, None)], ids=["layer", "frames"])
def test_a_teacher_must_fit(tmp_path: Path, fields: dict[str, Any], layer: int | None) -> None:
    with pytest.raises(ConfigError, match="an even number of steps in a frame of the codec"):
        TeacherFeatures(DistillationOptions(teacher(tmp_path), layer), MimiConfig(**TINY | fields))


def test_a_codec_is_tuned_from_a_checkpoint(tmp_path: Path) -> None:
    made = task(tmp_path, config=None, pretrained="mimi-mini", judging={})
    assert made.codec.dtype is torch.float32
    assert all(book.started for book in made.codec.quantizer.codebooks())


def test_tokens_stay_what_they_are(tmp_path: Path) -> None:
    start = MimiModel(MimiConfig(**TINY))
    start.quantizer(torch.randn(4, 50, 48))
    start.save_pretrained(tmp_path / "start")
    options = values(config=None, pretrained=str(tmp_path / "start"), freeze_encoder=True, quantizer={"revive_below": 0.5})
    recipe = {
        "task": "codec",
        "options": options | {"adversary": {"windows": [128], "channels": 4, "from_step": 1}, "judging": {"samples": 0}},
        "loop": {"steps": 4, "save_minutes": None, "ema_decay": 0.5},
        "optimizers": {"generator": {"lr": 1e-3, "weight_decay": 0.1}, "discriminator": {"lr": 1e-3}},
    }
    trainer = Trainer(parse_recipe(yaml.safe_dump(recipe)), RunOptions(tmp_path / "run", device="cpu", quiet=True))
    trainer.fit()
    tuned = MimiModel.from_pretrained(tmp_path / "run" / "model")
    assert tuned.codebook_hash() == start.codebook_hash()
    before, after = start.state_dict(), tuned.state_dict()
    learning = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.partition(".")[0] for name in learning} == {"upsample", "decoder_transformer", "decoder"}
    assert learning == {name for name in before if name.startswith(("upsample.", "decoder_transformer.", "decoder."))}


def test_the_bundled_recipe_makes_the_bundled_codec() -> None:
    options = read_recipe("mimi-mini").options
    bundled = json.loads((BUNDLED / "models" / "mimi-mini" / "config.json").read_text())
    ours, theirs = MimiConfig(**options.config).to_dict(), MimiConfig(**bundled).to_dict()
    different = {name for name in ours | theirs if ours.get(name) != theirs.get(name)}
    assert different <= {"architectures", "dtype"}
    assert options.judging.dtype == bundled["dtype"]
