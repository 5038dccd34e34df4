"""What all models share, on a family made for it: heads, tied weights, buffers, initialisation, outputs."""

from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from phonograph.configuration import PreTrainedConfig, Rule
from phonograph.errors import CheckpointError
from phonograph.models.base import ModelOutput, PreTrainedModel


class TinyConfig(PreTrainedConfig):
    model_type = "tiny"
    size: Annotated[int, Rule("width", minimum=1)]
    classes: Annotated[int, Rule("classes", minimum=1)]
    tie_word_embeddings: Annotated[bool, Rule("head is the embedding")]

    def __init__(self, size: int = 4, classes: int = 6, tie_word_embeddings: bool = False, **kwargs: Any) -> None:
        self._assign_fields(locals())
        super().__init__(**kwargs)


class TinyBase(PreTrainedModel):
    config_class = TinyConfig
    base_model_prefix = "tiny"
    _may_be_missing = ("mark",)
    _optional_parts = (r"extra\..*",)
    _other_heads = ("head.", "out.")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.classes, config.size)
        self.norm = nn.LayerNorm(config.size)
        self.mark = nn.Parameter(torch.empty(config.size))
        self.extra = nn.Linear(config.size, config.size) if config.return_dict is False else None
        self.table = Table(config.size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.Linear):
            nn.init.constant_(module.weight, 0.5)
        if module is self:
            nn.init.constant_(self.mark, 7)


class Table(nn.Module):
    """A buffer that no file holds."""

    weights: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("weights", torch.arange(size, dtype=torch.float32), persistent=False)

    def reset_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        self.register_buffer("weights", torch.arange(self.size, device=device, dtype=dtype), persistent=False)


class TinyHeaded(PreTrainedModel):
    config_class = TinyConfig
    base_model_prefix = "tiny"
    _may_be_missing = TinyBase._may_be_missing
    _optional_parts = TinyBase._optional_parts
    _tied_weights = {"head.weight": "tiny.embed.weight"}  # noqa: RUF012 (a ClassVar of the base)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.tiny = TinyBase(config)
        self.head = nn.Linear(config.size, config.classes)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.25)
            nn.init.constant_(module.bias, 0.125)


