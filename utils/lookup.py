"""Import by name only what is chosen."""

import importlib
from typing import Any


def load(spec: str) -> Any:
    """The object that "module:name" names; its module is imported now."""
    module, name = spec.split(":")
    return getattr(importlib.import_module(module), name)
