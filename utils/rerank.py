"""k-reciprocal re-ranking (Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017).

It computes the paper's formulas row by row, without the N×N matrices of the reference code (N = Q + G; 35 GB each for
MSMT17). Distances are computed tile by tile, each once for both of its rows; every row keeps only its nearest others;
encodings are sparse, and their overlaps are summed sparsely. In addition to the features and the (Q, G) result, which
first holds the original distances, it needs memory for some lists of neighbors and blocks of `BLOCK_BYTES`.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from utils.distance import check_pair, equal_rows, exact_products, unit_factors
from utils.ragged import offsets, padded_places, ranges

BLOCK_BYTES = 32 << 20  # of temporary distances, converted features or gathered entries at a time
GPU_BLOCK_BYTES = 512 << 20  # the same on a GPU, which a small tile would not fill


def k_reciprocal(
    query: Tensor, gallery: Tensor, k1: int = 20, k2: int = 6, lambda_value: float = 0.3, *, metric: str = "euclidean"
) -> Tensor:
    """Re-ranked distances (Q, G) float32 of features (Q, D) and (G, D), from the squared euclidean distances of the
    rows as given, or with metric="cosine", of the rows divided by their lengths.

    k1: neighbors that may be reciprocal. k2: encodings averaged in the local query expansion (1: no expansion).
    lambda_value: weight of the original distance, 0..1. k1 and k2 above Q + G count as Q + G. Raises ValueError for
    shapes that do not match, parameters out of range, and NaN, infinite or very large features.
    """
    _check_parameters(k1, k2, lambda_value)
    features = Features(query, gallery, metric)
    found = search(features, max(int(k1) + 1, int(k2)))
    result = found.original
    for start, stop, jaccard in jaccard_distances(features, found, int(k1), int(k2)):
        result[start:stop].mul_(lambda_value).add_(jaccard, alpha=1 - lambda_value)
    return result


def k_reciprocal_grid(
    query: Tensor, gallery: Tensor, k1s: Sequence[int], k2s: Sequence[int], lambda_values: Sequence[float],
    *, metric: str = "euclidean",
) -> Iterator[tuple[int, int, float, Tensor]]:  # fmt: skip
    """Yield (k1, k2, lambda, re-ranked distances) for all combinations, k1 outermost; neighbors are searched once.

    The distances are those of `k_reciprocal`, in a tensor (Q, G) that the next step overwrites. Two more such matrices
    are kept.
    """
    if not (k1s and k2s and lambda_values):
        raise ValueError("a grid needs one or more values of each of k1, k2 and lambda")
    for combination in product(k1s, k2s, lambda_values):
        _check_parameters(*combination)
    features = Features(query, gallery, metric)
    found = search(features, int(max(max(k1s) + 1, max(k2s))))
    jaccard, result = torch.empty_like(found.original), torch.empty_like(found.original)
    for k1, k2 in product(k1s, k2s):
        for start, stop, block in jaccard_distances(features, found, int(k1), int(k2)):
            jaccard[start:stop] = block
        for lambda_value in lambda_values:
            torch.mul(found.original, lambda_value, out=result).add_(jaccard, alpha=1 - lambda_value)
            yield k1, k2, lambda_value, result


def _check_parameters(k1: int, k2: int, lambda_value: float) -> None:
    numbers = all(isinstance(x, Real) and math.isfinite(x) for x in (k1, k2, lambda_value))
    if not numbers or k1 % 1 or k2 % 1 or k1 < 1 or k2 < 1 or not 0 <= lambda_value <= 1:
        raise ValueError(f"k1 and k2 must be whole numbers above 0, lambda in 0..1, not {k1}, {k2}, {lambda_value}")


# ---- nearest neighbors


def block_bytes(device: torch.device) -> int:
    """Return the largest size of a block in bytes."""
    return BLOCK_BYTES if device.type == "cpu" else GPU_BLOCK_BYTES


class Features:
    """Query rows, then gallery rows, like one float32 tensor (N, D), with unit rows for cosine, but without a copy."""

    def __init__(self, query: Tensor, gallery: Tensor, metric: str):
        query, gallery, norms = check_pair(query, gallery, metric)
        self.queries, self.size, self.norms = len(query), len(query) + len(gallery), torch.cat(norms)
        self.width, self.device = query.shape[1], query.device
        if self.size == 0:
            raise ValueError("there is neither a query nor a gallery feature to re-rank")
        self.parts = [(query, None), (gallery, None)]  # rows, and the factors that turn them into unit rows
        if metric == "cosine":
            self.parts = [(query, unit_factors(norms[0])), (gallery, unit_factors(norms[1]))]
        # the largest n for which two tiles (n, n) of distances and two (n, D) of features fit: 8 n (n + D) bytes
        n = int((math.sqrt(self.width**2 + block_bytes(self.device) / 2) - self.width) / 2)
        self.step = max(16, n // 64 * 64 if n >= 64 else n)
        # Subtracting the mean changes no distance, but large squares no longer hide small differences.
        self.mean = torch.zeros(self.width, dtype=torch.float32, device=self.device)
        buffer = torch.empty(self.step, self.width, dtype=torch.float32, device=self.device)
        total = sum(self.tile(*ends, buffer)[0].sum(0, dtype=torch.float64) for ends in self.tiles())
        self.mean = (total / self.size).float()

    def tiles(self) -> list[tuple[int, int]]:
        """Ranges of rows, none of which contains both query and gallery rows."""
        parts = ((0, self.queries), (self.queries, self.size))
        return [(a, min(a + self.step, end)) for start, end in parts for a in range(start, end, self.step)]

    def tile(self, start: int, stop: int, buffer: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of one of the `tiles` minus the mean, in the buffer (`step`, D), and their squares (stop - start,)."""
        of_gallery = start >= self.queries
        source, factor = self.parts[of_gallery]
        part = slice(start - self.queries * of_gallery, stop - self.queries * of_gallery)
        rows = buffer[: stop - start].copy_(source[part])
        if factor is not None:
            rows.mul_(factor[part, None])
        rows.sub_(self.mean)
        return rows, torch.linalg.vector_norm(rows, dim=1).square_()

    def __getitem__(self, index: Tensor) -> Tensor:
        """Rows (n, D) at any index, without subtracting the mean."""
        rows = torch.empty(len(index), self.width, dtype=torch.float32, device=self.device)
        of_query = index < self.queries
        for chosen, first, (source, factor) in zip((of_query, ~of_query), (0, self.queries), self.parts, strict=True):
            place = index[chosen] - first
            rows[chosen] = source[place].float() if factor is None else source[place].float() * factor[place, None]
        return rows


