"""Writing in any pieces, reading any part, appending, and reading along while the file grows."""

import io
import os
import subprocess
import sys
import textwrap
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phonograph.errors import ConfigError, OutputError, TokenFileError
from phonograph.tokens import SpeechTokens, TokenFileHeader, TokenReader, TokenWriter


def make_header(num_codebooks=3, codebook_size=2048, **changes):
    fields = {"model_id": "kyutai/mimi", "sampling_rate": 24000, "frame_samples": 1920, **changes}
    return TokenFileHeader(**fields, num_codebooks=num_codebooks, codebook_size=codebook_size)


def make_codes(num_frames, header=None, seed=0):
    header = header or make_header()
    random = np.random.default_rng(seed)
    shape = (header.num_codebooks, num_frames)
    return random.integers(0, header.codebook_size, shape).astype(header.codes_dtype)


@settings(max_examples=100, deadline=None)
@given(
    num_codebooks=st.integers(1, 33),
    codebook_size=st.integers(2, 65536),
    sessions=st.lists(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=5), min_size=1, max_size=4),
    block_frames=st.integers(1, 50),
    data=st.data(),
)
def test_any_pieces_give_back_the_codes(tmp_path_factory, num_codebooks, codebook_size, sessions, block_frames, data):
    header = make_header(num_codebooks, codebook_size)
    codes = make_codes(sum(piece for session in sessions for piece, _ in session), header)
    path = tmp_path_factory.mktemp("pieces") / "a.mimi"
    TokenWriter(path, header).close(0)
    done, num_samples = 0, 0
    with TokenReader(path) as reader:
        for session in sessions:
            with TokenWriter(path, header, append=True, block_frames=block_frames) as writer:
                for piece, flush in session:
                    writer.write(codes[:, done : done + piece])
                    done += piece
                    if flush:
                        writer.flush()
                    reader.refresh()
                    assert writer.num_frames == done
                    assert 0 <= done - reader.num_frames < (1 if flush else block_frames)
                    assert np.array_equal(reader.read_frames().codes, codes[:, : reader.num_frames])
                added = sum(piece for piece, _ in session)
                count = data.draw(st.none() | st.just(done * 1920))
                num_samples = num_samples if added == 0 and count is None else count
                writer.close(count)
            assert reader.refresh() in range(added + 1)
            assert (reader.finished, reader.damage, reader.incomplete_tail) == (True, (), None)
            assert reader.read_frames() == SpeechTokens(codes[:, :done], header, num_samples)
            assert SpeechTokens.load(path) == reader.read_frames()
        blocks = [codes[:, :0], *(block.codes for block in reader.blocks())]
        assert np.array_equal(np.concatenate(blocks, axis=1), codes)


@settings(max_examples=50, deadline=None)
@given(start=st.floats(0, 30), length=st.floats(0, 30), block_frames=st.integers(1, 80), samples=st.booleans())
def test_reading_a_part_equals_slicing_the_whole(tmp_path_factory, start, length, block_frames, samples):
    path = tmp_path_factory.mktemp("seek") / "a.mimi"
    tokens = SpeechTokens(make_codes(250), make_header(), 250 * 1920 - 11 if samples else None)
    with TokenWriter(path, tokens.header, block_frames=block_frames) as writer:
        writer.write(tokens.codes)
        writer.close(tokens.num_samples)
    with TokenReader(path) as reader:
        assert reader.read(start, start + length) == tokens.slice(start, start + length)
        assert reader.read(start) == tokens.slice(start)
        assert reader.read_frames(int(start), 40) == tokens.slice_frames(int(start), 40)


def test_reading_a_part_reads_only_its_blocks(tmp_path):
    class Counting(io.BytesIO):
        count = 0

        def read(self, size=-1):
            self.count += size
            return super().read(size)

    SpeechTokens(make_codes(6400), make_header()).save(tmp_path / "a.mimi")
    file = Counting((tmp_path / "a.mimi").read_bytes())
    reader = TokenReader(file)
    file.count = 0
    reader.read(100.0, 101.0)
    assert 0 < file.count < 2000


