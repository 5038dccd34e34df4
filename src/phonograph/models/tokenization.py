"""What the families' tokenizers share: special tokens, ids, batches of text, and a checkpoint's files.

    class Wav2Vec2CTCTokenizer(PreTrainedTokenizer):
        vocab_files_names = {"vocab_file": "vocab.json"}

        def _tokenize(self, text: str) -> list[str]: ...

A tokenizer turns text into ids and ids into text. Its files are those of the Hugging Face ecosystem: vocab.json,
tokenizer_config.json and, in older checkpoints, special_tokens_map.json and added_tokens.json. Keys that phonograph does not
use survive the round trip. This module knows no vocabulary and no model, and imports torch only to make tensors.
"""

import json
import operator
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar, overload

import numpy as np

from phonograph.errors import CheckpointError, ConfigError
from phonograph.files import atomic_write, make_folder
from phonograph.loading.hub import read_json, read_optional_json
from phonograph.models.features import BatchFeature, has_length, padding_strategy, rounded_up

__all__ = [
    "TOKENIZER_CONFIG_NAME",
    "VOCAB_NAME",
    "AddedToken",
    "PreTrainedTokenizer",
    "is_nested",
    "plain_ids",
    "read_vocab",
]

VOCAB_NAME = "vocab.json"
"""File name of a vocabulary inside a checkpoint: token to id."""
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
"""File name of a tokenizer's settings inside a checkpoint."""
_SPECIAL_TOKENS_NAME = "special_tokens_map.json"
_ADDED_TOKENS_NAME = "added_tokens.json"

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_NO_MAX_LENGTH = int(1e30)
_TRUNCATION = {True: True, False: False, "longest_first": True, "only_first": True, "do_not_truncate": False}

