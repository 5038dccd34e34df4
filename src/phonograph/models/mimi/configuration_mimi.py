"""The configuration of a Mimi codec: every size and rate that its layers are built from.

    config = MimiConfig(num_quantizers=8)
    config.frame_rate  # 12.5

It reads every form of config.json in circulation: `frame_rate` or `_frame_rate`; `rope_theta`, `rope_scaling`
or `rope_parameters`; a Mimi nested in a larger model's file under `codec_config`. It loads no torch.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from phonograph.configuration import ACTIVATIONS, Field, PreTrainedConfig, Relation, Rule

__all__ = ["ROPE_TYPES", "MimiConfig"]

ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "proportional": (),
}
_ROPE_TYPES_WITH_ORIGINAL_LENGTH = ("yarn", "longrope", "llama3")
_ROPE_FIELDS = {
    "rope_theta": Field(float, False, Rule("base of the rotation periods", above=0)),
    "factor": Field(float, False, Rule("how much longer than trained", minimum=1)),
    "low_freq_factor": Field(float, False, Rule("llama3: bound of the low frequencies", above=0)),
    "high_freq_factor": Field(float, False, Rule("llama3: bound of the high frequencies", above=0)),
    "short_factor": Field(list[float], False, Rule("longrope: one divisor per rotated pair", above=0)),
    "long_factor": Field(list[float], False, Rule("longrope: one divisor per rotated pair", above=0)),
    "partial_rotary_factor": Field(float, False, Rule("share of head_dim that rotates", above=0, maximum=1)),
    "original_max_position_embeddings": Field(int, False, Rule("trained positions", minimum=1)),
}
_LEGACY_ROPE_KEYS = ("rope_scaling", "rope_theta", "partial_rotary_factor")
_PAD_MODES = ("constant", "reflect", "replicate")


class MimiConfig(PreTrainedConfig):
    """Configuration of `MimiModel`; the defaults are those of kyutai/mimi.

    Each field's meaning and rule stand beside its type below. `frame_rate` is kept for older files and, when
    given, is what the property of that name returns. None is filled in for `upsampling_ratios` (8, 6, 5, 4),
    `codebook_dim` (hidden_size), `head_dim` (hidden_size // num_attention_heads) and `rope_parameters` (base
    10000). Architecture: Défossez et al. 2024, "Moshi", arXiv:2410.00037, section 3.3.

    Raises:
        ConfigError: values that no Mimi can have; the message holds every fault.
    """

    model_type = "mimi"
    base_config_key = "codec_config"

    sampling_rate: Annotated[int, Rule("samples per second of the audio", minimum=1)]
    audio_channels: Annotated[int, Rule("channels of the audio", minimum=1, maximum=2)]
    hidden_size: Annotated[int, Rule("channels of the latent and width of the transformers", minimum=1)]
    num_filters: Annotated[int, Rule("channels after the first convolution", minimum=1)]
    num_residual_layers: Annotated[int, Rule("residual blocks before each downsampling", minimum=0)]
    upsampling_ratios: Annotated[list[int], Rule("strides of the decoder; reversed, of the encoder", minimum=1)]
    kernel_size: Annotated[int, Rule("kernel of the first convolution", minimum=1)]
    last_kernel_size: Annotated[int, Rule("kernel of the last convolution", minimum=1)]
    residual_kernel_size: Annotated[int, Rule("kernel of the residual blocks", minimum=1)]
    dilation_growth_rate: Annotated[int, Rule("growth of the dilation from block to block", minimum=1)]
    use_causal_conv: Annotated[bool, Rule("pad convolutions on the left only")]
    pad_mode: Annotated[str, Rule("what convolutions are padded with", choices=_PAD_MODES)]
    compress: Annotated[int, Rule("how much narrower the middle of a residual block is", minimum=1)]
    trim_right_ratio: Annotated[float, Rule("share of the excess cut on the right", minimum=0, maximum=1)]
    codebook_size: Annotated[int, Rule("codes per codebook", minimum=2)]
    codebook_dim: Annotated[int, Rule("width of a code vector", minimum=1)]
    num_quantizers: Annotated[int, Rule("codebooks in all", minimum=1)]
    use_conv_shortcut: Annotated[bool, Rule("convolution rather than identity beside a residual block")]
    vector_quantization_hidden_dimension: Annotated[int, Rule("width the quantizers project to", minimum=1)]
    num_semantic_quantizers: Annotated[int, Rule("semantic codebooks among num_quantizers", minimum=1)]
    upsample_groups: Annotated[int, Rule("groups of the latent's upsampling convolution", minimum=1)]
    num_hidden_layers: Annotated[int, Rule("layers of each transformer", minimum=1)]
    intermediate_size: Annotated[int, Rule("width of the feed-forward layers", minimum=1)]
    num_attention_heads: Annotated[int, Rule("attention heads", minimum=1)]
    num_key_value_heads: Annotated[int, Rule("heads of keys and values", minimum=1)]
    head_dim: Annotated[int, Rule("width of an attention head", minimum=2)]
    hidden_act: Annotated[str, Rule("activation of the feed-forward layers", choices=ACTIVATIONS)]
    max_position_embeddings: Annotated[int, Rule("positions seen in training", minimum=1)]
    initializer_range: Annotated[float, Rule("standard deviation of fresh weights", minimum=0)]
    norm_eps: Annotated[float, Rule("added to the variance in layer norms", minimum=0)]
    use_cache: Annotated[bool, Rule("transformers return their key-value cache")]
    use_streaming: Annotated[bool, Rule("encode keeps the convolutions' past")]
    rope_parameters: Annotated[dict[str, Any], Rule("rotary positions: rope_type and its keys")]
    sliding_window: Annotated[int, Rule("latent steps each step attends to, with itself", minimum=1)]
    attention_dropout: Annotated[float, Rule("attention weights dropped in training", minimum=0, maximum=1)]
    layer_scale_initial_scale: Annotated[float, Rule("layer scale of a fresh model")]
    attention_bias: Annotated[bool, Rule("attention projections have a bias")]
    tie_word_embeddings: Annotated[bool, Rule("without effect on Mimi; kept because files carry it")]
    _frame_rate: Annotated[float | None, Rule("frames per second, when not to be computed", above=0)]

    _relations: ClassVar[tuple[Relation, ...]] = (
        Relation(
            ("num_semantic_quantizers", "num_quantizers"),
            lambda config: config.num_semantic_quantizers < config.num_quantizers,
            "the number of semantic quantizers should be lower than the total number of quantizers",
        ),
        Relation(
            ("num_attention_heads", "num_key_value_heads"),
            lambda config: config.num_attention_heads % config.num_key_value_heads == 0,
            "num_key_value_heads must divide num_attention_heads",
        ),
        Relation(
            ("compress", "num_filters"),
            lambda config: config.compress <= config.num_filters,
            "compress must leave a residual block at least one channel",
        ),
        Relation(
            ("use_causal_conv", "trim_right_ratio"),
            lambda config: config.use_causal_conv or config.trim_right_ratio == 1,
            "trim_right_ratio must be 1 unless convolutions are causal",
        ),
        Relation(
            ("upsample_groups", "hidden_size"),
            lambda config: config.hidden_size % config.upsample_groups == 0,
            "upsample_groups must divide hidden_size",
            building=True,
        ),
        Relation(
            ("codebook_dim", "vector_quantization_hidden_dimension"),
            lambda config: config.codebook_dim == config.vector_quantization_hidden_dimension,
            "codebook_dim must be vector_quantization_hidden_dimension",
            building=True,
        ),
        Relation(
            ("frame_rate", "encodec_frame_rate"),
            lambda config: config.frame_rate <= config.encodec_frame_rate,
            "frames must not come faster than the encoder's steps",
            building=True,
        ),
        Relation(
            ("rope_parameters",),
            lambda config: (
                config.rope_parameters["rope_type"] in ("default", "linear")
                and config.rope_parameters.get("partial_rotary_factor", 1) == 1
            ),
            "a model can be built with rope_type default or linear over whole heads, as all published ones are",
            building=True,
        ),
    )

    def __init__(
        self,
        /,
        sampling_rate: int = 24000,
        frame_rate: float | None = None,
        audio_channels: int = 1,
        hidden_size: int = 512,
        num_filters: int = 64,
        num_residual_layers: int = 1,
        upsampling_ratios: list[int] | None = None,
        kernel_size: int = 7,
        last_kernel_size: int = 3,
        residual_kernel_size: int = 3,
        dilation_growth_rate: int = 2,
        use_causal_conv: bool = True,
        pad_mode: str = "constant",
        compress: int = 2,
        trim_right_ratio: float = 1.0,
        codebook_size: int = 2048,
        codebook_dim: int | None = 256,
        num_quantizers: int = 32,
        use_conv_shortcut: bool = False,
        vector_quantization_hidden_dimension: int = 256,
        num_semantic_quantizers: int = 1,
        upsample_groups: int = 512,
        num_hidden_layers: int = 8,
        intermediate_size: int = 2048,
        num_attention_heads: int = 8,
        num_key_value_heads: int = 8,
        head_dim: int | None = None,
        hidden_act: str = "gelu",
        max_position_embeddings: int = 8000,
        initializer_range: float = 0.02,
        norm_eps: float = 1e-5,
        use_cache: bool = False,
        use_streaming: bool = False,
        rope_parameters: dict[str, Any] | None = None,
        sliding_window: int = 250,
        attention_dropout: float = 0.0,
        layer_scale_initial_scale: float = 0.01,
        attention_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        self._assign_fields(locals())
        if upsampling_ratios in (None, [], ()):
            self.upsampling_ratios = [8, 6, 5, 4]
        self.codebook_dim = hidden_size if codebook_dim is None else codebook_dim
        self.head_dim = _head_dim(hidden_size, num_attention_heads) if head_dim is None else head_dim
        legacy = {key: kwargs.pop(key, None) for key in _LEGACY_ROPE_KEYS}
        self.rope_parameters = _completed_rope(rope_parameters, legacy, max_position_embeddings)
        stored_frame_rate = kwargs.pop("_frame_rate", None)
        self._frame_rate = frame_rate if stored_frame_rate is None else stored_frame_rate
        self.tie_word_embeddings = kwargs.pop("tie_word_embeddings", True)
        super().__init__(**kwargs)

    @property
    def frame_size(self) -> int:
        """Samples per frame of codes: the product of every stride on the way in; 1920 by default."""
        downsampling_stride = 2
        return downsampling_stride * math.prod(self.upsampling_ratios)  # every other convolution has stride 1

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second: the stored value if there is one, else sampling_rate / frame_size."""
        return self.sampling_rate / self.frame_size if self._frame_rate is None else self._frame_rate

    @property
    def encodec_frame_rate(self) -> int:
        """Steps per second that the convolutional encoder gives, before the last downsampling."""
        return math.ceil(self.sampling_rate / math.prod(self.upsampling_ratios))

    @property
    def num_codebooks(self) -> int:
        """The same as `num_quantizers`."""
        return self.num_quantizers

    def _family_faults(self, faulty: Mapping[str, str]) -> list[str]:
        if "rope_parameters" in faulty:
            return []
        found = _rope_faults(self.rope_parameters)
        if found or "head_dim" in faulty:
            return found
        return _rope_width_faults(self.rope_parameters, self.head_dim)