def test_a_reader_sees_each_record_once_it_is_whole(tmp_path):
    codes, path = make_codes(20), tmp_path / "a.mimi"
    with TokenWriter(path, make_header(), block_frames=4) as writer:
        writer.write(codes)
        writer.close(20 * 1920)
    data = path.read_bytes()
    with TokenReader(path) as whole:
        record_bytes = 24 + 17
        assert whole.num_blocks == 5
    header_bytes = len(data) - 5 * record_bytes - 32
    growing = tmp_path / "growing.mimi"
    growing.write_bytes(data[:header_bytes])
    with TokenReader(growing) as reader, growing.open("ab", buffering=0) as file:
        for end in range(header_bytes + 1, len(data) + 1):
            file.write(data[end - 1 : end])
            news = reader.refresh()
            blocks, rest = divmod(end - header_bytes, record_bytes)
            blocks, rest = (5, end - header_bytes - 5 * record_bytes) if blocks >= 5 else (blocks, rest)
            assert reader.num_frames == 4 * blocks
            assert news == (4 if rest == 0 and blocks == reader.num_blocks and end < len(data) else 0)
            assert reader.damage == ()
            finished = end == len(data)
            assert (reader.incomplete_tail is not None) == (rest != 0 and not finished)
            assert (reader.finished, reader.num_samples) == ((True, 38400) if finished else (False, None))
            assert np.array_equal(reader.read_frames().codes, codes[:, : 4 * blocks])
    assert growing.read_bytes() == data


def test_new_blocks_can_be_followed(tmp_path):
    codes, path = make_codes(30), tmp_path / "a.mimi"
    with TokenWriter(path, make_header(), block_frames=10) as writer, TokenReader(path) as reader:
        writer.write(codes[:, :15])
        assert reader.refresh() == 10
        seen = reader.num_blocks
        writer.write(codes[:, 15:])
        assert reader.refresh() == 20
        blocks = list(reader.blocks(seen))
        assert [(block.index, block.first_frame) for block in blocks] == [(1, 10), (2, 20)]
        assert np.array_equal(blocks[1].codes, codes[:, 20:])


def test_the_last_end_record_counts(tmp_path):
    path = tmp_path / "a.mimi"
    with TokenWriter(path, make_header()) as writer:
        writer.write(make_codes(5))
        writer.close(5 * 1920)
    with TokenWriter(path, make_header(), append=True):
        pass
    assert SpeechTokens.load(path).num_samples == 5 * 1920
    with TokenWriter(path, make_header(), append=True) as writer:
        writer.write(make_codes(5))
        writer.flush()
        assert SpeechTokens.load(path).num_samples is None
        with TokenReader(path) as reader:
            assert not reader.finished
        writer.close(10 * 1920 - 1)
        writer.close(3)
    assert SpeechTokens.load(path).num_samples == 10 * 1920 - 1


def test_appending_begins_a_file_that_is_not_there(tmp_path):
    with TokenWriter(tmp_path / "a.mimi", make_header(), append=True) as writer:
        writer.write(make_codes(5))
    with TokenReader(tmp_path / "a.mimi") as reader:
        assert reader.finished
        assert np.array_equal(reader.read_frames().codes, make_codes(5))


@pytest.mark.parametrize("tail", ["torn", "zeros", "noise"])
def test_appending_cuts_off_what_is_no_whole_record(tmp_path, tail):
    path, codes = tmp_path / "a.mimi", make_codes(30)
    with suppress(KeyboardInterrupt), TokenWriter(path, make_header(), block_frames=10) as writer:
        writer.write(codes[:, :20])
        raise KeyboardInterrupt
    whole = path.read_bytes()
    with TokenWriter(path, make_header(), append=True) as writer:
        writer.write(codes)
    block = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + {"torn": block[:-40], "zeros": bytes(100), "noise": b"\xf5\x9cMB" * 30}[tail])
    with TokenWriter(path, make_header(), append=True, block_frames=10) as writer:
        assert writer.num_frames == 20
        writer.write(codes[:, 20:])
    assert np.array_equal(SpeechTokens.load(path).codes, codes)
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize("left", [0, 1, 20, 72])
def test_appending_begins_again_after_a_torn_header(tmp_path, left):
    path = tmp_path / "a.mimi"
    TokenWriter(path, make_header()).close()
    path.write_bytes(path.read_bytes()[:left])
    with TokenWriter(path, make_header(), append=True) as writer:
        writer.write(make_codes(5))
        writer.close(5)
    assert SpeechTokens.load(path).num_samples == 5


