"""Files: reading them with one error message, writing them atomically, and locking directories."""

import contextlib
import csv
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from utils.errors import UserError, reason
from utils.logging import log

# Exceptions that readers of JSON, CSV, NumPy, zip, pickle and torch files raise for missing or damaged files.
UNREADABLE = (
    OSError, ValueError, TypeError, LookupError, AttributeError, EOFError, RuntimeError, MemoryError,
    csv.Error, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@contextlib.contextmanager
def reading(path: str | Path, fix: str = "") -> Iterator[None]:
    """Turn any error while `path` is read or parsed inside into the UserError "PATH cannot be read (reason); FIX"."""
    try:
        yield
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({reason(error)})" + (f"; {fix}" if fix else "")) from error


def load_plain(path: str | Path, allowed: Sequence[Any] = ()) -> Any:
    """Load tensors and plain values with torch.load. allowed: other types, for `torch.serialization.safe_globals`.

    Raises UserError for any other file, for a compressed file (torch writes none), and for a file whose bytes changed
    after it was written (torch does not check that).
    """
    import torch

    with reading(path, "give an undamaged file of torch.save"), torch.serialization.safe_globals(list(allowed)):
        check_unpacked_size(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch treats a part with such an attribute as a directory, and fills its tensor with random memory
                odd = [part.filename for part in archive.infolist() if part.external_attr]
                damaged = archive.testzip() or (odd and odd[0])
            if damaged:
                raise ValueError(f"its part {damaged} is damaged")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} is damaged, or holds more than tensors and plain values and could run code when loaded; "
                "refused (if it is a whole model, save its state_dict instead)"
            ) from error


def check_unpacked_size(path: str | Path, most: float = 1) -> None:
    """Raise ValueError for a zip archive that unpacks to more than `most` times its size: it could fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
        if size > most * Path(path).stat().st_size:
            raise ValueError(f"a compressed archive of {size:,} bytes, which could fill the memory")


@contextlib.contextmanager
def lock_directory(directory: str | Path, *, wait: bool = False, leftovers: str = ".*.tmp") -> Iterator[bool]:
    """Let only one program use a directory, which is created if missing; yields False if another program uses it.

    wait: wait for the other program instead. leftovers: glob of unfinished files of killed programs, which are removed.
    Has no effect on file systems without locks. Raises OSError if the directory cannot be written to.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f".probe.{os.getpid()}.tmp"
    probe.touch()  # in a directory that cannot be written to, the lock would seem to be held
    probe.unlink(missing_ok=True)
    lock, locked = FileLock(directory / ".lock"), True
    try:
        lock.acquire(timeout=0.5 if wait else 0)
    except Timeout:
        locked = wait
        if wait:
            log.info("another program uses %s; waiting for it", directory)
            lock.acquire()
    except NotImplementedError:  # a file system without locks
        pass
    try:
        for unfinished in directory.glob(leftovers) if locked else ():
            unfinished.unlink(missing_ok=True)
        yield locked
    finally:
        lock.release()


def write_atomically(
    path: str | Path, write: Callable[[Path], None], before_rename: Callable[[], None] | None = None
) -> None:
    """Let `write` fill a temporary file next to `path`, flush it to disk, and rename it to `path`.

    Until then the old file is unchanged. `before_rename` is called once the new file is on the disk. Raises OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # a full network disk raises its error only here
        if before_rename:
            before_rename()
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # the error of a full disk names no file
        raise
    finally:
        with contextlib.suppress(OSError):  # the directory may be gone; the first error is the one to report
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # so that the new name survives a power cut, if the file system can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_csv(path: str | Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, whose first row holds the column names, atomically; file names may contain any bytes."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows(rows)

    write_atomically(path, write)


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON, atomically."""
    text = json.dumps(value, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_rows(path: str | Path, length: int, parts: Iterable[np.ndarray]) -> None:
    """Write arrays, stacked, as one .npy file of `length` rows, atomically; only one part at a time is in memory.

    It uses plain writes, so that a full disk raises OSError; with a memory-mapped file it would kill the program.
    """

    def write(temporary: Path) -> None:
        rows = 0
        with open(temporary, "wb") as file:
            for number, part in enumerate(parts):
                if number == 0:
                    header = np.lib.format.header_data_from_array_1_0(part) | {"fortran_order": False}
                    np.lib.format.write_array_header_1_0(file, header | {"shape": (length, *part.shape[1:])})
                file.write(np.ascontiguousarray(part).data)
                rows += len(part)
        if rows != length:
            raise ValueError(f"{rows} rows for a file of {length}")

    write_atomically(path, write)
