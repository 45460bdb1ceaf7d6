"""The structure of a dataset: lists of images with identity and camera."""

import hashlib
import os
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from utils.errors import UserError

MOST_CAMERAS = 50  # most cameras for which a table by camera is printed
PID_OFFSET = 10**7  # above all pids and cameras; in the k-th of several datasets, k times this is added to them
ONE_CAMERA = "if one camera took them all, --camera-pattern none makes every image count as its own camera"
ONE_IDENTITY = "the gallery has one identity only, so that every score is 100 % for any model"


class Sample(NamedTuple):
    path: str
    pid: int  # identity, from 1 up; 0 is a distractor: a gallery image without identity
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
    drawn: bool = False  # the split is drawn by --split-seed: another seed tests other identities
    cameras: bool = True  # camera labels exist; otherwise each image has a camera of its own
    names: dict[int, str] = field(default_factory=dict)  # pid to the identity's name, where that is not the pid
    camera_names: dict[int, str] = field(default_factory=dict)  # camid to the camera's name, likewise
    tracks: dict[str, str] = field(default_factory=dict)  # path to its track: with pid and camera, one tracklet
    train_names: dict[int, str] = field(default_factory=dict)  # like names, for the training set
    train_note: str = ""  # caveat of all scores of models trained on it, empty if it is the full training set
    test_note: str = ""  # caveat of all scores on its test side

    @property
    def note(self) -> str:
        """Both notes; empty for a full protocol."""
        return full_note(self.train_note, self.test_note)

    def describe(self) -> str:
        """Return one line per split: images, identities, cameras."""
        rows = []
        for split in ("train", *["heldout"] * bool(self.heldout), "query", "gallery"):
            samples = getattr(self, split)
            ids, cameras = len({s.pid for s in samples} - {0}), len({s.camid for s in samples})
            where = f"{cameras:>3} cameras" if self.cameras else "cameras unknown"
            rows.append(f"{split:<8}{len(samples):>7} images {ids:>5} identities {where}")
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
    return join_notes(*notes, "not comparable with published scores" if any(notes) else "")


def fingerprint(samples: list[Sample]) -> str:
    """Digest of file names, pids and cameras in order: equal for lists that give equal batches, in any folder."""
    text = "\n".join(f"{os.path.basename(s.path)} {s.pid} {s.camid}" for s in samples)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


# ---- identities


def identities(samples: list[Sample]) -> list[int]:
    """The pids, sorted."""
    return sorted({s.pid for s in samples})


def label_map(train: list[Sample]) -> dict[int, int]:
    """Map identities to class labels 0..C-1; they are sorted first, so that labels do not depend on file order."""
    return {pid: label for label, pid in enumerate(identities(train))}


def check_train(dataset: ReIDDataset) -> ReIDDataset:
    """Return the dataset. Raises UserError when it has fewer than two identities to train on."""
    if not dataset.train and not dataset.heldout:
        raise UserError(f"{dataset.name} has no training images; train on another --dataset and give --test-dataset")
    if len(identities(dataset.train)) < 2:
        raise UserError(
            f"{dataset.name}: fewer than two identities to train on; raise --train-ids, lower --holdout-ids or add some"
        )
    return dataset


def check_test(dataset: ReIDDataset) -> ReIDDataset:
    """Return the dataset, with a note if all scores would be perfect. Raises UserError without query or gallery."""
    if not dataset.query:
        raise UserError(f"{dataset.name} has no test split; name another dataset with --test-dataset")
    if not dataset.gallery:
        raise UserError(f"{dataset.name}: the test split has no gallery image; raise --test-ids")
    alone = len(identities(dataset.gallery)) == 1
    return replace(dataset, test_note=join_notes(dataset.test_note, ONE_IDENTITY)) if alone else dataset