def test_an_error_leaves_the_frames_and_no_end(tmp_path):
    with suppress(KeyboardInterrupt), TokenWriter(tmp_path / "a.mimi", make_header()) as writer:
        writer.write(make_codes(5))
        raise KeyboardInterrupt
    with TokenReader(tmp_path / "a.mimi") as reader:
        assert (reader.num_frames, reader.finished) == (5, False)
    assert SpeechTokens.load(tmp_path / "a.mimi").num_samples is None


def test_the_caller_may_reuse_its_array(tmp_path):
    codes = make_codes(5)
    buffer = codes.copy()
    with TokenWriter(tmp_path / "a.mimi", make_header()) as writer:
        writer.write(buffer)
        buffer[:] = 0
    assert np.array_equal(SpeechTokens.load(tmp_path / "a.mimi").codes, codes)


def test_existing_files_are_refused_or_replaced(tmp_path):
    path = tmp_path / "a.mimi"
    TokenWriter(path, make_header()).close()
    before = path.read_bytes()
    with pytest.raises(OutputError, match="it exists; pass append=True or overwrite=True"):
        TokenWriter(path, make_header())
    assert path.read_bytes() == before
    with TokenWriter(path, make_header(5), overwrite=True) as writer:
        writer.write(make_codes(2, make_header(5)))
    assert SpeechTokens.load(path).num_codebooks == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codebooks": 4}, "holds tokens with num_codebooks=3, got 4; begin another file"),
        ({"codebook_size": 2047}, "codebook_size=2048, got 2047"),
        ({"model_id": "a"}, "model_id='kyutai/mimi', got 'a'"),
        (
            {"weights_hash": "ab" * 32, "sampling_rate": 1},
            "weights_hash='', got 'abab.*; sampling_rate=24000",
        ),
    ],
)
def test_appending_other_tokens_is_refused(tmp_path, changes, message):
    path = tmp_path / "a.mimi"
    TokenWriter(path, make_header()).close()
    before = path.read_bytes()
    with pytest.raises(TokenFileError, match=message):
        TokenWriter(path, make_header(**changes), append=True)
    assert path.read_bytes() == before


def test_appending_after_part_of_a_frame_is_refused(tmp_path):
    path = tmp_path / "a.mimi"
    with TokenWriter(path, make_header()) as writer:
        writer.write(make_codes(5))
        writer.close(5 * 1920 - 1)
    with pytest.raises(TokenFileError, match="its 9599 samples end within a frame of 1920"):
        TokenWriter(path, make_header(), append=True)


def test_appending_to_something_else_is_refused(tmp_path):
    path = tmp_path / "a.mimi"
    path.write_bytes(b"my only copy")
    with pytest.raises(TokenFileError, match="does not begin with"):
        TokenWriter(path, make_header(), append=True)
    assert path.read_bytes() == b"my only copy"
    TokenWriter(path, make_header(), overwrite=True).close()
    joined = path.read_bytes() * 2
    path.write_bytes(joined)
    with pytest.raises(TokenFileError, match=r"cannot tell where .* ends: .*another token file begins here"):
        TokenWriter(path, make_header(), append=True)
    assert path.read_bytes() == joined


