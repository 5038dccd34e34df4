"""Speech as tokens: the codes of a recording, and the checksummed, append-able file that holds them.

    from phonograph.tokens import SpeechTokens, TokenReader, TokenWriter

    tokens = SpeechTokens.load("speech.mimi")
    tokens.duration_seconds, tokens.bitrate, tokens.codes  # int16 (codebooks, frames)

`SpeechTokens` is the value and loads and saves whole recordings; `TokenWriter` and `TokenReader` write and
follow files that grow, `TokenPipeWriter` and `TokenPipeReader` what goes through pipes. docs/token-file.md
gives the format to the byte. Nothing here needs torch or knows a model.
"""

from phonograph.tokens.header import TokenFileHeader
from phonograph.tokens.index import Damage
from phonograph.tokens.pipe import TokenPipeReader, TokenPipeWriter
from phonograph.tokens.reader import TokenBlock, TokenReader
from phonograph.tokens.speech_tokens import SpeechTokens
from phonograph.tokens.writer import TokenWriter

__all__ = [
    "Damage",
    "SpeechTokens",
    "TokenBlock",
    "TokenFileHeader",
    "TokenPipeReader",
    "TokenPipeWriter",
    "TokenReader",
    "TokenWriter",
]
