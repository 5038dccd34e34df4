"""The one exception tree.

Every message says what was expected, what came and what to do, in one line. Catch `PhonographError` for all of them.
"""

__all__ = [
    "AudioError",
    "CheckpointError",
    "ConfigError",
    "DivergedError",
    "MissingExtraError",
    "OutputError",
    "PhonographError",
    "StreamError",
    "TokenFileError",
]


class PhonographError(Exception):
    """Base of every error that phonograph raises on purpose."""


class ConfigError(PhonographError, ValueError):
    """A configuration or an argument that no model can be built or run with."""


class CheckpointError(PhonographError, OSError):
    """A checkpoint that is missing, unreadable, unsafe or does not fit the model. An OSError, as in transformers."""


class AudioError(PhonographError, ValueError):
    """Audio that can't be read, or isn't what the model needs."""


class StreamError(PhonographError):
    """A stream that was fed something other than whole frames, or a state of another model."""


class TokenFileError(PhonographError):
    """A token file that is damaged, of another format version, or of another model."""


class DivergedError(PhonographError):
    """A training run whose gradients were not finite for too many steps in a row."""


class OutputError(PhonographError, OSError):
    """A file or folder that can't be written: no permission, no such folder, no room."""


class MissingExtraError(PhonographError, ImportError):
    """An optional package that this feature needs is not installed."""

    def __init__(self, feature: str, package: str, extra: str, *more_packages: str) -> None:
        many = f"packages {' and '.join([package, *more_packages])}, which are"
        missing = many if more_packages else f"package {package}, which is"
        super().__init__(f"{feature} needs the {missing} not installed; run: pip install 'phonograph[{extra}]'")
