"""Damaged token files: only the damaged block is lost, it is named, and nothing wrong is ever returned."""

import io
import struct
import time
import tracemalloc

import google_crc32c
import numpy as np
import pytest

from phonograph.errors import TokenFileError
from phonograph.tokens import SpeechTokens, TokenFileHeader, TokenReader
from phonograph.tokens.records import MAGIC, SYNC, RecordCodec, encode_header

HEADER = TokenFileHeader(model_id="m", sampling_rate=24000, frame_samples=1920, num_codebooks=2, codebook_size=2048)
CODES = np.random.default_rng(0).integers(0, 2048, (2, 60)).astype(np.int16)
BLOCK_FRAMES = 10
HEADER_BYTES = 63
RECORD_BYTES = 24 + 28
END_BYTES = 32


def encode(codes=CODES, num_samples=None, header=HEADER, block_frames=BLOCK_FRAMES):
    codec = RecordCodec(header)
    frames = np.ascontiguousarray(codes.T.astype(np.uint16))
    blocks = b"".join(codec.encode_blocks(frames, 0, block_frames))
    return codec.header_bytes + blocks + codec.encode_end(len(frames), num_samples)


FILE = encode(num_samples=60 * 1920)


def record(index):
    """Where the record of that index lies in FILE."""
    start = HEADER_BYTES + index * RECORD_BYTES
    return slice(start, start + (RECORD_BYTES if index < 6 else END_BYTES))


def signed(body, header=HEADER):
    checksum = google_crc32c.value(encode_header(header)[-4:] + body)
    return body + struct.pack("<I", checksum)


def make_record(first_frame, num_frames, payload):
    return signed(SYNC + struct.pack("<IQI", len(payload), first_frame, num_frames) + payload)


def frames_of(reader):
    """Every frame index that the reader returns, each compared with the original."""
    found = []
    for block in reader.blocks():
        end = block.first_frame + block.codes.shape[1]
        assert np.array_equal(block.codes, CODES[:, block.first_frame : end])
        found += range(block.first_frame, end)
    return found


def lost(*ranges):
    gone = {frame for start, end in ranges for frame in range(start, end)}
    return [frame for frame in range(60) if frame not in gone]


def test_the_file_is_as_the_tests_take_it():
    assert len(FILE) == HEADER_BYTES + 6 * RECORD_BYTES + END_BYTES
    reader = TokenReader(io.BytesIO(FILE))
    assert (frames_of(reader), reader.damage) == (lost(), ())
    assert (reader.finished, reader.num_samples) == (True, 60 * 1920)


@pytest.mark.parametrize("byte", range(RECORD_BYTES))
@pytest.mark.parametrize("index", [0, 2, 5])
def test_any_damaged_byte_loses_its_block_alone(index, byte):
    data = bytearray(FILE)
    data[record(index).start + byte] ^= 0x10
    reader = TokenReader(io.BytesIO(data))
    frames = (index * 10, index * 10 + 10)
    assert frames_of(reader) == lost(frames)
    (damage,) = reader.damage
    assert (damage.start_byte, damage.end_byte) == (record(index).start, record(index).stop)
    assert (damage.block, damage.start_frame, damage.end_frame) == (index, *frames)
    assert reader.incomplete_tail is None
    assert reader.num_samples == 60 * 1920
    assert f"block {index}, bytes {damage.start_byte} to {damage.end_byte}: " in str(damage)
    assert str(damage).endswith(f"; frames {frames[0]} to {frames[1] - 1} are lost")


@pytest.mark.parametrize(
    ("byte", "reason"),
    [
        (0, "no record begins here"),
        (4, "fields contradict each other"),
        (8, "checksum does not match"),
        (16, "fields contradict each other"),
        (25, "checksum does not match"),
        (50, "checksum does not match"),
    ],
)
def test_the_reason_is_named(byte, reason):
    data = bytearray(FILE)
    data[record(1).start + byte] ^= 0x01
    (damage,) = TokenReader(io.BytesIO(data)).damage
    assert damage.reason.endswith(reason)


def test_parts_without_lost_frames_can_be_read():
    data = bytearray(FILE)
    data[record(2).start + 30] ^= 1
    reader = TokenReader(io.BytesIO(data), header=None)
    assert np.array_equal(reader.read_frames(0, 20).codes, CODES[:, :20])
    assert np.array_equal(reader.read_frames(30).codes, CODES[:, 30:])
    assert reader.read(2.5).num_samples == 60 * 1920 - 31 * 1920
    for part in ((0, 21), (29, 60), (22, 23)):
        with pytest.raises(TokenFileError, match=r"is damaged: block 2, .*frames 20 to 29 are lost; read other"):
            reader.read_frames(*part)


