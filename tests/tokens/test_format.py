"""The bytes of the token file: a slow reader written from docs/token-file.md alone, and its example."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phonograph.errors import TokenFileError
from phonograph.tokens import SpeechTokens, TokenFileHeader, TokenReader, TokenWriter
from phonograph.tokens.bits import pack, packed_bytes, unpack
from phonograph.tokens.records import decode_header, encode_header

PAGE = Path(__file__).parents[2] / "docs" / "token-file.md"


def slow_crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def number(data, offset, size):
    return sum(byte << (8 * place) for place, byte in enumerate(data[offset : offset + size]))


def slow_decode(data):
    """Header fields, frames of codes, and the sample count of a whole and undamaged file."""
    assert data[:8] == bytes([0x89, 0x4D, 0x49, 0x4D, 0x49, 0x0D, 0x0A, 0x1A])
    assert number(data, 8, 2) == 1
    id_bytes = number(data, 10, 2)
    header = {
        "sampling_rate": number(data, 12, 4),
        "frame_samples": number(data, 16, 4),
        "codebook_size": number(data, 20, 4),
        "num_codebooks": number(data, 24, 2),
        "weights_hash": data[26:58].hex() if set(data[26:58]) != {0} else "",
        "model_id": data[58 : 58 + id_bytes].decode("utf-8"),
    }
    header_crc = data[58 + id_bytes : 62 + id_bytes]
    assert number(header_crc, 0, 4) == slow_crc32c(data[: 58 + id_bytes])
    bits = 1
    while 2**bits < header["codebook_size"]:
        bits += 1
    frames, num_samples, offset = [], None, 62 + id_bytes
    while offset < len(data):
        assert data[offset : offset + 4] == bytes([0xF5, 0x9C, 0x4D, 0x42])
        payload_bytes = number(data, offset + 4, 4)
        num_frames = number(data, offset + 16, 4)
        assert number(data, offset + 8, 8) == len(frames)
        body = data[offset : offset + 20 + payload_bytes]
        assert number(data, offset + 20 + payload_bytes, 4) == slow_crc32c(header_crc + body)
        payload = number(body, 20, payload_bytes)
        num_samples = None
        if num_frames == 0:
            num_samples = None if payload == 2**64 - 1 else payload
        for _ in range(num_frames):
            frame = []
            for _ in range(header["num_codebooks"]):
                frame.append(payload % 2**bits)
                payload //= 2**bits
            frames.append(frame)
        assert payload == 0 or num_frames == 0
        offset += 24 + payload_bytes
    return header, frames, num_samples


def documented_example():
    (block,) = re.findall(r"```hex\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    hex_columns = [re.match(r"(?:[0-9a-f]{2} ?\b)*(?:(?=  )|$)", line).group() for line in block.splitlines()]
    return bytes.fromhex("".join(hex_columns))


def example_tokens():
    header = TokenFileHeader(model_id="tiny", sampling_rate=24000, frame_samples=1920, num_codebooks=2, codebook_size=5)
    return SpeechTokens(np.array([[1, 2, 3], [4, 0, 1]]), header, 5000)


def test_the_slow_crc_gives_the_published_check_value():
    assert slow_crc32c(b"123456789") == 0xE3069283


def test_the_documented_example_is_what_the_writer_writes(tmp_path):
    path = tmp_path / "tiny.mimi"
    example_tokens().save(path)
    assert path.read_bytes() == documented_example()
    with TokenWriter(tmp_path / "live.mimi", example_tokens().header) as writer:
        writer.write(example_tokens().codes)
        writer.close(5000)
    assert (tmp_path / "live.mimi").read_bytes() == documented_example()


def test_the_documented_example_is_read_by_both_readers(tmp_path):
    path = tmp_path / "tiny.mimi"
    path.write_bytes(documented_example())
    assert SpeechTokens.load(path) == example_tokens()
    header, frames, num_samples = slow_decode(documented_example())
    assert TokenFileHeader(**header) == example_tokens().header
    assert frames == [[1, 4], [2, 0], [3, 1]]
    assert num_samples == 5000


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    codebook_size=st.integers(2, 65536),
    num_codebooks=st.integers(1, 9),
    num_frames=st.integers(0, 20),
    block_frames=st.integers(1, 8),
    model_id=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
    weights_hash=st.sampled_from(["", "0f" * 32, "01" + "00" * 31]),
)
def test_the_slow_reader_agrees(
    tmp_path_factory, data, codebook_size, num_codebooks, num_frames, block_frames, model_id, weights_hash
):
    header = TokenFileHeader(
        model_id=model_id,
        weights_hash=weights_hash,
        sampling_rate=data.draw(st.integers(1, 2**32 - 1)),
        frame_samples=data.draw(st.integers(1, 2**32 - 1)),
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
    )
    samples = st.none() | st.integers(0, num_frames * header.frame_samples)
    num_samples = data.draw(samples)
    seed = data.draw(st.integers(0, 2**32))
    codes = np.random.default_rng(seed).integers(0, codebook_size, (num_codebooks, num_frames))
    path = tmp_path_factory.mktemp("slow") / "a.mimi"
    with TokenWriter(path, header, block_frames=block_frames) as writer:
        writer.write(codes)
        writer.close(num_samples)
    found, frames, samples_found = slow_decode(path.read_bytes())
    assert TokenFileHeader(**found) == header
    assert frames == codes.T.tolist()
    assert samples_found == num_samples


@pytest.mark.parametrize("bits", range(1, 17))
def test_packing_is_the_slow_bit_string(bits):
    random = np.random.default_rng(bits)
    for num_codes in (1, 2, 7, 8, 9, 63, 64, 65):
        codes = random.integers(0, 2**bits, (3, num_codes)).astype(np.uint16)
        packed = pack(codes, bits)
        assert packed.shape == (3, packed_bytes(num_codes, bits))
        for row, codes_of_row in zip(packed, codes.tolist(), strict=True):
            text = "".join(f"{code:0{bits}b}"[::-1] for code in codes_of_row)
            expected = [int(text[place : place + 8][::-1], 2) for place in range(0, len(text), 8)]
            assert row.tolist() == expected
        assert np.array_equal(unpack(packed, num_codes, bits), codes)


def test_padding_bits_are_ignored():
    packed = np.array([[0b10110101]], np.uint8)
    assert unpack(packed, 1, 3).tolist() == [[0b101]]


def forged(field_offset, value, size):
    """The example's header with one field changed and the checksum right again."""
    data = bytearray(encode_header(example_tokens().header)[:-4])
    data[field_offset : field_offset + size] = value.to_bytes(size, "little")
    return bytes(data) + slow_crc32c(bytes(data)).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"RIFF....WAVE", r"does not begin with b'\\x89MIMI"),
        (b"\x89MIMI", "ends within its header, after 5 bytes"),
        (encode_header(example_tokens().header)[:-1], "ends within its header, after 65 bytes"),
        (forged(8, 2, 2), "expected format version 1, got 2; a newer phonograph"),
        (forged(10, 1025, 2), "header is damaged"),
        (forged(12, 0, 4), "not valid: expected sampling_rate to be an integer from 1 to 4294967295, got 0"),
        (forged(16, 0, 4), "not valid: expected frame_samples to be an integer from 1 to"),
        (forged(20, 1, 4), "not valid: expected codebook_size to be an integer from 2 to 65536, got 1"),
        (forged(20, 65537, 4), "expected codebook_size to be an integer from 2 to 65536, got 65537"),
        (forged(24, 0, 2), "not valid: expected num_codebooks to be an integer from 1 to 65535, got 0"),
        (forged(58, 0xFF, 1), "not valid: 'utf-8' codec"),
        (forged(12, 1, 4)[:-1] + b"?", r"header is damaged \(checksum mismatch\)"),
    ],
)
def test_other_headers_are_refused(tmp_path, data, message):
    path = tmp_path / "a.mimi"
    path.write_bytes(data)
    with pytest.raises(TokenFileError, match=r"cannot read .*a\.mimi: .*" + message):
        TokenReader(path)


def test_the_longest_header_is_read(tmp_path):
    header = TokenFileHeader(model_id="m" * 1024, sampling_rate=1, frame_samples=1, num_codebooks=65535, codebook_size=65536)
    data = encode_header(header)
    assert decode_header(data) == (header, len(data))
    codes = np.random.default_rng(0).integers(0, 65536, (65535, 10))
    with TokenWriter(tmp_path / "a.mimi", header) as writer:
        writer.write(codes)
    with TokenReader(tmp_path / "a.mimi") as reader:
        assert reader.num_blocks == 2
        assert np.array_equal(reader.read_frames().codes, codes)