class Found(NamedTuple):
    """Result of the neighbor search. Distances are squared, and divided by the largest one of their row."""

    original: Tensor  # (Q, G) query to gallery
    nearest: Tensor  # (N, count) indices, the nearest (usually itself) first
    distance: Tensor  # (N, count) distances to these
    farthest: Tensor  # (N,) the divisors


def search(features: Features, count: int) -> Found:
    """Compute distances of all rows to all rows, tile by tile; tiles below the diagonal are transposed ones above."""
    size, queries, device = features.size, features.queries, features.device
    count = min(count, size)
    original = torch.empty(queries, size - queries, dtype=torch.float32, device=device)
    nearest = torch.zeros(size, count, dtype=torch.int64, device=device)
    distance = torch.full((size, count), torch.inf, dtype=torch.float32, device=device)
    farthest = torch.zeros(size, dtype=torch.float32, device=device)

    def keep(start: int, stop: int, tile: Tensor, first: int) -> None:
        """Merge the distances of rows start..stop to rows first.. into the lists of the former."""
        farthest[start:stop] = torch.maximum(farthest[start:stop], tile.amax(1))
        values, index = _candidates(tile, distance[start:stop, -1:], count)
        values = torch.cat([distance[start:stop], values], 1)
        index = torch.cat([nearest[start:stop], index + first], 1)
        distance[start:stop], order = values.topk(count, dim=1, largest=False)
        nearest[start:stop] = index.gather(1, order)

    step = features.step
    buffers = [torch.empty(step, features.width, dtype=torch.float32, device=device) for _ in range(2)]
    tiles = [torch.empty(step * step, dtype=torch.float32, device=device) for _ in range(2)]
    parts = features.tiles()
    total = len(parts) * (len(parts) + 1) // 2
    bar = tqdm(total=total, desc="neighbors", unit="tile", leave=False, disable=None, delay=2)
    with exact_products(device), bar:
        for i, (a, b) in enumerate(parts):
            rows, squares = features.tile(a, b, buffers[0])
            for c, d in parts[i:]:
                others, other_squares = features.tile(c, d, buffers[1])
                tile, turned = (x[: (b - a) * (d - c)] for x in tiles)
                tile = torch.mm(rows, others.T, out=tile.view(b - a, d - c))
                tile.mul_(-2).add_(squares[:, None]).add_(other_squares).clamp_(min=0)
                if a < queries <= c:
                    original[a:b, c - queries : d - queries] = tile
                keep(a, b, tile, c)
                if a != c:
                    keep(c, d, turned.view(d - c, b - a).copy_(tile.T), a)
                bar.update()
    del buffers, tiles
    order_copies(features, nearest, distance)
    farthest.clamp_(min=torch.finfo(torch.float32).tiny)  # avoids 0 / 0 if all rows are equal
    for start in range(0, queries, step):
        part = slice(start, min(start + step, queries))
        original[part].div_(farthest[part, None])
    return Found(original, nearest, distance.div_(farthest[:, None]), farthest)


