"""`phonograph transcribe`, `translate` and `align`: files to text, subtitles and times.

What is heard is phonograph.api's business; here options are checked, and files read and written.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from phonograph.cli.console import standard_output
from phonograph.cli.options import AsJson, Batch, Channel, Device, Dtype, Output, Overwrite, Quiet, Speech, Threads
from phonograph.cli.paths import AUDIO_SUFFIXES, STANDARD, Input, Job, Outputs, find_inputs, plan
from phonograph.cli.runs import (
    Run,
    check_stdout,
    groups_of_short,
    known_suffix,
    load_together,
    run_over,
    seconds_of,
    standard_input_file,
    use_threads,
)
from phonograph.errors import AudioError, ConfigError
from phonograph.files import atomic_write, make_folder

if TYPE_CHECKING:
    from phonograph.api import Recognizer
    from phonograph.audio import Audio
    from phonograph.decoding.transcript import Transcript

__all__ = ["align", "transcribe", "translate"]

_TEXT_SUFFIXES = (".txt", ".text", ".lab", ".srt", ".vtt", ".tsv", ".csv", ".json")
"""What ends so was meant as a file's name, not as words that are spoken."""

Recognize: TypeAlias = "Callable[[list[str | Audio], Callable[[float], None]], list[Transcript]]"

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Name, folder or hub id of a Wav2Vec2 with a CTC head or a Speech2Text."),
]
Format = Annotated[
    str | None, typer.Option("--format", "-f", help="txt, json, srt, vtt or tsv; txt by default. A file's name picks its own.")
]
Beams = Annotated[int | None, typer.Option("--beams", min=1, help="Hypotheses that a beam search follows.")]
Alternatives = Annotated[
    int | None, typer.Option("--alternatives", min=1, help="Texts to keep of the search, with scores, in JSON.")
]