def test_load_raises_or_takes_the_prefix(tmp_path):
    path = tmp_path / "a.mimi"
    data = bytearray(FILE)
    data[record(2).start + 30] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        TokenFileError,
        match=r"a\.mimi is damaged: block 2, bytes 167 to 219: the record's checksum does not match; "
        r"frames 20 to 29 are lost; pass on_damage='prefix' for the 20 frames before it",
    ):
        SpeechTokens.load(path)
    assert SpeechTokens.load(path, on_damage="prefix") == SpeechTokens(CODES[:, :20], HEADER, 20 * 1920)


def test_a_cut_within_a_record_is_an_incomplete_tail(tmp_path):
    for cut in range(record(3).start + 1, record(3).stop):
        reader = TokenReader(io.BytesIO(FILE[:cut]))
        assert (reader.damage, reader.num_frames, reader.finished) == ((), 30, False)
        tail = reader.incomplete_tail
        assert (tail.start_byte, tail.end_byte, tail.start_frame, tail.end_frame) == (219, cut, 30, None)
        assert str(tail).endswith("the file ends within a record; frames from 30 on are lost, if there were any")
    path = tmp_path / "a.mimi"
    path.write_bytes(FILE[:250])
    with pytest.raises(TokenFileError, match=r"a\.mimi is damaged: block 3, bytes 219 to 250: the file ends with"):
        SpeechTokens.load(path)
    assert SpeechTokens.load(path, on_damage="prefix") == SpeechTokens(CODES[:, :30], HEADER)


def test_a_cut_between_records_is_an_unfinished_file(tmp_path):
    path = tmp_path / "a.mimi"
    path.write_bytes(FILE[: record(3).start])
    assert SpeechTokens.load(path) == SpeechTokens(CODES[:, :30], HEADER)


def test_missing_blocks_are_noticed():
    reader = TokenReader(io.BytesIO(FILE[: record(2).start] + FILE[record(4).start :]))
    assert frames_of(reader) == lost((20, 40))
    assert [str(damage) for damage in reader.damage] == [
        "block 2, bytes 167 to 167: blocks are missing; frames 20 to 39 are lost"
    ]
    reader = TokenReader(io.BytesIO(FILE[: record(5).start] + FILE[record(6)]))
    assert (frames_of(reader), reader.num_frames) == (lost((50, 60)), 60)
    with pytest.raises(TokenFileError, match="frames 50 to 59 are lost"):
        reader.read_frames()


def test_repeated_blocks_are_skipped():
    reader = TokenReader(io.BytesIO(FILE[: record(3).start] + FILE[record(1)] + FILE[record(3).start :]))
    assert frames_of(reader) == lost()
    assert [str(damage) for damage in reader.damage] == [
        "block 3, bytes 219 to 271: the record's frames were read before; no frames are lost"
    ]


def test_a_joined_file_is_not_mistaken_for_more_of_the_same(tmp_path):
    other = encode((CODES.astype(int) + np.zeros((2, 1), int))[:, ::-1], num_samples=60 * 1920)
    for first in (FILE, FILE[:250], FILE[:-1], FILE[:-40] + bytes(40)):
        reader = TokenReader(io.BytesIO(first + other))
        assert frames_of(reader) == list(range(reader.num_frames))
        assert reader.damage[-1].reason == "another token file begins here"
        assert reader.refresh() == 0
    path = tmp_path / "a.mimi"
    path.write_bytes(FILE + other)
    with pytest.raises(TokenFileError, match="bytes 407 to 814: another token file begins here"):
        SpeechTokens.load(path)
    assert SpeechTokens.load(path, on_damage="prefix").num_samples == 60 * 1920


def test_blocks_of_another_header_do_not_count():
    other = encode(header=TokenFileHeader(**{**vars(HEADER), "model_id": "n"}))
    reader = TokenReader(io.BytesIO(FILE[: record(3).start] + other[record(3).start :]))
    assert frames_of(reader) == lost((30, 60))


