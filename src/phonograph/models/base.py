"""What every model of every family has: a configuration, loading and saving, typed outputs.

`PreTrainedModel.from_pretrained` finds a checkpoint (bundled, folder, hub), builds the model without memory for weights and
fills it, tensor by tensor, from memory-mapped safetensors. Names and shapes must match exactly, save that a model with one head
reads the files of its family's other heads and of the base model.

A family says by class attributes what it shares with its files:

    class Wav2Vec2ForCTC(PreTrainedModel):
        config_class = Wav2Vec2Config
        base_model_prefix = "wav2vec2"  # self.wav2vec2 is the base model, everything beside it the head

        def __init__(self, config: Wav2Vec2Config) -> None:
            super().__init__(config)
            ...
            self.post_init()  # last: it initialises
"""

import dataclasses
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from phonograph.configuration import DTYPES, PreTrainedConfig
from phonograph.errors import ConfigError
from phonograph.loading import hub, weights

__all__ = ["ModelOutput", "PreTrainedModel", "as_asked", "beside"]

M = TypeVar("M", bound="PreTrainedModel")
Output = TypeVar("Output", bound="ModelOutput")


@dataclasses.dataclass
class ModelOutput:
    """Base of the typed results: fields by name, or by index among those that are not None, as the ecosystem has it."""

    def keys(self) -> list[str]:
        """Names of the fields that are not None."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]

    def values(self) -> list[Any]:
        """The fields that are not None."""
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """Name and value of the fields that are not None."""
        return [(name, getattr(self, name)) for name in self.keys()]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, as `return_dict=False` gives them."""
        return tuple(self.values())

    def __getitem__(self, key: int | slice | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()


def as_asked(output: Output, return_dict: bool | None, config: PreTrainedConfig) -> Output | tuple[Any, ...]:
    """The output, or the tuple of it; None is as config.return_dict says."""
    as_dict = config.return_dict if return_dict is None else return_dict
    return output if as_dict else output.to_tuple()


class PreTrainedModel(nn.Module):
    """Base of all models: `from_pretrained`, `save_pretrained`, `device`, `dtype`.

    Tensor names in the class attributes are those of the base model, or of the head, without the prefix of the base model.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    base_model_prefix: ClassVar[str] = ""  # attribute under which a model with a head holds the base model
    _may_be_missing: ClassVar[tuple[str, ...]] = ()  # patterns: files may lack these; without effect on inference
    _optional_parts: ClassVar[tuple[str, ...]] = ()  # patterns: files may lack these as they may lack a head
    _other_heads: ClassVar[tuple[str, ...]] = ()  # first parts of names that a model without them leaves in the file
    _tied_weights: ClassVar[dict[str, str]] = {}  # full name -> full name of the parameter it is, if config ties

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"expected a {self.config_class.__name__} to build {type(self).__name__}, got {type(config).__name__}; "
                f"make one with {self.config_class.__name__}(...) or .from_pretrained(...)"
            )
        config.validate()
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and of the audio that the model takes."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Number of values in the parameters (codebooks are buffers and not counted)."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    @classmethod
    def from_pretrained(
        cls: type[M],
        name_or_path: str | os.PathLike[str],
        *,
        config: PreTrainedConfig | None = None,
        dtype: torch.dtype | str | None = None,
        numerics: str = "fast",
        device: torch.device | str = "cpu",
        ignore_mismatched_sizes: bool = False,
        **options: Any,
    ) -> M:
        """Load a model in evaluation mode.

        A file of the base model or of another head of the family will do: a head that is not in the file is initialised, with
        one UserWarning that names its tensors.

        Args:
            name_or_path: name of a bundled model, a folder, a .safetensors file, or a hub id.
            config: used instead of the checkpoint's config.json.
            dtype: type of the weights; None is float32, the type that parity is measured in, whatever the file holds;
                "auto" is the type that config.json names. `torch_dtype` is accepted as another name of it.
            numerics: "exact" computes in float64: rounding is then so far below any decision that results do not depend on
                batch, chunks, threads or machine, at several times the cost. "fast" computes in `dtype`.
            device: where the weights go, tensor by tensor.
            ignore_mismatched_sizes: initialise a head also where the file's has another shape.
            options: HUB_OPTIONS (cache_dir, force_download, local_files_only, token, revision, subfolder),
                attn_implementation, and any field of the configuration.

        Raises:
            CheckpointError: not found, only pickles, or tensors missing, unexpected or of another shape.
            ConfigError: a configuration that no model can be built from.
        """
        where, fields = hub.split_hub_options(options)
        dtype = fields.pop("torch_dtype", dtype)
        files = weights.open_tensors(hub.resolve_weights(name_or_path, **where))
        if config is None:
            config = cls._find_config(name_or_path, files, where, fields)
        elif fields:
            raise ConfigError(f"expected either config=... or fields of it, got both ({', '.join(fields)}); change the config")
        with torch.device("meta"):
            model = cls(config).to(_weights_dtype(_dtype_for(numerics, dtype), config))
        rules = model._load_rules(ignore_mismatched_sizes)
        absent = weights.load_strict(model, files, cls._renaming(config), torch.device(device), rules)
        model._complete(absent, torch.device(device), os.fspath(name_or_path))
        config.name_or_path = os.fspath(name_or_path)
        return model.eval()

    @classmethod
    def _find_config(
        cls,
        name_or_path: str | os.PathLike[str],
        files: weights.TensorFiles,
        where: dict[str, Any],
        fields: dict[str, Any],
    ) -> PreTrainedConfig:
        """The checkpoint's config.json with `fields` changed; families with layouts that have none override this."""
        config, unknown = cls.config_class.from_pretrained(beside(name_or_path), return_unused_kwargs=True, **where, **fields)
        if unknown:
            raise ConfigError(
                f"expected keywords of from_pretrained or fields of {cls.config_class.__name__}, got {', '.join(unknown)}; "
                "check the spelling"
            )
        return config

    @classmethod
    def _renaming(cls, config: PreTrainedConfig) -> weights.Renaming:
        """How tensors of other layouts are found; the hub's own needs nothing."""
        return weights.Renaming({})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors; transformers loads the folder back with equal outputs.

        Raises:
            OutputError: the folder can't be written.
        """
        self._save(folder, self.state_dict())

    def _save(self, folder: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
        config = type(self.config).from_dict(self.config.to_dict())
        config.architectures = [type(self).__name__]
        config.dtype = str(self.dtype).removeprefix("torch.")
        config.save_pretrained(folder)
        tied = self._ties()
        kept = {name: tensor for name, tensor in tensors.items() if name not in tied}
        weights.save_tensors(Path(folder) / hub.WEIGHTS_NAME, kept)

    def _output(self, output: Output, return_dict: bool | None) -> Output | tuple[Any, ...]:
        return as_asked(output, return_dict, self.config)

    # Parts: the base model, the head, tied weights

    @property
    def base_model(self) -> nn.Module:
        """The base model inside a model with a head; the base model is its own."""
        return getattr(self, self.base_model_prefix, self) if self.base_model_prefix else self

    def post_init(self) -> None:
        """Initialise the weights, last in every constructor; a base model inside has initialised its own."""
        for child in self.children():
            if child is not self.base_model:
                child.apply(self._init_weights)
        self._init_weights(self)
        self.tie_weights()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the parameters that lie directly in `module`; torch's own initialisation stays where this does nothing."""

    def tie_weights(self) -> None:
        """Let tied parameters be one and the same object, where the configuration ties them."""
        for tied, source in self._ties().items():
            owner, _, leaf = tied.rpartition(".")
            setattr(self.get_submodule(owner), leaf, self.get_parameter(source))

    def _ties(self) -> dict[str, str]:
        return dict(self._tied_weights) if getattr(self.config, "tie_word_embeddings", False) else {}

    def _load_rules(self, ignore_mismatched_sizes: bool) -> weights.LoadRules:
        missing, parts = _pattern(self._may_be_missing), _pattern(self._optional_parts)
        inside = f"{self.base_model_prefix}."
        headed = self.base_model is not self

        def bare(name: str) -> str:
            return name.removeprefix(inside)

        def is_head(name: str) -> bool:
            return (headed and not name.startswith(inside)) or parts.fullmatch(bare(name)) is not None

        return weights.LoadRules(
            prefix=self.base_model_prefix,
            may_be_missing=lambda name: is_head(name) or missing.fullmatch(bare(name)) is not None,
            may_differ=is_head if ignore_mismatched_sizes else lambda name: False,
            not_needed=lambda name: bare(name).startswith(self._other_heads),
            tied=self._ties(),
        )

    def _complete(self, absent: Sequence[str], device: torch.device, origin: str) -> None:
        """Initialise what a file did not hold, and make the buffers that no file holds."""
        quiet = _pattern(self._may_be_missing)
        named = [name for name in absent if quiet.fullmatch(name.removeprefix(f"{self.base_model_prefix}.")) is None]
        self._initialize(absent, device)
        for module in self.modules():
            reset_buffers = getattr(module, "reset_buffers", None)
            if reset_buffers is not None:
                reset_buffers(device, self.dtype)
        self.tie_weights()
        if named:
            warnings.warn(
                f"expected the tensors of {type(self).__name__} in {origin}, {len(named)} are not there and start from random "
                f"values ({weights.some(named)}); train the model before you use it",
                stacklevel=3,
            )

    @torch.no_grad()
    def _initialize(self, names: Sequence[str], device: torch.device) -> None:
        """Give the tensors of these names memory and fresh values; their neighbours in the same module keep theirs."""
        leaves: dict[str, list[str]] = {}
        for name in names:
            owner, _, leaf = name.rpartition(".")
            leaves.setdefault(owner, []).append(leaf)
        for owner, fresh in leaves.items():
            module = self.get_submodule(owner)
            own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
            kept = {leaf: tensor.clone() for leaf, tensor in own.items() if leaf not in fresh and not tensor.is_meta}
            for leaf in fresh:
                weights.assign(module, leaf, torch.zeros(own[leaf].shape, dtype=own[leaf].dtype, device=device))
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
            self._init_weights(module)
            for leaf, tensor in kept.items():
                getattr(module, leaf).copy_(tensor)


def beside(name_or_path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Where the other files of a checkpoint are: the folder of a .safetensors file, else the checkpoint itself."""
    path = Path(name_or_path)
    return path.parent if path.suffix == ".safetensors" else name_or_path


def _pattern(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or r"(?!)")


def _dtype_for(numerics: str, dtype: torch.dtype | str | None) -> torch.dtype | str | None:
    if numerics not in ("fast", "exact"):
        raise ConfigError(f"expected numerics 'fast' or 'exact', got {numerics!r}; choose one of them")
    if numerics == "fast":
        return dtype
    if dtype not in (None, "float64", torch.float64):
        raise ConfigError(f"expected no dtype beside numerics='exact', which is float64, got {dtype}; leave it out")
    return torch.float64


def _weights_dtype(dtype: torch.dtype | str | None, config: PreTrainedConfig) -> torch.dtype:
    name = (config.dtype if dtype == "auto" else dtype) or "float32"
    found = name if isinstance(name, torch.dtype) else getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or str(found).removeprefix("torch.") not in DTYPES:
        raise ConfigError(f"expected a floating-point dtype ({', '.join(DTYPES)}), got {name!r}; pass one of these")
    return found