def _head_dim(hidden_size: Any, num_attention_heads: Any) -> int:
    sizes = (hidden_size, num_attention_heads)
    if all(isinstance(size, int) and size > 0 for size in sizes):
        return int(hidden_size // num_attention_heads)
    return 2  # an allowed value, so that only the two fields it would come from are reported


def _completed_rope(parameters: Any, legacy: Mapping[str, Any], max_position_embeddings: int) -> Any:
    parameters = legacy["rope_scaling"] or ({} if parameters is None else parameters)
    if not isinstance(parameters, dict):
        return parameters
    completed = {key: list(value) if isinstance(value, tuple) else value for key, value in parameters.items()}
    if completed.get("rope_type") is None:
        completed["rope_type"] = completed.get("type") or "default"
    completed.setdefault("rope_theta", 10000.0 if legacy["rope_theta"] is None else legacy["rope_theta"])
    if legacy["partial_rotary_factor"] is not None:
        completed.setdefault("partial_rotary_factor", legacy["partial_rotary_factor"])
    if completed["rope_type"] in _ROPE_TYPES_WITH_ORIGINAL_LENGTH:
        completed.setdefault("original_max_position_embeddings", max_position_embeddings)
    return completed


def _rope_faults(parameters: dict[str, Any]) -> list[str]:
    rope_type = parameters.get("rope_type")
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        return [f"rope_parameters['rope_type']={rope_type!r} must be one of {', '.join(ROPE_TYPES)}"]
    missing = [key for key in ("rope_theta", *ROPE_TYPES[rope_type]) if key not in parameters]
    faults = [f"rope_parameters of rope_type={rope_type!r} must hold {key!r}" for key in missing]
    checked = [
        field.fault(f"rope_parameters[{key!r}]", parameters[key]) for key, field in _ROPE_FIELDS.items() if key in parameters
    ]
    return faults + [fault for fault in checked if fault is not None]


def _rope_width_faults(parameters: dict[str, Any], head_dim: int) -> list[str]:
    share = 1 if parameters["rope_type"] == "proportional" else parameters.get("partial_rotary_factor", 1)
    width = int(head_dim * share)
    if width < 2 or width % 2:
        rule = "the part that rotates must be even and at least 2"
        return [f"head_dim={head_dim} (hidden_size // num_attention_heads unless given): {rule}, got {width}"]
    pairs = width // 2
    return [
        f"rope_parameters[{key!r}] must hold {pairs} numbers (one a rotated pair), got {len(parameters[key])}"
        for key in ROPE_TYPES[parameters["rope_type"]]
        if key in ("short_factor", "long_factor") and len(parameters[key]) != pairs
    ]
