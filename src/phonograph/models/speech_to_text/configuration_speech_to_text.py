"""The configuration of a Speech2Text model: every size that its encoder and decoder are built from.

    config = Speech2TextConfig(d_model=512, encoder_attention_heads=8, decoder_attention_heads=8)
    config.hidden_size  # 512, the ecosystem's other name of it

Files published before generation settings had a file of their own hold them here too (`max_length`, `num_beams`,
`early_stopping`); like every key that this class does not know they are kept, readable, and written again. It loads no torch.
"""

from typing import Annotated, Any, ClassVar

from phonograph.configuration import ACTIVATIONS, PreTrainedConfig, Relation, Rule

__all__ = ["Speech2TextConfig"]


class Speech2TextConfig(PreTrainedConfig):
    """Configuration of `Speech2TextModel`; the defaults are those of facebook/s2t-small-librispeech-asr.

    Each field's meaning and rule stand beside its type below. Architecture: Wang et al. 2020, "fairseq S2T: Fast
    Speech-to-Text Modeling with fairseq", arXiv:2010.05171, section 2.1.

    Raises:
        ConfigError: values that no Speech2Text model can have; the message holds every fault.
    """

    model_type = "speech_to_text"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {"num_attention_heads": "encoder_attention_heads", "hidden_size": "d_model"}

    vocab_size: Annotated[int, Rule("tokens of the vocabulary", minimum=1)]
    encoder_layers: Annotated[int, Rule("transformer layers of the encoder", minimum=0)]
    encoder_ffn_dim: Annotated[int, Rule("width of the encoder's feed-forward layers", minimum=1)]
    encoder_attention_heads: Annotated[int, Rule("attention heads of the encoder", minimum=1)]
    decoder_layers: Annotated[int, Rule("transformer layers of the decoder", minimum=0)]
    decoder_ffn_dim: Annotated[int, Rule("width of the decoder's feed-forward layers", minimum=1)]
    decoder_attention_heads: Annotated[int, Rule("attention heads of the decoder", minimum=1)]
    encoder_layerdrop: Annotated[float, Rule("encoder layers skipped in training", minimum=0, maximum=1)]
    decoder_layerdrop: Annotated[float, Rule("decoder layers skipped in training", minimum=0, maximum=1)]
    use_cache: Annotated[bool, Rule("the decoder returns its keys and values")]
    is_encoder_decoder: Annotated[bool, Rule("always true of this family")]
    activation_function: Annotated[str, Rule("activation of the feed-forward layers", choices=ACTIVATIONS)]
    d_model: Annotated[int, Rule("width of both transformers", minimum=1)]
    dropout: Annotated[float, Rule("values dropped after embeddings and layers in training", minimum=0, maximum=1)]
    attention_dropout: Annotated[float, Rule("attention weights dropped in training", minimum=0, maximum=1)]
    activation_dropout: Annotated[float, Rule("values dropped inside feed-forward layers", minimum=0, maximum=1)]
    init_std: Annotated[float, Rule("standard deviation of fresh weights", minimum=0)]
    decoder_start_token_id: Annotated[int, Rule("token that every target starts from", minimum=0)]
    scale_embedding: Annotated[bool, Rule("embeddings are multiplied by sqrt(d_model)")]
    pad_token_id: Annotated[int | None, Rule("token that fills up shorter targets", minimum=0)]
    bos_token_id: Annotated[int | None, Rule("token of a beginning", minimum=0)]
    eos_token_id: Annotated[int | None, Rule("token that ends a target", minimum=0)]
    max_source_positions: Annotated[int, Rule("longest source in encoder steps, seen in training", minimum=1)]
    max_target_positions: Annotated[int, Rule("longest target in tokens", minimum=1)]
    num_conv_layers: Annotated[int, Rule("convolutions that halve the time steps", minimum=1)]
    conv_kernel_sizes: Annotated[list[int], Rule("kernel of each convolution", minimum=1)]
    conv_channels: Annotated[int, Rule("channels between the convolutions, before gating", minimum=1)]
    input_feat_per_channel: Annotated[int, Rule("mel bins of a frame", minimum=1)]
    input_channels: Annotated[int, Rule("channels of a frame", minimum=1)]
    tie_word_embeddings: Annotated[bool, Rule("the head shares the decoder's token embedding")]

    _relations: ClassVar[tuple[Relation, ...]] = (
        Relation(
            ("conv_kernel_sizes", "num_conv_layers"),
            lambda config: len(config.conv_kernel_sizes) == config.num_conv_layers,
            "conv_kernel_sizes must hold one kernel for each of num_conv_layers",
        ),
        Relation(
            ("conv_kernel_sizes",),
            lambda config: all(kernel % 2 for kernel in config.conv_kernel_sizes),
            "kernels must be odd, so that each convolution halves the time steps",
            building=True,
        ),
        Relation(
            ("conv_channels", "num_conv_layers"),
            lambda config: config.num_conv_layers == 1 or config.conv_channels % 2 == 0,
            "conv_channels must be even, one half gates the other",
            building=True,
        ),
        Relation(
            ("d_model", "encoder_attention_heads"),
            lambda config: config.d_model % config.encoder_attention_heads == 0,
            "encoder_attention_heads must divide d_model",
            building=True,
        ),
        Relation(
            ("d_model", "decoder_attention_heads"),
            lambda config: config.d_model % config.decoder_attention_heads == 0,
            "decoder_attention_heads must divide d_model",
            building=True,
        ),
        Relation(
            ("pad_token_id", "decoder_start_token_id", "vocab_size"),
            lambda config: max(config.pad_token_id or 0, config.decoder_start_token_id) < config.vocab_size,
            "both tokens must be in the vocabulary",
            building=True,
        ),
    )

    def __init__(
        self,
        /,
        vocab_size: int = 10000,
        encoder_layers: int = 12,
        encoder_ffn_dim: int = 2048,
        encoder_attention_heads: int = 4,
        decoder_layers: int = 6,
        decoder_ffn_dim: int = 2048,
        decoder_attention_heads: int = 4,
        encoder_layerdrop: float = 0.0,
        decoder_layerdrop: float = 0.0,
        use_cache: bool = True,
        is_encoder_decoder: bool = True,
        activation_function: str = "relu",
        d_model: int = 256,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        init_std: float = 0.02,
        decoder_start_token_id: int = 2,
        scale_embedding: bool = True,
        pad_token_id: int | None = 1,
        bos_token_id: int | None = 0,
        eos_token_id: int | None = 2,
        max_source_positions: int = 6000,
        max_target_positions: int = 1024,
        num_conv_layers: int = 2,
        conv_kernel_sizes: tuple[int, ...] | list[int] = (5, 5),
        conv_channels: int = 1024,
        input_feat_per_channel: int = 80,
        input_channels: int = 1,
        **kwargs: Any,
    ) -> None:
        self._assign_fields(locals())
        self.tie_word_embeddings = kwargs.pop("tie_word_embeddings", True)
        super().__init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """The ecosystem's other name of `encoder_layers`; files hold it, and setting it sets that."""
        return self.encoder_layers

    @num_hidden_layers.setter
    def num_hidden_layers(self, count: int) -> None:
        self.encoder_layers = count
