"""CTC text: parity with transformers, the order of grouping and dropping, languages, time that grows with length."""

import dataclasses
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peers import peer
from tiny_tokenizers import LETTERS, MULTILINGUAL, XLSR, letters_folder

from phonograph.errors import ConfigError
from phonograph.models.wav2vec2.tokenization_wav2vec2 import Wav2Vec2CTCTokenizer, Wav2Vec2CTCTokenizerOutput

PHONES = ["<pad>", "<s>", "</s>", "<unk>", "|", "a", "ah", "t", "tʃ", "tʃh", "b", "ab", " ", "ba|", "\n", ".", "'", "s"]
CASES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "base-960h": (LETTERS, {}),
    "lower case": (LETTERS, {"do_lower_case": True}),
    "xlsr": (XLSR, {"unk_token": "[UNK]", "pad_token": "[PAD]"}),
    "phones": ({token: number for number, token in enumerate(PHONES)}, {}),
    "clean up": (
        {token: number for number, token in enumerate(PHONES)},
        {"clean_up_tokenization_spaces": True, "replace_word_delimiter_char": "_"},
    ),
    "bare": ({"a": 0, "b": 1, "<unk>": 2}, {}),
    "no sentence tokens": ({"<pad>": 0, "<unk>": 1, "|": 2, "a": 3}, {"bos_token": None, "eos_token": None}),
    "blank is the delimiter": ({"<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5, "b": 6}, {"pad_token": "|"}),
    "no blank": (LETTERS, {"pad_token": None}),
    "more special tokens": (LETTERS, {"additional_special_tokens": ["<x>", "B"]}),
}


def both(case: str, folder: Path) -> tuple[Wav2Vec2CTCTokenizer, Any]:
    vocab, options = CASES[case]
    path = letters_folder(folder, vocab) / "vocab.json"
    return Wav2Vec2CTCTokenizer(path, **options), peer("transformers").Wav2Vec2CTCTokenizer(str(path), **options)


def letters(folder: Path, vocab: Any = LETTERS, **options: Any) -> Wav2Vec2CTCTokenizer:
    return Wav2Vec2CTCTokenizer(letters_folder(folder, vocab) / "vocab.json", **options)


def frames(rng: random.Random, ids: list[int]) -> list[int]:
    """At least one id: without any, transformers gives offsets that were not asked for."""
    return [number for _ in range(rng.randrange(1, 15)) for number in [rng.choice(ids)] * rng.choice([1, 1, 2, 3])]


def as_dict(output: Any) -> Any:
    return (
        output
        if isinstance(output, (str, list))
        else {name: getattr(output, name) for name in ("text", "char_offsets", "word_offsets")}
    )


@pytest.mark.parametrize("case", CASES)
class TestEqualsTransformers:
    def test_tokens(self, case: str, tmp_path: Path) -> None:
        ours, other = both(case, tmp_path)
        assert (ours.get_vocab(), len(ours), ours.vocab_size) == (other.get_vocab(), len(other), other.vocab_size)
        for name in ("bos", "eos", "unk", "pad", "word_delimiter"):
            assert getattr(ours, f"{name}_token_id") == getattr(other, f"{name}_token_id")
        rng = random.Random(case)
        parts = [*ours.get_vocab(), " ", "  ", "É", "ß", "\n", "\u3000", "x"]
        for _ in range(300):
            text = "".join(rng.choice(parts) for _ in range(rng.randrange(12)))
            assert ours.tokenize(text) == other.tokenize(text), text
            assert ours(text).data == dict(other(text)), text

    def test_text(self, case: str, tmp_path: Path) -> None:
        ours, other = both(case, tmp_path)
        rng = random.Random(case)
        ids = sorted(ours.get_vocab().values())
        for _ in range(300):
            sequence = frames(rng, ids)
            options = {name: rng.random() < 0.5 for name in ("output_char_offsets", "output_word_offsets", "group_tokens")}
            options |= {"spaces_between_special_tokens": rng.random() < 0.3}
            options |= {"clean_up_tokenization_spaces": rng.choice([None, True, False])}
            assert as_dict(ours.decode(sequence, **options)) == as_dict(other.decode(sequence, **options)), sequence
            batch = [sequence, frames(rng, ids)]
            assert as_dict(ours.batch_decode(batch, **options)) == as_dict(other.batch_decode(batch, **options)), batch


class TestDecode:
    def test_double_letters_survive_special_tokens_being_skipped(self, tmp_path: Path) -> None:
        tokenizer = letters(tmp_path)
        hello = [LETTERS[token] for token in ["<s>", "H", "H", "E", "<pad>", "L", "L", "<pad>", "L", "O", "</s>", "O"]]
        assert tokenizer.decode(hello) == "<s>HELLO</s>O"
        assert tokenizer.decode(hello, skip_special_tokens=True) == "HELLOO"
        output = tokenizer.decode(hello, skip_special_tokens=True, output_char_offsets=True)
        assert isinstance(output, Wav2Vec2CTCTokenizerOutput)
        assert [(char["char"], char["start_offset"], char["end_offset"]) for char in output.char_offsets or ()] == [
            ("H", 1, 3),
            ("E", 3, 4),
            ("L", 5, 7),
            ("L", 8, 9),
            ("O", 9, 10),
            ("O", 11, 12),
        ]

    def test_skipping_is_what_transformers_writes_less_the_special_tokens(self, tmp_path: Path) -> None:
        ours, other = both("base-960h", tmp_path)
        rng = random.Random(0)
        for _ in range(300):
            sequence = frames(rng, list(range(9)))
            text = other.decode(sequence)
            for token in ours.all_special_tokens:
                text = text.replace(token, "")
            assert ours.decode(sequence, skip_special_tokens=True) == text.strip()

    def test_word_delimiter_is_not_special(self, tmp_path: Path) -> None:
        tokenizer = letters(tmp_path)
        assert tokenizer.decode([11, 10, 4, 4, 11, 10], skip_special_tokens=True) == "HI HI"
        assert "|" not in tokenizer.all_special_tokens

    def test_without_a_word_delimiter(self, tmp_path: Path) -> None:
        tokenizer = letters(tmp_path, word_delimiter_token=None)
        assert (tokenizer.word_delimiter_token, tokenizer.word_delimiter_token_id) == (None, None)
        assert tokenizer.tokenize("A B") == ["A", " ", "B"]
        assert tokenizer.decode([7, 4, 7], output_word_offsets=True) == Wav2Vec2CTCTokenizerOutput(
            "A|A", None, [{"word": "A|A", "start_offset": 0, "end_offset": 3}]
        )

    def test_word_delimiter_of_several_characters(self, tmp_path: Path) -> None:
        tokenizer = letters(
            tmp_path, {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<w>": 4, "a": 5}, word_delimiter_token="<w>"
        )
        assert tokenizer("a a").input_ids == [5, 4, 5]
        assert tokenizer.decode([5, 4, 5]) == "a a"

    def test_forms_of_ids(self, tmp_path: Path) -> None:
        tokenizer = letters(tmp_path)
        ids = [11, 5, 15, 0, 15, 8]
        for form in (ids, tuple(ids), np.array(ids), np.array(ids, np.int16), torch.tensor(ids), [np.int64(i) for i in ids]):
            assert tokenizer.decode(form) == "HELLO"
        assert tokenizer.decode([torch.tensor(i) for i in ids]) == "HELLO"
        assert tokenizer.decode(5) == tokenizer.decode(torch.tensor(5)) == tokenizer.decode(np.int64(5)) == "E"
        for batch in (
            [[5, 6], [6, 7]],
            np.array([[5, 6], [6, 7]]),
            torch.tensor([[5, 6], [6, 7]]),
            [torch.tensor([5, 6]), [6, 7]],
        ):
            assert tokenizer.batch_decode(batch) == ["ET", "TA"]
        assert tokenizer.batch_decode([5, 6]) == ["E", "T"]

    def test_nothing(self, tmp_path: Path) -> None:
        tokenizer = letters(tmp_path)
        assert (tokenizer.decode([]), tokenizer.batch_decode([]), tokenizer.decode([0, 0])) == ("", [], "")
        assert tokenizer.decode([], output_word_offsets=True) == Wav2Vec2CTCTokenizerOutput("", None, [])

    def test_offsets_are_plain_integers(self, tmp_path: Path) -> None:
        output = letters(tmp_path).decode(np.array([5, 5, 6]), output_char_offsets=True, output_word_offsets=True)
        for offset in dataclasses.asdict(output)["char_offsets"] + dataclasses.asdict(output)["word_offsets"]:  # type: ignore[call-overload]
            assert type(offset["start_offset"]) is type(offset["end_offset"]) is int

    @pytest.mark.parametrize(
        ("ids", "match"),
        [
            ([5, 32], "expected ids of the vocabulary, 0 to 31, got 32; check that model and tokenizer belong"),
            ([[5, 6], [6, 7]], r"expected ids of one text as integers, got \[\[5, 6\], \[6, 7\]\]"),
            (torch.zeros(2, 32), "expected ids of one text as integers, got torch.float32 .* of logits, take the argmax"),
        ],
    )
    def test_refuses(self, ids: Any, match: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=match):
            letters(tmp_path).decode(ids)

    def test_time_grows_with_length(self, tmp_path: Path) -> None:
        tokenizer = letters(tmp_path)
        rng = random.Random(0)

        def seconds(length: int) -> float:
            ids = [rng.randrange(32) for _ in range(length)]
            best = float("inf")
            for _ in range(3):
                start = time.process_time()
                tokenizer.decode(ids, output_char_offsets=True, output_word_offsets=True)
                best = min(best, time.process_time() - start)
            return best

        assert seconds(200_000) < 40 * seconds(20_000)  # 10 if linear, 100 if quadratic


class TestLanguages:
    def test_one_of_several(self, tmp_path: Path) -> None:
        path = letters_folder(tmp_path, MULTILINGUAL) / "vocab.json"
        ours = Wav2Vec2CTCTokenizer(path, target_lang="fra")
        other = peer("transformers").Wav2Vec2CTCTokenizer(str(path), target_lang="fra")
        assert ours.get_vocab() == other.get_vocab() == MULTILINGUAL["fra"]
        assert (ours.vocab, ours.encoder) == (other.vocab, other.encoder)
        assert ours.tokenize("é chz") == other.tokenize("é chz") == ["é", "ch", "z"]

    def test_change(self, tmp_path: Path) -> None:
        tokenizer = letters(tmp_path, MULTILINGUAL, target_lang="eng", additional_special_tokens=["<x>"])
        tokenizer.set_target_lang("fra")
        assert (tokenizer.target_lang, len(tokenizer), tokenizer.decode([5, 7, 8])) == ("fra", 10, "échz")
        tokenizer.set_target_lang("eng")
        assert tokenizer.get_vocab() == {**MULTILINGUAL["eng"], "<x>": 7}
        assert tokenizer.tokenize("ch a") == ["c", "h", "|", "a"]  # transformers keeps French's "ch" as a token

    def test_files_go_both_ways(self, tmp_path: Path) -> None:
        transformers = peer("transformers")
        letters(tmp_path / "first", MULTILINGUAL, target_lang="fra").save_pretrained(tmp_path / "ours")
        other = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "ours")
        assert (other.target_lang, other.vocab, other.get_vocab()) == ("fra", MULTILINGUAL, MULTILINGUAL["fra"])
        other.save_pretrained(tmp_path / "theirs")
        for language in ("fra", "eng"):
            again = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "theirs", target_lang=language)
            assert (again.target_lang, again.vocab) == (language, MULTILINGUAL)
            assert again.get_vocab() == MULTILINGUAL[language]
        assert Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "theirs").target_lang == "fra"

    def test_refuses(self, tmp_path: Path) -> None:
        for language in (None, "deu"):
            with pytest.raises(
                ConfigError, match=rf"expected a target_lang of the vocabulary \(eng, fra\), got {language!r}; pass"
            ):
                letters(tmp_path, MULTILINGUAL, target_lang=language)
        tokenizer = letters(tmp_path, MULTILINGUAL, target_lang="eng")
        with pytest.raises(ConfigError, match=r"\(eng, fra\), got 'deu'"):
            tokenizer.set_target_lang("deu")
        assert (tokenizer.target_lang, tokenizer.get_vocab()) == ("eng", MULTILINGUAL["eng"])
        with pytest.raises(ConfigError, match=r"expected no target_lang, .* one language only, got 'eng'; leave it out"):
            letters(tmp_path, LETTERS, target_lang="eng")
        with pytest.raises(ConfigError, match=r"\(l0, .*, l19 and 5 more\), got 'deu'"):
            letters(tmp_path, {f"l{number}": {"a": 0} for number in range(25)}, target_lang="deu")


