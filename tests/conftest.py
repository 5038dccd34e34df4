"""Fixtures for all tests. Nothing here reaches the network."""

import os
from pathlib import Path

import pytest
import torch

from phonograph import MimiModel, audio
from phonograph.loading.hub import BUNDLED_SPEECH

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, and for subprocesses
torch.set_num_threads(1)  # tensors are small and cores shared: threads would mostly wait for one another

CLIPS = sorted(BUNDLED_SPEECH.glob("*.flac"))


@pytest.fixture(scope="session")
def mini() -> MimiModel:
    """The bundled model in float32; read-only."""
    return MimiModel.from_pretrained("mimi-mini")


@pytest.fixture(scope="session")
def speech() -> dict[str, torch.Tensor]:
    """The bundled recordings by name, (1, samples) at 24 kHz."""
    return {path.stem: torch.from_numpy(audio.load(path, sampling_rate=24000, mono=True).samples) for path in CLIPS}


@pytest.fixture(params=CLIPS, ids=lambda path: path.stem)
def clip(request: pytest.FixtureRequest) -> Path:
    """Each bundled recording in turn."""
    path: Path = request.param
    return path
