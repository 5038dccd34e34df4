"""transcribe, translate and align: whole sentences, batches, windows, languages, decoding, and refusals.

The models know the bundled clips by heart; see tests/oracles/memorised.py.
"""

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import memorised
import numpy as np
import pytest
import torch
from memorised import CTC, RATE, S2T, SENTENCES, Clip, joined
from peers import peer
from random_speech_to_text import TINY as TINY_S2T
from random_speech_to_text import random_speech_to_text
from random_wav2vec2 import STABLE, TINY, random_wav2vec2
from safetensors.torch import save_file
from tiny_arpa import write_arpa
from tiny_tokenizers import MULTILINGUAL, letters_folder, pieces_folder

import phonograph
from phonograph import Audio, Wav2Vec2FeatureExtractor, audio
from phonograph.api import load_recognizer
from phonograph.api.ctc import CTCRecognizer, Levels
from phonograph.api.seq2seq import Seq2SeqRecognizer
from phonograph.api.windows import WindowPlan
from phonograph.decoding.ctc import BeamOptions
from phonograph.errors import AudioError, CheckpointError, ConfigError
from phonograph.loading.hub import BUNDLED_SPEECH

NAMES = list(SENTENCES)
FILES = [BUNDLED_SPEECH / f"{name}.flac" for name in NAMES]
ENGLISH = [sentence.english for sentence in SENTENCES.values()]
GERMAN = [sentence.german for sentence in SENTENCES.values()]
UPPER = [text.upper() for text in ENGLISH]
NOISE = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)


@pytest.fixture(scope="module")
def ctc() -> CTCRecognizer:
    recognizer = load_recognizer(CTC)
    assert isinstance(recognizer, CTCRecognizer)
    return recognizer


@pytest.fixture(scope="module")
def s2t() -> Seq2SeqRecognizer:
    recognizer = load_recognizer(S2T)
    assert isinstance(recognizer, Seq2SeqRecognizer)
    return recognizer


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return memorised.clips()


def shorten(recognizer: Any, monkeypatch: pytest.MonkeyPatch, core: float, context: float) -> None:
    """Windows of so many seconds, for recordings longer than that."""
    plan = WindowPlan.in_seconds(RATE, recognizer._plan.step_samples, core=core, search=core / 3, context=context)
    monkeypatch.setattr(recognizer, "_plan", plan)
    monkeypatch.setattr(recognizer, "one_pass_seconds", core)


