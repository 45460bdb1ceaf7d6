"""Import objects by name, only when they are chosen."""

import importlib
from typing import Any

from utils.errors import UserError


def load(spec: str) -> Any:
    """Import a module and return the object that "module:name" names."""
    module, name = spec.split(":")
    return getattr(importlib.import_module(module), name)


def package(name: str, use: str, install: str = "") -> Any:
    """Import an optional package, or a module of it. Raises UserError that says what needs it if it is not installed.

    install: names for pip, if they differ from the name of the package.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        top = name.partition(".")[0]
        raise UserError(f"{use} needs the package {top}: pip install {install or top}") from error
