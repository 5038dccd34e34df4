"""The closed formulas against models that are built and run."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from phonograph.models.mimi.configuration_mimi import MimiConfig
from phonograph.models.mimi.cost_mimi import mimi_cost
from phonograph.models.mimi.modeling_mimi import MimiModel
from phonograph.nn.packed import reference_path

SMALL = {
    "hidden_size": 64,
    "num_filters": 8,
    "upsampling_ratios": [4, 3, 2],
    "sampling_rate": 1200,
    "codebook_size": 128,
    "codebook_dim": 32,
    "vector_quantization_hidden_dimension": 32,
    "num_quantizers": 6,
    "upsample_groups": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 50,
}
CONFIGS = {
    "mimi-mini": MimiConfig.from_pretrained("mimi-mini"),
    "default": MimiConfig(),
    "small": MimiConfig(**SMALL),
    "shortcut": MimiConfig(**SMALL, use_conv_shortcut=True, num_residual_layers=2, audio_channels=2, attention_bias=True),
    "not resampled": MimiConfig(**SMALL, frame_rate=50),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model(name: str) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        model = MimiModel(config)
    assert mimi_cost(config).parameters == model.num_parameters()
    assert mimi_cost(config).codebook_values == sum(buffer.numel() for buffer in model.buffers())


@pytest.mark.parametrize("name", ["mimi-mini", "small", "shortcut", "not resampled"])
def test_operations_are_those_that_torch_counts(name: str) -> None:
    config = CONFIGS[name]
    model = MimiModel(config).eval()
    model.set_attn_implementation("eager")  # the counter sees no operations inside the fused kernel
    # One pass over exactly a window of latent steps computes every score, as a long stream does.
    seconds = config.sliding_window * model.frame_samples / config.sampling_rate
    seconds *= config.frame_rate / config.encodec_frame_rate
    audio = torch.zeros(1, config.audio_channels, round(seconds * config.sampling_rate))
    # The fast path calls operators that the counter does not know.
    with torch.inference_mode(), reference_path(), FlopCounterMode(display=False) as encoding:
        codes = model.encode(audio, return_dict=True).audio_codes
    with torch.inference_mode(), reference_path(), FlopCounterMode(display=False) as decoding:
        model.decode(codes, return_dict=True)
    cost = mimi_cost(config)
    assert encoding.get_total_flops() / seconds == pytest.approx(cost.encode_flops_per_second, rel=0.03)
    assert decoding.get_total_flops() / seconds == pytest.approx(cost.decode_flops_per_second, rel=0.03)
