"""Random features like those of a trained model: as many as of a real dataset, and about as easy to match."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

BLOCK = 128  # rows generated at a time
CLARITY = 6.5  # similarity of a person's images, in standard deviations of the similarity of strangers
SPREAD = 0.3  # standard deviation of the logarithm of an image's clarity: some are easy, some hard
CAMERA = 0.5  # weight of the camera in an image's signal; that of the person is 1
PERSON_STREAM, CAMERA_STREAM, ID_STREAM, QUERY_STREAM, GALLERY_STREAM = range(5)  # of random numbers


class Size(NamedTuple):
    queries: int
    gallery: int
    identities: int
    cameras: int
    distractors: int  # gallery images with pid 0


SIZES = {
    "market": Size(3368, 15913, 750, 6, 2798),
    "msmt17": Size(11659, 82161, 3060, 15, 0),
    "tiny": Size(60, 300, 16, 5, 50),
}


class Data(NamedTuple):
    query: torch.Tensor  # (Q, D) float32
    gallery: torch.Tensor  # (G, D)
    ids: tuple[np.ndarray, ...]  # query pids, gallery pids, query cameras, gallery cameras


def make_data(size: Size, kind: str, width: int, unit: bool) -> Data:
    """Features of `kind` clustered or random; `unit`: rows of length 1. The same arguments give the same data."""
    ids = make_ids(size)
    query = make_features(ids[0], ids[2], kind, width, unit, QUERY_STREAM)
    return Data(query, make_features(ids[1], ids[3], kind, width, unit, GALLERY_STREAM), ids)


def make_ids(size: Size) -> tuple[np.ndarray, ...]:
    """One query per identity and camera that saw it, at least two per identity, ordered by both."""
    rng = np.random.default_rng([0, ID_STREAM, 0])
    cameras = rng.permuted(np.tile(np.arange(1, size.cameras + 1), (size.identities, 1)), axis=1)
    seen = np.zeros(cameras.shape, bool)
    seen[:, :2] = True  # every query has a match
    seen.flat[rng.choice(np.flatnonzero(~seen), size.queries - seen.sum(), replace=False)] = True
    pids, cameras = np.nonzero(seen)[0] + 1, cameras[seen]
    order = np.lexsort((cameras, pids))
    pids, cameras = pids[order], cameras[order]
    popularity = rng.lognormal(0, 0.5, size.identities)[pids - 1]  # some are seen far more often than others
    images = 1 + rng.multinomial(size.gallery - size.distractors - len(pids), popularity / popularity.sum())
    distractor_cameras = np.sort(rng.integers(1, size.cameras + 1, size.distractors))
    gallery_pids, gallery_cameras = (np.repeat(x, images) for x in (pids, cameras))
    gallery_pids = np.concatenate([np.zeros(size.distractors, np.int64), gallery_pids])
    return pids, gallery_pids, cameras, np.concatenate([distractor_cameras, gallery_cameras])


def make_features(
    pids: np.ndarray, cameras: np.ndarray, kind: str, width: int, unit: bool, stream: int
) -> torch.Tensor:
    """(N, width) float32, generated in place: noise (random), or person + camera + noise of variance 1 (clustered).

    The parts of a person and of a camera do not depend on `stream`.
    """
    features = np.empty((len(pids), width), np.float32)
    rng = np.random.default_rng([0, stream, 0])
    views = np.random.default_rng([0, CAMERA_STREAM, 0]).standard_normal((cameras.max() + 1, width), np.float32)
    edges = {0, len(pids), *range(0, len(pids), BLOCK), *(np.flatnonzero(np.diff(pids)) + 1).tolist()}
    for start, stop in pairwise(sorted(edges)):  # rows of one person
        rows = features[start:stop]
        rng.standard_normal(dtype=np.float32, out=rows)
        if kind == "clustered":
            pid = int(pids[start])
            person = np.random.default_rng([0, PERSON_STREAM, pid]) if pid else rng  # distractors are all different
            signal = person.standard_normal((1 if pid else len(rows), width), np.float32)
            signal = (signal + CAMERA * views[cameras[start:stop]]) / np.float32(np.sqrt(1 + CAMERA**2))
            share = CLARITY / np.sqrt(width) * rng.lognormal(0, SPREAD, (len(rows), 1))
            share = np.minimum(share, 0.9).astype(np.float32)  # of the variance
            rows *= np.sqrt(1 - share)
            rows += np.sqrt(share) * signal
        if unit:
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(features)
