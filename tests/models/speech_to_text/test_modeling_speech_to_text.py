"""Speech2Text's surface: outputs, padding, training, number types, attention, copies, and what it refuses."""

import copy
import pickle
from typing import Any

import pytest
import torch
from random_speech_to_text import CONFIGS, ODD, TINY, assert_close, features, padded, random_speech_to_text, tokens
from torch import Tensor

from phonograph.errors import AudioError, ConfigError, MissingExtraError
from phonograph.models.base import ModelOutput
from phonograph.models.mimi.configuration_mimi import MimiConfig
from phonograph.models.speech_to_text.configuration_speech_to_text import Speech2TextConfig
from phonograph.models.speech_to_text.modeling_speech_to_text import (
    Speech2TextForConditionalGeneration,
    Speech2TextModel,
    shift_tokens_right,
)
from phonograph.nn.packed import reference_path

Model = Speech2TextForConditionalGeneration


@pytest.fixture(scope="module")
def tiny() -> Model:
    return random_speech_to_text(**TINY)


class TestOutputs:
    def test_by_name_index_and_key(self, tiny: Model) -> None:
        output = tiny(features(tiny, 2, 40), decoder_input_ids=tokens(tiny, 2, 5))
        assert output.logits.shape == (2, 5, 50)
        assert output[0] is output.logits is output["logits"]
        assert output.keys() == ["logits", "past_key_values", "encoder_last_hidden_state"]
        assert output.encoder_last_hidden_state.shape == (2, 10, 32)
        assert output.loss is None

    @pytest.mark.parametrize("by_config", [True, False])
    def test_tuples(self, tiny: Model, by_config: bool) -> None:
        model = random_speech_to_text(**TINY, return_dict=False) if by_config else tiny
        argument = {} if by_config else {"return_dict": False}
        clip, target = features(model, 2, 40), tokens(model, 2, 5)
        results = [
            model(clip, labels=target, **argument),
            model.model(clip, decoder_input_ids=target, use_cache=False, **argument),
            model.get_encoder()(clip, **argument),
            model.get_decoder()(target, encoder_hidden_states=torch.zeros(2, 3, 32), use_cache=False, **argument),
        ]
        assert [type(result) for result in results] == [tuple] * 4
        assert [len(result) for result in results] == [3, 2, 1, 1]
        assert isinstance(model.get_encoder()(clip, return_dict=True), ModelOutput)
        assert results[0][0].ndim == 0
        assert model.generate(clip).shape[0] == 2

    @pytest.mark.parametrize("by_config", [True, False])
    def test_all_layers_where_asked(self, tiny: Model, by_config: bool) -> None:
        both = {"output_hidden_states": True, "output_attentions": True}
        model = random_speech_to_text(**TINY, **both) if by_config else tiny
        keywords = {} if by_config else both
        output = model(features(model, 2, 40), decoder_input_ids=tokens(model, 2, 5), **keywords)
        assert [tuple(x.shape) for x in output.encoder_hidden_states] == [(2, 10, 32)] * 3
        assert [tuple(x.shape) for x in output.decoder_hidden_states] == [(2, 5, 32)] * 3
        assert [tuple(x.shape) for x in output.encoder_attentions] == [(2, 4, 10, 10)] * 2
        assert [tuple(x.shape) for x in output.decoder_attentions] == [(2, 4, 5, 5)] * 2
        assert [tuple(x.shape) for x in output.cross_attentions] == [(2, 4, 5, 10)] * 2
        assert torch.equal(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)
        assert not output.decoder_attentions[0].triu(1).any()
        assert_close(output.cross_attentions[1].sum(-1), torch.ones(2, 4, 5))

    @torch.no_grad()
    def test_embeddings_in_place_of_tokens(self, tiny: Model) -> None:
        clip, target = features(tiny, 2, 40), tokens(tiny, 2, 5)
        embedded = tiny.get_input_embeddings()(target)
        expected = tiny(clip, decoder_input_ids=target).logits
        assert_close(tiny(clip, decoder_inputs_embeds=embedded).logits, expected)
        first = tiny(clip, decoder_inputs_embeds=embedded[:, :3])
        second = tiny(clip, decoder_inputs_embeds=embedded[:, 3:], past_key_values=first.past_key_values)
        assert_close(torch.cat([first.logits, second.logits], 1), expected)

    def test_parts(self, tiny: Model) -> None:
        assert tiny.get_encoder() is tiny.model.encoder is tiny.model.get_encoder()
        assert tiny.get_decoder() is tiny.model.decoder is tiny.model.get_decoder()
        assert tiny.get_input_embeddings() is tiny.model.decoder.embed_tokens
        assert tiny.get_output_embeddings() is tiny.lm_head
        assert tiny.main_input_name == "input_features"


