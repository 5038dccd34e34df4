"""Make tests/oracles/mimi_tiny: a checkpoint written by transformers, and what transformers computes from it.

    python tests/oracles/make_mimi_goldens.py

The folder holds config.json and model.safetensors (float16, so that it stays small; read as float32), and expected.safetensors
with inputs and results in float32 and the versions that made them in its metadata. Each input is named by its length.
"""

from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "mimi_tiny"
LENGTHS = (1, 47, 48, 49, 1000, 3000)
FIELDS = {
    "hidden_size": 32,
    "num_filters": 4,
    "codebook_size": 64,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 4,
    "upsample_groups": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 10,
    "upsampling_ratios": [4, 3, 2],
}


def randomise(model: transformers.MimiModel) -> None:
    """Values in which every tensor matters, rounded to float16."""
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    for name, tensor in state.items():
        draw = torch.randn(tensor.shape, generator=generator)
        if name.endswith(".scale"):
            tensor.copy_(0.3 * draw)
        elif name.endswith("layernorm.weight"):
            tensor.copy_(1 + 0.1 * draw)
        elif name.endswith("bias"):
            tensor.copy_(0.1 * draw)
        elif name.endswith("cluster_usage"):
            tensor.copy_(1 + draw.abs())
        elif name.endswith("initialized"):
            tensor.fill_(1)
        elif name.endswith("embed_sum"):
            tensor.copy_(0.7 * draw)
        else:  # weights stay as initialised, which keeps the signal's size
            continue
    model.load_state_dict({name: tensor.half().float() for name, tensor in state.items()})


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model = transformers.MimiModel(transformers.MimiConfig(**FIELDS)).eval()
    randomise(model)
    expected = {}
    for length in LENGTHS:
        audio = 0.3 * torch.randn(1, 1, length, generator=torch.Generator().manual_seed(length))
        codes = model.encode(audio).audio_codes
        expected |= {
            f"{length}.audio": audio,
            f"{length}.latents": model.encoder(audio).latents.transpose(1, 2).contiguous(),
            f"{length}.codes": codes.to(torch.int16),
            f"{length}.decoded": model.decode(codes).audio_values,
        }
    distinct = torch.cat([codes.flatten() for name, codes in expected.items() if name.endswith(".codes")]).unique().numel()
    assert distinct > 40, f"only {distinct} codes in use"
    model.half().save_pretrained(FOLDER)
    versions = {package: version(package) for package in ("transformers", "torch")}
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, FOLDER / "expected.safetensors", versions)


if __name__ == "__main__":
    main()
