"""Gallery images that are copies of a query and must never count as its match, and images in training and test."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from datasets.base import ReIDDataset, Sample, join_notes
from datasets.images import read_bytes
from utils.errors import UserError


def equal_files(*sides: Iterable[str]) -> dict[str, str]:
    """Digests by path of the files in two lists that equal a file in the other list; reads only files of equal size."""
    sizes = [{path: _size(path) for path in side} for side in sides]
    shared = set(sizes[0].values()) & set(sizes[1].values()) - {0}
    digests = [{path: _digest(path) for path, size in side.items() if size in shared} for side in sizes]
    common = set(digests[0].values()) & set(digests[1].values()) - {""}
    return {path: key for digest in digests for path, key in digest.items() if key in common}


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # reported where images are read
        return 0


def _digest(path: str) -> str:
    try:
        return hashlib.sha1(read_bytes(path).data).hexdigest()
    except UserError:
        return ""


def ignore_own_pictures(dataset: ReIDDataset) -> ReIDDataset:
    """Remove gallery images that are copies of a query and would count in its scores: as a match, if they have its
    identity and another (or an unknown) camera, or as a wrong image.

    If a query would then have no match, for example if queries and gallery are the same images, the copies stay. Each
    copy and its query then get a new camera of their own, so that the scores ignore the copy for this query only.
    """
    key = equal_files((s.path for s in dataset.query), (s.path for s in dataset.gallery))
    labels = defaultdict(set)  # by digest: identities and cameras of its queries
    for s in dataset.query:
        if s.path in key:
            labels[key[s.path]].add((s.pid, s.camid))
    copies = {s for s in dataset.gallery if s.path in key and labels[key[s.path]] != {(s.pid, s.camid)}}
    if not copies:
        return dataset
    query, gallery = dataset.query, [s for s in dataset.gallery if s not in copies]
    if _queries_with_match(query, gallery, {}) < _queries_with_match(query, dataset.gallery, key):
        first = 1 + max(s.camid for s in query + dataset.gallery)
        camera = {digest: number for number, digest in enumerate(labels, first)}
        own = {(key[s.path], s.pid) for s in query if s.path in key}
        kept = [s for s in dataset.gallery if s.path not in key or (key[s.path], s.pid) in own]
        query, gallery = (
            [s._replace(camid=camera[key[s.path]]) if s.path in key else s for s in some] for some in (query, kept)
        )
    note = (
        f"{len(copies)} of {len(dataset.gallery)} gallery images are copies of queries and never count as their match"
    )
    return replace(dataset, query=query, gallery=gallery, test_note=join_notes(dataset.test_note, note))


def _queries_with_match(query: Sequence[Sample], gallery: Sequence[Sample], key: dict[str, str]) -> int:
    """Number of queries with a gallery image of their identity and another camera that is no copy of the query."""
    places = defaultdict(set)
    for s in gallery:
        places[s.pid].add((s.camid, key.get(s.path)))
    return sum(any(c != s.camid and (k is None or k != key.get(s.path)) for c, k in places[s.pid]) for s in query)


def count_shared(train: Sequence[Sample], test: Sequence[Sample]) -> int:
    """Number of test files that are also training files, however their paths are written."""
    places = {os.path.realpath(s.path) for s in train}
    return sum(os.path.realpath(path) in places for path in {s.path for s in test})
