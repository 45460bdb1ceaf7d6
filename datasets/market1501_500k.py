"""Market-1501 with the 500,000 distractors of the same paper (section 5.3) in the gallery."""

import re
from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.folder import list_pictures
from datasets.layouts import MARKET_NAME, check_counts, find_base, read_layout
from datasets.market1501 import NAMES, PUBLISHED

# The distractors' zip file has one folder "images". It is searched in Market-1501's folder and next to it.
DISTRACTORS = ("images", "distractors_500k/images", "distractors_500k", "../distractors_500k/images",
               "../distractors_500k")  # fmt: skip
PUBLISHED_500K = {**PUBLISHED, "gallery": (515913, 751)}


def market1501_500k(root: str | Path) -> ReIDDataset:
    """Market-1501 with the 500,000 distractors of the same paper (section 5.3) in the gallery, all of them pid 0."""
    base = find_base("Market-1501", root, NAMES, "bounding_box_train")
    folder = find_base("Market-1501's distractor set", base, DISTRACTORS, ".")
    dataset = read_layout("market1501_500k", base)
    for path in list_pictures(folder):
        match = re.match(MARKET_NAME, path.name)  # any name will do: a distractor's camera changes no score
        dataset.gallery.append(Sample(str(path), 0, int(match[2]) if match else 0))
    return check_counts(f"Market-1501 + 500k at {base}", dataset, PUBLISHED_500K)
