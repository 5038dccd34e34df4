"""Text to the labels of a CTC head, and its predictions to text, with times in frames.

    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained("facebook/wav2vec2-base-960h")
    text = tokenizer.decode(logits.argmax(-1)[0])
    words = tokenizer.decode(ids, output_word_offsets=True).word_offsets

A CTC head says one token a frame: repeats are grouped first and blanks dropped then, so that a blank between two equal letters
keeps both. That order is kept when special tokens are skipped too. The tokenizer knows no model; offsets are in frames, to be
multiplied by `config.inputs_to_logits_ratio / sampling_rate` for seconds.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, ClassVar, TypeAlias

from phonograph.errors import ConfigError
from phonograph.models.tokenization import VOCAB_NAME, AddedToken, Ids, PreTrainedTokenizer, is_nested, plain_ids, read_vocab

__all__ = ["Wav2Vec2CTCTokenizer", "Wav2Vec2CTCTokenizerOutput"]

_SHOWN_LANGUAGES = 20
_Run: TypeAlias = tuple[str, int, int]  # equal tokens in a row: their text, their first frame, the one after their last


@dataclass
class Wav2Vec2CTCTokenizerOutput:
    """Text with times, of one sequence, or lists of each for a batch.

    `char_offsets` are dicts of "char", "start_offset" and "end_offset", `word_offsets` of "word" and the same; offsets in
    frames, the end excluded. Each is None unless it was asked for.
    """

    text: str | list[str]
    char_offsets: list[Any] | None = None
    word_offsets: list[Any] | None = None


class Wav2Vec2CTCTokenizer(PreTrainedTokenizer):
    """One token a character, with a token for the space between words; entries of several characters are found whole.

    Args:
        vocab_file: a vocab.json: token to id, or, with several languages, language to such a vocabulary.
        bos_token: start of sentence; not used by CTC.
        eos_token: end of sentence; not used by CTC.
        unk_token: for characters that the vocabulary lacks; None refuses them.
        pad_token: the CTC blank, and what labels are padded with.
        word_delimiter_token: stands for a space; None if nothing does. It is not special: it is never skipped.
        replace_word_delimiter_char: what decoding writes for it.
        do_lower_case: the vocabulary is in upper case: encode in upper, decode in lower case. Offsets keep the vocabulary's.
        target_lang: language, in a vocabulary of several.
        kwargs: as for `PreTrainedTokenizer`.

    Raises:
        CheckpointError: the file is missing or no vocabulary.
        ConfigError: a language that the vocabulary lacks, or none where it has several.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": VOCAB_NAME}
    tokenizer_classes = ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer")
    _setting_names = ("replace_word_delimiter_char", "do_lower_case", "target_lang")

    word_delimiter_token: str | None

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        bos_token: Any = "<s>",
        eos_token: Any = "</s>",
        unk_token: Any = "<unk>",
        pad_token: Any = "<pad>",
        word_delimiter_token: Any = "|",
        replace_word_delimiter_char: str = " ",
        do_lower_case: bool = False,
        target_lang: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.replace_word_delimiter_char = replace_word_delimiter_char
        self.do_lower_case = do_lower_case
        self.vocab = read_vocab(vocab_file)
        self.target_lang = target_lang
        named = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "unk_token": unk_token,
            "pad_token": pad_token,
            "word_delimiter_token": word_delimiter_token,
        }
        super().__init__(self._vocab_of(target_lang), named, **kwargs)

    @property
    def word_delimiter_token_id(self) -> int | None:
        """Id of `word_delimiter_token`, if there is one."""
        return self._id_of(self.word_delimiter_token)

    def set_target_lang(self, target_lang: str) -> None:
        """Change the language of a vocabulary of several; added tokens stay.

        Raises:
            ConfigError: a language that the vocabulary lacks, or a vocabulary without languages; nothing changes then.
        """
        encoder = self._vocab_of(target_lang)
        self.target_lang = target_lang
        self._set_encoder(encoder)

    def _vocab_of(self, target_lang: str | None) -> Mapping[str, int]:
        if not is_nested(self.vocab):
            if target_lang is not None:
                raise ConfigError(
                    f"expected no target_lang, for the vocabulary has one language only, got {target_lang!r}; leave it out"
                )
            return self.vocab
        if target_lang not in self.vocab:
            shown = ", ".join(list(self.vocab)[:_SHOWN_LANGUAGES])
            more = f" and {len(self.vocab) - _SHOWN_LANGUAGES} more" if len(self.vocab) > _SHOWN_LANGUAGES else ""
            raise ConfigError(
                f"expected a target_lang of the vocabulary ({shown}{more}), got {target_lang!r}; pass target_lang=... of these"
            )
        vocab: Mapping[str, int] = self.vocab[target_lang]
        return vocab

    def _set_encoder(self, encoder: Mapping[str, int]) -> None:
        # Files list every language's longer tokens as added ones; in another language they are nobody's.
        listed = set().union(*self.vocab.values()) if is_nested(self.vocab) else set(self.vocab)
        self._added = {token: added for token, added in self._added.items() if token not in listed}
        self._stored_ids = {token: number for token, number in self._stored_ids.items() if token not in listed}
        super()._set_encoder(encoder)

    def _whole_tokens(self) -> dict[str, AddedToken]:
        longer = {token: AddedToken(token, lstrip=True, rstrip=True) for token in self.encoder if len(token) > 1}
        return super()._whole_tokens() | longer

    def _stored_vocab(self) -> Mapping[str, Any]:
        return self.vocab

    def _tokenize(self, text: str) -> list[str]:
        characters = text.upper() if self.do_lower_case else text
        return [self.word_delimiter_token or " " if char == " " else char for char in characters]

    def decode(  # type: ignore[override]  # offsets come with the text
        self,
        token_ids: Ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        output_char_offsets: bool = False,
        output_word_offsets: bool = False,
        *,
        spaces_between_special_tokens: bool = False,
        group_tokens: bool = True,
    ) -> str | Wav2Vec2CTCTokenizerOutput:
        """The text of one sequence of predictions, a token a frame.

        Args:
            token_ids: as a list, array or tensor (frames,).
            skip_special_tokens: leave out `all_special_tokens`, after grouping; `pad_token` always is.
            clean_up_tokenization_spaces: drop spaces before punctuation and English contractions; None takes the
                tokenizer's own setting.
            output_char_offsets: also give the characters' times.
            output_word_offsets: also give the words' times.
            spaces_between_special_tokens: put a space between any two tokens.
            group_tokens: make repeats one; False for labels rather than predictions.

        Returns:
            The text, or a `Wav2Vec2CTCTokenizerOutput` if offsets were asked for.

        Raises:
            ConfigError: an id that the vocabulary lacks, numbers that are no integers, or several sequences.
        """
        runs = self._runs(plain_ids(token_ids), skip_special_tokens, group_tokens)
        text = (" " if spaces_between_special_tokens else "").join([char for char, _, _ in runs]).strip()
        text = self._cleaned_up(text.lower() if self.do_lower_case else text, clean_up_tokenization_spaces)
        if not (output_char_offsets or output_word_offsets):
            return text
        return Wav2Vec2CTCTokenizerOutput(
            text,
            [_offsets("char", [run]) for run in runs] if output_char_offsets else None,
            self._words(runs) if output_word_offsets else None,
        )

    def batch_decode(  # type: ignore[override]  # offsets come with the text
        self,
        sequences: Ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        output_char_offsets: bool = False,
        output_word_offsets: bool = False,
        **options: Any,
    ) -> list[str] | Wav2Vec2CTCTokenizerOutput:
        """The text of each sequence; arguments as for `decode`.

        Returns:
            A list of texts, or one `Wav2Vec2CTCTokenizerOutput` of lists if offsets were asked for.
        """
        arguments = (skip_special_tokens, clean_up_tokenization_spaces, output_char_offsets, output_word_offsets)
        decoded: list[Any] = [self.decode(ids, *arguments, **options) for ids in sequences]
        if not (output_char_offsets or output_word_offsets):
            return decoded
        return Wav2Vec2CTCTokenizerOutput(
            [output.text for output in decoded],
            [output.char_offsets for output in decoded] if output_char_offsets else None,
            [output.word_offsets for output in decoded] if output_word_offsets else None,
        )

    def _runs(self, ids: list[int], skip_special_tokens: bool, group_tokens: bool) -> list[_Run]:
        starts = [0] * bool(ids)
        starts += [frame for frame, (last, this) in enumerate(pairwise(ids), 1) if this != last or not group_tokens]
        tokens = self._tokens_of([ids[start] for start in starts])
        dropped = {self.pad_token, *(self.all_special_tokens if skip_special_tokens else ())}
        chars = {self.word_delimiter_token: self.replace_word_delimiter_char}
        return [
            (chars.get(token, token), start, end)
            for token, start, end in zip(tokens, starts, [*starts[1:], len(ids)][: len(starts)], strict=True)
            if token not in dropped
        ]

    def _words(self, runs: list[_Run]) -> list[dict[str, Any]]:
        groups = groupby(runs, lambda run: run[0] == self.replace_word_delimiter_char)
        return [_offsets("word", list(group)) for is_delimiter, group in groups if not is_delimiter]


def _offsets(name: str, runs: list[_Run]) -> dict[str, Any]:
    return {name: "".join([char for char, _, _ in runs]), "start_offset": runs[0][1], "end_offset": runs[-1][2]}
