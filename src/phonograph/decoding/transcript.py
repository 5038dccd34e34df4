"""The result of a transcription, and the formats it is written in: text, JSON, SRT, VTT, TSV.

    transcript = Transcript("HELLO WORLD", segments_from_words(words), language="en", duration_seconds=1.4)
    format_transcript(transcript, "srt")
    Transcript.from_json(format_transcript(transcript, "json")) == transcript

Knows nothing of audio or models. SRT and VTT are written here because pysubs2 1.8 drops braces, which it takes for style codes,
and leaves the characters < & > as they are in VTT; the tests read our files with it.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from phonograph.errors import ConfigError

__all__ = [
    "TRANSCRIPT_FORMATS",
    "Alternative",
    "Character",
    "Segment",
    "Transcript",
    "Word",
    "format_transcript",
    "segments_from_words",
]

TRANSCRIPT_FORMATS = ("txt", "json", "srt", "vtt", "tsv")
"""Formats by the extension of their files."""

_SCHEMA = "phonograph.transcript/1"


@dataclass(frozen=True)
class Character:
    """A character, when it is spoken, and the mean probability of its token, 0 to 1."""

    text: str
    start_seconds: float
    end_seconds: float
    confidence: float


@dataclass(frozen=True)
class Word:
    """A word, when it is spoken, and the mean confidence of its characters; these where they were asked for."""

    text: str
    start_seconds: float
    end_seconds: float
    confidence: float
    characters: tuple[Character, ...] = ()


@dataclass(frozen=True)
class Segment:
    """Words that belong together, about a line of subtitles."""

    text: str
    start_seconds: float
    end_seconds: float
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Alternative:
    """Another text that the search found, and its score, higher being better."""

    text: str
    score: float


@dataclass(frozen=True)
class Transcript:
    """What was said, and when as far as that was asked for.

    Attributes:
        text: all of it.
        segments: its parts with times; none where only the text was asked for.
        language: code such as "en"; None if unknown.
        duration_seconds: of the audio; None if unknown.
        alternatives: the best texts of a beam search, best first, this one among them.
    """

    text: str
    segments: tuple[Segment, ...] = ()
    language: str | None = None
    duration_seconds: float | None = None
    alternatives: tuple[Alternative, ...] = ()

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments."""
        return tuple(word for segment in self.segments for word in segment.words)

    @staticmethod
    def from_json(text: str) -> "Transcript":
        """Read back what `format_transcript` wrote as "json".

        Raises:
            ConfigError: other JSON, or none at all.
        """
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise ConfigError(
                f"expected a transcript in JSON, got something else ({error}); pass a file that was written so"
            ) from error
        schema = fields.get("schema") if isinstance(fields, dict) else None
        if schema != _SCHEMA:
            raise ConfigError(f"expected a transcript with schema {_SCHEMA!r}, got {schema!r}; write it with this version")
        try:
            return _transcript(fields)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"expected all fields of {_SCHEMA}, got others ({error}); write the transcript again") from error


def segments_from_words(
    words: Sequence[Word], *, pause_seconds: float = 0.8, max_duration_seconds: float = 7.0, max_characters: int = 84
) -> tuple[Segment, ...]:
    """Split words into segments that can be read as subtitles.

    Args:
        words: in order of time.
        pause_seconds: pauses of this length always split.
        max_duration_seconds: longer segments are split, preferably at a long pause near the middle; single words stay whole.
        max_characters: as are those with more characters; the default is two lines of 42.
    """
    pieces, start = [], 0
    for index in range(1, len(words) + 1):
        if index == len(words) or _pause(words, index) >= pause_seconds:
            pieces.append(words[start:index])
            start = index
    pieces.reverse()
    segments: list[Segment] = []
    while pieces:
        piece = pieces.pop()
        text = " ".join(word.text for word in piece)
        segment = Segment(text, piece[0].start_seconds, piece[-1].end_seconds, tuple(piece))
        fits = segment.end_seconds - segment.start_seconds <= max_duration_seconds and len(text) <= max_characters
        if fits or len(piece) == 1:
            segments.append(segment)
        else:
            middle = max(range(1, len(piece)), key=lambda index: (_pause(piece, index) + 0.1) * min(index, len(piece) - index))
            pieces += [piece[middle:], piece[:middle]]
    return tuple(segments)


