"""A Wav2Vec2 of random weights, small enough to train for a few steps in a blink, and a folder of it to start from."""

from pathlib import Path
from typing import Any

from bundled_clips import WAV2VEC2
from random_wav2vec2 import random_wav2vec2
from tiny_tokenizers import letters_folder

from phonograph import Wav2Vec2FeatureExtractor

__all__ = ["HEADS", "SMALL", "checkpoint"]

SMALL: dict[str, Any] = WAV2VEC2 | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "conv_dim": [16] * 4,
    "num_conv_pos_embeddings": 16,
}
HEADS: dict[str, Any] = {"tdnn_dim": [16, 24], "tdnn_kernel": [3, 1], "tdnn_dilation": [1, 1], "xvector_output_dim": 12}


def checkpoint(folder: Path, **fields: Any) -> str:
    """A tiny CTC checkpoint with the tokenizer of the published ones."""
    letters_folder(folder)
    random_wav2vec2("Wav2Vec2ForCTC", **SMALL, **HEADS, **fields).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return str(folder)
