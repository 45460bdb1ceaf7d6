"""Features that `tools/benchmark.py` measures with: as many, and about as good, as those of a real dataset."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

MADE_ROWS = 128  # rows that are made at a time
CLARITY = 6.5  # similarity of a person's images, in standard deviations of the similarity of strangers
SPREAD = 0.3  # of the logarithm of an image's clarity: some are easy, some hard
CAMERA = 0.5  # share of the camera in an image's signal, with the person's 1
PERSON_STREAM, CAMERA_STREAM, ID_STREAM, QUERY_STREAM, GALLERY_STREAM = range(5)  # of random numbers


class Size(NamedTuple):
    queries: int
    gallery: int
    identities: int
    cameras: int
    distractors: int  # gallery images of nobody who is asked for, pid 0


SIZES = {
    "market": Size(3368, 15913, 750, 6, 2798),
    "msmt17": Size(11659, 82161, 3060, 15, 0),
    "tiny": Size(60, 300, 16, 5, 50),
}


class Ids(NamedTuple):
    query_pids: np.ndarray
    gallery_pids: np.ndarray
    query_camids: np.ndarray
    gallery_camids: np.ndarray


class Data(NamedTuple):
    query: torch.Tensor  # (Q, D) float32
    gallery: torch.Tensor  # (G, D)
    ids: Ids

    def to(self, device: torch.device) -> Data:
        return Data(self.query.to(device), self.gallery.to(device), self.ids)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return self.query.numpy(), self.gallery.numpy()


def make_data(size: Size, kind: str, width: int, unit: bool, seed: int = 0) -> Data:
    """The same data for the same arguments, wherever and whenever. Kind: `clustered` or `random`."""
    ids = make_ids(size, seed)
    query = make_features(ids.query_pids, ids.query_camids, kind, width, unit, QUERY_STREAM, seed)
    return Data(
        query, make_features(ids.gallery_pids, ids.gallery_camids, kind, width, unit, GALLERY_STREAM, seed), ids
    )


def make_ids(size: Size, seed: int = 0) -> Ids:
    """One query for each identity and camera that saw it, at least two an identity; in the order of file names."""
    rng = np.random.default_rng([seed, ID_STREAM, 0])
    cameras = rng.permuted(np.tile(np.arange(1, size.cameras + 1), (size.identities, 1)), axis=1)
    seen = np.zeros(cameras.shape, bool)
    seen[:, :2] = True  # so that every query has a match
    seen.flat[rng.choice(np.flatnonzero(~seen), size.queries - seen.sum(), replace=False)] = True
    pids, cameras = np.nonzero(seen)[0] + 1, cameras[seen]
    order = np.lexsort((cameras, pids))
    pids, cameras = pids[order], cameras[order]
    popularity = rng.lognormal(0, 0.5, size.identities)[pids - 1]  # some are seen far more often than others
    images = 1 + rng.multinomial(size.gallery - size.distractors - len(pids), popularity / popularity.sum())
    nobody = np.zeros(size.distractors, np.int64)
    where = np.sort(rng.integers(1, size.cameras + 1, size.distractors))
    gallery_pids, gallery_cameras = (np.repeat(x, images) for x in (pids, cameras))
    return Ids(pids, np.concatenate([nobody, gallery_pids]), cameras, np.concatenate([where, gallery_cameras]))


def make_features(
    pids: np.ndarray, cameras: np.ndarray, kind: str, width: int, unit: bool, stream: int, seed: int = 0
) -> torch.Tensor:
    """(N, width) float32, in place and a block of rows at a time: noise, or person + camera + noise of variance 1.

    `unit` divides every row by its norm. A person's and a camera's part is the same whatever the `stream`.
    """
    features = np.empty((len(pids), width), np.float32)
    rng = np.random.default_rng([seed, stream, 0])
    views = np.random.default_rng([seed, CAMERA_STREAM, 0]).standard_normal((cameras.max() + 1, width), np.float32)
    edges = {0, len(pids), *range(0, len(pids), MADE_ROWS), *(np.flatnonzero(np.diff(pids)) + 1).tolist()}
    for start, stop in pairwise(sorted(edges)):  # of one person each
        rows = features[start:stop]
        rng.standard_normal(dtype=np.float32, out=rows)
        if kind == "clustered":
            pid = int(pids[start])
            person = np.random.default_rng([seed, PERSON_STREAM, pid]) if pid else rng  # a distractor is like nobody
            signal = person.standard_normal((1 if pid else len(rows), width), np.float32)
            signal = (signal + CAMERA * views[cameras[start:stop]]) / np.float32(np.sqrt(1 + CAMERA**2))
            share = CLARITY / np.sqrt(width) * rng.lognormal(0, SPREAD, (len(rows), 1))
            share = np.minimum(share, 0.9).astype(np.float32)  # of the variance: the similarity of equal signals
            rows *= np.sqrt(1 - share)
            rows += np.sqrt(share) * signal
        if unit:
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(features)
