"""info and models: what is in a file, and which models there are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

import phonograph
from phonograph import SpeechTokens, audio

Run = Callable[..., "object"]


def test_a_token_file(run: Run) -> None:
    result = run("info", "speech.mimi", "--json")
    [facts] = result.json()["files"]
    tokens = SpeechTokens.load("speech.mimi")
    assert facts == {
        "file": "speech.mimi",
        "kind": "tokens",
        "model": "mimi-mini",
        "weights_hash": tokens.weights_hash,
        "sampling_rate": 24000,
        "frame_rate": 12.5,
        "frame_samples": 1920,
        "codebooks": 16,
        "codebook_size": 1024,
        "bitrate": 2000.0,
        "frames": 17,
        "samples": 31200,
        "seconds": 1.3,
        "size_bytes": Path("speech.mimi").stat().st_size,
        "blocks": 1,
        "finished": True,
        "damage": [],
    }
    shown = run("info", "speech.mimi").out.decode()
    for text in ("mimi-mini", "24000 Hz", "12.5 Hz", "2000 bit/s", "1.300 s", "none"):
        assert text in shown


def test_other_token_formats(run: Run) -> None:
    for name in ("a.npz", "a.safetensors"):
        SpeechTokens.load("speech.mimi").save(name)
        assert run("info", name, "--json").json()["files"][0]["frames"] == 17


def test_every_damaged_place_is_listed(run: Run) -> None:
    phonograph.encode(np.tile(audio.load("speech.wav").samples, 15)).save("long.mimi")
    data = bytearray(Path("long.mimi").read_bytes())
    for place in (300, 4000):
        data[place] ^= 1
    Path("long.mimi").write_bytes(data)
    result = run("info", "long.mimi", "--json")
    assert result.code == 0
    assert len(result.json()["files"][0]["damage"]) == 2
    assert "frames 0 to 63 are lost" in run("info", "long.mimi").out.decode()


def test_an_audio_file_of_any_number_of_channels(run: Run) -> None:
    soundfile.write("eight.wav", np.zeros((48000, 8)), 48000)
    facts = run("info", "eight.wav", "--json").json()["files"][0]
    assert facts["kind"] == "audio"
    assert (facts["sampling_rate"], facts["channels"], facts["seconds"]) == (48000, 8, 1.0)
    assert "48000 Hz" in run("info", "eight.wav").out.decode()


def test_a_bad_file_among_others(run: Run) -> None:
    result = run("info", "speech.wav", "missing.wav", "*.ogg", "--json")
    assert result.code == 2
    assert len(result.err.splitlines()) == 2
    assert [file["file"] for file in result.json()["files"]] == ["speech.wav"]
    assert [error["file"] for error in result.json()["errors"]] == [None, "missing.wav"]


def test_a_folder(run: Run) -> None:
    assert [file["file"] for file in run("info", ".", "--json").json()["files"]] == ["./speech.mimi", "./speech.wav"]


def test_models(run: Run) -> None:
    [facts] = [model for model in run("models", "--json").json()["models"] if model["name"] == "mimi-mini"]
    assert 30e6 < facts.pop("size_bytes") < 40e6
    assert facts == {
        "name": "mimi-mini",
        "sampling_rate": 24000,
        "frame_rate": 12.5,
        "codebooks": 16,
        "bitrate": 2000.0,
        "licence": "cc-by-4.0",
    }
    shown = run("models").out.decode()
    assert "cc-by-4.0" in shown
    assert "owner/name, such as kyutai/mimi" in shown
