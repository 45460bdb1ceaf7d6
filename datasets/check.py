"""What can be said of a dataset before anything is trained on it: counts, sizes, and what ought to be mended."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from datasets.base import ReIDDataset, Sample
from datasets.images import decode_bytes, read_bytes
from utils.errors import UserError

SIDES = {"train": ("train",), "test": ("query", "gallery")}
SPLITS = ("train", "query", "gallery")
MOST_CAMERAS = 50  # beyond that, there is no table of cameras


class File(NamedTuple):
    """What one image file turned out to be."""

    size: tuple[int, int]  # width, height; (0, 0) where it cannot be decoded
    digest: str  # of its bytes
    error: str


def look_at(path: str) -> File:
    try:
        data = read_bytes(path)
        height, width = decode_bytes(path, data).shape[:2]
        return File((width, height), hashlib.sha1(data).hexdigest(), "")
    except UserError as error:
        return File((0, 0), "", str(error))


def look_at_all(paths: list[str], workers: int) -> dict[str, File]:
    """Path to what is there, with progress."""
    pool = ThreadPoolExecutor(workers)
    try:
        with closing(tqdm(total=len(paths), desc="look", unit="img", leave=False, disable=None)) as bar:
            files = {}
            for path, file in zip(paths, pool.map(look_at, paths), strict=True):
                files[path] = file
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
    return files


def counts(dataset: ReIDDataset) -> list[str]:
    """Images an identity and a camera, of each split."""
    lines = [dataset.describe()]
    for split in SPLITS:
        samples = getattr(dataset, split)
        images = sorted(Counter(s.pid for s in samples if s.pid).values())
        if images:
            middle, mean = images[len(images) // 2], np.mean(images)
            row = f"{images[0]} to {images[-1]}, median {middle}, mean {mean:.1f}"
            nobody = sum(s.pid == 0 for s in samples)
            lines.append(f"{split}: images an identity {row}" + (f"; {nobody} distractors" if nobody else ""))
    cameras = sorted({s.camid for split in SPLITS for s in getattr(dataset, split)})
    if not dataset.cameras:
        return lines
    if len(cameras) > MOST_CAMERAS:
        return [*lines, f"{len(cameras)} cameras: too many for a table"]
    lines.append(f"{'camera':<8}" + "".join(f"{split + ' img':>13}{'ids':>7}" for split in SPLITS))
    for camera in cameras:
        cells = ""
        for split in SPLITS:
            seen = [s.pid for s in getattr(dataset, split) if s.camid == camera]
            cells += f"{len(seen):>13}{len(set(seen) - {0}):>7}"
        lines.append(f"{camera:<8}{cells}")
    return lines


def sizes(files: dict[str, File]) -> list[str]:
    """Quantiles of width, height and height:width, and a histogram of heights."""
    whole = np.array([file.size for file in files.values() if not file.error])
    if not len(whole):
        return []
    lines = [f"{'':<14}" + "".join(f"{name:>8}" for name in ("least", "5 %", "median", "95 %", "most"))]
    shape = {"width": whole[:, 0], "height": whole[:, 1], "height:width": whole[:, 1] / whole[:, 0]}
    for name, values in shape.items():
        digits = 2 if name == "height:width" else 0
        quantiles = np.quantile(values, (0, 0.05, 0.5, 0.95, 1))
        lines.append(f"{name:<14}" + "".join(f"{value:>8.{digits}f}" for value in quantiles))
    edges = [0, 32, 64, 96, 128, 192, 256, 384, 512, 1024, np.inf]
    number, _ = np.histogram(whole[:, 1], edges)
    for (low, high), n in zip(pairwise(edges), number, strict=True):
        if n:
            title = f"{low} to {high - 1}" if high < np.inf else f"{low} and more"
            lines.append(f"height {title:<13}{n:>8} {'#' * max(1, round(40 * n / len(whole)))}")
    return lines


def equal_files(dataset: ReIDDataset, files: dict[str, File]) -> list[list[tuple[str, Sample]]]:
    """Groups of files of the same bytes, each with the split that it is in."""
    groups: dict[str, list[tuple[str, Sample]]] = defaultdict(list)
    for split in SPLITS:
        for s in getattr(dataset, split):
            if files[s.path].digest:
                groups[files[s.path].digest].append((split, s))
    return [group for group in groups.values() if len({s.path for _, s in group}) > 1]


def problems(dataset: ReIDDataset, files: dict[str, File]) -> dict[str, list[str]]:
    """Kind of problem to its cases."""
    found: dict[str, list[str]] = {}
    found["files that cannot be decoded"] = [file.error for file in files.values() if file.error]
    equal = equal_files(dataset, files)
    texts = {id(group): " = ".join(sorted({s.path for _, s in group})) for group in equal}
    across = [group for group in equal if len({s.pid for _, s in group}) > 1]
    leaked = [group for group in equal if len({split in SIDES["test"] for split, _ in group}) > 1]
    found["equal files of different identities"] = [texts[id(group)] for group in across]
    found["equal files in training and test"] = [texts[id(group)] for group in leaked]
    trained, tested = ({s.pid for split in names for s in getattr(dataset, split)} for names in SIDES.values())
    found["identities in both training and test"] = [dataset.called(pid) for pid in sorted(trained & tested - {0})]
    matches = {(s.pid, s.camid) for s in dataset.gallery}
    cameras: dict[int, set[int]] = defaultdict(set)
    for pid, camid in matches:
        cameras[pid].add(camid)
    if dataset.protocol == "standard":
        alone = [s.path for s in dataset.query if not cameras[s.pid] - {s.camid}]
        found["queries without a match under another camera"] = alone
    return {kind: cases for kind, cases in found.items() if cases}
