"""`phonograph verify`: the comparisons are made, counted and shown, and what should make no difference makes none."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from random_mimi import TINY, noise, random_mimi

from phonograph import MimiModel, audio
from phonograph.errors import AudioError, ConfigError
from phonograph.verify import COMPARISONS, compare_codes, largest_difference, verify

Run = Callable[..., "object"]


@pytest.fixture(scope="module")
def tiny() -> MimiModel:
    return random_mimi(**TINY)


def sounds() -> list[np.ndarray]:
    return [noise(1, 1, samples, samples)[0].numpy() for samples in (999, 100, 1000)]


def test_what_makes_no_difference_and_what_does(tiny: MimiModel) -> None:
    begun: list[str] = []
    before = torch.get_num_threads()
    results = {result.name: result for result in verify(tiny, sounds(), on_begin=begun.append)}
    assert torch.get_num_threads() == before
    assert list(results) == list(COMPARISONS)
    assert list(dict.fromkeys(begun)) == list(COMPARISONS)
    frames = sum(-(-sound.shape[1] // 48) for sound in sounds())
    for name, result in results.items():
        assert (result.codes, result.semantic_codes) == (4 * frames, frames)
        assert result.mismatch == result.different / result.codes
        if name == "bfloat16 | float32":
            assert result.mismatch > 0
            assert result.sample_difference > 1e-4
        else:
            assert (result.different, result.semantic_different) == (0, 0)
            assert result.sample_difference < 1e-4


class Forgetful(MimiModel):
    """In a stream it forgets what came before."""

    def encode(self, audio: torch.Tensor, mask: object, number: int, *state: object, **options: object) -> object:
        return super().encode(audio, mask, number, **{**options, "use_streaming": False})


def test_a_model_that_depends_on_its_chunks_is_found_out(tiny: MimiModel) -> None:
    """A comparison that can't fail would be worth nothing."""
    broken = Forgetful(tiny.config).eval()
    broken.load_state_dict(tiny.state_dict())
    results = {result.name: result for result in verify(broken, sounds())}
    assert results["streaming | one pass"].mismatch > 0.1
    assert results["streaming | one pass"].sample_difference < 1e-4
    assert results["batched | alone"].mismatch == 0


def test_fewer_codebooks_and_other_chunks(tiny: MimiModel) -> None:
    results = list(verify(tiny, sounds(), 2, seed=1))
    assert results[0].codes == 2 * results[0].semantic_codes
    assert results[2].different == 0


def test_counting() -> None:
    ours, theirs = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, 0, 3], [0, 0, 6]])
    assert compare_codes([(ours, theirs), (ours, ours)]) == (12, 3, 6, 1)
    assert largest_difference([(torch.tensor([[1.0, 4]]), torch.tensor([[2.0, 4]])), (ours, ours)]) == 0.25


def test_nothing_to_compare(tiny: MimiModel) -> None:
    with pytest.raises(AudioError, match="expected at least one recording to compare on, got none"):
        list(verify(tiny, []))
    with pytest.raises(ConfigError, match="expected num_quantizers from 1 to 4, got 5"):
        list(verify(tiny, sounds(), 5))


# The command ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(work: Path) -> Path:
    """Two short recordings and a tiny model, in the current folder."""
    random_mimi(**TINY).save_pretrained("tiny")
    Path("clips").mkdir()
    samples = audio.load("speech.wav").samples
    audio.save("clips/a.wav", samples[:, :2400], 24000)
    audio.save("clips/b.wav", samples[:, :1680], 24000)
    return work


def test_a_table(run: Run, short: Path) -> None:
    done = run("verify", "clips", "-m", "tiny")
    assert (done.code, done.err) == (0, "")
    text = done.out.decode()
    assert "tiny, 2 recordings, 0.2 s" in text
    for name, meaning in COMPARISONS.items():
        line = next(line for line in text.splitlines() if name in line)
        assert meaning in line
        assert (re.search(r"[\d.]+%", line)[0] == "0.0000%") == (name != "bfloat16 | float32")


def test_json_and_the_bundled_recordings(run: Run, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phonograph.loading.hub.BUNDLED_SPEECH", short / "clips")
    done = run("verify", "-m", "tiny", "-q", 2, "--seconds", 0.05, "--json", "--quiet").json()
    assert (done["model"], done["files"], done["seconds"]) == ("tiny", 2, 0.1)
    assert [result["name"] for result in done["comparisons"]] == list(COMPARISONS)
    assert done["comparisons"][0]["codes"] == 2 * 2 * 25
    assert done["comparisons"][0]["mismatch"] == 0.0


def test_fail_above(run: Run, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("verify", "clips", "-m", "tiny", "--fail-above", 0).code == 0  # bfloat16 differs, and does not count
    monkeypatch.setattr("phonograph.verify.compare_codes", lambda pairs, semantic: (100, 2, 10, 0))
    assert run("verify", "clips", "-m", "tiny", "--fail-above", 0.01).code == 1
    assert run("verify", "clips", "-m", "tiny", "--fail-above", 0.02).code == 0
    assert run("verify", "clips", "-m", "tiny").code == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("verify missing.wav", "expected a file to read, but missing.wav does not exist"),
        ("verify -", "expected names of files, got - (stdin); save it to a file first"),
        ("verify *.ogg speech.wav", "expected files that match *.ogg, found none"),
        ("verify speech.wav --fail-above nan", "expected --fail-above from 0 to 1, got nan; pass a share"),
        ("verify speech.wav --seconds 0", "expected --seconds above 0, got 0"),
        ("verify speech.wav -q 17", "expected num_quantizers from 1 to 16, got 17"),
        ("verify speech.wav -m nothing", "expected a bundled model, a folder or a hub id"),
    ],
)
def test_refusals(run: Run, line: str, message: str) -> None:
    done = run(*line.split())
    assert (done.code, done.out) == (2, b"")
    assert message in done.err
    assert done.err.count("\n") == 1
