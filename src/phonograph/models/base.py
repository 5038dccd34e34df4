"""What every model of every family has: a configuration, loading and saving, typed outputs.

`PreTrainedModel.from_pretrained` finds a checkpoint (bundled, folder, hub), builds the model without memory for weights and
fills it, tensor by tensor, from memory-mapped safetensors. Names and shapes must match exactly.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from phonograph.configuration import DTYPES, PreTrainedConfig
from phonograph.errors import ConfigError
from phonograph.loading import hub, weights

__all__ = ["ModelOutput", "PreTrainedModel"]

M = TypeVar("M", bound="PreTrainedModel")


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


class PreTrainedModel(nn.Module):
    """Base of all models: `from_pretrained`, `save_pretrained`, `device`, `dtype`."""

    config_class: ClassVar[type[PreTrainedConfig]]

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
        **options: Any,
    ) -> M:
        """Load a model in evaluation mode.

        Args:
            name_or_path: name of a bundled model, a folder, a .safetensors file, or a hub id.
            config: used instead of the checkpoint's config.json.
            dtype: type of the weights; None is float32, the type that parity is measured in, whatever the file holds;
                "auto" is the type that config.json names. `torch_dtype` is accepted as another name of it.
            numerics: "exact" computes in float64: rounding is then so far below any decision that results do not depend on
                batch, chunks, threads or machine, at several times the cost. "fast" computes in `dtype`.
            device: where the weights go, tensor by tensor.
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
        weights.load_strict(model, files, cls._renaming(config), torch.device(device))
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
        path = Path(name_or_path)
        beside = path.parent if path.suffix == ".safetensors" else name_or_path
        config, unknown = cls.config_class.from_pretrained(beside, return_unused_kwargs=True, **where, **fields)
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
        config = type(self.config).from_dict(self.config.to_dict())
        config.architectures = [type(self).__name__]
        config.dtype = str(self.dtype).removeprefix("torch.")
        config.save_pretrained(folder)
        weights.save_tensors(Path(folder) / hub.WEIGHTS_NAME, self.state_dict())


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