def order_copies(features: Features, nearest: Tensor, distance: Tensor) -> None:
    """Equal rows are equally far from any other: put them into the lists (N, count) in the order of their indices.

    Otherwise rounding would choose among them, which depends on the size of the tiles.
    """
    copies, originals = equal_rows(features, features.norms)
    if not len(copies):
        return
    group = torch.arange(features.size, device=nearest.device)
    group[copies] = originals
    members, number = group.argsort(stable=True), group.bincount(minlength=features.size)
    first, place = offsets(number), torch.arange(nearest.shape[1], device=nearest.device)
    changed = (number[group[nearest]] > 1).any(1).nonzero()[:, 0]
    for rows in changed.split(max(1, block_bytes(nearest.device) // (8 * len(place) ** 2))):
        listed = group[nearest[rows]]
        again = (listed[:, :, None] == listed[:, None]).tril(-1).any(2)  # an earlier entry belongs to the same group
        size = torch.where(again, 0, number[listed])
        end = size.cumsum(1)
        entry = torch.searchsorted(end, place.expand(len(rows), -1).contiguous(), right=True)
        before = (end - size).gather(1, entry)
        nearest[rows] = members[first[listed.gather(1, entry)] + place - before]
        distance[rows] = distance[rows].gather(1, entry)


def _candidates(tile: Tensor, limit: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Distances and columns (n, some) of each row of `tile` (n, m) that can be among its `count` nearest: those below
    `limit` (n, 1), padded with infinity, or if these are many, the `count` nearest of the tile.

    After the first tiles, hardly any distance is below, and finding these is several times as fast as sorting the tile.
    """
    below = tile < limit
    if torch.count_nonzero(below) > tile.numel() // 16:
        return tile.topk(min(count, tile.shape[1]), dim=1, largest=False)
    row, column = below.nonzero(as_tuple=True)
    number, slot = padded_places(row, len(tile))
    values = tile.new_full((len(tile), int(number.max())), torch.inf)
    columns = column.new_zeros(values.shape)
    values[row, slot], columns[row, slot] = tile[row, column], column
    return values, columns


# ---- encodings


class Encodings(NamedTuple):
    """Sparse rows of an (N, N) matrix: row i has `weight` at `column`, both from start[i] to start[i + 1]."""

    start: Tensor  # (N + 1,)
    column: Tensor
    weight: Tensor


def encode(features: Features, found: Found, k1: int, k2: int) -> Encodings:
    """The k-reciprocal encodings V: exp(-distance) on R*, each row summing to 1 (equation 7), averaged over k2 rows."""
    size = features.size
    near = found.nearest[:, : k1 + 1]
    row, column = expand(near, found.nearest[:, : round(k1 / 2) + 1])
    weight = torch.exp(-_distances_of(features, found, row, column))
    weight /= weight.new_zeros(size).index_add_(0, row, weight)[row]
    encodings = Encodings(offsets(torch.bincount(row, minlength=size)), column, weight)
    return average(encodings, found.nearest[:, :k2]) if k2 > 1 else encodings


def expand(near: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """R*(i, k1) of every row i, as rows and columns of its members in ascending order (the paper's equations 3 to 5).

    near, half: the k1 + 1 and k1/2 + 1 nearest of each row, (N, ...). R(i, k): the rows among the k + 1 nearest of i
    that have i among their own. The set R(j, k1/2) of each member j of R(i, k1) is added if more than two thirds of
    that set are in R(i, k1) already.
    """
    size, width = near.shape
    mutual, half_mutual = _mutual(near), _mutual(half)
    keys = []
    for start, stop in _blocks(near.new_full((size,), 150 * width * half.shape[1])):
        rows = slice(start, stop)
        inside = torch.where(mutual[rows], near[rows], size).sort(1).values  # R(i, k1), padded at the end
        theirs = half[near[rows]].flatten(1)  # the half lists of all neighbors
        counted = (half_mutual[near[rows]] & mutual[rows, :, None]).flatten(1)
        place = torch.searchsorted(inside, theirs).clamp_(max=width - 1)
        shared = (inside.gather(1, place) == theirs) & counted
        shape = (stop - start, width, half.shape[1])
        joins = 3 * shared.view(shape).sum(2) > 2 * counted.view(shape).sum(2)
        added = torch.where(counted.view(shape) & joins[..., None], theirs.view(shape), size).flatten(1)
        members = torch.cat([inside, added], 1)
        row = torch.arange(start, stop, device=near.device)[:, None].expand_as(members)
        kept = members < size
        keys.append(torch.unique(row[kept] * size + members[kept]))
    key = torch.cat(keys)
    return key // size, key % size


def _mutual(near: Tensor) -> Tensor:
    """Return (N, k) bool: whether i is among the k neighbors of its a-th neighbor."""
    mutual = torch.empty_like(near, dtype=torch.bool)
    for start, stop in _blocks(near.new_full((len(near),), 20 * near.shape[1] ** 2)):
        mine = torch.arange(start, stop, device=near.device)[:, None, None]
        mutual[start:stop] = (near[near[start:stop]] == mine).any(-1)
    return mutual


def _distances_of(features: Features, found: Found, row: Tensor, column: Tensor) -> Tensor:
    """Return distances of these sorted pairs: those that the search kept, and the others computed now."""
    listed, order = found.nearest.sort(1)
    rows = torch.arange(features.size, device=row.device)
    key = (rows[:, None] * features.size + listed).flatten()
    wanted = row * features.size + column
    place = torch.searchsorted(key, wanted).clamp_(max=len(key) - 1)
    distance = found.distance.gather(1, order).flatten()[place]
    step = max(1, block_bytes(row.device) // (64 * max(features.width, 1)))
    for missing in (key[place] != wanted).nonzero().flatten().split(step):
        difference = features[row[missing]] - features[column[missing]]
        distance[missing] = (difference.square_().sum(1) / found.farthest[row[missing]]).clamp_(max=1)
    return distance


def average(encodings: Encodings, nearest: Tensor) -> Encodings:
    """Local query expansion: each encoding becomes the mean encoding of its k2 nearest rows (equation 11)."""
    size, k2 = nearest.shape
    lengths = encodings.start.diff()
    columns, weights, counts = [], [], []
    for start, stop in _blocks(150 * lengths[nearest].sum(1)):
        near = nearest[start:stop]
        entry = ranges(encodings.start[near.flatten()], lengths[near.flatten()])
        row = torch.arange(stop - start, device=near.device).repeat_interleave(lengths[near].sum(1))
        key, place = torch.unique(row * size + encodings.column[entry], return_inverse=True)
        sums = encodings.weight.new_zeros(len(key)).index_add_(0, place, encodings.weight[entry])
        columns.append(key % size)
        weights.append(sums / k2)
        counts.append(torch.bincount(key // size, minlength=stop - start))
    return Encodings(offsets(torch.cat(counts)), torch.cat(columns), torch.cat(weights))


def jaccard_distances(features: Features, found: Found, k1: int, k2: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (start, stop, (rows, G)): Jaccard distances of some queries' encodings to the gallery's (equation 10).

    Only columns in both encodings add to the sum of minima; for each column there is a list of its gallery rows.
    """
    start, column, weight = encode(features, found, k1, k2)
    size, queries = features.size, features.queries
    images, first_of_gallery = size - queries, int(start[queries])
    by_column = torch.argsort(column[first_of_gallery:], stable=True)
    row = torch.arange(size, device=column.device).repeat_interleave(start.diff())
    holder = (row[first_of_gallery:] - queries)[by_column]  # gallery rows with an entry in column 0, in column 1, ...
    held = weight[first_of_gallery:][by_column]
    number = torch.bincount(column[first_of_gallery:], minlength=size)
    first = offsets(number)
    pairs = number[column[:first_of_gallery]]  # for each entry of a query: gallery entries in its column
    cost = 16 * images + 160 * pairs.new_zeros(queries).index_add_(0, row[:first_of_gallery], pairs)
    for a, b in _blocks(cost):
        mine = slice(int(start[a]), int(start[b]))
        entry = ranges(first[column[mine]], pairs[mine])
        smaller = torch.minimum(weight[mine].repeat_interleave(pairs[mine]), held[entry])
        target = ((row[mine] - a) * images).repeat_interleave(pairs[mine]) + holder[entry]
        overlap = weight.new_zeros((b - a) * images).index_add_(0, target, smaller).view(b - a, images)
        # Encodings sum to 1, so the sum of maxima is 2 - the sum s of minima: 1 - s / (2 - s) = 2 - 2 / (2 - s).
        yield a, b, overlap.neg_().add_(2).reciprocal_().mul_(-2).add_(2)


def _blocks(cost: Tensor) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows whose costs (N,) in bytes add up to one block at most; a row that costs more is alone."""
    total, most, start = offsets(cost), block_bytes(cost.device), 0
    while start < len(cost):
        stop = int(torch.searchsorted(total, total[start] + most, right=True)) - 1
        stop = max(stop, start + 1)
        yield start, stop
        start = stop
