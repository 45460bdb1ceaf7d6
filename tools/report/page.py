"""The report's page: one HTML file with its style, program, values and pictures."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from datasets.augment import normalise
from datasets.images import read_image
from processor.test import TestJob
from tools.gradcam import activation_maps, overlay, similarity_maps
from tools.report.data import Ranked

PAGE = Path(__file__).resolve().parent
SCRIPTS = ("plots.js", "page.js", "lists.js", "query.js")
QUALITY = 75  # of the JPEGs, 0 to 100


def make_page(values: dict[str, Any], thumbs: Sequence[str]) -> str:
    """The HTML of values for JSON and of pictures as `thumbnails` makes them. Nothing in them can become markup."""

    def read(name: str) -> str:
        return (PAGE / name).read_text(encoding="utf-8")

    common = os.path.commonprefix(thumbs)  # noqa: RUF071 (no paths; storing it once saves a third)
    parts = {
        "title": html.escape(values["title"].encode(errors="replace").decode()),
        "style": read("page.css"),
        "script": "\n".join(map(read, SCRIPTS)),
        # "<" would end the element early if a name held "</script>"; as an escape it begins nothing
        "data": json.dumps(values, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "thumbs": "\n".join([common, *(thumb[len(common) :] for thumb in thumbs)]),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], read("page.html"))


def thumbnails(paths: Sequence[str | Path], height: int, width: int, workers: int) -> list[str]:
    """Each image as a JPEG of that size, in base64. All begin with the same characters: the encoder's tables."""
    with ThreadPoolExecutor(workers) as pool:
        made = pool.map(lambda path: jpeg(read_image(path, height, width)), paths)
        return list(tqdm(made, desc="pictures", unit="img", total=len(paths), leave=False, disable=None, delay=2))


def jpeg(image: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB to a JPEG in base64."""
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return base64.b64encode(data.tobytes()).decode()


def heat_maps(test: TestJob, query: int, ranked: Ranked) -> list[dict[str, Any]]:
    """A query's heat maps: where its features are strong, and what makes it similar to its nearest right and wrong
    image. Each is a dict of `words` and `images`, JPEGs in base64 of the query and of the other image."""
    data, gallery = test.cfg.data, test.gallery.samples
    others = sorted((found[0], word) for word in ("right", "wrong") if (found := getattr(ranked, word)))
    paths = [test.query.samples[query].path, *(gallery[g].path for (_, g, _), _ in others)]
    pixels = np.stack([read_image(path, data.height, data.width, data.pixel_range) for path in paths])
    images = normalise(torch.from_numpy(pixels).to(test.device))
    strong = activation_maps(test.model, images[:1]).mean(1)[0]
    strong = strong - strong.min()  # as tools/heatmap.py draws it
    maps = [{"words": "features alone", "images": [jpeg(overlay(pixels[0], strong.cpu().numpy()))]}]
    for place, ((rank, *_), word) in enumerate(others, 1):
        *both, cosines = similarity_maps(test.model, images[:1], images[place : place + 1])
        heats = [m[0].mean(0).cpu().numpy() for m in both]
        drawn = [jpeg(overlay(pixels[i], heat)) for i, heat in zip((0, place), heats, strict=True)]
        maps.append({"words": f"rank {rank:,}, {word}: cosine {cosines.mean():.2f}", "images": drawn})
    return maps
