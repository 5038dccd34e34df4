"""docs/command-line.md is true: its examples run, and it names every option that there is."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main
from memorised import CTC, S2T
from random_mimi import TINY, random_mimi
from tiny_arpa import write_arpa

from phonograph import MimiConfig, SpeechTokens
from phonograph.cli.app import app

Run = Callable[..., "object"]

TEXT = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
LINES = [
    line.split("  #")[0].strip()
    for block in re.findall(r"^```bash\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


def section(title: str) -> str:
    """From the heading to the next of the same level."""
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("line", LINES)
def test_examples_run(run: Run, work: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("talks/a.wav", "more/x/b.flac"):
        Path(place).parent.mkdir(parents=True)
        shutil.copy("speech.wav", place)
    Path("tokens").mkdir()
    Path("speech.raw").write_bytes(bytes(40_000))
    SpeechTokens.load("speech.mimi").save("tokens/talk.mimi")
    random_mimi(**TINY).save_pretrained("my-tiny-mimi")
    MimiConfig.from_pretrained("mimi-mini").save_pretrained("my-mimi")
    (work / "my-ctc").symlink_to(CTC)
    (work / "my-s2t").symlink_to(S2T)
    Path("speech.txt").write_text("The various wards")
    write_arpa(work / "4-gram.arpa", ["THE", "VARIOUS", "WARDS"])
    (work / "clips").mkdir()
    shutil.copy("speech.wav", "clips/one.flac")
    monkeypatch.setattr("phonograph.loading.hub.BUNDLED_SPEECH", work / "clips")
    if line == "phonograph encode speech.wav":
        Path("speech.mimi").unlink()
    data = b""
    for part in line.split(" | "):
        assert part.startswith("phonograph ")
        words, _, redirected = part.split(" > ")[0].partition(" < ")
        result = run(*shlex.split(words)[1:], stdin=Path(redirected).read_bytes() if redirected else data)
        assert (result.code, result.err) == (0, "")
        data = result.out
    assert len(data) > 20 or " < " not in line or " -o " in line


def options() -> list[tuple[str, str]]:
    """(section, option) of every command."""
    found = []
    group = typer.main.get_command(app)
    for title, command in group.commands.items():
        for leaf in getattr(command, "commands", {"": command}).values():
            found += [(title, option) for parameter in leaf.params for option in parameter.opts if option.startswith("-")]
    return [pair for pair in found if pair[1] != "--help"]


@pytest.mark.parametrize(("title", "option"), sorted(set(options())))
def test_every_option_is_explained(title: str, option: str) -> None:
    assert re.search(rf"(?<=[ `]){option}(?=[ `])|(?<=[ `]){option}$", section(title), re.MULTILINE)


TITLES = ["encode", "decode", "transcribe", "translate", "align", "info", "demo", "config", "stream", "verify", "bench"]


@pytest.mark.parametrize("title", TITLES)
def test_no_option_is_invented(title: str) -> None:
    known = {option for name, option in options() if name == title}
    assert set(re.findall(r"(?<=[ `])--[a-z][a-z-]*", section(title))) <= known
