"""What most datasets share: a folder that may have several names, images named by identity and camera, list files,
and published counts to compare with."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.base import ReIDDataset, Sample
from utils.errors import UserError

IMAGES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"}
JUNK = -1  # boxes that are neither a person to find nor a distractor: dropped, as the protocols say
# 0002_c1s1_000451_03.jpg; some end in .jpg.jpg; Thumbs.db lies beside them
MARKET_NAME = re.compile(r"^(-?\d+)_c(\d+)")
MARKET_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def find_base(title: str, root: str | Path, names: Sequence[str], needed: str, tree: str) -> Path:
    """The first of ROOT/NAME that holds `needed`, a file or folder; names may end with "." for ROOT itself.

    tree: what the dataset should look like, a line a folder. Raises UserError that shows it when there is none.
    """
    root = Path(root)
    base = next((root / name for name in names if (root / name / needed).exists()), None)
    if base is None:
        raise UserError(
            f"{title} is not under {root.absolute()}; unpack it there like this, or name its place with --data-root or "
            f"REID_DATA:\n{root / names[0]}/\n" + "\n".join(f"    {line}" for line in tree.strip().splitlines())
        )
    return base


def check_counts(title: str, dataset: ReIDDataset, published: Mapping[str, tuple[int, int]]) -> ReIDDataset:
    """Warn where a split has not the published numbers of images and pids (0, the distractors, counts as one)."""
    for split, (images, ids) in published.items():
        samples = getattr(dataset, split)
        found = (len(samples), len({s.pid for s in samples}))
        if found != (images, ids):
            warnings.warn(
                f"{title}: {split} has {found[0]} images of {found[1]} pids, the published set {images} of {ids}: "
                "scores will not be comparable",
                stacklevel=3,
            )
    return dataset


def read_layout(name: str, base: Path, folders: Mapping[str, str] = MARKET_FOLDERS) -> ReIDDataset:
    """A set in Market-1501's folders and file names. Raises UserError where a folder is missing or empty."""
    for folder in folders.values():
        if not (base / folder).is_dir():
            raise UserError(f"{base / folder} is missing; {', '.join(folders.values())} must lie beside each other")
    return ReIDDataset(name, **{split: read_folder(base / folder) for split, folder in folders.items()})


def read_folder(folder: Path, pattern: re.Pattern[str] = MARKET_NAME) -> list[Sample]:
    """The images of one folder whose names begin with `pattern`, of which group 1 is the pid and 2 the camera."""
    samples = []
    for path in list_images(folder):
        match = pattern.match(path.name)
        if match and int(match[1]) != JUNK:
            samples.append(Sample(str(path), int(match[1]), int(match[2])))
    if not samples:
        raise UserError(f"{folder} holds no image named like 0002_c1s1_000451_03.jpg; is it the right folder?")
    return samples


def list_images(folder: Path) -> list[Path]:
    """Image files by name. File order decides ties, so it must not depend on the file system."""
    return sorted(path for path in folder.iterdir() if is_image(path))


def is_image(path: Path) -> bool:
    """By its name. Hidden files are none: macOS leaves ._x.jpg beside x.jpg."""
    return path.suffix.lower() in IMAGES and not path.name.startswith(".")


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """Lines that are not empty, without the spaces and the Windows line ends around them, each with its number from 1.

    What is not UTF-8 becomes U+FFFD: list files are ASCII where it matters, but may hold words of any encoding beside.
    Raises UserError where the file is missing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
