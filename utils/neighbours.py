"""Distances of all rows of two feature matrices to all rows, each made once, and the nearest others of each row."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from tqdm import tqdm

from utils.distance import check_pair, unit_factors
from utils.ragged import padded_places

BLOCK_BYTES = 32 << 20  # of temporary distances, converted features or gathered entries at a time
GPU_BLOCK_BYTES = 512 << 20  # the same on a GPU, which a small tile would not fill


class Features:
    """Query rows, then gallery rows, as if they were one float32 tensor (N, D), of unit rows for cosine; uncopied."""

    def __init__(self, query: torch.Tensor, gallery: torch.Tensor, metric: str, block_bytes: int | None):
        self.query, self.gallery, norms = check_pair(query, gallery, metric)
        self.query_factor = self.gallery_factor = None
        if metric == "cosine":
            self.query, self.query_factor = unit_factors(self.query, norms[0])
            self.gallery, self.gallery_factor = unit_factors(self.gallery, norms[1])
        self.queries, self.width, self.device = len(query), query.shape[1], query.device
        self.block_bytes = BLOCK_BYTES if self.device.type == "cpu" else GPU_BLOCK_BYTES
        if block_bytes is not None:
            if block_bytes < 1 or block_bytes % 1:
                raise ValueError(f"block_bytes must be a whole number above 0, not {block_bytes}")
            self.block_bytes = int(block_bytes)
        self.size = len(query) + len(gallery)
        if self.size == 0:
            raise ValueError("there is neither a query nor a gallery feature to re-rank")
        self.step = self._tile_side()
        # Around the mean no distance changes, but large squares no longer swallow small differences.
        self.mean = torch.zeros(self.width, dtype=torch.float32, device=self.device)
        buffer = torch.empty(self.step, self.width, dtype=torch.float32, device=self.device)
        total = sum(self.tile(*part, buffer)[0].sum(0, dtype=torch.float64) for part in self.tiles())
        self.mean = (total / self.size).float()

    def _tile_side(self) -> int:
        """The largest n for which two tiles (n, n) of distances and two (n, D) of features fit into block_bytes."""
        n = (math.sqrt(self.width**2 + self.block_bytes / 2) - self.width) / 2  # 8 n (n + D) = block_bytes
        return max(16, int(n) // 64 * 64 if n >= 64 else int(n))

    def tiles(self) -> list[tuple[int, int]]:
        """Ranges of rows, none of which holds both query and gallery rows."""
        ends = ((0, self.queries), (self.queries, self.size))
        return [(a, min(a + self.step, end)) for start, end in ends for a in range(start, end, self.step)]

    def tile(self, start: int, stop: int, buffer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of one of the `tiles` less the mean, in the buffer (`step`, D), and their squares (stop - start,)."""
        if start < self.queries:
            source, factor, part = self.query, self.query_factor, slice(start, stop)
        else:
            source, factor, part = self.gallery, self.gallery_factor, slice(start - self.queries, stop - self.queries)
        rows = buffer[: stop - start].copy_(source[part])
        if factor is not None:
            rows.mul_(factor[part, None])
        rows.sub_(self.mean)
        return rows, torch.linalg.vector_norm(rows, dim=1).square_()

    def take(self, index: torch.Tensor) -> torch.Tensor:
        """Rows (n, D) at any index; the mean is not subtracted."""
        rows = torch.empty(len(index), self.width, dtype=torch.float32, device=self.device)
        of_query = index < self.queries
        for chosen, first, source, factor in (
            (of_query, 0, self.query, self.query_factor),
            (~of_query, self.queries, self.gallery, self.gallery_factor),
        ):
            place = index[chosen] - first
            rows[chosen] = source[place].float() if factor is None else source[place].float() * factor[place, None]
        return rows


class Found(NamedTuple):
    """What the search of the neighbours leaves. Distances are squared, and divided by the largest of their row."""

    original: torch.Tensor  # (Q, G) query to gallery
    nearest: torch.Tensor  # (N, count) indices, the nearest (itself as a rule) first
    distance: torch.Tensor  # (N, count) of those
    farthest: torch.Tensor  # (N,) the divisors


def search(features: Features, count: int) -> Found:
    """Distances of all rows to all rows, a tile at a time; tiles below the diagonal are those above, transposed."""
    size, queries, device = features.size, features.queries, features.device
    count = min(count, size)
    original = torch.empty(queries, size - queries, dtype=torch.float32, device=device)
    nearest = torch.zeros(size, count, dtype=torch.int64, device=device)
    distance = torch.full((size, count), torch.inf, dtype=torch.float32, device=device)
    farthest = torch.zeros(size, dtype=torch.float32, device=device)

    def keep(start: int, stop: int, tile: torch.Tensor, first: int) -> None:
        """Merge the distances of rows start..stop to rows first.. into what is known of the former."""
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
    bar = tqdm(total=total, desc="neighbours", unit="tile", leave=False, disable=None, delay=2)
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
    bar.close()
    del buffers, tiles
    farthest.clamp_(min=torch.finfo(torch.float32).tiny)  # all rows equal: divide 0 by something
    for start in range(0, queries, step):
        part = slice(start, min(start + step, queries))
        original[part].div_(farthest[part, None])
    return Found(original, nearest, distance.div_(farthest[:, None]), farthest)


def _candidates(tile: torch.Tensor, limit: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances and columns (n, some) of each row of `tile` (n, m) that can be among its `count` nearest: those below
    `limit` (n, 1), filled up with infinity, or where these are many, the `count` nearest of the tile.

    After the first tiles hardly any are below, and finding them is several times as fast as ordering the tile.
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
