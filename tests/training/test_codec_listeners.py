"""Who writes down what is said: each kind of model, on clips that it knows by heart, and what it refuses."""

import re
import sys
from pathlib import Path

import memorised
import numpy as np
import peers
import pytest

from phonograph import MimiModel, audio
from phonograph.audio import Audio
from phonograph.errors import CheckpointError, MissingExtraError
from phonograph.loading.hub import BUNDLED_SPEECH
from phonograph.training.codec.judging import CodecJudge
from phonograph.training.codec.listeners import load_listener

WHISPER = f"whisper:{Path(memorised.__file__).parent / 'memorised_whisper'}"
SAID = [sentence.english for sentence in memorised.SENTENCES.values()]
CLIPS = [audio.load(BUNDLED_SPEECH / f"{name}.flac", sampling_rate=24000, mono=True) for name in memorised.SENTENCES]
SILENCE = Audio(np.zeros((1, 24000), np.float32), 24000)
BROKEN = Audio(np.full((1, 24000), np.nan, np.float32), 24000)
SHORT = Audio(CLIPS[0].samples[:, :24], 24000)


@pytest.mark.parametrize("model", [str(memorised.CTC), str(memorised.S2T), WHISPER], ids=["ctc", "s2t", "whisper"])
def test_what_is_said_is_written_down(model: str) -> None:
    """At another rate than the model's, among clips in which nothing can be heard."""
    if model == WHISPER:
        peers.peer("faster_whisper")
    listener = load_listener(model)
    assert listener.name == model
    heard = listener.texts([SILENCE, CLIPS[0], BROKEN, SHORT, CLIPS[4]])
    assert [text.lower() for text in heard] == ["", SAID[0], "", "", SAID[4]]
    assert listener.texts([SILENCE]) == [""]


def test_whisper_judges_a_codec(mini: MimiModel) -> None:
    """By a transcript of something else, so that there are errors to be counted."""
    peers.peer("faster_whisper")
    jiwer = peers.peer("jiwer")
    listener = load_listener(WHISPER)
    judge = CodecJudge(mini, [16], listener=listener)
    recordings = judge.add(CLIPS[0], SAID[1])
    figures = judge.figures()
    assert figures["original/WER"] == jiwer.wer(SAID[1], SAID[0]) > 0
    assert figures["16 codebooks/WER"] == jiwer.wer(SAID[1], listener.texts([recordings["16 codebooks"]])[0])
    assert judge.coverage()["WER"].endswith(f"heard by {WHISPER}")


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        load_listener(str(tmp_path / "nowhere"))
    peers.peer("faster_whisper")
    for model, why in {"colossal": "Invalid model size", str(tmp_path): "name a size such as base.en, or a folder"}.items():
        message = f"expected a Whisper that faster-whisper loads, got {re.escape(model)} .*{why}"
        with pytest.raises(CheckpointError, match=message):
            load_listener(f"whisper:{model}")
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(MissingExtraError, match=r"Whisper needs the package faster-whisper,.*'phonograph\[whisper\]'"):
        load_listener(WHISPER)
