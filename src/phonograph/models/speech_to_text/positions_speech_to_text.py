"""Where a token or a step stands: fixed sines and cosines, in a table that grows with what is asked of it.

It knows no model: tokens come in, and rows of the table come out.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Speech2TextSinusoidalPositionalEmbedding"]


class Speech2TextSinusoidalPositionalEmbedding(nn.Module):
    """Fixed positions, sines then cosines (Vaswani et al. 2017, arXiv:1706.03762, in tensor2tensor's order).

    The table is made for `num_positions` and two more, and made anew for longer sequences. It is no part of checkpoints.

    Args:
        num_positions: positions expected.
        embedding_dim: width, of any size.
        padding_idx: the token that has no position: its row is zero, and real positions start behind it. None: every token
            has a position, the first is row 0.
    """

    weights: Tensor

    def __init__(self, num_positions: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.offset = 2
        self.num_positions = num_positions
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.make_weights(num_positions + self.offset, embedding_dim, padding_idx)

    def make_weights(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        """Replace the table by one of `num_embeddings` rows, on the same device and in the same dtype."""
        with torch.inference_mode(False):  # a table that grew during inference must still serve training
            table = self.get_embedding(num_embeddings, embedding_dim, padding_idx)
            old = self._buffers.get("weights")
            if old is not None:
                table = table.to(old.device, old.dtype)
        self.register_buffer("weights", table, persistent=False)

    @staticmethod
    def get_embedding(num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> Tensor:
        """A table (num_embeddings, embedding_dim) in the default dtype; the last column of an odd width is zero."""
        half = embedding_dim // 2
        # In float32, as the published models were trained: at position 6000 a rounding moves an angle by 0.0004.
        step = math.log(10000) / max(half - 1, 1)
        frequencies = torch.exp(torch.arange(half, dtype=torch.int64).float() * -step)
        angles = torch.arange(num_embeddings, dtype=torch.int64).float()[:, None] * frequencies
        table = F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, embedding_dim % 2))
        if padding_idx is not None and padding_idx < num_embeddings:
            table[padding_idx] = 0
        return table.to(torch.get_default_dtype())

    @staticmethod
    def create_position_ids_from_input_ids(
        input_ids: Tensor, padding_idx: int | None, past_key_values_length: int = 0
    ) -> Tensor:
        """Tokens (B, T) -> rows of the table (B, T): real tokens counted from padding_idx + 1, padding at padding_idx."""
        if padding_idx is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device) + past_key_values_length
            return positions.expand(input_ids.shape)
        real = input_ids.ne(padding_idx).long()
        return (real.cumsum(1) + past_key_values_length) * real + padding_idx

    def forward(self, input_ids: Tensor, past_key_values_length: int = 0) -> Tensor:
        """Tokens (B, T), after `past_key_values_length` others -> (B, T, embedding_dim), detached."""
        rows = self.create_position_ids_from_input_ids(input_ids, self.padding_idx, past_key_values_length)
        table = self.table(past_key_values_length + input_ids.shape[1])
        return table.index_select(0, rows.flatten()).view(*rows.shape, -1).detach()

    def table(self, length: int) -> Tensor:
        """The table with rows for at least `length` tokens: the first is row `first`; grown where that is needed."""
        needed = self.first + length
        if needed <= self.weights.shape[0]:
            return self.weights
        if torch.compiler.is_compiling():  # a compiled graph may not replace a module's buffer
            return self.get_embedding(needed, self.embedding_dim, self.padding_idx).to(self.weights)
        self.make_weights(needed + self.offset, self.embedding_dim, self.padding_idx)
        return self.weights

    @property
    def first(self) -> int:
        """Row of the first real token."""
        return 0 if self.padding_idx is None else self.padding_idx + 1

    def reset_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        """Make the table again on `device`, after the module was built where there is no memory."""
        table = self.get_embedding(self.weights.shape[0], self.embedding_dim, self.padding_idx)
        self.weights = table.to(device, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Speech2TextSinusoidalPositionalEmbedding":
        was_meta = self.weights.is_meta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if was_meta and not self.weights.is_meta:  # to_empty gives memory but no values
            self.reset_buffers(self.weights.device, self.weights.dtype)
        return self
