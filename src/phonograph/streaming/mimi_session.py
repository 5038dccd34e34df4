"""One live stream through Mimi, either way, exactly as one pass over the whole signal.

    with MimiEncoderSession(model) as session:
        for chunk in microphone:                # any number of samples
            codes = session.feed(chunk)         # the frames that it completed: (Q, 0 or more)
        last = session.flush()                  # the frame that was begun, if any

The model holds only weights, so one model serves any number of sessions. A session can be saved to bytes in mid-stream, and
resumed from them elsewhere.
"""

import json
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialize
from torch import Tensor

from phonograph.audio.io import check_range
from phonograph.errors import AudioError, ConfigError, StreamError
from phonograph.models.mimi.modeling_mimi import MimiDecoderOutput, MimiEncoderOutput, MimiModel
from phonograph.nn.state import State

__all__ = ["MimiDecoderSession", "MimiEncoderSession"]

S = TypeVar("S", bound="_Session")


class _Session:
    """What both ways share: an end after which nothing may be fed, and saving to bytes."""

    def __init__(self, model: MimiModel) -> None:
        self.model = model
        self._ended = False

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._ended = True

    def _tensors(self) -> dict[str, Tensor]:
        """All that the session remembers."""
        raise NotImplementedError

    def to_bytes(self) -> bytes:
        """The session as it stands, for `from_bytes`; in safetensors format."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        about = {
            "kind": type(self).__name__,
            "codebooks": self.model.codebook_hash(),
            "arguments": json.dumps(self._arguments()),
            "ended": json.dumps(self._ended),
        }
        return serialize(tensors, about)

    def _arguments(self) -> dict[str, Any]:
        """What the constructor needs beside the model."""
        return {}

    @classmethod
    def from_bytes(cls: type[S], model: MimiModel, data: bytes) -> S:
        """A session that goes on where the one saved by `to_bytes` stood, with the same weights.

        Raises:
            StreamError: not such bytes, of the other direction, or saved with another model.
        """
        tensors, about = _parsed(data)
        if about.get("kind") != cls.__name__ or about.get("codebooks") != model.codebook_hash():
            raise StreamError(
                f"expected a {cls.__name__} saved with this model, got one of {about.get('kind')} with codebooks "
                f"{about.get('codebooks', '')[:12]}; pass the model it was saved with"
            )
        try:
            session, ended = cls(model, **json.loads(about["arguments"])), json.loads(about["ended"])
        except (KeyError, TypeError, ValueError) as error:
            raise StreamError(f"expected the bytes of a saved session, got damaged ones: {error}; save it again") from error
        if _shapes(session._tensors()) != _shapes(tensors):
            raise StreamError("expected the state of a model of this shape, got another; pass the model it was saved with")
        session._restore(tensors)
        session._ended = ended
        return session

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self._tensors().items():
            if name != "held":
                tensor.copy_(tensors[name])

    def _refuse_if_ended(self) -> None:
        if self._ended:
            raise StreamError("expected a session that has not ended, got one that has; call reset() to begin a new stream")


def _numbered(**states: State) -> dict[str, Tensor]:
    return {f"{name}.{i}": tensor for name, state in states.items() for i, tensor in enumerate(state.tensors())}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    """Of all, but for the samples held, whose number varies."""
    return {name: tensor.shape[:-1] if name == "held" else tensor.shape for name, tensor in tensors.items()}


def _parsed(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        length = int.from_bytes(data[:8], "little")
        about = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        return parse(data), about
    except (SafetensorError, ValueError, AttributeError) as error:
        raise StreamError(f"expected the bytes of a saved session, got something else: {error}") from error


class MimiEncoderSession(_Session):
    """Audio in, codes out, one frame (80 ms) behind at most.

    Args:
        model: shared by as many sessions as wanted; in evaluation mode.
        num_quantizers: codebooks wanted, the semantic ones first; None is all.

    Raises:
        ConfigError: num_quantizers out of range. StreamError: a model whose convolutions look ahead.
    """

    def __init__(self, model: MimiModel, num_quantizers: int | None = None) -> None:
        super().__init__(model)
        self.num_quantizers = model.check_num_quantizers(num_quantizers)
        self._convs = model.new_padding_cache(1)
        self._transformer = model.encoder_transformer.new_state(1)
        self._held = torch.zeros(1, model.config.audio_channels, 0, dtype=model.dtype, device=model.device)

    @torch.inference_mode()
    def reset(self) -> None:
        """Forget everything and begin a new stream."""
        self._convs.reset()
        self._transformer.reset()
        self._held = self._held[..., :0]
        self._ended = False

    def _tensors(self) -> dict[str, Tensor]:
        return _numbered(convs=self._convs, transformer=self._transformer) | {"held": self._held}

    def _arguments(self) -> dict[str, Any]:
        return {"num_quantizers": self.num_quantizers}

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        super()._restore(tensors)
        self._held = tensors["held"].to(self._held)

    def feed(self, samples: Tensor) -> Tensor:
        """Take the next samples, (S,) mono or (C, S), and give the codes (Q, F) int64 of the frames now complete.

        Raises:
            AudioError: another shape, or (seen on the host only) samples that are not finite or far beyond full scale; the
                stream stays as it was. StreamError: the session has ended.
        """
        self._refuse_if_ended()
        channels = self.model.config.audio_channels
        chunk = (samples[None] if samples.dim() == 1 else samples).detach()
        if chunk.dim() != 2 or chunk.shape[0] != channels:
            raise AudioError(f"expected samples of shape ({channels}, any), got {tuple(samples.shape)}; one stream at a time")
        if not chunk.is_floating_point():
            raise AudioError(f"expected floating-point samples in [-1, 1], got {chunk.dtype}; convert them first")
        if chunk.device.type == "cpu" and chunk.numel() > 0:
            check_range(*(float(end) for end in chunk.aminmax()))
        self._held = torch.cat([self._held, chunk[None].to(self._held)], dim=-1)
        whole = self._held.shape[-1] // self.model.frame_samples * self.model.frame_samples
        ready, self._held = self._held[..., :whole], self._held[..., whole:]
        return self._encode(ready, None)

    def flush(self) -> Tensor:
        """End the stream: the codes (Q, 0 or 1) of the samples that did not fill a frame.

        Raises:
            StreamError: the session has ended.
        """
        self._refuse_if_ended()
        self._ended = True
        held = self._held.shape[-1]
        if held == 0:
            return self._encode(self._held, None)
        padding = self.model.frame_samples - held
        mask = torch.arange(self.model.frame_samples, device=self._held.device)[None] < held
        return self._encode(torch.nn.functional.pad(self._held, (0, padding)), mask)

    @torch.inference_mode()
    def _encode(self, audio: Tensor, mask: Tensor | None) -> Tensor:
        if audio.shape[-1] == 0:
            return torch.zeros(self.num_quantizers, 0, dtype=torch.int64, device=audio.device)
        output = self.model.encode(
            audio,
            mask,
            self.num_quantizers,
            self._transformer,
            self._convs,
            use_streaming=True,
            return_dict=True,
        )
        return cast(Tensor, cast(MimiEncoderOutput, output).audio_codes)[0]


class MimiDecoderSession(_Session):
    """Codes in, audio out, without a seam between calls.

    Args:
        model: shared by as many sessions as wanted; in evaluation mode.

    Raises:
        StreamError: a model whose convolutions look ahead.
    """

    def __init__(self, model: MimiModel) -> None:
        super().__init__(model)
        self._state = model.new_decoder_state(1)

    @torch.inference_mode()
    def reset(self) -> None:
        """Forget everything and begin a new stream."""
        self._state.reset()
        self._ended = False

    def _tensors(self) -> dict[str, Tensor]:
        return _numbered(state=self._state)

    @torch.inference_mode()
    def feed(self, codes: Tensor) -> Tensor:
        """Take the next codes (Q, F) and give their audio (C, F x frame).

        Raises:
            ConfigError: another shape, or codes out of range. StreamError: the session has ended.
        """
        self._refuse_if_ended()
        if codes.dim() != 2:
            raise ConfigError(f"expected codes of shape (codebooks, frames), got {tuple(codes.shape)}; one stream at a time")
        if codes.is_floating_point():
            raise ConfigError(f"expected integer codes, got {codes.dtype}; convert them first")
        if codes.shape[1] == 0:
            return torch.zeros(self.model.config.audio_channels, 0, dtype=self.model.dtype, device=self.model.device)
        codes = codes[None].to(self.model.device, torch.int64)
        output = self.model.decode(codes, decoder_past_key_values=self._state, return_dict=True)
        return cast(Tensor, cast(MimiDecoderOutput, output).audio_values)[0]
