"""k-reciprocal re-ranking (Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017).

The paper's formulas, row by row, without the N×N matrices of its reference code (N = Q + G; 35 GB each for MSMT17):
neighbours are found a block of rows at a time, the encodings are sparse, and their overlaps are summed sparsely.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch

from utils.distance import prepare

BLOCK_BYTES = 64 << 20  # of temporary distances or gathered features at a time


def k_reciprocal(
    query: torch.Tensor, gallery: torch.Tensor, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> torch.Tensor:
    """Re-ranked distances (Q, G) float32 of features (Q, D) and (G, D), from the squared euclidean distances of the
    rows as given (normalise them first for cosine).

    k1: neighbours that may be reciprocal. k2: encodings averaged in the local query expansion; 1: none.
    lambda_value: share of the original distance, 0..1. k1 and k2 above Q + G count as Q + G.
    Raises ValueError for shapes and parameters that do not fit, and for NaN, infinite or huge features.
    """
    if int(k1) != k1 or int(k2) != k2 or k1 < 1 or k2 < 1 or not 0 <= lambda_value <= 1:
        raise ValueError(f"k1 and k2 must be at least 1 and whole, lambda in 0..1, not {k1}, {k2}, {lambda_value}")
    query, gallery = prepare(query, gallery, "euclidean")
    with torch.autocast(query.device.type, enabled=False):
        features = torch.cat([query, gallery])
        features -= features.mean(0)  # changes no distance; differences of large squares would lose the small ones
        return _k_reciprocal(features, len(query), int(k1), int(k2), lambda_value)


def _k_reciprocal(features: torch.Tensor, queries: int, k1: int, k2: int, lambda_value: float) -> torch.Tensor:
    neighbours, farthest = nearest(features, max(k1 + 1, k2))
    reciprocal = expand(neighbours, k1)
    encodings = encode(features, farthest, reciprocal)
    if k2 > 1:
        encodings = average(encodings, neighbours[:, :k2])
    overlap = shared_weight(encodings, queries)
    jaccard = 1 - overlap / (2 - overlap)  # both encodings sum to 1, so the sum of maxima is 2 - the sum of minima
    for start, stop in blocks(queries, 4 * len(features)):
        original = (squared(features[start:stop], features[queries:]) / farthest[start:stop, None]).clamp_(max=1)
        jaccard[start:stop].mul_(1 - lambda_value).add_(original, alpha=lambda_value)
    return jaccard


def blocks(rows: int, bytes_per_row: int):
    """Ranges of rows that together stay within BLOCK_BYTES."""
    step = max(1, BLOCK_BYTES // max(bytes_per_row, 1))
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared euclidean distances (A, B), never negative."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)).clamp_(min=0)


def nearest(features: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` nearest rows of each row, itself first as a rule, (N, count); and its largest distance, (N,)."""
    count = min(count, len(features))
    neighbours = torch.empty(len(features), count, dtype=torch.int64, device=features.device)
    farthest = torch.empty(len(features), device=features.device)
    for start, stop in blocks(len(features), 4 * len(features)):
        distance = squared(features[start:stop], features)
        farthest[start:stop] = distance.amax(1)
        neighbours[start:stop] = distance.topk(count, dim=1, largest=False).indices
    return neighbours, farthest.clamp_(min=torch.finfo(torch.float32).tiny)  # all rows equal: divide 0 by something