class TestTranscribeByCTC:
    @pytest.mark.parametrize("place", range(5), ids=NAMES)
    def test_whole_sentences(self, ctc: CTCRecognizer, place: int) -> None:
        found = phonograph.transcribe(FILES[place], ctc)
        assert found.text == UPPER[place]
        assert " ".join(word.text for word in found.words) == found.text
        assert " ".join(segment.text for segment in found.segments) == found.text
        assert found.duration_seconds == pytest.approx(audio.info(FILES[place]).duration_seconds, abs=1e-3)
        times = [time for word in found.words for time in (word.start_seconds, word.end_seconds)]
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] <= found.duration_seconds
        assert all(0.3 < word.confidence <= 1 and word.characters == () for word in found.words)
        assert (found.language, found.alternatives) == (None, ())

    def test_path_audio_and_array_are_one(self, ctc: CTCRecognizer, clips: list[Clip]) -> None:
        found = phonograph.transcribe(FILES[0], ctc)
        samples = clips[0].samples
        assert found == phonograph.transcribe(str(FILES[0]), ctc)
        assert found == phonograph.transcribe(Audio(samples, RATE), ctc)
        assert found == phonograph.transcribe(samples, ctc)
        assert found == phonograph.transcribe(np.stack([samples, samples]), ctc, sampling_rate=RATE)
        assert found == phonograph.transcribe(torch.from_numpy(samples), ctc)
        assert [found] == phonograph.transcribe([torch.from_numpy(samples).double().requires_grad_()], ctc)
        aligned = phonograph.align(torch.from_numpy(samples), ENGLISH[0], ctc)
        assert aligned == phonograph.align(FILES[0], ENGLISH[0], ctc)
        slower = Audio(samples, RATE).resample(44100)
        again = phonograph.transcribe(slower.samples, ctc, sampling_rate=44100)
        assert again.text == found.text

    def test_one_channel_of_a_file(self, ctc: CTCRecognizer, clips: list[Clip], tmp_path: Path) -> None:
        import soundfile

        samples = clips[4].samples
        soundfile.write(tmp_path / "x.wav", np.stack([0 * samples, 0 * samples, samples], axis=1), RATE)
        assert phonograph.transcribe(tmp_path / "x.wav", ctc, channel=2).text == UPPER[4]
        with pytest.raises(AudioError, match=r"x.wav: expected speech, got digital silence; check .* pass channel="):
            phonograph.transcribe(tmp_path / "x.wav", ctc, channel=0)
        with pytest.raises(AudioError, match=r"expected 1 or 2 channels, got 3 in .*x\.wav; pass channel=0 to 2"):
            phonograph.transcribe(tmp_path / "x.wav", ctc)

    @pytest.mark.parametrize("most_padding", [0.0, 0.9])
    @pytest.mark.parametrize("batch_size", [1, 3, 8])
    def test_a_batch_changes_nothing(
        self, ctc: CTCRecognizer, monkeypatch: pytest.MonkeyPatch, batch_size: int, most_padding: float
    ) -> None:
        alone = [phonograph.transcribe(file, ctc) for file in FILES]
        monkeypatch.setattr(ctc, "most_padding", most_padding)
        together = phonograph.transcribe(FILES, ctc, batch_size=batch_size)
        assert [found.text for found in together] == UPPER
        for one, other in zip(alone, together, strict=True):
            for word, same in zip(one.words, other.words, strict=True):
                assert (word.text, word.start_seconds, word.end_seconds) == (same.text, same.start_seconds, same.end_seconds)
                assert word.confidence == pytest.approx(same.confidence, abs=1e-4)

    def test_logits_of_a_ragged_batch(self, ctc: CTCRecognizer, clips: list[Clip]) -> None:
        items = [Audio(clip.samples[: 9000 + 7001 * place], RATE) for place, clip in enumerate(clips)]
        for item, together in zip(items, ctc.log_probs(items), strict=True):
            [alone] = ctc.log_probs([item])
            assert together.shape == alone.shape
            torch.testing.assert_close(together, alone, atol=2e-4, rtol=0)

    def test_the_scale_is_the_feature_extractors(self, clips: list[Clip]) -> None:
        samples = clips[0].samples
        [expected] = Wav2Vec2FeatureExtractor()(samples, sampling_rate=RATE).input_values
        parts = [Audio(part, RATE) for part in np.array_split(samples, 7)]
        levels = Levels()
        assert sum(part.shape[1] for part in levels.watched(parts)) == len(samples)
        np.testing.assert_allclose(levels.scaling.apply(samples), expected, atol=1e-5)

    def test_characters(self, ctc: CTCRecognizer) -> None:
        plain = phonograph.transcribe(FILES[0], ctc, timestamps="word")
        found = phonograph.transcribe(FILES[0], ctc, timestamps="char")
        for word, same in zip(found.words, plain.words, strict=True):
            assert "".join(character.text for character in word.characters) == word.text
            assert word.characters[0].start_seconds == same.start_seconds
            assert word.characters[-1].end_seconds == same.end_seconds
            assert same.characters == ()

    def test_the_text_is_transformers(self, ctc: CTCRecognizer, clips: list[Clip]) -> None:
        transformers = peer("transformers")
        processor = transformers.Wav2Vec2Processor.from_pretrained(CTC)
        model = transformers.Wav2Vec2ForCTC.from_pretrained(CTC, dtype=torch.float32).eval()
        for clip, file in zip(clips, FILES, strict=True):
            inputs = processor(clip.samples, sampling_rate=RATE, return_tensors="pt")
            with torch.no_grad():
                logits = model(**inputs).logits
            assert processor.batch_decode(logits.argmax(-1)) == [phonograph.transcribe(file, ctc).text]
            [ours] = ctc.log_probs([Audio(clip.samples, RATE)])
            torch.testing.assert_close(ours, logits[0].log_softmax(-1), atol=1e-3, rtol=0)

    def test_the_whole_is_bfloat16s(self) -> None:
        recognizer = load_recognizer(CTC, dtype="bfloat16")
        assert recognizer.model.dtype == torch.bfloat16
        assert [found.text for found in phonograph.transcribe(FILES, recognizer)] == UPPER

    def test_a_name_and_what_it_loads_are_one(self, ctc: CTCRecognizer) -> None:
        assert phonograph.transcribe(FILES[0], str(CTC)) == phonograph.transcribe(FILES[0], ctc)
        assert load_recognizer(CTC) is load_recognizer(str(CTC))
        assert load_recognizer(ctc) is ctc


