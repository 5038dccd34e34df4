"""What tokenizers share: numbering, padding, special and added tokens, files."""

import itertools
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peers import peer
from tiny_tokenizers import LETTERS, XLSR, letters_folder

from phonograph.errors import CheckpointError, ConfigError, OutputError
from phonograph.models.features import BatchFeature
from phonograph.models.tokenization import AddedToken
from phonograph.models.wav2vec2.tokenization_wav2vec2 import Wav2Vec2CTCTokenizer

TEXTS = ["HELLO", "A B", "", "<s>A BRIDGE</s>"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return letters_folder(tmp_path / "letters")


@pytest.fixture
def tokenizer(folder: Path) -> Wav2Vec2CTCTokenizer:
    return Wav2Vec2CTCTokenizer(folder / "vocab.json")


def theirs(folder: Path, **options: Any) -> Any:
    return peer("transformers").Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **options)


def assert_same_batch(ours: BatchFeature, other: Any) -> None:
    assert set(ours) == set(other)
    for name, expected in other.items():
        assert type(ours[name]) is type(expected)
        if not isinstance(expected, list):
            assert (ours[name].dtype, ours[name].shape) == (expected.dtype, expected.shape)
        assert np.asarray(ours[name], dtype=object).tolist() == np.asarray(expected, dtype=object).tolist()


class TestCall:
    @pytest.mark.parametrize("side", ["right", "left"])
    @pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
    @pytest.mark.parametrize("model_max_length", [None, 8])
    def test_equals_transformers(
        self, side: str, return_tensors: str | None, model_max_length: int | None, folder: Path
    ) -> None:
        settings = {"padding_side": side, "truncation_side": side}
        settings |= {} if model_max_length is None else {"model_max_length": model_max_length}
        ours, other = Wav2Vec2CTCTokenizer(folder / "vocab.json", **settings), theirs(folder, **settings)
        unequal = 0
        for text, padding, truncation, (max_length, multiple), mask in itertools.product(
            [TEXTS, TEXTS[:1], "A BRIDGE"],
            [True, False, "longest", "max_length", "do_not_pad"],
            [None, True, False, "longest_first", "only_first", "do_not_truncate"],
            [(None, None), (3, None), (20, None), (None, 4), (4, 4), (20, 4)],
            [None, False],
        ):
            options: dict[str, Any] = {"padding": padding, "truncation": truncation, "max_length": max_length}
            options |= {"pad_to_multiple_of": multiple, "return_attention_mask": mask, "return_tensors": return_tensors}
            try:
                with warnings.catch_warnings(action="ignore"):  # transformers advises against some of these
                    expected = other(text, **options)
                ragged = any(getattr(value, "dtype", None) == np.dtype(object) for value in expected.values())
            except ValueError:
                ragged = True
            if ragged:
                unequal += 1
                with pytest.raises(ConfigError, match="expected input_ids of one length"):
                    ours(text, **options)
            else:
                assert_same_batch(ours(text, **options), expected)
        assert (unequal > 0) == (return_tensors is not None)

    def test_one_text_has_a_batch_dimension_only_as_a_tensor(self, tokenizer: Wav2Vec2CTCTokenizer) -> None:
        assert tokenizer("HI").input_ids == [11, 10]
        assert tokenizer("HI", return_tensors="pt").input_ids.tolist() == [[11, 10]]
        assert tokenizer.encode("HI", max_length=1) == [11]
        empty = tokenizer("", return_tensors="pt").input_ids
        assert (empty.shape, empty.dtype) == ((1, 0), torch.int64)

    @pytest.mark.parametrize(
        ("text", "options", "match"),
        [
            (5, {}, "expected text as a string or a list of strings, got a int; pass strings"),
            (["A", None], {}, "expected text as a string or a list of strings, got a NoneType; pass strings"),
            ([["A"]], {}, "got a list; pass strings"),
            ([], {}, "expected 'input_ids' with at least one row of ids, got {'input_ids': "),
            ("A", {"padding": "middle"}, "expected padding as a bool, .* got 'middle'"),
            ("A", {"truncation": "last"}, "expected truncation as a bool, .* got 'last'; pass one"),
            ("A", {"max_length": 0}, "expected a positive max_length, got 0"),
            ("A", {"return_tensors": "tf"}, "expected return_tensors among 'np', 'pt' and None, got 'tf'"),
            (
                ["AB", "A"],
                {"return_tensors": "pt"},
                r"expected input_ids of one length .* shapes \(1,\), \(2,\); pass padding=True",
            ),
        ],
    )
    def test_refuses(self, text: Any, options: dict[str, Any], match: str, tokenizer: Wav2Vec2CTCTokenizer) -> None:
        with pytest.raises(ConfigError, match=match):
            tokenizer(text, **options)


