"""Transcripts: how words become segments, what each format looks like, and that others can read them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import peer

from phonograph.decoding.transcript import (
    TRANSCRIPT_FORMATS,
    Alternative,
    Character,
    Segment,
    Transcript,
    Word,
    format_transcript,
    segments_from_words,
)
from phonograph.errors import ConfigError

WORDS = (
    Word("HELLO", 0.5, 0.98, 0.9, (Character("H", 0.5, 0.52, 0.8), Character("ELLO", 0.6, 0.98, 1.0))),
    Word("THERE", 1.06, 1.3, 0.7),
    Word("YOU", 3661.0, 3661.2345, 0.5),
)
TRANSCRIPT = Transcript(
    "HELLO THERE YOU",
    segments_from_words(WORDS),
    "en",
    3662.5,
    (Alternative("HELLO THERE YOU", -1.5), Alternative("HELLO", -2.0)),
)


def words_at(*spans):
    return [Word(f"W{i}", start, end, 1.0) for i, (start, end) in enumerate(spans)]


class TestSegments:
    def test_pauses_split(self):
        segments = segments_from_words(words_at((0, 1), (1.5, 2), (2.8, 3), (3.8, 4)))
        assert [segment.text for segment in segments] == ["W0 W1", "W2", "W3"]
        assert [(segment.start_seconds, segment.end_seconds) for segment in segments] == [(0, 2), (2.8, 3), (3.8, 4)]
        assert [len(segment.words) for segment in segments] == [2, 1, 1]

    def test_pause_length_can_be_chosen(self):
        assert len(segments_from_words(words_at((0, 1), (2, 3)), pause_seconds=1.0)) == 2
        assert len(segments_from_words(words_at((0, 1), (2, 3)), pause_seconds=1.1)) == 1

    def test_long_segments_are_split_at_a_long_pause_near_the_middle(self):
        words = words_at((0, 1), (1.1, 2), (2.1, 3), (3.6, 4), (4.1, 5), (5.1, 6), (6.1, 7), (7.1, 8))
        assert [segment.text for segment in segments_from_words(words)] == ["W0 W1 W2", "W3 W4 W5 W6 W7"]

    def test_long_segments_without_pauses_are_halved(self):
        words = words_at(*((i, i + 1) for i in range(12)))
        assert [len(segment.words) for segment in segments_from_words(words)] == [6, 6]

    @given(
        st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 2), st.integers(1, 30)), max_size=60),
        st.floats(0.5, 10),
        st.integers(5, 100),
    )
    def test_every_word_is_in_one_segment_within_the_limits(self, shapes, seconds, characters):
        words, time = [], 0.0
        for pause, duration, letters in shapes:
            words.append(Word("x" * letters, time + pause, time + pause + duration, 1.0))
            time += pause + duration
        segments = segments_from_words(words, max_duration_seconds=seconds, max_characters=characters)
        assert [word for segment in segments for word in segment.words] == words
        for segment in segments:
            assert segment.text == " ".join(word.text for word in segment.words)
            if len(segment.words) > 1:
                assert segment.end_seconds - segment.start_seconds <= seconds
                assert len(segment.text) <= characters
                gaps = zip(segment.words, segment.words[1:], strict=False)
                assert all(round(after.start_seconds - before.end_seconds, 6) < 0.8 for before, after in gaps)

    def test_no_words(self):
        assert segments_from_words([]) == ()


def test_words_of_all_segments():
    assert TRANSCRIPT.words == WORDS
    assert Transcript("TEXT").words == ()


GOLDEN = {
    "txt": "HELLO THERE YOU\n",
    "srt": "1\n00:00:00,500 --> 00:00:01,300\nHELLO THERE\n\n2\n01:01:01,000 --> 01:01:01,234\nYOU\n",
    "vtt": "WEBVTT\n\n00:00:00.500 --> 00:00:01.300\nHELLO THERE\n\n01:01:01.000 --> 01:01:01.234\nYOU\n",
    "tsv": "start\tend\ttext\n500\t1300\tHELLO THERE\n3661000\t3661234\tYOU\n",
}
GOLDEN_WORDS = {
    "txt": "HELLO\nTHERE\nYOU\n",
    "srt": "1\n00:00:00,500 --> 00:00:00,980\nHELLO\n\n2\n00:00:01,060 --> 00:00:01,300\nTHERE\n\n"
    "3\n01:01:01,000 --> 01:01:01,234\nYOU\n",
    "vtt": "WEBVTT\n\n00:00:00.500 --> 00:00:00.980\nHELLO\n\n00:00:01.060 --> 00:00:01.300\nTHERE\n\n"
    "01:01:01.000 --> 01:01:01.234\nYOU\n",
    "tsv": "start\tend\ttext\n500\t980\tHELLO\n1060\t1300\tTHERE\n3661000\t3661234\tYOU\n",
}


@pytest.mark.parametrize("format_name", GOLDEN)
def test_formats_to_the_byte(format_name):
    assert format_transcript(TRANSCRIPT, format_name) == GOLDEN[format_name]
    assert format_transcript(TRANSCRIPT, format_name, words=True) == GOLDEN_WORDS[format_name]


@pytest.mark.parametrize(
    ("format_name", "line"),
    [
        ("txt", "a b -> \\ <i>&{x}</i> --> c"),
        ("srt", "a b -> \\ <i>&{x}</i> -> c"),
        ("vtt", "a b -&gt; \\ &lt;i&gt;&amp;{x}&lt;/i&gt; --&gt; c"),
        ("tsv", "0\t1000\ta b -> \\ <i>&{x}</i> --> c"),
    ],
)
def test_what_would_break_a_format_is_escaped(format_name, line):
    text = "a\n\nb\t->\r \\ <i>&{x}</i> --> c"
    written = format_transcript(Transcript(text, (Segment(text, 0.0, 1.0),)), format_name)
    assert written.splitlines()[-1] == line
    assert written.count("-->") == 1


@pytest.mark.parametrize("format_name", ["srt", "vtt"])
@pytest.mark.parametrize("words", [False, True])
def test_pysubs2_reads_the_same(format_name, words):
    read = peer("pysubs2").SSAFile.from_string(format_transcript(TRANSCRIPT, format_name, words=words), format_=format_name)
    parts = TRANSCRIPT.words if words else TRANSCRIPT.segments
    assert [(event.text, event.start, event.end) for event in read] == [
        (part.text, round(part.start_seconds * 1000), round(part.end_seconds * 1000)) for part in parts
    ]


@pytest.mark.parametrize(
    ("format_name", "text"), [("txt", "\n"), ("srt", ""), ("vtt", "WEBVTT\n"), ("tsv", "start\tend\ttext\n")]
)
@pytest.mark.parametrize("words", [False, True])
def test_silence_makes_empty_files(format_name, text, words):
    expected = "" if format_name == "txt" and words else text
    assert format_transcript(Transcript("", duration_seconds=2.0), format_name, words=words) == expected


class TestJson:
    def test_the_schema(self):
        fields = json.loads(format_transcript(TRANSCRIPT, "json"))
        assert list(fields) == ["schema", "text", "segments", "language", "duration_seconds", "alternatives"]
        assert fields["schema"] == "phonograph.transcript/1"
        assert fields["alternatives"][1] == {"text": "HELLO", "score": -2.0}
        assert list(fields["segments"][0]) == ["text", "start_seconds", "end_seconds", "words"]
        assert fields["segments"][1]["words"] == [
            {"text": "YOU", "start_seconds": 3661.0, "end_seconds": 3661.2345, "confidence": 0.5, "characters": []}
        ]
        assert fields["segments"][0]["words"][0]["characters"][0] == {
            "text": "H",
            "start_seconds": 0.5,
            "end_seconds": 0.52,
            "confidence": 0.8,
        }

    def test_it_is_the_same_for_words_and_keeps_all_characters(self):
        assert format_transcript(TRANSCRIPT, "json", words=True) == format_transcript(TRANSCRIPT, "json")
        odd = Transcript('é\n猫 \u2028 --> "\\')
        written = format_transcript(odd, "json")
        assert "é" in written
        assert Transcript.from_json(written) == odd

    @given(
        st.lists(st.lists(st.tuples(st.text(), st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 1)), max_size=3), max_size=3),
        st.none() | st.text(),
        st.none() | st.floats(0, 1e6),
    )
    def test_read_back(self, shapes, language, seconds):
        segments = tuple(Segment("s", 0.0, 1.0, tuple(Word(*word, (Character(*word),)) for word in words)) for words in shapes)
        transcript = Transcript("text", segments, language, seconds, (Alternative("text", -1.0),))
        assert Transcript.from_json(format_transcript(transcript, "json")) == transcript

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("not json", "expected a transcript in JSON, got something else"),
            ("[]", "expected a transcript with schema 'phonograph.transcript/1', got None; write it with this version"),
            ('{"schema": "other/2"}', "expected a transcript with schema 'phonograph.transcript/1', got 'other/2'"),
            ('{"schema": "phonograph.transcript/1", "text": ""}', "expected all fields of phonograph.transcript/1, got others"),
            (
                '{"schema": "phonograph.transcript/1", "text": "", "segments": [], "alternatives": [{"txt": 1}]}',
                "expected all fields of phonograph.transcript/1, got others .*txt.*; write the transcript again",
            ),
        ],
    )
    def test_other_files_are_refused(self, text, message):
        with pytest.raises(ConfigError, match=message):
            Transcript.from_json(text)


def test_unknown_formats_are_refused():
    assert TRANSCRIPT_FORMATS == ("txt", "json", "srt", "vtt", "tsv")
    with pytest.raises(ConfigError, match="expected a format among txt, json, srt, vtt, tsv, got 'ass'; pass one of these"):
        format_transcript(TRANSCRIPT, "ass")


@pytest.mark.parametrize(
    ("transcript", "format_name", "words", "unit"),
    [
        (Transcript("TEXT"), "srt", False, "segments"),
        (Transcript("TEXT"), "tsv", True, "words"),
        (Transcript("TEXT", (Segment("TEXT", 0.0, 1.0),)), "txt", True, "words"),
    ],
)
def test_formats_with_times_need_times(transcript, format_name, words, unit):
    message = f"expected {unit} with times to write {format_name}, got the text alone; transcribe with timestamps"
    with pytest.raises(ConfigError, match=message):
        format_transcript(transcript, format_name, words=words)
