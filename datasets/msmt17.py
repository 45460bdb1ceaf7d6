"""MSMT17 (Wei et al., Person Transfer GAN to Bridge Domain Gap for Person Re-Identification, CVPR 2018)."""

from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.layouts import check_counts, find_base
from datasets.lists import read_list

NAMES = ("MSMT17_V1", "MSMT17_V2", "MSMT17", "msmt17/MSMT17_V1", "msmt17/MSMT17_V2", "msmt17", ".")
FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))  # V1; V2, with blurred faces
LINE = r"((?:\S*/)?[^/_\s]+_[^/_\s]+_(\d+)_[^/\s]+)\s+(\d+)"  # path, whose third field is the camera; label
EXAMPLE = "0000/0000_000_01_0303morning_0008_0.jpg 0"
TRAIN_IDS = 1041
PUBLISHED = {"train": (30248, TRAIN_IDS), "query": (11659, 3060), "gallery": (82161, 3060)}
PUBLISHED_TRAINVAL = {**PUBLISHED, "train": (32621, TRAIN_IDS)}


def msmt17(root: str | Path, merge_val: bool = False) -> ReIDDataset:
    """List MSMT17 V1 or V2 under `root`; warns when the counts are not the published ones.

    merge_val: also train on list_val.txt, 2,373 more images of the same people. Scores with and without it are
    published, and so are scores on V2; state which ones yours are.
    """
    base = find_base("MSMT17", root, NAMES, "list_train.txt")
    train, test = next((pair for pair in FOLDERS if (base / pair[0]).is_dir()), FOLDERS[0])

    def read(split: str, folder: str, first: int) -> list[Sample]:
        # Labels start at 0 on both sides: pid 0 would be a distractor, and the sides have different people.
        rows = read_list(base / f"list_{split}.txt", LINE, EXAMPLE)
        return [Sample(str(base / folder / m[1]), int(m[3]) + first, int(m[2])) for m in rows]

    samples = read("train", train, 1) + (read("val", train, 1) if merge_val else [])
    query, gallery = (read(split, test, 1 + TRAIN_IDS) for split in ("query", "gallery"))
    dataset = ReIDDataset("msmt17_trainval" if merge_val else "msmt17", samples, query, gallery)
    return check_counts(f"MSMT17 at {base}", dataset, PUBLISHED_TRAINVAL if merge_val else PUBLISHED)
