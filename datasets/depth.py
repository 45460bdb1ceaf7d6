"""Images of more than 8 bits per value: one range of values for a whole set, and their conversion to uint8."""

from collections.abc import Sequence

import numpy as np

from config import Config
from datasets.base import ReIDDataset
from datasets.images import UNKNOWN, Range, decode_bytes, read_bytes
from utils.errors import UserError
from utils.logging import log

MOST_SCANNED = 1000  # most pictures that are read to find the range of a set


def to_8_bits(image: np.ndarray, pixel_range: Range = UNKNOWN) -> np.ndarray:
    """Convert an image to uint8: scale values linearly, so that `pixel_range` (unknown: their own) becomes 0 to 255."""
    image = np.nan_to_num(image.astype(np.float32), posinf=0, neginf=0)
    low, high = pixel_range if any(pixel_range) else (float(image.min()), float(image.max()))
    return np.clip((image - low) * (255 / max(high - low, 1e-6)) + 0.5, 0, 255).astype(np.uint8)


def with_pixel_range(cfg: Config, dataset: ReIDDataset) -> Config:
    """Return the settings with the value range of images of more than 8 bits: of the training or else test images."""
    found = find_pixel_range([s.path for s in dataset.train])
    found = found if any(found) else find_pixel_range([s.path for s in dataset.query + dataset.gallery])
    if any(found):
        log.info("%s has images of more than 8 bits: %g is black and %g white in all of them", dataset.name, *found)
        return cfg.replace(pixel_range=found)
    return cfg


def find_pixel_range(paths: Sequence[str]) -> Range:
    """Return the value range of the files that have more than 8 bits per value; `UNKNOWN` if there are none.

    The lowest and highest thousandth are left out, as they contain broken pixels. Then a margin of a tenth is added on
    both sides, for other pictures. Of many files, only evenly spaced ones are read.
    """
    values = []
    for path in paths[:: -(-len(paths) // MOST_SCANNED) or 1]:
        try:
            with open(path, "rb") as file:
                head = file.read(25)
            if not (head.startswith((b"II*", b"MM\0*")) or (head.startswith(b"\x89PNG") and head[24:] == b"\x10")):
                continue
            image = decode_bytes(path, read_bytes(path))
        except (UserError, OSError, ValueError):  # reported where all images are read
            continue
        if image.dtype != np.uint8:
            values.append(image.ravel()[:: image.size // 4096 | 1])
    values = np.concatenate(values or [np.empty(0)])
    values = values[np.isfinite(values)]
    if not len(values):
        return UNKNOWN
    low, high = (float(value) for value in np.quantile(values, (0.001, 0.999)))
    margin = max(0.1 * (high - low), 1e-6)
    return low - margin, high + margin