class TestPadding:
    @pytest.mark.parametrize("path", ["packed", "reference", "gradients"])
    @pytest.mark.parametrize("name", CONFIGS)
    def test_a_ragged_batch_is_each_clip_alone(self, name: str, path: str) -> None:
        """Whatever the padding is filled with (sevens), and whatever the clip's length is a multiple of."""
        model = random_speech_to_text(**CONFIGS[name])
        clips = [features(model, 1, frames, seed)[0] for seed, frames in enumerate((41, 40, 39, 38, 33, 9, 2, 1))]
        target = tokens(model, len(clips), 5)
        batch, mask = padded(clips)

        def run() -> None:
            output = model(batch, mask, decoder_input_ids=target)
            for item, clip in enumerate(clips):
                alone = model(clip[None], decoder_input_ids=target[item : item + 1])
                steps = alone.encoder_last_hidden_state.shape[1]
                assert steps == model._get_feat_extract_output_lengths(torch.tensor(len(clip)))
                assert_close(output.encoder_last_hidden_state[item, :steps], alone.encoder_last_hidden_state[0])
                assert_close(output.logits[item], alone.logits[0])

        with torch.set_grad_enabled(path == "gradients"):
            if path == "reference":
                with reference_path():
                    run()
            else:
                run()

    @torch.no_grad()
    def test_masks_of_any_type(self, tiny: Model) -> None:
        batch, mask = padded([features(tiny, 1, frames)[0] for frames in (40, 25)])
        target = tokens(tiny, 2, 3)
        expected = tiny(batch, mask, decoder_input_ids=target).logits
        for dtype in (torch.bool, torch.int32, torch.float32):
            assert torch.equal(tiny(batch, mask.to(dtype), decoder_input_ids=target).logits, expected)

    @torch.no_grad()
    def test_a_mask_of_ones_is_none(self, tiny: Model) -> None:
        clip, target = features(tiny, 2, 40), tokens(tiny, 2, 3)
        with_mask = tiny(clip, torch.ones(2, 40), decoder_input_ids=target).logits
        assert_close(with_mask, tiny(clip, decoder_input_ids=target).logits)

    @torch.no_grad()
    def test_later_tokens_change_nothing(self, tiny: Model) -> None:
        clip, target = features(tiny, 1, 40), tokens(tiny, 1, 8)
        changed = torch.cat([target[:, :5], tokens(tiny, 1, 3, seed=9)], 1)
        logits, others = (tiny(clip, decoder_input_ids=ids).logits for ids in (target, changed))
        assert_close(logits[:, :5], others[:, :5])
        assert not torch.allclose(logits[:, 5:], others[:, 5:])


