"""Pieces, numbers and languages of Speech2Text's tokenizer, against transformers and sentencepiece."""

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from peers import peer
from tiny_tokenizers import pieces_folder

from phonograph.errors import CheckpointError, ConfigError
from phonograph.models.speech_to_text.tokenization_speech_to_text import LANGUAGES, Speech2TextTokenizer

MUSTC = LANGUAGES["mustc"]
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "librispeech": ((), {}),
    "upper case": ((), {"do_upper_case": True}),
    "lower case": ((), {"do_lower_case": True}),
    "clean up": ((), {"clean_up_tokenization_spaces": True}),
    "more special tokens": ((), {"additional_special_tokens": ["<x>", "▁qu"]}),
    "mustc": (MUSTC, {"lang_codes": "mustc", "tgt_lang": "de"}),
    "mustc, first language": (MUSTC, {"lang_codes": "mustc"}),
    "languages the vocabulary lacks": ((), {"lang_codes": "mustc", "tgt_lang": "ru"}),
    "language without codes": ((), {"tgt_lang": "fr"}),
}
PARTS = [
    "the ",
    " quick",
    "fox",
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    " ",
    "  ",
    "É",
    "\n",
    "Der",
    "<x>",
    "<lang:de>",
    "▁",
    "日本",
    "!",
]


def build(folder: Path, languages: tuple[str, ...] = (), **options: Any) -> Speech2TextTokenizer:
    pieces_folder(folder, languages)
    return Speech2TextTokenizer(folder / "vocab.json", folder / "sentencepiece.bpe.model", **options)


