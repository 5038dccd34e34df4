"""Token files through binary file objects: the same bytes as through a path, and the same refusals."""

import io
from pathlib import Path

import numpy as np
import pytest

from phonograph.errors import TokenFileError
from phonograph.tokens import SpeechTokens, TokenFileHeader

HEADER = TokenFileHeader(sampling_rate=24000, frame_samples=1920, num_codebooks=2, codebook_size=16)
TOKENS = SpeechTokens(np.arange(200).reshape(2, 100) % 16, HEADER, num_samples=191_000)


def test_the_bytes_are_those_of_a_file(tmp_path: Path) -> None:
    TOKENS.save(tmp_path / "a.mimi")
    file = io.BytesIO()
    TOKENS.save(file)
    assert file.getvalue() == (tmp_path / "a.mimi").read_bytes()
    assert SpeechTokens.load(file) == TOKENS


def test_damage_is_told_by_the_objects_name() -> None:
    file = io.BytesIO()
    TOKENS.save(file)
    cut = io.BytesIO(file.getvalue()[:-60])
    with pytest.raises(TokenFileError, match="the token file is damaged: block 1"):
        SpeechTokens.load(cut)
    cut.name = "standard input"
    with pytest.raises(TokenFileError, match="standard input is damaged"):
        SpeechTokens.load(cut)
    assert SpeechTokens.load(cut, on_damage="prefix").num_frames == 64