class TestTraining:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_gradients_reach_every_weight(self, name: str) -> None:
        model = random_speech_to_text(**CONFIGS[name]).train()
        clips = padded([features(model, 1, frames)[0] for frames in (40, 31)])
        model(*clips, labels=tokens(model, 2, 6)).loss.backward()
        without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.abs().sum() > 0]
        assert without == []

    def test_smoothed_labels(self, tiny: Model) -> None:
        """(1 - e) of the cross-entropy and e of its mean over all tokens, over the labels that there are."""
        clip, labels = features(tiny, 2, 40), tokens(tiny, 2, 6)
        labels[1, 3:] = -100
        output = tiny(clip, labels=labels, label_smoothing=0.1)
        gains = output.logits.log_softmax(-1)[labels != -100]
        likely = gains.gather(1, labels[labels != -100][:, None]).mean()
        assert_close(output.loss, -(0.9 * likely + 0.1 * gains.mean()))
        assert_close(tiny(clip, labels=labels).loss, -likely)

    def test_labels_are_shifted(self) -> None:
        labels = torch.tensor([[5, 6, 2], [7, 2, -100]])
        assert shift_tokens_right(labels, 1, 2).tolist() == [[2, 5, 6], [2, 7, 2]]
        assert shift_tokens_right(torch.tensor([[-100, 5, 6]]), 1, 4).tolist() == [[4, 1, 5]]
        assert labels.tolist() == [[5, 6, 2], [7, 2, -100]]

    @pytest.mark.parametrize("field", ["dropout", "attention_dropout", "activation_dropout"])
    def test_each_dropout_acts_in_training_only(self, field: str) -> None:
        none = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
        model = random_speech_to_text(**TINY | none | {field: 0.5})
        clip, target = features(model, 1, 40), tokens(model, 1, 5)
        assert torch.equal(self.logits(model, clip, target), self.logits(model, clip, target))
        assert_close(self.logits(model, clip, target), self.logits(random_speech_to_text(**TINY | none), clip, target))
        model.train()
        assert not torch.allclose(self.logits(model, clip, target), self.logits(model, clip, target))

    def test_without_dropout_training_is_evaluation(self) -> None:
        model = random_speech_to_text(**TINY | {"dropout": 0.0})
        clip, target = features(model, 1, 40), tokens(model, 1, 5)
        assert_close(self.logits(model.train(), clip, target), self.logits(model.eval(), clip, target))

    @pytest.mark.parametrize("stack", ["encoder", "decoder"])
    def test_layer_drop(self, stack: str) -> None:
        fields = TINY | {"dropout": 0.0, f"{stack}_layerdrop": 1.0}
        model, other = random_speech_to_text(**fields), random_speech_to_text(**fields)
        with torch.no_grad():
            for weight in getattr(other.model, stack).layers.parameters():
                weight.zero_()
        clip, target = features(model, 1, 40), tokens(model, 1, 5)
        assert not torch.allclose(self.logits(model, clip, target), self.logits(other, clip, target))
        assert_close(self.logits(model.train(), clip, target), self.logits(other.eval(), clip, target))

    def test_layer_drop_by_chance(self) -> None:
        model = random_speech_to_text(**TINY | {"dropout": 0.0, "encoder_layerdrop": 0.5}).train()
        clip = features(model, 1, 40)
        torch.manual_seed(0)
        seen = {float(model.get_encoder()(clip)[0].detach().sum()) for _ in range(40)}
        assert len(seen) == 4  # two layers, each there or not

    @staticmethod
    def logits(model: Model, clip: Tensor, target: Tensor) -> Tensor:
        logits: Tensor = model(clip, decoder_input_ids=target).logits
        return logits.detach()


