"""Find an object by name without importing what was not chosen."""

from __future__ import annotations

import importlib
from typing import Any


def load(spec: str) -> Any:
    """The object that "module:name" stands for; its module is imported on the first call."""
    module, name = spec.split(":")
    return getattr(importlib.import_module(module), name)