def test_writer_refuses_other_arguments(tmp_path):
    with pytest.raises(ConfigError, match="expected append or overwrite, got both"):
        TokenWriter(tmp_path / "a.mimi", make_header(), append=True, overwrite=True)
    with pytest.raises(ConfigError, match="expected block_frames of at least 1, got 0"):
        TokenWriter(tmp_path / "a.mimi", make_header(), block_frames=0)
    with pytest.raises(OutputError, match=r"cannot write .*No such file or directory"):
        TokenWriter(tmp_path / "nowhere" / "a.mimi", make_header())
    with pytest.raises(OutputError, match=r"cannot write .*s a directory"):
        TokenWriter(tmp_path, make_header(), overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_other_codes_and_adds_none(tmp_path):
    with TokenWriter(tmp_path / "a.mimi", make_header()) as writer:
        with pytest.raises(ConfigError, match="from 0 to 2047, got 2048 in codebook 1 at frame 2"):
            writer.write([[0, 0, 0], [0, 0, 2048], [0, 0, 0]])
        with pytest.raises(ConfigError, match=r"of shape \(3, frames\), got shape \(4, 2\)"):
            writer.write(np.zeros((4, 2), int))
        with pytest.raises(ConfigError, match="got float32"):
            writer.write(np.zeros((3, 2), np.float32))
        assert writer.num_frames == 0
        writer.write(make_codes(1))
        with pytest.raises(ConfigError, match=r"num_samples to be None or from 0 to 1920 \(1 frames"):
            writer.close(1921)
    with pytest.raises(OutputError, match="its writer is closed; open it with append=True"):
        writer.write(make_codes(1))
    with pytest.raises(OutputError, match="its writer is closed"):
        writer.flush()
    assert SpeechTokens.load(tmp_path / "a.mimi").num_frames == 1


def test_reader_refuses_other_arguments(tmp_path):
    path = tmp_path / "a.mimi"
    SpeechTokens(make_codes(5), make_header()).save(path)
    with TokenReader(path) as reader:
        with pytest.raises(ConfigError, match=r"expected 0 <= start_seconds <= end_seconds, got 2\.0 and 1\.0"):
            reader.read(2.0, 1.0)
        with pytest.raises(ConfigError, match="expected 0 <= start <= end in frames, got -1 and None"):
            reader.read_frames(-1)
        with pytest.raises(ConfigError, match="expected 0 <= start <= end in frames, got 3 and 2"):
            reader.read_frames(3, 2)
        assert reader.read_frames(7, 9).num_frames == 0
    with pytest.raises(TokenFileError, match=r"cannot read .*b\.mimi: No such file or directory; check its name"):
        TokenReader(tmp_path / "b.mimi")


def test_reader_refuses_a_pipe():
    reading, writing = os.pipe()
    os.close(writing)
    with (
        os.fdopen(reading, "rb") as pipe,
        pytest.raises(TokenFileError, match="it can't be seeked in; read it"),
    ):
        TokenReader(pipe)


def test_reader_takes_an_open_file_and_leaves_it_open(tmp_path):
    SpeechTokens(make_codes(5), make_header()).save(tmp_path / "a.mimi")
    with (tmp_path / "a.mimi").open("rb") as file:
        with TokenReader(file) as reader:
            assert reader.num_frames == 5
        assert not file.closed


def test_reader_notices_a_file_that_changed(tmp_path):
    path = tmp_path / "a.mimi"
    SpeechTokens(make_codes(500), make_header()).save(path)
    with TokenReader(path) as reader:
        with path.open("r+b") as file:
            file.seek(1000)
            file.write(bytes(10))
        with pytest.raises(TokenFileError, match=r"a\.mimi changed at byte \d+ while it was read; open it again"):
            reader.read_frames()
        os.truncate(path, 500)
        with pytest.raises(TokenFileError, match=r"it shrank from .* to 500 bytes while it was read"):
            reader.refresh()
        with pytest.raises(TokenFileError, match="changed at byte"):
            list(reader.blocks())


def test_a_full_disk_leaves_whole_records(tmp_path):
    program = """
        import resource, signal, sys
        import numpy as np
        from phonograph.errors import OutputError
        from phonograph.tokens import SpeechTokens, TokenFileHeader, TokenWriter
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        header = TokenFileHeader(sampling_rate=24000, frame_samples=1920, num_codebooks=8, codebook_size=2048)
        codes = np.tile(np.arange(2000, dtype=np.int16), (8, 1))
        try:
            with TokenWriter("live.mimi", header) as writer:
                for start in range(0, 2000, 7):
                    writer.write(codes[:, start : start + 7])
        except OutputError as error:
            print(error)
        try:
            SpeechTokens(codes, header).save("saved.mimi")
        except OutputError as error:
            print(error)
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = "cannot write {}.mimi: File too large; choose another place or make room there"
    assert result.stdout.splitlines() == [expected.format("live"), expected.format("saved")]
    assert [entry.name for entry in tmp_path.iterdir()] == ["live.mimi"]
    with TokenReader(tmp_path / "live.mimi") as reader:
        assert (reader.num_blocks, reader.damage, reader.incomplete_tail) == (13, (), None)
        assert reader.readable_end == (tmp_path / "live.mimi").stat().st_size
        assert np.array_equal(reader.read_frames().codes, np.tile(np.arange(13 * 64), (8, 1)))
