"""What a dataset is: lists of images with identity and camera."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from utils.errors import UserError

MOST_CAMERAS = 50  # a table by camera is printed for up to so many
PID_OFFSET = 10**7  # pids and cameras lie below; those of the k-th of several datasets are raised by k times this
ONE_CAMERA = "if they are all of one camera, --camera-pattern none makes every image count as its own camera"
ONE_IDENTITY = "the gallery shows one identity only, so that every score is 100 % whatever the model"


class Sample(NamedTuple):
    path: str
    pid: int  # identity, from 1 up; 0 is a distractor: a gallery image of no identity
    camid: int


@dataclass
class ReIDDataset:
    """Images to train on, queries, and the gallery in which they are searched; either side may be empty."""

    name: str
    train: list[Sample] = field(default_factory=list)
    query: list[Sample] = field(default_factory=list)
    gallery: list[Sample] = field(default_factory=list)
    heldout: list[Sample] = field(default_factory=list)  # training images of the identities held out of `train`
    protocol: str = "standard"  # how its authors score it, a value of Config.protocol
    drawn: bool = False  # the split is drawn by --split-seed: another seed has other identities in its test
    cameras: bool = True  # camera labels exist; otherwise each image has a camera of its own
    names: dict[int, str] = field(default_factory=dict)  # pid to the identity's name, where that is not the pid
    camera_names: dict[int, str] = field(default_factory=dict)  # the same of camids
    train_names: dict[int, str] = field(default_factory=dict)  # as names, of what is trained on
    train_note: str = ""  # caveat of all scores of models trained on it, empty if it is the full training set
    test_note: str = ""  # caveat of all scores on its test side

    @property
    def note(self) -> str:
        """Both notes; empty for a full protocol."""
        return full_note(self.train_note, self.test_note)

    def describe(self) -> str:
        """One line per split: images, identities, cameras."""
        rows = []
        for split in ("train", *["heldout"] * bool(self.heldout), "query", "gallery"):
            samples = getattr(self, split)
            cameras = f"{len({s.camid for s in samples}):>3} cameras" if self.cameras else "cameras unknown"
            ids = len({s.pid for s in samples} - {0})
            rows.append(f"{split:<8}{len(samples):>7} images {ids:>5} identities {cameras}")
        return "\n".join(rows)

    def name_of(self, pid: int) -> str:
        """Name of an identity, or its pid."""
        return self.names.get(pid, f"pid {pid}") if pid else "distractor"

    def camera_of(self, camid: int) -> str:
        """Name of a camera, or its number; empty where cameras are unknown."""
        return self.camera_names.get(camid, f"cam {camid}") if self.cameras else ""


def join_notes(*notes: str) -> str:
    """The notes that are not empty, as one string."""
    return "; ".join(filter(None, notes))


def full_note(*notes: str) -> str:
    """All caveats of a score as one string; empty if there are none."""
    note = join_notes(*notes)
    return join_notes(note, "not comparable with published scores") if note else ""


def fingerprint(samples: list[Sample]) -> str:
    """Digest of file names, pids and cameras in order: equal for lists that give equal batches, wherever they lie."""
    text = "\n".join(f"{os.path.basename(s.path)} {s.pid} {s.camid}" for s in samples)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


# ---- identities


def identities(samples: list[Sample]) -> list[int]:
    """The pids, sorted."""
    return sorted({s.pid for s in samples})


def label_map(train: list[Sample]) -> dict[int, int]:
    """Identity to class label 0..C-1; identities are sorted first, so that labels do not depend on file order."""
    return {pid: label for label, pid in enumerate(identities(train))}


def keep_ids(samples: list[Sample], pids: Collection[int]) -> list[Sample]:
    """The images of these identities."""
    pids = set(pids)
    return [s for s in samples if s.pid in pids]


def select_train(dataset: ReIDDataset, holdout_ids: int, train_ids: int) -> ReIDDataset:
    """Move the last `holdout_ids` training identities to `heldout`, and keep the first `train_ids` (0: all) others.

    Raises UserError when fewer than two identities would remain.
    """
    pids = identities(dataset.train)
    if not pids:
        raise UserError(f"{dataset.name} has no training images; train on another --dataset and give --test-dataset")
    most = max(len(pids) - 2, 0)
    if not 0 <= holdout_ids <= most:
        raise UserError(
            f"{dataset.name}: --holdout-ids {holdout_ids} of {len(pids)} training identities is not possible; two or "
            f"more must remain, so hold out at most {most}"
        )
    rest, heldout, note = pids[: len(pids) - holdout_ids], pids[len(pids) - holdout_ids :], dataset.train_note
    if heldout:
        note = join_notes(note, f"trained without the last {len(heldout)} of {len(pids)} identities")
    kept = rest[: train_ids or None]
    if len(kept) < len(rest):
        note = join_notes(note, f"trained on the first {len(kept)} of {len(rest)} identities")
    if len(kept) < 2:
        fix = "raise --train-ids" if len(rest) > 1 else "add more"
        raise UserError(f"{dataset.name}: fewer than two identities to train on; {fix}")
    train, held = keep_ids(dataset.train, kept), keep_ids(dataset.train, heldout)
    return replace(dataset, train=train, heldout=held, train_note=note)


def select_test(dataset: ReIDDataset, test_ids: int) -> ReIDDataset:
    """Keep the first `test_ids` (0: all) test identities; a cut also drops the distractors.

    Raises UserError when no query or no gallery image remains.
    """
    pids = identities(dataset.query)
    if not pids:
        raise UserError(f"{dataset.name} has no test split; name another dataset with --test-dataset")
    if 0 < test_ids < len(pids):
        query, gallery = (keep_ids(samples, pids[:test_ids]) for samples in (dataset.query, dataset.gallery))
        note = f"tested on the first {test_ids} of {len(pids)} identities, no distractors"
        dataset = replace(dataset, query=query, gallery=gallery, test_note=join_notes(dataset.test_note, note))
    if not dataset.gallery:
        raise UserError(f"{dataset.name}: the test split has no gallery image; raise --test-ids")
    if len(identities(dataset.gallery)) == 1:
        dataset = replace(dataset, test_note=join_notes(dataset.test_note, ONE_IDENTITY))
    return dataset
