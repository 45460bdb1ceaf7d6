"""What `tools/benchmark.py` measures with: made features, the bare matrix product, and NumPy's way to the same scores.

The NumPy versions are written as the well-known repositories write them, with whole matrices, but without their
needless copies: what is faster than these is faster than those. Each says how much memory it takes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

BLOCK_BYTES = 64 << 20  # of a product that is thrown away
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


class NumpyScores(NamedTuple):
    """Retrieval scores in 0..1 over the queries that have a match; cmc[k-1] is Rank-k."""

    mAP: float
    mINP: float
    cmc: np.ndarray  # (max_rank,)
    ap: np.ndarray  # (Q,), NaN where a query has no match


def product(query: torch.Tensor, gallery: torch.Tensor) -> None:
    """The inner products of (Q, D) and (G, D) in one matrix: every exact evaluation has to find at least these."""
    query @ gallery.T


def full_product(query: torch.Tensor, gallery: torch.Tensor) -> None:
    """The inner products of all rows with all rows, (N, N) with N = Q + G, in blocks: one exact neighbour search."""
    rows = max(1, BLOCK_BYTES // (4 * (len(query) + len(gallery))))
    for features in (query, gallery):
        for start in range(0, len(features), rows):
            for others in (query, gallery):
                features[start : start + rows] @ others.T


def distances(query: np.ndarray, gallery: np.ndarray, metric: str) -> np.ndarray:
    """(Q, D) and (G, D) to (Q, G): 1 - cos, or the euclidean distance. Only the result is of that size."""
    distance = query @ gallery.T
    if metric == "cosine":
        distance /= np.linalg.norm(query, axis=1)[:, None]
        distance /= np.linalg.norm(gallery, axis=1)
        return np.subtract(1, distance, out=distance)
    return np.sqrt(_square(distance, query, gallery), out=distance)


def _square(inner: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner products of the rows of a and b to squared euclidean distances, in place."""
    inner *= -2
    inner += np.einsum("ij,ij->i", a, a)[:, None]
    inner += np.einsum("ij,ij->i", b, b)
    return np.maximum(inner, 0, out=inner)


def evaluate(query, gallery, query_pids, gallery_pids, query_camids, gallery_camids, *, metric: str = "cosine"):
    """NumpyScores of features (Q, D) and (G, D), as Bag of Tricks, AGW and their like find them."""
    ids = (query_pids, gallery_pids, query_camids, gallery_camids)
    return evaluate_distance(distances(query, gallery, metric), *ids)


def evaluate_distance(
    distance: np.ndarray, query_pids, gallery_pids, query_camids, gallery_camids, *, max_rank: int = 50
) -> NumpyScores:
    """NumpyScores of a distance matrix (Q, G): every row sorted, all in one matrix, then a loop over the queries."""
    order = np.argsort(distance, axis=1, kind="stable")
    hits = gallery_pids[order] == query_pids[:, None]
    ap, inp = np.full(len(distance), np.nan), np.full(len(distance), np.nan)
    curves = []
    for q in range(len(distance)):
        ignored = hits[q] & (gallery_camids[order[q]] == query_camids[q])
        hit = hits[q][~ignored]
        if not hit.any():
            continue
        found = hit.cumsum()
        ranks = np.flatnonzero(hit) + 1
        ap[q] = (found / np.arange(1, len(hit) + 1))[hit].mean()
        inp[q] = len(ranks) / ranks[-1]
        curves.append(np.arange(1, max_rank + 1) >= ranks[0])
    return NumpyScores(float(np.nanmean(ap)), float(np.nanmean(inp)), np.mean(curves, axis=0), ap)


def evaluation_bytes(queries: int, images: int, width: int) -> int:
    """The features, and what `evaluate` holds at its peak: distances, their order, pids in that order, and hits."""
    return 4 * (queries + images) * width + queries * images * (4 + 8 + 8 + 1)


def k_reciprocal(
    query: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> np.ndarray:
    """Re-ranked distances (Q, G) float32 with dense (N, N) matrices, as the authors' public code has them.

    Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017. Neighbours are found with
    argpartition, so equal distances rank in any order.
    """
    features = np.concatenate([query, gallery])
    queries, size = len(query), len(features)
    original = _square(features @ features.T, features, features)
    original /= original.max(1, keepdims=True)
    listed = min(max(k1 + 1, k2), size)
    near = np.argpartition(original, range(listed), axis=1)[:, :listed].copy()
    encoding = np.zeros((size, size), np.float32)
    for i in range(size):
        members = _expanded(near, i, k1)
        weight = np.exp(-original[i, members])
        encoding[i, members] = weight / weight.sum()
    original = original[:queries].copy()
    if k2 > 1:
        mean = np.empty_like(encoding)
        for i in range(size):
            encoding[near[i, :k2]].mean(axis=0, out=mean[i])
        encoding = mean
    jaccard = _jaccard(encoding, queries)
    return jaccard[:, queries:] * np.float32(1 - lambda_value) + original[:, queries:] * np.float32(lambda_value)


def _reciprocal(near: np.ndarray, i: int, k: int) -> np.ndarray:
    """R(i, k): those of the k + 1 nearest rows of i that have i among their own."""
    forward = near[i, : k + 1]
    return forward[(near[forward, : k + 1] == i).any(axis=1)]


def _expanded(near: np.ndarray, i: int, k1: int) -> np.ndarray:
    """R*(i, k1): R(i, k1) and the half sets R(j, k1/2) of its members that it holds more than two thirds of."""
    members = _reciprocal(near, i, k1)
    sets = [members]
    for j in members:
        half = _reciprocal(near, j, round(k1 / 2))
        if 3 * len(np.intersect1d(half, members)) > 2 * len(half):
            sets.append(half)
    return np.unique(np.concatenate(sets))


def _jaccard(encoding: np.ndarray, queries: int) -> np.ndarray:
    """Jaccard distances (Q, N) of the queries' encodings to all, through an index of who has weight in a column."""
    holders = [np.flatnonzero(encoding[:, column]) for column in range(len(encoding))]
    jaccard = np.empty((queries, len(encoding)), np.float32)
    for q in range(queries):
        shared = np.zeros(len(encoding), np.float32)
        for column in np.flatnonzero(encoding[q]):
            rows = holders[column]
            shared[rows] += np.minimum(encoding[q, column], encoding[rows, column])
        jaccard[q] = 1 - shared / (2 - shared)
    return jaccard


def reranking_bytes(queries: int, images: int, width: int) -> int:
    """The features, twice, and what `k_reciprocal` holds at its peak: distances and their order, 12 bytes a pair."""
    size = queries + images
    return 8 * size * width + 12 * size * size
