"""Text to the ids that a Speech2Text decoder writes, and back: sentencepiece pieces, numbered by vocab.json.

    tokenizer = Speech2TextTokenizer.from_pretrained("facebook/s2t-medium-mustc-multilingual-st", tgt_lang="fr")
    labels = tokenizer("bonjour", return_tensors="pt").input_ids  # <lang:fr> ... </s>
    text = tokenizer.batch_decode(generated, skip_special_tokens=True)

The sentencepiece model only cuts text into pieces; its own numbers are not used. A translation's first token names the target
language. The tokenizer knows no model.
"""

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from phonograph.errors import CheckpointError, ConfigError
from phonograph.files import atomic_write
from phonograph.models.tokenization import VOCAB_NAME, PreTrainedTokenizer, read_vocab

__all__ = ["LANGUAGES", "Speech2TextTokenizer"]

LANGUAGES = {"mustc": ("pt", "fr", "ru", "nl", "ro", "it", "es", "de")}
"""Named lists of target languages, as checkpoints refer to them."""
_SPM_NAME = "sentencepiece.bpe.model"


class Speech2TextTokenizer(PreTrainedTokenizer):
    """Pieces of words, with </s> at the end and, for translation, the target language's token at the start.

    Args:
        vocab_file: a vocab.json: token to id.
        spm_file: a sentencepiece model, which cuts text into pieces.
        bos_token: start of sentence; not used by these models, which start with `eos_token`.
        eos_token: end of sentence.
        pad_token: what shorter texts are filled up with.
        unk_token: for pieces that the vocabulary lacks; None refuses them.
        do_upper_case: decode in upper case. Encoding leaves the case as it is.
        do_lower_case: kept because files carry it; without effect, as in transformers.
        tgt_lang: language of the text, if there are `lang_codes`; None is the first of them.
        lang_codes: target languages of a multilingual checkpoint: a key of `LANGUAGES`, or a list of codes. Their tokens
            are <lang:fr> and the like.
        additional_special_tokens: more tokens that `skip_special_tokens` drops.
        sp_model_kwargs: arguments of `sentencepiece.SentencePieceProcessor`.
        kwargs: as for `PreTrainedTokenizer`.

    Raises:
        CheckpointError: a file is missing or isn't what it should be.
        ConfigError: unknown `lang_codes`, or a `tgt_lang` that is not among them.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": VOCAB_NAME, "spm_file": _SPM_NAME}
    tokenizer_classes = ("Speech2TextTokenizer",)
    _setting_names = ("do_upper_case", "do_lower_case", "tgt_lang", "lang_codes", "sp_model_kwargs")

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        spm_file: str | os.PathLike[str],
        bos_token: Any = "<s>",
        eos_token: Any = "</s>",
        pad_token: Any = "<pad>",
        unk_token: Any = "<unk>",
        do_upper_case: bool = False,
        do_lower_case: bool = False,
        tgt_lang: str | None = None,
        lang_codes: str | Sequence[str] | None = None,
        additional_special_tokens: Sequence[Any] | None = None,
        sp_model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.do_upper_case = do_upper_case
        self.do_lower_case = do_lower_case
        self.lang_codes = lang_codes
        self.langs = _languages(lang_codes)
        self.sp_model_kwargs = sp_model_kwargs or {}
        self.sp_model = _load_pieces(spm_file, self.sp_model_kwargs)
        named = {"bos_token": bos_token, "eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token}
        special = [*(additional_special_tokens or ()), *map(_language_token, self.langs)]
        super().__init__(read_vocab(vocab_file), named, additional_special_tokens=special, **kwargs)
        self._tgt_lang: str | None = None
        if self.langs:
            self.tgt_lang = tgt_lang or self.langs[0]

    @property
    def lang_code_to_id(self) -> dict[str, int]:
        """Ids of the target languages' tokens, by code."""
        return {language: self._ids[_language_token(language)] for language in self.langs}

    @property
    def tgt_lang(self) -> str | None:
        """Code of the target language; None for a checkpoint without `lang_codes`.

        Raises:
            ConfigError: when set to a language that the checkpoint lacks.
        """
        return self._tgt_lang

    @tgt_lang.setter
    def tgt_lang(self, language: str) -> None:
        if language not in self.langs:
            there = f"a target language of the checkpoint ({', '.join(self.langs)})" if self.langs else "no target language"
            reason = "pass one of these" if self.langs else "the checkpoint has one language only; leave it out"
            raise ConfigError(f"expected {there}, got {language!r}; {reason}")
        self._tgt_lang = language

    def set_tgt_lang_special_tokens(self, tgt_lang: str) -> None:
        """The same as setting `tgt_lang`."""
        self.tgt_lang = tgt_lang

    @property
    def prefix_tokens(self) -> list[int]:
        """Ids before the text: the target language's, if there is one."""
        return [] if self.tgt_lang is None else [self.lang_code_to_id[self.tgt_lang]]

    def build_inputs_with_special_tokens(self, token_ids: list[int]) -> list[int]:
        """A text's ids with `prefix_tokens` before and </s> after them."""
        return [*self.prefix_tokens, *token_ids, *([] if self.eos_token_id is None else [self.eos_token_id])]

    def _tokenize(self, text: str) -> list[str]:
        pieces: list[str] = self.sp_model.encode(text, out_type=str)
        return pieces

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of pieces, with special tokens written out, each with a space after it."""
        special = set(self.all_special_tokens)
        parts: list[str] = []
        pieces: list[str] = []
        for token in tokens:
            if token in special:
                parts += [self._joined(pieces), token, " "]
                pieces = []
            else:
                pieces.append(token)
        return "".join([*parts, self._joined(pieces)]).strip()

    def _joined(self, pieces: list[str]) -> str:
        text: str = self.sp_model.decode(pieces)
        return text.upper() if self.do_upper_case else text

    def save_vocabulary(self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None) -> tuple[str, ...]:
        """As the base class's; the sentencepiece model is written too."""
        paths = super().save_vocabulary(save_directory, filename_prefix)
        name = f"{filename_prefix}-{_SPM_NAME}" if filename_prefix else _SPM_NAME
        path = os.path.join(save_directory, name)
        with atomic_write(path) as file:
            file.write(self.sp_model.serialized_model_proto())
        return (*paths, path)


def _languages(lang_codes: str | Sequence[str] | None) -> list[str]:
    if isinstance(lang_codes, str) and lang_codes not in LANGUAGES:
        raise ConfigError(
            f"expected lang_codes {', '.join(LANGUAGES)}, got {lang_codes!r}; pass one of these or a list of codes"
        )
    return list(LANGUAGES[lang_codes] if isinstance(lang_codes, str) else lang_codes or ())


def _language_token(language: str) -> str:
    return f"<lang:{language}>"


def _load_pieces(spm_file: str | os.PathLike[str], options: dict[str, Any]) -> Any:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(**options)
    try:
        pieces.Load(os.fspath(spm_file))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"expected a sentencepiece model in {os.fspath(spm_file)}, found none; fetch it again") from error
    return pieces
