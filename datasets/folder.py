"""Find the pictures in a folder and below it, without identities or cameras."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from datasets.own import PICTURES
from utils.errors import UserError


class File(NamedTuple):
    """A file, and what changes when its content does."""

    path: str  # relative to the folder, with / as separator
    size: int  # bytes
    changed: int  # nanoseconds since 1970 of its last change of any kind: a file that is renamed keeps its mtime


def find_pictures(folder: str | Path) -> tuple[list[str], int]:
    """Sorted paths of all pictures in a folder and below it, relative to it, and the number of other files.

    Pictures are recognised by their suffix. Hidden files and folders are skipped. Links are followed, and every folder
    is entered once, however many links lead to it. Raises UserError where a folder cannot be read.
    """
    pictures, others, entered = [], 0, {os.path.realpath(folder)}

    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    for base, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        real = {name: os.path.realpath(os.path.join(base, name)) for name in sorted(folders) if name[0] != "."}
        folders[:] = []
        for name, place in real.items():
            if place not in entered:
                entered.add(place)
                folders.append(name)
        for name in files:
            if name[0] == ".":
                continue
            if Path(name).suffix.lower() in PICTURES:
                pictures.append(Path(os.path.relpath(os.path.join(base, name), folder)).as_posix())
            else:
                others += 1
    return sorted(pictures), others


def state_of(path: str | Path, name: str) -> File:
    """The file at `path` under another name; size and time are 0 if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return File(name, 0, 0)
    return File(name, status.st_size, max(status.st_mtime_ns, status.st_ctime_ns))


def place_of(root: str | Path, path: str) -> Path:
    """Where a path from os.path.relpath leads, also one with .. in it if `root` is a link or does not exist."""
    return Path(os.path.normpath(os.path.join(root, path)))
