"""A language model file small enough to be written by a test."""

from collections.abc import Iterable
from pathlib import Path

__all__ = ["write_arpa"]


def write_arpa(path: Path, words: Iterable[str]) -> Path:
    """An ARPA file in which all words are equally likely; kenlm reads none without a bigram."""
    unigrams = [f"-1.0\t{word}\t0" for word in ("<s>", "</s>", "<unk>", *words)]
    head = ["\\data\\", f"ngram 1={len(unigrams)}", "ngram 2=1", ""]
    path.write_text("\n".join([*head, "\\1-grams:", *unigrams, "", "\\2-grams:", "-1.0\t<s>\t</s>", "", "\\end\\", ""]))
    return path
