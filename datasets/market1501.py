"""Market-1501 (Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015), and its folder layout."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from datasets.base import ReIDDataset, Sample
from utils.errors import UserError

NAME = re.compile(r"^(-?\d+)_c(\d)")  # 0002_c1s1_000451_03.jpg; some end in .jpg.jpg; Thumbs.db lies beside them
JUNK = -1  # gallery boxes that are neither a person to find nor a distractor: dropped, as the protocol says
FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
PUBLISHED = {"train": (12936, 751), "query": (3368, 750), "gallery": (15913, 751)}  # images, ids (gallery: with pid 0)


def market1501(root: str | Path) -> ReIDDataset:
    """List ROOT/Market-1501-v15.09.15 (or ROOT/Market-1501, ROOT/market1501, or ROOT itself).

    Raises UserError when it is not there; warns when the counts are not the published ones.
    """
    root = Path(root)
    names = ("Market-1501-v15.09.15", "Market-1501", "Market1501", "market1501", ".")
    base = next((root / n for n in names if (root / n / FOLDERS["train"]).is_dir()), None)
    if base is None:
        raise UserError(
            f"Market-1501 is not under {root.absolute()}; unpack it so that "
            f"{root / names[0]}/{{{','.join(FOLDERS.values())}}} exist, or name its place with --data-root or REID_DATA"
        )
    dataset = read_layout("market1501", base)
    for split, (images, ids) in PUBLISHED.items():
        samples = getattr(dataset, split)
        found = (len(samples), len({s.pid for s in samples}))
        if found != (images, ids):
            warnings.warn(
                f"Market-1501 {split} at {base / FOLDERS[split]} has {found[0]} images of {found[1]} pids, the "
                f"published set {images} of {ids}: scores will not be comparable",
                stacklevel=2,
            )
    return dataset


def read_layout(name: str, base: Path) -> ReIDDataset:
    """A set in Market-1501's folders and file names. Raises UserError where a folder is missing or empty."""
    return ReIDDataset(name, **{split: _read_folder(base / folder) for split, folder in FOLDERS.items()})


def _read_folder(folder: Path) -> list[Sample]:
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; the layout needs {', '.join(FOLDERS.values())} beside each other")
    samples = []
    for path in sorted(folder.iterdir()):  # file order decides ties, so it must not depend on the file system
        match = NAME.match(path.name)
        if match and path.suffix.lower() in (".jpg", ".jpeg", ".png") and int(match[1]) != JUNK:
            samples.append(Sample(str(path), int(match[1]), int(match[2])))
    if not samples:
        raise UserError(f"{folder} holds no image named like 0002_c1s1_000451_03.jpg; is it the right folder?")
    return samples
