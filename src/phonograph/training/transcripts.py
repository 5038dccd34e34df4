"""What transcripts become before a model learns them: one spelling, a vocabulary of characters, or pieces of words.

    spelling = Spelling(case="upper")
    spelling("It's 9 o'clock")        # "IT'S 9 O'CLOCK"
    tokenizer = character_tokenizer(texts, folder)       # for CTC
    tokenizer = pieces_tokenizer(texts, folder, size=1000)   # for Speech2Text

Transcripts of corpora differ in case and punctuation, which nobody hears; a model learns one spelling only. It reads no audio
and knows no model.
"""

import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from phonograph.configuration import Rule
from phonograph.errors import ConfigError
from phonograph.files import atomic_write, make_folder
from phonograph.models.speech_to_text.tokenization_speech_to_text import Speech2TextTokenizer
from phonograph.models.wav2vec2.tokenization_wav2vec2 import Wav2Vec2CTCTokenizer

__all__ = ["ENGLISH", "Spelling", "character_tokenizer", "pieces_tokenizer"]

ENGLISH = ("<pad>", "<s>", "</s>", "<unk>", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
"""The tokens of facebook/wav2vec2-base-960h, in its order."""

_FIRST_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "|")
_FIRST_PIECES = ("<s>", "<pad>", "</s>", "<unk>")
_APOSTROPHES = dict.fromkeys((0x2018, 0x2019, 0x02BC, 0x60), "'")


@dataclass(frozen=True)
class Spelling:
    """How a transcript is written: normal form (NFKC), case, and without what is neither letter, mark, digit nor apostrophe.

    Args:
        case: upper, lower or as_is.
        punctuation: keep it.
    """

    case: Annotated[str, Rule("letters of transcripts", choices=("upper", "lower", "as_is"))] = "upper"
    punctuation: Annotated[bool, Rule("keep punctuation")] = False

    def __call__(self, text: str) -> str:
        """One text, its words with single spaces between them."""
        text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES)
        if self.case != "as_is":
            text = text.upper() if self.case == "upper" else text.lower()
        if not self.punctuation:
            text = "".join(character if _is_spoken(character) else " " for character in text)
            text = " ".join(word for word in (word.strip("'") for word in text.split()) if word)
        return " ".join(text.split())


def _is_spoken(character: str) -> bool:
    return character == "'" or unicodedata.category(character)[0] in "LMN"


def character_tokenizer(
    texts: Iterable[str],
    folder: str | Path,
    *,
    tokens: Sequence[str] | None = None,
    fewest: int = 1,
    language: str | None = None,
) -> Wav2Vec2CTCTokenizer:
    """A CTC tokenizer with one token for each character of the texts, the most frequent first.

    Args:
        texts: spelled as the model is to learn them.
        folder: where vocab.json is written.
        tokens: the whole vocabulary, rather than one made from the texts, such as `ENGLISH`.
        fewest: characters that occur less often than this become <unk>.
        language: make it one of the languages of an MMS model.

    Raises:
        ConfigError: texts without any character. OutputError: the folder can't be written.
    """
    if tokens is None:
        counts = Counter(character for text in texts for character in text if character != " ")
        found = [character for character, count in counts.items() if count >= fewest and character != "|"]
        if not found:
            raise ConfigError(
                f"expected transcripts with characters that occur at least {fewest} times, got none; check the data's texts"
            )
        tokens = [*_FIRST_TOKENS, *sorted(found, key=lambda character: (-counts[character], character))]
    return Wav2Vec2CTCTokenizer(_write_vocabulary(folder, tokens, language), target_lang=language)


def pieces_tokenizer(
    texts: Iterable[str], folder: str | Path, *, size: int, languages: Sequence[str] = (), kind: str = "unigram"
) -> Speech2TextTokenizer:
    """A Speech2Text tokenizer, trained on the texts by sentencepiece.

    Args:
        texts: spelled as the model is to learn them.
        folder: where vocab.json and sentencepiece.bpe.model are written.
        size: pieces at most; fewer if the texts do not hold as many.
        languages: codes of target languages, whose tokens <lang:xx> follow the pieces.
        kind: unigram (Kudo 2018, arXiv:1804.10959) or bpe.

    Raises:
        ConfigError: no texts, or fewer pieces wanted than there are characters. OutputError: the folder can't be written.
    """
    import sentencepiece

    spelled = [text for text in texts if text]
    if not spelled:
        raise ConfigError("expected transcripts to make a vocabulary of pieces from, got none; check the data's texts")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(spelled),
            model_writer=model,
            vocab_size=size,
            hard_vocab_limit=False,
            model_type=kind,
            character_coverage=1.0,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"expected a vocabulary size that fits {len(spelled)} transcripts, got {size}; raise it above the number of their "
            "characters, or lower it where they are few"
        ) from error
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    written = (pieces.id_to_piece(number) for number in range(pieces.get_piece_size()))
    tokens = dict.fromkeys([*_FIRST_PIECES, *written, *(f"<lang:{language}>" for language in languages)])
    vocabulary = _write_vocabulary(folder, list(tokens))
    pieces_file = Path(folder) / "sentencepiece.bpe.model"
    with atomic_write(pieces_file) as file:
        file.write(model.getvalue())
    return Speech2TextTokenizer(vocabulary, pieces_file, lang_codes=list(languages) or None)


def _write_vocabulary(folder: str | Path, tokens: Sequence[str], language: str | None = None) -> Path:
    make_folder(folder)
    path = Path(folder) / "vocab.json"
    numbers = {token: number for number, token in enumerate(tokens)}
    with atomic_write(path) as file:
        content = numbers if language is None else {language: numbers}
        file.write((json.dumps(content, ensure_ascii=False) + "\n").encode())
    return path
