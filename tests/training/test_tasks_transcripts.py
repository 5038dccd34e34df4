"""Spelling and vocabularies made from transcripts, up to tokenizers that are saved and loaded."""

import json

import pytest

from phonograph import Speech2TextTokenizer, Wav2Vec2CTCTokenizer
from phonograph.errors import ConfigError
from phonograph.training.transcripts import ENGLISH, Spelling, character_tokenizer, pieces_tokenizer

TEXTS = ["the quick brown fox", "jumps over the lazy dog", "it's here and there", "she sells sea shells"]


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("The various wards were all about eleven feet in height,", "THE VARIOUS WARDS WERE ALL ABOUT ELEVEN FEET IN HEIGHT"),
        ("It\u2019s \u201chere\u201d \u2014 `now`!", "IT'S HERE NOW"),
        ("post-mortem  examination\n", "POST MORTEM EXAMINATION"),
        ("'quoted' rock 'n' roll", "QUOTED ROCK N ROLL"),
        ("e\u0301te\u0301 ﬁn 2nd", "ÉTÉ FIN 2ND"),
        ("\u2014", ""),
    ],
)
def test_spelling_leaves_what_is_heard(text, spelled):
    assert Spelling()(text) == spelled
    assert Spelling()(spelled) == spelled


def test_spelling_may_keep_case_and_punctuation():
    assert Spelling("as_is", punctuation=True)("Well,  it's here.") == "Well, it's here."
    assert Spelling("lower")("Well, it's here.") == "well it's here"


def test_characters_by_frequency_after_the_special_tokens(tmp_path):
    tokenizer = character_tokenizer(["ab b", "b|c é"], tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    assert list(vocabulary) == ["<pad>", "<s>", "</s>", "<unk>", "|", "b", "a", "c", "é"]
    assert list(vocabulary.values()) == list(range(9))
    assert tokenizer("ab é").input_ids == [6, 5, 4, 8]
    tokenizer.save_pretrained(tmp_path / "saved")
    again = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "saved")
    assert again.decode(again("ab é").input_ids, group_tokens=False) == "ab é"


def test_rare_characters_become_unknown(tmp_path):
    tokenizer = character_tokenizer(["aab", "abc"], tmp_path, fewest=2)
    assert tokenizer("abc").input_ids == [5, 6, tokenizer.unk_token_id]


def test_a_given_vocabulary_is_taken_as_it_is(tmp_path):
    tokenizer = character_tokenizer([], tmp_path, tokens=ENGLISH)
    assert len(tokenizer) == 32
    assert tokenizer("ET").input_ids == [5, 6]


def test_pieces_with_the_order_of_published_checkpoints(tmp_path):
    tokenizer = pieces_tokenizer(TEXTS, tmp_path, size=40, languages=["de", "fr"])
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    assert list(vocabulary)[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert list(vocabulary)[-2:] == ["<lang:de>", "<lang:fr>"]
    tokenizer.tgt_lang = "fr"
    again = Speech2TextTokenizer.from_pretrained(tmp_path, lang_codes=["de", "fr"], tgt_lang="fr")
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert ids == again(text).input_ids
        assert ids[0] == tokenizer.lang_code_to_id["fr"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_size_that_few_texts_cannot_fill_is_a_limit_only(tmp_path):
    tokenizer = pieces_tokenizer(TEXTS, tmp_path, size=5000)
    assert 25 < len(tokenizer) < 200
    assert tokenizer.decode(tokenizer(TEXTS[0]).input_ids, skip_special_tokens=True) == TEXTS[0]


def test_what_no_vocabulary_can_be_made_of_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="characters that occur at least 1 times, got none"):
        character_tokenizer(["", " "], tmp_path)
    with pytest.raises(ConfigError, match="transcripts to make a vocabulary of pieces from, got none"):
        pieces_tokenizer(["", ""], tmp_path, size=100)
    with pytest.raises(ConfigError, match="vocabulary size that fits 4 transcripts, got 5"):
        pieces_tokenizer(TEXTS, tmp_path, size=5)