class TestPad:
    def test_forms_of_batches(self, tokenizer: Wav2Vec2CTCTokenizer, folder: Path) -> None:
        other = theirs(folder)
        for rows in (
            [{"input_ids": [5, 6, 7]}, {"input_ids": [5]}],
            {"input_ids": [[5, 6, 7], [5]]},
            {"input_ids": [[5, 6, 7], [5]], "attention_mask": [[1, 0, 1], [1]]},
            {"input_ids": [np.array([5, 6, 7]), np.array([5])]},
            {"input_ids": [torch.tensor([5, 6, 7]), torch.tensor([5])]},
        ):
            for return_tensors in ("np", "pt"):
                ours = tokenizer.pad(rows, return_tensors=return_tensors)
                assert_same_batch(ours, other.pad(rows, return_tensors=return_tensors))
        batch = {"input_ids": [[5, 6], [7]], "names": ["a", "b"]}
        assert tokenizer.pad(batch).data == {
            "input_ids": [[5, 6], [7, 0]],
            "attention_mask": [[1, 1], [1, 0]],
            "names": ["a", "b"],
        }
        assert list(batch) == ["input_ids", "names"]

    def test_refuses(self, tokenizer: Wav2Vec2CTCTokenizer, folder: Path) -> None:
        for rows in ({"labels": [[1]]}, [], {"input_ids": []}, {"input_ids": [5, 6]}):
            with pytest.raises(ConfigError, match="expected 'input_ids' with at least one row of ids, got"):
                tokenizer.pad(rows)
        with pytest.raises(ConfigError, match="expected ids of one text as integers, got float64 of shape"):
            tokenizer.pad({"input_ids": [np.array([0.5])]})
        with pytest.raises(ConfigError, match="expected a pad_token to pad with, the tokenizer has none"):
            Wav2Vec2CTCTokenizer(folder / "vocab.json", pad_token=None)(["AB", "A"], padding=True)
        with pytest.raises(ConfigError, match="expected padding_side 'right' or 'left', got 'top'"):
            Wav2Vec2CTCTokenizer(folder / "vocab.json", padding_side="top")
        with pytest.raises(ConfigError, match="expected truncation_side 'right' or 'left', got 'top'"):
            Wav2Vec2CTCTokenizer(folder / "vocab.json", truncation_side="top")


