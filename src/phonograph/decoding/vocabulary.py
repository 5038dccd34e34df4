"""What the outputs of a CTC model stand for, and where in time a token lies.

    vocabulary = Vocabulary(["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", ...])
    vocabulary.surfaces[4]  # " "

Blank and special tokens are silent: no text comes from them. Knows no tokenizer file and no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phonograph.errors import ConfigError

__all__ = ["LogProbs", "TokenSpan", "Vocabulary", "as_array", "mean_over_runs"]

LogProbs: TypeAlias = Tensor | npt.NDArray[np.floating[Any]]
"""Natural logarithms of probabilities, over tokens in the last dimension."""


@dataclass(frozen=True)
class TokenSpan:
    """A token and the frames that it holds, from `start_frame` up to but not including `end_frame`.

    `confidence` is the mean over these frames of the token's probability.
    """

    token_id: int
    start_frame: int
    end_frame: int
    confidence: float


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a CTC model, by id.

    Args:
        tokens: one string per output of the model.
        blank: id of the CTC blank, in most checkpoints the padding token.
        word_delimiter: the token between words; None where words aren't separated.
        special_tokens: tokens without text, where the vocabulary has them.

    Raises:
        ConfigError: the blank or the delimiter is not among the tokens.
    """

    tokens: Sequence[str]
    blank: int = 0
    word_delimiter: str | None = "|"
    special_tokens: Sequence[str] = ("<pad>", "<s>", "</s>", "<unk>")

    def __post_init__(self) -> None:
        if not 0 <= self.blank < len(self.tokens):
            raise ConfigError(
                f"expected the blank's id below {len(self.tokens)}, the number of tokens, got {self.blank}; pass another blank"
            )
        if self.word_delimiter is not None and self.word_delimiter not in self.tokens:
            raise ConfigError(
                f"expected the word delimiter {self.word_delimiter!r} among the {len(self.tokens)} tokens, got none; "
                "pass word_delimiter=None if words aren't separated"
            )

    @cached_property
    def delimiter_id(self) -> int | None:
        """Id of the word delimiter."""
        return None if self.word_delimiter is None else list(self.tokens).index(self.word_delimiter)

    @cached_property
    def silent_ids(self) -> npt.NDArray[np.int64]:
        """Ids of the blank and of all special tokens."""
        return np.array([i for i, token in enumerate(self.tokens) if i == self.blank or token in self.special_tokens])

    @cached_property
    def surfaces(self) -> tuple[str, ...]:
        """The text of each token: a space for the delimiter, nothing for silent tokens."""
        silent = set(self.silent_ids.tolist())
        texts = ("" if i in silent else token for i, token in enumerate(self.tokens))
        return tuple(" " if i == self.delimiter_id else text for i, text in enumerate(texts))

    @cached_property
    def id_of_surface(self) -> dict[str, int]:
        """Text -> id, for all tokens that have text."""
        return {text: i for i, text in enumerate(self.surfaces) if text}

    @cached_property
    def case(self) -> str | None:
        """ "upper" or "lower" if all letters with case have that one, else None."""
        letters = [text for text in self.id_of_surface if text.upper() != text.lower()]
        for name in ("upper", "lower"):
            if letters and all(text == getattr(text, name)() for text in letters):
                return name
        return None

    def to_case(self, text: str) -> str:
        """The text in the vocabulary's case, unchanged if it has both."""
        return text if self.case is None else str(getattr(text, self.case)())

    def spell(self, text: str) -> list[int] | None:
        """The tokens of a text, with the longest last where there is a choice; None if it has other characters."""
        spellings: list[list[int] | None] = [[]]
        for end in range(1, len(text) + 1):
            spellings.append(None)
            for length in self._lengths:
                token_id = self.id_of_surface.get(text[end - length : end]) if length <= end else None
                start = spellings[end - length] if token_id is not None else None
                if token_id is not None and start is not None:
                    spellings[end] = [*start, token_id]
                    break
        return spellings[-1]

    @cached_property
    def _lengths(self) -> list[int]:
        return sorted({len(text) for text in self.id_of_surface}, reverse=True)

    def check_width(self, log_probs: LogProbs) -> None:
        """Refuse log-probabilities over another number of tokens.

        Raises:
            ConfigError: the last dimension is not the number of tokens.
        """
        if log_probs.shape[-1] != len(self.tokens):
            raise ConfigError(
                f"expected log-probabilities over {len(self.tokens)} tokens, got {log_probs.shape[-1]}; "
                "use the vocabulary of the model that made them"
            )


def as_array(log_probs: LogProbs) -> npt.NDArray[np.float32]:
    """Log-probabilities of any dtype and device as a float32 array."""
    if isinstance(log_probs, torch.Tensor):
        return log_probs.detach().to("cpu", torch.float32).numpy()
    return np.asarray(log_probs, dtype=np.float32)


def mean_over_runs(
    keys: npt.NDArray[np.integer[Any]], values: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Where each run of equal keys (time,) starts and ends (exclusive), and the mean of the values (time,) over it."""
    if not len(keys):
        return np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0)
    starts = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
    ends = np.append(starts[1:], len(keys))
    return starts, ends, np.add.reduceat(values.astype(np.float64), starts) / (ends - starts)
