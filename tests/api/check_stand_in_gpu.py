"""One call each on a stand-in for a GPU: the same words and codes as on a CPU, with one copy each way for a batch."""

import memorised
import numpy as np
import pytest
from memorised import CTC, S2T, SENTENCES
from random_mimi import TINY, random_mimi
from stand_in_gpu import StandInGpu

import phonograph
from phonograph import Audio
from phonograph.api import load_recognizer
from phonograph.nn.packed import reference_path


@pytest.fixture
def gpu():
    with StandInGpu() as device:
        yield device


def spoken():
    return [Audio(clip.samples[None], memorised.RATE) for clip in memorised.clips()]


def test_ctc_recognises_a_batch_with_one_copy_back(gpu):
    recognizer = load_recognizer(CTC)
    gpu.move(recognizer.model)
    gpu.forget()
    texts = [transcript.text for transcript in recognizer.recognize(spoken(), None)]
    assert texts == [sentence.english.upper() for sentence in SENTENCES.values()]
    assert gpu.kinds == {"upload": 2, "read": 1}  # samples, their mask, and what was heard


def test_ctc_recognises_a_long_recording_by_parts(gpu):
    recognizer = load_recognizer(CTC)
    clip = spoken()[0]
    expected = recognizer.recognize([clip], None)[0].text
    gpu.move(recognizer.model)
    found = recognizer.recognize_long(lambda: iter([clip]), None, 2, lambda seconds: None)
    assert found.text == expected


def test_seq2seq_recognises_a_batch(gpu):
    recognizer = load_recognizer(S2T)
    gpu.move(recognizer.model)
    gpu.forget()
    texts = [transcript.text for transcript in recognizer.recognize(spoken()[:2], None)]
    assert texts == [sentence.english for sentence in SENTENCES.values()][:2]
    gpu.forget()
    recognizer.recognize(spoken()[:1], None)
    assert "generate_hypotheses" not in {wait.where.split()[-1] for wait in gpu.waits}  # one clip has no padding


def test_codec_encodes_and_decodes(gpu):
    model = random_mimi(**TINY)
    clips = [np.random.default_rng(0).standard_normal(size).astype(np.float32) for size in (1000, 333)]
    with reference_path():
        expected = phonograph.encode(clips, model, batch_size=2)
        audio = phonograph.decode(expected[0], model)
    gpu.move(model)
    for found in (phonograph.encode(clips, model, batch_size=2), phonograph.encode(clips, model)):
        assert [np.array_equal(one.codes, other.codes) for one, other in zip(found, expected, strict=True)] == [True, True]
    np.testing.assert_allclose(phonograph.decode(expected[0], model).samples, audio.samples, rtol=1e-4, atol=1e-5)
