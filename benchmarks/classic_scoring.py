"""Evaluation and re-ranking in NumPy, as the well-known repositories write them, without their needless copies.

What is faster than these is faster than those. Full matrices, and a full sort of each row.
"""

import numpy as np


def distances(query: np.ndarray, gallery: np.ndarray, metric: str) -> np.ndarray:
    """(Q, D) and (G, D) to (Q, G): 1 - cosine, or the euclidean distance."""
    distance = query @ gallery.T
    if metric == "cosine":
        distance /= np.linalg.norm(query, axis=1)[:, None]
        distance /= np.linalg.norm(gallery, axis=1)
        return np.subtract(1, distance, out=distance)
    return np.sqrt(_squared(distance, query, gallery), out=distance)


def _squared(products: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner products of the rows of a and b to squared euclidean distances, in place."""
    products *= -2
    products += np.einsum("ij,ij->i", a, a)[:, None]
    products += np.einsum("ij,ij->i", b, b)
    return np.maximum(products, 0, out=products)


def evaluate(
    distance: np.ndarray, query_pids, gallery_pids, query_camids, gallery_camids, max_rank: int = 50
) -> tuple[float, float, np.ndarray]:
    """mAP, mINP and CMC (max_rank,) in 0..1 of a distance matrix (Q, G), as in Bag of Tricks and AGW."""
    order = np.argsort(distance, axis=1, kind="stable")
    hits = gallery_pids[order] == query_pids[:, None]
    ap, inp, curves = [], [], []
    for q in range(len(distance)):
        hit = hits[q][~(hits[q] & (gallery_camids[order[q]] == query_camids[q]))]
        if not hit.any():
            continue
        ranks = np.flatnonzero(hit) + 1
        ap.append((hit.cumsum() / np.arange(1, len(hit) + 1))[hit].mean())
        inp.append(len(ranks) / ranks[-1])
        curves.append(np.arange(1, max_rank + 1) >= ranks[0])
    return float(np.mean(ap)), float(np.mean(inp)), np.mean(curves, axis=0)


def evaluation_bytes(queries: int, images: int, width: int) -> int:
    """Peak memory of `evaluate`: features, distances, their order, pids in that order, and hits."""
    return 4 * (queries + images) * width + queries * images * (4 + 8 + 8 + 1)


def k_reciprocal(
    query: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> np.ndarray:
    """Re-ranked distances (Q, G) (Zhong et al., Re-ranking with k-reciprocal Encoding, CVPR 2017), dense (N, N)."""
    features = np.concatenate([query, gallery])
    original = _squared(features @ features.T, features, features)
    original /= original.max(1, keepdims=True)
    near = np.argsort(original, axis=1).astype(np.int32)
    return _rerank(original, near, len(query), k1, k2, lambda_value)


def published_k_reciprocal(
    query: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> np.ndarray:
    """The same with the copies of the authors' code (github.com/zhunzhong07/person-re-ranking, re_ranking_ranklist.py).

    Three distance matrices are joined and squared, and the quotient is transposed, so that rows lie across the memory.
    """
    across, of_query, of_gallery = (
        distances(a, b, "euclidean") for a, b in ((query, gallery), (query, query), (gallery, gallery))
    )
    upper, lower = np.concatenate([of_query, across], axis=1), np.concatenate([across.T, of_gallery], axis=1)
    original = np.power(np.concatenate([upper, lower], axis=0), 2).astype(np.float32)
    original = np.transpose(original / np.max(original, axis=0))
    near = np.argsort(original).astype(np.int32)
    return _rerank(original, near, len(query), k1, k2, lambda_value)


def _rerank(original: np.ndarray, near: np.ndarray, queries: int, k1: int, k2: int, lambda_value: float) -> np.ndarray:
    """Everything after the sort. original, near (N, N): distances over the largest of the row, and their order."""
    encoding = np.zeros_like(original)
    for i in range(len(original)):
        members = _expanded(near, i, k1)
        weight = np.exp(-original[i, members])
        encoding[i, members] = weight / weight.sum()
    original = original[:queries].copy()
    if k2 > 1:
        mean = np.empty_like(encoding)
        for i in range(len(near)):
            encoding[near[i, :k2]].mean(axis=0, out=mean[i])
        encoding = mean
    holders = [np.flatnonzero(encoding[:, column]) for column in range(len(encoding))]
    jaccard = np.empty((queries, len(encoding)), np.float32)
    for q in range(queries):
        shared = np.zeros(len(encoding), np.float32)
        for column in np.flatnonzero(encoding[q]):
            rows = holders[column]
            shared[rows] += np.minimum(encoding[q, column], encoding[rows, column])
        jaccard[q] = 1 - shared / (2 - shared)
    return jaccard[:, queries:] * np.float32(1 - lambda_value) + original[:, queries:] * np.float32(lambda_value)


def _reciprocal(near: np.ndarray, i: int, k: int) -> np.ndarray:
    """R(i, k): those of the k + 1 nearest rows of i that have i among their own."""
    forward = near[i, : k + 1]
    return forward[(near[forward, : k + 1] == i).any(axis=1)]


def _expanded(near: np.ndarray, i: int, k1: int) -> np.ndarray:
    """R*(i, k1): R(i, k1) and the sets R(j, k1/2) of its members of which it holds more than two thirds."""
    members = _reciprocal(near, i, k1)
    sets = [members]
    for j in members:
        half = _reciprocal(near, j, round(k1 / 2))
        if 3 * len(np.intersect1d(half, members)) > 2 * len(half):
            sets.append(half)
    return np.unique(np.concatenate(sets))


def reranking_bytes(queries: int, images: int, width: int, per_pair: int = 16) -> int:
    """Peak memory of `k_reciprocal`: features twice, 16 bytes per pair of rows; the published code has 24 per pair."""
    return 8 * (queries + images) * width + per_pair * (queries + images) ** 2
