"""Mimi beside the moshi package, whose tensors have other names and another order, and rustymimi, which reads the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peers import peer
from random_mimi import assert_close, assert_same_codes, noise
from safetensors.torch import save_file
from torch import Tensor

from phonograph import MimiConfig, MimiModel
from phonograph.errors import CheckpointError

loaders = peer("moshi.models.loaders")
FRAME = 1920
RUSTYMIMI_NAMES = {"in_projs.0.weight": "in_proj_weight", "out_projs.0.weight": "out_proj.weight"}


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as older checkpoints, and rustymimi, have them."""
    result = {}
    for name, tensor in state.items():
        for old, new in RUSTYMIMI_NAMES.items():
            name = name.replace(old, new)
        result[name] = tensor
    return result


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Moshi's Mimi at full size; weights in which every part matters."""
    torch.manual_seed(0)
    model = loaders.get_mimi(None).eval()
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    for name, value in state.items():
        if ".layer_scale_" in name:
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
        elif value.dim() == 3:
            value.mul_(6**0.5)  # so that signals keep their size from layer to layer
        elif value.dim() == 1 and name.endswith((".weight", ".bias")):
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
        elif name.endswith(".cluster_usage"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif name.endswith(".embedding_sum"):
            depth = int(name.split(".layers.")[1].split(".")[0])
            value.copy_(0.2 * 0.9**depth * torch.randn(value.shape, generator=generator))
        elif name.endswith("._initialized"):
            value.fill_(1)
    model.load_state_dict(state)
    model.set_num_codebooks(32)
    return model


@pytest.fixture(scope="module")
def files(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("moshi")
    state = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    paths = {name: folder / name / "tokenizer.safetensors" for name in ("present", "older")}
    for path, tensors in zip(paths.values(), (state, renamed(state)), strict=True):
        path.parent.mkdir()
        save_file(tensors, path)
    return paths


@pytest.fixture(scope="module")
def ours(files: dict[str, Path]) -> MimiModel:
    return MimiModel.from_pretrained(files["present"])


def close(ours: Tensor, theirs: Tensor) -> None:
    assert_close(ours, theirs, tolerance=1e-4)


@torch.no_grad()
def test_both_names_load_from_the_file_and_from_its_folder(ours: MimiModel, files: dict[str, Path]) -> None:
    expected = ours.state_dict()
    for place in (files["present"].parent, files["older"], files["older"].parent):
        loaded = MimiModel.from_pretrained(place)
        assert loaded.config == MimiConfig(name_or_path=str(place))
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("samples", [FRAME, 5 * FRAME, 20 * FRAME])
@torch.no_grad()
def test_codes_and_audio(ours: MimiModel, theirs: Any, samples: int) -> None:
    audio = noise(2, 1, samples, seed=samples)
    codes = theirs.encode(audio)
    assert codes.unique().numel() > 32
    equal = assert_same_codes(ours, audio, ours.encode(audio).audio_codes, codes)
    assert equal >= 0.999 * codes.numel()
    close(ours.encode_latents(audio), theirs.encode_to_latent(audio, quantize=False).transpose(1, 2))
    close(ours.decode(codes).audio_values, theirs.decode(codes))


@torch.no_grad()
def test_the_end_of_a_window(ours: MimiModel, theirs: Any) -> None:
    """Beyond 250 steps; latents, since the peer takes its time for codes."""
    codes = torch.randint(0, 2048, (1, 2, 140), generator=torch.Generator().manual_seed(0))
    close(ours.decode(codes).audio_values, theirs.decode(codes))


@pytest.mark.parametrize("samples", [1, 1000, FRAME + 1, 5 * FRAME - 1])
@torch.no_grad()
def test_parts_of_a_frame(ours: MimiModel, theirs: Any, samples: int) -> None:
    """Moshi pads the waveform by zeros to whole frames; so ours given whole frames agrees, and only the last one may not
    when each layer pads its own input, as transformers does."""
    audio = noise(2, 1, samples, seed=samples)
    codes = theirs.encode(audio)
    filled = F.pad(audio, (0, -samples % FRAME))
    assert_same_codes(ours, filled, ours.encode(filled).audio_codes, codes)
    unfilled = ours.encode(audio).audio_codes
    assert unfilled.shape == codes.shape
    assert torch.equal(unfilled[..., :-1], codes[..., :-1])


@torch.no_grad()
def test_fewer_codebooks(ours: MimiModel, theirs: Any) -> None:
    audio = noise(1, 1, 4 * FRAME)
    theirs.set_num_codebooks(8)
    try:
        codes = theirs.encode(audio)
    finally:
        theirs.set_num_codebooks(32)
    assert_same_codes(ours, audio, ours.encode(audio, num_quantizers=8).audio_codes, codes)
    close(ours.decode(codes).audio_values, theirs.decode(codes))


@torch.no_grad()
def test_rustymimi(ours: MimiModel, files: dict[str, Path]) -> None:
    tokenizer = peer("rustymimi").Tokenizer(str(files["older"]), num_codebooks=32)
    audio = noise(1, 1, 6 * FRAME)
    codes = torch.from_numpy(np.asarray(tokenizer.encode(audio.numpy())).astype(np.int64))
    assert_same_codes(ours, audio, ours.encode(audio).audio_codes, codes)
    decoded = torch.from_numpy(np.asarray(tokenizer.decode(codes.numpy().astype(np.uint32))))
    close(ours.decode(codes).audio_values, decoded)


def test_refuses_a_file_with_other_tensors(files: dict[str, Path], tmp_path: Path) -> None:
    save_file({"encoder.model.0.conv.conv.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"missing .*1 of another shape \(encoder\.model\.0\.conv\.conv\.weight"):
        MimiModel.from_pretrained(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"expected a file config\.json in .*found none"):
        MimiModel.from_pretrained(tmp_path)
