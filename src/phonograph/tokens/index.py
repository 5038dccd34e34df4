"""Finding the records of a token file, also behind damage and while the file grows.

Every record is checked once, and 24 bytes are kept for each block. Where a record should be and is not, the
search goes on at the next sync marker whose record proves right; the frames in between are known from that
record's first frame. This module decodes no codes.
"""

import os
import re
from array import array
from dataclasses import dataclass, replace
from typing import BinaryIO

from phonograph.errors import TokenFileError
from phonograph.tokens.records import (
    HEADER_BYTES_MAX,
    MAGIC,
    RECORD_HEAD_BYTES,
    SYNC,
    Fault,
    RecordCodec,
    RecordHead,
    decode_header,
)

__all__ = ["Damage", "RecordIndex", "bytes_at"]

SCAN_BYTES = 2**12
# Beyond these a file was made to waste time and memory; a disk's faults stay far below.
MAX_DAMAGED_PLACES = 2**14
MAX_WASTED_RATIO = 4
MAX_WASTED_BYTES = MAX_DAMAGED_PLACES * SCAN_BYTES
_LANDMARK = re.compile(re.escape(SYNC) + b"|" + re.escape(MAGIC))


@dataclass(frozen=True)
class Damage:
    """Bytes [start_byte, end_byte) of a token file that could not be read, and the frames lost with them.

    Attributes:
        start_byte: where the damage begins.
        end_byte: where the next readable record begins, or the file ends.
        block: how many readable blocks come before.
        start_frame: the first frame lost.
        end_frame: one after the last frame lost; equal to start_frame when none is; None at the end of the
            file, where nothing tells how many there were.
        reason: what was found at start_byte.
    """

    start_byte: int
    end_byte: int
    block: int
    start_frame: int
    end_frame: int | None
    reason: str

    def __str__(self) -> str:
        if self.end_frame is None:
            lost = f"frames from {self.start_frame} on are lost, if there were any"
        elif self.end_frame == self.start_frame:
            lost = "no frames are lost"
        else:
            lost = f"frames {self.start_frame} to {self.end_frame - 1} are lost"
        return f"block {self.block}, bytes {self.start_byte} to {self.end_byte}: {self.reason}; {lost}"


class RecordIndex:
    """Where the readable blocks of a file lie, what they hold, and what could not be read between them.

    Attributes:
        offsets, first_frames, end_frames: of each readable block, in file order; frames ascend.
        num_frames: frames up to the last readable record, those lost to damage included.
        num_samples: what the last record says, if it is an end record that knows.
        finished: whether the last record is an end record.
        damage: what lies between readable records.
        tail: what lies behind the last one, if anything does.
        tail_is_torn: whether that looks like the beginning of a record and no more.
        stopped: whether the search was given up in the tail.
        readable_end: the byte behind the last readable record, or behind the header.
    """

    def __init__(self, codec: RecordCodec, records_start: int) -> None:
        self.offsets, self.first_frames, self.end_frames = array("Q"), array("Q"), array("Q")
        self.num_frames = 0
        self.num_samples: int | None = None
        self.finished = False
        self.damage: list[Damage] = []
        self.tail: Damage | None = None
        self.tail_is_torn = False
        self.stopped = False
        self.readable_end = records_start
        self._codec = codec
        self._wasted_bytes = 0

    def extend(self, file: BinaryIO) -> None:
        """Look for records behind the last readable one.

        Raises:
            TokenFileError: the file ends before that; the message lacks the file's name.
            OSError: it can't be read.
        """
        size = file.seek(0, os.SEEK_END)
        if size < self.readable_end:
            raise TokenFileError(f"it shrank from {self.readable_end} or more to {size} bytes while it was read; open it again")
        if not self.stopped:
            self._scan(file, size)

    def _scan(self, file: BinaryIO, size: int) -> None:
        offset = self.readable_end
        bad: Fault | None = None
        self._wasted_bytes = 0
        while offset < size:
            found = self._check_record(file, offset, size)
            if isinstance(found, RecordHead) and found.first_frame >= self.num_frames:
                self._accept(found, offset, bad)
                offset, bad = self.readable_end, None
                continue
            if bad is None:
                bad = Fault.REPEATED if isinstance(found, RecordHead) else found
            if found is Fault.JOINED or self._is_hopeless(size):
                bad = Fault.JOINED if found is Fault.JOINED else Fault.HOPELESS
                self.stopped = True
                break
            if isinstance(found, RecordHead):
                offset += found.record_bytes
            else:
                offset = self._next_landmark(file, offset + 1, size)
        self.tail_is_torn = bad is Fault.TORN
        self.tail = bad and self._damage_up_to(size, None, bad)

    def _check_record(self, file: BinaryIO, offset: int, size: int) -> RecordHead | Fault:
        data = bytes_at(file, offset, RECORD_HEAD_BYTES)
        head = self._codec.decode_head(data)
        if head is Fault.NO_RECORD and data.startswith(MAGIC):
            return _check_joined(file, offset)
        if isinstance(head, Fault):
            return head
        if offset + head.record_bytes > size:
            return Fault.TORN
        record = bytes_at(file, offset, head.record_bytes)
        if not self._codec.is_intact(record):
            self._wasted_bytes += head.record_bytes
            return Fault.CHECKSUM
        if not head.is_end:
            return head
        samples = self._codec.decode_num_samples(record)
        if samples is not None and samples > head.first_frame * self._codec.header.frame_samples:
            return Fault.CONTRADICTION
        return replace(head, num_samples=samples)

    def _accept(self, head: RecordHead, offset: int, bad: Fault | None) -> None:
        if bad or head.first_frame > self.num_frames:
            self.damage.append(self._damage_up_to(offset, head.first_frame, bad or Fault.MISSING))
        self.num_frames = head.end_frame
        self.num_samples = head.num_samples
        self.finished = head.is_end
        self.readable_end = offset + head.record_bytes
        if not head.is_end:
            self.offsets.append(offset)
            self.first_frames.append(head.first_frame)
            self.end_frames.append(head.end_frame)

    def _damage_up_to(self, end_byte: int, end_frame: int | None, fault: Fault) -> Damage:
        return Damage(self.readable_end, end_byte, len(self.offsets), self.num_frames, end_frame, fault.value)

    def _is_hopeless(self, size: int) -> bool:
        too_slow = self._wasted_bytes > MAX_WASTED_RATIO * size + MAX_WASTED_BYTES
        return too_slow or len(self.damage) >= MAX_DAMAGED_PLACES

    def _next_landmark(self, file: BinaryIO, offset: int, size: int) -> int:
        """Where a record or a file header may begin, from `offset` on; `size` if nowhere."""
        self._wasted_bytes += SCAN_BYTES
        while offset < size:
            data = bytes_at(file, offset, SCAN_BYTES)
            if match := _LANDMARK.search(data):
                return offset + match.start()
            if len(data) < SCAN_BYTES:
                break
            offset += SCAN_BYTES - len(MAGIC) + 1
        return size


def bytes_at(file: BinaryIO, offset: int, count: int) -> bytes:
    """Up to `count` bytes from `offset` on; fewer only at the end of the file."""
    file.seek(offset)
    parts = []
    # One read is not enough: an unbuffered file may return less than it has.
    while count > 0 and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _check_joined(file: BinaryIO, offset: int) -> Fault:
    try:
        decode_header(bytes_at(file, offset, HEADER_BYTES_MAX))
    except TokenFileError:
        return Fault.NO_RECORD
    return Fault.JOINED
