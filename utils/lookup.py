"""Import by name only what is chosen."""

import importlib
from typing import Any

from utils.errors import UserError


def load(spec: str) -> Any:
    """The object that "module:name" names; its module is imported now."""
    module, name = spec.split(":")
    return getattr(importlib.import_module(module), name)


def package(name: str, use: str, install: str = "") -> Any:
    """An optional package, or a module of it. Raises UserError where it is not installed, with what needs it.

    install: names for pip, where they are not that of the package.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        top = name.partition(".")[0]
        raise UserError(f"{use} needs the package {top}: pip install {install or top}") from error
