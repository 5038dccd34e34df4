"""Short-time spectra of one signal through windows of many sizes, computed once for all losses and discriminators.

    spectra = Spectra((256, 1024))
    spectra(audio)[1024]        # (B, 513, 1 + S // 256) complex64

Windows are periodic Hann windows, hops a quarter of them, and the signal is mirrored at both ends. Each spectrum is divided by
its window's norm, so that white noise of variance one has a mean power of one in each bin, whatever the window.

Shapes: B signals (items times channels), S samples.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["SPEECH_LEVEL", "Spectra"]

SPEECH_LEVEL = 0.05  # root mean square, and what a bin has on average


class Spectra(nn.Module):
    """The windows, and the transform through each.

    Args:
        windows: sizes in samples, multiples of four; a signal must be longer than half the largest.
    """

    def __init__(self, windows: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(windows)
        for size in self.sizes:
            window = torch.hann_window(size, dtype=torch.float64)
            self.register_buffer(f"window_{size}", (window / window.norm()).float(), persistent=False)

    def forward(self, audio: Tensor) -> dict[int, Tensor]:
        """(B, S) -> by window size (B, size // 2 + 1, 1 + S // (size // 4)) complex, with gradients, in float32 at least."""
        audio = audio.to(torch.promote_types(audio.dtype, torch.float32))
        return {size: self._transform(audio, size) for size in self.sizes}

    def _transform(self, audio: Tensor, size: int) -> Tensor:
        window = cast(Tensor, getattr(self, f"window_{size}")).to(audio.dtype)
        return torch.stft(audio, size, size // 4, window=window, center=True, return_complex=True)
