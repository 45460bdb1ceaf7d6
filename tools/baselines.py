"""What `tools/benchmark.py` compares with: the bare matrix product, and NumPy's way to the same scores.

The NumPy versions are written as the well-known repositories write them, with whole matrices, but without their
needless copies: what is faster than these is faster than those. Each says how much memory it takes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

BLOCK_BYTES = 64 << 20  # of a product that is thrown away


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
    """Re-ranked distances (Q, G) float32 with dense (N, N) matrices (Zhong et al., Re-ranking Person Re-identification
    with k-reciprocal Encoding, CVPR 2017). Every row is sorted whole; equal distances rank in any order."""
    features = np.concatenate([query, gallery])
    original = _square(features @ features.T, features, features)
    original /= original.max(1, keepdims=True)
    near = np.argsort(original, axis=1).astype(np.int32)
    return _reranked(original, near, len(query), k1, k2, lambda_value)


def published_k_reciprocal(
    query: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> np.ndarray:
    """The same with the copies of the authors' code (github.com/zhunzhong07/person-re-ranking, re_ranking_ranklist.py).

    There three distance matrices are put together and squared, and the quotient is transposed; a row of it, and of all
    matrices made like it, lies across the memory.
    """
    across, of_query, of_gallery = (
        distances(a, b, "euclidean") for a, b in ((query, gallery), (query, query), (gallery, gallery))
    )
    upper, lower = np.concatenate([of_query, across], axis=1), np.concatenate([across.T, of_gallery], axis=1)
    original = np.power(np.concatenate([upper, lower], axis=0), 2).astype(np.float32)
    original = np.transpose(original / np.max(original, axis=0))
    near = np.argsort(original).astype(np.int32)
    return _reranked(original, near, len(query), k1, k2, lambda_value)


def _reranked(
    original: np.ndarray, near: np.ndarray, queries: int, k1: int, k2: int, lambda_value: float
) -> np.ndarray:
    """What follows the sort. original, near: (N, N) distances over the largest of the row, and their order."""
    size = len(original)
    encoding = np.zeros_like(original)
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
    """The features, twice, and what `k_reciprocal` holds at its peak: distances and their order, 16 bytes a pair."""
    size = queries + images
    return 8 * size * width + 16 * size * size


def published_bytes(queries: int, images: int, width: int) -> int:
    """The features, the three matrices that are put together, the quotient, and two kinds of order: 24 bytes a pair."""
    size = queries + images
    return 4 * size * width + 24 * size * size
