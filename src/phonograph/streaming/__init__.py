"""Sessions: the wide edge around the models' narrow core. Any chunk in, whole frames through, flush at the end."""

from phonograph.streaming.mimi_batch import MimiBatch as MimiBatch
from phonograph.streaming.mimi_session import MimiDecoderSession as MimiDecoderSession
from phonograph.streaming.mimi_session import MimiEncoderSession as MimiEncoderSession

__all__ = ["MimiBatch", "MimiDecoderSession", "MimiEncoderSession"]