def test_a_damaged_header_can_be_replaced():
    data = bytearray(FILE)
    data[20] ^= 1
    with pytest.raises(TokenFileError, match="header of another file of the same model"):
        TokenReader(io.BytesIO(data))
    reader = TokenReader(io.BytesIO(data), header=HEADER)
    assert frames_of(reader) == lost()
    assert [str(damage) for damage in reader.damage] == ["block 0, bytes 0 to 63: no record begins here; no frames are lost"]
    wrong = TokenReader(io.BytesIO(data), header=TokenFileHeader(**{**vars(HEADER), "sampling_rate": 1}))
    assert (wrong.num_blocks, len(wrong.damage)) == (0, 1)


def test_damage_at_the_end_is_resolved_when_more_is_appended():
    file = io.BytesIO(FILE[: record(3).stop - 1] + b"?")
    reader = TokenReader(file)
    for _ in range(3):
        assert reader.refresh() == 0
        assert [damage.end_frame for damage in reader.damage] == [None]
    file.seek(0, io.SEEK_END)
    file.write(FILE[record(4).start :])
    assert reader.refresh() == 30
    assert [damage.end_frame for damage in reader.damage] == [40]
    assert frames_of(reader) == lost((30, 40))


@pytest.mark.parametrize(
    "forged",
    [
        make_record(2**48 - 1, 10, bytes(28)),
        make_record(2**64 - 1, 10, bytes(28)),
        make_record(60, 2**32 - 1, bytes(28)),
        make_record(60, 10, bytes(27)),
        make_record(60, 0, struct.pack("<Q", 60 * 1920 + 1)),
        make_record(60, 0, b""),
    ],
)
def test_records_that_contradict_themselves_are_damage(forged):
    reader = TokenReader(io.BytesIO(FILE + forged))
    assert frames_of(reader) == lost()
    assert [damage.reason for damage in reader.damage] == ["the record's fields contradict each other"]


def test_a_far_frame_index_allocates_nothing():
    reader = TokenReader(io.BytesIO(FILE + make_record(2**47, 10, bytes(28))))
    assert reader.num_frames == 2**47 + 10
    with pytest.raises(TokenFileError, match=f"frames 60 to {2**47 - 1} are lost"):
        reader.read_frames()


def test_codes_that_the_header_forbids_are_refused(tmp_path):
    header = TokenFileHeader(**{**vars(HEADER), "codebook_size": 2000})
    codec = RecordCodec(header)
    blocks = b"".join(codec.encode_blocks(np.full((10, 2), 2001, np.uint16), 0, 10))
    (tmp_path / "a.mimi").write_bytes(codec.header_bytes + blocks)
    with pytest.raises(TokenFileError, match=r"a\.mimi: it holds the code 2001, expected less than 2000"):
        SpeechTokens.load(tmp_path / "a.mimi", on_damage="prefix")


def mutate(random, data):
    """One to three changes of the kinds that disks, networks and people make."""
    for _ in range(random.integers(1, 4)):
        lowest = min(HEADER_BYTES, len(data)) if random.random() < 0.9 else 0
        start, end, place = (int(number) for number in random.integers(lowest, len(data) + 1, 3))
        start, end = min(start, end), max(start, end)
        if random.random() < 0.5:
            end = min(end, start + int(random.integers(0, 12)))
        kind = random.integers(9)
        if kind == 0:
            flipped = bytes(byte ^ 1 << int(random.integers(8)) for byte in data[place : place + 1])
            data = data[:place] + flipped + data[place + 1 :]
        elif kind == 1:
            data = data[:place]
        elif kind == 2:
            data = data[:place] + random.bytes(random.integers(1, 40)) + data[place:]
        elif kind == 3:
            data = data[:place] + data[start:end] + data[place:]
        elif kind == 4:
            data = data[:start] + data[end:]
        elif kind == 5:
            data = data[:start] + bytes(end - start) + data[end:]
        elif kind == 6:
            data = data[:start] + random.bytes(end - start) + data[end:]
        elif kind == 7:
            data = data[: record(int(random.integers(7))).stop]
        else:
            landmark = [SYNC, MAGIC, FILE[:HEADER_BYTES], FILE[record(random.integers(7))]][random.integers(4)]
            data = data[:place] + landmark + data[place:]
    return data


