"""k-reciprocal re-ranking (Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017).

The paper's formulas, row by row, without the N×N matrices of its reference code (N = Q + G; 35 GB each for MSMT17):
neighbours are found a block of rows at a time, the encodings are sparse, and their overlaps are summed sparsely.
"""

from __future__ import annotations

import torch

BLOCK_BYTES = 64 << 20  # of temporary distances or gathered features at a time


def k_reciprocal(
    query: torch.Tensor, gallery: torch.Tensor, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> torch.Tensor:
    """Re-ranked distances (Q, G) float32 of features (Q, D) and (G, D), from the squared euclidean distances of the
    rows as given (normalise them first for cosine).

    k1: neighbours that may be reciprocal. k2: encodings averaged in the local query expansion; 1: none.
    lambda_value: share of the original distance, 0..1. k1 and k2 above Q + G count as Q + G.
    Raises ValueError for shapes, parameters or non-finite features.
    """
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"features must be (Q, D) and (G, D), not {tuple(query.shape)} and {tuple(gallery.shape)}")
    if k1 < 1 or k2 < 1 or not 0 <= lambda_value <= 1:
        raise ValueError(f"k1 and k2 must be at least 1 and lambda in 0..1, not {k1}, {k2}, {lambda_value}")
    features = torch.cat([query, gallery]).float()
    bad = int((~torch.isfinite(features)).any(1).sum())
    if bad:
        raise ValueError(f"{bad} of {len(features)} features hold NaN or infinity")
    neighbours, farthest = nearest(features, max(k1 + 1, k2))
    reciprocal = expand(neighbours, k1)
    encoding = encode(features, neighbours, farthest, reciprocal)
    if k2 > 1:
        encoding = average(encoding, neighbours[:, :k2])
    overlap = shared_weight(encoding, len(query))
    jaccard = 1 - overlap / (2 - overlap)  # both encodings sum to 1, so the sum of maxima is 2 - the sum of minima
    for start, stop in blocks(len(query), 4 * len(gallery)):
        original = squared(features[start:stop], features[len(query) :]) / farthest[start:stop, None]
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


def encode(
    features: torch.Tensor, neighbours: torch.Tensor, farthest: torch.Tensor, pairs: torch.Tensor
) -> torch.Tensor:
    """The k-reciprocal encodings V (N, N), sparse CSR: exp(-distance) on R*, each row summing to 1 (equation 7)."""
    size, (row, column) = len(features), pairs
    weight = torch.empty(len(row), device=features.device)
    for start, stop in blocks(len(row), 8 * features.shape[1]):
        a, b = features[row[start:stop]], features[column[start:stop]]
        weight[start:stop] = torch.exp(-(a - b).square().sum(1) / farthest[row[start:stop]])
    weight /= torch.zeros(size, device=features.device).index_add_(0, row, weight)[row]
    return _csr(row, column, weight, size)


def average(encoding: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
    """Local query expansion: each encoding becomes the mean of those of its k2 nearest rows (equation 11)."""
    size, k2 = neighbours.shape
    row = torch.arange(size, device=neighbours.device).repeat_interleave(k2)
    column = neighbours.sort(1).values.flatten()
    return _csr(row, column, torch.full_like(column, 1 / k2, dtype=torch.float32), size) @ encoding


def shared_weight(encoding: torch.Tensor, queries: int) -> torch.Tensor:
    """Sum over the columns of the smaller of two encodings, for every query and gallery row: (Q, G)."""
    size = len(encoding)
    start, column, weight = encoding.crow_indices(), encoding.col_indices(), encoding.values()
    row = torch.arange(size, device=column.device).repeat_interleave(start.diff())
    in_gallery = row >= queries
    by_column = torch.argsort(column[in_gallery], stable=True)
    holder, held = (row[in_gallery] - queries)[by_column], weight[in_gallery][by_column]
    number = torch.bincount(column[in_gallery], minlength=size)
    first = number.cumsum(0) - number  # the gallery rows that hold column c are holder[first[c] : first[c] + number[c]]
    overlap = torch.zeros(queries, size - queries, device=column.device)
    for q in range(queries):
        mine = slice(int(start[q]), int(start[q + 1]))
        times = number[column[mine]]
        entry = torch.arange(int(times.sum()), device=column.device)
        entry += (first[column[mine]] - (times.cumsum(0) - times)).repeat_interleave(times)
        overlap[q].index_add_(0, holder[entry], torch.minimum(weight[mine].repeat_interleave(times), held[entry]))
    return overlap


def _csr(row: torch.Tensor, column: torch.Tensor, weight: torch.Tensor, size: int) -> torch.Tensor:
    counts = torch.bincount(row, minlength=size)
    start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return torch.sparse_csr_tensor(start, column, weight, (size, size))
