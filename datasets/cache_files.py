"""The files of a cache directory: one program fills it at a time, and the least recently used go when it is full."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils.logging import log

DIGEST = "[0-9a-f]" * 16  # in names of files: those of others in the directory are none of our business
STARTED = time.time() - 1  # of this program; a second for file systems that round


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One program at a time fills a cache: a second waits, and then finds the files of the first."""
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        (directory / f".{os.getpid()}.probe").touch()  # raises OSError where nothing can be made at all
        (directory / f".{os.getpid()}.probe").unlink()
        log.info("another program is filling %s; waiting for it", directory)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_room(directory: Path, limit: float) -> None:
    """Remove what killed builds left, and the least recently used files until the rest has no more than `limit` bytes.

    To be called with the directory locked.
    """
    unfinished = [path for path in directory.glob(f"*-{DIGEST}.npy") if not path.with_suffix(".json").is_file()]
    for path in (*unfinished, *directory.glob(f".*-{DIGEST}.*.tmp")):
        path.unlink()
    used = 0
    for record, size in sorted(files_of(directory), key=lambda file: -file[0].stat().st_mtime):
        used += size
        if size and used > limit:
            record.unlink()
            record.with_suffix(".npy").unlink(missing_ok=True)


def files_of(directory: Path) -> list[tuple[Path, int]]:
    """The records of a cache, each with the bytes of its pictures: 0 for a set that is only known to be readable."""
    pictures = ((record, record.with_suffix(".npy")) for record in directory.glob(f"*-{DIGEST}.json"))
    return [(record, path.stat().st_size if path.is_file() else 0) for record, path in pictures]


def in_use(directory: Path) -> int:
    """Bytes of the files that were used since this program started."""
    return sum(size for record, size in files_of(directory) if record.stat().st_mtime > STARTED)