def check_mutated(path, data, counts):
    path.write_bytes(data)
    try:
        with TokenReader(path) as reader:
            frames = frames_of(reader)
            damage = reader.damage
            tail = reader.incomplete_tail
            assert reader.num_frames <= 60
            assert reader.num_samples in (None, 60 * 1920)
            lost_frames = [f for d in damage for f in range(d.start_frame, d.end_frame or d.start_frame)]
            assert sorted(frames + lost_frames) == list(range(reader.num_frames))
        prefix = SpeechTokens.load(path, on_damage="prefix")
    except TokenFileError:
        assert data[:HEADER_BYTES] != FILE[:HEADER_BYTES]
        counts["refused"] += 1
        return
    first = next(iter(damage), tail)
    assert np.array_equal(prefix.codes, CODES[:, : first.start_frame if first else len(frames)])
    try:
        whole = SpeechTokens.load(path)
    except TokenFileError:
        assert first
        counts["damaged"] += 1
    else:
        assert not first
        assert whole == prefix
        counts["whole"] += 1


@pytest.mark.parametrize("seed", range(10))
def test_ten_thousand_mutated_files(tmp_path, seed):
    random = np.random.default_rng(seed)
    counts = {"refused": 0, "damaged": 0, "whole": 0}
    for _ in range(1000):
        check_mutated(tmp_path / "a.mimi", mutate(random, FILE), counts)
    # The mutations must reach all three outcomes, or the test has stopped testing.
    assert min(counts.values()) >= 10


def peak_bytes(read):
    """What `read` returns, and the most memory that Python and numpy held while it ran."""
    tracemalloc.start()
    try:
        return read(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def read_all_blocks(path):
    with TokenReader(path) as reader:
        return sum(block.codes.shape[1] for block in reader.blocks())


@pytest.mark.parametrize(("block_frames", "num_frames"), [(1, 60_000), (64, 400_000)])
@pytest.mark.parametrize("places", [[], [0.2, 0.4, 0.9], [0.999]])
def test_memory_stays_below_twice_the_file(tmp_path, block_frames, num_frames, places):
    path = tmp_path / "a.mimi"
    header = TokenFileHeader(**{**vars(HEADER), "num_codebooks": 8})
    codes = np.random.default_rng(0).integers(0, 2048, (8, num_frames)).astype(np.int16)
    data = bytearray(encode(codes, header=header, block_frames=block_frames))
    for place in places:
        start = int(place * len(data))
        data[start : start + 300] = bytes(300)
    path.write_bytes(data)
    tokens, peak = peak_bytes(lambda: SpeechTokens.load(path, on_damage="prefix"))
    assert peak < 2 * len(data) + 2**21
    assert np.array_equal(tokens.codes, codes[:, : tokens.num_frames])
    assert (tokens.num_frames == num_frames) == (not places)
    if block_frames > 1:
        num_found, peak = peak_bytes(lambda: read_all_blocks(path))
        assert peak < 2**20
        assert num_frames - num_found <= 2 * block_frames * len(places)


def test_claimed_sizes_allocate_nothing():
    claim = SYNC + struct.pack("<IQI", 2**20, 0, 2**23 // 22)
    huge = SYNC + struct.pack("<IQI", 2**32 - 1, 0, 2**32 - 1)
    data = FILE[:HEADER_BYTES] + claim + huge
    reader, peak = peak_bytes(lambda: TokenReader(io.BytesIO(data)))
    assert reader.num_blocks == 0
    assert peak < 2**17


@pytest.mark.parametrize(
    "noise",
    [
        SYNC * 300_000,
        MAGIC * 150_000,
        FILE[:HEADER_BYTES][:-1] * 20_000,
        (SYNC + struct.pack("<IQI", 2**19, 0, 2**22 // 22 + 1) + bytes(4)) * 40_000,
        (SYNC + struct.pack("<IQI", 8, 0, 0) + bytes(4)) * 40_000,
    ],
)
def test_files_made_to_waste_time_are_given_up_on(noise):
    before = time.process_time()
    reader = TokenReader(io.BytesIO(FILE + noise))
    assert frames_of(reader) == lost()
    assert len(reader.damage) == 1
    assert time.process_time() - before < 5


def test_files_made_of_damage_are_given_up_on():
    codec = RecordCodec(HEADER)
    frame = np.zeros((1, 2), np.uint16)
    parts = [codec.header_bytes]
    for index in range(20_000):
        parts += [b"?", *codec.encode_blocks(frame, index, 1)]
    reader = TokenReader(io.BytesIO(b"".join(parts)))
    assert len(reader.damage) == 2**14 + 1
    assert reader.damage[-1].reason == "there is too much damage to go on"
    assert reader.num_blocks == 2**14
    assert reader.refresh() == 0
