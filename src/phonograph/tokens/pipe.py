"""Token files through pipes, as they grow: every frame readable as soon as it is written.

    writer = TokenPipeWriter(sys.stdout.buffer, header)
    for codes in encoder:
        writer.write(codes)             # written and flushed at once, as one block
    writer.finish(last, num_samples)

    reader = TokenPipeReader(sys.stdin.buffer)
    for codes in reader: ...            # each block as soon as it has come

The bytes are those of a token file. What cannot be done without seeking isn't: a reader of a pipe does not read past damage.
"""

import contextlib
import select
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from phonograph.errors import TokenFileError
from phonograph.tokens.header import Codes, TokenFileHeader, as_codes
from phonograph.tokens.records import (
    HEADER_BYTES_MAX,
    MAGIC,
    RECORD_HEAD_BYTES,
    Fault,
    RecordCodec,
    RecordHead,
    decode_header,
)
from phonograph.tokens.speech_tokens import check_num_samples

__all__ = ["PipeInput", "PipeOutput", "TokenPipeReader", "TokenPipeWriter"]

_READ_BYTES = 2**16


class PipeOutput(Protocol):
    """Takes bytes, such as `sys.stdout.buffer`."""

    def write(self, data: bytes, /) -> object:
        """Take them all."""

    def flush(self) -> object:
        """Pass them on."""


class PipeInput(Protocol):
    """Gives bytes as they come, such as `sys.stdin.buffer`."""

    def read1(self, size: int, /) -> bytes:
        """At most `size` bytes, as soon as there are any; none at the end."""

    def fileno(self) -> int:
        """What select waits for; an OSError if there is none."""


class TokenPipeWriter:
    """Writes the header at once, then each piece of codes as a block of its own."""

    def __init__(self, file: PipeOutput, header: TokenFileHeader) -> None:
        self._file = file
        self._codec = RecordCodec(header)
        self._num_frames = 0
        self._put(self._codec.header_bytes)

    def write(self, codes: ArrayLike) -> None:
        """Write and flush codes (num_codebooks, n) for any n.

        Raises:
            ConfigError: not integers, of another shape, or a code out of range; nothing is written.
        """
        self._put(self._blocks(codes))

    def finish(self, codes: ArrayLike, num_samples: int | None = None) -> None:
        """Write the last codes, (num_codebooks, 0 or more), and the end record.

        They go in one piece, so that whoever reads the last frame knows already how much of it is audio.

        Raises:
            ConfigError: as for `write`, or the frames can't stand for so many samples.
        """
        records = self._blocks(codes)
        check_num_samples(num_samples, self._num_frames, self._codec.header)
        self._put(records + self._codec.encode_end(self._num_frames, num_samples))

    def _blocks(self, codes: ArrayLike) -> bytes:
        frames = as_codes(codes, self._codec.header).T.astype(np.uint16, order="C")
        size = self._codec.fitting_block_frames(max(1, len(frames)))
        records = b"".join(self._codec.encode_blocks(frames, self._num_frames, size))
        self._num_frames += len(frames)
        return records

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()


class TokenPipeReader:
    """Blocks of codes (num_codebooks, frames), each as soon as it has come; an iterator.

    Attributes:
        header: what the codes are.
        num_frames: of the blocks given so far.
        num_samples: audio samples of the recording, once its end record has come. Where that is there together with the last
            block, as `TokenPipeWriter.finish` writes it, it is known when that block is given.

    Raises:
        TokenFileError: it does not begin with a whole header; the iterator: a record is damaged or missing.
    """

    def __init__(self, file: PipeInput) -> None:
        self._file = file
        self._name = str(getattr(file, "name", "the token stream"))
        self._held = b""
        self._ended = False
        self.num_frames = 0
        self.num_samples: int | None = None
        self.header, taken = self._read_header()
        self._held = self._held[taken:]
        self._position = taken
        self._codec = RecordCodec(self.header)

    def __iter__(self) -> Iterator[Codes]:
        while (found := self._next_record()) is not None:
            head, record = found
            self._take(head, record)
            if head.is_end:
                continue
            self._look_ahead()
            yield self._decoded(head, record)

    def _decoded(self, head: RecordHead, record: bytes) -> Codes:
        try:
            return self._codec.decode_codes(record, head.num_frames)
        except TokenFileError as error:
            raise TokenFileError(f"cannot read {self._name}: {error}") from error

    def _take(self, head: RecordHead, record: bytes) -> None:
        self._held = self._held[len(record) :]
        self._position += len(record)
        self.num_frames = head.end_frame
        self.num_samples = self._codec.decode_num_samples(record) if head.is_end else None

    def _look_ahead(self) -> None:
        """Take an end record that is there already."""
        while True:
            head = self._codec.decode_head(self._held[:RECORD_HEAD_BYTES])
            if isinstance(head, RecordHead) and head.is_end and len(self._held) >= head.record_bytes:
                self._take(head, self._intact(head))
                return
            may_be_end = head is Fault.TORN or (isinstance(head, RecordHead) and head.is_end)
            if not (may_be_end and not self._ended and self._is_ready() and self._fill()):
                return

    def _next_record(self) -> tuple[RecordHead, bytes] | None:
        while len(self._held) < RECORD_HEAD_BYTES and self._fill():
            pass
        if not self._held:
            return None
        head = self._codec.decode_head(self._held[:RECORD_HEAD_BYTES])
        if isinstance(head, Fault):
            raise self._damaged(head)
        while len(self._held) < head.record_bytes:
            if not self._fill():
                raise self._damaged(Fault.TORN)
        return head, self._intact(head)

    def _intact(self, head: RecordHead) -> bytes:
        record = self._held[: head.record_bytes]
        if not self._codec.is_intact(record):
            raise self._damaged(Fault.CHECKSUM)
        if head.first_frame != self.num_frames:
            raise self._damaged(Fault.MISSING if head.first_frame > self.num_frames else Fault.REPEATED)
        return record

    def _read_header(self) -> tuple[TokenFileHeader, int]:
        while isinstance(found := self._header_so_far(), TokenFileError):
            is_hopeless = self._held[: len(MAGIC)] != MAGIC[: len(self._held)] or len(self._held) >= HEADER_BYTES_MAX
            if is_hopeless or not self._fill():
                raise TokenFileError(f"cannot read {self._name}: {found}") from found
        return found

    def _header_so_far(self) -> tuple[TokenFileHeader, int] | TokenFileError:
        try:
            return decode_header(self._held)
        except TokenFileError as error:
            return error

    def _fill(self) -> bool:
        news = b"" if self._ended else self._file.read1(_READ_BYTES)
        self._ended = not news
        self._held += news
        return bool(news)

    def _is_ready(self) -> bool:
        """Whether reading would not wait."""
        # Bytes in memory can't be asked, nor can a pipe on Windows.
        with contextlib.suppress(OSError, ValueError):
            return bool(select.select([self._file.fileno()], [], [], 0)[0])
        return False

    def _damaged(self, fault: Fault) -> TokenFileError:
        return TokenFileError(
            f"{self._name} is damaged at byte {self._position}, frame {self.num_frames}: {fault.value}; save it to a file, and "
            "phonograph decode --on-damage prefix takes what comes before"
        )
