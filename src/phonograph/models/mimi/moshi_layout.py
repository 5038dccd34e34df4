"""The moshi package's names of Mimi's tensors, and the hub's names for them.

One table. Beside the names two things differ there: query, key and value projections are one tensor, and the rotary pairs are
neighbours (2i, 2i + 1), where the hub pairs row i with row i + D / 2 of each head.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor

from phonograph.loading.weights import Renaming
from phonograph.models.mimi.configuration_mimi import MimiConfig

__all__ = ["is_moshi_layout", "moshi_renaming"]

_LAYER = "{side}_transformer.transformer.layers.{i}."
_HUB_LAYER = "{side}_transformer.layers.{i}."
_FUSED = tuple(f"{_HUB_LAYER}self_attn.{part}_proj.weight" for part in "qkv")
_HUB_BOOK = "quantizer.{kind}_residual_vector_quantizer.layers.{{i}}.codebook."

_TABLE: dict[str, str | tuple[str, ...]] = {
    "{side}.model.{i}.conv.conv.{leaf}": "{side}.layers.{i}.conv.{leaf}",
    "{side}.model.{i}.convtr.convtr.{leaf}": "{side}.layers.{i}.conv.{leaf}",
    "{side}.model.{i}.block.{j}.conv.conv.{leaf}": "{side}.layers.{i}.block.{j}.conv.{leaf}",
    "downsample.conv.conv.conv.weight": "downsample.conv.weight",
    "upsample.convtr.convtr.convtr.weight": "upsample.conv.weight",
    _LAYER + "self_attn.in_proj_weight": _FUSED,
    _LAYER + "self_attn.in_projs.0.weight": _FUSED,
    _LAYER + "self_attn.out_proj.weight": _HUB_LAYER + "self_attn.o_proj.weight",
    _LAYER + "self_attn.out_projs.0.weight": _HUB_LAYER + "self_attn.o_proj.weight",
    _LAYER + "linear1.weight": _HUB_LAYER + "mlp.fc1.weight",
    _LAYER + "linear2.weight": _HUB_LAYER + "mlp.fc2.weight",
    _LAYER + "norm1.{leaf}": _HUB_LAYER + "input_layernorm.{leaf}",
    _LAYER + "norm2.{leaf}": _HUB_LAYER + "post_attention_layernorm.{leaf}",
    _LAYER + "layer_scale_1.scale": _HUB_LAYER + "self_attn_layer_scale.scale",
    _LAYER + "layer_scale_2.scale": _HUB_LAYER + "mlp_layer_scale.scale",
    **{
        old: new
        for moshi, kind in (("rvq_first", "semantic"), ("rvq_rest", "acoustic"))
        for old, new in {
            f"quantizer.{moshi}.input_proj.weight": f"quantizer.{kind}_residual_vector_quantizer.input_proj.weight",
            f"quantizer.{moshi}.output_proj.weight": f"quantizer.{kind}_residual_vector_quantizer.output_proj.weight",
            f"quantizer.{moshi}.vq.layers.{{i}}._codebook._initialized": _HUB_BOOK.format(kind=kind) + "initialized",
            f"quantizer.{moshi}.vq.layers.{{i}}._codebook.cluster_usage": _HUB_BOOK.format(kind=kind) + "cluster_usage",
            f"quantizer.{moshi}.vq.layers.{{i}}._codebook.embedding_sum": _HUB_BOOK.format(kind=kind) + "embed_sum",
        }.items()
    },
    # Codebook buffers as the first checkpoints named them
    "quantizer.{kind}.layers.{i}.codebook.inited": "quantizer.{kind}.layers.{i}.codebook.initialized",
    "quantizer.{kind}.layers.{i}.codebook.cluster_size": "quantizer.{kind}.layers.{i}.codebook.cluster_usage",
    "quantizer.{kind}.layers.{i}.codebook.embed_avg": "quantizer.{kind}.layers.{i}.codebook.embed_sum",
}


def is_moshi_layout(names: Iterable[str]) -> bool:
    """Whether tensors are named as the moshi package does."""
    return "encoder.model.0.conv.conv.weight" in names


def moshi_renaming(config: MimiConfig) -> Renaming:
    """The table, with the cut of fused projections for this number and size of heads; hub names pass unchanged."""
    head_dim = config.head_dim
    rows = (config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim)

    def split(fused: Tensor) -> Sequence[Tensor]:
        query, key, value = fused.split([rows[0], rows[1], rows[1]])
        return _half_split(query, head_dim), _half_split(key, head_dim), value

    return Renaming(_TABLE, split)


def _half_split(rows: Tensor, head_dim: int) -> Tensor:
    """Rows of neighbouring rotary pairs -> first members of all pairs, then second members, in each head."""
    pairs = rows.view(-1, head_dim // 2, 2, rows.shape[1])  # (heads, D / 2, 2, H)
    return pairs.transpose(1, 2).reshape(rows.shape)
