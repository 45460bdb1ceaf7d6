"""Read one image file as a uint8 array, or raise an error that names it."""

import os
import stat
from pathlib import Path

import cv2
import numpy as np

from config.config import DataSettings
from utils.errors import UserError
from utils.lookup import load

cv2.setNumThreads(0)  # we decode one image per thread; OpenCV's own threads would only compete with these

# First bytes of JPEG, PNG, BMP, WebP and TIFF. OpenCV also reads formats that are never used for photos, some unsafely.
SIGNATURES = (b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF", b"II*\0", b"MM\0*")
MAX_BYTES = 2**29
Range = tuple[float, float]  # pixel values that become black and white
UNKNOWN: Range = (0.0, 0.0)


def read_image(
    path: str | Path, height: int, width: int, pixel_range: Range = UNKNOWN, shrink: str = "area"
) -> np.ndarray:
    """Read an image file as (height, width, 3) uint8 RGB, from any color space and depth, rotated by its EXIF tag.

    pixel_range: value range of files with more than 8 bits per value (unknown: the image's own, as when showing it).
    shrink: as in `resize`. Raises UserError, naming the path, when the file is missing, unreadable, not an image,
    truncated or huge.
    """
    return resize(decode(path, pixel_range), height, width, shrink)


def read_input(path: str | Path, data: DataSettings) -> np.ndarray:
    """Read an image file as input of a network with these settings, (height, width, 3) uint8 RGB; see `read_image`."""
    return read_image(path, data.height, data.width, data.pixel_range, data.shrink)


def read_whole(path: str | Path, longest: int, pixel_range: Range = UNKNOWN) -> np.ndarray:
    """Like `read_image`, but keep the aspect ratio, with at most `longest` pixels on the longer side, for display."""
    image = decode(path, pixel_range)
    shrink = min(1.0, longest / max(image.shape[:2]))
    size = [max(1, round(shrink * side)) for side in image.shape[1::-1]]
    return image if shrink == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def decode(path: str | Path, pixel_range: Range = UNKNOWN) -> np.ndarray:
    """Like `read_image`, but keep the image's own size (H, W, 3)."""
    image = decode_bytes(path, read_bytes(path))
    return image if image.dtype == np.uint8 else load("datasets.depth:to_8_bits")(image, pixel_range)


def resize(image: np.ndarray, height: int, width: int, shrink: str = "area") -> np.ndarray:
    """Resize an image (H, W, 3) to (height, width, 3): to a smaller size by the mean of the area behind each pixel (if
    shrink is "area"), otherwise bilinearly, from the four nearest pixels."""
    if image.shape[:2] == (height, width):
        return image
    by_area = shrink == "area" and (image.shape[0] > height or image.shape[1] > width)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if by_area else cv2.INTER_LINEAR)


def read_bytes(path: str | Path) -> np.ndarray:
    """Read the content of a file, (N,) uint8. Raises UserError, naming the path, when it cannot be read."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait, and reading a device may never end
            raise UserError(f"{path} cannot be read: it is a directory, pipe or device")
        if status.st_size > MAX_BYTES:
            raise UserError(f"{path} has {status.st_size} bytes, which is too many; restore or remove it")
        return np.fromfile(path, dtype=np.uint8)
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}") from error


def decode_bytes(path: str | Path, data: np.ndarray) -> np.ndarray:
    """Decode a file's content to an image (H, W, 3) RGB, uint8 or deeper; `path` is for the error message."""
    if not data[:8].tobytes().startswith(SIGNATURES):
        raise UserError(f"{path} is not a JPEG, PNG, BMP, WebP or TIFF image ({len(data)} bytes); remove it")
    if "OPENCV_IO_MAX_IMAGE_PIXELS" not in os.environ:  # the caller has imported cv2 before us, so without a limit
        load("datasets.image_size:check_size")(path, data)
    try:
        # None if truncated (checked with OpenCV 4.11, 4.14 and 5.0)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
    except (cv2.error, MemoryError):  # cv2.error: more pixels than OPENCV_IO_MAX_IMAGE_PIXELS
        image = None
    if image is None:
        raise UserError(f"{path} cannot be decoded: it is truncated, damaged or too large; restore or remove it")
    return image
