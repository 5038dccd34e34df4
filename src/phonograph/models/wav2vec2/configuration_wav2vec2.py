"""The configuration of a Wav2Vec2: every size, probability and loss setting that its models are built from.

    config = Wav2Vec2Config(vocab_size=32, feat_extract_norm="layer", do_stable_layer_norm=True)
    config.inputs_to_logits_ratio  # 320 samples a step

One class serves the speech encoder and all of its heads; each model reads the fields that concern it. It loads no torch.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from phonograph.configuration import ACTIVATIONS, PreTrainedConfig, Relation, Rule

__all__ = ["Wav2Vec2Config"]

_CONV_LISTS = ("conv_dim", "conv_stride", "conv_kernel")
_TDNN_LISTS = ("tdnn_dim", "tdnn_kernel", "tdnn_dilation")


class Wav2Vec2Config(PreTrainedConfig):
    """Configuration of `Wav2Vec2Model` and its heads; the defaults are those of facebook/wav2vec2-base-960h.

    Each field's meaning and rule stand beside its type below. None is filled in for `output_hidden_size` (hidden_size).
    Architecture and training: Baevski et al. 2020, "wav2vec 2.0", arXiv:2006.11477; `feat_extract_norm="layer"` and
    `do_stable_layer_norm` came with its LARGE models; `adapter_attn_dim` with Pratap et al. 2023, "MMS", arXiv:2305.13516.

    Raises:
        ConfigError: values that no Wav2Vec2 can have; the message holds every fault.
    """

    model_type = "wav2vec2"

    vocab_size: Annotated[int | None, Rule("tokens of a CTC head; None for a model without one", minimum=1)]
    hidden_size: Annotated[int, Rule("width of the transformer", minimum=1)]
    num_hidden_layers: Annotated[int, Rule("layers of the transformer", minimum=0)]
    num_attention_heads: Annotated[int, Rule("attention heads", minimum=1)]
    intermediate_size: Annotated[int, Rule("width of the feed-forward layers", minimum=1)]
    hidden_act: Annotated[str, Rule("activation of the feed-forward layers", choices=ACTIVATIONS)]
    hidden_dropout: Annotated[float, Rule("outputs of each block dropped in training", minimum=0, maximum=1)]
    activation_dropout: Annotated[float, Rule("dropped inside the feed-forward layers", minimum=0, maximum=1)]
    attention_dropout: Annotated[float, Rule("attention weights dropped in training", minimum=0, maximum=1)]
    feat_proj_dropout: Annotated[float, Rule("projected features dropped in training", minimum=0, maximum=1)]
    feat_quantizer_dropout: Annotated[float, Rule("features dropped before the quantizer", minimum=0, maximum=1)]
    final_dropout: Annotated[float, Rule("dropped before the CTC head", minimum=0, maximum=1)]
    layerdrop: Annotated[float, Rule("probability that training skips a layer", minimum=0, maximum=1)]
    initializer_range: Annotated[float, Rule("standard deviation of fresh linear layers", minimum=0)]
    layer_norm_eps: Annotated[float, Rule("added to the variance in layer norms", minimum=0)]
    feat_extract_norm: Annotated[str, Rule("group: first convolution normed; layer: all", choices=("group", "layer"))]
    feat_extract_activation: Annotated[str, Rule("activation of the convolutions", choices=ACTIVATIONS)]
    conv_dim: Annotated[list[int], Rule("channels of each convolution", minimum=1)]
    conv_stride: Annotated[list[int], Rule("stride of each convolution", minimum=1)]
    conv_kernel: Annotated[list[int], Rule("kernel of each convolution", minimum=1)]
    conv_bias: Annotated[bool, Rule("convolutions have a bias")]
    num_conv_pos_embeddings: Annotated[int, Rule("kernel of the position convolution", minimum=1)]
    num_conv_pos_embedding_groups: Annotated[int, Rule("groups of the position convolution", minimum=1)]
    do_stable_layer_norm: Annotated[bool, Rule("norms before each block and after all, not after each block")]
    apply_spec_augment: Annotated[bool, Rule("features are masked in training")]
    mask_time_prob: Annotated[float, Rule("share of steps in masked spans, overlaps counted", minimum=0, maximum=1)]
    mask_time_length: Annotated[int, Rule("steps of a masked span", minimum=1)]
    mask_time_min_masks: Annotated[int, Rule("least number of masked spans", minimum=0)]
    mask_feature_prob: Annotated[float, Rule("share of features in masked spans", minimum=0, maximum=1)]
    mask_feature_length: Annotated[int, Rule("features of a masked span", minimum=1)]
    mask_feature_min_masks: Annotated[int, Rule("least number of masked feature spans", minimum=0)]
    num_codevectors_per_group: Annotated[int, Rule("entries of each codebook", minimum=1)]
    num_codevector_groups: Annotated[int, Rule("codebooks of the quantizer", minimum=1)]
    contrastive_logits_temperature: Annotated[float, Rule("divides the similarities in pretraining", above=0)]
    num_negatives: Annotated[int, Rule("distractors of each masked step", minimum=0)]
    codevector_dim: Annotated[int, Rule("width of a quantized step, over all codebooks", minimum=1)]
    proj_codevector_dim: Annotated[int, Rule("width in which targets and predictions meet", minimum=1)]
    diversity_loss_weight: Annotated[float, Rule("weight of the diversity loss")]
    ctc_loss_reduction: Annotated[str, Rule("reduction of the CTC loss", choices=("none", "mean", "sum"))]
    ctc_zero_infinity: Annotated[bool, Rule("texts too long for their audio count nothing")]
    use_weighted_layer_sum: Annotated[bool, Rule("classifiers see a learnt mean of all layers")]
    classifier_proj_size: Annotated[int, Rule("width before the sequence classifier", minimum=1)]
    tdnn_dim: Annotated[list[int], Rule("channels of each x-vector layer", minimum=1)]
    tdnn_kernel: Annotated[list[int], Rule("kernel of each x-vector layer", minimum=1)]
    tdnn_dilation: Annotated[list[int], Rule("dilation of each x-vector layer", minimum=1)]
    xvector_output_dim: Annotated[int, Rule("width of an x-vector", minimum=1)]
    pad_token_id: Annotated[int | None, Rule("padding, and the blank of CTC")]
    bos_token_id: Annotated[int | None, Rule("begin of text; without effect on the models")]
    eos_token_id: Annotated[int | None, Rule("end of text; without effect on the models")]
    add_adapter: Annotated[bool, Rule("strided convolutions after the transformer")]
    adapter_kernel_size: Annotated[int, Rule("kernel of these", minimum=1)]
    adapter_stride: Annotated[int, Rule("stride of these", minimum=1)]
    num_adapter_layers: Annotated[int, Rule("number of these", minimum=0)]
    output_hidden_size: Annotated[int, Rule("width after these", minimum=1)]
    adapter_attn_dim: Annotated[int | None, Rule("width inside each layer's language adapter", minimum=1)]

    _relations: ClassVar[tuple[Relation, ...]] = (
        Relation(
            ("num_attention_heads", "hidden_size"),
            lambda config: config.hidden_size % config.num_attention_heads == 0,
            "num_attention_heads must divide hidden_size",
            building=True,
        ),
        Relation(
            ("num_conv_pos_embedding_groups", "hidden_size"),
            lambda config: config.hidden_size % config.num_conv_pos_embedding_groups == 0,
            "num_conv_pos_embedding_groups must divide hidden_size",
            building=True,
        ),
        Relation(
            ("num_codevector_groups", "codevector_dim"),
            lambda config: config.codevector_dim % config.num_codevector_groups == 0,
            "num_codevector_groups must divide codevector_dim",
            building=True,
        ),
    )

    def __init__(
        self,
        /,
        vocab_size: int | None = 32,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout: float = 0.1,
        activation_dropout: float = 0.1,
        attention_dropout: float = 0.1,
        feat_proj_dropout: float = 0.0,
        feat_quantizer_dropout: float = 0.0,
        final_dropout: float = 0.1,
        layerdrop: float = 0.1,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-5,
        feat_extract_norm: str = "group",
        feat_extract_activation: str = "gelu",
        conv_dim: list[int] | tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512),
        conv_stride: list[int] | tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2),
        conv_kernel: list[int] | tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2),
        conv_bias: bool = False,
        num_conv_pos_embeddings: int = 128,
        num_conv_pos_embedding_groups: int = 16,
        do_stable_layer_norm: bool = False,
        apply_spec_augment: bool = True,
        mask_time_prob: float = 0.05,
        mask_time_length: int = 10,
        mask_time_min_masks: int = 2,
        mask_feature_prob: float = 0.0,
        mask_feature_length: int = 10,
        mask_feature_min_masks: int = 0,
        num_codevectors_per_group: int = 320,
        num_codevector_groups: int = 2,
        contrastive_logits_temperature: float = 0.1,
        num_negatives: int = 100,
        codevector_dim: int = 256,
        proj_codevector_dim: int = 256,
        diversity_loss_weight: float = 0.1,
        ctc_loss_reduction: str = "sum",
        ctc_zero_infinity: bool = False,
        use_weighted_layer_sum: bool = False,
        classifier_proj_size: int = 256,
        tdnn_dim: list[int] | tuple[int, ...] = (512, 512, 512, 512, 1500),
        tdnn_kernel: list[int] | tuple[int, ...] = (5, 3, 3, 1, 1),
        tdnn_dilation: list[int] | tuple[int, ...] = (1, 2, 3, 1, 1),
        xvector_output_dim: int = 512,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 1,
        eos_token_id: int | None = 2,
        add_adapter: bool = False,
        adapter_kernel_size: int = 3,
        adapter_stride: int = 2,
        num_adapter_layers: int = 3,
        output_hidden_size: int | None = None,
        adapter_attn_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._assign_fields(locals())
        self.output_hidden_size = hidden_size if output_hidden_size is None else output_hidden_size
        super().__init__(**kwargs)

    @property
    def num_feat_extract_layers(self) -> int:
        """Number of convolutions."""
        return len(self.conv_dim)

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples a step: the product of all strides of the convolutions; 320 by default."""
        return math.prod(self.conv_stride)

    def to_dict(self) -> dict[str, Any]:
        """Every stored field, `model_type`, and `num_feat_extract_layers` for those who read it from the file."""
        return {**super().to_dict(), "num_feat_extract_layers": self.num_feat_extract_layers}

    def _family_faults(self, faulty: Mapping[str, str]) -> list[str]:
        return [
            f"{', '.join(names)} must have one length, got lengths {[len(getattr(self, name)) for name in names]}: "
            + ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            for names in (_CONV_LISTS, _TDNN_LISTS)
            if faulty.keys().isdisjoint(names)
            if len({len(getattr(self, name)) for name in names}) > 1 or not getattr(self, names[0])
        ]
