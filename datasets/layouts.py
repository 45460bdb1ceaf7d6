"""What the datasets share: folders with several possible names, labels in file names, and published counts."""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.folder import find_pictures
from utils.errors import UserError
from utils.logging import log

JUNK = -1  # boxes that are neither a person to find nor a distractor: dropped, as the protocols say
MARKET_NAME = r"(-?\d+)_c(\d+)"  # 0002_c1s1_000451_03.jpg; some names end in .jpg.jpg
MARKET_EXAMPLE = "0002_c1s1_000451_03.jpg"
MARKET_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def find_base(title: str, root: str | Path, names: Sequence[str], needed: str) -> Path:
    """Return the first ROOT/NAME that contains `needed`, a file or folder; the last name may be ".": ROOT itself.

    Raises UserError when there is none.
    """
    for name in names:
        if (Path(root) / name / needed).exists():
            return Path(root) / name
    raise UserError(
        f"{title} is not under {Path(root).absolute()}: none of {', '.join(names)} is a folder with {needed} in it; "
        "unpack it there, or set --data-root or REID_DATA (docs/datasets.md shows the folders of each dataset)"
    )


def check_counts(title: str, dataset: ReIDDataset, published: Mapping[str, tuple[int, int]]) -> ReIDDataset:
    """Warn where a split does not have the published numbers of images and pids (0, the distractors, counts as one)."""
    for split, (images, ids) in published.items():
        samples = getattr(dataset, split)
        found = (len(samples), len({s.pid for s in samples}))
        if found != (images, ids):
            warnings.warn(
                f"{title}: {split} has {found[0]} images of {found[1]} pids, the published set has {images} of {ids}; "
                "scores will not be comparable",
                stacklevel=3,
            )
    return dataset


def read_layout(name: str, base: Path, folders: Mapping[str, str] = MARKET_FOLDERS) -> ReIDDataset:
    """Read a dataset in three folders with Market-1501's file names. Raises UserError if one is missing or empty."""
    dataset = ReIDDataset(name)
    for split, folder in folders.items():
        found = match_images(base / folder, MARKET_NAME, MARKET_EXAMPLE)
        samples = [Sample(path, int(match[1]), int(match[2])) for path, match in found]
        setattr(dataset, split, drop_below(0 if split == "gallery" else 1, samples, base / folder))
    return dataset


def drop_below(lowest: int, samples: list[Sample], where: object) -> list[Sample]:
    """Drop junk (pid -1) and, if `lowest` is 1, distractors (pid 0); the log says how many are left out."""
    for pid, word in ((JUNK, "junk"), (0, "distractors, which have no identity")):
        number = sum(s.pid == pid for s in samples) if pid < lowest else 0
        if number:
            log.info("%s: %d images of pid %d left out (%s)", where, number, pid, word)
    return [s for s in samples if s.pid >= lowest]


def match_images(folder: Path, pattern: str, example: str) -> list[tuple[str, re.Match[str]]]:
    """Return path and match of each image whose name begins with `pattern`; warn of others in the folder or below.

    They are sorted by name, which decides ties in scores. Raises UserError, which shows `example`, when the folder is
    missing or has no such image.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; unpack the dataset again so that it has this folder")
    found = {name: re.match(pattern, name) for name in find_pictures(folder)[0]}
    others = [name for name, match in found.items() if not match or "/" in name]
    if len(others) == len(found):
        raise UserError(f"{folder} holds no image named like {example}; is it the right folder?")
    if others:
        warnings.warn(
            f"{folder}: {len(others)} images are left out, as they are not named like {example} or lie in a "
            f"subfolder, such as {others[0]}",
            stacklevel=2,
        )
    return [(str(folder / name), match) for name, match in found.items() if match and "/" not in name]
