"""transcribe, translate and align: what the library gives, in every format and place, and one line for what is refused."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pysubs2
import pytest
from memorised import CTC, RATE, S2T, SENTENCES, clips, joined
from tiny_arpa import write_arpa

import phonograph
from phonograph import Transcript, audio
from phonograph.decoding.ctc import BeamOptions
from phonograph.decoding.transcript import format_transcript
from phonograph.loading.hub import BUNDLED_SPEECH

Run = Callable[..., "object"]

ENGLISH = [sentence.english for sentence in SENTENCES.values()]
GERMAN = [sentence.german for sentence in SENTENCES.values()]
UPPER = [text.upper() for text in ENGLISH]
FILES = ("a.flac", "talks/b.flac", "talks/sub/c.flac")


@pytest.fixture(autouse=True)
def spoken(work: Path) -> Path:
    """The current folder, with three clips and both models in it."""
    for name, place in zip(SENTENCES, FILES, strict=False):
        (work / place).parent.mkdir(exist_ok=True)
        shutil.copy(BUNDLED_SPEECH / f"{name}.flac", work / place)
    (work / "my-ctc").symlink_to(CTC)
    (work / "my-s2t").symlink_to(S2T)
    return work


class TestTranscribe:
    def test_a_sentence(self, run: Run) -> None:
        result = run("transcribe", "a.flac", "-m", "my-ctc")
        assert (result.code, result.out.decode(), result.err) == (0, UPPER[0] + "\n", "")
        assert run("transcribe", "a.flac", "-m", "my-s2t").out.decode() == ENGLISH[0] + "\n"

    @pytest.mark.parametrize("words", [False, True])
    @pytest.mark.parametrize("name", ["txt", "json", "srt", "vtt", "tsv"])
    def test_formats(self, run: Run, name: str, words: bool) -> None:
        expected = format_transcript(phonograph.transcribe("a.flac", "my-ctc"), name, words)
        line = ["transcribe", "a.flac", "-m", "my-ctc", *(["--words"] if words else [])]
        assert run(*line, "--format", name).out.decode() == expected
        assert run(*line, "-o", f"out/x.{name}").out == b""
        assert run(*line, "-o", "folder/", "--format", name.upper()).out == b""
        assert Path(f"out/x.{name}").read_text(encoding="utf-8") == expected
        assert Path(f"folder/a.{name}").read_text(encoding="utf-8") == expected
        assert run(*line, "-f", name, "-o", "-").out.decode() == expected

    def test_subtitles_that_a_player_reads(self, run: Run) -> None:
        assert run("transcribe", "a.flac", "-m", "my-ctc", "--words", "-o", "x.srt").code == 0
        cues = pysubs2.load("x.srt")
        words = phonograph.transcribe("a.flac", "my-ctc").words
        assert [cue.text for cue in cues] == UPPER[0].split()
        assert [cue.start for cue in cues] == pytest.approx([1000 * word.start_seconds for word in words], abs=1)

    def test_several_files(self, run: Run) -> None:
        result = run("transcribe", "a.flac", "talks", "-m", "my-ctc")
        assert result.out.decode() == "".join(f"{file}\t{text}\n" for file, text in zip(FILES, UPPER, strict=False))
        result = run("transcribe", *FILES, "-m", "my-ctc", "--format", "json")
        rows = [json.loads(line) for line in result.out.decode().splitlines()]
        assert [(row.pop("file"), Transcript.from_json(json.dumps(row)).text) for row in rows] == [
            *zip(FILES, UPPER, strict=False)
        ]

    @pytest.mark.parametrize("batch_size", [1, 2, 8])
    @pytest.mark.parametrize("model", ["my-ctc", "my-s2t"])
    def test_a_folder_of_results(self, run: Run, spoken: Path, model: str, batch_size: int) -> None:
        result = run("transcribe", *FILES[:1], "talks", "-m", model, "-o", "out", "-f", "json", "--batch-size", batch_size)
        assert (result.code, result.out, result.err) == (0, b"", "")
        found = [Transcript.from_json((spoken / "out" / name).read_text()) for name in ("a.json", "b.json", "sub/c.json")]
        assert [transcript.text.lower() for transcript in found] == ENGLISH[:3]
        printed = run("transcribe", *FILES, "-m", model, "--batch-size", batch_size).out.decode()
        assert printed.lower() == "".join(f"{file}\t{text}\n" for file, text in zip(FILES, ENGLISH, strict=False))

    def test_stdin(self, run: Run) -> None:
        data = Path("a.flac").read_bytes()
        assert run("transcribe", "-", "-m", "my-ctc", stdin=data).out.decode() == UPPER[0] + "\n"
        assert run("transcribe", "-", "-m", "my-s2t", "-o", "x.txt", stdin=data).out == b""
        assert Path("x.txt").read_text() == ENGLISH[0] + "\n"
        result = run("transcribe", "-", "a.flac", "-m", "my-ctc", stdin=data)
        assert result.out.decode() == f"-\t{UPPER[0]}\na.flac\t{UPPER[0]}\n"

    def test_json(self, run: Run) -> None:
        result = run("transcribe", "a.flac", "talks/b.flac", "no.wav", "-m", "my-ctc", "--json", "--characters")
        assert result.code == 2
        report = result.json()
        assert [error["in"] for error in report["errors"]] == ["no.wav"]
        for row, text in zip(report["files"], UPPER, strict=False):
            transcript = Transcript.from_json(json.dumps(row["transcript"]))
            assert transcript.text == text
            assert all(word.characters for word in transcript.words)
            assert row["seconds"] == pytest.approx(transcript.duration_seconds, abs=1e-5)
            assert row["rtf"] > 0
        written = run("transcribe", "a.flac", "-m", "my-ctc", "--json", "-o", "x.srt").json()
        assert [(row["out"], row["text"]) for row in written["files"]] == [("x.srt", UPPER[0])]
        assert Path("x.srt").exists()

    def test_a_search_with_words_that_are_known(self, run: Run, work: Path) -> None:
        arpa = write_arpa(work / "x.arpa", ENGLISH[0].split())
        line = ["transcribe", "a.flac", "-m", "my-ctc", "--format", "json", "--beams", 7, "--alternatives", 2]
        options = {"beam_width": 7, "num_results": 2}
        for arguments, decoding, named in [
            ([], BeamOptions(**options), {}),
            (["--lm", arpa, "--lm-weight", 0.9], BeamOptions(**options, alpha=0.9), {"lm": arpa}),
            (
                ["--hotword", "HIMSELF=5", "--hotword", "A MORE=2.5"],
                BeamOptions(**options),
                {"hotwords": {"HIMSELF": 5, "A MORE": 2.5}},
            ),
        ]:
            found = Transcript.from_json(run(*line, *arguments).out.decode())
            assert found == phonograph.transcribe("a.flac", "my-ctc", decoding=decoding, **named)
            assert found.text == UPPER[0]
        assert (
            found.alternatives[0].score
            > phonograph.transcribe("a.flac", "my-ctc", decoding=BeamOptions(**options)).alternatives[0].score
        )

    def test_beams_and_alternatives_of_s2t(self, run: Run) -> None:
        result = run("transcribe", "a.flac", "-m", "my-s2t", "--beams", 3, "--alternatives", 3, "--format", "json")
        settings = {"num_beams": 3, "num_return_sequences": 3}
        assert Transcript.from_json(result.out.decode()) == phonograph.transcribe("a.flac", "my-s2t", decoding=settings)

    def test_language(self, run: Run) -> None:
        assert run("transcribe", "a.flac", "-m", "my-s2t", "--language", "de").out.decode() == GERMAN[0] + "\n"
        assert run("transcribe", "a.flac", "-m", "my-s2t").out.decode() == ENGLISH[0] + "\n"

    def test_a_long_recording_in_bfloat16(self, run: Run) -> None:
        audio.save("long.wav", joined(clips()[:2] * 5, 1.5), RATE)
        options = ("--dtype", "bfloat16", "--batch-size", 2, "--threads", 1, "--device", "cpu", "--channel", 0)
        result = run("transcribe", "long.wav", "-m", "my-ctc", *options)
        assert result.out.decode() == " ".join(UPPER[:2] * 5) + "\n"

    @pytest.mark.parametrize("batch_size", [1, 8])
    def test_a_bad_file_does_not_stop_the_others(self, run: Run, batch_size: int) -> None:
        audio.save("silent.wav", np.zeros(RATE, np.float32), RATE)
        audio.save("short.wav", np.full(100, 0.5, np.float32), RATE)
        Path("text.wav").write_text("hello")
        files = ("silent.wav", "a.flac", "short.wav", "text.wav", "no.wav", "talks/b.flac")
        result = run("transcribe", *files, "-m", "my-ctc", "--batch-size", batch_size)
        assert result.code == 2
        assert result.out.decode() == f"a.flac\t{UPPER[0]}\ntalks/b.flac\t{UPPER[1]}\n"
        lines = sorted(result.err.splitlines())
        assert len(lines) == 4
        for line, message in zip(
            lines,
            [
                "error: expected an audio file .* got text in text.wav",
                "error: expected an audio file, but no.wav does not exist",
                "error: short.wav: expected at least 730 samples",
                "error: silent.wav: expected speech, got digital silence",
            ],
            strict=True,
        ):
            assert re.match(message, line), line

    def test_all_are_bad(self, run: Run) -> None:
        result = run("transcribe", "x.wav", "y.wav", "-m", "my-ctc", "--batch-size", 8, "--json")
        assert result.code == 2
        assert (result.json()["files"], len(result.json()["errors"])) == ([], 2)


class TestTranslate:
    def test_a_sentence(self, run: Run) -> None:
        result = run("translate", "a.flac", "-m", "my-s2t", "--to", "de")
        assert (result.code, result.out.decode(), result.err) == (0, GERMAN[0] + "\n", "")
        assert (
            run("translate", "-", "-m", "my-s2t", "--to", "en", stdin=Path("a.flac").read_bytes()).out.decode()
            == f"{ENGLISH[0]}\n"
        )

    @pytest.mark.parametrize("batch_size", [1, 8])
    def test_files(self, run: Run, batch_size: int) -> None:
        line = ("translate", *FILES, "-m", "my-s2t", "--to", "de", "--batch-size", batch_size)
        assert run(*line).out.decode() == "".join(f"{file}\t{text}\n" for file, text in zip(FILES, GERMAN, strict=False))
        assert run(*line, "-o", "out", "--format", "vtt", "--quiet").code == 0
        assert [cue.text for cue in pysubs2.load("out/c.vtt")] == [GERMAN[2]]

    def test_options(self, run: Run) -> None:
        options = ("--beams", 2, "--alternatives", 2, "--channel", 0, "--device", "cpu", "--dtype", "bfloat16", "--threads", 1)
        result = run("translate", "a.flac", "-m", "my-s2t", "--to", "de", *options, "--json")
        [row] = result.json()["files"]
        assert row["transcript"]["text"] == GERMAN[0]
        assert row["transcript"]["language"] == "de"
        assert len(row["transcript"]["alternatives"]) == 2


class TestAlign:
    @pytest.mark.parametrize("name", ["txt", "json", "srt", "vtt", "tsv"])
    def test_formats(self, run: Run, name: str) -> None:
        found = phonograph.align("a.flac", ENGLISH[0], "my-ctc")
        line = ("align", "a.flac", ENGLISH[0], "-m", "my-ctc")
        assert run(*line, "-f", name).out.decode() == format_transcript(found, name, True)
        assert run(*line, "-f", name, "--segments").out.decode() == format_transcript(found, name)
        assert run(*line, "-o", f"x.{name}").code == 0
        assert Path(f"x.{name}").read_text() == format_transcript(found, name, True)

    def test_tsv_by_default(self, run: Run) -> None:
        expected = format_transcript(phonograph.align("a.flac", ENGLISH[0], "my-ctc"), "tsv", True).encode()
        Path("a.txt").write_text(ENGLISH[0] + "\n")
        assert run("align", "a.flac", "a.txt", "-m", "my-ctc").out == expected
        assert run("align", "a.flac", ENGLISH[0], "-m", "my-ctc", "-o", "-").out == expected
        assert run("align", "-", "a.txt", "-m", "my-ctc", stdin=Path("a.flac").read_bytes()).out == expected
        assert run("align", "a.flac", "a.txt", "-m", "my-ctc", "-o", "out/").code == 0
        assert Path("out/a.tsv").read_bytes() == expected

    def test_json(self, run: Run) -> None:
        options = ("--channel", 0, "--device", "cpu", "--dtype", "float32", "--threads", 1, "--quiet")
        [row] = run("align", "a.flac", ENGLISH[0], "-m", "my-ctc", "--json", *options).json()["files"]
        assert row["transcript"]["text"] == ENGLISH[0]
        assert all(word["characters"] for word in row["transcript"]["segments"][0]["words"])


REFUSALS = {
    "no model": (
        "transcribe a.flac",
        "expected a model, got none, and this package bundles none that transcribes; pass one, such",
    ),
    "no model to translate": (
        "translate a.flac --to de",
        "expected --model, got none, and none that translates is bundled; pass a",
    ),
    "no model to align": ("align a.flac x", "expected a model, got none"),
    "no such model": ("transcribe a.flac -m nope", "expected a bundled model, a folder or a hub id .* got 'nope'"),
    "a codec": ("transcribe a.flac -m mimi-mini", "expected a model that writes text .* got mimi-mini, which is mimi"),
    "silence": ("transcribe silent.wav -m my-ctc", "silent.wav: expected speech, got digital silence; check the recording"),
    "too short": ("transcribe short.wav -m my-s2t", r"short.wav: expected at least 400 samples \(25 ms\) at 16000 Hz, got 100"),
    "NaN": ("transcribe nan.wav -m my-ctc", "expected finite samples, got 99 NaN or infinite samples in nan.wav"),
    "stdin is empty": ("transcribe - -m my-ctc", r"standard input is empty \(0 bytes\); expected an audio file"),
    "unknown language": (
        "transcribe a.flac -m my-s2t --language xx",
        r"a target language of the checkpoint \(en, de\), got 'xx'",
    ),
    "language of one": ("transcribe a.flac -m my-ctc --language fra", "the vocabulary has one language only, got 'fra'; leave"),
    "empty language": ("transcribe a.flac -m my-s2t --language ''", r"a target language of the checkpoint \(en, de\), got ''"),
    "empty language of one": (
        "transcribe a.flac -m my-ctc --language ''",
        "the vocabulary has one language only, got ''; leave",
    ),
    "empty target": ("translate a.flac -m my-s2t --to ''", r"a target language of the checkpoint \(en, de\), got ''; pass one"),
    "loud": ("transcribe loud.wav -m my-ctc", r"loud.wav: expected samples in \[-1, 1\], got a peak of 32767; divide integers"),
    "unknown target": ("translate a.flac -m my-s2t --to xx", r"a target language of the checkpoint \(en, de\), got 'xx'"),
    "no target": ("translate a.flac -m my-s2t", r"expected a language to translate to \(en, de\), got none; pass one of these"),
    "CTC translates": (
        "translate a.flac -m my-ctc --to de",
        "expected a Speech2Text to translate, got a model with a CTC head",
    ),
    "lm with S2T": ("transcribe a.flac -m my-s2t --lm x.arpa", "expected a model with a CTC head for lm and hotwords, got one"),
    "lm weight with S2T": (
        "transcribe a.flac -m my-s2t --lm-weight 1",
        "expected a model with a CTC head for --lm-weight, got on",
    ),
    "hotword with S2T": ("transcribe a.flac -m my-s2t --hotword a=5", "expected a model with a CTC head for lm and hotwords"),
    "words of S2T": ("transcribe a.flac -m my-s2t --words", "a model with a CTC head for timestamps='word', got one without"),
    "characters of S2T": ("transcribe a.flac -m my-s2t --characters", "a model with a CTC head for timestamps='char'"),
    "words and characters": ("transcribe a.flac -m my-ctc --words --characters", "expected --words or --characters, got both"),
    "no such text": (
        "align a.flac said.txt -m my-ctc",
        "expected a text or the name of a text file, but said.txt does not exist; check the name",
    ),
    "no such lm": (
        "transcribe a.flac -m my-ctc --lm no.arpa",
        "cannot read no.arpa: No such file or directory; check its name",
    ),
    "damaged lm": (
        "transcribe a.flac -m my-ctc --lm speech.wav",
        r"expected an n-gram model \(ARPA or KenLM binary\) in speech.wa",
    ),
    "foreign lm": (
        "transcribe a.flac talks -m my-ctc --lm foreign.arpa",
        "expected a language model in the vocabulary's charac",
    ),
    "hotword": (
        "transcribe a.flac -m my-ctc --hotword HIMSELF",
        "expected --hotword as WORD=BONUS, such as .* got 'HIMSELF'; w",
    ),
    "no hotword": ("transcribe a.flac -m my-ctc --hotword =5", "expected --hotword as WORD=BONUS, such as .* got '=5'"),
    "hotword's bonus": ("transcribe a.flac -m my-ctc --hotword A=x", "expected --hotword as WORD=BONUS, .* got 'A=x'"),
    "endless bonus": ("transcribe a.flac -m my-ctc --hotword A=inf", "expected a finite number as hotword 'A', got inf"),
    "foreign hotword": (
        "transcribe a.flac -m my-ctc --hotword R2D2=5",
        "expected hotwords in the vocabulary's characters, got 'R2",
    ),
    "too many alternatives": ("transcribe a.flac -m my-s2t --beams 2 --alternatives 3", "num_beams=2, num_return_sequences=3"),
    "format": (
        "transcribe a.flac -m my-ctc --format doc",
        "expected --format to be one of txt, json, srt, vtt, tsv, got 'doc'",
    ),
    "suffix": (
        "transcribe a.flac -m my-ctc -o x.doc",
        r"expected x.doc to end in \.txt, \.json, \.srt, \.vtt, \.tsv, got \.doc",
    ),
    "srt of several": (
        "transcribe a.flac talks -m my-ctc -f srt",
        "expected a folder for the srt of 3 files, got none; pass -o F",
    ),
    "words of several": ("transcribe a.flac talks -m my-ctc --words", "expected a folder for the words of 3 files, got none"),
    "one file for several": (
        "transcribe a.flac talks -m my-ctc -o x.txt",
        "expected a folder for 3 results, got x.txt; pass -o F",
    ),
    "stdout twice": (
        "transcribe a.flac -m my-ctc -o - --json",
        "expected stdout for the result or for --json, got both; pass -o",
    ),
    "exists": (
        "transcribe a.flac -m my-ctc -o there.txt",
        "expected new files to write, but there.txt exists; pass --overwrite",
    ),
    "unwritable": ("transcribe a.flac -m my-ctc -o /proc/x.txt", "cannot write|permission denied|expected"),
    "a file as a folder": ("transcribe a.flac -m my-ctc -o there.txt/x.txt", "expected a folder to write to, but .* is a file"),
    "nothing to align": (
        "align a.flac empty.txt -m my-ctc",
        "expected a text with at least one character to be spoken, got ''",
    ),
    "no room": (
        "align short.flac talk.txt -m my-ctc",
        r"expected at least \d+ frames for \d+ tokens .* check that the text belong",
    ),
    "no text": (
        "align a.flac speech.wav -m my-ctc",
        "expected speech.wav to be a text in UTF-8, got other bytes; pass a text f",
    ),
    "S2T aligns": (
        "align a.flac x -m my-s2t",
        "expected a model with a CTC head to align with, got one without; pass a Wav2Vec2",
    ),
    "device": ("transcribe a.flac -m my-ctc --device warp", "expected a device that works here .* got 'warp'"),
    "dtype": ("transcribe a.flac -m my-ctc --dtype int8", "int8"),
}


@pytest.fixture
def unusable(work: Path) -> None:
    """Files that can't be used."""
    import soundfile

    audio.save("silent.wav", np.zeros(RATE, np.float32), RATE)
    audio.save("short.wav", np.full(100, 0.5, np.float32), RATE)
    audio.load("a.flac", duration_seconds=0.5).save("short.flac")
    soundfile.write("nan.wav", np.full(99, np.nan), RATE, subtype="FLOAT")
    soundfile.write("loud.wav", np.arange(-32767.0, 32767, 2), RATE, subtype="FLOAT")
    write_arpa(work / "x.arpa", ["A"])
    write_arpa(work / "foreign.arpa", ["привет", "мир"])
    Path("there.txt").touch()
    Path("empty.txt").touch()
    Path("talk.txt").write_text(" ".join(ENGLISH))


@pytest.mark.usefixtures("unusable")
@pytest.mark.parametrize("case", REFUSALS)
def test_one_line_and_nothing_written(run: Run, work: Path, case: str) -> None:
    line, message = REFUSALS[case]
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    result = run(*shlex.split(line))
    assert (result.code, result.out) == (2, b"")
    [told] = result.err.splitlines()
    assert told.startswith("error: ")
    assert re.search(message, told), told
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before


def test_a_text_too_long_for_a_files_name(run: Run) -> None:
    result = run("align", "a.flac", " ".join([*ENGLISH[:1], *["..."] * 2000]), "-m", "my-ctc")
    assert result.code == 0
    assert len(result.out.splitlines()) == 1 + len(ENGLISH[0].split())
