"""Vocabularies and a sentencepiece model of a few sentences, in the forms of public checkpoints."""

import functools
import io
import json
from pathlib import Path
from typing import Any

import sentencepiece

__all__ = ["LETTERS", "MULTILINGUAL", "XLSR", "letters_folder", "pieces_folder", "write_json"]

LETTERS = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ"])}
"""That of facebook/wav2vec2-base-960h."""
XLSR = {token: number for number, token in enumerate([*"abcde", "|", "[UNK]", "[PAD]"])}
"""The form of fine-tuned XLSR checkpoints, whose <s> and </s> stand in added_tokens.json."""
MULTILINGUAL = {
    "eng": {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5, "b": 6},
    "fra": {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "é": 5, "b": 6, "ch": 7, "z": 8},
}
"""The form of facebook/mms-1b-all."""

_SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "she sells sea shells by the sea shore",
    "how much wood would a woodchuck chuck",
    "peter piper picked a peck of pickled peppers",
    "der schnelle braune fuchs springt über den faulen hund",
    "où est la bibliothèque? it's here!",
]


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def letters_folder(folder: Path, vocab: Any = LETTERS, **files: Any) -> Path:
    """A folder with a vocab.json and further JSON files, named without their suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"vocab": vocab, **files}.items():
        write_json(folder / f"{name}.json", content)
    return folder


@functools.cache
def _pieces_model() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES * 4), model_writer=model, vocab_size=65, character_coverage=1.0, minloglevel=2
    )
    return model.getvalue()


def pieces_folder(folder: Path, languages: tuple[str, ...] = (), **files: Any) -> Path:
    """A folder with vocab.json and sentencepiece.bpe.model, as a Speech2Text checkpoint has them."""
    model = sentencepiece.SentencePieceProcessor(model_proto=_pieces_model())
    pieces = [model.id_to_piece(number) for number in range(model.get_piece_size())]
    tokens = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *pieces, *(f"<lang:{language}>" for language in languages)])
    letters_folder(folder, {token: number for number, token in enumerate(tokens)}, **files)
    (folder / "sentencepiece.bpe.model").write_bytes(_pieces_model())
    return folder
