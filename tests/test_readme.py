"""Every code block of README.md is run, each in a folder of its own with a speech.wav and two models, my-ctc and my-s2t."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from memorised import CTC, S2T

from phonograph import audio
from phonograph.loading.hub import BUNDLED_SPEECH

README = Path(__file__).parent.parent / "README.md"
SET_UP = ("make ", "pip install ", "python -m pip install ", "git clone ", "cd ")
"""Lines that prepare a machine: this one is prepared, and `make test` is what runs these tests."""


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks as (language, contents)."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """The lines of a bash block that do the work, long ones joined, without set-up, prompts and comments."""
    lines = [line.removeprefix("$ ").strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith(("#", *SET_UP))]


def run_block(language: str, block: str, folder: Path) -> None:
    """Run one block; what fails shows what it printed."""
    if language == "text":
        return
    assert language in ("bash", "python"), f"a block tagged {language!r} is neither run nor marked as text:\n{block}"
    if language == "python":
        run([sys.executable, "-W", "error", "-c", block], folder)
        return
    for line in commands(block):
        assert "phonograph" in line, f"a command that this test does not know: {line}"
        run(["bash", "-o", "pipefail", "-c", line], folder)


def run(command: list[str], folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    clip = audio.load(BUNDLED_SPEECH / "ljspeech_LJ002-0045.flac")
    clip.save(tmp_path / "speech.wav")
    (tmp_path / "my-ctc").symlink_to(CTC)
    (tmp_path / "my-s2t").symlink_to(S2T)
    return tmp_path


FOUND = blocks(README.read_text(encoding="utf-8"))


def test_the_readme_has_blocks_of_both_kinds() -> None:
    assert {"bash", "python"} <= {language for language, _ in FOUND}


@pytest.mark.parametrize(("language", "block"), FOUND, ids=[f"block{number}" for number in range(len(FOUND))])
def test_every_block_of_the_readme_runs(folder: Path, language: str, block: str) -> None:
    run_block(language, block, folder)


SAMPLE = """
# A title

```bash
make demo
# a comment
phonograph info \\
    speech.wav
$ phonograph info speech.wav --json | cat > told.json
```

```text
phonograph nonsense
```

```python
from pathlib import Path

assert "24000" not in Path("told.json").read_text()
```
"""


def test_a_sample_runs(folder: Path) -> None:
    found = blocks(SAMPLE)
    assert [language for language, _ in found] == ["bash", "text", "python"]
    assert len(commands(found[0][1])) == 2
    for language, block in found:
        run_block(language, block, folder)


@pytest.mark.parametrize(
    ("language", "block"),
    [
        ("bash", "phonograph nonsense"),
        ("bash", "rm -r /nothing"),
        ("python", "assert False"),
        ("", "x"),
        ("json", "{}"),
        ("bash", "phonograph nonsense | cat"),
    ],
)
def test_a_block_that_does_not_run_is_found(folder: Path, language: str, block: str) -> None:
    with pytest.raises(AssertionError):
        run_block(language, block, folder)
