"""CUHK03 (Li et al., DeepReID: Deep Filter Pairing Neural Network for Person Re-identification, CVPR 2014), after the
new protocol (Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017) and its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.cuhk03_raw import MAT, extract, read_config, read_test_people
from datasets.layouts import check_counts, find_base, list_images, read_layout
from utils.errors import UserError

NAMES = ("cuhk03-np", "CUHK03-NP", "cuhk03_np", "cuhk03/cuhk03-np", "cuhk03", "CUHK03", ".")
TREE = """
detected/bounding_box_train/   0001_c1_1.png ...    and query/, bounding_box_test/ beside it
labeled/bounding_box_train/    0001_c1_1.png ...    and query/, bounding_box_test/ beside it
or the raw release, of which either is made:
../cuhk03/cuhk03_release/cuhk-03.mat
../cuhk03/cuhk03_new_protocol_config_detected.mat
../cuhk03/cuhk03_new_protocol_config_labeled.mat
"""
RAW_NAMES = ("cuhk03/cuhk03_release", "CUHK03/cuhk03_release", "cuhk03_release", "cuhk03", "CUHK03", ".")
CONFIGS = "github.com/zhunzhong07/person-re-ranking, evaluation/data/CUHK03"

PUBLISHED = {  # of the new protocol, by the boxes around the people: found by a detector or drawn by hand
    "detected": {"train": (7365, 767), "query": (1400, 700), "gallery": (5332, 700)},
    "labeled": {"train": (7368, 767), "query": (1400, 700), "gallery": (5328, 700)},
}
IMAGES = {"detected": 14097, "labeled": 14096}
TRAIN_IDS, TEST_IDS = 1367, 100  # of the classic protocol


def cuhk03(root: str | Path, boxes: str) -> ReIDDataset:
    """List the new protocol, 767 people to train on and 700 to find, with boxes "detected" or "labeled".

    Of the folders ROOT/cuhk03-np/BOXES where they exist, else of the raw release in ROOT/cuhk03. Raises UserError when
    neither is there or the raw release takes a package that is missing; warns when the counts are not the published.
    """
    name, folders = f"cuhk03_{boxes}", f"{boxes}/bounding_box_train"
    if _exists(root, RAW_NAMES, MAT) and not _exists(root, NAMES, folders):
        base = find_base("CUHK03", root, RAW_NAMES, MAT, MAT)
        dataset = _of_config(name, base, boxes)
    else:
        base = find_base("CUHK03", root, NAMES, folders, TREE)
        dataset = read_layout(name, base / boxes)
    return check_counts(f"CUHK03 ({boxes}) at {base}", dataset, PUBLISHED[boxes])


def cuhk03_classic(root: str | Path, boxes: str, split: int) -> ReIDDataset:
    """List one of the 20 splits of the raw release: 100 people to find, all others to train on.

    The test images are queries and gallery at once, scored by single shots. The paper trained on the 1,160 people of
    camera pairs 1 to 3 and kept 100 for validation; we train on all 1,367, as open-reid and torchreid do. Raises
    UserError when the release is not in ROOT/cuhk03, h5py is missing, or there is no such split.
    """
    base = find_base("CUHK03's raw release", root, RAW_NAMES, MAT, f"{MAT}    of cuhk03_release.zip")
    test_people = read_test_people(base / MAT, split)  # before the long work
    train, test = [], []
    for person, sample in _of_folder(extract(base / MAT, boxes)):
        (test if person in test_people else train).append(sample)
    dataset = ReIDDataset(
        f"cuhk03_classic_{boxes}", train=train, query=test, gallery=list(test), protocol="single_shot", drawn=True
    )
    # How many images either side has depends on the split.
    published = {"train": (IMAGES[boxes] - len(test), TRAIN_IDS), "gallery": (len(test), TEST_IDS)}
    return check_counts(f"CUHK03 ({boxes}, classic split {split}) at {base}", dataset, published)


def _exists(root: str | Path, names: Sequence[str], needed: str) -> bool:
    return any((Path(root) / name / needed).exists() for name in names)


def _of_config(name: str, base: Path, boxes: str) -> ReIDDataset:
    file = f"cuhk03_new_protocol_config_{boxes}.mat"
    config = next((folder / file for folder in (base, base.parent) if (folder / file).exists()), None)
    if config is None:
        raise UserError(f"{base / file} is missing, the new protocol of CUHK03; get it from {CONFIGS}")
    splits = read_config(config)
    folder = extract(base / MAT, boxes)
    images = {path.name for path in list_images(folder)}
    lists = {}
    for split, people in splits.items():
        if missing := next((image for image, _ in people if image not in images), None):
            raise UserError(f"{folder} holds no {missing}, which {config} names; remove the folder to make it anew")
        lists[split] = [Sample(str(folder / image), pid, int(image.split("_")[2])) for image, pid in people]
    return ReIDDataset(name, **lists)


def _of_folder(folder: Path) -> list[tuple[tuple[int, int], Sample]]:
    """Every image with whom it shows: camera pair and number in it. Pids count on through the pairs."""
    matches = [(path, re.match(r"(\d+)_(\d+)_(\d)_\d+\.png$", path.name)) for path in list_images(folder)]
    found = [(path, (int(match[1]), int(match[2])), int(match[3])) for path, match in matches if match]
    pids = {person: pid for pid, person in enumerate(sorted({person for _, person, _ in found}), 1)}
    return [(person, Sample(str(path), pids[person], camid)) for path, person, camid in found]
