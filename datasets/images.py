"""One image file to a uint8 array, decoded by cv2, or an error that names it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError

cv2.setNumThreads(0)  # our threads are one an image; cv2's own would only get in their way

# JPEG, PNG, BMP, WebP and TIFF: what cv2 reads beside, nobody keeps pictures of people in, and some of it crashes.
KINDS = (b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF", b"II*\0", b"MM\0*")
MOST_BYTES = 2**29
MOST_PIXELS = 2**26  # beyond that, decoding would fill the memory, and it is no crop of anybody
SIZE_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # segments of a JPEG that hold its height and width


def read_image(path: str | Path, height: int, width: int) -> np.ndarray:
    """One image file as (height, width, 3) uint8 RGB, whatever its colour space and depth, turned as its EXIF says.

    Raises UserError, naming the path, when the file is missing, unreadable, no image, cut short, or huge.
    """
    image = decode(path)
    if image.shape[:2] != (height, width):
        shrinks = image.shape[0] > height or image.shape[1] > width
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image


def decode(path: str | Path) -> np.ndarray:
    """The same at its own size."""
    return decode_bytes(path, read_bytes(path))


def read_bytes(path: str | Path) -> np.ndarray:
    """What is in a file, (N,) uint8. Raises UserError, naming the path, for what cannot be read or is no file."""
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for, a device never ends
            raise UserError(f"{path} cannot be read: it is a directory, pipe or device")
        if about.st_size > MOST_BYTES:
            raise UserError(f"{path} has {about.st_size} bytes, which is too much; restore or remove it")
        return np.fromfile(path, dtype=np.uint8)
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}") from error


def decode_bytes(path: str | Path, data: np.ndarray) -> np.ndarray:
    """`decode` of what was read from `path`, which is named in errors."""
    if not data[:8].tobytes().startswith(KINDS):
        raise UserError(f"{path} is not an image: no JPEG, PNG, BMP, WebP or TIFF ({len(data)} bytes); remove it")
    size, whole = _header(data.tobytes())
    if not whole:
        raise UserError(f"{path} is cut short (a JPEG or PNG without its end); restore or remove it")
    if size[0] * size[1] > MOST_PIXELS:
        raise UserError(
            f"{path} says that it has {size[0]} x {size[1]} pixels, which is too much; restore or remove it"
        )
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    except (cv2.error, MemoryError):
        image = None
    if image is None:
        raise UserError(f"{path} is not an image that can be decoded ({len(data)} bytes); restore or remove it")
    return image


def _header(data: bytes) -> tuple[tuple[int, int], bool]:
    """Width and height that a JPEG, PNG or BMP claims ((0, 0): unknown), and whether a JPEG has its end marker.

    Of a JPEG without it some cv2 versions decode what is left and fill up with gray. Decoders of other kinds tell.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        at = 8
        while at < len(data) and data[at + 4 : at + 8] != b"IEND":  # cv2 would get memory for a block of any length
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        size = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        return size, at + 12 <= len(data)
    if data.startswith(b"BM"):
        if data[14:18] == b"\x0c\0\0\0":  # the short header of OS/2
            return tuple(int.from_bytes(data[i : i + 2], "little") for i in (18, 20)), True
        return tuple(abs(int.from_bytes(data[i : i + 4], "little", signed=True)) for i in (18, 22)), True
    if not data.startswith(b"\xff\xd8"):
        return (0, 0), True
    at, size = 2, (0, 0)
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"", b"\xda"):  # up to the picture data:
        if data[at + 1] == 0xFF:  # a byte that only fills
            at += 1
            continue
        if data[at + 1] in SIZE_MARKERS:
            size = int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")  # a thumbnail before it has an end marker of its own
    return size, data.find(b"\xff\xd9", at) >= 0
