"""Market-1501 (Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015)."""

from pathlib import Path

from datasets.base import ReIDDataset
from datasets.layouts import check_counts, find_base, read_layout

NAMES = ("Market-1501-v15.09.15", "Market-1501", "Market1501", "market1501", ".")
PUBLISHED = {"train": (12936, 751), "query": (3368, 750), "gallery": (15913, 751)}  # images, ids (gallery: with pid 0)


def market1501(root: str | Path) -> ReIDDataset:
    """List Market-1501 under `root`; warns when the counts are not the published ones."""
    base = find_base("Market-1501", root, NAMES, "bounding_box_train")
    return check_counts(f"Market-1501 at {base}", read_layout("market1501", base), PUBLISHED)
