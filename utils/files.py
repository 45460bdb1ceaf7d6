"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np


def write_atomically(
    path: str | Path, write: Callable[[Path], None], before_rename: Callable[[], None] | None = None
) -> None:
    """`write` fills a temporary file beside `path`, which is flushed to disk and then renamed to it.

    Whatever stops the program before the rename leaves the old file as it was. `before_rename` is called once the new
    one is whole and on the disk. Raises OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # a full network disk says so only here
        if before_rename:
            before_rename()
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names none
        raise
    finally:
        with contextlib.suppress(OSError):  # of a directory that is gone; the first error is the one to tell
            temporary.unlink(missing_ok=True)
    flush_names(path.parent)


def flush_names(directory: Path) -> None:
    """Have the system put a directory's changes of names on the disk, so that they outlive a power cut."""
    with contextlib.suppress(OSError):  # some file systems do that of themselves, and refuse
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: str | Path, value: Any) -> None:
    """Indented JSON, atomically."""
    text = json.dumps(value, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_rows(path: str | Path, length: int, parts: Iterable[np.ndarray]) -> None:
    """Arrays one below the other as one .npy file of `length` rows, atomically; one part at a time is in memory.

    Plain writes, as a full disk is an OSError then; in a memory-mapped file it would end the program.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            rows, like = 0, None
            for part in parts:
                if part.dtype.hasobject or (like is not None and (part.dtype, part.shape[1:]) != like):
                    raise ValueError(f"rows of {part.dtype} {part.shape[1:]} cannot be added to a file of {like}")
                if like is None:
                    like = part.dtype, part.shape[1:]
                    header = {"descr": np.lib.format.dtype_to_descr(part.dtype), "fortran_order": False}
                    np.lib.format.write_array_header_1_0(file, header | {"shape": (length, *part.shape[1:])})
                file.write(np.ascontiguousarray(part).data)
                rows += len(part)
            if rows != length:
                raise ValueError(f"{rows} rows for a file of {length}")

    write_atomically(path, write)