def randomised(model: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def test_each_model_initialises_its_own_part() -> None:
    model = TinyHeaded(TinyConfig())
    assert model.base_model is model.tiny
    assert model.tiny.base_model is model.tiny
    assert (model.tiny.embed.weight == 0.5).all()
    assert (model.tiny.mark == 7).all()
    assert (model.head.weight == 0.25).all()


class TestHeads:
    def test_base_to_head(self, tmp_path: Path) -> None:
        randomised(TinyBase(TinyConfig())).save_pretrained(tmp_path)
        with pytest.warns(
            UserWarning,
            match=r"expected the tensors of TinyHeaded in .*, 2 are not there and start from random "
            r"values \(head.weight, head.bias\); train the model before you use it",
        ) as caught:
            model = TinyHeaded.from_pretrained(tmp_path)
        assert len(caught) == 1
        assert (model.head.weight == 0.25).all()
        assert torch.equal(model.tiny.embed.weight, load_file(tmp_path / "model.safetensors")["embed.weight"])

    def test_head_to_base(self, tmp_path: Path) -> None:
        saved = randomised(TinyHeaded(TinyConfig()))
        saved.save_pretrained(tmp_path)
        model = TinyBase.from_pretrained(tmp_path)
        assert torch.equal(model.embed.weight, saved.tiny.embed.weight)

    def test_half_a_module(self, tmp_path: Path) -> None:
        saved = randomised(TinyHeaded(TinyConfig()))
        saved.save_pretrained(tmp_path)
        stored = load_file(tmp_path / "model.safetensors")
        del stored["head.bias"]
        save_file(stored, tmp_path / "model.safetensors")
        with pytest.warns(UserWarning, match=r"1 are not there .*\(head.bias\)"):
            model = TinyHeaded.from_pretrained(tmp_path)
        assert torch.equal(model.head.weight, saved.head.weight)
        assert (model.head.bias == 0.125).all()

    def test_what_has_no_effect_on_inference_is_made_without_a_word(self, tmp_path: Path) -> None:
        randomised(TinyHeaded(TinyConfig())).save_pretrained(tmp_path)
        stored = load_file(tmp_path / "model.safetensors")
        del stored["tiny.mark"]
        save_file(stored, tmp_path / "model.safetensors")
        assert (TinyBase.from_pretrained(tmp_path).mark == 7).all()
        assert not TinyHeaded.from_pretrained(tmp_path).tiny.mark.is_meta

    def test_optional_parts_are_announced_as_heads_are(self, tmp_path: Path) -> None:
        randomised(TinyBase(TinyConfig())).save_pretrained(tmp_path)
        with pytest.warns(UserWarning, match=r"2 are not there .*\(extra.weight, extra.bias\)"):
            model = TinyBase.from_pretrained(tmp_path, return_dict=False)
        assert (model.extra.weight == 0.5).all()
        assert model.extra.bias.any(), "torch's own initialisation, where the family has none"

    def test_a_base_is_never_made_up(self, tmp_path: Path) -> None:
        randomised(TinyHeaded(TinyConfig())).save_pretrained(tmp_path)
        stored = load_file(tmp_path / "model.safetensors")
        del stored["tiny.norm.bias"]
        save_file(stored, tmp_path / "model.safetensors")
        for model_class in (TinyHeaded, TinyBase):
            with pytest.raises(CheckpointError, match=r"got 1 missing \(.*norm.bias\)"):
                model_class.from_pretrained(tmp_path)

    def test_of_another_size(self, tmp_path: Path) -> None:
        randomised(TinyHeaded(TinyConfig())).save_pretrained(tmp_path)
        stored = load_file(tmp_path / "model.safetensors")
        stored["head.weight"] = torch.zeros(9, 4)
        save_file(stored, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"1 of another shape \(head.weight \[9, 4\] instead of \[\[6, 4\]\]\)"):
            TinyHeaded.from_pretrained(tmp_path)
        with pytest.warns(UserWarning, match=r"1 are not there .*\(head.weight\)"):
            model = TinyHeaded.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
        assert (model.head.weight == 0.25).all()
        assert torch.equal(model.head.bias, stored["head.bias"])


class TestTies:
    @staticmethod
    def stored(path: Path) -> dict[str, torch.Tensor]:
        return load_file(path / "model.safetensors")

    def test_one_object_before_and_after(self, tmp_path: Path) -> None:
        model = TinyHeaded(TinyConfig(tie_word_embeddings=True))
        assert model.head.weight is model.tiny.embed.weight
        randomised(model).save_pretrained(tmp_path)
        assert set(self.stored(tmp_path)) == set(model.state_dict()) - {"head.weight"}
        loaded = TinyHeaded.from_pretrained(tmp_path)
        assert loaded.head.weight is loaded.tiny.embed.weight
        assert torch.equal(loaded.head.weight, model.tiny.embed.weight)

    @pytest.mark.parametrize("there", [("head.weight",), ("head.weight", "tiny.embed.weight")])
    def test_files_that_hold_the_other_or_both(self, there: tuple[str, ...], tmp_path: Path) -> None:
        model = randomised(TinyHeaded(TinyConfig(tie_word_embeddings=True)))
        model.save_pretrained(tmp_path)
        stored = self.stored(tmp_path)
        value = stored.pop("tiny.embed.weight")
        save_file(stored | {name: value.clone() for name in there}, tmp_path / "model.safetensors")
        loaded = TinyHeaded.from_pretrained(tmp_path)
        assert loaded.head.weight is loaded.tiny.embed.weight
        assert torch.equal(loaded.head.weight, value)

    def test_a_file_of_the_base_has_a_tied_head(self, tmp_path: Path) -> None:
        randomised(TinyBase(TinyConfig(tie_word_embeddings=True))).save_pretrained(tmp_path)
        with pytest.warns(UserWarning, match=r"1 are not there .*\(head.bias\)"):
            model = TinyHeaded.from_pretrained(tmp_path)
        assert model.head.weight is model.tiny.embed.weight

    def test_only_if_the_configuration_ties(self, tmp_path: Path) -> None:
        model = randomised(TinyHeaded(TinyConfig()))
        assert model.head.weight is not model.tiny.embed.weight
        model.save_pretrained(tmp_path)
        assert set(self.stored(tmp_path)) == set(model.state_dict())
        loaded = TinyHeaded.from_pretrained(tmp_path)
        assert torch.equal(loaded.head.weight, model.head.weight)
        assert not torch.equal(loaded.head.weight, loaded.tiny.embed.weight)


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_buffers_that_no_file_holds(dtype: str | None, tmp_path: Path) -> None:
    TinyBase(TinyConfig()).save_pretrained(tmp_path)
    model = TinyBase.from_pretrained(tmp_path, dtype=dtype)
    assert torch.equal(model.table.weights, torch.arange(4, dtype=model.dtype))
    assert "table.weights" not in model.state_dict()


def test_outputs_by_name_or_as_a_tuple() -> None:
    model = TinyBase(TinyConfig())

    class Result(ModelOutput):
        pass

    result = Result()
    assert model._output(result, None) is result
    assert model._output(result, False) == ()
    model.config.return_dict = False
    assert model._output(result, None) == ()
