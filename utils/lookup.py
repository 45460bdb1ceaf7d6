"""Import by name only what is chosen."""

import importlib
from typing import Any

from utils.errors import UserError


def load(spec: str) -> Any:
    """The object that "module:name" names; its module is imported now."""
    module, name = spec.split(":")
    return getattr(importlib.import_module(module), name)


def package(name: str, use: str) -> Any:
    """An optional package. Raises UserError that says what needs it where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{use} needs the package {name}: pip install {name}") from error
