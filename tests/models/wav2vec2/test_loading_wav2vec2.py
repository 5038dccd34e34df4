"""Checkpoints in and out: both weight-norm namings, files of other heads, languages, and files that don't fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import peer
from random_wav2vec2 import CLASSES, STABLE, TINY, assert_close, ragged_batch, random_wav2vec2
from safetensors.torch import load_file, save_file

from phonograph.errors import CheckpointError, ConfigError
from phonograph.models.wav2vec2 import modeling_wav2vec2
from phonograph.models.wav2vec2.modeling_wav2vec2 import (
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
)

transformers = peer("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

MMS = TINY | STABLE | {"adapter_attn_dim": 6}


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CTC checkpoint of the group family."""
    random_wav2vec2("Wav2Vec2ForCTC", **TINY).save_pretrained(tmp_path)
    return tmp_path


class TestWeightNorm:
    @pytest.mark.parametrize("name", ["Wav2Vec2Model", "Wav2Vec2ForCTC"])
    def test_either_naming_is_written_and_read(self, name: str, tmp_path: Path) -> None:
        model = random_wav2vec2(name, **TINY)
        prefix = "" if name == "Wav2Vec2Model" else "wav2vec2."
        new = {f"{prefix}encoder.pos_conv_embed.conv.parametrizations.weight.original{number}" for number in (0, 1)}
        old = {f"{prefix}encoder.pos_conv_embed.conv.weight_{letter}" for letter in "gv"}
        names = []
        for option in (False, True):
            model.save_pretrained(tmp_path, old_weight_norm_names=option)
            names.append(set(load_file(tmp_path / "model.safetensors")))
            loaded = type(model).from_pretrained(tmp_path)
            for key, value in model.state_dict().items():
                assert torch.equal(value, loaded.state_dict()[key]), key
        assert names[0] - names[1] == new
        assert names[1] - names[0] == old

    def test_old_names_of_another_head(self, tmp_path: Path) -> None:
        model = random_wav2vec2("Wav2Vec2ForCTC", **TINY)
        model.save_pretrained(tmp_path, old_weight_norm_names=True)
        base = Wav2Vec2Model.from_pretrained(tmp_path)
        assert torch.equal(base.encoder.pos_conv_embed.conv.weight, model.wav2vec2.encoder.pos_conv_embed.conv.weight)


class TestOtherHeads:
    @pytest.mark.filterwarnings("ignore:expected the tensors of")
    @pytest.mark.parametrize("there", CLASSES)
    @pytest.mark.parametrize("wanted", CLASSES)
    def test_every_class_reads_the_files_of_every_other(self, wanted: str, there: str, tmp_path: Path) -> None:
        saved = random_wav2vec2(there, **TINY)
        saved.save_pretrained(tmp_path)
        model = getattr(modeling_wav2vec2, wanted).from_pretrained(tmp_path, ignore_mismatched_sizes=True)
        ours, theirs = model.base_model.state_dict(), saved.base_model.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
        assert not any(parameter.is_meta for parameter in model.parameters())
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())

    def test_a_new_head_is_announced_once_and_initialised(self, folder: Path) -> None:
        torch.manual_seed(0)
        with pytest.warns(UserWarning, match="expected the tensors of") as caught:
            model = Wav2Vec2ForSequenceClassification.from_pretrained(folder)
        assert len(caught) == 1
        message = str(caught[0].message)
        assert "expected the tensors of Wav2Vec2ForSequenceClassification in" in message
        assert "4 are not there and start from random values" in message
        assert "(projector.weight, projector.bias, classifier.weight, classifier.bias); train the model before" in message
        assert caught[0].filename == __file__
        assert model.projector.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not model.projector.bias.any()

    def test_half_a_head_keeps_what_is_there(self, folder: Path) -> None:
        kept = load_file(folder / "model.safetensors")["lm_head.weight"]
        rewrite(folder, lambda tensors: tensors.pop("lm_head.bias"))
        with pytest.warns(UserWarning, match=r"1 are not there and start from random values \(lm_head.bias\)"):
            model = Wav2Vec2ForCTC.from_pretrained(folder)
        assert torch.equal(model.lm_head.weight, kept)
        assert not model.lm_head.bias.any()

    def test_a_vector_for_masked_steps_is_made_without_a_word(self, folder: Path) -> None:
        rewrite(folder, lambda tensors: tensors.pop("wav2vec2.masked_spec_embed"))
        model = Wav2Vec2ForCTC.from_pretrained(folder)  # warnings are errors here
        assert 0 < model.wav2vec2.masked_spec_embed.std() < 1

    def test_a_model_that_masks_nothing_leaves_it_in_the_file(self, folder: Path) -> None:
        assert Wav2Vec2ForCTC.from_pretrained(folder, mask_time_prob=0.0).wav2vec2.masked_spec_embed is None

    def test_an_adapter_is_new_as_a_head_is(self, folder: Path) -> None:
        with pytest.warns(UserWarning, match=r"6 are not there .*\(wav2vec2.adapter.layers.0.conv.weight, .*, and 1 more\)"):
            model = Wav2Vec2ForCTC.from_pretrained(folder, add_adapter=True)
        assert model(ragged_batch()[0]).logits.shape == (4, 7, 11)

    def test_pretraining_to_ctc_as_users_do(self, tmp_path: Path) -> None:
        saved = random_wav2vec2("Wav2Vec2ForPreTraining", **TINY)
        saved.save_pretrained(tmp_path)
        with pytest.warns(UserWarning, match=r"2 are not there .*\(lm_head.weight, lm_head.bias\)"):
            model = Wav2Vec2ForCTC.from_pretrained(tmp_path, vocab_size=30, ctc_loss_reduction="mean")
        assert model.lm_head.out_features == 30
        model.save_pretrained(tmp_path)
        with pytest.warns(UserWarning, match=r"7 are not there .*\(quantizer.codevectors, quantizer.weight_proj.weight"):
            again = Wav2Vec2ForPreTraining.from_pretrained(tmp_path)
        assert 0 < again.quantizer.codevectors.min() < again.quantizer.codevectors.max() < 1