class TestTokens:
    def test_names_and_ids(self, tokenizer: Wav2Vec2CTCTokenizer) -> None:
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        assert [getattr(tokenizer, name) for name in names] == ["<s>", "</s>", "<unk>", "<pad>"]
        assert [getattr(tokenizer, f"{name}_id") for name in names] == [1, 2, 3, 0] == tokenizer.all_special_ids
        assert (tokenizer.vocab_size, len(tokenizer), tokenizer.get_vocab()) == (32, 32, LETTERS)
        assert tokenizer.convert_tokens_to_ids(["A", "Ü"]) == [7, 3]
        assert tokenizer.convert_ids_to_tokens(torch.tensor([7, 0, 4, 3]), skip_special_tokens=True) == ["A", "|"]
        assert tokenizer.convert_ids_to_tokens(7) == tokenizer.convert_ids_to_tokens(np.int32(7)) == "A"
        assert tokenizer.convert_ids_to_tokens([]) == []
        assert tokenizer.get_special_tokens_mask([7, 0, 4], already_has_special_tokens=True) == [0, 1, 0]
        assert tokenizer.get_special_tokens_mask([7, 0]) == [0, 0]

    def test_what_the_vocabulary_lacks_follows_it(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"additional_special_tokens": ["<x>", "b", "<y>", "<x>"]}
        folder = letters_folder(tmp_path, {"a": 0, "b": 1})
        ours = Wav2Vec2CTCTokenizer(folder / "vocab.json", **options)
        assert ours.get_vocab() == theirs(folder, **options).get_vocab()
        assert (ours.vocab_size, len(ours)) == (2, 9)
        assert ours.get_added_vocab() == {"<s>": 2, "</s>": 3, "<unk>": 4, "<pad>": 5, "|": 6, "<x>": 7, "<y>": 8}
        assert ours.all_special_tokens == ["<s>", "</s>", "<unk>", "<pad>", "<x>", "b", "<y>"]

    def test_numbers_with_gaps_are_never_given_twice(self, tmp_path: Path) -> None:
        folder = letters_folder(tmp_path, {"a": 0, "b": 5})
        vocab = Wav2Vec2CTCTokenizer(folder / "vocab.json").get_vocab()
        assert len(set(vocab.values())) == len(vocab)
        assert vocab["<s>"] == 6

    def test_added_tokens_are_found_whole(self, tokenizer: Wav2Vec2CTCTokenizer, folder: Path) -> None:
        other = theirs(folder)
        assert tokenizer.add_tokens(["<new>", "Ä", "A"]) == other.add_tokens(["<new>", "Ä", "A"]) == 2
        assert tokenizer.add_tokens("<new>") == 0
        assert (tokenizer.vocab_size, len(tokenizer), tokenizer.get_vocab()) == (32, 34, other.get_vocab())
        assert tokenizer.tokenize("A<new> ÄB") == other.tokenize("A<new> ÄB") == ["A", "<new>", "|", "Ä", "B"]
        assert tokenizer.add_tokens(AddedToken("<y>", lstrip=True), special_tokens=True) == 1
        assert tokenizer.tokenize("A <y> B") == ["A", "<y>", "|", "B"]
        assert tokenizer.convert_ids_to_tokens([32, 34], skip_special_tokens=True) == ["<new>"]

    def test_refuses(self, tokenizer: Wav2Vec2CTCTokenizer, folder: Path) -> None:
        for ids, match in (
            ([5, 99], "expected ids of the vocabulary, 0 to 31, got 99; check that model and tokenizer belong together"),
            ([5, -100], "expected ids of the vocabulary, 0 to 31, got -100; replace ignored labels by pad_token_id"),
            (
                torch.zeros(2, 3),
                r"expected ids of one text as integers, got torch.float32 of shape \(2, 3\); of logits, take the argmax",
            ),
            (
                [[5, 6], [7]],
                r"expected ids of one text as integers, got \[\[5, 6\], \[7\]\]; .* of several texts, use batch_decode",
            ),
            ([0.5], r"expected ids of one text as integers, got \[0.5\]"),
        ):
            with pytest.raises(ConfigError, match=match):
                tokenizer.convert_ids_to_tokens(ids)
        without_unknown = Wav2Vec2CTCTokenizer(folder / "vocab.json", unk_token=None)
        with pytest.raises(ConfigError, match="expected tokens of the vocabulary, got 'É', and there is no unk_token"):
            without_unknown("É")
        tokenizer.pad_token = "<nothing>"
        with pytest.raises(ConfigError, match="expected special tokens of the vocabulary, got '<nothing>'; add it with"):
            _ = tokenizer.pad_token_id

    def test_is_small_in_print_and_goes_to_other_processes(self, tokenizer: Wav2Vec2CTCTokenizer) -> None:
        tokenizer.add_tokens("<new>")
        assert repr(tokenizer).startswith("Wav2Vec2CTCTokenizer(vocab_size=32, length=33, {'bos_token': '<s>', ")
        assert pickle.loads(pickle.dumps(tokenizer))("A<new>").data == tokenizer("A<new>").data

    def test_needs_no_torch(self) -> None:
        program = (
            "import sys, phonograph.models.wav2vec2.tokenization_wav2vec2, "
            "phonograph.models.speech_to_text.tokenization_speech_to_text; "
            "assert not {'torch', 'sentencepiece', 'huggingface_hub'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", program], check=True)


