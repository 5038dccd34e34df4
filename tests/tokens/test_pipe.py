"""Token files through pipes: the same codes as through files, each block at once, and damage refused."""

import io
import os
from pathlib import Path

import numpy as np
import pytest

from phonograph.errors import ConfigError, TokenFileError
from phonograph.tokens import SpeechTokens, TokenFileHeader, TokenPipeReader, TokenPipeWriter

HEADER = TokenFileHeader(model_id="m", sampling_rate=24000, frame_samples=1920, num_codebooks=2, codebook_size=16)
CODES = np.arange(40).reshape(2, 20) % 16


def written() -> bytes:
    file = io.BytesIO()
    writer = TokenPipeWriter(file, HEADER)
    for frame in range(18):
        writer.write(CODES[:, frame : frame + 1])
    writer.finish(CODES[:, 18:], 38_000)
    return file.getvalue()


class Dribble:
    """Bytes that come few at a time."""

    def __init__(self, data: bytes, size: int) -> None:
        self.file, self.size = io.BytesIO(data), size

    def read1(self, size: int) -> bytes:
        return self.file.read(min(size, self.size))

    def fileno(self) -> int:
        raise OSError


def test_what_is_written_is_a_token_file() -> None:
    assert SpeechTokens.load(io.BytesIO(written())) == SpeechTokens(CODES, HEADER, 38_000)


@pytest.mark.parametrize("size", [1, 7, 24, 100, 65536])
def test_what_comes_in_pieces_is_read(size: int) -> None:
    reader = TokenPipeReader(Dribble(written(), size))
    assert reader.header == HEADER
    blocks = list(reader)
    assert [block.shape[1] for block in blocks] == [1] * 18 + [2]
    assert np.array_equal(np.concatenate(blocks, axis=1), CODES)
    assert (reader.num_frames, reader.num_samples) == (20, 38_000)


def test_a_saved_file_is_read(tmp_path: Path) -> None:
    SpeechTokens(CODES, HEADER, 38_000).save(tmp_path / "a.mimi")
    with open(tmp_path / "a.mimi", "rb") as file:
        assert np.array_equal(np.concatenate(list(TokenPipeReader(file)), axis=1), CODES)


def test_each_block_comes_before_the_next_is_written_and_the_last_with_its_length() -> None:
    incoming, outgoing = os.pipe()
    with open(incoming, "rb") as read, open(outgoing, "wb") as write:
        writer = TokenPipeWriter(write, HEADER)
        reader = TokenPipeReader(read)
        blocks = iter(reader)
        for frame in range(3):
            writer.write(CODES[:, frame : frame + 1])
            assert np.array_equal(next(blocks), CODES[:, frame : frame + 1])
            assert reader.num_samples is None
        writer.finish(CODES[:, 3:4], 7000)
        assert np.array_equal(next(blocks), CODES[:, 3:4])
        assert reader.num_samples == 7000
        write.close()
        assert next(blocks, None) is None


def test_codes_that_do_not_fit_are_refused_and_nothing_is_written() -> None:
    file = io.BytesIO()
    writer = TokenPipeWriter(file, HEADER)
    before = file.getvalue()
    with pytest.raises(ConfigError, match="expected codes from 0 to 15, got 16"):
        writer.write([[16], [0]])
    with pytest.raises(ConfigError, match="expected num_samples to be None or from 0 to 0"):
        writer.finish(np.zeros((2, 0), np.int64), 5)
    assert file.getvalue() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "cannot read the token stream: the file is empty"),
        (lambda data: b"RIFF" + data, "does not begin with"),
        (lambda data: data[:30], "it ends within its header"),
        (lambda data: data[:-3], "damaged at byte .*, frame 20: the file ends within a record"),
        (lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:], "damaged at byte .*checksum does not match"),
        (lambda data: data[:63] + b"xx" + data[63:], "damaged at byte 63, frame 0: no record begins here"),
        (lambda data: data[:63] + data[63 + 25 + 4 :], "damaged at byte 63, frame 0: "),
    ],
)
def test_damage_is_refused(change: object, message: str) -> None:
    with pytest.raises(TokenFileError, match=message):
        list(TokenPipeReader(Dribble(change(written()), 65536)))
