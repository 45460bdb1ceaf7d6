"""Market-1501 with the 500,000 distractors of the same paper (section 5.3) in the gallery."""

import re
from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.layouts import MARKET_NAME, check_counts, find_base, list_images, read_layout
from datasets.market1501 import NAMES, PUBLISHED
from utils.errors import UserError

# The distractors' zip file has one folder "images". It is searched in Market-1501's folder and next to it.
DISTRACTORS = ("images", "distractors_500k/images", "distractors_500k", "../distractors_500k/images",
               "../distractors_500k")  # fmt: skip
PUBLISHED_500K = {**PUBLISHED, "gallery": (515913, 751)}


def market1501_500k(root: str | Path) -> ReIDDataset:
    """Market-1501 with the 500,000 distractors of the same paper (section 5.3) in the gallery, all of them pid 0."""
    base = find_base("Market-1501", root, NAMES, "bounding_box_train")
    folder = find_base("Market-1501's distractor set", base, DISTRACTORS, ".")
    dataset = read_layout("market1501_500k", base)
    paths = list_images(folder)
    if not paths:
        raise UserError(f"{folder} holds no image; unpack distractors_500k.zip there")
    for path in paths:
        match = re.match(MARKET_NAME, path.name)  # any name will do: a distractor's camera changes no score
        dataset.gallery.append(Sample(str(path), 0, int(match[2]) if match else 0))
    return check_counts(f"Market-1501 + 500k at {base}", dataset, PUBLISHED_500K)
