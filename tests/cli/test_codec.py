"""encode and decode: the same tokens and samples as the library, for files, folders, patterns and pipes."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from memorised import CTC

import phonograph
from phonograph import MimiModel, SpeechTokens, audio

Run = Callable[..., "object"]


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    script = "import sys; from phonograph.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, **options)


def files_below(folder: Path) -> list[str]:
    return sorted(os.path.relpath(path, folder) for path in folder.rglob("*") if path.is_file())


def test_a_sentence_through_the_installed_command(work: Path) -> None:
    encoded = command("encode", "speech.wav", "-o", "tokens/speech.mimi", "--codebooks", "8")
    assert (encoded.returncode, encoded.stdout, encoded.stderr) == (0, "", "")
    told = command("info", "tokens/speech.mimi")
    assert told.returncode == 0
    assert "1000 bit/s" in told.stdout
    assert "1.300 s" in told.stdout
    decoded = command("decode", "tokens/speech.mimi", "-o", "back.wav")
    assert (decoded.returncode, decoded.stdout, decoded.stderr) == (0, "", "")
    expected = phonograph.decode(phonograph.encode("speech.wav", num_quantizers=8))
    assert np.abs(audio.load("back.wav").samples - expected.samples).max() < 1e-3


def test_encode_gives_the_tokens_of_the_library(run: Run) -> None:
    assert run("encode", "speech.wav", "-o", "new.mimi").code == 0
    assert SpeechTokens.load("new.mimi") == phonograph.encode("speech.wav")


def test_decode_gives_the_samples_of_the_library(run: Run) -> None:
    assert run("decode", "speech.mimi", "-o", "back.wav").code == 0
    assert np.abs(audio.load("back.wav").samples - phonograph.decode("speech.mimi").samples).max() <= 1 / 32768


def test_without_output_the_name_is_the_inputs_own(run: Run, work: Path) -> None:
    (work / "else").mkdir()
    shutil.move("speech.wav", "else/talk.v1.wav")
    assert run("encode", "else/talk.v1.wav").code == 0
    assert run("decode", "talk.v1.mimi", "--format", "flac").code == 0
    assert audio.info("talk.v1.flac").num_samples == audio.info("else/talk.v1.wav").num_samples


@pytest.mark.parametrize("name", ["a.mimi", "a.npz", "a.safetensors", "A.NPZ"])
def test_the_suffix_picks_the_token_format(run: Run, name: str) -> None:
    assert run("encode", "speech.wav", "-o", name).code == 0
    assert SpeechTokens.load(name) == SpeechTokens.load("speech.mimi")
    assert run("decode", name, "-o", "a.wav").code == 0


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_the_suffix_picks_the_audio_format(run: Run, suffix: str) -> None:
    assert run("decode", "speech.mimi", "-o", f"back.{suffix}").code == 0
    assert audio.info(f"back.{suffix}").duration_seconds == pytest.approx(1.3, abs=0.1)


def test_format_names_the_files_in_a_folder(run: Run, work: Path) -> None:
    assert run("encode", "speech.wav", "-o", "out/", "--format", "npz").code == 0
    assert run("decode", "out", "-o", "back/", "--format", "flac").code == 0
    assert files_below(work) == ["back/speech.flac", "out/speech.npz", "speech.mimi", "speech.wav"]


def test_pipes(run: Run, work: Path) -> None:
    encoded = run("encode", "-", stdin=(work / "speech.wav").read_bytes())
    assert encoded.code == 0
    assert encoded.out == (work / "speech.mimi").read_bytes()
    decoded = run("decode", "-", stdin=encoded.out)
    assert decoded.code == 0
    assert soundfile.info(io.BytesIO(decoded.out)).frames == audio.info("speech.wav").num_samples
    flac = run("decode", "-", "-o", "-", "--format", "flac", stdin=encoded.out)
    assert soundfile.info(io.BytesIO(flac.out)).format == "FLAC"


def test_stdin_into_a_folder_is_called_stdin(run: Run, work: Path) -> None:
    assert run("encode", "-", "-o", "out/", stdin=(work / "speech.wav").read_bytes()).code == 0
    assert (work / "out/stdin.mimi").is_file()


@pytest.mark.parametrize(
    ("options", "codebooks"),
    [(["-q", "4"], 4), (["-b", "1.1k"], 8), (["--bitrate", "1000"], 8), (["-b", "0.3kbit/s"], 2), (["-b", "9k"], 16)],
)
def test_codebooks_and_bitrate(run: Run, options: list[str], codebooks: int) -> None:
    assert run("encode", "speech.wav", "-o", "a.mimi", *options).code == 0
    assert SpeechTokens.load("a.mimi") == SpeechTokens.load("speech.mimi").truncate(codebooks)


def test_decode_with_fewer_codebooks(run: Run) -> None:
    assert run("decode", "speech.mimi", "-q", "3", "-o", "a.wav").code == 0
    expected = phonograph.decode(SpeechTokens.load("speech.mimi").truncate(3))
    assert np.abs(audio.load("a.wav").samples - expected.samples).max() <= 1 / 32768


def test_a_part_is_that_part_of_the_whole(run: Run) -> None:
    assert run("decode", "speech.mimi", "-o", "part.wav", "--start", "0.333", "--end", "1.1").code == 0
    whole = phonograph.decode("speech.mimi").samples
    part = audio.load("part.wav").samples
    assert part.shape == (1, round(1.1 * 24000) - round(0.333 * 24000))
    assert np.abs(part - whole[:, round(0.333 * 24000) : round(1.1 * 24000)]).max() < 1e-3


def test_a_late_part_of_a_long_recording_is_that_part_of_the_whole() -> None:
    """What lies before the part is longer than the decoder looks back, and is not decoded."""
    clip = audio.load(phonograph.loading.hub.BUNDLED_SPEECH / "librispeech_2033-164914-0000.flac", sampling_rate=24000)
    tokens = phonograph.encode(audio.Audio(np.tile(clip.samples, 7), 24000))
    seconds: list[float] = []
    part = phonograph.decode(tokens, start_seconds=60, end_seconds=61, on_progress=seconds.append)
    whole = phonograph.decode(tokens)
    assert sum(seconds) < 50
    assert np.abs(part.samples - whole.samples[:, 60 * 24000 : 61 * 24000]).max() < 1e-3


def test_folders_keep_their_subfolders(run: Run, work: Path) -> None:
    for place in ("in/a.wav", "in/deep/er/b.WAV", "in/notes.txt", "in/.c.wav", "in/.hidden/d.wav"):
        (work / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("speech.wav", place)
    assert run("encode", "in", "-o", "out").code == 0
    assert files_below(work / "out") == ["a.mimi", "deep/er/b.mimi"]
    assert run("decode", "out", "-o", "back").code == 0
    assert files_below(work / "back") == ["a.wav", "deep/er/b.wav"]


def test_patterns_are_expanded_and_keep_their_subfolders(run: Run, work: Path) -> None:
    for place in ("in/a.wav", "in/x/b.wav", "in/x/c.flac"):
        (work / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("speech.wav", place)
    assert run("encode", "in/**/*.wav", "-o", "out").code == 0
    assert files_below(work / "out") == ["a.mimi", "x/b.mimi"]


def test_files_of_one_name_keep_the_folders_that_tell_them_apart(run: Run, work: Path) -> None:
    for place in ("in/a/x.wav", "in/b/x.wav", "in/c/y.wav"):
        (work / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("speech.wav", place)
    assert run("encode", "in/a/x.wav", "in/b/x.wav", "in/c/y.wav", "in/a/x.wav", "-o", "out").code == 0
    assert files_below(work / "out") == ["a/x.mimi", "b/x.mimi", "y.mimi"]


def test_compiled_steps(run: Run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they compute is tested with the model."""
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(MimiModel, "compile_for", lambda self, *use: asked.append(use))
    for line in ("encode speech.wav -o a.mimi", "decode a.mimi -o a.wav", "stream encode", "stream decode"):
        data = (work / "speech.mimi").read_bytes() if line == "stream decode" else bytes(7680)
        assert run(*line.split(), "--compile", stdin=data).code == 0
    assert asked == [("offline", "encode"), ("offline", "decode"), ("live", "encode"), ("live", "decode")]


