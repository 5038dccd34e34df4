"""The bytes of a token file, exact to the bit; docs/token-file.md is the same in words.

This module turns values into bytes and bytes into values. It opens no file and keeps no place in one:
`writer` and `reader` do.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from phonograph.errors import ConfigError, TokenFileError
from phonograph.tokens.bits import pack, packed_bytes, unpack
from phonograph.tokens.header import MAX_MODEL_ID_BYTES, Codes, TokenFileHeader

__all__ = [
    "CODES_AT_ONCE",
    "HEADER_BYTES_MAX",
    "MAGIC",
    "MAX_FRAMES",
    "MAX_PAYLOAD_BYTES",
    "RECORD_HEAD_BYTES",
    "SYNC",
    "VERSION",
    "Fault",
    "RecordCodec",
    "RecordHead",
    "decode_header",
    "encode_header",
]

# A byte above 127 first, then line ends: a copy in text mode or to seven bits is seen at once.
MAGIC = b"\x89MIMI\r\n\x1a"
VERSION = 1
SYNC = b"\xf5\x9cMB"
MAX_FRAMES = 2**48
MAX_PAYLOAD_BYTES = 2**20
UNKNOWN_SAMPLES = 2**64 - 1

_HEADER = struct.Struct("<8sHHIIIH32s")
_RECORD_HEAD = struct.Struct("<4sIQI")
_CHECKSUM = struct.Struct("<I")
_NUM_SAMPLES = struct.Struct("<Q")

HEADER_BYTES_MAX = _HEADER.size + MAX_MODEL_ID_BYTES + _CHECKSUM.size
RECORD_HEAD_BYTES = _RECORD_HEAD.size
# Packing works on this many codes at once, enough to keep numpy busy and still inside a processor's cache.
CODES_AT_ONCE = 2**16


class Fault(Enum):
    """Why bytes of a token file could not be read."""

    NO_RECORD = "no record begins here"
    CONTRADICTION = "the record's fields contradict each other"
    CHECKSUM = "the record's checksum does not match"
    TORN = "the file ends within a record"
    MISSING = "blocks are missing"
    REPEATED = "the record's frames were read before"
    JOINED = "another token file begins here"
    HOPELESS = "there is too much damage to go on"


@dataclass(frozen=True)
class RecordHead:
    """The fields of a record. One without frames is an end record: only that may know the audio samples."""

    payload_bytes: int
    first_frame: int
    num_frames: int
    num_samples: int | None = None

    @property
    def is_end(self) -> bool:
        return self.num_frames == 0

    @property
    def end_frame(self) -> int:
        return self.first_frame + self.num_frames

    @property
    def record_bytes(self) -> int:
        return _RECORD_HEAD.size + self.payload_bytes + _CHECKSUM.size


def encode_header(header: TokenFileHeader) -> bytes:
    """The file header's bytes, the checksum included."""
    model_id = header.model_id.encode()
    fixed = _HEADER.pack(
        MAGIC,
        VERSION,
        len(model_id),
        header.sampling_rate,
        header.frame_samples,
        header.codebook_size,
        header.num_codebooks,
        bytes.fromhex(header.weights_hash or "00" * 32),
    )
    return fixed + model_id + _CHECKSUM.pack(_crc32c(fixed + model_id))


def decode_header(data: bytes) -> tuple[TokenFileHeader, int]:
    """The header that `data` begins with, and how many bytes it took, at most HEADER_BYTES_MAX.

    Raises:
        TokenFileError: no token file, another version, cut off or damaged; the file is not named.
    """
    if not data:
        raise TokenFileError("the file is empty")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise TokenFileError(f"it does not begin with {MAGIC!r}, so it is no .mimi token file")
    if len(data) < _HEADER.size:
        raise TokenFileError(f"it ends within its header, after {len(data)} bytes")
    _, version, id_bytes, rate, frame_samples, codebook_size, num_codebooks, digest = _HEADER.unpack_from(data)
    if version != VERSION:
        raise TokenFileError(f"expected format version {VERSION}, got {version}; a newer phonograph may read it")
    checked_bytes = _HEADER.size + id_bytes
    if id_bytes <= MAX_MODEL_ID_BYTES and len(data) < checked_bytes + _CHECKSUM.size:
        raise TokenFileError(f"it ends within its header, after {len(data)} bytes")
    checksum = data[checked_bytes : checked_bytes + _CHECKSUM.size]
    if id_bytes > MAX_MODEL_ID_BYTES or checksum != _CHECKSUM.pack(_crc32c(data[:checked_bytes])):
        raise TokenFileError(
            "its header is damaged (checksum mismatch); to read the blocks behind it, "
            "pass TokenReader the header of another file of the same model"
        )
    try:
        header = TokenFileHeader(
            model_id=data[_HEADER.size : checked_bytes].decode(),
            weights_hash=digest.hex() if any(digest) else "",
            sampling_rate=rate,
            frame_samples=frame_samples,
            num_codebooks=num_codebooks,
            codebook_size=codebook_size,
        )
    except (ConfigError, UnicodeDecodeError) as error:
        raise TokenFileError(f"its header is not valid: {error}") from error
    return header, checked_bytes + _CHECKSUM.size