def expand(neighbours: torch.Tensor, k1: int) -> torch.Tensor:
    """R*(i, k1) of every row i as row-column pairs (2, pairs), sorted, each once (the paper's equations 3 to 5).

    R(i, k): the rows among the k + 1 nearest of i that have i among theirs. To it are added R(j, k1/2) of each of its
    members j, where more than two thirds of that set are in R(i, k1) already.
    """
    size = len(neighbours)
    near = neighbours[:, : k1 + 1]
    half = neighbours[:, : round(k1 / 2) + 1]
    mutual, half_mutual = (_mutual(x) for x in (near, half))
    pairs = []
    for start, stop in blocks(size, near.shape[1] ** 2 * half.shape[1]):
        inside = torch.where(mutual[start:stop], near[start:stop], -1)  # R(i, k1), padded
        theirs = half[near[start:stop]]  # (rows, k1 + 1, k1/2 + 1): the half lists of all neighbours
        counted = half_mutual[near[start:stop]] & mutual[start:stop, :, None]
        shared = ((theirs[..., None] == inside[:, None, None, :]).any(-1) & counted).sum(-1)
        joins = 3 * shared > 2 * counted.sum(-1)
        added = torch.where(counted & joins[..., None], theirs, -1).flatten(1)
        members = torch.cat([inside, added], 1)
        row = torch.arange(start, stop, device=near.device)[:, None].expand_as(members)
        kept = members >= 0
        pairs.append(torch.unique(row[kept] * size + members[kept]))
    key = torch.cat(pairs)
    return torch.stack([key // size, key % size])


def _mutual(near: torch.Tensor) -> torch.Tensor:
    """(N, k) bool: is i among the k listed of its a-th neighbour?"""
    mutual = torch.empty_like(near, dtype=torch.bool)
    for start, stop in blocks(len(near), 8 * near.shape[1] ** 2):
        mine = torch.arange(start, stop, device=near.device)[:, None, None]
        mutual[start:stop] = (near[near[start:stop]] == mine).any(-1)
    return mutual


class Encodings(NamedTuple):
    """Sparse rows of an (N, N) matrix: row i holds `weight` at `column`, both from start[i] to start[i + 1]."""

    start: torch.Tensor  # (N + 1,)
    column: torch.Tensor
    weight: torch.Tensor


def encode(features: torch.Tensor, farthest: torch.Tensor, pairs: torch.Tensor) -> Encodings:
    """The k-reciprocal encodings V: exp(-distance) on R*, each row summing to 1 (equation 7)."""
    row, column = pairs
    weight = torch.empty(len(row), device=features.device)
    for start, stop in blocks(len(row), 8 * features.shape[1]):
        a, b = features[row[start:stop]], features[column[start:stop]]
        share = (a - b).square().sum(1) / farthest[row[start:stop]]
        weight[start:stop] = torch.exp(-share.clamp(max=1))  # above 1 only by rounding, where all rows are near equal
    weight /= torch.zeros_like(farthest).index_add_(0, row, weight)[row]
    return Encodings(_offsets(torch.bincount(row, minlength=len(features))), column, weight)


def average(encodings: Encodings, neighbours: torch.Tensor) -> Encodings:
    """Local query expansion: each encoding becomes the mean of those of its k2 nearest rows (equation 11)."""
    size, k2 = neighbours.shape
    lengths = encodings.start.diff()
    columns, weights, counts = [], [], []
    for start, stop in blocks(size, 64 * k2 * (1 + len(encodings.column) // size)):
        near = neighbours[start:stop]
        entry = _ranges(encodings.start[near.flatten()], lengths[near.flatten()])
        row = torch.arange(stop - start, device=near.device).repeat_interleave(lengths[near].sum(1))
        key, place = torch.unique(row * size + encodings.column[entry], return_inverse=True)
        sums = torch.zeros(len(key), device=near.device).index_add_(0, place, encodings.weight[entry])
        columns.append(key % size)
        weights.append(sums / k2)
        counts.append(torch.bincount(key // size, minlength=stop - start))
    return Encodings(_offsets(torch.cat(counts)), torch.cat(columns), torch.cat(weights))


def shared_weight(encodings: Encodings, queries: int) -> torch.Tensor:
    """Sum over the columns of the smaller of two encodings, for every query and gallery row: (Q, G)."""
    start, column, weight = encodings
    size, first_of_gallery = len(start) - 1, start[queries]
    # The gallery's entries column by column: those of column c are number[c] from first[c] on.
    by_column = torch.argsort(column[first_of_gallery:], stable=True)
    row = torch.arange(size, device=column.device).repeat_interleave(start.diff())
    holder = (row[first_of_gallery:] - queries)[by_column]
    held = weight[first_of_gallery:][by_column]
    number = torch.bincount(column[first_of_gallery:], minlength=size)
    first = _offsets(number)
    overlap = torch.zeros(queries, size - queries, device=column.device)
    bounds = start[: queries + 1].tolist()
    for q, (begin, end) in enumerate(pairwise(bounds)):
        mine = column[begin:end]
        entry = _ranges(first[mine], number[mine])
        smaller = torch.minimum(weight[begin:end].repeat_interleave(number[mine]), held[entry])
        overlap[q].index_add_(0, holder[entry], smaller)
    return overlap


def _offsets(counts: torch.Tensor) -> torch.Tensor:
    """Where each of consecutive runs of these lengths begins, and where the last ends."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _ranges(first: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """first[0], first[0] + 1, ... (length[0] numbers), then first[1], ...: all in one tensor."""
    offsets = _offsets(length)
    return torch.arange(int(offsets[-1]), device=first.device) + (first - offsets[:-1]).repeat_interleave(length)
