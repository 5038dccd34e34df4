"""The bundled English clips as a table to train on, small models for them, and recipes as dictionaries.

Three clips, of three to five seconds: enough to tell a model that learns from one that does not, and learnt in seconds.
"""

import json
from pathlib import Path
from typing import Any

from memorised import SENTENCES

from phonograph.loading.hub import BUNDLED_SPEECH
from phonograph.training.recipe import Recipe, parse_recipe

__all__ = ["CODEC", "NAMES", "PRETRAINING", "RESTLESS", "SEQ2SEQ", "STEADY", "WAV2VEC2", "adamw", "log_of", "recipe", "table"]

NAMES = [name for name in SENTENCES if name.startswith(("kathleen", "librispeech_1688", "ljspeech"))]

STEADY = dict.fromkeys(
    ("layerdrop", "hidden_dropout", "activation_dropout", "attention_dropout", "final_dropout", "feat_proj_dropout"), 0.0
)
"""Nothing drawn at random."""
WAV2VEC2: dict[str, Any] = STEADY | {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "conv_dim": [48] * 4,
    "conv_kernel": [10, 8, 8, 4],
    "conv_stride": [5, 4, 4, 4],
    "conv_bias": True,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 8,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
RESTLESS = WAV2VEC2 | {**dict.fromkeys(STEADY, 0.1), "layerdrop": 0.4, "mask_time_prob": 0.3, "mask_feature_prob": 0.1}
"""Everything drawn at random that there is."""
PRETRAINING = {"num_negatives": 5, "num_codevectors_per_group": 16, "codevector_dim": 32, "proj_codevector_dim": 32}
"""What a model needs besides to be pretrained."""
SEQ2SEQ: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_ffn_dim": 128,
    "encoder_attention_heads": 4,
    "decoder_layers": 1,
    "decoder_ffn_dim": 128,
    "decoder_attention_heads": 4,
    "conv_channels": 64,
    "dropout": 0.0,
}
CODEC: dict[str, Any] = {
    "hidden_size": 32,
    "num_filters": 4,
    "codebook_size": 32,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 3,
    "upsample_groups": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "sliding_window": 50,
}


def table(folder: Path, **columns: Any) -> Path:
    """manifest.jsonl of the clips; `columns` hold a value for each clip, or one for all."""
    rows = []
    for place, name in enumerate(NAMES):
        own = {column: value[place] if isinstance(value, list) else value for column, value in columns.items()}
        rows.append({"audio": str(BUNDLED_SPEECH / f"{name}.flac"), "text": SENTENCES[name].english, "speaker": name, **own})
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def adamw(lr: float, warmup_steps: int = 20) -> dict[str, Any]:
    """One optimiser whose rate climbs and falls."""
    schedule = {"kind": "linear", "warmup_steps": warmup_steps, "final_factor": 0.05}
    return {"main": {"lr": lr, "clip_norm": 1.0, "schedule": schedule}}


def recipe(task: str, table: Path, steps: int = 1, lr: float = 1e-3, *, data: Any = None, **options: Any) -> Recipe:
    """A recipe that trains on all rows of a table in one batch, and judges by the same."""
    batches = {"batch_seconds": 40, "size_ratio": 2.0, "most_padding": 0.6}
    own = {"path": str(table), "held_out": str(table), "batches": batches, "workers": 1, **(data or {})}
    values = {
        "task": task,
        "options": {"data": own, **options},
        "loop": {"steps": steps, "save_minutes": None},
        "optimizers": adamw(lr),
    }
    return parse_recipe(json.dumps(values))


def log_of(path: Path, after: int = 0) -> list[dict[str, Any]]:
    """Losses and figures in a run's log, of what follows a step, without what depends on the clock."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [line for line in lines if line["event"] in ("steps", "figures") and line["step"] > after]
    clock = ("time", "steps_per_second", "audio_per_second")
    return [{name: value for name, value in line.items() if name not in clock} for line in kept]
