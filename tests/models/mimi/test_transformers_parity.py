"""Mimi beside transformers, same weights and same input: codes, audio, latents, helpers, and files both ways."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peers import peer
from random_mimi import LOOKING_AHEAD, ODD, TINY, assert_close, assert_same_codes, noise, random_mimi
from safetensors.torch import load_file
from torch import Tensor

from phonograph import MimiConfig, MimiModel
from phonograph.nn.packed import reference_path

transformers = peer("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

FULL: dict[str, Any] = {}
CONFIGS = {"full": FULL, "tiny": TINY} | ODD | LOOKING_AHEAD


def close(ours: Tensor, theirs: Tensor) -> None:
    assert_close(ours, theirs, tolerance=1e-4)


class Pair:
    """One set of weights in both libraries."""

    def __init__(self, fields: dict[str, Any], folder: Path) -> None:
        self.ours = random_mimi(**fields)
        self.ours.save_pretrained(folder)
        loaded = transformers.MimiModel.from_pretrained(folder)
        # Its from_pretrained leaves convolutions that look ahead half on the meta device; its constructor does not.
        self.theirs = transformers.MimiModel(transformers.MimiConfig.from_pretrained(folder)).eval()
        self.theirs.load_state_dict(loaded.state_dict())
        frame = self.ours.frame_samples
        self.lengths = [1, frame - 1, frame, frame + 1, 5 * frame + 3]
        # Full size: beyond a tile, in which long signals are worked through. Small: beyond the window of ten steps, too.
        self.lengths += [2, 23 * frame + frame // 2, 40 * frame] if fields else [40 * frame + 3]

    def audio(self, samples: int) -> Tensor:
        return noise(2, self.ours.config.audio_channels, samples, seed=samples)


@pytest.fixture(scope="module", params=list(CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(CONFIGS[request.param], tmp_path_factory.mktemp("pair"))


@torch.no_grad()
def test_codes_latents_and_audio(pair: Pair) -> None:
    distinct = equal = total = 0
    for samples in pair.lengths:
        audio = pair.audio(samples)
        theirs = pair.theirs.encode(audio).audio_codes
        equal += assert_same_codes(pair.ours, audio, pair.ours.encode(audio).audio_codes, theirs)
        total += theirs.numel()
        close(pair.ours.encode_latents(audio), pair.theirs.encoder(audio).latents.transpose(1, 2))
        close(pair.ours.quantizer.decode(theirs), pair.theirs.quantizer.decode(theirs).transpose(1, 2))
        close(pair.ours.decode(theirs).audio_values, pair.theirs.decode(theirs).audio_values)
        distinct = max(distinct, theirs.unique().numel())
    assert equal >= 0.999 * total
    assert distinct >= 30, "a test on few codes would show little"


@torch.no_grad()
def test_without_the_fast_paths_of_inference(pair: Pair) -> None:
    """In training, and wherever they don't run, other kernels do."""
    audio = pair.audio(pair.lengths[4])
    theirs = pair.theirs.encode(audio).audio_codes
    with reference_path():
        assert_same_codes(pair.ours, audio, pair.ours.encode(audio).audio_codes, theirs)
    with torch.enable_grad():
        latents, decoded = pair.ours.encode_latents(audio).detach(), pair.ours.decode(theirs).audio_values.detach()
    close(latents, pair.theirs.encoder(audio).latents.transpose(1, 2))
    close(decoded, pair.theirs.decode(theirs).audio_values)


@torch.no_grad()
def test_forward(pair: Pair) -> None:
    audio = pair.audio(pair.lengths[4])
    mask = torch.ones(2, audio.shape[-1], dtype=torch.int64)
    for arguments in ({}, {"num_quantizers": 3}, {"padding_mask": mask}):
        theirs = pair.theirs(audio, **arguments)
        ours = pair.ours(audio, **arguments)
        assert_same_codes(pair.ours, audio, ours.audio_codes, theirs.audio_codes)
        close(ours.audio_values, theirs.audio_values)
        assert ours.keys() == list(theirs.keys())
    codes = pair.theirs.encode(pair.audio(pair.lengths[3])).audio_codes
    close(pair.ours(audio, audio_codes=codes).audio_values, pair.theirs(audio, audio_codes=codes).audio_values)


