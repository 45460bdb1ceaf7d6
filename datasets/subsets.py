"""Subsets of the identities of a dataset: cut its training or test side, and split images into query and gallery."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from datasets.base import ReIDDataset, Sample, identities, join_notes
from utils.errors import UserError


def keep_ids(samples: list[Sample], pids: Collection[int]) -> list[Sample]:
    """Return the images of these identities."""
    pids = set(pids)
    return [s for s in samples if s.pid in pids]


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return `count` evenly spaced items, or all if there are no more."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]


def select_train(dataset: ReIDDataset, holdout_ids: int, train_ids: int) -> ReIDDataset:
    """Move the last `holdout_ids` training identities to `heldout`, and keep the first `train_ids` others (0: all)."""
    pids, note = identities(dataset.train), dataset.train_note
    rest = pids[: max(len(pids) - holdout_ids, 0)]
    if holdout_ids:
        note = join_notes(note, f"trained without the last {holdout_ids} of {len(pids)} identities")
    kept = rest[: train_ids or None]
    if len(kept) < len(rest):
        note = join_notes(note, f"trained on the first {len(kept)} of {len(rest)} identities")
    train, heldout = keep_ids(dataset.train, kept), keep_ids(dataset.train, pids[len(rest) :])
    return replace(dataset, train=train, heldout=heldout, train_note=note)


def select_test(dataset: ReIDDataset, test_ids: int) -> ReIDDataset:
    """Keep the first `test_ids` test identities; a cut also drops the distractors."""
    pids = identities(dataset.query)
    if test_ids >= len(pids):
        return dataset
    query, gallery = (keep_ids(samples, pids[:test_ids]) for samples in (dataset.query, dataset.gallery))
    note = f"tested on the first {test_ids} of {len(pids)} identities, no distractors"
    return replace(dataset, query=query, gallery=gallery, test_note=join_notes(dataset.test_note, note))


def last_identities(samples: list[Sample], count: int) -> list[Sample]:
    """Return the images of the `count` identities with the last labels in `label_map`; of all if there are no more."""
    pids = identities(samples)
    return keep_ids(samples, pids[max(len(pids) - count, 0) :])


def split_queries(samples: list[Sample], where: str, fix: str) -> tuple[list[Sample], list[Sample]]:
    """Split images into query and gallery as in Market-1501: one query per identity and camera, the rest is gallery.

    The query is the first image by path. A camera's only image of an identity stays in the gallery, for the queries of
    the other cameras, so that every query has a match. If there are only such images, for example if each is its own
    camera, the first image of each identity is its query. Distractors and identities seen by only one camera are
    gallery. Raises UserError if there is no query.
    """
    groups: dict[tuple[int, int], list[Sample]] = defaultdict(list)
    for s in sorted(samples):
        groups[s.pid, s.camid].append(s)
    cameras = Counter(pid for pid, _ in groups if pid)
    seen = [images for (pid, _), images in groups.items() if cameras[pid] > 1]
    query = {images[0] for images in seen if len(images) > 1}
    query = query or set({images[0].pid: images[0] for images in reversed(seen)}.values())
    if not query:
        raise UserError(
            f"{where}: none of {len(cameras)} test identities has images under two cameras (two images, where cameras "
            f"are unknown), so no query has a match; {fix}"
        )
    return sorted(query), sorted(set(samples) - query)