class TestFaults:
    def test_a_base_that_lacks_something(self, folder: Path) -> None:
        rewrite(folder, lambda tensors: tensors.pop("wav2vec2.encoder.layers.1.attention.q_proj.bias"))
        with pytest.raises(CheckpointError, match=r"got 1 missing \(wav2vec2.encoder.layers.1.attention.q_proj.bias\); check"):
            Wav2Vec2ForCTC.from_pretrained(folder)
        with pytest.raises(CheckpointError, match=r"got 1 missing \(encoder.layers.1.attention.q_proj.bias\); check"):
            Wav2Vec2Model.from_pretrained(folder)

    def test_a_tensor_of_no_head(self, folder: Path) -> None:
        rewrite(folder, lambda tensors: tensors.update({"wav2vec2.encoder.gate": torch.zeros(1)}))
        with pytest.raises(CheckpointError, match=r"got 1 unexpected \(wav2vec2.encoder.gate\); check that config.json"):
            Wav2Vec2ForCTC.from_pretrained(folder)

    def test_a_configuration_of_fewer_layers(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match=r"16 unexpected \(wav2vec2.encoder.layers.1.attention"):
            Wav2Vec2ForCTC.from_pretrained(folder, num_hidden_layers=1)

    def test_a_head_of_another_size(self, folder: Path) -> None:
        match = r"2 of another shape \(lm_head.bias \[11\] instead of \[\[7\]\], lm_head.weight"
        with pytest.raises(CheckpointError, match=match):
            Wav2Vec2ForCTC.from_pretrained(folder, vocab_size=7)
        with pytest.warns(UserWarning, match=r"2 are not there .*\(lm_head.weight, lm_head.bias\)"):
            model = Wav2Vec2ForCTC.from_pretrained(folder, vocab_size=7, ignore_mismatched_sizes=True)
        assert model(ragged_batch()[0]).logits.shape == (4, 49, 7)

    def test_a_base_of_another_size(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match="of another shape"):
            Wav2Vec2ForCTC.from_pretrained(folder, intermediate_size=50, ignore_mismatched_sizes=True)


@torch.no_grad()
def test_exact_numerics(folder: Path) -> None:
    exact, plain = Wav2Vec2ForCTC.from_pretrained(folder, numerics="exact"), Wav2Vec2ForCTC.from_pretrained(folder)
    audio, mask = ragged_batch()
    found = exact(audio.double(), mask).logits
    assert found.dtype is torch.float64
    assert_close(plain(audio, mask).logits.double(), found, 1e-5)


TOKENS = {"fra": 13, "deu": 7, "eng": 11}


