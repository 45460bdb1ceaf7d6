"""Find the pictures in a folder and below it, without identities or cameras."""

from __future__ import annotations

import os
from pathlib import Path

from datasets.layouts import PICTURES
from utils.errors import UserError


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