class TestDecodingByCTC:
    def test_a_beam_search_agrees(self, ctc: CTCRecognizer) -> None:
        found = phonograph.transcribe(FILES, ctc, decoding=BeamOptions(beam_width=8))
        assert [transcript.text for transcript in found] == UPPER
        for transcript, greedy in zip(found, phonograph.transcribe(FILES, ctc), strict=True):
            assert transcript.alternatives == ()
            for word, same in zip(transcript.words, greedy.words, strict=True):
                assert word.start_seconds == pytest.approx(same.start_seconds, abs=0.06)

    def test_alternatives(self, ctc: CTCRecognizer) -> None:
        wide = BeamOptions(num_results=3, token_min_logp=-30, beam_prune_logp=-60)
        found = phonograph.transcribe(FILES[0], ctc, decoding=wide)
        scores = [alternative.score for alternative in found.alternatives]
        assert found.alternatives[0].text == found.text == UPPER[0]
        assert len(set(scores)) == 3
        assert scores == sorted(scores, reverse=True)

    def test_hotwords_are_heard(self, ctc: CTCRecognizer) -> None:
        wide = BeamOptions(token_min_logp=-60, beam_prune_logp=-200)
        found = phonograph.transcribe(FILES[4], ctc, hotwords={"wart": 200.0}, decoding=wide)
        assert "WART" in found.text.split() or "WARTS" in found.text.split()
        assert phonograph.transcribe(FILES[4], ctc, hotwords={"wards": 5.0}).text == UPPER[4]

    @pytest.mark.parametrize("case", ["upper", "lower"])
    def test_a_language_model_decides(self, ctc: CTCRecognizer, tmp_path: Path, case: str) -> None:
        words = [getattr(word, case)() for word in set(ENGLISH[4].split()) - {"wards"} | {"warts"}]
        arpa = write_arpa(tmp_path / "x.arpa", words)
        wide = BeamOptions(token_min_logp=-60, beam_prune_logp=-200, unk_score_offset=-100.0)
        found = phonograph.transcribe(FILES[4], ctc, lm=arpa, decoding=wide)
        assert found.text == UPPER[4].replace("WARDS", "WARTS")
        right = write_arpa(tmp_path / "y.arpa", [getattr(word, case)() for word in set(ENGLISH[4].split())])
        assert phonograph.transcribe(FILES[4], ctc, lm=right).text == UPPER[4]

    def test_the_decoder_is_made_once(self, ctc: CTCRecognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arpa = write_arpa(tmp_path / "x.arpa", ENGLISH[4].upper().split())
        phonograph.transcribe(FILES[4], ctc, lm=arpa)
        monkeypatch.setattr("phonograph.api.ctc.CTCDecoder", lambda *_: pytest.fail("made again"))
        phonograph.transcribe([FILES[4]] * 2, ctc, lm=arpa)


class TestAlign:
    @pytest.mark.parametrize("place", range(5), ids=NAMES)
    def test_the_times_are_those_of_what_is_heard(self, ctc: CTCRecognizer, place: int) -> None:
        found = phonograph.align(FILES[place], ENGLISH[place], ctc)
        heard = phonograph.transcribe(FILES[place], ctc)
        assert found.text == ENGLISH[place]
        assert found.duration_seconds == pytest.approx(heard.duration_seconds)
        for word, same in zip(found.words, heard.words, strict=True):
            assert word.start_seconds == pytest.approx(same.start_seconds, abs=0.1)
            assert word.end_seconds == pytest.approx(same.end_seconds, abs=0.1)
            assert "".join(character.text for character in word.characters) == word.text

    def test_as_written(self, ctc: CTCRecognizer) -> None:
        text = "The various wards \u2014 were all about 11 feet, in height!"
        found = phonograph.align(FILES[4], text, ctc)
        assert found.text == text
        eleven = next(word for word in found.words if word.text == "11")
        heard = phonograph.transcribe(FILES[4], ctc).words[6]
        assert heard.text == "ELEVEN"
        assert eleven.start_seconds == pytest.approx(heard.start_seconds, abs=0.15)
        assert eleven.end_seconds == pytest.approx(heard.end_seconds, abs=0.15)

    def test_windows_and_progress(self, ctc: CTCRecognizer, clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
        speech = joined(clips)
        one_pass = phonograph.align(speech, " ".join(ENGLISH), ctc)
        shorten(ctc, monkeypatch, core=9.0, context=3.0)
        seconds: list[float] = []
        found = phonograph.align(speech, " ".join(ENGLISH), ctc, on_progress=seconds.append)
        assert len(seconds) > 2
        assert sum(seconds) == pytest.approx(len(speech) / RATE) == pytest.approx(found.duration_seconds)
        gaps = [abs(word.start_seconds - same.start_seconds) for word, same in zip(found.words, one_pass.words, strict=True)]
        assert np.median(gaps) < 0.021
        assert max(gaps) < 0.3

    @pytest.mark.parametrize("text", ["", " \n", "... -"])
    def test_nothing_to_be_spoken(self, ctc: CTCRecognizer, text: str) -> None:
        with pytest.raises(ConfigError, match="expected a text with at least one character to be spoken, got"):
            phonograph.align(FILES[0], text, ctc)

    def test_no_room_for_the_text(self, ctc: CTCRecognizer) -> None:
        with pytest.raises(ConfigError, match=r"expected at least \d+ frames for \d+ tokens .* check that the text belongs"):
            phonograph.align(FILES[4], " ".join(ENGLISH * 3), ctc)

    def test_a_model_without_a_ctc_head(self, s2t: Seq2SeqRecognizer) -> None:
        with pytest.raises(ConfigError, match="expected a model with a CTC head to align with, got one without; pass a Wav2V"):
            phonograph.align(FILES[4], "a", s2t)

    def test_unusable_audio_is_named(self, ctc: CTCRecognizer, tmp_path: Path) -> None:
        audio.save(tmp_path / "x.wav", NOISE[:729], RATE)
        with pytest.raises(AudioError, match=r"x\.wav: expected at least 730 samples \(45\.625 ms\) at 16000 Hz, got 729"):
            phonograph.align(tmp_path / "x.wav", "a", ctc)


class TestWindowsOfCTC:
    """Recordings of all clips one after the other."""

    def test_the_text_is_that_of_one_pass(self, ctc: CTCRecognizer, clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
        speech = joined(clips, pause_seconds=0.7)
        whole = phonograph.transcribe(speech, ctc)
        assert whole.text == " ".join(UPPER)
        shorten(ctc, monkeypatch, core=9.0, context=3.0)
        found = phonograph.transcribe(speech, ctc)
        assert found.text == whole.text
        assert found.duration_seconds == pytest.approx(whole.duration_seconds)
        gaps = [abs(word.start_seconds - same.start_seconds) for word, same in zip(found.words, whole.words, strict=True)]
        assert np.median(gaps) < 0.021

    def test_longer_than_one_pass(self, ctc: CTCRecognizer, clips: list[Clip], tmp_path: Path) -> None:
        repeats = 4
        speech = joined(clips * repeats, pause_seconds=0.7)
        assert len(speech) / RATE > 3 * ctc.one_pass_seconds
        audio.save(tmp_path / "long.wav", speech, RATE)
        found = phonograph.transcribe(tmp_path / "long.wav", ctc)
        assert found.text == " ".join(UPPER * repeats)
        assert found.duration_seconds == pytest.approx(len(speech) / RATE)

    @pytest.mark.parametrize("samples", [300_000, 300_123, 299_680])
    @pytest.mark.parametrize("fields", [{}, {"do_normalize": False}])
    def test_frames_lie_where_they_do_in_one_pass(
        self, ctc: CTCRecognizer, clips: list[Clip], monkeypatch: pytest.MonkeyPatch, samples: int, fields: dict[str, Any]
    ) -> None:
        for name, value in fields.items():
            monkeypatch.setattr(ctc._processor.feature_extractor, name, value)
        clip = Audio(joined(clips)[:samples], RATE)
        [whole] = ctc.log_probs([clip])
        shorten(ctc, monkeypatch, core=6.0, context=3.0)
        pieces = list(ctc.long_log_probs(lambda: iter([clip]), 1, lambda _: None))
        assert len(pieces) > 2
        stitched = torch.cat(pieces)
        assert stitched.shape == whole.shape
        torch.testing.assert_close(stitched, whole, atol=1e-3, rtol=0)

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_windows_are_normed_as_the_recording(
        self, ctc: CTCRecognizer, clips: list[Clip], monkeypatch: pytest.MonkeyPatch, batch_size: int
    ) -> None:
        """By a model with a norm over time, of a recording that grows louder."""
        recognizer = CTCRecognizer(random_wav2vec2("Wav2Vec2ForCTC", **TINY), ctc._processor)
        speech = joined(clips)[:60_000]
        clip = Audio(speech * np.linspace(0.02, 1, len(speech), dtype=np.float32), RATE)
        [whole] = recognizer.log_probs([clip])
        shorten(recognizer, monkeypatch, core=0.9, context=0.3)
        monkeypatch.setattr(recognizer, "most_padding", 0.5)

        def distance() -> float:
            blocks = [Audio(part, RATE) for part in np.array_split(clip.samples[0], 3)]
            stitched = torch.cat(list(recognizer.long_log_probs(lambda: iter(blocks), batch_size, lambda _: None)))
            assert stitched.shape == whole.shape
            return float((stitched - whole).abs().mean())

        found = distance()
        features = recognizer.model.wav2vec2.feature_extractor
        monkeypatch.setattr(features, "recording_sums", lambda parts: [None for _ in parts] and None)
        assert found < 0.25 * distance()

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_windows_in_batches(
        self, ctc: CTCRecognizer, clips: list[Clip], monkeypatch: pytest.MonkeyPatch, batch_size: int
    ) -> None:
        shorten(ctc, monkeypatch, core=6.0, context=2.0)
        alone = phonograph.transcribe(joined(clips[:3]), ctc, batch_size=1)
        monkeypatch.setattr(ctc, "most_padding", 0.5)
        found = phonograph.transcribe(joined(clips[:3]), ctc, batch_size=batch_size)
        assert (found.text, [word.start_seconds for word in found.words]) == (
            alone.text,
            [word.start_seconds for word in alone.words],
        )

    def test_memory_does_not_grow_with_the_recording(
        self, ctc: CTCRecognizer, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shorten(ctc, monkeypatch, core=6.0, context=1.0)
        monkeypatch.setattr("phonograph.api.text._BLOCK_SECONDS", 2.0)
        peaks = []
        for repeats in (1, 5):
            audio.save(tmp_path / "x.wav", np.tile(joined(clips), repeats), RATE)
            monkeypatch.setattr(audio, "load", lambda *_, **__: pytest.fail("a file was read whole"))
            tracemalloc.start()
            phonograph.transcribe(tmp_path / "x.wav", ctc)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            monkeypatch.undo()
            shorten(ctc, monkeypatch, core=6.0, context=1.0)
            monkeypatch.setattr("phonograph.api.text._BLOCK_SECONDS", 2.0)
        assert peaks[1] < 1.3 * peaks[0]
        assert peaks[1] < 4 * len(joined(clips)) * 2

    def test_a_beam_search_over_windows(self, ctc: CTCRecognizer, clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
        shorten(ctc, monkeypatch, core=6.0, context=2.0)
        found = phonograph.transcribe(joined(clips[:2], 0.7), ctc, decoding=BeamOptions(beam_width=4, num_results=2))
        assert found.text == " ".join(UPPER[:2]) == found.alternatives[0].text


class TestSpeech2Text:
    @pytest.mark.parametrize("place", range(5), ids=NAMES)
    def test_whole_sentences(self, s2t: Seq2SeqRecognizer, place: int) -> None:
        found = phonograph.transcribe(FILES[place], s2t)
        assert (found.text, found.language) == (ENGLISH[place], "en")
        [segment] = found.segments
        assert (segment.text, segment.start_seconds, segment.end_seconds) == (found.text, 0.0, found.duration_seconds)
        translated = phonograph.translate(FILES[place], "de", s2t)
        assert (translated.text, translated.language) == (GERMAN[place], "de")
        assert found.words == found.alternatives == ()

    def test_a_language_lasts_for_one_call(self, s2t: Seq2SeqRecognizer) -> None:
        assert phonograph.transcribe(FILES[4], s2t, language="de").text == GERMAN[4]
        assert phonograph.transcribe(FILES[4], s2t).text == ENGLISH[4]
        assert phonograph.translate(FILES[4], "en", s2t).text == ENGLISH[4]

    @pytest.mark.parametrize("batch_size", [1, 3, 8])
    def test_a_batch_changes_nothing(self, s2t: Seq2SeqRecognizer, batch_size: int) -> None:
        assert [found.text for found in phonograph.transcribe(FILES, s2t, batch_size=batch_size)] == ENGLISH
        assert [found.text for found in phonograph.translate(FILES, "de", s2t, batch_size=batch_size)] == GERMAN

    def test_the_text_is_transformers(self, s2t: Seq2SeqRecognizer, clips: list[Clip]) -> None:
        transformers = peer("transformers")
        extractor = transformers.Speech2TextFeatureExtractor.from_pretrained(S2T)
        special = ["<lang:en>", "<lang:de>"]
        files = (str(S2T / "vocab.json"), str(S2T / "sentencepiece.bpe.model"))
        tokenizer = transformers.Speech2TextTokenizer(*files, additional_special_tokens=special)
        model = transformers.Speech2TextForConditionalGeneration.from_pretrained(S2T, dtype=torch.float32).eval()
        for place, clip in enumerate(clips):
            inputs = extractor(clip.samples, sampling_rate=RATE, return_tensors="pt")
            for language in ("en", "de"):
                first = tokenizer.convert_tokens_to_ids(f"<lang:{language}>")
                ids = model.generate(**inputs, forced_bos_token_id=first)
                [expected] = tokenizer.batch_decode(ids, skip_special_tokens=True)
                assert phonograph.transcribe(FILES[place], s2t, language=language).text == expected

    def test_alternatives(self, s2t: Seq2SeqRecognizer) -> None:
        settings = {"num_beams": 3, "num_return_sequences": 3}
        found = phonograph.transcribe(FILES[4], s2t, decoding=settings)
        scores = [alternative.score for alternative in found.alternatives]
        assert found.text == found.alternatives[0].text == ENGLISH[4]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)

    def test_the_whole_is_bfloat16s(self) -> None:
        recognizer = load_recognizer(S2T, dtype="bfloat16")
        assert recognizer.model.dtype == torch.bfloat16
        assert [found.text for found in phonograph.transcribe(FILES, recognizer)] == ENGLISH

    def test_windows(self, s2t: Seq2SeqRecognizer, clips: list[Clip], tmp_path: Path) -> None:
        order = [0, 1, 3, 4, 0, 1]
        parts = [
            joined([clips[place] for place in order], pause_seconds=3.0),
            np.zeros(60 * RATE, np.float32),
            clips[4].samples,
        ]
        speech = np.concatenate(parts)
        audio.save(tmp_path / "x.wav", speech, RATE)
        seconds: list[float] = []
        found = phonograph.transcribe(tmp_path / "x.wav", s2t, on_progress=seconds.append, batch_size=2)
        assert found.text == " ".join(ENGLISH[place] for place in [*order, 4])
        assert found.duration_seconds == pytest.approx(len(speech) / RATE) == pytest.approx(sum(seconds))
        assert len(seconds) > 2
        assert 3 <= len(found.segments) <= 6
        times = [time for segment in found.segments for time in (segment.start_seconds, segment.end_seconds)]
        assert times == sorted(times)
        assert max(segment.end_seconds - segment.start_seconds for segment in found.segments) <= s2t.one_pass_seconds
        assert found.segments[-1].start_seconds > times[-3]  # a minute of silence gave no segment

    def test_windows_are_one_pass(self, s2t: Seq2SeqRecognizer, clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
        speech = joined([clips[1], clips[0]], pause_seconds=1.5)
        whole = phonograph.transcribe(speech, s2t)
        assert whole.text == f"{ENGLISH[1]} {ENGLISH[0]}"
        shorten(s2t, monkeypatch, core=6.0, context=0.0)
        found = phonograph.transcribe(speech, s2t)
        assert found.text == whole.text
        assert len(found.segments) == 2
        assert phonograph.translate(speech, "de", s2t).text == f"{GERMAN[1]} {GERMAN[0]}"

    def test_the_language_in_the_name_of_a_published_checkpoint(self, tmp_path: Path) -> None:
        folder = tmp_path / "s2t-small-mustc-en-fr-st"
        random_s2t(folder)
        recognizer = load_recognizer(folder)
        assert isinstance(recognizer, Seq2SeqRecognizer)
        assert recognizer.language == "fr"
        assert phonograph.translate(NOISE, model=recognizer).language == "fr"
        assert phonograph.translate(NOISE, "fr", recognizer).language == "fr"
        with pytest.raises(ConfigError, match="expected the one language of this checkpoint, which is fr, got 'de'; leave"):
            phonograph.translate(NOISE, "de", recognizer)


def random_s2t(folder: Path, **fields: Any) -> None:
    """A random model with a processor of one language."""
    pieces_folder(folder)
    size = len(json.loads((folder / "vocab.json").read_text()))
    random_speech_to_text(**TINY_S2T | {"vocab_size": size, "input_feat_per_channel": 80} | fields).save_pretrained(folder)
    phonograph.Speech2TextFeatureExtractor().save_pretrained(folder)


class TestLanguagesOfCTC:
    @pytest.fixture
    def recognizer(self, tmp_path: Path) -> CTCRecognizer:
        """In the form of facebook/mms-1b-all: English in the model's own file, and adapters for English and French."""
        fields = TINY | STABLE | {"adapter_attn_dim": 6}
        for seed, (language, vocabulary) in enumerate(MULTILINGUAL.items()):
            model: Any = random_wav2vec2("Wav2Vec2ForCTC", seed=seed, **fields | {"vocab_size": len(vocabulary)})
            if language == "eng":
                model.save_pretrained(tmp_path)
            adapters = {name: value.detach() for name, value in model._get_adapters().items()}
            save_file(adapters, tmp_path / f"adapter.{language}.safetensors")
        letters_folder(tmp_path, MULTILINGUAL, tokenizer_config={"target_lang": "eng"})
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path)
        recognizer = load_recognizer(tmp_path)
        assert isinstance(recognizer, CTCRecognizer)
        return recognizer

    def test_a_language_lasts_for_one_call(self, recognizer: CTCRecognizer) -> None:
        english = phonograph.transcribe(NOISE, recognizer)
        french = phonograph.transcribe(NOISE, recognizer, language="fra")
        assert (english.language, french.language) == ("eng", "fra")
        assert recognizer.model.lm_head.out_features == 9
        assert set(french.text) <= set("ébzch ")
        assert english.text != french.text
        assert phonograph.transcribe(NOISE, recognizer, language="fra") == french
        assert phonograph.transcribe(NOISE, recognizer) == english
        assert phonograph.align(NOISE, "éé", recognizer, language="fra").language == "fra"

    def test_an_unknown_language(self, recognizer: CTCRecognizer) -> None:
        with pytest.raises(ConfigError, match=r"expected a target_lang of the vocabulary \(eng, fra\), got 'deu'"):
            phonograph.transcribe(NOISE, recognizer, language="deu")
        assert phonograph.transcribe(NOISE, recognizer).language == "eng"

    def test_a_language_without_its_file_changes_nothing(self, recognizer: CTCRecognizer) -> None:
        english = phonograph.transcribe(NOISE, recognizer)
        Path(recognizer.model.config.name_or_path, "adapter.fra.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"expected a file adapter\.fra\.safetensors in .*, found none"):
            phonograph.transcribe(NOISE, recognizer, language="fra")
        assert phonograph.transcribe(NOISE, recognizer) == english

    def test_of_one_language(self, ctc: CTCRecognizer) -> None:
        with pytest.raises(ConfigError, match="vocabulary has one language only, got 'fra'; leave it out"):
            phonograph.transcribe(FILES[0], ctc, language="fra")


class TestProgressAndLists:
    @pytest.mark.parametrize("name", ["ctc", "s2t"])
    def test_progress_adds_up(self, request: pytest.FixtureRequest, name: str, clips: list[Clip]) -> None:
        recognizer = request.getfixturevalue(name)
        items: list[Any] = [clips[0].samples, joined(clips * 2), Audio(clips[1].samples, RATE)]
        seconds: list[float] = []
        found = phonograph.transcribe(items, recognizer, batch_size=1, on_progress=seconds.append)
        durations = [transcript.duration_seconds for transcript in found]
        assert durations == pytest.approx([len(clips[0].samples) / RATE, len(items[1]) / RATE, len(clips[1].samples) / RATE])
        assert sum(seconds) == pytest.approx(sum(filter(None, durations)))
        assert len(seconds) > 3

    def test_no_items(self, ctc: CTCRecognizer) -> None:
        assert phonograph.transcribe([], ctc) == []

    @pytest.mark.parametrize("size", [4, 12])
    def test_heads_of_other_sizes_than_the_vocabulary(self, tmp_path: Path, size: int) -> None:
        """The tokenizer adds tokens that it lacks, "|" among them, so of four tokens none delimits words."""
        model: Any = random_wav2vec2("Wav2Vec2ForCTC", **TINY | {"vocab_size": size})
        model.save_pretrained(tmp_path)
        letters_folder(tmp_path, {"<pad>": 0, "A": 1, "B": 2, "C": 3}, tokenizer_config={"do_lower_case": True})
        Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
        recognizer = load_recognizer(tmp_path)
        found = phonograph.transcribe(NOISE, recognizer, timestamps="char")
        assert (len(found.words) == 1) is (size == 4)
        assert set(found.text) <= set("abc ")
        for word in found.words:
            assert "".join(character.text for character in word.characters) == word.text
        searched = phonograph.transcribe(NOISE, recognizer, decoding=BeamOptions(beam_width=4, num_results=2))
        assert set(searched.text) <= set("abc ")
        assert searched.alternatives[0].text == searched.text

    @pytest.mark.parametrize(("fields", "do_normalize"), [({}, False), ({}, True), (STABLE, True)])
    def test_every_family_in_batches(self, tmp_path: Path, fields: dict[str, Any], do_normalize: bool) -> None:
        """With attention over the whole, and of the group family, which masks nothing by itself."""
        random_wav2vec2("Wav2Vec2ForCTC", **TINY | fields | {"vocab_size": 32}).save_pretrained(tmp_path)
        letters_folder(tmp_path)
        Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(tmp_path)
        recognizer = load_recognizer(tmp_path)
        assert isinstance(recognizer, CTCRecognizer)
        items = [Audio(NOISE[:samples], RATE) for samples in (9001, 5000, 8192)]
        for item, together in zip(items, recognizer.log_probs(items), strict=True):
            [alone] = recognizer.log_probs([item])
            torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
        texts = [phonograph.transcribe(item, recognizer).text for item in items]
        recognizer.most_padding = 0.9
        assert [found.text for found in phonograph.transcribe(items, recognizer)] == texts
        assert all(texts)


class TestRefusals:
    @pytest.mark.parametrize("name", ["ctc", "s2t"])
    @pytest.mark.parametrize(
        ("speech", "message"),
        [
            (
                NOISE[:399],
                r"expected at least \d+ samples \([0-9.]+ ms\) at 16000 Hz, got 399; leave out audio as short as this",
            ),
            (np.zeros(RATE, np.float32), "expected speech, got digital silence; check the recording"),
            (np.full(45 * RATE, 0.25, np.float32), "expected speech, got digital silence"),
            (np.where(NOISE > 3, np.nan, NOISE), "expected finite samples, got NaN or infinite ones"),
            (np.tile(np.where(NOISE > 3, np.inf, NOISE), 50), "expected finite samples, got NaN or infinite ones"),
            (np.zeros((5, 100), np.float32), r"expected samples shaped \(time,\) or \(channels, time\), got \(5, 100\)"),
            (np.zeros(100, np.int16), "expected float samples"),
            (NOISE * 1000, r"expected samples in \[-1, 1\], got a peak of 4023\.16; divide integers by their full"),
            (np.zeros(0, np.float32), "expected at least one sample, got none"),
        ],
    )
    def test_audio(self, request: pytest.FixtureRequest, name: str, speech: np.ndarray, message: str) -> None:
        recognizer = request.getfixturevalue(name)
        with pytest.raises(AudioError, match=f"^{message}"):
            phonograph.transcribe(speech, recognizer)
        with pytest.raises(AudioError, match=f"^item 1: {message}"):
            phonograph.transcribe([NOISE, speech, FILES[0]], recognizer, batch_size=8)

    def test_files_are_named_once(self, ctc: CTCRecognizer, tmp_path: Path) -> None:
        audio.save(tmp_path / "x.wav", np.zeros(RATE, np.float32), RATE)
        audio.save(tmp_path / "long.wav", np.zeros(50 * RATE, np.float32), RATE)
        for file, message in [
            ("x.wav", "{}: expected speech, got digital silence"),
            ("long.wav", "{}: expected speech, got digital silence"),
            ("no.wav", "expected an audio file, but {} does not exist"),
        ]:
            path = re.escape(str(tmp_path / file))
            for speech in (tmp_path / file, [FILES[0], tmp_path / file]):
                with pytest.raises(AudioError, match="^" + message.format(path)) as refused:
                    phonograph.transcribe(speech, ctc)
                assert str(refused.value).count(file) == 1

    def test_something_else_than_speech(self, ctc: CTCRecognizer) -> None:
        for speech, got in (
            ([0.5, 0.25], "^item 0: .* got float; pass samples as one array"),
            (None, "got NoneType"),
            (5, "got int"),
        ):
            with pytest.raises(AudioError, match=got):
                phonograph.transcribe(speech, ctc)  # type: ignore[call-overload]
        with pytest.raises(AudioError, match=r"^expected a path, an Audio, an array or a tensor, .* got list; pass"):
            phonograph.align([NOISE], "a", ctc)  # type: ignore[arg-type]

    @pytest.mark.parametrize("rate", [0, "16k"])
    def test_rates(self, ctc: CTCRecognizer, rate: Any) -> None:
        calls = (phonograph.transcribe, lambda speech, *rest, **options: phonograph.align(speech, "a", *rest, **options))
        for call in calls:
            with pytest.raises(AudioError, match=f"^expected sampling_rate .* got {rate!r}; pass"):
                call(NOISE, ctc, sampling_rate=rate)

    def test_an_empty_language_is_none_that_there_is(self, ctc: CTCRecognizer, s2t: Seq2SeqRecognizer) -> None:
        for call in (
            lambda: phonograph.translate(FILES[0], "", s2t),
            lambda: phonograph.transcribe(FILES[0], s2t, language=""),
        ):
            with pytest.raises(ConfigError, match=r"expected a target language of the checkpoint \(en, de\), got ''; pass one"):
                call()
        with pytest.raises(ConfigError, match="vocabulary has one language only, got ''; leave it out"):
            phonograph.align(FILES[0], "a", ctc, language="")

    def test_no_model(self) -> None:
        for call in (phonograph.transcribe, lambda speech: phonograph.align(speech, "a")):
            with pytest.raises(ConfigError, match="expected a model, got none, and this package bundles none that transcribes"):
                call(FILES[0])
        with pytest.raises(ConfigError, match="expected a model that translates, got none, and none is bundled; pass model="):
            phonograph.translate(FILES[0], "de")

    def test_a_model_that_is_not_there(self) -> None:
        with pytest.raises(CheckpointError, match=r"expected a bundled model, a folder or a hub id .* got 'nope'"):
            phonograph.transcribe(FILES[0], "nope")
        with pytest.raises(ConfigError, match=r"expected a device that works here .* got 'warp'"):
            load_recognizer(CTC, device="warp")

    def test_models_without_a_head(self, tmp_path: Path) -> None:
        random_wav2vec2(**TINY).save_pretrained(tmp_path)
        with pytest.raises(
            ConfigError, match=r"expected a checkpoint with a CTC head \(lm_head\) to transcribe with, got .*, w"
        ):
            phonograph.transcribe(FILES[0], tmp_path)
        with pytest.raises(
            ConfigError, match=r"expected a model that writes text .* got mimi-mini, which is mimi; pass another"
        ):
            phonograph.transcribe(FILES[0], "mimi-mini")

    def test_a_bare_model(self, ctc: CTCRecognizer) -> None:
        with pytest.raises(ConfigError, match=r"expected a model's name or folder, or what load_recognizer .* Wav2Vec2ForCTC"):
            phonograph.transcribe(FILES[0], ctc.model)  # type: ignore[call-overload]

    def test_a_tokenizer_without_a_blank(self, tmp_path: Path, ctc: CTCRecognizer) -> None:
        ctc.model.save_pretrained(tmp_path)
        letters_folder(tmp_path, tokenizer_config={"pad_token": None})
        Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="expected a tokenizer with a pad_token, the CTC blank, got one without"):
            load_recognizer(tmp_path)

    def test_a_language_model_of_another_alphabet(self, ctc: CTCRecognizer, tmp_path: Path) -> None:
        arpa = write_arpa(tmp_path / "x.arpa", ["привет", "мир"])
        with pytest.raises(
            ConfigError, match=r"expected a language model in the vocabulary's characters .* use one of the same"
        ):
            phonograph.transcribe([], ctc, lm=arpa)

    def test_words_that_cannot_be_spelled(self, ctc: CTCRecognizer) -> None:
        with pytest.raises(ConfigError, match="expected hotwords in the vocabulary's characters, got 'R2D2'; spell it"):
            phonograph.transcribe([], ctc, hotwords={"R2D2": 5.0})

    def test_decoding_of_the_other_family(self, ctc: CTCRecognizer, s2t: Seq2SeqRecognizer, tmp_path: Path) -> None:
        arpa = write_arpa(tmp_path / "x.arpa", ["A"])
        for options in ({"lm": arpa}, {"hotwords": {"A": 5.0}}):
            with pytest.raises(ConfigError, match="expected a model with a CTC head for lm and hotwords, got one without"):
                phonograph.transcribe(FILES[0], s2t, **options)
        for call in (phonograph.transcribe, lambda *_, **options: phonograph.translate(FILES[0], "de", s2t, **options)):
            with pytest.raises(
                ConfigError, match=r"expected settings such as \{'num_beams': 5\} for this model, got BeamOptions"
            ):
                call(FILES[0], s2t, decoding=BeamOptions())
        with pytest.raises(ConfigError, match=r"expected BeamOptions to decode a CTC head with, got dict; pass BeamO"):
            phonograph.transcribe(FILES[0], ctc, decoding={"num_beams": 5})

    def test_times_of_words_from_s2t(self, s2t: Seq2SeqRecognizer) -> None:
        for timestamps in ("word", "char"):
            with pytest.raises(ConfigError, match=f"a model with a CTC head for timestamps='{timestamps}', got one without"):
                phonograph.transcribe(FILES[0], s2t, timestamps=timestamps)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"max_length": 300},
                r"expected targets of at most 256 tokens \(max_target_positions\), got 300; lower max_length",
            ),
            ({"beams": 3}, r"expected generation settings \(num_beams, .*\), got beams; check the spelling"),
            ({"num_beams": 0}, "num_beams"),
        ],
    )
    def test_settings_of_generation(self, s2t: Seq2SeqRecognizer, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            phonograph.transcribe([], s2t, decoding=settings)
        with pytest.raises(ConfigError, match=message):
            phonograph.translate([], "de", s2t, decoding=settings)

    def test_languages(self, ctc: CTCRecognizer, s2t: Seq2SeqRecognizer) -> None:
        with pytest.raises(ConfigError, match=r"expected a target language of the checkpoint \(en, de\), got 'xx'; pass one"):
            phonograph.translate(FILES[0], "xx", s2t)
        with pytest.raises(ConfigError, match=r"expected a language to translate to \(en, de\), got none; pass one of these"):
            phonograph.translate(FILES[0], model=s2t)
        with pytest.raises(ConfigError, match="expected a Speech2Text to translate, got a model with a CTC head"):
            phonograph.translate(FILES[0], "de", ctc)
        assert phonograph.transcribe(FILES[4], s2t).text == ENGLISH[4]

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_batch_size(self, ctc: CTCRecognizer, batch_size: int) -> None:
        with pytest.raises(ConfigError, match=f"expected a batch_size of at least 1, got {batch_size}; 8 is usual"):
            phonograph.transcribe(FILES, ctc, batch_size=batch_size)