class RecordCodec:
    """Records of one file, to bytes and back.

    Every record's checksum begins with the checksum of the file's header, so a block counts only in a file of
    the same header.
    """

    def __init__(self, header: TokenFileHeader) -> None:
        self.header = header
        self.header_bytes = encode_header(header)
        self._seed = _crc32c(self.header_bytes[-_CHECKSUM.size :])
        self._bits = header.bits_per_code

    def payload_bytes(self, num_frames: int) -> int:
        return packed_bytes(num_frames * self.header.num_codebooks, self._bits)

    def fitting_block_frames(self, block_frames: int) -> int:
        """`block_frames`, or fewer where a payload would pass its limit."""
        return min(block_frames, MAX_PAYLOAD_BYTES * 8 // (self.header.num_codebooks * self._bits))

    def encode_blocks(self, frames: NDArray[np.uint16], first_frame: int, block_frames: int) -> Iterator[bytes]:
        """Records of frames (n, num_codebooks) in blocks of `block_frames`, the last with what remains."""
        num_frames, num_codebooks = frames.shape
        whole = num_frames // block_frames
        blocks = frames[: whole * block_frames].reshape(whole, block_frames * num_codebooks)
        step = max(1, CODES_AT_ONCE // (block_frames * num_codebooks))
        for start in range(0, whole, step):
            packed = pack(blocks[start : start + step], self._bits)
            yield b"".join(
                self._encode(row.tobytes(), first_frame + (start + place) * block_frames, block_frames)
                for place, row in enumerate(packed)
            )
        if rest := num_frames - whole * block_frames:
            row = pack(frames[-rest:].reshape(1, -1), self._bits)[0]
            yield self._encode(row.tobytes(), first_frame + num_frames - rest, rest)

    def encode_end(self, num_frames: int, num_samples: int | None) -> bytes:
        """The record that closes a recording of `num_frames` frames."""
        count = UNKNOWN_SAMPLES if num_samples is None else num_samples
        return self._encode(_NUM_SAMPLES.pack(count), num_frames, 0)

    def decode_head(self, data: bytes) -> RecordHead | Fault:
        """The record head in the first RECORD_HEAD_BYTES of `data`, or what is wrong with it."""
        if data[: len(SYNC)] != SYNC[: len(data)]:
            return Fault.NO_RECORD
        if len(data) < _RECORD_HEAD.size:
            return Fault.TORN
        head = RecordHead(*_RECORD_HEAD.unpack_from(data)[1:])
        expected = _NUM_SAMPLES.size if head.is_end else self.payload_bytes(head.num_frames)
        if head.payload_bytes != expected or expected > MAX_PAYLOAD_BYTES or head.end_frame > MAX_FRAMES:
            return Fault.CONTRADICTION
        return head

    def is_intact(self, record: bytes) -> bool:
        """Whether a whole record, from its sync marker to its checksum, is as it was written."""
        body = record[: -_CHECKSUM.size]
        return record[-_CHECKSUM.size :] == _CHECKSUM.pack(google_crc32c.extend(self._seed, body))

    def decode_codes(self, records: bytes, num_frames: int) -> Codes:
        """The codes (num_codebooks, frames) of whole blocks one after the other, each of `num_frames` frames.

        Raises:
            TokenFileError: a code is outside [0, codebook_size): the writer was wrong, not the disk.
        """
        payload_bytes = self.payload_bytes(num_frames)
        record_bytes = RecordHead(payload_bytes, 0, num_frames).record_bytes
        payloads = np.frombuffer(records, np.uint8).reshape(-1, record_bytes)[:, _RECORD_HEAD.size :]
        num_codes = num_frames * self.header.num_codebooks
        codes = unpack(payloads[:, :payload_bytes], num_codes, self._bits)
        if codes.max() >= self.header.codebook_size:
            raise TokenFileError(
                f"it holds the code {codes.max()}, expected less than {self.header.codebook_size}; "
                "its checksums are right, so its writer was wrong"
            )
        frames = codes.reshape(-1, self.header.num_codebooks)
        codes_of_codebooks: Codes = frames.T.astype(self.header.codes_dtype)
        return codes_of_codebooks

    def decode_num_samples(self, record: bytes) -> int | None:
        """The number of audio samples in a whole end record, None when its writer did not know."""
        (count,) = _NUM_SAMPLES.unpack_from(record, _RECORD_HEAD.size)
        return None if count == UNKNOWN_SAMPLES else int(count)

    def _encode(self, payload: bytes, first_frame: int, num_frames: int) -> bytes:
        body = _RECORD_HEAD.pack(SYNC, len(payload), first_frame, num_frames) + payload
        return body + _CHECKSUM.pack(google_crc32c.extend(self._seed, body))


def _crc32c(data: bytes) -> int:
    return int(google_crc32c.value(data))