def test_one_bad_file_does_not_stop_the_others(run: Run, work: Path) -> None:
    Path("empty.wav").touch()
    result = run("encode", "missing.wav", "speech.wav", "empty.wav", "no*where", "-o", "out", "--json")
    assert result.code == 2
    assert files_below(work / "out") == ["speech.mimi"]
    lines = result.err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)
    assert [file["in"] for file in result.json()["files"]] == ["speech.wav"]
    assert [error["in"] for error in result.json()["errors"]] == [None, "missing.wav", "empty.wav"]


def test_one_file_out_of_range_does_not_stop_its_batch(run: Run, work: Path) -> None:
    soundfile.write("loud.wav", np.full(24000, 1e6, np.float32), 24000, subtype="FLOAT")
    done = run("encode", "speech.wav", "loud.wav", "-o", "out", "--batch-size", 2)
    assert done.code == 2
    assert "loud.wav" in done.err
    assert np.array_equal(SpeechTokens.load("out/speech.mimi").codes, phonograph.encode("speech.wav").codes)
    assert not Path("out/loud.mimi").exists()


def test_a_batch_gives_each_file_what_it_gets_alone(run: Run, work: Path) -> None:
    names = [f"clip{number}.wav" for number in range(4)]
    clip = audio.load("speech.wav")
    for number, name in enumerate(names):
        audio.save(name, clip.samples[:, number * 3000 :], clip.sampling_rate)
    Path("bad.wav").write_text("no audio")
    result = run("encode", *names, "bad.wav", "-o", "out", "--batch-size", "3", "--json")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert [file["in"] for file in result.json()["files"]] == names
    for name in names:
        assert SpeechTokens.load(work / "out" / name.replace("wav", "mimi")) == phonograph.encode(name)