def transcribe(
    speech: Speech,
    out: Output = None,
    model: Model = None,
    file_format: Format = None,
    words: Annotated[bool, typer.Option("--words", help="A line, cue or row for each word, instead of each segment.")] = False,
    characters: Annotated[bool, typer.Option("--characters", help="In JSON, also the time of each character.")] = False,
    language: Annotated[str | None, typer.Option("--language", help="Of a model of many, such as fra.")] = None,
    lm: Annotated[
        str | None,
        typer.Option("--lm", metavar="FILE", help="N-gram model for a beam search: ARPA or KenLM binary."),
    ] = None,
    lm_weight: Annotated[float | None, typer.Option("--lm-weight", help="How much it counts; 0.5 by default.")] = None,
    hotword: Annotated[
        list[str] | None,
        typer.Option("--hotword", metavar="WORD=BONUS", help="Expect a word; a bonus of 5 to 10 is strong."),
    ] = None,
    beams: Beams = None,
    alternatives: Alternatives = None,
    channel: Channel = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    batch_size: Batch = 1,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn speech into text.

    Without -o the text goes to stdout, that of several files with their names before it. With a folder OUT, speech.wav becomes
    speech.txt there. A file that can't be used is reported, the others are done, and the exit code is 2.
    """
    job = _Texts(speech, out, file_format, words, channel, batch_size, overwrite, as_json, quiet)
    hotwords = dict(_hotword(text) for text in hotword or [])
    if characters and words:
        raise ConfigError("expected --words or --characters, got both; JSON holds the words of --characters too")

    def load() -> Recognize:
        from phonograph import api

        recognizer = load_recognizer(model, device, dtype, threads)
        decoding = _decoding(recognizer, beams, alternatives, lm_weight)

        def recognize(items: "list[str | Audio]", on_progress: Callable[[float], None]) -> "list[Transcript]":
            return api.transcribe(
                items,
                recognizer,
                timestamps="char" if characters else "word" if words else None,
                language=language,
                lm=lm,
                hotwords=hotwords,
                decoding=decoding,
                channel=channel,
                batch_size=batch_size,
                on_progress=on_progress,
            )

        return recognize

    job.run(load)


def translate(
    speech: Speech,
    to: Annotated[
        str | None, typer.Option("--to", help="Language to write, such as de; needed if the model has several.")
    ] = None,
    out: Output = None,
    model: Model = None,
    file_format: Format = None,
    beams: Beams = None,
    alternatives: Alternatives = None,
    channel: Channel = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    batch_size: Batch = 1,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn speech into text of another language.

    Inputs and outputs are as for transcribe.
    """
    job = _Texts(speech, out, file_format, False, channel, batch_size, overwrite, as_json, quiet)

    def load() -> Recognize:
        from phonograph import api

        if model is None:
            raise ConfigError("expected --model, got none, and none that translates is bundled; pass a folder or a hub id")
        recognizer = load_recognizer(model, device, dtype, threads)
        decoding = _decoding(recognizer, beams, alternatives, None)

        def recognize(items: "list[str | Audio]", on_progress: Callable[[float], None]) -> "list[Transcript]":
            return api.translate(
                items, to, recognizer, decoding=decoding, channel=channel, batch_size=batch_size, on_progress=on_progress
            )

        return recognize

    job.run(load)


def align(
    speech: Annotated[str, typer.Argument(metavar="SPEECH", help="An audio file, or - for stdin.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What is said in it: a text file, or the text itself.")],
    out: Output = None,
    model: Model = None,
    file_format: Annotated[
        str | None,
        typer.Option("--format", "-f", help="tsv, json, srt, vtt or txt; a file's name picks its own."),
    ] = None,
    segments: Annotated[bool, typer.Option("--segments", help="A cue or row for each segment, instead of each word.")] = False,
    language: Annotated[str | None, typer.Option("--language", help="Of a model of many, such as fra.")] = None,
    channel: Channel = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find when each word of a known text is spoken.

    The times go to stdout, or to the file OUT.
    """
    job = _Texts([speech], out, file_format or "tsv", not segments, channel, 1, overwrite, as_json, quiet)
    spoken = _text_of(text)

    def load() -> Recognize:
        from phonograph import api

        recognizer = load_recognizer(model, device, dtype, threads)

        def recognize(items: "list[str | Audio]", on_progress: Callable[[float], None]) -> "list[Transcript]":
            return [
                api.align(item, spoken, recognizer, language=language, channel=channel, on_progress=on_progress)
                for item in items
            ]

        return recognize

    job.run(load)


# Options ----------------------------------------------------------------------------------------------------------------


def load_recognizer(model: str | None, device: str, dtype: str, threads: int | None) -> "Recognizer":
    from phonograph import api

    use_threads(threads)
    return api.load_recognizer(model, device=device, dtype=dtype)


def _decoding(recognizer: "Recognizer", beams: int | None, alternatives: int | None, lm_weight: float | None) -> Any:
    """The beam search asked for, in the words of the model's family."""
    from phonograph.api.ctc import CTCRecognizer
    from phonograph.decoding.ctc import BeamOptions

    if isinstance(recognizer, CTCRecognizer):
        chosen: dict[str, Any] = {"beam_width": beams, "num_results": alternatives, "alpha": lm_weight}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        return BeamOptions(**chosen) if chosen else None
    if lm_weight is not None:
        raise ConfigError("expected a model with a CTC head for --lm-weight, got one without; leave it out")
    given = {"num_beams": beams, "num_return_sequences": alternatives}
    return {name: value for name, value in given.items() if value is not None}


def _hotword(text: str) -> tuple[str, float]:
    word, _, bonus = text.rpartition("=")
    try:
        if word:
            return word, float(bonus)
    except ValueError:
        pass
    raise ConfigError(f"expected --hotword as WORD=BONUS, such as PHONOGRAPH=5, got {text!r}; write it so")


def _text_of(argument: str) -> str:
    if not os.path.isfile(argument):
        if os.path.splitext(argument)[1].lower() in _TEXT_SUFFIXES:
            raise ConfigError(f"expected a text or the name of a text file, but {argument} does not exist; check the name")
        return argument
    try:
        return Path(argument).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"expected {argument} to be a text in UTF-8, got other bytes; pass a text file") from error
    except OSError as error:
        raise ConfigError(f"cannot read {argument}: {error.strerror}; check its permissions") from error


# Work -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Texts:
    """Files to recognise, and where and how their texts are to be written."""

    speech: Sequence[str]
    out: str | None
    file_format: str | None
    words: bool
    channel: int | None
    batch_size: int
    overwrite: bool
    as_json: bool
    quiet: bool

    def run(self, load: Callable[[], Recognize]) -> None:
        inputs, refused = find_inputs(self.speech, AUDIO_SUFFIXES)
        jobs = self._jobs(inputs)
        with run_over(jobs, refused, self.quiet, self.as_json) as run:
            recognize = load()
            recognize([], run.progress.advance)  # options that don't fit the model are refused once
            printed: dict[str, str] = {}
            for group in groups_of_short(jobs, self.batch_size):
                for job, transcript in self._recognized(group, recognize, run):
                    if job.output == STANDARD:
                        printed[job.source] = self._shown(job, transcript, len(jobs) > 1)
                    else:
                        self._write(job, transcript)
                    if self.batch_size == 1:
                        self._print([printed.pop(job.source, "")])
            self._print([printed.get(job.source, "") for job in jobs])

    def _jobs(self, inputs: Sequence[Input]) -> list[Job]:
        from phonograph.decoding.transcript import TRANSCRIPT_FORMATS

        suffixes = tuple(f".{name}" for name in TRANSCRIPT_FORMATS)
        suffix = known_suffix(self.file_format or "txt", suffixes)
        if self.out is not None:
            jobs = plan(inputs, self.out, Outputs(suffixes, suffix, self.overwrite))
            check_stdout(jobs, self.as_json)
            return jobs
        lines = suffix in (".txt", ".json") and not (self.words and suffix == ".txt")
        if len(inputs) > 1 and not lines and not self.as_json:
            what = "words" if suffix == ".txt" else suffix[1:]
            raise ConfigError(f"expected a folder for the {what} of {len(inputs)} files, got none; pass -o FOLDER")
        return [Job(item.source, STANDARD) for item in inputs]

    def _recognized(self, group: Sequence[Job], recognize: Recognize, run: Run) -> "Iterator[tuple[Job, Transcript]]":
        """What is said in each file that can be used, reported as soon as it is known."""
        if len(group) > 1:
            yield from self._together(group, recognize, run)
            return
        [job] = group
        with run.attempt(job.source):
            visible = run.progress.visible and job.source != STANDARD
            run.progress.start(job.source, seconds_of(job.source) if visible else None)
            started = time.perf_counter()
            [transcript] = recognize([self._stdin() if job.source == STANDARD else job.source], run.progress.advance)
            self._done(run, job, transcript, time.perf_counter() - started)
            yield job, transcript

    def _together(self, group: Sequence[Job], recognize: Recognize, run: Run) -> "Iterator[tuple[Job, Transcript]]":
        clips, total = load_together(group, run, mono=True, channel=self.channel)
        if not clips:
            return
        started = time.perf_counter()
        try:
            found = recognize(list(clips.values()), run.progress.advance)
        except AudioError:  # one of them; alone, each tells for itself
            for job in clips:
                yield from self._recognized([job], recognize, run)
            return
        elapsed = time.perf_counter() - started
        for (job, clip), transcript in zip(clips.items(), found, strict=True):
            self._done(run, job, transcript, elapsed * clip.duration_seconds / total)
            yield job, transcript

    def _done(self, run: Run, job: Job, transcript: "Transcript", elapsed: float) -> None:
        details = {"transcript": _plain(transcript)} if self.as_json and self.out is None else {"text": transcript.text}
        run.done(job, transcript.duration_seconds or 0.0, elapsed, details, f"{len(transcript.text.split())} words")

    def _stdin(self) -> "Audio":
        from phonograph import audio

        return audio.load(standard_input_file(), mono=True, channel=self.channel)

    def _shown(self, job: Job, transcript: "Transcript", several: bool) -> str:
        """What stdout is to get: among several files, a line that begins with the file's name, or an object that holds it."""
        if self.as_json:
            return ""
        if not several:
            return self._formatted(transcript, self.file_format or "txt")
        if self.file_format == "json":
            return json.dumps({"file": job.source, **_plain(transcript)}, ensure_ascii=False) + "\n"
        return f"{job.source}\t{self._formatted(transcript, 'txt')}"

    def _write(self, job: Job, transcript: "Transcript") -> None:
        text = self._formatted(transcript, Path(job.output).suffix[1:].lower())
        make_folder(Path(job.output).parent)
        with atomic_write(job.output) as file:
            file.write(text.encode())

    def _formatted(self, transcript: "Transcript", file_format: str) -> str:
        from phonograph.decoding.transcript import format_transcript

        return format_transcript(transcript, file_format, self.words)

    def _print(self, texts: Sequence[str]) -> None:
        with standard_output() as file:
            file.write("".join(texts))


def _plain(transcript: "Transcript") -> dict[str, Any]:
    from phonograph.decoding.transcript import format_transcript

    fields: dict[str, Any] = json.loads(format_transcript(transcript, "json"))
    return fields
