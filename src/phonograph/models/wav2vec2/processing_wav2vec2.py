"""Wav2Vec2's feature extractor and CTC tokenizer as one.

processor = Wav2Vec2Processor.from_pretrained("facebook/wav2vec2-base-960h")
inputs = processor(audio, sampling_rate=16000, return_tensors="pt")
texts = processor.batch_decode(model(**inputs).logits.argmax(-1))
"""

from phonograph.models.processing import Processor
from phonograph.models.wav2vec2.feature_extraction_wav2vec2 import Wav2Vec2FeatureExtractor
from phonograph.models.wav2vec2.tokenization_wav2vec2 import Wav2Vec2CTCTokenizer

__all__ = ["Wav2Vec2Processor"]


class Wav2Vec2Processor(Processor[Wav2Vec2FeatureExtractor, Wav2Vec2CTCTokenizer]):
    """Audio to input values, text to labels, predictions to text.

    Args:
        feature_extractor: a `Wav2Vec2FeatureExtractor`.
        tokenizer: a `Wav2Vec2CTCTokenizer`.
    """

    feature_extractor_class = Wav2Vec2FeatureExtractor
    tokenizer_class = Wav2Vec2CTCTokenizer
