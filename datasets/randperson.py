"""RandPerson (Wang et al., Surpassing Real-World Source Training Data: Random 3D Characters for Generalizable Person
Re-Identification, ACM MM 2020): 8,000 rendered people under 19 cameras. For training only."""

from __future__ import annotations

import re
from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.layouts import check_counts, find_base, list_images
from utils.errors import UserError

NAMES = ("randperson_subset/randperson_subset", "randperson_subset", "randperson/randperson_subset/randperson_subset",
         "randperson/randperson_subset", "RandPerson/randperson_subset", "randperson/images/subset")  # fmt: skip
TREE = "000000_s00_c00_f000264.jpg ...    (person, scene, camera, frame)"
NAME = re.compile(r"^(\d+)_s(\d+)_c(\d+)_f\d+")
PUBLISHED = {"train": (132145, 8000)}  # the subset that its authors trained on


def randperson(root: str | Path) -> ReIDDataset:
    """List ROOT/randperson_subset, whose zip file makes a folder of the same name in it (or ROOT/randperson/...).

    Raises UserError when it is not there; warns when the counts are not the published ones.
    """
    base = find_base("RandPerson", root, NAMES, ".", TREE)
    train = []
    for path in list_images(base):
        if match := NAME.match(path.name):
            pid, scene, camera = map(int, match.groups())
            # People start at 0, which would be a distractor: all move up by one. Cameras are numbered anew in each of
            # the 11 scenes, from 0 and to 3 at most.
            train.append(Sample(str(path), pid + 1, 10 * scene + camera + 1))
    if not train:
        raise UserError(f"{base} holds no image named like 000000_s00_c00_f000264.jpg; is it the right folder?")
    return check_counts(f"RandPerson at {base}", ReIDDataset("randperson", train=train), PUBLISHED)
