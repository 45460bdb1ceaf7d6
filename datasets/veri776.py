"""VeRi-776, vehicles under 20 cameras (Liu et al., Large-scale Vehicle Re-identification in Urban Surveillance Videos,
ICME 2016; the split of Liu et al., A Deep Learning-Based Approach to Progressive Vehicle Re-identification, ECCV 2016).
"""

from pathlib import Path

from datasets.base import ReIDDataset
from datasets.layouts import check_counts, find_base, read_layout

NAMES = ("VeRi", "VeRi-776", "VeRi776", "veri", "veri776", "veri_776", ".")
FOLDERS = {"train": "image_train", "query": "image_query", "gallery": "image_test"}
# As the set's own ReadMe says; there are copies with 37746 training images of 575 vehicles, whose scores differ.
PUBLISHED = {"train": (37778, 576), "query": (1678, 200), "gallery": (11579, 200)}


def veri776(root: str | Path) -> ReIDDataset:
    """List VeRi-776 under `root` from its file names; warns when the counts are not the published ones."""
    base = find_base("VeRi-776", root, NAMES, "image_train")
    return check_counts(f"VeRi-776 at {base}", read_layout("veri776", base, FOLDERS), PUBLISHED)
