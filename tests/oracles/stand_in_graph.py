"""A stand-in for CUDA graphs on a CPU, so that what is captured can be tested without a GPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["StandInGraph", "stand_in"]


class StandInGraph(TorchDispatchMode):
    """In the place of torch.cuda.CUDAGraph: what is run inside is recorded, operator by operator, and replayed on the very
    tensors that it was recorded with. As in a capture, no value may be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a captured step may not wait for the device"
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.calls:
            for place, value in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


class _Stream:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def wait_stream(self, other: "_Stream") -> None:
        assert other is not self
        self.log.append("wait")


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it in the place of torch.cuda's graphs and streams."""
    log: list[str] = []
    current = _Stream(log)

    @contextlib.contextmanager
    def stream(side: _Stream) -> Iterator[None]:
        assert side is not current
        log.append("enter")
        yield
        log.append("leave")

    @contextlib.contextmanager
    def capture(graph: StandInGraph) -> Iterator[None]:
        assert log == ["wait", "enter", "leave", "wait"], "kernels are chosen on a side stream, which both sides wait for"
        log.clear()
        with graph:
            yield

    for name, value in {
        "Stream": lambda: _Stream(log),
        "current_stream": lambda: current,
        "stream": stream,
        "CUDAGraph": StandInGraph,
        "graph": capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
