"""Create directories of images, either complete or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Yield a hidden directory to fill, which is renamed to `path` at the end, so that `path` is always complete.

    Raises OSError if it cannot be written, or if something is at `path`.
    """
    partial = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed program with the same process number
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
