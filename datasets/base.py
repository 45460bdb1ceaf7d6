"""What a dataset is here: three lists of images with identity and camera. Reading them is someone else's job."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from utils.errors import UserError

SPAN = 10**7  # pids of a dataset lie below; those of the k-th of several are moved up by k times this


class Sample(NamedTuple):
    path: str
    pid: int  # identity, from 1 up; 0 is a distractor, nobody's image in a gallery
    camid: int


@dataclass
class ReIDDataset:
    """Images to train on, to ask with (query) and to search in (gallery); either side may be empty."""

    name: str
    train: list[Sample] = field(default_factory=list)
    query: list[Sample] = field(default_factory=list)
    gallery: list[Sample] = field(default_factory=list)
    heldout: list[Sample] = field(default_factory=list)  # images of the identities that were kept out of `train`
    protocol: str = "standard"  # how its authors score it, a value of Config.protocol
    drawn: bool = False  # by --split-seed: another seed has other people in its test
    cameras: bool = True  # are known; else every image has one of its own
    names: dict[int, str] = field(default_factory=dict)  # of identities, where they have other names than their pids
    train_note: str = ""  # what every score of a model trained on it must be read with, empty for all of its images
    test_note: str = ""  # and every score on its test side

    @property
    def note(self) -> str:
        """Both notes; empty for a full protocol."""
        return full_note(self.train_note, self.test_note)

    def describe(self) -> str:
        """One line a split: images, identities, cameras."""
        rows = []
        for split in ("train", "heldout", "query", "gallery"):
            samples = getattr(self, split)
            if split == "heldout" and not samples:
                continue
            ids, cameras = {s.pid for s in samples} - {0}, len({s.camid for s in samples})
            seen = f"{cameras:>3} cameras" if self.cameras else "cameras unknown"
            rows.append(f"{split:<8}{len(samples):>7} images {len(ids):>5} identities {seen}")
        return "\n".join(rows)

    def called(self, pid: int) -> str:
        """An identity's name, or its pid."""
        return self.names.get(pid, f"pid {pid}")


def full_note(*notes: str) -> str:
    """One sentence of all that scores must be read with; empty when there is nothing."""
    note = more_note(*notes)
    return more_note(note, "not comparable with published scores") if note else ""


def join(datasets: Sequence[ReIDDataset]) -> ReIDDataset:
    """One training set of several, identities and cameras kept apart; the test side is that of the first."""
    for dataset in datasets:
        if any(max(s.pid, s.camid) >= SPAN for s in dataset.train) and len(datasets) > 1:
            raise UserError(
                f"{dataset.name} has pids or cameras from {SPAN} up; renumber them to train on several sets"
            )

    def moved(samples: list[Sample], number: int) -> list[Sample]:
        return [Sample(s.path, s.pid + number * SPAN, s.camid + number * SPAN) for s in samples]

    train = [s for number, dataset in enumerate(datasets) for s in moved(dataset.train, number)]
    name, note = "+".join(d.name for d in datasets), more_note(*(d.train_note for d in datasets))
    return replace(datasets[0], name=name, train=train, train_note=note)


def label_map(train: list[Sample]) -> dict[int, int]:
    """Identity to class label 0..C-1; identities are sorted first, so that the map never depends on file order."""
    return {pid: label for label, pid in enumerate(sorted({s.pid for s in train}))}


def fingerprint(samples: list[Sample]) -> str:
    """Of names, pids and cameras in their order: two lists with the same give the same batches, wherever they lie."""
    text = "\n".join(f"{os.path.basename(s.path)} {s.pid} {s.camid}" for s in samples)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


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
    note = f"trained without the last {count} of {total} identities"
    return replace(dataset, train=train, heldout=heldout, train_note=more_note(dataset.train_note, note))


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


def cut_train(dataset: ReIDDataset, count: int) -> ReIDDataset:
    """The first `count` training identities (0: all), for a quick look. Raises UserError when fewer than two remain."""
    every = sorted({s.pid for s in dataset.train})
    if not every:
        raise UserError(f"{dataset.name} holds nothing to train on; train on another --dataset and give --test-dataset")
    if 0 < count < len(every):
        keep = set(every[:count])
        train = [s for s in dataset.train if s.pid in keep]
        note = f"trained on the first {count} of {len(every)} identities"
        dataset = replace(dataset, train=train, train_note=more_note(dataset.train_note, note))
    if len({s.pid for s in dataset.train}) < 2:
        mend = "raise --train-ids" if count == 1 < len(every) else "there must be more"
        raise UserError(f"{dataset.name}: fewer than two identities to train on; {mend}")
    return dataset


def cut_test(dataset: ReIDDataset, count: int) -> ReIDDataset:
    """The first `count` test identities (0: all), for a quick look; a cut loses the distractors too.

    Raises UserError when no query or no gallery image remains.
    """
    every = sorted({s.pid for s in dataset.query})
    if not every:
        raise UserError(f"{dataset.name} holds no test split; name another dataset with --test-dataset")
    if 0 < count < len(every):
        keep = set(every[:count])
        query, gallery = ([s for s in samples if s.pid in keep] for samples in (dataset.query, dataset.gallery))
        note = f"tested on the first {count} of {len(every)} identities, no distractors"
        dataset = replace(dataset, query=query, gallery=gallery, test_note=more_note(dataset.test_note, note))
    if not dataset.gallery:
        raise UserError(f"{dataset.name}: the test split holds no gallery image; raise --test-ids")
    return dataset


def more_note(*notes: str) -> str:
    """A note, and what else must be said; empty ones say nothing."""
    return "; ".join(filter(None, notes))
