"""Audio in and out: any common file to float32 arrays at any rate, and back.

    from phonograph import audio

    speech = audio.load("speech.m4a", sampling_rate=24000, mono=True)
    audio.save("speech.flac", speech)

Nothing here knows of a model, and nothing but `phonograph.audio.fbank`, imported by its own name, of torch: arrays are
numpy's, shaped (channels, time), in [-1, 1] by convention.
"""

from phonograph.audio.io import WRITABLE_FORMATS as WRITABLE_FORMATS
from phonograph.audio.io import Audio as Audio
from phonograph.audio.io import AudioInfo as AudioInfo
from phonograph.audio.io import info as info
from phonograph.audio.io import load as load
from phonograph.audio.io import save as save
from phonograph.audio.io import save_stream as save_stream
from phonograph.audio.io import stream as stream

__all__ = ["WRITABLE_FORMATS", "Audio", "AudioInfo", "info", "load", "save", "save_stream", "stream"]
