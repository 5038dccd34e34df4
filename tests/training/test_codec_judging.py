"""The judge of codecs: its figures are those of the public calls and of jiwer, and it says what it left out."""

import sys
from pathlib import Path

import memorised
import numpy as np
import peers
import pytest

import phonograph
from phonograph import MimiModel, api, audio
from phonograph.audio import Audio
from phonograph.audio.quality import MEASURES, measure
from phonograph.errors import AudioError, ConfigError
from phonograph.loading.hub import BUNDLED_SPEECH
from phonograph.training.codec.judging import CodecJudge
from phonograph.training.codec.listeners import RecognizerListener, load_listener
from phonograph.training.transcripts import Spelling

NUMBERS = (16, 4)
SAID = {name: sentence.english for name, sentence in list(memorised.SENTENCES.items())[:3]}
SAID_BY_LJ = memorised.SENTENCES["ljspeech_LJ002-0045"].english


def original(name: str) -> Audio:
    return audio.load(BUNDLED_SPEECH / f"{name}.flac", sampling_rate=24000, mono=True)


@pytest.mark.parametrize("folder", [memorised.CTC, memorised.S2T], ids=lambda path: path.name)
def test_words_are_those_that_transcribe_finds(mini: MimiModel, folder: Path) -> None:
    """Each text of `transcribe` on what `decode` gives, compared by jiwer; the original has no error."""
    jiwer = peers.peer("jiwer")
    recognizer = api.load_recognizer(folder)
    judge = CodecJudge(mini, NUMBERS, listener=RecognizerListener(recognizer))
    heard: dict[int, list[str]] = {number: [] for number in NUMBERS}
    for name, text in SAID.items():
        judge.add(original(name), text.capitalize() + ".")
        tokens = phonograph.encode(original(name), mini)
        for number in NUMBERS:
            made = phonograph.decode(tokens.truncate(number), mini)
            clipped = Audio(made.samples.clip(-1, 1), made.sampling_rate)
            heard[number].append(phonograph.transcribe(clipped, recognizer).text.lower())
    judge.add(original("kerstin_de_de_rhasspy-0019"))
    figures = judge.figures()
    assert figures["original/WER"] == 0
    for number in NUMBERS:
        expected = jiwer.wer(list(SAID.values()), heard[number])
        assert expected > 0
        assert figures[f"{number} codebooks/WER"] == figures[f"{number} codebooks/WER above original"] == expected
    assert judge.coverage()["WER"] == f"3 of 4 recordings, those with transcripts; heard by {folder}"


def test_sounds_are_those_of_measure(mini: MimiModel) -> None:
    peers.peer("pystoi")
    peers.peer("pesq")
    judge = CodecJudge(mini, NUMBERS)
    qualities = []
    for name in SAID:
        recordings = judge.add(original(name))
        assert list(recordings) == ["original", "16 codebooks", "4 codebooks"]
        qualities.append(measure(recordings["original"], recordings["4 codebooks"]).figures)
    figures = judge.figures()
    assert list(figures) == [f"{number} codebooks/{name}" for number in NUMBERS for name in MEASURES]
    for name in MEASURES:
        assert figures[f"4 codebooks/{name}"] == np.mean([quality[name] for quality in qualities])
    assert judge.coverage() == dict.fromkeys(MEASURES, "3 of 3 recordings")


def test_all_codebooks_unless_told(mini: MimiModel) -> None:
    assert list(CodecJudge(mini).add(original("ljspeech_LJ002-0045"))) == ["original", "16 codebooks"]


def test_what_cannot_be_measured_is_told(mini: MimiModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pesq", None)
    judge = CodecJudge(mini, listener=load_listener(str(memorised.CTC)))
    clip = original("ljspeech_LJ002-0045")
    judge.add(Audio(clip.samples[:, :2400], 24000), "")
    judge.add(clip, "...")
    assert set(judge.figures()) == {"16 codebooks/mel distance", "16 codebooks/STOI"}
    coverage = judge.coverage()
    assert coverage["mel distance"] == "2 of 2 recordings"
    assert coverage["STOI"].startswith("1 of 2 recordings; expected at least 0.4 s of speech to measure STOI on")
    assert coverage["PESQ"].startswith("0 of 2 recordings; PESQ needs the package pesq, which is not installed")
    assert coverage["WER"].startswith("0 of 2 recordings")


def test_a_reconstruction_without_sound_has_no_words(mini: MimiModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(self: CodecJudge, speech: Audio) -> dict[str, Audio]:
        return {"original": speech, "16 codebooks": Audio(np.zeros_like(speech.samples), 24000)}

    monkeypatch.setattr(CodecJudge, "_at_all_bitrates", silent)
    judge = CodecJudge(mini, listener=load_listener(str(memorised.CTC)))
    judge.add(original("ljspeech_LJ002-0045"), SAID_BY_LJ)
    figures = judge.figures()
    assert (figures["original/WER"], figures["16 codebooks/WER"]) == (0, 1)


def test_the_spelling_is_the_caller_s(mini: MimiModel) -> None:
    """The model writes upper case: read as it is, no word of a lower-case transcript is right."""
    judge = CodecJudge(mini, listener=load_listener(str(memorised.CTC)), spelling=Spelling(case="as_is"))
    judge.add(original("ljspeech_LJ002-0045"), SAID_BY_LJ)
    assert judge.figures()["original/WER"] == 1


def test_refusals(mini: MimiModel) -> None:
    with pytest.raises(ConfigError, match="expected num_quantizers from 1 to 16, got 17"):
        CodecJudge(mini, [17])
    judge = CodecJudge(mini)
    with pytest.raises(AudioError, match=r"expected mono audio at 24000 Hz, got 1 channels at 16000 Hz; convert it with"):
        judge.add(Audio(np.zeros((1, 16000), np.float32), 16000))
    with pytest.raises(AudioError, match="got 2 channels at 24000 Hz"):
        judge.add(Audio(np.zeros((2, 24000), np.float32), 24000))
