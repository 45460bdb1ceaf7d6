"""Partial-iLIDS (He et al., Deep Spatial Feature Reconstruction for Partial Person Re-identification, CVPR 2018):
119 people at an airport, the part of each that is not hidden in one picture and the whole of them in another. For
tests only."""

from __future__ import annotations

import re
from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.layouts import check_counts, find_base, list_images
from utils.errors import UserError

NAMES = ("Partial_iLIDS", "PartialiLIDS", "Partial-iLIDS", "partial_ilids/Partial_iLIDS", "partial_ilids",
         "PartialILIDS", ".")  # fmt: skip
TREE = """
Probe/                 1.jpg ...    (or query/ or partial_body_images/)
Gallery/               1.jpg ...    (or gallery/ or whole_body_images/)
"""
FOLDERS = (("Probe", "Gallery"), ("query", "gallery"), ("partial_body_images", "whole_body_images"))
NUMBER = re.compile(r"^\d+")  # 1.jpg; fast-reid's copy goes on with _ and more
PUBLISHED = {"query": (119, 119), "gallery": (119, 119)}


def partial_ilids(root: str | Path) -> ReIDDataset:
    """List ROOT/Partial_iLIDS (or ROOT/PartialiLIDS, ROOT/partial_ilids, or ROOT itself); there is nothing to train on.

    Raises UserError when it is not there; warns when the counts are not the published ones.
    """
    places = [Path(root) / name for name in NAMES]
    query, gallery = next((pair for pair in FOLDERS if any((p / pair[0]).is_dir() for p in places)), FOLDERS[0])
    base = find_base("Partial-iLIDS", root, NAMES, query, TREE)
    # The folder is the camera: nobody's two images may count as taken by one, whatever a copy's file names say.
    dataset = ReIDDataset("partial_ilids", query=_read(base / query, 1), gallery=_read(base / gallery, 2))
    if any(sample.pid == 0 for sample in dataset.query + dataset.gallery):
        # The authors number from 1. In a copy that numbers from 0 somebody would be a distractor: all move up by one.
        dataset.query, dataset.gallery = (
            [sample._replace(pid=sample.pid + 1) for sample in samples] for samples in (dataset.query, dataset.gallery)
        )
    return check_counts(f"Partial-iLIDS at {base}", dataset, PUBLISHED)


def _read(folder: Path, camid: int) -> list[Sample]:
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; query and gallery must lie beside each other")
    matches = [(path, NUMBER.match(path.name)) for path in list_images(folder)]
    samples = [Sample(str(path), int(match[0]), camid) for path, match in matches if match]
    if not samples:
        raise UserError(f"{folder} holds no image whose name begins with a number; is it the right folder?")
    return samples
