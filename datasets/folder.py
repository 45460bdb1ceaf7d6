"""The pictures in a folder and below it, whoever is on them: no identities, no cameras."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from datasets.own_files import PICTURES
from utils.errors import UserError


class File(NamedTuple):
    """A file, and what changes when its content does."""

    path: str  # relative to the folder, with / between
    size: int  # bytes
    changed: int  # nanoseconds from 1970 to its last change of any kind: a file renamed to another keeps its mtime


def find_pictures(folder: str | Path) -> tuple[list[str], int]:
    """Paths of all pictures in a folder and below it, relative to it, with / between and in their order; and the number
    of other files, which are passed over.

    What is a picture is told by the end of its name. Hidden files and folders are neither. Links are followed, and
    every folder is entered once, however many lead to it. Raises UserError where a folder cannot be read.
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
    """The file at `path` under another name; size and time are 0 where there is none."""
    try:
        about = os.stat(path)
    except OSError:
        return File(name, 0, 0)
    return File(name, about.st_size, max(about.st_mtime_ns, about.st_ctime_ns))


def place_of(root: str | Path, path: str) -> Path:
    """Where a path that os.path.relpath gave leads, also one with .. in it where `root` is a link, or gone."""
    return Path(os.path.normpath(os.path.join(root, path)))
