"""A step captured once as a CUDA graph and replayed, so that a call launches and allocates nothing else.

    step = CapturedStep(function, tokens)
    logits = step(tokens)

The function may not wait for the device. It runs a few times on the first inputs: what it writes in place then must be what
stood there, or what the first call writes again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CapturedStep"]

_WARM_UPS = 3


class CapturedStep:
    """A function of tensors on a GPU, captured.

    Args:
        function: takes tensors of the shapes of `inputs`, gives one tensor.
        inputs: what it is run on while kernels are chosen; they are not kept.
    """

    def __init__(self, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        self._inputs = [value.clone() for value in inputs]
        with torch.cuda.device_of(inputs[0]):  # streams and captures belong to the current device, which may be another
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # kernels are chosen and caches filled before capture
                for _ in range(_WARM_UPS):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._output = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The result, in a place that the next call overwrites."""
        for place, value in zip(self._inputs, inputs, strict=True):
            place.copy_(value)
        self.graph.replay()
        return self._output
