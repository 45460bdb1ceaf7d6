"""Market-1501 (Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015)."""

from __future__ import annotations

from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.layouts import MARKET_NAME, check_counts, find_base, list_images, read_layout
from utils.errors import UserError

NAMES = ("Market-1501-v15.09.15", "Market-1501", "Market1501", "market1501", ".")
TREE = """
bounding_box_train/    0002_c1s1_000451_03.jpg ...
query/                 0001_c1s1_001051_00.jpg ...
bounding_box_test/     0000_c1s1_000151_01.jpg ...
"""
PUBLISHED = {"train": (12936, 751), "query": (3368, 750), "gallery": (15913, 751)}  # images, ids (gallery: with pid 0)

DISTRACTORS = (  # the zip file holds one folder "images"; all of it is looked for in Market-1501's own folder
    "images", "distractors_500k/images", "distractors_500k", "../distractors_500k/images", "../distractors_500k",
)  # fmt: skip
DISTRACTOR_TREE = "0000_c1s1_000151_01.jpg ...    500,000 images, all called 0000"
PUBLISHED_500K = {**PUBLISHED, "gallery": (515913, 751)}


def market1501(root: str | Path) -> ReIDDataset:
    """List ROOT/Market-1501-v15.09.15 (or ROOT/Market-1501, ROOT/market1501, or ROOT itself).

    Raises UserError when it is not there; warns when the counts are not the published ones.
    """
    base = find_base("Market-1501", root, NAMES, "bounding_box_train", TREE)
    return check_counts(f"Market-1501 at {base}", read_layout("market1501", base), PUBLISHED)


def market1501_500k(root: str | Path) -> ReIDDataset:
    """Market-1501 with the 500,000 distractors of the same paper (its section 5.3) in the gallery, all of them pid 0.

    They lie in Market-1501's own folder, as `images` or `distractors_500k`, or beside it. Raises UserError when either
    is not there; warns when the counts are not the published ones.
    """
    base = find_base("Market-1501", root, NAMES, "bounding_box_train", TREE)
    folder = find_base("Market-1501's distractor set", base, DISTRACTORS, ".", DISTRACTOR_TREE)
    dataset = read_layout("market1501_500k", base)
    paths = list_images(folder)
    if not paths:
        raise UserError(f"{folder} holds no image; unpack distractors_500k.zip there")
    # Renamed files are welcome too: nobody's image needs no number, and its camera changes no score.
    matches = ((path, MARKET_NAME.match(path.name)) for path in paths)
    dataset.gallery += [Sample(str(path), 0, int(match[2]) if match else 0) for path, match in matches]
    return check_counts(f"Market-1501 + 500k at {base}", dataset, PUBLISHED_500K)
