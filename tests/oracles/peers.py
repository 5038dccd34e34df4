"""The independent implementations that tests compare with: skipped where they aren't installed, a failure in CI."""

import importlib
import os
from typing import Any

import pytest

__all__ = ["peer"]


def peer(module: str) -> Any:
    """The imported module; `pytest.skip` without it, or the import's own error in CI."""
    if os.environ.get("CI"):
        return importlib.import_module(module)
    return pytest.importorskip(module)