_CLEANED_UP = [
    *((f" {sign}", sign) for sign in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
]

Ids: TypeAlias = Any
"""Ids as a list of integers (Python's, NumPy's or 0-d tensors), an array or a tensor."""

_Tokenizer = TypeVar("_Tokenizer", bound="PreTrainedTokenizer")


@dataclass(frozen=True)
class AddedToken:
    """A token that text is searched for before anything else happens to it.

    `lstrip` and `rstrip` take the white space on that side with it. The other flags are the file format's; no
    checkpoint of these families turns them.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False


class PreTrainedTokenizer:
    """Base of the tokenizers.

    Args:
        encoder: the vocabulary, token to id.
        named_tokens: tokens that have an attribute of their own, such as `bos_token`; None for one that there is
            not. Those that the vocabulary lacks get the next free ids.
        kwargs: `additional_special_tokens` (also as `extra_special_tokens`), `added_tokens_decoder` (id to token, as
            stored), `model_max_length`, `padding_side`, `truncation_side`, `clean_up_tokenization_spaces`, and any
            other keys of a stored file, which are kept in `init_kwargs` and written back.

    Raises:
        ConfigError: a side other than "right" and "left".
    """

    vocab_files_names: ClassVar[dict[str, str]]
    """Arguments that take a file, each with the file's name in a checkpoint."""
    tokenizer_classes: ClassVar[tuple[str, ...]]
    """Names of this class in checkpoints, its own first."""
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    """What a call returns."""
    _setting_names: ClassVar[tuple[str, ...]]

    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None

    def __init__(self, encoder: Mapping[str, int], named_tokens: Mapping[str, Any], **kwargs: Any) -> None:
        self._named = tuple(named_tokens)
        for name, token in named_tokens.items():
            setattr(self, name, None if token is None else _content(token))
        extras = [kwargs.pop(key, None) or [] for key in ("additional_special_tokens", "extra_special_tokens")]
        self.additional_special_tokens = list(dict.fromkeys(_content(token) for tokens in extras for token in tokens))
        stored = {int(number): _added(token) for number, token in (kwargs.pop("added_tokens_decoder", None) or {}).items()}
        self._added = {token.content: token for token in stored.values()}
        self._stored_ids = {token.content: number for number, token in sorted(stored.items())}
        self.model_max_length = int(kwargs.pop("model_max_length", None) or _NO_MAX_LENGTH)
        self.padding_side = kwargs.pop("padding_side", "right")
        self.truncation_side = kwargs.pop("truncation_side", "right")
        for name, side in (("padding_side", self.padding_side), ("truncation_side", self.truncation_side)):
            if side not in ("right", "left"):
                raise ConfigError(f"expected {name} 'right' or 'left', got {side!r}; pass one of them")
        self.clean_up_tokenization_spaces = bool(kwargs.pop("clean_up_tokenization_spaces", False))
        self.init_kwargs = kwargs
        self._set_encoder(encoder)

    def _set_encoder(self, encoder: Mapping[str, int]) -> None:
        """Take a vocabulary; number what it lacks; tell which tokens are found whole in text."""
        self.encoder = dict(encoder)
        self._ids = dict(encoder)
        taken = set(self._ids.values())
        for token, number in self._stored_ids.items():
            if token not in self._ids and number not in taken:
                self._ids[token] = number
                taken.add(number)
        following = max(taken, default=-1) + 1
        named = [token for name in self._named if (token := getattr(self, name)) is not None]
        for token in (*named, *self.additional_special_tokens, *self._added):
            if token not in self._ids:
                self._ids[token] = following
                following += 1
        self._tokens = {number: token for token, number in self._ids.items()}
        self._whole = self._whole_tokens()
        longest_first = sorted(filter(None, self._whole), key=len, reverse=True)
        self._splitter = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def _whole_tokens(self) -> dict[str, AddedToken]:
        return {token: AddedToken(token) for token in self.all_special_tokens} | self._added

    def _tokenize(self, text: str) -> list[str]:
        """Tokens of text that holds none of the whole ones; families define it."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary's file; `len(tokenizer)` counts the added ones too."""
        return len(self.encoder)

    def __len__(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return dict(self._ids)

    def get_added_vocab(self) -> dict[str, int]:
        """The tokens that the vocabulary's file lacks, with their ids."""
        return {token: number for token, number in self._ids.items() if token not in self.encoder}

    @property
    def all_special_tokens(self) -> list[str]:
        """bos, eos, unk, pad and the additional ones, each once: what `skip_special_tokens` drops."""
        named = [getattr(self, name) for name in _SPECIAL]
        return list(dict.fromkeys(token for token in (*named, *self.additional_special_tokens) if token is not None))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The tokens that have a name, by it."""
        return {name: token for name in self._named if (token := getattr(self, name)) is not None}

    @property
    def bos_token_id(self) -> int | None:
        """Id of `bos_token`, if there is one."""
        return self._id_of(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        """Id of `eos_token`, if there is one."""
        return self._id_of(self.eos_token)

    @property
    def unk_token_id(self) -> int | None:
        """Id of `unk_token`, if there is one."""
        return self._id_of(self.unk_token)

    @property
    def pad_token_id(self) -> int | None:
        """Id of `pad_token`, if there is one."""
        return self._id_of(self.pad_token)

    def _id_of(self, token: str | None) -> int | None:
        if token is not None and token not in self._ids:
            raise ConfigError(f"expected special tokens of the vocabulary, got {token!r}; add it with add_tokens first")
        return None if token is None else self._ids[token]

    def add_tokens(self, new_tokens: "str | AddedToken | Sequence[str | AddedToken]", special_tokens: bool = False) -> int:
        """Add tokens, to be found whole in text.

        Args:
            new_tokens: one or several; known ones are not added again.
            special_tokens: make them special, so that `skip_special_tokens` drops them.

        Returns:
            How many were new. The model's embedding or head may have to grow by as many.
        """
        before = len(self)
        for token in [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else new_tokens:
            content = _content(token)
            self._added.setdefault(content, _added(token))
            if special_tokens and content not in self.all_special_tokens:
                self.additional_special_tokens.append(content)
        self._stored_ids = self.get_added_vocab()
        self._set_encoder(self.encoder)
        return len(self) - before

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, length={len(self)}, {self.special_tokens_map})"

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, without the special ones that a call adds."""
        if self._splitter is None:
            return self._tokenize(text)
        tokens: list[str] = []
        position, strips_left = 0, False
        for found in self._splitter.finditer(text):
            token = self._whole[found.group()]
            tokens += self._tokenize_between(text[position : found.start()], strips_left, token.lstrip)
            tokens.append(token.content)
            position, strips_left = found.end(), token.rstrip
        return tokens + self._tokenize_between(text[position:], strips_left, False)

    def _tokenize_between(self, text: str, strips_left: bool, strips_right: bool) -> list[str]:
        text = text.lstrip() if strips_left else text
        text = text.rstrip() if strips_right else text
        return self._tokenize(text) if text else []

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...

    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]: ...

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """The id of a token, or a list of them for a list of tokens.

        Tokens that the vocabulary lacks get the id of `unk_token`.

        Raises:
            ConfigError: a token that the vocabulary lacks, and there is no `unk_token`.
        """
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        number = self._ids.get(tokens)
        if number is None and self.unk_token is not None:
            number = self._ids.get(self.unk_token)
        if number is None:
            raise ConfigError(
                f"expected tokens of the vocabulary, got {tokens!r}, and there is no unk_token; add it or pass unk_token=..."
            )
        return number

    def convert_ids_to_tokens(self, ids: Ids, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or a list of them for several ids.

        Args:
            ids: one id, or several as a list, array or tensor.
            skip_special_tokens: leave out `all_special_tokens`.

        Raises:
            ConfigError: an id that the vocabulary lacks, or numbers that are no integers.
        """
        tokens = self._tokens_of(plain_ids(ids))
        if not has_length(ids):
            return tokens[0]
        if not skip_special_tokens:
            return tokens
        special = set(self.all_special_tokens)
        return [token for token in tokens if token not in special]

    def _tokens_of(self, ids: list[int]) -> list[str]:
        try:
            return [self._tokens[number] for number in ids]
        except KeyError as error:
            number = error.args[0]
            hint = "replace ignored labels by pad_token_id" if number < 0 else "check that model and tokenizer belong together"
            raise ConfigError(
                f"expected ids of the vocabulary, 0 to {max(self._tokens, default=0)}, got {number}; {hint}"
            ) from None

    def build_inputs_with_special_tokens(self, token_ids: list[int]) -> list[int]:
        """A text's ids with the special ones that the model expects around them; here none."""
        return token_ids

    def get_special_tokens_mask(self, token_ids: list[int], already_has_special_tokens: bool = False) -> list[int]:
        """1 for special tokens, 0 for others.

        Args:
            token_ids: a text's ids.
            already_has_special_tokens: whether they hold special ones; if not, the mask is that of
                `build_inputs_with_special_tokens`.
        """
        if already_has_special_tokens:
            special = set(self.all_special_ids)
            return [int(number in special) for number in token_ids]
        marked = self.build_inputs_with_special_tokens([-1] * len(token_ids))
        return [int(number != -1) for number in marked]

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Ids of a text, or of several.

        Args:
            text: one text, or a list of them.
            add_special_tokens: put those of `build_inputs_with_special_tokens` around each.
            padding: as for `pad`.
            truncation: cut each text so that it has at most `max_length` ids (`model_max_length` if None), special ones
                included. None cuts if there is a `max_length` and no padding.
            max_length: in ids.
            pad_to_multiple_of: round padded lengths up to a multiple of this.
            return_attention_mask: False leaves the mask out.
            return_tensors: "np" or "pt"; None gives lists, for one text without a batch dimension.

        Returns:
            `input_ids` and `attention_mask`, (batch, length), int64, the mask 1 for real tokens.

        Raises:
            ConfigError: no text, something other than text, an unknown option, unequal lengths that were to become one
                tensor, or what `convert_tokens_to_ids` and `pad` refuse.
        """
        is_single = isinstance(text, str) or not isinstance(text, Iterable)
        limit = self._limit(padding, truncation, max_length)
        rows = [self._encoded(item, add_special_tokens, limit) for item in ([text] if is_single else text)]
        batch = self.pad(
            {"input_ids": rows},
            padding=padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )
        if is_single and return_tensors is None:
            return BatchFeature({name: values[0] for name, values in batch.items()})
        return batch

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        truncation: bool | str | None = None,
        max_length: int | None = None,
    ) -> list[int]:
        """Ids of one text; arguments as for a call."""
        return self._encoded(text, add_special_tokens, self._limit(False, truncation, max_length))

    def _encoded(self, text: Any, add_special_tokens: bool, limit: int | None) -> list[int]:
        if not isinstance(text, str):
            raise ConfigError(f"expected text as a string or a list of strings, got a {type(text).__name__}; pass strings")
        ids = self.convert_tokens_to_ids(self.tokenize(text))
        if limit is not None:
            room = max(limit - (len(self.build_inputs_with_special_tokens([])) if add_special_tokens else 0), 0)
            ids = ids[:room] if self.truncation_side == "right" else ids[max(len(ids) - room, 0) :]
        return self.build_inputs_with_special_tokens(ids) if add_special_tokens else ids

    def _limit(self, padding: bool | str, truncation: bool | str | None, max_length: int | None) -> int | None:
        """Most ids that a text may have, if there is such a bound."""
        if max_length is not None and max_length <= 0:
            raise ConfigError(f"expected a positive max_length, got {max_length}; pass a length above 0")
        if truncation is None:
            truncation = padding is False and max_length is not None
        if truncation not in _TRUNCATION:
            raise ConfigError(
                f"expected truncation as a bool, 'longest_first', 'only_first' or 'do_not_truncate', got {truncation!r}; "
                "pass one of these"
            )
        return (max_length or self._model_limit()) if _TRUNCATION[truncation] else None

    def _model_limit(self) -> int | None:
        return None if self.model_max_length >= _NO_MAX_LENGTH else self.model_max_length

    def pad(
        self,
        encoded_inputs: "Mapping[str, Any] | Sequence[Mapping[str, Any]]",
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Make rows of ids equally long, with `pad_token_id` on the `padding_side`.

        Args:
            encoded_inputs: a mapping from names to one row per text, or a mapping per text, with `input_ids`.
            padding: True or "longest" pads to the longest row, "max_length" to `max_length` (`model_max_length` if
                None), False or "do_not_pad" not at all. Longer rows stay as they are.
            max_length: in ids.
            pad_to_multiple_of: round lengths up to a multiple of this.
            return_attention_mask: False leaves the mask out.
            return_tensors: "np" or "pt"; None gives lists.

        Returns:
            `input_ids` and `attention_mask` (batch, length), int64, and all other items as they came.

        Raises:
            ConfigError: no rows, no `input_ids`, no `pad_token`, an unknown option, or unequal lengths that were to become
                one tensor.
        """
        batch = _columns(encoded_inputs)
        rows = [plain_ids(row) for row in batch["input_ids"]]
        masks = [plain_ids(mask) for mask in batch.pop("attention_mask", ())] or [[1] * len(row) for row in rows]
        length = self._padded_length([len(row) for row in rows], padding, max_length, pad_to_multiple_of)
        if any(len(row) < length for row in rows):
            if self.pad_token_id is None:
                raise ConfigError("expected a pad_token to pad with, the tokenizer has none; set tokenizer.pad_token")
            masks = [self._padded(mask, length, 0) for mask in masks]
            rows = [self._padded(row, length, self.pad_token_id) for row in rows]
        batch["input_ids"] = rows
        if return_attention_mask is not False:
            batch["attention_mask"] = masks
        if return_tensors is None:
            return BatchFeature(batch)
        for name in self.model_input_names:  # as integers even where there are none
            if name in batch:
                batch[name] = [np.array(row, dtype=np.int64) for row in batch[name]]
        return BatchFeature(batch).convert_to_tensors(return_tensors)

    def _padded_length(
        self, lengths: list[int], padding: bool | str, max_length: int | None, pad_to_multiple_of: int | None
    ) -> int:
        limit = max_length if max_length is not None else self._model_limit()
        strategy = padding_strategy(padding, False, self.model_max_length if limit is None else limit)
        wanted = {"do_not_pad": None, "longest": max(lengths), "max_length": limit}[strategy]
        return 0 if wanted is None else rounded_up(wanted, pad_to_multiple_of) or 0

    def _padded(self, row: list[int], length: int, fill: int) -> list[int]:
        missing = [fill] * (length - len(row))
        return row + missing if self.padding_side == "right" else missing + row

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text that tokens stand for."""
        return "".join(tokens)

    def decode(
        self, token_ids: Ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str | list[str]:
        """The text of ids; a list of texts for a batch of them, as `batch_decode`.

        Args:
            token_ids: one id, or several as a list, array or tensor.
            skip_special_tokens: leave out `all_special_tokens`.
            clean_up_tokenization_spaces: drop spaces before punctuation and English contractions; None takes the
                tokenizer's own setting.

        Raises:
            ConfigError: an id that the vocabulary lacks, or numbers that are no integers.
        """
        if _is_batch(token_ids):
            return self.batch_decode(token_ids, skip_special_tokens, clean_up_tokenization_spaces)
        return self._decoded(token_ids, skip_special_tokens, clean_up_tokenization_spaces)

    def batch_decode(
        self, sequences: Ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """A text for each sequence of ids; arguments as for `decode`."""
        return [self._decoded(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]

    def _decoded(self, ids: Ids, skip_special_tokens: bool, clean_up: bool | None) -> str:
        tokens = self.convert_ids_to_tokens(plain_ids(ids), skip_special_tokens)
        return self._cleaned_up(self.convert_tokens_to_string(tokens), clean_up)

    def _cleaned_up(self, text: str, clean_up: bool | None) -> str:
        if self.clean_up_tokenization_spaces if clean_up is None else clean_up:
            for spaced, closed in _CLEANED_UP:
                text = text.replace(spaced, closed)
        return text

    @classmethod
    def from_pretrained(cls: type[_Tokenizer], name_or_path: str | os.PathLike[str], **kwargs: Any) -> _Tokenizer:
        """Read a checkpoint's tokenizer.

        Args:
            name_or_path: a bundled model's name, a folder, or a hub id.
            kwargs: hub options (`phonograph.loading.hub.HUB_OPTIONS`), and arguments that replace the stored ones.

        Raises:
            CheckpointError: no such checkpoint, a file of `vocab_files_names` is missing, or files are damaged.
            ConfigError: stored or given arguments that do not fit one another.
        """
        from phonograph.loading.hub import resolve_file, split_hub_options

        where, overrides = split_hub_options(kwargs)
        files: dict[str, Any] = {key: resolve_file(name_or_path, name, **where) for key, name in cls.vocab_files_names.items()}
        return cls(**{**cls._stored_arguments(name_or_path, where), **files, **overrides})

    @classmethod
    def _stored_arguments(cls, name_or_path: str | os.PathLike[str], where: dict[str, Any]) -> dict[str, Any]:
        arguments = read_optional_json(name_or_path, TOKENIZER_CONFIG_NAME, **where)
        stored_class = arguments.pop("tokenizer_class", None) or cls.__name__
        if stored_class not in cls.tokenizer_classes:
            warnings.warn(
                f"expected a tokenizer of class {cls.__name__}, got {stored_class}; its text may differ", stacklevel=3
            )
        if "added_tokens_decoder" not in arguments:  # else the older files repeat what it says, or are outdated
            arguments.update(read_optional_json(name_or_path, _SPECIAL_TOKENS_NAME, **where))
            added = read_optional_json(name_or_path, _ADDED_TOKENS_NAME, **where)
            arguments["added_tokens_decoder"] = {number: {"content": token} for token, number in added.items()}
        return arguments

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write the tokenizer's files into a folder, which is made if need be; returns the paths written.

        Raises:
            OutputError: the folder can't be made or written to.
        """
        make_folder(save_directory)
        added = self.get_added_vocab()
        contents: dict[str, Any] = {
            TOKENIZER_CONFIG_NAME: self._arguments(),
            _SPECIAL_TOKENS_NAME: {name: token for name, token in self.special_tokens_map.items() if name in _SPECIAL},
            **({_ADDED_TOKENS_NAME: added} if added else {}),
        }
        if self.additional_special_tokens:
            contents[_SPECIAL_TOKENS_NAME]["additional_special_tokens"] = self.additional_special_tokens
        paths = [_write_json(os.path.join(save_directory, name), content) for name, content in contents.items()]
        return (*paths, *self.save_vocabulary(save_directory))

    def save_vocabulary(self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the files of `vocab_files_names` alone into a folder; returns the paths written.

        Args:
            save_directory: a folder that exists.
            filename_prefix: put, with a hyphen, before the files' names.

        Raises:
            OutputError: the folder can't be written to.
        """
        name = f"{filename_prefix}-{VOCAB_NAME}" if filename_prefix else VOCAB_NAME
        return (_write_json(os.path.join(save_directory, name), self._stored_vocab()),)

    def _stored_vocab(self) -> Mapping[str, Any]:
        return self.encoder

    def _arguments(self) -> dict[str, Any]:
        """What tokenizer_config.json holds."""
        added = self.get_added_vocab()
        special = set(self.all_special_tokens)
        decoder = {
            str(number): {**asdict(self._added.get(token, AddedToken(token))), "special": token in special}
            for token, number in added.items()
        }
        return {
            **self.init_kwargs,
            **{name: getattr(self, name) for name in (*self._named, *self._setting_names)},
            "additional_special_tokens": self.additional_special_tokens,
            "added_tokens_decoder": decoder,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "tokenizer_class": type(self).__name__,
        }


def read_vocab(vocab_file: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of a vocab.json: tokens with their ids, or languages with such vocabularies.

    Raises:
        CheckpointError: the file is missing, or holds anything else.
    """
    vocab = read_json(vocab_file)
    for part in vocab.values() if is_nested(vocab) else [vocab]:
        odd = [token for token, number in part.items() if type(number) is not int]
        if odd:
            raise CheckpointError(
                f"expected an integer id for each token in {os.fspath(vocab_file)}, got {part[odd[0]]!r} for {odd[0]!r}; "
                "fetch it again"
            )
    return vocab


def is_nested(vocab: Mapping[str, Any]) -> bool:
    """Whether a vocab.json holds languages with vocabularies, rather than one vocabulary."""
    return bool(vocab) and all(isinstance(part, Mapping) for part in vocab.values())


def _content(token: Any) -> str:
    return _added(token).content


def _added(token: Any) -> AddedToken:
    if isinstance(token, AddedToken):
        return token
    if isinstance(token, Mapping):
        return AddedToken(**{name: value for name, value in token.items() if name in AddedToken.__dataclass_fields__})
    return AddedToken(str(token))


def plain_ids(ids: Ids) -> list[int]:
    """Ids as a list of Python's integers; one id as a list of one.

    Raises:
        ConfigError: numbers that are no integers.
    """
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    try:
        return list(map(operator.index, values if isinstance(values, Iterable) else [values]))
    except TypeError:
        found = f"{ids.dtype} of shape {tuple(ids.shape)}" if hasattr(ids, "dtype") else _shown(values)
        raise ConfigError(
            f"expected ids of one text as integers, got {found}; of logits, take the argmax; of several texts, use batch_decode"
        ) from None


def _shown(value: Any) -> str:
    """The start of a value's text, in one line."""
    return " ".join(repr(value).split())[:60]


def _is_batch(ids: Ids) -> bool:
    return has_length(ids) and len(ids) > 0 and has_length(ids[0])


def _columns(encoded: "Mapping[str, Any] | Sequence[Mapping[str, Any]]") -> dict[str, Any]:
    """One list of rows for each name."""
    if not isinstance(encoded, Mapping):
        encoded = {name: [row[name] for row in encoded] for name in (encoded[0] if len(encoded) else ())}
    if not _is_batch(encoded.get("input_ids")):
        raise ConfigError(
            f"expected 'input_ids' with at least one row of ids, got {_shown(dict(encoded))}; pass what the tokenizer returned"
        )
    return dict(encoded)


def _write_json(path: str, content: Mapping[str, Any]) -> str:
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return path