OLD_TOKEN = {"content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}


class TestFiles:
    def test_vocabulary_alone(self, folder: Path) -> None:
        assert Wav2Vec2CTCTokenizer.from_pretrained(folder).get_vocab() == LETTERS

    def test_options_replace_what_is_stored(self, tmp_path: Path) -> None:
        letters_folder(tmp_path / "inner", tokenizer_config={"do_lower_case": False, "pad_token": "<s>"})
        loaded = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path, subfolder="inner", do_lower_case=True)
        assert (loaded.do_lower_case, loaded.pad_token) == (True, "<s>")

    def test_older_files(self, tmp_path: Path) -> None:
        folder = letters_folder(
            tmp_path,
            XLSR,
            tokenizer_config={"bos_token": "<s>", "eos_token": {"__type": "AddedToken", **OLD_TOKEN}, "unk_token": "no"},
            special_tokens_map={"unk_token": "[UNK]", "pad_token": "[PAD]", "additional_special_tokens": [OLD_TOKEN, "<s>"]},
            added_tokens={"</s>": 8, "<s>": 9, "<more>": 10},
        )
        ours, other = (
            Wav2Vec2CTCTokenizer.from_pretrained(folder),
            peer("transformers").Wav2Vec2CTCTokenizer.from_pretrained(folder),
        )
        assert ours.get_vocab() == {**XLSR, "</s>": 8, "<s>": 9, "<more>": 10}
        assert ours.special_tokens_map == other.special_tokens_map
        # transformers makes the text of the entry for </s> a token; it says </s>
        assert ours.all_special_tokens == ["<s>", "</s>", "[UNK]", "[PAD]"]
        assert ours.tokenize("ab<more> c") == other.tokenize("ab<more> c")

    def test_newer_files_make_the_older_ones_irrelevant(self, tmp_path: Path) -> None:
        token = {"content": "<zz>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False, "special": True}
        folder = letters_folder(
            tmp_path,
            tokenizer_config={"added_tokens_decoder": {"32": token}, "extra_special_tokens": ["<yy>"], "pad_token": "<pad>"},
            special_tokens_map={"pad_token": "<other>"},
            added_tokens={"<old>": 40},
        )
        ours, other = (
            Wav2Vec2CTCTokenizer.from_pretrained(folder),
            peer("transformers").Wav2Vec2CTCTokenizer.from_pretrained(folder),
        )
        assert ours.get_vocab() == other.get_vocab() == {**LETTERS, "<zz>": 32, "<yy>": 33}
        assert ours.tokenize("A <zz> B<yy>") == other.tokenize("A <zz> B<yy>") == ["A", "|", "<zz>", "B", "<yy>"]
        assert ours.pad_token == other.pad_token == "<pad>"

    def test_what_is_saved_is_loaded(self, tmp_path: Path) -> None:
        folder = letters_folder(
            tmp_path / "first", XLSR, tokenizer_config={"name_or_path": "./", "return_attention_mask": False}
        )
        options: dict[str, Any] = {"unk_token": "[UNK]", "pad_token": "[PAD]", "additional_special_tokens": ["<x>"]}
        options |= {
            "model_max_length": 7,
            "padding_side": "left",
            "truncation_side": "left",
            "clean_up_tokenization_spaces": True,
        }
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder, **options)
        tokenizer.add_tokens(AddedToken("<new>", rstrip=True))
        paths = tokenizer.save_pretrained(tmp_path / "made" / "here")
        assert sorted(Path(path).name for path in paths) == [
            "added_tokens.json",
            "special_tokens_map.json",
            "tokenizer_config.json",
            "vocab.json",
        ]
        stored = json.loads((tmp_path / "made" / "here" / "tokenizer_config.json").read_text())
        assert (stored["name_or_path"], stored["return_attention_mask"], stored["model_max_length"]) == ("./", False, 7)
        special = json.loads((tmp_path / "made" / "here" / "special_tokens_map.json").read_text())
        assert (special["pad_token"], special["additional_special_tokens"]) == ("[PAD]", ["<x>"])

        again = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "made" / "here")
        assert again._arguments() == tokenizer._arguments()
        assert (again.vocab, again.get_vocab()) == (tokenizer.vocab, tokenizer.get_vocab())
        text = "ab<new> c <x> d"
        assert again.tokenize(text) == tokenizer.tokenize(text)
        other = peer("transformers").Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "made" / "here")
        assert other.get_vocab() == tokenizer.get_vocab()
        assert other.tokenize(text) == tokenizer.tokenize(text)
        settings = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces")
        assert [getattr(other, name) for name in settings] == [7, "left", "left", True]

    def test_saving_over_another_tokenizer(self, folder: Path, tmp_path: Path) -> None:
        longer = Wav2Vec2CTCTokenizer(folder / "vocab.json", additional_special_tokens=["<x>"])
        longer.save_pretrained(tmp_path / "saved")
        Wav2Vec2CTCTokenizer(folder / "vocab.json").save_pretrained(tmp_path / "saved")
        assert (tmp_path / "saved" / "added_tokens.json").exists()
        assert Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "saved").get_vocab() == LETTERS

    def test_names_of_files(self, tokenizer: Wav2Vec2CTCTokenizer, tmp_path: Path) -> None:
        (path,) = tokenizer.save_vocabulary(tmp_path, filename_prefix="my")
        assert (Path(path).name, json.loads(Path(path).read_text())) == ("my-vocab.json", LETTERS)

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            (b"{", r"expected JSON in .*vocab\.json, got something else"),
            (b"[1]", r"expected a JSON object in .*vocab\.json, got a list"),
            (b'{"a": "b"}', r"expected an integer id for each token in .*vocab\.json, got 'b' for 'a'"),
            (b'{"eng": {"a": 1.5}}', r"expected an integer id for each token in .*vocab\.json, got 1.5 for 'a'"),
            (b'{"a": 1, "eng": {}}', r"got \{\} for 'eng'"),
        ],
    )
    def test_damaged_vocabulary(self, content: bytes, match: str, tmp_path: Path) -> None:
        (tmp_path / "vocab.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=match):
            Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)

    def test_missing_or_damaged(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"expected a file vocab\.json in .*; check the folder"):
            Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=r"cannot read .*vocab\.json: No such file"):
            Wav2Vec2CTCTokenizer(tmp_path / "vocab.json")
        (folder / "tokenizer_config.json").write_text("{")
        with pytest.raises(CheckpointError, match=r"expected JSON in .*tokenizer_config\.json"):
            Wav2Vec2CTCTokenizer.from_pretrained(folder)

    def test_another_class_is_told(self, tmp_path: Path) -> None:
        letters_folder(tmp_path, tokenizer_config={"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"})
        with pytest.warns(UserWarning, match="expected a tokenizer of class Wav2Vec2CTCTokenizer, got Wav2Vec2Phoneme"):
            Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)

    def test_unwritable_place(self, tokenizer: Wav2Vec2CTCTokenizer, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match=r"cannot write .*file"):
            tokenizer.save_pretrained(tmp_path / "file")