def both(case: str, folder: Path) -> tuple[Speech2TextTokenizer, Any]:
    languages, options = CASES[case]
    ours = build(folder, languages, **options)
    files = (str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"))
    return ours, peer("transformers").Speech2TextTokenizer(*files, **options)


@pytest.mark.parametrize("case", CASES)
class TestEqualsTransformers:
    def test_ids(self, case: str, tmp_path: Path) -> None:
        ours, other = both(case, tmp_path)
        assert (ours.get_vocab(), ours.vocab_size, len(ours)) == (other.get_vocab(), other.vocab_size, len(other))
        assert (ours.tgt_lang, ours.all_special_tokens) == (other.tgt_lang, other.all_special_tokens)
        rng = random.Random(case)
        for _ in range(150):
            text = "".join(rng.choice(PARTS) for _ in range(rng.randrange(9)))
            assert ours.tokenize(text) == other.tokenize(text), text
            for options in ({}, {"add_special_tokens": False}, {"max_length": 4}):
                expected = other(text, **options)["input_ids"]
                if ours.tgt_lang and options != {"add_special_tokens": False}:
                    # transformers numbers the languages before they have numbers, and puts <s> there
                    assert expected[0] == 0
                    expected[0] = other.get_vocab()[f"<lang:{ours.tgt_lang}>"]
                assert ours(text, **options).input_ids == expected, text

    def test_text(self, case: str, tmp_path: Path) -> None:
        ours, other = both(case, tmp_path)
        rng = random.Random(case)
        ids = sorted(ours.get_vocab().values())
        for _ in range(150):
            sequence = [rng.choice(ids) if rng.random() < 0.8 else rng.randrange(5) for _ in range(rng.randrange(15))]
            for options in ({}, {"skip_special_tokens": True}, {"clean_up_tokenization_spaces": True}):
                assert ours.decode(sequence, **options) == other.decode(sequence, **options), sequence
            assert ours.get_special_tokens_mask(sequence, already_has_special_tokens=True) == other.get_special_tokens_mask(
                sequence, already_has_special_tokens=True
            )
            assert ours.get_special_tokens_mask(sequence) == other.get_special_tokens_mask(sequence)

    def test_files(self, case: str, tmp_path: Path) -> None:
        ours, other = both(case, tmp_path / "first")
        paths = ours.save_pretrained(tmp_path / "ours")
        assert {"vocab.json", "sentencepiece.bpe.model", "tokenizer_config.json"} <= {Path(path).name for path in paths}
        other.save_pretrained(tmp_path / "theirs")
        from_theirs = Speech2TextTokenizer.from_pretrained(tmp_path / "theirs")
        from_ours = Speech2TextTokenizer.from_pretrained(tmp_path / "ours")
        by_them = peer("transformers").Speech2TextTokenizer.from_pretrained(tmp_path / "ours")
        assert from_ours._arguments() == ours._arguments()
        for tokenizer in (from_theirs, from_ours, by_them):
            assert (tokenizer.get_vocab(), tokenizer.tgt_lang) == (ours.get_vocab(), ours.tgt_lang)
            assert tokenizer.all_special_tokens == ours.all_special_tokens
            assert tokenizer.tokenize("the <x> quick<lang:de> fox") == ours.tokenize("the <x> quick<lang:de> fox")
            assert tokenizer.decode([10, 11, 3, 12, 2]) == ours.decode([10, 11, 3, 12, 2])


class TestPieces:
    def test_numbers_are_those_of_the_vocabulary(self, tmp_path: Path) -> None:
        tokenizer = build(tmp_path)
        model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sentencepiece.bpe.model"))
        vocab = json.loads((tmp_path / "vocab.json").read_text())
        text = "the quick brown fox"
        assert tokenizer(text).input_ids == [*(vocab[piece] for piece in model.encode(text, out_type=str)), 2]
        assert tokenizer(text).input_ids[:-1] != model.encode(text)
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text

    def test_sampling(self, tmp_path: Path) -> None:
        tokenizer = build(tmp_path, sp_model_kwargs={"enable_sampling": True, "alpha": 0.1, "nbest_size": -1})
        text = "the quick brown fox"
        cuts = {tuple(tokenizer.tokenize(text)) for _ in range(30)}
        assert len(cuts) > 1
        assert {tokenizer.convert_tokens_to_string(list(cut)) for cut in cuts} == {text}

    def test_forms_of_ids(self, tmp_path: Path) -> None:
        tokenizer = build(tmp_path)
        ids = tokenizer("the fox").input_ids
        for form in (ids, np.array(ids), torch.tensor(ids)):
            assert tokenizer.decode(form) == "the fox</s>"
        for batch in ([ids, ids], torch.tensor([ids, ids])):
            assert tokenizer.decode(batch) == tokenizer.batch_decode(batch) == ["the fox</s>"] * 2
        assert (tokenizer.decode([]), tokenizer.batch_decode([])) == ("", [])

    def test_goes_to_other_processes(self, tmp_path: Path) -> None:
        tokenizer = build(tmp_path)
        assert pickle.loads(pickle.dumps(tokenizer))("the fox").data == tokenizer("the fox").data

    def test_without_end_or_unknown(self, tmp_path: Path) -> None:
        assert build(tmp_path, eos_token=None)("the fox").input_ids == build(tmp_path)("the fox").input_ids[:-1]
        with pytest.raises(ConfigError, match="expected tokens of the vocabulary, got '日本', and there is no unk_token"):
            build(tmp_path, unk_token=None)("日本")


class TestLanguages:
    def test_target_comes_first(self, tmp_path: Path) -> None:
        tokenizer = build(tmp_path, MUSTC, lang_codes="mustc", tgt_lang="fr")
        vocab = tokenizer.get_vocab()
        assert tokenizer.lang_code_to_id == {language: vocab[f"<lang:{language}>"] for language in MUSTC}
        assert tokenizer("the fox").input_ids == [vocab["<lang:fr>"], *tokenizer.encode("the fox", False), 2]
        assert tokenizer.decode(tokenizer("the fox").input_ids) == "<lang:fr> the fox</s>"
        tokenizer.tgt_lang = "de"
        assert (tokenizer.tgt_lang, tokenizer.prefix_tokens) == ("de", [vocab["<lang:de>"]])
        tokenizer.set_tgt_lang_special_tokens("nl")
        assert (tokenizer.tgt_lang, tokenizer.build_inputs_with_special_tokens([5])) == ("nl", [vocab["<lang:nl>"], 5, 2])
        assert tokenizer.decode([vocab["<lang:de>"], 10], skip_special_tokens=True) == tokenizer.decode([10])

    def test_own_list(self, tmp_path: Path) -> None:
        tokenizer = build(tmp_path / "first", ("de", "sv"), lang_codes=["sv", "de"])
        assert (tokenizer.tgt_lang, list(tokenizer.lang_code_to_id)) == ("sv", ["sv", "de"])
        tokenizer.save_pretrained(tmp_path / "saved")
        assert Speech2TextTokenizer.from_pretrained(tmp_path / "saved", tgt_lang="de").tgt_lang == "de"

    def test_older_file(self, tmp_path: Path) -> None:
        languages = [f"<lang:{language}>" for language in MUSTC]
        settings = {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "do_upper_case": False,
            "do_lower_case": False,
            "tgt_lang": "fr",
            "lang_codes": "mustc",
            "additional_special_tokens": languages,
            "special_tokens_map_file": "special_tokens_map.json",
            "tokenizer_file": None,
            "name_or_path": "facebook/s2t-medium-mustc-multilingual-st",
            "sp_model_kwargs": {},
            "tokenizer_class": "Speech2TextTokenizer",
        }
        folder = pieces_folder(tmp_path, MUSTC, tokenizer_config=settings)
        (folder / "special_tokens_map.json").write_text(
            json.dumps({"pad_token": "<pad>", "additional_special_tokens": languages})
        )
        tokenizer = Speech2TextTokenizer.from_pretrained(folder)
        assert (tokenizer.tgt_lang, len(tokenizer)) == ("fr", tokenizer.vocab_size)
        assert tokenizer.additional_special_tokens == languages
        assert tokenizer._arguments()["name_or_path"] == settings["name_or_path"]

    def test_refuses(self, tmp_path: Path) -> None:
        there = r"expected a target language of the checkpoint \(pt, fr, ru, nl, ro, it, es, de\), got 'xx'; pass one"
        with pytest.raises(ConfigError, match=there):
            build(tmp_path, MUSTC, lang_codes="mustc", tgt_lang="xx")
        tokenizer = build(tmp_path, MUSTC, lang_codes="mustc", tgt_lang="fr")
        with pytest.raises(ConfigError, match=there):
            tokenizer.tgt_lang = "xx"
        with pytest.raises(ConfigError, match=there):
            tokenizer.set_tgt_lang_special_tokens("xx")
        assert tokenizer.tgt_lang == "fr"
        with pytest.raises(ConfigError, match="expected no target language, got 'fr'; the checkpoint has one language only"):
            build(tmp_path).tgt_lang = "fr"
        with pytest.raises(ConfigError, match="expected lang_codes mustc, got 'pt'; pass one of these or a list of codes"):
            build(tmp_path, lang_codes="pt")


class TestFiles:
    def test_names(self, tmp_path: Path) -> None:
        names = [Path(path).name for path in build(tmp_path).save_vocabulary(tmp_path, "my")]
        assert names == ["my-vocab.json", "my-sentencepiece.bpe.model"]
        assert (tmp_path / names[1]).read_bytes() == (tmp_path / "sentencepiece.bpe.model").read_bytes()

    def test_missing_or_damaged(self, tmp_path: Path) -> None:
        folder = pieces_folder(tmp_path)
        (folder / "sentencepiece.bpe.model").write_bytes(b"no model")
        with pytest.raises(
            CheckpointError, match=r"expected a sentencepiece model in .*bpe\.model, found none; fetch it again"
        ):
            Speech2TextTokenizer.from_pretrained(folder)
        with pytest.raises(CheckpointError, match=r"expected a sentencepiece model in .*nothing, found none"):
            Speech2TextTokenizer(folder / "vocab.json", folder / "nothing")
        (folder / "sentencepiece.bpe.model").unlink()
        with pytest.raises(CheckpointError, match=r"expected a file sentencepiece\.bpe\.model in"):
            Speech2TextTokenizer.from_pretrained(folder)