class TestLanguages:
    """The layout of facebook/mms-1b-all: a checkpoint, and beside it a file for each language."""

    @pytest.fixture
    def mms(self, tmp_path: Path) -> Path:
        random_wav2vec2("Wav2Vec2ForCTC", **MMS).save_pretrained(tmp_path)
        for number, (language, tokens) in enumerate(TOKENS.items(), 1):
            model = random_wav2vec2("Wav2Vec2ForCTC", seed=number, **MMS | {"vocab_size": tokens})
            assert isinstance(model, Wav2Vec2ForCTC)
            save_file({k: v.detach() for k, v in model._get_adapters().items()}, tmp_path / f"adapter.{language}.safetensors")
        return tmp_path

    def assert_is(self, model: Wav2Vec2ForCTC, language: str, folder: Path) -> None:
        for name, value in load_file(folder / f"adapter.{language}.safetensors").items():
            assert torch.equal(model.get_parameter(name), value), name
        assert model.lm_head.out_features == model.config.vocab_size == TOKENS[language]
        assert model.target_lang == language

    @pytest.mark.parametrize("language", TOKENS)
    @torch.no_grad()
    def test_the_language_wins_over_the_checkpoint(self, language: str, mms: Path) -> None:
        model = Wav2Vec2ForCTC.from_pretrained(mms, target_lang=language)
        self.assert_is(model, language, mms)
        audio, mask = ragged_batch()
        theirs = transformers.Wav2Vec2ForCTC.from_pretrained(mms)
        theirs.load_adapter(language)
        assert_close(model(audio, mask).logits, theirs(audio, attention_mask=mask).logits)

    @torch.no_grad()
    def test_one_language_after_another(self, mms: Path) -> None:
        model = Wav2Vec2ForCTC.from_pretrained(mms)
        assert model.target_lang is None
        audio = ragged_batch()[0]
        own = model(audio).logits
        for language in ("fra", "deu", "fra", "eng"):
            model.load_adapter(language)
            self.assert_is(model, language, mms)
            fresh = Wav2Vec2ForCTC.from_pretrained(mms, target_lang=language)
            assert torch.equal(model(audio).logits, fresh(audio).logits)
        assert not torch.equal(model(audio).logits, own)

    def test_beside_a_file(self, mms: Path) -> None:
        self.assert_is(Wav2Vec2ForCTC.from_pretrained(mms / "model.safetensors", target_lang="deu"), "deu", mms)

    def test_a_language_that_is_loaded_need_not_be_again(self, mms: Path) -> None:
        model = Wav2Vec2ForCTC.from_pretrained(mms, target_lang="fra")
        model.lm_head.bias.data.zero_()
        model.load_adapter("fra", force_load=False)
        assert not model.lm_head.bias.any()
        model.load_adapter("fra")
        assert model.lm_head.bias.any()

    def test_types_and_saving(self, mms: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        model = Wav2Vec2ForCTC.from_pretrained(mms, target_lang="fra", dtype="bfloat16")
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        folder = tmp_path_factory.mktemp("fra")
        model.save_pretrained(folder)
        assert json.loads((folder / "config.json").read_text())["vocab_size"] == 13
        again = Wav2Vec2ForCTC.from_pretrained(folder, dtype="auto")
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())

    def test_what_a_new_language_is_trained_from(self, mms: Path) -> None:
        model = Wav2Vec2ForCTC.from_pretrained(mms)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.init_adapter_layers()
        adapters = model._get_adapters()
        theirs = transformers.Wav2Vec2ForCTC.from_pretrained(mms)
        assert list(adapters) == list(theirs._get_adapters())
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]) is (name not in adapters), name
        model.freeze_base_model()
        for parameter in adapters.values():
            parameter.requires_grad = True
        trained = {name for name, value in model.named_parameters() if value.requires_grad}
        assert trained == set(adapters)

    def test_adapters_added_to_a_checkpoint_without(self, tmp_path: Path) -> None:
        random_wav2vec2("Wav2Vec2ForCTC", **TINY | STABLE).save_pretrained(tmp_path)
        with pytest.warns(UserWarning, match=r"12 are not there .*layers.0.adapter_layer.norm.weight"):
            model = Wav2Vec2ForCTC.from_pretrained(tmp_path, adapter_attn_dim=6)
        assert model._get_adapters()

    def test_no_such_language(self, mms: Path) -> None:
        with pytest.raises(CheckpointError, match=r"expected a file adapter.xyz.safetensors in .*, found none"):
            Wav2Vec2ForCTC.from_pretrained(mms, target_lang="xyz")

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda tensors: tensors.pop("lm_head.bias"), r"expected a head \(lm_head.weight, lm_head.bias\) in .*, got none"),
            (lambda tensors: tensors.pop("lm_head.weight"), r"1 missing \(lm_head.weight\)"),
            (lambda tensors: tensors.update(x=torch.zeros(1)), r"1 unexpected \(x\)"),
            (
                lambda tensors: tensors.update({"lm_head.weight": torch.zeros(13, 4)}),
                r"1 of another shape \(lm_head.weight \[13, 4\]",
            ),
            (
                lambda tensors: tensors.pop("wav2vec2.encoder.layers.1.adapter_layer.linear_1.bias"),
                r"1 missing \(wav2vec2.encoder.layers.1.adapter_layer.linear_1.bias\)",
            ),
        ],
    )
    def test_a_file_that_does_not_fit_changes_nothing(self, mms: Path, change: Any, match: str) -> None:
        path = mms / "adapter.fra.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        model = Wav2Vec2ForCTC.from_pretrained(mms)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(CheckpointError, match=match):
            model.load_adapter("fra")
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert model.config.vocab_size == 11

    def test_a_model_without_adapters(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="got adapter_attn_dim=None, do_stable_layer_norm=False; load one such"):
            Wav2Vec2ForCTC.from_pretrained(folder, target_lang="fra")
