"""Speech to tokens and text, and tokens back to speech.

    import phonograph

    tokens = phonograph.encode("speech.wav")
    speech = phonograph.decode(tokens)

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
    "Audio": "phonograph.audio",
    "SpeechTokens": "phonograph.tokens",
    "decode": "phonograph.api",
    "encode": "phonograph.api",
}
_SUBMODULES = ("api", "audio", "configuration", "errors", "models", "tokens")

__all__ = ["__version__", *_MODULE_OF_NAME, *_SUBMODULES]  # noqa: PLE0604 (the names are the table's keys)

if TYPE_CHECKING:
    from phonograph.api import decode as decode
    from phonograph.api import encode as encode
    from phonograph.audio import Audio as Audio
    from phonograph.configuration import PreTrainedConfig as PreTrainedConfig
    from phonograph.configuration import PretrainedConfig as PretrainedConfig
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
    from phonograph.models.auto import AutoProcessor as AutoProcessor
    from phonograph.models.mimi.configuration_mimi import MimiConfig as MimiConfig
    from phonograph.models.mimi.feature_extraction_mimi import MimiFeatureExtractor as MimiFeatureExtractor
    from phonograph.models.mimi.modeling_mimi import MimiModel as MimiModel
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
