"""One call each: speech to tokens and back, and speech to text.

import phonograph

tokens = phonograph.encode("speech.wav")          # bundled model; SpeechTokens
tokens.save("speech.mimi")
phonograph.decode("speech.mimi").save("back.wav")
"""

from phonograph.api.codec import DEFAULT_CODEC as DEFAULT_CODEC
from phonograph.api.codec import check_codec as check_codec
from phonograph.api.codec import codebooks_for_bitrate as codebooks_for_bitrate
from phonograph.api.codec import decode as decode
from phonograph.api.codec import decode_stream as decode_stream
from phonograph.api.codec import encode as encode
from phonograph.api.codec import load_codec as load_codec
from phonograph.api.codec import token_header as token_header
from phonograph.api.text import DEFAULT_RECOGNIZER as DEFAULT_RECOGNIZER
from phonograph.api.text import Recognizer as Recognizer
from phonograph.api.text import align as align
from phonograph.api.text import load_recognizer as load_recognizer
from phonograph.api.text import transcribe as transcribe
from phonograph.api.text import translate as translate

__all__ = [
    "DEFAULT_CODEC",
    "DEFAULT_RECOGNIZER",
    "Recognizer",
    "align",
    "check_codec",
    "codebooks_for_bitrate",
    "decode",
    "decode_stream",
    "encode",
    "load_codec",
    "load_recognizer",
    "token_header",
    "transcribe",
    "translate",
]
