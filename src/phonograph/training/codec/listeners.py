"""Who writes down what is said, so that words before and after a codec can be compared: a model of this library, or Whisper.

    listener = load_listener("facebook/wav2vec2-base-960h")   # a folder or hub id of a Wav2Vec2 made for CTC or a Speech2Text
    listener = load_listener("whisper:base.en")     # a size, folder or hub id that the package faster-whisper takes
    listener.texts([original, reconstruction])

They take mono audio of any rate. Where nothing can be heard, nothing is written.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from phonograph import api
from phonograph.api.inputs import usable
from phonograph.audio import Audio
from phonograph.errors import AudioError, CheckpointError, MissingExtraError

__all__ = ["Listener", "RecognizerListener", "WhisperListener", "load_listener"]

_WHISPER = "whisper:"
_WHISPER_RATE = 16000
_WHISPER_SHORTEST = 400  # one window of its spectra


class Listener(Protocol):
    """Whoever writes down speech; `name` says who that is."""

    name: str

    def texts(self, clips: Sequence[Audio]) -> list[str]:
        """What is said in each of some mono clips."""


class RecognizerListener:
    """A model of `phonograph.transcribe`."""

    def __init__(self, recognizer: api.Recognizer) -> None:
        self._recognizer = recognizer
        self.name = recognizer.model.config.name_or_path or type(recognizer.model).__name__

    def texts(self, clips: Sequence[Audio]) -> list[str]:
        """All in one batch, which suits clips of one length."""
        audible = _audible(clips, self._recognizer.sampling_rate, self._recognizer.shortest_samples)
        transcripts = api.transcribe(list(audible.values()), self._recognizer, batch_size=max(1, len(audible)))
        found = dict(zip(audible, (transcript.text for transcript in transcripts), strict=True))
        return [found.get(place, "") for place in range(len(clips))]


class WhisperListener:
    """A Whisper (Radford et al. 2022, arXiv:2212.04356) run by faster-whisper: a beam of five, no sampling, no times.

    Args:
        model: a size such as base.en, a folder in the layout of CTranslate2, or a hub id of one.
        device: where it computes, if that is a CUDA device; CTranslate2 knows no other than these and the CPU.

    Raises:
        MissingExtraError: faster-whisper is not installed. CheckpointError: there is no such model.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise MissingExtraError("recognition by Whisper", "faster-whisper", "whisper") from error
        self.name = _WHISPER + model
        place = torch.device(device)
        kind = "cuda" if place.type == "cuda" else "cpu"
        try:
            self._model: Any = WhisperModel(model, device=kind, device_index=place.index or 0)
        except (OSError, ValueError, RuntimeError) as error:  # of the hub, of names, of CTranslate2
            why = " ".join(str(error).split())
            raise CheckpointError(
                f"expected a Whisper that faster-whisper loads, got {model} ({why}); name a size such as base.en, or a folder"
            ) from error

    def texts(self, clips: Sequence[Audio]) -> list[str]:
        """One clip after the other."""
        audible = _audible(clips, _WHISPER_RATE, _WHISPER_SHORTEST)
        return [self._text(audible[place]) if place in audible else "" for place in range(len(clips))]

    def _text(self, clip: Audio) -> str:
        segments, _ = self._model.transcribe(
            clip.samples[0], temperature=0.0, condition_on_previous_text=False, without_timestamps=True
        )
        return "".join(segment.text for segment in segments).strip()


def load_listener(model: str, device: str = "cpu") -> Listener:
    """Whoever a recipe names.

    Args:
        model: what `phonograph.transcribe` takes, or "whisper:" and what faster-whisper takes.
        device: where it computes.

    Raises:
        CheckpointError, ConfigError: no such model, or one that writes no text.
        MissingExtraError: faster-whisper is needed and not installed.
    """
    if model.startswith(_WHISPER):
        return WhisperListener(model.removeprefix(_WHISPER), device)
    return RecognizerListener(api.load_recognizer(model, device=device))


def _audible(clips: Sequence[Audio], sampling_rate: int, shortest_samples: int) -> dict[int, Audio]:
    """Clips with something to be heard, by their places, at a rate."""
    found = {}
    for place, clip in enumerate(clips):
        resampled = clip.resample(sampling_rate)
        if _is_usable(resampled, shortest_samples):
            found[place] = resampled
    return found


def _is_usable(clip: Audio, shortest_samples: int) -> bool:
    try:
        list(usable(iter([clip]), shortest_samples))
    except AudioError:
        return False
    return True