@torch.no_grad()
def test_fewer_codebooks(pair: Pair) -> None:
    audio = pair.audio(pair.lengths[4])
    for number in range(pair.ours.config.num_semantic_quantizers, 5):
        theirs = pair.theirs.encode(audio, num_quantizers=number).audio_codes
        assert_same_codes(pair.ours, audio, pair.ours.encode(audio, num_quantizers=number).audio_codes, theirs)
        close(pair.ours.decode(theirs).audio_values, pair.theirs.decode(theirs).audio_values)


def test_lengths_and_masks(pair: Pair) -> None:
    frame = pair.ours.frame_samples
    lengths = torch.tensor([0, 1, frame - 1, frame, frame + 1, 7 * frame + 3])
    assert torch.equal(pair.ours.get_encoded_length(lengths), pair.theirs.get_encoded_length(lengths))
    right = (torch.arange(int(lengths.max())) < lengths[1:, None]).long()
    for side, mask in (("right", right), ("left", right.flip(-1))):
        ours = pair.ours.get_audio_codes_mask(mask, padding_side=side)
        theirs = pair.theirs.get_audio_codes_mask(mask, padding_side=side)
        assert torch.equal(ours, theirs.bool())


@torch.no_grad()
def test_decode_is_cut_to_the_mask(pair: Pair) -> None:
    audio = pair.audio(pair.lengths[3])
    codes = pair.theirs.encode(audio).audio_codes
    mask = torch.ones_like(audio)
    close(pair.ours.decode(codes, mask).audio_values, pair.theirs.decode(codes, mask).audio_values)
    assert pair.ours.decode(codes, mask)[0].shape[-1] == audio.shape[-1]


@pytest.mark.parametrize("name", ["tiny", *ODD])
@torch.no_grad()
def test_files_go_both_ways(name: str, tmp_path: Path) -> None:
    """Ours -> theirs -> ours: every tensor to the bit, equal outputs on each side."""
    ours = random_mimi(**CONFIGS[name])
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.MimiModel.from_pretrained(tmp_path / "ours").eval()
    theirs.save_pretrained(tmp_path / "theirs")
    again = MimiModel.from_pretrained(tmp_path / "theirs")
    before, after = ours.state_dict(), again.state_dict()
    assert list(before) == list(after)
    for tensor, name_ in zip(before.values(), after, strict=True):
        assert tensor.dtype == after[name_].dtype
        assert torch.equal(tensor, after[name_]), name_
    audio = noise(1, ours.config.audio_channels, 9 * ours.frame_samples + 1)
    encoded = ours.encode(audio).audio_codes
    assert torch.equal(again.encode(audio).audio_codes, encoded)
    assert torch.equal(again.decode(encoded).audio_values, ours.decode(encoded).audio_values)
    assert_same_codes(ours, audio, encoded, theirs.encode(audio).audio_codes)


@torch.no_grad()
def test_a_model_made_by_transformers_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = transformers.MimiModel(transformers.MimiConfig(**TINY)).eval()
    theirs.save_pretrained(tmp_path)
    ours = MimiModel.from_pretrained(tmp_path)
    codes = torch.randint(0, 64, (2, 4, 12), generator=torch.Generator().manual_seed(0))
    close(ours.decode(codes).audio_values, theirs.decode(codes).audio_values)
    assert ours.config.name_or_path == str(tmp_path)


def test_fresh_weights_are_spread_as_theirs(tmp_path: Path) -> None:
    """Mean and spread of every parameter group, so that a training from scratch starts alike."""
    torch.manual_seed(0)
    ours = MimiModel(MimiConfig(num_filters=16, num_hidden_layers=2))
    theirs = transformers.MimiModel(transformers.MimiConfig(num_filters=16, num_hidden_layers=2))
    theirs.save_pretrained(tmp_path)  # under the names of files, whatever modules it nests its own in
    expected = load_file(tmp_path / "model.safetensors")
    groups: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, value in ours.named_parameters():
        other = expected[name]
        assert value.shape == other.shape
        group = ".".join(part for part in name.split(".") if not part.isdigit()) + str(tuple(value.shape))
        groups.setdefault(group, []).append((value.detach().flatten(), other.detach().flatten()))
    assert len(groups) > 30
    for group, members in groups.items():
        mine, other = (torch.cat([pair[side] for pair in members]) for side in (0, 1))
        if len(mine) == 1:
            continue  # the last convolution's bias: one number has no spread
        tolerance = 6 / len(mine) ** 0.5
        assert mine.std(correction=0).item() == pytest.approx(other.std(correction=0).item(), rel=tolerance, abs=1e-8), group
        assert mine.mean().item() == pytest.approx(other.mean().item(), abs=tolerance * other.std(correction=0).item() + 1e-6)