BASE_960H: dict[str, Any] = {
    "tokenizer_config": {
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "do_lower_case": False,
        "return_attention_mask": False,
        "do_normalize": True,
    },
    "special_tokens_map": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
}


class TestFiles:
    def test_older_form(self, tmp_path: Path) -> None:
        transformers = peer("transformers")
        folder = letters_folder(tmp_path / "hub", **BASE_960H)
        ours, other = Wav2Vec2CTCTokenizer.from_pretrained(folder), transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder)
        assert ours.get_vocab() == other.get_vocab()
        assert ours("HELLO WORLD").data == dict(other("HELLO WORLD"))
        ours.save_pretrained(tmp_path / "ours")
        again = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "ours")
        assert (again.get_vocab(), again.special_tokens_map) == (other.get_vocab(), other.special_tokens_map)
        assert (again.init_kwargs["return_attention_mask"], again.init_kwargs["do_normalize"]) == (False, True)

    @pytest.mark.parametrize("case", CASES)
    def test_written_by_transformers_and_by_us(self, case: str, tmp_path: Path) -> None:
        ours, other = both(case, tmp_path / "first")
        other.save_pretrained(tmp_path / "theirs")
        ours.save_pretrained(tmp_path / "ours")
        from_theirs = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "theirs")
        from_ours = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "ours")
        by_them = peer("transformers").Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "ours")
        text = "A <unk> ah tʃa|Bc<x> </s>'s ."
        ids = [number for number in ours.get_vocab().values() for _ in range(2)]
        for tokenizer in (from_theirs, from_ours, by_them):
            assert tokenizer.get_vocab() == ours.get_vocab()
            assert tokenizer.tokenize(text) == ours.tokenize(text)
            assert tokenizer.decode(ids) == ours.decode(ids)
        assert from_theirs.all_special_tokens == from_ours.all_special_tokens == ours.all_special_tokens
