"""Many live streams through one Mimi at once: a fixed number of slots, which streams join and leave in mid-flight.

    batch = MimiBatch(model, slots=8)
    slot = batch.join()
    codes = batch.encode(frames)            # (8, C, 1920) -> (8, Q, 1); rows of free slots are -1
    batch.leave(slot)

Every call has the same shapes, whoever is there. No slot has an effect on another: each gets what it gets alone. On a GPU the
step is captured once as a CUDA graph and replayed, so that a call launches, allocates and waits for nothing else.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from phonograph.errors import AudioError, ConfigError, StreamError
from phonograph.models.mimi.modeling_mimi import MimiModel
from phonograph.nn.graphs import CapturedStep

__all__ = ["MimiBatch"]


class MimiBatch:
    """Slots for live streams, encoded and decoded one frame (80 ms) at a time.

    Args:
        model: in evaluation mode.
        slots: the most streams at a time; memory and the time of a step are those of this number.
        num_quantizers: codebooks to encode, the semantic ones first; None is all.
        cuda_graph: replay a captured step; None is yes on a GPU.

    Raises:
        ConfigError: no slots, or num_quantizers out of range. StreamError: a model whose convolutions look ahead.
    """

    def __init__(
        self, model: MimiModel, slots: int, *, num_quantizers: int | None = None, cuda_graph: bool | None = None
    ) -> None:
        if slots < 1:
            raise ConfigError(f"expected at least one slot, got {slots}")
        self.model = model
        self.slots = slots
        self.num_quantizers = model.check_num_quantizers(num_quantizers)
        on_gpu = model.device.type == "cuda"
        self._cuda_graph = on_gpu if cuda_graph is None else cuda_graph and on_gpu
        self._convs = model.new_padding_cache(slots)
        self._transformer = model.encoder_transformer.new_state(slots)
        self._decoder = model.new_decoder_state(slots)
        self._joined = torch.zeros(slots, dtype=torch.bool)  # on the host: asking costs no wait
        self._joined_there = self._joined.to(model.device)  # where the steps need it
        self._steps: dict[tuple[object, ...], CapturedStep] = {}

    @property
    def joined(self) -> list[int]:
        """Slots in use, in rising order."""
        return [slot for slot in range(self.slots) if self._joined[slot]]

    @property
    def nbytes(self) -> int:
        """Memory of all slots' states, in bytes; it never changes."""
        return sum(state.nbytes for state in (self._convs, self._transformer, self._decoder))

    @torch.inference_mode()
    def join(self) -> int:
        """Take a free slot for a new stream.

        Raises:
            StreamError: all slots are in use.
        """
        if bool(self._joined.all()):
            raise StreamError(f"expected a free slot, all {self.slots} are in use; let a stream leave, or make more slots")
        slot = int((~self._joined).to(torch.uint8).argmax())
        self._set_joined(slot, True)
        self.reset(slot)
        return slot

    @torch.inference_mode()
    def leave(self, slot: int) -> None:
        """Free a slot.

        Raises:
            StreamError: the slot is not in use.
        """
        self._check_joined(slot)
        self._set_joined(slot, False)

    @torch.inference_mode()
    def reset(self, slot: int) -> None:
        """Begin a new stream, both ways, in a slot that is in use.

        Raises:
            StreamError: the slot is not in use.
        """
        self._check_joined(slot)
        mask = torch.arange(self.slots, device=self.model.device) == slot
        for state in (self._convs, self._transformer, self._decoder):
            state.reset(mask)

    def encode(self, frames: Tensor, active: Tensor | None = None) -> Tensor:
        """The next frame of each stream, (slots, C, frame) in the model's dtype, to codes (slots, Q, 1) int64.

        Args:
            active: (slots,) bool on the host, streams that have a frame this time; the others stay as they are. None is
                all in use. What stands in the rows of other slots does not matter; their codes are -1.

        Raises:
            AudioError: frames of integers. StreamError: another shape, or an active slot that is not in use.
        """
        self._check_shape("frames", frames, (self.slots, self.model.config.audio_channels, self.model.frame_samples))
        if not frames.is_floating_point():
            raise AudioError(f"expected floating-point frames in [-1, 1], got {frames.dtype}; convert them first")
        return self._run(self._encode_step, frames.to(self.model.device, self.model.dtype), self._active(active))

    def decode(self, codes: Tensor, active: Tensor | None = None) -> Tensor:
        """The next codes of each stream, (slots, Q, 1) for any Q, to audio (slots, C, frame); `active` as in `encode`.

        The audio of slots that are not active is 0.

        Raises:
            StreamError: another shape, or an active slot that is not in use. ConfigError: too many or too few codebooks,
                codes that are no integers, or (seen on the host only) out of range in an active slot.
        """
        number = codes.shape[1] if codes.dim() == 3 else self.num_quantizers
        self._check_shape("codes", codes, (self.slots, self.model.check_num_quantizers(number), 1))
        if codes.is_floating_point():
            raise ConfigError(f"expected integer codes, got {codes.dtype}; convert them first")
        going = self._active(active)
        self._check_range(codes, self._joined if active is None else active)
        return self._run(self._decode_step, codes.to(self.model.device, torch.int64), going)

    def _encode_step(self, frames: Tensor, active: Tensor) -> Tensor:
        latents = self.model.encode_latents(frames, None, self._transformer, self._convs, active)
        codes = self.model.quantizer.encode(latents, self.num_quantizers)
        return codes.masked_fill(~active[:, None, None], -1)

    def _decode_step(self, codes: Tensor, active: Tensor) -> Tensor:
        codes = codes.masked_fill(~active[:, None, None], 0)
        audio = self.model.decode_latents(self.model.quantizer.decode(codes), self._decoder, active)
        return audio.masked_fill(~active[:, None, None], 0)

    @torch.inference_mode()
    def _run(self, step: Callable[[Tensor, Tensor], Tensor], value: Tensor, active: Tensor) -> Tensor:
        if not self._cuda_graph:
            return step(value, active)
        key = (step.__name__, value.shape)
        if key not in self._steps:
            nobody = torch.zeros_like(active)  # so that runs before the capture leave the streams as they are
            self._steps[key] = CapturedStep(step, value, nobody)
        return self._steps[key](value, active).clone()

    def _active(self, active: Tensor | None) -> Tensor:
        if active is None:
            return self._joined_there
        self._check_shape("active", active, (self.slots,))
        if active.dtype != torch.bool:
            raise StreamError(f"expected active as bool, got {active.dtype}; pass True for each slot that has a frame")
        if bool((active.cpu() & ~self._joined).any()):
            raise StreamError(f"expected active slots among those in use, {self.joined}, got {active.tolist()}; join first")
        return active.to(self.model.device)

    def _set_joined(self, slot: int, value: bool) -> None:
        self._joined[slot] = value
        self._joined_there[slot] = value

    def _check_joined(self, slot: int) -> None:
        if slot not in self.joined:
            raise StreamError(f"expected a slot in use ({self.joined}), got {slot}; join first")

    def _check_range(self, codes: Tensor, active: Tensor) -> None:
        size = self.model.config.codebook_size
        # A look at the values would stall a GPU; there the lookup itself stops on a bad index.
        if codes.device.type == "cpu" and bool((((codes < 0) | (codes >= size)) & active.cpu()[:, None, None]).any()):
            raise ConfigError(
                f"expected codes from 0 to {size - 1} in active slots, got {codes[:, :, 0].tolist()}; "
                "these codes are of another model, or damaged"
            )

    @staticmethod
    def _check_shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
        if tuple(value.shape) != expected:
            raise StreamError(f"expected {name} of shape {expected}, got {tuple(value.shape)}; one frame for every slot")
