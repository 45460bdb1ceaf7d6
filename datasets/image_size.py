"""The size of an image from its header, for programs that import cv2 before PlainReID, so that it has no limit."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import UserError


def check_size(path: str | Path, data: np.ndarray) -> None:
    """Raises UserError for an image whose header has more than 2^26 pixels, or cannot be read by Pillow."""
    try:
        with Image.open(io.BytesIO(data)) as header:
            pixels = header.width * header.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it, or import PlainReID before cv2") from error
    if pixels > 2**26:
        raise UserError(f"{path} cannot be decoded: its {pixels} pixels are too many; restore or remove it")
