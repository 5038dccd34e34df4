"""State as a value that the caller holds.

Every layer that remembers something between calls has a small dataclass derived from `State`, whose fields are tensors with the
batch first, or further states. A model's state nests those of its layers, so that one walk over the fields gives `reset`,
`select`, `reorder` and `nbytes` for all of them. A layer called with `state=None` remembers nothing and writes nothing; called
with a state it updates the tensors in place, at fixed shapes. All zeros means that nothing came before.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["State", "remember"]

S = TypeVar("S", bound="State")


def remember(target: Tensor, value: Tensor, active: Tensor | None) -> None:
    """Overwrite `target` (B, ...) in place by `value`: in all streams, or in those where `active` (B,) bool is true."""
    if active is not None:
        value = torch.where(active.view(-1, *[1] * (target.dim() - 1)), value, target)
    target.copy_(value.detach())


@dataclasses.dataclass
class State:
    """Base of all states. Fields are tensors (batch first), states, or lists of states."""

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of this state and the states inside it, in field order."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, State):
                    yield from part.tensors()
                else:
                    yield part

    @property
    def batch_size(self) -> int:
        """Number of streams that this state follows."""
        return next(self.tensors()).shape[0]

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes. It does not grow with the length of the stream."""
        return sum(tensor.nbytes for tensor in self.tensors())

    @torch.no_grad()
    def reset(self, mask: Tensor | None = None) -> None:
        """Forget, in place, what came before: in every stream, or in those where `mask` (B,) bool is true."""
        for tensor in self.tensors():
            if mask is None:
                tensor.zero_()
            else:
                tensor.masked_fill_(mask.view(-1, *[1] * (tensor.dim() - 1)), 0)

    @torch.no_grad()
    def reorder(self, indices: Tensor) -> None:
        """Let stream i continue, in place, what stream `indices[i]` was; `indices` is (B,) int64."""
        for tensor in self.tensors():
            tensor.copy_(tensor.index_select(0, indices))

    def select(self: S, indices: Tensor) -> S:
        """A new state of the streams `indices` (N,) int64, sharing no memory with this one."""
        return self._map(lambda tensor: tensor.index_select(0, indices))

    def clone(self: S) -> S:
        """A copy that shares no memory with this state."""
        return self._map(torch.clone)

    def to(self: S, device: torch.device | str) -> S:
        """The same state on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def made_of(self: S, tensors: Iterator[Tensor]) -> S:
        """The same state with the next of `tensors` in place of its own, in the order of `tensors()`."""
        return self._map(lambda _: next(tensors))

    def _map(self: S, function: Callable[[Tensor], Tensor]) -> S:
        def convert(value: Any) -> Any:
            if isinstance(value, list):
                return [convert(part) for part in value]
            return value._map(function) if isinstance(value, State) else function(value)

        return type(self)(**{field.name: convert(getattr(self, field.name)) for field in dataclasses.fields(self)})
