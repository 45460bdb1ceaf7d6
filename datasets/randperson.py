"""RandPerson (Wang et al., Surpassing Real-World Source Training Data: Random 3D Characters for Generalizable Person
Re-Identification, ACM MM 2020): 8,000 rendered people under 19 cameras. For training only."""

from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.layouts import check_counts, find_base, match_images

NAMES = ("randperson_subset/randperson_subset", "randperson_subset", "randperson/randperson_subset/randperson_subset",
         "randperson/randperson_subset", "RandPerson/randperson_subset", "randperson/images/subset")  # fmt: skip
NAME = r"(\d+)_s(\d+)_c(\d+)_f\d+"  # person, scene, camera, frame
PUBLISHED = {"train": (132145, 8000)}  # the subset that its authors trained on


def randperson(root: str | Path) -> ReIDDataset:
    """List RandPerson's subset under `root`; warns when the counts are not the published ones."""
    base = find_base("RandPerson", root, NAMES, ".")
    train = []
    for path, match in match_images(base, NAME, "000000_s00_c00_f000264.jpg"):
        pid, scene, camera = map(int, match.groups())
        # People are numbered from 0, which would be a distractor. Cameras are numbered 0 to 3 in each of the 11 scenes.
        train.append(Sample(path, pid + 1, 10 * scene + camera + 1))
    return check_counts(f"RandPerson at {base}", ReIDDataset("randperson", train=train), PUBLISHED)
