"""MSMT17 (Wei et al., Person Transfer GAN to Bridge Domain Gap for Person Re-Identification, CVPR 2018)."""

from __future__ import annotations

import re
from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.layouts import check_counts, find_base, numbered_lines
from utils.errors import UserError

NAMES = ("MSMT17_V1", "MSMT17_V2", "MSMT17", "msmt17/MSMT17_V1", "msmt17/MSMT17_V2", "msmt17", ".")
TREE = """
train/                 0000/0000_000_01_0303morning_0008_0.jpg ...    (V2, with blurred faces: mask_train_v2/)
test/                  0000/0000_000_01_0303morning_0015_0.jpg ...    (V2: mask_test_v2/)
list_train.txt         lines such as 0000/0000_000_01_0303morning_0008_0.jpg 0
list_val.txt
list_query.txt
list_gallery.txt
"""
FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
LINE = re.compile(r"((?:\S*/)?[^/_\s]+_[^/_\s]+_(\d+)_[^/\s]+)\s+(\d+)")  # path, field 3 of its name the camera; label
TRAIN_IDS = 1041
PUBLISHED = {"train": (30248, TRAIN_IDS), "query": (11659, 3060), "gallery": (82161, 3060)}
PUBLISHED_TRAINVAL = {**PUBLISHED, "train": (32621, TRAIN_IDS)}


def msmt17(root: str | Path, merge_val: bool = False) -> ReIDDataset:
    """List ROOT/MSMT17_V1 or ROOT/MSMT17_V2 (or the same under ROOT/msmt17, ROOT/MSMT17, or ROOT itself).

    merge_val: train on list_val.txt too, 2,373 more images of the same people. Scores of both kinds are published, and
    so are scores of V2; say which yours are. Raises UserError when it is not there or a line of a list cannot be
    understood; warns when the counts are not the published ones.
    """
    base = find_base("MSMT17", root, NAMES, "list_train.txt", TREE)
    train, test = next((pair for pair in FOLDERS if (base / pair[0]).is_dir()), FOLDERS[0])
    for folder in (train, test):
        if not (base / folder).is_dir():
            raise UserError(f"{base / folder} is missing; unpack MSMT17 again so that it lies beside list_train.txt")
    dataset = ReIDDataset(
        "msmt17_trainval" if merge_val else "msmt17",
        train=_read_list(base / "list_train.txt", base / train, 1),
        query=_read_list(base / "list_query.txt", base / test, 1 + TRAIN_IDS),
        gallery=_read_list(base / "list_gallery.txt", base / test, 1 + TRAIN_IDS),
    )
    if merge_val:
        dataset.train += _read_list(base / "list_val.txt", base / train, 1)
    return check_counts(f"MSMT17 at {base}", dataset, PUBLISHED_TRAINVAL if merge_val else PUBLISHED)


def _read_list(file: Path, folder: Path, first: int) -> list[Sample]:
    """Labels start at 0 on either side: pid 0 would be a distractor, and label 0 of the test is not label 0 of the
    training. So they are moved up to begin with `first`."""
    samples = []
    for number, line in numbered_lines(file):
        match = LINE.fullmatch(line)
        if match is None:
            raise UserError(
                f"{file}, line {number}: '{line}' is not like '0000/0000_000_01_0303morning_0008_0.jpg 0' "
                "(image, label); restore the file"
            )
        samples.append(Sample(str(folder / match[1]), int(match[3]) + first, int(match[2])))
    return samples
