"""Pictures of a report: small JPEGs as text, and heat maps drawn over images."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from config import Config
from datasets.augment import normalise
from datasets.images import read_image
from model import ReIDModel
from processor.heatmap import activation_maps, similarity_maps
from utils.heatmap import overlay

QUALITY = 75  # of the JPEGs, 0 to 100


def thumbnails(paths: Sequence[str | Path], height: int, width: int, workers: int) -> list[str]:
    """Each image as a JPEG of that size, in base64. All begin with the same characters: the encoder's tables."""
    with ThreadPoolExecutor(workers) as pool:
        made = pool.map(lambda path: jpeg(read_image(path, height, width)), paths)
        return list(tqdm(made, desc="pictures", unit="img", total=len(paths), leave=False, disable=None, delay=2))


def jpeg(image: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB to a JPEG in base64."""
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return base64.b64encode(data.tobytes()).decode()


def pack(thumbs: Sequence[str]) -> str:
    """A line with what all of them begin with, and a line each with the rest: a third less than all of them whole."""
    common = os.path.commonprefix(thumbs)  # noqa: RUF071 (they are no paths, and characters are meant)
    return "\n".join([common, *(thumb[len(common) :] for thumb in thumbs)])


def heat_maps(
    cfg: Config, model: ReIDModel, device: torch.device, query: str, others: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """A query's heat maps: where its features are strong, and what makes it similar to each of the other images
    (words, path). A dict each: `words`, and `images`, JPEGs in base64 of the query and of the other image."""
    paths = [query, *(path for _, path in others)]
    pixels = np.stack([read_image(path, cfg.data.height, cfg.data.width) for path in paths])
    images = normalise(torch.from_numpy(pixels).to(device))
    strong = activation_maps(model, images[:1]).mean(1)[0]
    strong = strong - strong.min()  # as tools/heatmap.py draws it
    maps = [{"words": "features alone", "images": [jpeg(overlay(pixels[0], strong.cpu().numpy()))]}]
    if others:
        first, second, cosines = similarity_maps(model, images[:1].expand(len(others), -1, -1, -1), images[1:])
        for row, (words, _) in enumerate(others):
            heats = (m[row].mean(0).cpu().numpy() for m in (first, second))
            drawn = map(overlay, (pixels[0], pixels[row + 1]), heats)
            maps.append(
                {"words": f"{words}: cosine {cosines[row].mean():.2f}", "images": [jpeg(image) for image in drawn]}
            )
    return maps
