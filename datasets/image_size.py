"""Sizes and shapes of image files."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.images import decode
from utils.errors import UserError

MEASURED = 64  # images whose shapes are measured


def check_size(path: str | Path, data: np.ndarray) -> None:
    """Raises UserError for an image whose header has more than 2^26 pixels, or cannot be read by Pillow.

    For programs that import cv2 before PlainReID: cv2 then has no pixel limit of its own.
    """
    try:
        with Image.open(io.BytesIO(data)) as header:
            pixels = header.width * header.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it, or import PlainReID before cv2") from error
    if pixels > 2**26:
        raise UserError(f"{path} cannot be decoded: its {pixels} pixels are too many; restore or remove it")


def measure_ratio(paths: Sequence[str | Path]) -> float:
    """Return the median height : width of some evenly spaced images; 2 if none can be read."""
    ratios = []
    for path in paths[:: -(-len(paths) // MEASURED) or 1]:
        with contextlib.suppress(UserError):  # reported where all images are read
            ratios.append(np.divide(*decode(path).shape[:2]))
    return float(np.median(ratios or [2.0]))
