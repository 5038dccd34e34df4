"""Writing a token file while the codes are being made, so that others can read it as it grows.

    with TokenWriter("speech.mimi", header) as writer:
        for codes in encoder:  # (num_codebooks, any number of frames)
            writer.write(codes)
        writer.close(num_samples)

The file has its final name from the start, and after every write it is valid up to its last whole block.
Codes that are all there already are better saved by `SpeechTokens.save`, which leaves no unfinished file
behind.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phonograph.errors import ConfigError, OutputError, TokenFileError
from phonograph.files import output_error
from phonograph.tokens.header import TokenFileHeader, as_codes
from phonograph.tokens.reader import TokenReader
from phonograph.tokens.records import CODES_AT_ONCE, MAX_FRAMES, RecordCodec
from phonograph.tokens.speech_tokens import SpeechTokens, check_num_samples

__all__ = ["DEFAULT_BLOCK_FRAMES", "TokenWriter", "token_file_parts"]

# 5 s of Mimi: what one damaged block loses, against 24 bytes of overhead for each.
DEFAULT_BLOCK_FRAMES = 64


class TokenWriter:
    """A token file opened for writing; a context manager. One writer at a time may have a file open.

    Leaving the context closes the recording; leaving it by an error writes the frames held back and leaves it
    unfinished, so that it can be appended to.

    Args:
        path: the file. It appears at once, with its header.
        header: what the codes are.
        append: go on after the last whole record of an existing file, or begin it if there is none. What
            follows that record, a block torn by a crash or zeros after a power cut, is cut off. The frames
            are numbered on from there, and the end record of the earlier part no longer counts.
        overwrite: replace an existing file, at once.
        block_frames: frames per block, the most that one damaged place loses and that a reader of the growing
            file waits for; fewer where a block would take more than 1 MiB.

    Raises:
        ConfigError: `append` and `overwrite` together, or `block_frames` below 1.
        OutputError: the file exists already, or can't be written.
        TokenFileError: `append` to a file with another header (the message names the fields), with a damaged
            header, that is no token file, or whose last frame is only partly audio: more frames can't follow
            that one sample by sample.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: TokenFileHeader,
        *,
        append: bool = False,
        overwrite: bool = False,
        block_frames: int = DEFAULT_BLOCK_FRAMES,
    ) -> None:
        if append and overwrite:
            raise ConfigError("expected append or overwrite, got both; choose one")
        self._path = Path(path)
        self._codec = RecordCodec(header)
        self._block_frames = _checked_block_frames(block_frames, self._codec)
        self._held: list[NDArray[np.uint16]] = []
        self._num_held = 0
        self._num_written = 0
        self._position = 0
        self._needs_end_record = not append
        try:
            with contextlib.ExitStack() as stack:
                mode = "a+" if append else "w" if overwrite else "x"
                self._file = stack.enter_context(io.FileIO(self._path, mode))
                if append:
                    self._go_to_end()
                if self._position == 0:
                    self._put(self._codec.header_bytes)
                self._owned = stack.pop_all()
        except FileExistsError as error:
            raise OutputError(f"cannot write {self._path}: it exists; pass append=True or overwrite=True") from error
        except OutputError:
            raise
        except OSError as error:
            raise output_error(path, error) from error

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif not self._file.closed:
            # The error under way says more than a full disk would now.
            with contextlib.suppress(OutputError), self._owned:
                self.flush()

    @property
    def header(self) -> TokenFileHeader:
        """What the codes are."""
        return self._codec.header

    @property
    def num_frames(self) -> int:
        """Frames of the whole recording so far, those held back for a full block included."""
        return self._num_written + self._num_held

    def write(self, codes: ArrayLike) -> None:
        """Add codes (num_codebooks, n) for any n; whole blocks go to the file at once, the rest is held back.

        Raises:
            ConfigError: not integers, of another shape, or a code out of range; nothing is added.
            OutputError: no room; the file then ends with a whole record and the writer is closed.
        """
        self._refuse_if_closed()
        frames = as_codes(codes, self.header).T.astype(np.uint16, order="C")
        if self.num_frames + len(frames) > MAX_FRAMES:
            raise ConfigError(f"expected at most {MAX_FRAMES} frames in a file")
        self._held.append(frames)
        self._num_held += len(frames)
        if self._num_held >= self._block_frames:
            held = self._take_held()
            whole = len(held) - len(held) % self._block_frames
            self._held, self._num_held = [held[whole:].copy()], len(held) - whole
            self._put_blocks(held[:whole])

    def flush(self) -> None:
        """Write the frames held back as one shorter block, so that readers of the growing file see them.

        Raises:
            OutputError: as for `write`.
        """
        self._refuse_if_closed()
        self._put_blocks(self._take_held())

    def close(self, num_samples: int | None = None) -> None:
        """Write the frames held back and the end record, sync to the disk, and close. Twice is once.

        Args:
            num_samples: audio samples of the whole file, earlier parts included; None for unknown.

        Raises:
            ConfigError: the frames can't stand for so many samples; the writer stays open.
            OutputError: as for `write`.
        """
        if self._file.closed:
            return
        check_num_samples(num_samples, self.num_frames, self.header)
        self.flush()
        # Appending nothing leaves the end record of the earlier part in force.
        if self._needs_end_record or num_samples is not None:
            self._put(self._codec.encode_end(self._num_written, num_samples))
        with self._owned:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise output_error(self._path, error) from error

    def _go_to_end(self) -> None:
        self._file.seek(0)
        beginning = self._file.read(len(self._codec.header_bytes))
        if len(beginning) < len(self._codec.header_bytes) and self._codec.header_bytes.startswith(beginning):
            # Nothing yet, or a header torn by a crash.
            self._file.truncate(0)
            self._needs_end_record = True
            return
        reader = TokenReader(self._file)
        _refuse_other_header(self._path, reader.header, self.header)
        if reader.num_samples is not None and reader.num_samples % self.header.frame_samples:
            raise TokenFileError(
                f"cannot append to {self._path}: its {reader.num_samples} samples end within a frame of "
                f"{self.header.frame_samples}, so that nothing can follow without a gap; begin another file"
            )
        self._position = reader.readable_end
        self._num_written = reader.num_frames
        self._needs_end_record = not reader.finished
        self._file.truncate(self._position)

    def _take_held(self) -> NDArray[np.uint16]:
        empty = np.empty((0, self.header.num_codebooks), np.uint16)
        held = np.concatenate([empty, *self._held])
        self._held, self._num_held = [], 0
        return held

    def _put_blocks(self, frames: NDArray[np.uint16]) -> None:
        for records in self._codec.encode_blocks(frames, self._num_written, self._block_frames):
            self._put(records)
        self._num_written += len(frames)
        self._needs_end_record |= len(frames) > 0

    def _put(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException as error:
            # Should even this fail, the file ends in a torn record, which readers know.
            with contextlib.suppress(OSError), self._file:
                self._file.truncate(self._position)
            if isinstance(error, OSError):
                raise output_error(self._path, error) from error
            raise
        self._position += len(data)

    def _refuse_if_closed(self) -> None:
        if self._file.closed:
            raise OutputError(f"cannot write {self._path}: its writer is closed; open it with append=True")


def token_file_parts(tokens: SpeechTokens, block_frames: int = DEFAULT_BLOCK_FRAMES) -> Iterator[bytes]:
    """The bytes of a finished token file of `tokens`, in parts of bounded size."""
    codec = RecordCodec(tokens.header)
    block_frames = _checked_block_frames(block_frames, codec)
    yield codec.header_bytes
    step = block_frames * max(1, CODES_AT_ONCE // (block_frames * tokens.num_codebooks))
    for start in range(0, tokens.num_frames, step):
        frames = tokens.codes[:, start : start + step].T.astype(np.uint16, order="C")
        yield from codec.encode_blocks(frames, start, block_frames)
    yield codec.encode_end(tokens.num_frames, tokens.num_samples)


def _checked_block_frames(block_frames: int, codec: RecordCodec) -> int:
    if block_frames < 1:
        raise ConfigError(f"expected block_frames of at least 1, got {block_frames}")
    return codec.fitting_block_frames(block_frames)


def _refuse_other_header(path: Path, found: TokenFileHeader, given: TokenFileHeader) -> None:
    differences = [
        f"{name}={value!r}, got {getattr(given, name)!r}"
        for name, value in vars(found).items()
        if value != getattr(given, name)
    ]
    if differences:
        raise TokenFileError(f"cannot append to {path}: it holds tokens with {'; '.join(differences)}; begin another file")
