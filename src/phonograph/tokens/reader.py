"""Reading a token file: by time, block by block, while it grows, and past damage.

    with TokenReader("speech.mimi") as reader:
        second = reader.read(10.0, 11.0)
        for block in reader.blocks(): ...
        reader.refresh()  # see what was appended since
        for damage in reader.damage: print(damage)

Opening checks every record once and keeps 24 bytes for each block; codes are read from the file only when
asked for. Nothing is allocated on a record's word alone: only what its checksum confirmed and the file has
room for.
"""

import bisect
import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from phonograph.errors import ConfigError, TokenFileError
from phonograph.tokens.header import Codes, TokenFileHeader
from phonograph.tokens.index import Damage, RecordIndex, bytes_at
from phonograph.tokens.records import (
    CODES_AT_ONCE,
    HEADER_BYTES_MAX,
    RecordCodec,
    RecordHead,
    decode_header,
)
from phonograph.tokens.speech_tokens import SpeechTokens, samples_between

__all__ = ["TokenBlock", "TokenReader"]


@dataclass(frozen=True)
class TokenBlock:
    """One readable block: its place among these, its first frame, its codes (num_codebooks, num_frames)."""

    index: int
    first_frame: int
    codes: Codes


class TokenReader:
    """A token file opened for reading; a context manager.

    Args:
        source: a path, or a seekable binary file, which stays open when the reader closes.
        header: what to go by if the file's own header is damaged: that of another file of the same model.
            Every field must be equal, or no block's checksum is right.

    Raises:
        TokenFileError: the file can't be read, is no token file, or its header is damaged. Damage after the
            header never raises here: see `damage` and `incomplete_tail`.
    """

    def __init__(self, source: str | os.PathLike[str] | BinaryIO, *, header: TokenFileHeader | None = None) -> None:
        with contextlib.ExitStack() as stack:
            if isinstance(source, str | os.PathLike):
                self._name = os.fspath(source)
                # Unbuffered: a buffer would keep showing the old bytes of a file that changes.
                self._file: BinaryIO = stack.enter_context(self._open(self._name))
            else:
                self._name = str(getattr(source, "name", "the token file"))
                self._file = source
            if not self._file.seekable():
                raise TokenFileError(f"cannot read {self._name}: it can't be seeked in; read it into io.BytesIO")
            self._codec, records_start = self._read_header(header)
            self._index = RecordIndex(self._codec, records_start)
            self.refresh()
            self._owned = stack.pop_all()

    def __enter__(self) -> "TokenReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, if the reader opened it."""
        self._owned.close()

    @property
    def header(self) -> TokenFileHeader:
        """What the codes are."""
        return self._codec.header

    @property
    def num_frames(self) -> int:
        """Frames up to the end of the last readable block, those that damage took included."""
        return self._index.num_frames

    @property
    def num_blocks(self) -> int:
        """Readable blocks."""
        return len(self._index.offsets)

    @property
    def num_samples(self) -> int | None:
        """Audio samples of the recording; None while it is unfinished, or when its writer did not know."""
        return self._index.num_samples

    @property
    def finished(self) -> bool:
        """Whether the writer closed the recording. Appending opens it again."""
        return self._index.finished

    @property
    def damage(self) -> tuple[Damage, ...]:
        """What could not be read, in file order. An incomplete tail is not in it."""
        tail = self._index.tail
        return (*self._index.damage, *([tail] if tail and not self._index.tail_is_torn else []))

    @property
    def incomplete_tail(self) -> Damage | None:
        """A record cut off by the end of the file: being written, torn by a crash, or lost in a copy."""
        return self._index.tail if self._index.tail_is_torn else None

    @property
    def readable_end(self) -> int:
        """The byte at which the last whole record ends: where a writer goes on.

        Raises:
            TokenFileError: the rest of the file was given up on, so that it can't be told.
        """
        if self._index.stopped:
            raise TokenFileError(f"cannot tell where {self._name} ends: {self._index.tail}; save its prefix as another file")
        return self._index.readable_end

    def refresh(self) -> int:
        """Look at what was appended since; returns the number of new frames.

        Raises:
            TokenFileError: the file became shorter than what was already read, or can't be read.
        """
        before = self.num_frames
        try:
            self._index.extend(self._file)
        except TokenFileError as error:
            raise TokenFileError(f"cannot read {self._name}: {error}") from error
        except OSError as error:
            raise self._unreadable(error) from error
        return self.num_frames - before

    def read(self, start_seconds: float = 0.0, end_seconds: float | None = None) -> SpeechTokens:
        """The whole frames that cover [start_seconds, end_seconds), up to the recording's current end.

        Raises:
            ConfigError: a time is negative or not finite, or the end lies before the start.
            TokenFileError: frames among them are lost (the message says which; `blocks` gives all others), or
                the writer stored a code that the header does not allow.
        """
        return self.read_frames(*self.header.frame_range(start_seconds, end_seconds, self.num_frames))

    def read_frames(self, start: int = 0, end: int | None = None) -> SpeechTokens:
        """The frames [start, end), both cut off at `num_frames`.

        Raises:
            ConfigError: `start` is negative, or `end` lies before it.
            TokenFileError: as for `read`.
        """
        if start < 0 or (end is not None and end < start):
            raise ConfigError(f"expected 0 <= start <= end in frames, got {start} and {end}")
        end = self.num_frames if end is None else min(end, self.num_frames)
        start = min(start, end)
        self._refuse_lost_frames(start, end)
        codes = np.empty((self.header.num_codebooks, end - start), self.header.codes_dtype)
        index = bisect.bisect_right(self._index.end_frames, start)
        last = bisect.bisect_left(self._index.first_frames, end)
        while index < last:
            offset = self._index.first_frames[index] - start
            after = self._run_end(index, last)
            kept = self._read_blocks(index, after)[:, max(0, -offset) : end - start - offset]
            codes[:, max(0, offset) : max(0, offset) + kept.shape[1]] = kept
            index = after
        samples = samples_between(start, end, self.num_frames, self.num_samples, self.header.frame_samples)
        return SpeechTokens(codes, self.header, samples)

    def blocks(self, start_block: int = 0) -> Iterator[TokenBlock]:
        """The readable blocks from the `start_block`-th on, each read when its turn comes.

        A block keeps its index when the file grows: after `refresh`, begin with the `num_blocks` from before.

        Raises:
            TokenFileError: a block changed since the file was opened, or its writer stored a code that the
                header does not allow.
        """
        for index in range(start_block, self.num_blocks):
            yield TokenBlock(index, self._index.first_frames[index], self._read_blocks(index, index + 1))

    def _read_header(self, fallback: TokenFileHeader | None) -> tuple[RecordCodec, int]:
        try:
            header, header_bytes = decode_header(bytes_at(self._file, 0, HEADER_BYTES_MAX))
        except TokenFileError as error:
            if fallback is None:
                raise TokenFileError(f"cannot read {self._name}: {error}") from error
            return RecordCodec(fallback), 0
        except OSError as error:
            raise self._unreadable(error) from error
        return RecordCodec(header), header_bytes

    def _refuse_lost_frames(self, start: int, end: int) -> None:
        for damage in self._index.damage:
            if damage.end_frame is not None and max(start, damage.start_frame) < min(end, damage.end_frame):
                raise TokenFileError(f"{self._name} is damaged: {damage}; read other frames, or all that is left by blocks()")

    def _run_end(self, first: int, last: int) -> int:
        """The end of the run of alike blocks side by side from `first` on: one read and one unpacking."""
        num_frames = self._index.end_frames[first] - self._index.first_frames[first]
        most = max(1, CODES_AT_ONCE // (num_frames * self.header.num_codebooks))
        record_bytes = RecordHead(self._codec.payload_bytes(num_frames), 0, num_frames).record_bytes
        index = first + 1
        while (
            index < min(last, first + most)
            and self._index.offsets[index] == self._index.offsets[index - 1] + record_bytes
            and self._index.first_frames[index] == self._index.end_frames[index - 1]
            and self._index.end_frames[index] == self._index.first_frames[index] + num_frames
        ):
            index += 1
        return index

    def _read_blocks(self, first: int, after: int) -> Codes:
        """The codes of the blocks [first, after), which are a run."""
        offset, first_frame = self._index.offsets[first], self._index.first_frames[first]
        num_frames = self._index.end_frames[first] - first_frame
        expected = RecordHead(self._codec.payload_bytes(num_frames), first_frame, num_frames)
        size = expected.record_bytes
        try:
            records = bytes_at(self._file, offset, (after - first) * size)
        except OSError as error:
            raise self._unreadable(error) from error
        for place in range(after - first):
            record = records[place * size : (place + 1) * size]
            head = replace(expected, first_frame=first_frame + place * num_frames)
            if self._codec.decode_head(record) != head or not self._codec.is_intact(record):
                raise TokenFileError(f"{self._name} changed at byte {offset + place * size} while it was read; open it again")
        try:
            return self._codec.decode_codes(records, num_frames)
        except TokenFileError as error:
            raise TokenFileError(f"cannot read {self._name}: {error}") from error

    def _unreadable(self, error: OSError) -> TokenFileError:
        return TokenFileError(f"cannot read {self._name}: {error.strerror or error}; check its name and permissions")

    def _open(self, path: str) -> BinaryIO:
        try:
            return io.FileIO(path)
        except OSError as error:
            raise self._unreadable(error) from error
