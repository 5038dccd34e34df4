"""Speech to tokens and text, and tokens back to speech.

    import phonograph

    tokens = phonograph.encode("speech.wav")
    speech = phonograph.decode(tokens)
    text = phonograph.transcribe("speech.wav", "facebook/wav2vec2-base-960h").text

Names are looked up on first use: `import phonograph` alone imports neither torch nor numpy.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULE_OF_NAME = {
    "AudioError": "phonograph.errors",
    "CheckpointError": "phonograph.errors",
    "ConfigError": "phonograph.errors",
    "MissingExtraError": "phonograph.errors",
    "OutputError": "phonograph.errors",
    "PhonographError": "phonograph.errors",
    "StreamError": "phonograph.errors",
    "TokenFileError": "phonograph.errors",
    "PreTrainedConfig": "phonograph.configuration",
    "PretrainedConfig": "phonograph.configuration",
    "AutoConfig": "phonograph.models.auto",
    "AutoFeatureExtractor": "phonograph.models.auto",
    "AutoModel": "phonograph.models.auto",
    "AutoProcessor": "phonograph.models.auto",
    "MimiConfig": "phonograph.models.mimi.configuration_mimi",
    "MimiFeatureExtractor": "phonograph.models.mimi.feature_extraction_mimi",
    "MimiModel": "phonograph.models.mimi.modeling_mimi",
    "AutoModelForAudioClassification": "phonograph.models.auto",
    "AutoModelForAudioFrameClassification": "phonograph.models.auto",
    "AutoModelForAudioXVector": "phonograph.models.auto",
    "AutoModelForCTC": "phonograph.models.auto",
    "AutoModelForPreTraining": "phonograph.models.auto",
    "AutoModelForSpeechSeq2Seq": "phonograph.models.auto",
    "AutoTokenizer": "phonograph.models.auto",
    "Wav2Vec2Config": "phonograph.models.wav2vec2.configuration_wav2vec2",
    "Wav2Vec2FeatureExtractor": "phonograph.models.wav2vec2.feature_extraction_wav2vec2",
    "Wav2Vec2CTCTokenizer": "phonograph.models.wav2vec2.tokenization_wav2vec2",
    "Wav2Vec2Processor": "phonograph.models.wav2vec2.processing_wav2vec2",
    "Wav2Vec2Model": "phonograph.models.wav2vec2.modeling_wav2vec2",
    "Wav2Vec2ForCTC": "phonograph.models.wav2vec2.modeling_wav2vec2",
    "Wav2Vec2ForPreTraining": "phonograph.models.wav2vec2.modeling_wav2vec2",
    "Wav2Vec2ForSequenceClassification": "phonograph.models.wav2vec2.modeling_wav2vec2",
    "Wav2Vec2ForAudioFrameClassification": "phonograph.models.wav2vec2.modeling_wav2vec2",
    "Wav2Vec2ForXVector": "phonograph.models.wav2vec2.modeling_wav2vec2",
    "Speech2TextConfig": "phonograph.models.speech_to_text.configuration_speech_to_text",
    "Speech2TextFeatureExtractor": "phonograph.models.speech_to_text.feature_extraction_speech_to_text",
    "Speech2TextTokenizer": "phonograph.models.speech_to_text.tokenization_speech_to_text",
    "Speech2TextProcessor": "phonograph.models.speech_to_text.processing_speech_to_text",
    "Speech2TextModel": "phonograph.models.speech_to_text.modeling_speech_to_text",
    "Speech2TextForConditionalGeneration": "phonograph.models.speech_to_text.modeling_speech_to_text",
    "Audio": "phonograph.audio",
    "SpeechTokens": "phonograph.tokens",
    "decode": "phonograph.api",
    "encode": "phonograph.api",
    "Transcript": "phonograph.decoding.transcript",
    "align": "phonograph.api",
    "transcribe": "phonograph.api",
    "translate": "phonograph.api",
}
_SUBMODULES = ("api", "audio", "configuration", "errors", "models", "tokens")

__all__ = ["__version__", *_MODULE_OF_NAME, *_SUBMODULES]  # noqa: PLE0604 (the names are the table's keys)

if TYPE_CHECKING:
    from phonograph.api import align as align
    from phonograph.api import decode as decode
    from phonograph.api import encode as encode
    from phonograph.api import transcribe as transcribe
    from phonograph.api import translate as translate
    from phonograph.audio import Audio as Audio
    from phonograph.configuration import PreTrainedConfig as PreTrainedConfig
    from phonograph.configuration import PretrainedConfig as PretrainedConfig
    from phonograph.decoding.transcript import Transcript as Transcript
    from phonograph.errors import AudioError as AudioError
    from phonograph.errors import CheckpointError as CheckpointError
    from phonograph.errors import ConfigError as ConfigError
    from phonograph.errors import MissingExtraError as MissingExtraError
    from phonograph.errors import OutputError as OutputError
    from phonograph.errors import PhonographError as PhonographError
    from phonograph.errors import StreamError as StreamError
    from phonograph.errors import TokenFileError as TokenFileError
    from phonograph.models.auto import AutoConfig as AutoConfig
    from phonograph.models.auto import AutoFeatureExtractor as AutoFeatureExtractor
    from phonograph.models.auto import AutoModel as AutoModel
    from phonograph.models.auto import AutoModelForAudioClassification as AutoModelForAudioClassification
    from phonograph.models.auto import AutoModelForAudioFrameClassification as AutoModelForAudioFrameClassification
    from phonograph.models.auto import AutoModelForAudioXVector as AutoModelForAudioXVector
    from phonograph.models.auto import AutoModelForCTC as AutoModelForCTC
    from phonograph.models.auto import AutoModelForPreTraining as AutoModelForPreTraining
    from phonograph.models.auto import AutoModelForSpeechSeq2Seq as AutoModelForSpeechSeq2Seq
    from phonograph.models.auto import AutoProcessor as AutoProcessor
    from phonograph.models.auto import AutoTokenizer as AutoTokenizer
    from phonograph.models.mimi.configuration_mimi import MimiConfig as MimiConfig
    from phonograph.models.mimi.feature_extraction_mimi import MimiFeatureExtractor as MimiFeatureExtractor
    from phonograph.models.mimi.modeling_mimi import MimiModel as MimiModel
    from phonograph.models.speech_to_text.configuration_speech_to_text import Speech2TextConfig as Speech2TextConfig
    from phonograph.models.speech_to_text.feature_extraction_speech_to_text import (
        Speech2TextFeatureExtractor as Speech2TextFeatureExtractor,
    )
    from phonograph.models.speech_to_text.modeling_speech_to_text import (
        Speech2TextForConditionalGeneration as Speech2TextForConditionalGeneration,
    )
    from phonograph.models.speech_to_text.modeling_speech_to_text import Speech2TextModel as Speech2TextModel
    from phonograph.models.speech_to_text.processing_speech_to_text import Speech2TextProcessor as Speech2TextProcessor
    from phonograph.models.speech_to_text.tokenization_speech_to_text import Speech2TextTokenizer as Speech2TextTokenizer
    from phonograph.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config as Wav2Vec2Config
    from phonograph.models.wav2vec2.feature_extraction_wav2vec2 import Wav2Vec2FeatureExtractor as Wav2Vec2FeatureExtractor
    from phonograph.models.wav2vec2.modeling_wav2vec2 import (
        Wav2Vec2ForAudioFrameClassification as Wav2Vec2ForAudioFrameClassification,
    )
    from phonograph.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForCTC as Wav2Vec2ForCTC
    from phonograph.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForPreTraining as Wav2Vec2ForPreTraining
    from phonograph.models.wav2vec2.modeling_wav2vec2 import (
        Wav2Vec2ForSequenceClassification as Wav2Vec2ForSequenceClassification,
    )
    from phonograph.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForXVector as Wav2Vec2ForXVector
    from phonograph.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model as Wav2Vec2Model
    from phonograph.models.wav2vec2.processing_wav2vec2 import Wav2Vec2Processor as Wav2Vec2Processor
    from phonograph.models.wav2vec2.tokenization_wav2vec2 import Wav2Vec2CTCTokenizer as Wav2Vec2CTCTokenizer
    from phonograph.tokens import SpeechTokens as SpeechTokens


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF_NAME:
        value = getattr(importlib.import_module(_MODULE_OF_NAME[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"phonograph.{name}")
    raise AttributeError(f"module 'phonograph' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
