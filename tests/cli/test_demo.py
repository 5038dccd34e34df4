"""The demo, once in full: its files, its table and its picture; and without what is optional."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import peers
import pytest

from phonograph import SpeechTokens, audio
from phonograph.loading.hub import BUNDLED_SPEECH

Run = Callable[..., "object"]


def test_the_demo(run: Run, work: Path) -> None:
    peers.peer("pesq")
    result = run("demo", "--json")
    assert (result.code, result.err) == (0, "")
    trials = json.loads(result.out)["trials"]
    names = {path.stem for path in BUNDLED_SPEECH.glob("*.flac")}
    assert {(trial["clip"], trial["codebooks"]) for trial in trials} == {(name, n) for name in names for n in (4, 8, 16)}
    assert {trial["bitrate"] for trial in trials} == {500.0, 1000.0, 2000.0}
    assert all(trial["encode_rtf"] > 0 and trial["decode_rtf"] > 0 for trial in trials)
    assert all(0.7 < trial["stoi"] < 0.9 and 3 < trial["mel_distance_db"] < 9 for trial in trials)
    assert all(1 < trial["pesq"] < 1.5 for trial in trials)
    written = {path.name for path in (work / "demo-output").iterdir()}
    assert written == {"demo.png"} | {
        f"{name}.{kind}" for name in names for kind in ("mimi", "original.wav", *(f"{n}-codebooks.wav" for n in (4, 8, 16)))
    }
    picture = (work / "demo-output/demo.png").read_bytes()
    width, height = (int.from_bytes(picture[start : start + 4], "big") for start in (16, 20))
    assert picture.startswith(b"\x89PNG")
    assert width == 1200
    assert height > 1000
    for name in names:
        length = audio.info(work / "demo-output" / f"{name}.original.wav").num_samples
        assert audio.info(work / "demo-output" / f"{name}.4-codebooks.wav").num_samples == length
        assert SpeechTokens.load(work / "demo-output" / f"{name}.mimi").num_samples == length


@pytest.mark.parametrize("missing", [("pystoi",), ("matplotlib",), ("pystoi", "matplotlib")])
def test_the_demo_without_its_extra(
    run: Run, work: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("speech")
    (folder / "one.wav").write_bytes((work / "speech.wav").read_bytes())
    audio.load(folder / "one.wav").save(folder / "one.flac")
    monkeypatch.setattr("phonograph.loading.hub.BUNDLED_SPEECH", folder)
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    result = run("demo", "-o", "out")
    assert result.code == 0
    lacking = "packages pystoi and matplotlib, which are" if len(missing) > 1 else f"package {missing[0]}, which is"
    command = "pip install 'phonograph[demo]'"
    assert result.err == f"a part of the demo needs the {lacking} not installed; run: {command}\n"
    assert (work / "out/demo.png").exists() == ("matplotlib" not in missing)
    table = result.out.decode()
    assert "2 kbit/s" in table
    assert ("STOI, 4 codebooks" in table) == ("pystoi" not in missing)


def test_the_demo_says_that_it_measured_no_pesq(run: Run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "clips").mkdir()
    audio.load("speech.wav").save("clips/one.flac")
    monkeypatch.setattr("phonograph.loading.hub.BUNDLED_SPEECH", work / "clips")
    monkeypatch.setitem(sys.modules, "pesq", None)
    result = run("demo")
    assert (result.code, result.err) == (0, "")
    told = "PESQ needs the package pesq, which is not installed; run: pip install 'phonograph[pesq]'\n"
    assert result.out.decode().count(told) == 1


def test_the_demo_can_be_run_again(run: Run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "clips").mkdir()
    audio.load("speech.wav").save("clips/one.flac")
    monkeypatch.setattr("phonograph.loading.hub.BUNDLED_SPEECH", work / "clips")
    assert run("demo").code == 0
    assert run("demo").code == 0
