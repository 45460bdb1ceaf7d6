"""Find the pictures in a folder and below it, without identities or cameras."""

import os
from pathlib import Path

from utils.errors import UserError
from utils.logging import log

# Formats that cannot be read here are listed too, so that such files give an error and are not overlooked.
PICTURES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff",
            ".heic", ".heif", ".avif", ".gif", ".jp2", ".jxl", ".dng", ".cr2", ".nef"}  # fmt: skip


def list_pictures(place: str | Path) -> list[Path]:
    """List the pictures in a folder and its subfolders, or the picture itself. The log has the number of other files.

    Raises UserError if there is no such file or folder, and for a folder without pictures.
    """
    place = Path(place)
    if not place.exists():
        raise UserError(f"there is no {place}; name a folder of pictures or a picture")
    names, others = find_pictures(place) if place.is_dir() else ([""], 0)
    if not names:
        raise UserError(f"{place} holds no picture, but {others} other files; give a folder of pictures, or a run")
    if others:
        log.info("files in %s left out, as their suffixes are not those of pictures: %d", place, others)
    return [place / name for name in names]


def find_pictures(folder: str | Path) -> tuple[list[str], int]:
    """Return sorted relative paths of all pictures in a folder and its subfolders, and the number of other files.

    Pictures are recognized by their suffix. Hidden files and folders are skipped. Links are followed, and every folder
    is entered once, however many links lead to it. Raises UserError if a folder cannot be read.
    """
    pictures, others, top = [], 0, Path(folder).resolve()
    entered = {str(place) for place in (top, *top.parents)}

    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    for base, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        found, folders[:] = sorted(name for name in folders if name[0] != "."), []
        for name in found:
            if (place := os.path.realpath(os.path.join(base, name))) not in entered:
                entered.add(place)
                folders.append(name)
        below = Path(base).relative_to(folder)
        for name in files:
            if name[0] != "." and os.path.splitext(name)[1].lower() in PICTURES:
                pictures.append((below / name).as_posix())
            else:
                others += name[0] != "."
    return sorted(pictures), others