def test_json(run: Run) -> None:
    result = run("encode", "speech.wav", "-o", "a.mimi", "--json")
    [facts] = result.json()["files"]
    assert facts.pop("rtf") > 0
    assert facts == {
        "in": "speech.wav",
        "out": "a.mimi",
        "seconds": 1.3,
        "frames": 17,
        "codebooks": 16,
        "bitrate": 2000.0,
    }
    result = run("decode", "a.mimi", "-o", "a.wav", "--json")
    assert result.json()["errors"] == []
    assert result.json()["files"][0]["seconds"] == 1.3


def test_one_of_many_channels(run: Run) -> None:
    clip = audio.load("speech.wav").samples[0]
    soundfile.write("many.wav", np.stack([0 * clip, clip, 0 * clip], axis=1), 24000)
    assert run("encode", "many.wav", "--channel", "1", "-o", "a.mimi").code == 0
    assert run("encode", "many.wav", "--channel", "1", "-o", "out/", "--batch-size", "2").code == 0
    assert SpeechTokens.load("a.mimi") == SpeechTokens.load("speech.mimi")
    assert SpeechTokens.load("out/many.mimi") == SpeechTokens.load("speech.mimi")


def test_a_model_of_another_kind(run: Run, work: Path) -> None:
    (work / "my-ctc").symlink_to(CTC)
    result = run("encode", "speech.wav", "-m", "my-ctc", "-o", "a.mimi")
    told = "error: expected a Mimi codec, got my-ctc, which is wav2vec2; pass another model\n"
    assert (result.code, result.out, result.err) == (2, b"", told)


def test_samples_far_from_full_scale(run: Run) -> None:
    audio.save("loud.wav", audio.load("speech.wav").samples * 32768, 24000, subtype="FLOAT")
    result = run("encode", "loud.wav", "speech.wav", "-o", "out")
    assert result.code == 2
    assert result.err.startswith("error: loud.wav: expected samples in [-1, 1], got a peak of ")
    assert Path("out/speech.mimi").exists()


def test_overwrite(run: Run, work: Path) -> None:
    Path("a.mimi").write_text("old")
    assert run("encode", "speech.wav", "-o", "a.mimi", "--overwrite").code == 0
    assert SpeechTokens.load("a.mimi") == SpeechTokens.load("speech.mimi")


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "auto"])
def test_other_types(run: Run, dtype: str) -> None:
    assert run("encode", "speech.wav", "-o", "a.mimi", "--dtype", dtype, "--threads", "1").code == 0
    assert SpeechTokens.load("a.mimi").num_frames == 17
    assert run("decode", "a.mimi", "-o", "a.wav", "--dtype", dtype).code == 0


def test_the_prefix_of_a_damaged_file(run: Run, work: Path) -> None:
    tokens = phonograph.encode(np.tile(audio.load("speech.wav").samples, 5))
    tokens.save("long.mimi")
    data = bytearray(Path("long.mimi").read_bytes())
    data[-300] ^= 1
    Path("long.mimi").write_bytes(data)
    assert run("decode", "long.mimi", "-o", "a.wav").code == 2
    assert run("decode", "long.mimi", "-o", "a.wav", "--on-damage", "prefix").code == 0
    assert audio.info("a.wav").num_samples == 64 * 1920
