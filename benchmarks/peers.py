"""The contestants of the benchmarks here, from phonograph.benchmarks, where `phonograph bench` has them, too."""

from phonograph.benchmarks import (
    CODEBOOKS,
    DTYPES,
    FRAME,
    RATE,
    Codec,
    contestants,
    installed,
    medians,
    random_model,
    versions,
)

__all__ = [
    "CODEBOOKS",
    "DTYPES",
    "FRAME",
    "RATE",
    "Codec",
    "contestants",
    "installed",
    "medians",
    "random_model",
    "versions",
]
