"""Speech2Text's feature extractor and tokenizer as one.

processor = Speech2TextProcessor.from_pretrained("facebook/s2t-small-librispeech-asr")
inputs = processor(audio, sampling_rate=16000, return_tensors="pt")
texts = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
"""

from phonograph.models.processing import Processor
from phonograph.models.speech_to_text.feature_extraction_speech_to_text import Speech2TextFeatureExtractor
from phonograph.models.speech_to_text.tokenization_speech_to_text import Speech2TextTokenizer

__all__ = ["Speech2TextProcessor"]


class Speech2TextProcessor(Processor[Speech2TextFeatureExtractor, Speech2TextTokenizer]):
    """Audio to input features, text to labels, generated ids to text.

    Args:
        feature_extractor: a `Speech2TextFeatureExtractor`.
        tokenizer: a `Speech2TextTokenizer`.
    """

    feature_extractor_class = Speech2TextFeatureExtractor
    tokenizer_class = Speech2TextTokenizer