class TestNumbers:
    @pytest.mark.parametrize("name", ["tiny", *ODD])
    @torch.no_grad()
    def test_packed_is_the_reference(self, name: str) -> None:
        model = random_speech_to_text(**CONFIGS[name])
        clip, target = features(model, 3, 57), tokens(model, 3, 6)
        fast = model(clip, decoder_input_ids=target)
        with reference_path():
            plain = model(clip, decoder_input_ids=target)
        assert_close(fast.logits, plain.logits)
        assert_close(fast.encoder_last_hidden_state, plain.encoder_last_hidden_state)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02), (torch.float64, 1e-5)])
    @torch.no_grad()
    def test_number_types(self, tiny: Model, dtype: torch.dtype, tolerance: float) -> None:
        model = copy.deepcopy(tiny).to(dtype)
        clip, target = features(tiny, 2, 40), tokens(tiny, 2, 5)
        logits = model(clip.to(dtype), decoder_input_ids=target).logits
        assert logits.dtype == dtype
        assert_close(logits.float(), tiny(clip, decoder_input_ids=target).logits, tolerance)

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    @torch.no_grad()
    def test_attention_implementations_agree(self, tiny: Model, implementation: str) -> None:
        model = copy.deepcopy(tiny)
        model.set_attn_implementation(implementation)
        batch, mask = padded([features(tiny, 1, frames)[0] for frames in (40, 25)])
        target = tokens(tiny, 2, 5)
        assert_close(model(batch, mask, decoder_input_ids=target).logits, tiny(batch, mask, decoder_input_ids=target).logits)

    @torch.no_grad()
    def test_copies_and_pickles(self, tiny: Model) -> None:
        clip = features(tiny, 2, 40)
        expected = tiny.generate(clip)
        for other in (copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))):
            assert torch.equal(other.generate(clip), expected)
            assert other.lm_head.weight is other.model.decoder.embed_tokens.weight

    def test_meta_device(self) -> None:
        with torch.device("meta"):
            model = Model(Speech2TextConfig(**TINY))
            output = model(torch.zeros(2, 40, 10), decoder_input_ids=torch.zeros(2, 5, dtype=torch.int64))
        assert output.logits.shape == (2, 5, 50)
        filled = model.to_empty(device="cpu")
        filled.load_state_dict(random_speech_to_text(**TINY).state_dict())
        filled.tie_weights()
        clip, target = features(filled, 1, 40), tokens(filled, 1, 5)
        expected = random_speech_to_text(**TINY)(clip, decoder_input_ids=target).logits
        assert_close(filled.eval()(clip, decoder_input_ids=target).logits, expected)


class TestRefuses:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"input_features": torch.zeros(1, 40, 9)}, AudioError, r"expected features of shape \(batch, frames, 10\)"),
            ({"input_features": torch.zeros(40, 10)}, AudioError, r"got \(40, 10\); Speech2TextFeatureExtractor makes that"),
            ({"input_features": torch.zeros(1, 0, 10)}, AudioError, "with at least one frame"),
            ({"input_features": torch.zeros(1, 40, 10).half()}, AudioError, "in the model's torch.float32, got torch.float16"),
            ({"attention_mask": torch.ones(1, 39)}, AudioError, r"attention_mask of shape \(1, 40\), got \(1, 39\)"),
            ({"attention_mask": torch.ones(1, 40).tril(-1)}, AudioError, "at least one frame in every clip"),
            ({"attention_mask": torch.ones(1, 40).triu(1)}, AudioError, "padding elsewhere; pad on the right"),
            ({"input_features": None}, ConfigError, "expected input_features or encoder_outputs, got neither"),
            ({"decoder_input_ids": None}, ConfigError, "expected either decoder_input_ids or decoder_inputs_embeds"),
            ({"decoder_inputs_embeds": torch.zeros(1, 2, 32)}, ConfigError, "got both or neither; pass one"),
        ],
    )
    def test_arguments(self, tiny: Model, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
        usual = {"input_features": torch.zeros(1, 40, 10), "decoder_input_ids": torch.zeros(1, 2, dtype=torch.int64)}
        for model in (tiny, tiny.model):
            with pytest.raises(error, match=message):
                model(**usual | arguments)

    def test_labels_without_padding(self) -> None:
        with pytest.raises(
            ConfigError, match="expected pad_token_id and decoder_start_token_id to shift labels, got None and 2"
        ):
            shift_tokens_right(torch.zeros(1, 2, dtype=torch.int64), None, 2)

    def test_attention(self, tiny: Model) -> None:
        with pytest.raises(ConfigError, match="expected attn_implementation eager, sdpa or flash_attention_2, got 'fast'"):
            tiny.set_attn_implementation("fast")
        try:
            import flash_attn  # noqa: F401
        except ImportError:
            with pytest.raises(MissingExtraError, match="flash-attn"):
                Model(Speech2TextConfig(**TINY, attn_implementation="flash_attention_2"))

    def test_another_configuration(self) -> None:
        with pytest.raises(ConfigError, match="expected a Speech2TextConfig to build Speech2TextModel, got MimiConfig"):
            Speech2TextModel(MimiConfig())
