"""The independent implementations that tests compare with: skipped where they aren't installed, a failure in CI."""

import importlib
import os
from typing import Any

import numpy as np
import pytest

from phonograph.models.features import BatchFeature

__all__ = ["assert_same", "peer"]


def peer(module: str) -> Any:
    """The imported module; `pytest.skip` without it, or the import's own error in CI."""
    if os.environ.get("CI"):
        return importlib.import_module(module)
    return pytest.importorskip(module)


def assert_same(ours: BatchFeature, theirs: Any) -> None:
    """Equal items, shapes and dtypes; where theirs are object arrays of unequal rows, ours are lists."""
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        if getattr(expected, "dtype", None) == np.dtype(object):
            expected = list(expected)
        assert type(ours[name]) is type(expected)
        pairs = zip(ours[name], expected, strict=True) if isinstance(expected, list) else [(ours[name], expected)]
        for value, other in pairs:
            assert (value.dtype, value.shape) == (other.dtype, other.shape)
            np.testing.assert_array_equal(np.asarray(value), np.asarray(other))