def _pause(words: Sequence[Word], index: int) -> float:
    # Rounded as times are, so that from 2.0 to 2.8 is a pause of 0.8.
    return max(round(words[index].start_seconds - words[index - 1].end_seconds, 6), 0.0)


def format_transcript(transcript: Transcript, format: str, words: bool = False) -> str:  # noqa: A002 (the command's option)
    """A transcript as the text of a file, which ends in a newline.

    - "txt": the text on one line.
    - "json": an object with "schema" ("phonograph.transcript/1") and the fields of `Transcript`, `Segment`, `Word`, `Character`
      and `Alternative` under their own names, words always included.
    - "srt", "vtt": a cue for each segment. VTT has &, < and > escaped; in SRT, which has no escapes, "-->" becomes "->".
    - "tsv": as whisper writes it: columns start and end, in milliseconds, and text.

    Line breaks and tabs in texts become spaces, except in JSON.

    Args:
        transcript: what to write.
        format: one of `TRANSCRIPT_FORMATS`.
        words: a line, cue or row for each word instead of each segment.

    Raises:
        ConfigError: another format, or one that needs times of a transcript that has none.
    """
    if format not in TRANSCRIPT_FORMATS:
        raise ConfigError(f"expected a format among {', '.join(TRANSCRIPT_FORMATS)}, got {format!r}; pass one of these")
    if format == "json":
        fields = {"schema": _SCHEMA, **dataclasses.asdict(transcript)}
        return json.dumps(fields, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    if format == "txt" and not words:
        return _one_line(transcript.text) + "\n"
    parts: Sequence[Segment | Word] = transcript.words if words else transcript.segments
    if transcript.text and not parts:
        unit = "words" if words else "segments"
        raise ConfigError(f"expected {unit} with times to write {format}, got the text alone; transcribe with timestamps")
    return {"txt": _txt, "srt": _srt, "vtt": _vtt, "tsv": _tsv}[format](parts)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _txt(parts: Sequence[Segment | Word]) -> str:
    return "".join(f"{_one_line(part.text)}\n" for part in parts)


def _srt(parts: Sequence[Segment | Word]) -> str:
    cues = []
    for number, part in enumerate(parts, 1):
        text = _one_line(part.text).replace("-->", "->")
        cues.append(f"{number}\n{_clock(part.start_seconds, ',')} --> {_clock(part.end_seconds, ',')}\n{text}\n")
    return "\n".join(cues)


def _vtt(parts: Sequence[Segment | Word]) -> str:
    cues = ["WEBVTT\n"]
    for part in parts:
        text = _one_line(part.text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        cues.append(f"{_clock(part.start_seconds, '.')} --> {_clock(part.end_seconds, '.')}\n{text}\n")
    return "\n".join(cues)


def _tsv(parts: Sequence[Segment | Word]) -> str:
    rows = [
        f"{_milliseconds(part.start_seconds)}\t{_milliseconds(part.end_seconds)}\t{_one_line(part.text)}\n" for part in parts
    ]
    return "".join(["start\tend\ttext\n", *rows])


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _clock(seconds: float, point: str) -> str:
    minutes, milliseconds = divmod(_milliseconds(seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _transcript(fields: dict[str, Any]) -> Transcript:
    segments = tuple(
        Segment(words=tuple(_word(word) for word in segment["words"]), **_others(segment, "words"))
        for segment in fields["segments"]
    )
    alternatives = tuple(Alternative(**alternative) for alternative in fields["alternatives"])
    return Transcript(segments=segments, alternatives=alternatives, **_others(fields, "schema", "segments", "alternatives"))


def _word(fields: dict[str, Any]) -> Word:
    characters = tuple(Character(**character) for character in fields["characters"])
    return Word(characters=characters, **_others(fields, "characters"))


def _others(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}
