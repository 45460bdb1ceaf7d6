"""What a dataset is here: three lists of images with identity and camera. Reading them is someone else's job."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
    heldout: list[Sample] = field(default_factory=list)  # images of the identities that were kept out of `train`

    def describe(self) -> str:
        """One line a split: images, identities, cameras."""
        rows = []
        for split in ("train", *(["heldout"] if self.heldout else []), "query", "gallery"):
            samples = getattr(self, split)
            ids, cameras = {s.pid for s in samples} - {0}, {s.camid for s in samples}
            rows.append(f"{split:<8}{len(samples):>7} images {len(ids):>5} identities {len(cameras):>3} cameras")
        return "\n".join(rows)


def label_map(train: list[Sample]) -> dict[int, int]:
    """Identity to class label 0..C-1; identities are sorted first, so that the map never depends on file order."""
    return {pid: label for label, pid in enumerate(sorted({s.pid for s in train}))}


def last_identities(samples: list[Sample], count: int) -> list[Sample]:
    """The images of the `count` identities that `label_map` puts last; of all where there are no more."""
    pids = sorted({s.pid for s in samples})
    keep = set(pids[max(len(pids) - count, 0) :])
    return [s for s in samples if s.pid in keep]


def hold_out(dataset: ReIDDataset, count: int) -> ReIDDataset:
    """The last `count` training identities moved to `heldout`: people on whom settings may be chosen without the test.

    Raises UserError when fewer than two identities would be left to train on.
    """
    if count == 0:
        return dataset
    total = len({s.pid for s in dataset.train})
    if not 0 < count <= total - 2:
        raise UserError(
            f"{dataset.name}: --holdout-ids {count} of {total} training identities cannot be; two or more must be "
            f"left to train on, so hold out {max(total - 2, 0)} at most"
        )
    heldout = last_identities(dataset.train, count)
    pids = {s.pid for s in heldout}
    train = [s for s in dataset.train if s.pid not in pids]
    # first_identities ends the note, as it may have more to say
    return replace(
        dataset, train=train, heldout=heldout, note=f"trained without the last {count} of {total} identities"
    )


def heldout_split(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Training images to query and gallery as in Market-1501: one query an identity and camera, all others gallery.

    The query is the first image by path. A camera's only image of somebody stays in the gallery, for the queries of the
    other cameras; so every query has a match. Identities that one camera alone has seen are distractors. Raises
    UserError where no query remains.
    """
    samples = sorted(samples)
    cameras: dict[int, set[int]] = {}
    images: dict[tuple[int, int], list[Sample]] = {}
    for s in samples:
        cameras.setdefault(s.pid, set()).add(s.camid)
        images.setdefault((s.pid, s.camid), []).append(s)
    asked = {group[0] for (pid, _), group in images.items() if len(group) > 1 and len(cameras[pid]) > 1}
    if not asked:
        raise UserError(
            f"none of {len(cameras)} training identities has two images under one camera and another under a second, "
            "so they make no query; take more identities"
        )
    return [s for s in samples if s in asked], [s for s in samples if s not in asked]


def first_identities(dataset: ReIDDataset, train_ids: int, test_ids: int) -> ReIDDataset:
    """The first n identities of each side (0: all), for a quick look. A cut test side loses its distractors too.

    Raises UserError when a cut leaves fewer than two identities to train on or no query.
    """
    train, query, gallery = dataset.train, dataset.query, dataset.gallery
    notes = [dataset.note] if dataset.note else []
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
    return replace(dataset, train=train, query=query, gallery=gallery, note=note)
