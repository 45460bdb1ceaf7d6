"""What a dataset is here: three lists of images with identity and camera. Reading them is someone else's job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from utils.errors import UserError


class Sample(NamedTuple):
    path: str
    pid: int  # identity; 0 in a gallery is a distractor
    camid: int


@dataclass
class ReIDDataset:
    """Images to train on, to ask with (query) and to search in (gallery)."""

    name: str
    train: list[Sample]
    query: list[Sample]
    gallery: list[Sample]
    note: str = ""  # what every score on it must be read with, empty for the full protocol

    def describe(self) -> str:
        """One line a split: images, identities, cameras."""
        rows = []
        for split in ("train", "query", "gallery"):
            samples = getattr(self, split)
            ids, cameras = {s.pid for s in samples} - {0}, {s.camid for s in samples}
            rows.append(f"{split:<8}{len(samples):>7} images {len(ids):>5} identities {len(cameras):>3} cameras")
        return "\n".join(rows)


def label_map(train: list[Sample]) -> dict[int, int]:
    """Identity to class label 0..C-1; identities are sorted first, so that the map never depends on file order."""
    return {pid: label for label, pid in enumerate(sorted({s.pid for s in train}))}


def first_identities(dataset: ReIDDataset, train_ids: int, test_ids: int) -> ReIDDataset:
    """The first n identities of each side (0: all), for a quick look. A cut test side loses its distractors too.

    Raises UserError when a cut leaves fewer than two identities to train on or no query.
    """
    train, query, gallery, notes = dataset.train, dataset.query, dataset.gallery, []
    every_train, every_test = sorted({s.pid for s in train}), sorted({s.pid for s in query})
    if 0 < train_ids < len(every_train):
        keep = set(every_train[:train_ids])
        train = [s for s in train if s.pid in keep]
        notes.append(f"trained on the first {train_ids} of {len(every_train)} identities")
    if 0 < test_ids < len(every_test):
        keep = set(every_test[:test_ids])
        query = [s for s in query if s.pid in keep]
        gallery = [s for s in gallery if s.pid in keep]
        notes.append(f"tested on the first {test_ids} of {len(every_test)} identities, no distractors")
    if len({s.pid for s in train}) < 2:
        raise UserError(f"{dataset.name}: fewer than two identities to train on; raise --train-ids")
    if not query or not gallery:
        raise UserError(f"{dataset.name}: the test split holds no query or no gallery image; raise --test-ids")
    note = "; ".join(notes + (["not comparable with published scores"] if notes else []))
    return ReIDDataset(dataset.name, train, query, gallery, note)
