"""How good a codec is on given speech, by number of codebooks: how it sounds, and how many words survive.

    judge = CodecJudge(codec, [16, 8, 4], listener=load_listener("facebook/wav2vec2-base-960h"))
    for speech, text in held_out:
        recordings = judge.add(speech, text)  # the original and what the codec makes of it, by their labels
    judge.figures()  # {"16 codebooks/STOI": 0.88, "16 codebooks/WER": 0.17, "original/WER": 0.12, ...}
    judge.coverage()  # {"STOI": "40 of 40 recordings", ...}

It knows neither recipes nor runs: any codec can be judged, on anyone's recordings.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from phonograph.audio import Audio
from phonograph.audio.quality import MEASURES, measure
from phonograph.errors import AudioError
from phonograph.models.mimi.modeling_mimi import MimiModel
from phonograph.training.codec.listeners import Listener
from phonograph.training.evaluation import error_rates
from phonograph.training.transcripts import Spelling

__all__ = ["CodecJudge"]

_ORIGINAL = "original"


class CodecJudge:
    """Collects the figures of recordings, one after the other.

    Args:
        codec: of one channel, in evaluation mode.
        codebooks: numbers of codebooks to judge with; empty is all of them.
        listener: writes down what is said, before and after; None leaves words out.
        spelling: of texts, given and heard, before words are compared.

    Raises:
        ConfigError: a number of codebooks that the codec hasn't.
    """

    def __init__(
        self,
        codec: MimiModel,
        codebooks: Sequence[int] = (),
        *,
        listener: Listener | None = None,
        spelling: Spelling | None = None,
    ) -> None:
        self._codec = codec
        numbers = {codec.check_num_quantizers(number) for number in codebooks} or {codec.config.num_quantizers}
        self._numbers = sorted(numbers, reverse=True)
        self._listener = listener
        self._spelling = spelling or Spelling()
        self._recordings = 0
        self._measured: defaultdict[str, list[float]] = defaultdict(list)
        self._left_out: dict[str, str] = {}
        self._said: list[str] = []
        self._heard: defaultdict[str, list[str]] = defaultdict(list)

    @torch.no_grad()
    def add(self, speech: Audio, text: str = "") -> dict[str, Audio]:
        """Judge one mono recording at the codec's rate.

        Args:
            text: what is said; without, the recording doesn't count where words are compared.

        Returns:
            The original, and what is left of it at each number of codebooks, the most first, by the names of figures.

        Raises:
            AudioError: another rate, or several channels.
        """
        config = self._codec.config
        if (speech.num_channels, speech.sampling_rate) != (1, config.sampling_rate):
            raise AudioError(
                f"expected mono audio at {config.sampling_rate} Hz, got {speech.num_channels} channels at "
                f"{speech.sampling_rate} Hz; convert it with Audio.mono() and Audio.resample({config.sampling_rate})"
            )
        recordings = self._at_all_bitrates(speech)
        self._recordings += 1
        for label, made in list(recordings.items())[1:]:
            quality = measure(speech, made)
            for name, value in quality.figures.items():
                self._measured[f"{label}/{name}"].append(value)
            self._left_out |= quality.left_out
        spelled = self._spelling(text)
        if self._listener is not None and spelled:
            self._said.append(spelled)
            for label, heard in zip(recordings, self._listener.texts(list(recordings.values())), strict=True):
                self._heard[label].append(self._spelling(heard))
        return recordings

    def figures(self) -> dict[str, float]:
        """Means over recordings, "row/column"; error rates are over all words together.

        Rows are numbers of codebooks and, where words were compared, the original; "WER above original" is the difference of
        both error rates.

        Raises:
            MissingExtraError: there are words to be compared, and jiwer is not installed.
        """
        rates = {label: error_rates(self._said, heard).words for label, heard in self._heard.items()}
        found: dict[str, float] = {}
        for number in self._numbers:
            label = _label(number)
            measured = {name: self._measured[name] for name in (f"{label}/{figure}" for figure in MEASURES)}
            found |= {name: float(np.mean(values)) for name, values in measured.items() if values}
            if rates:
                found |= {f"{label}/WER": rates[label], f"{label}/WER above original": rates[label] - rates[_ORIGINAL]}
        return found | ({f"{_ORIGINAL}/WER": rates[_ORIGINAL]} if rates else {})

    def coverage(self) -> dict[str, str]:
        """By figure, on how many recordings it was measured, and why not on all of them."""
        told = {}
        for name in MEASURES:
            count = min(len(self._measured[f"{_label(number)}/{name}"]) for number in self._numbers)
            why = f"; {self._left_out[name]}" if name in self._left_out else ""
            told[name] = f"{count} of {self._recordings} recordings{why}"
        if self._listener is not None:
            told["WER"] = (
                f"{len(self._said)} of {self._recordings} recordings, those with transcripts; heard by {self._listener.name}"
            )
        return told

    def _at_all_bitrates(self, speech: Audio) -> dict[str, Audio]:
        audio = torch.from_numpy(speech.samples).to(self._codec.device, self._codec.dtype)[None]
        codes = cast(Tensor, self._codec.encode(audio, num_quantizers=self._numbers[0])[0])
        recordings = {_ORIGINAL: speech}
        for number in self._numbers:
            made = cast(Tensor, self._codec.decode(codes[:, :number])[0])[0, :, : speech.num_samples]
            recordings[_label(number)] = Audio(made.float().clamp(-1, 1).cpu().numpy(), speech.sampling_rate)
        return recordings


def _label(number: int) -> str:
    return f"{number} codebooks"
