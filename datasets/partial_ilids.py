"""Partial-iLIDS (He et al., Deep Spatial Feature Reconstruction for Partial Person Re-identification, CVPR 2018): 119
people at an airport, the visible part of each in one image and the whole person in another. For tests only."""

from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.layouts import check_counts, find_base, match_images

NAMES = ("Partial_iLIDS", "PartialiLIDS", "Partial-iLIDS", "partial_ilids/Partial_iLIDS", "partial_ilids",
         "PartialILIDS", ".")  # fmt: skip
FOLDERS = (("Probe", "Gallery"), ("query", "gallery"), ("partial_body_images", "whole_body_images"))
NUMBER = r"\d+"  # 1.jpg; names in fast-reid's copy continue with _ and more
PUBLISHED = {"query": (119, 119), "gallery": (119, 119)}


def partial_ilids(root: str | Path) -> ReIDDataset:
    """List Partial-iLIDS under `root`; warns when the counts are not the published ones."""
    places = [Path(root) / name for name in NAMES]
    folders = next((pair for pair in FOLDERS if any((p / pair[0]).is_dir() for p in places)), FOLDERS[0])
    base = find_base("Partial-iLIDS", root, NAMES, folders[0])
    found = [match_images(base / folder, NUMBER, "1.jpg") for folder in folders]
    # The authors number from 1. In a copy that numbers from 0, one person would be a distractor, so 1 is added to all.
    first = 1 if any(int(match[0]) == 0 for rows in found for _, match in rows) else 0
    # The folder is the camera: the two images of a person never have the same camera, whatever their names say.
    query, gallery = (
        [Sample(path, int(match[0]) + first, camid) for path, match in rows] for camid, rows in enumerate(found, 1)
    )
    return check_counts(f"Partial-iLIDS at {base}", ReIDDataset("partial_ilids", [], query, gallery), PUBLISHED)
