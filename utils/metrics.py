"""CMC, mAP and mINP without sorting: the rank of a match is one plus the number of gallery images that precede it.

Protocol (Zheng et al., ICCV 2015): for each query, gallery images of the same identity *and* the same camera are
ignored. AP is the mean of the precision at each match (the step form), CMC@k the share of queries with a match among
the first k, INP the number of matches divided by the rank of the last one (Ye et al., AGW, 2020). All are means over
the queries that have a match. Equal distances rank by gallery order, as in a stable sort.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.distance import Pair
from utils.ids import Ids, check_ids
from utils.ragged import padded_places, ranges
from utils.roc import Roc, RocCounter

BLOCK_BYTES = 64 << 20  # of distances computed by one matrix product, whatever the size of the gallery
MANY_MATCHES = 256  # of one query: from here on, sorting its row is faster than comparing it with each match
NO_MATCH = "no query has a match in the gallery under another camera, so there is nothing to score"


@dataclass
class Scores:
    """Retrieval scores, each in 0..1. cmc[k-1] is Rank-k. `ap` holds one value per query, NaN if it has no match."""

    mAP: float
    mINP: float
    cmc: np.ndarray  # (max_rank,) float64
    num_valid_queries: int
    ap: np.ndarray  # (Q,) float64
    roc: Roc | None = None  # if requested

    def rank(self, k: int) -> float:
        """CMC@k."""
        return float(self.cmc[k - 1])


def evaluate(
    query: Tensor, gallery: Tensor, query_pids: Ids, gallery_pids: Ids, query_camids: Ids, gallery_camids: Ids,
    *, metric: str = "cosine", max_rank: int = 50, roc: bool = False,
) -> Scores:  # fmt: skip
    """Score features (Q, D) and (G, D), on their device. Distances are computed for some queries at a time.

    The ids are 1-d integers: arrays, tensors or lists. roc: also count the pairs that a distance threshold accepts.
    Raises ValueError for NaN or infinite features (with their number), ids that do not fit the features, unknown
    metrics, and if no query has a match.
    """
    pair = Pair(query, gallery, metric)
    truth = Truth((query_pids, gallery_pids, query_camids, gallery_camids), len(query), len(gallery), query.device)
    rows = _rows_per_block(len(query), len(gallery))
    buffer = torch.empty(rows, len(gallery), dtype=torch.float32, device=query.device)

    def block(start: int, stop: int) -> Tensor:
        return pair.product(start, stop, out=buffer[: stop - start])

    return _score(block, pair.finish, truth, rows, max_rank, roc)


def evaluate_distance(
    distance: Tensor, query_pids: Ids, gallery_pids: Ids, query_camids: Ids, gallery_camids: Ids,
    *, max_rank: int = 50, roc: bool = False,
) -> Scores:  # fmt: skip
    """Score a distance matrix (Q, G), such as a re-ranked one. Ids and errors as for `evaluate`."""
    distance = torch.as_tensor(distance).detach()
    if distance.dtype not in (torch.float32, torch.float64):
        distance = distance.float() if distance.is_floating_point() else distance.double()
    if distance.ndim != 2:
        raise ValueError(f"distance must be (Q, G), not {tuple(distance.shape)}")
    rows = _rows_per_block(*distance.shape)
    missing = sum(int(part.isnan().sum()) for part in distance.split(rows)) if len(distance) else 0
    if missing:
        raise ValueError(f"{missing} of {distance.numel()} distances are NaN")
    truth = Truth((query_pids, gallery_pids, query_camids, gallery_camids), *distance.shape, distance.device)

    def block(start: int, stop: int) -> Tensor:
        return distance[start:stop].clone(memory_format=torch.contiguous_format)

    return _score(block, lambda part, start: part, truth, rows, max_rank, roc)


def ranked_order(
    distance: np.ndarray, query_pid: int, query_camid: int, gallery_pids: np.ndarray, gallery_camids: np.ndarray
) -> np.ndarray:
    """Gallery indices of one query's ranked list, nearest first, from its distances (G,).

    Images of the query's identity under its own camera are left out; equal distances rank by gallery order.
    """
    kept = np.flatnonzero((gallery_pids != query_pid) | (gallery_camids != query_camid))
    return kept[np.argsort(distance[kept], kind="stable")]


class Truth:
    """Which gallery images count for which query."""

    def __init__(self, ids: tuple, queries: int, images: int, device: torch.device):
        of_query = check_ids(queries, query_pids=ids[0], query_camids=ids[2])
        of_gallery = check_ids(images, gallery_pids=ids[1], gallery_camids=ids[3])
        query_pids, self.query_camids = (torch.from_numpy(x).to(device) for x in of_query)
        gallery_pids, self.gallery_camids = (torch.from_numpy(x).to(device) for x in of_gallery)
        ordered, self.by_pid = gallery_pids.sort(stable=True)
        self.first = torch.searchsorted(ordered, query_pids)  # an identity's images are one run in `by_pid`
        self.number = torch.searchsorted(ordered, query_pids, right=True) - self.first
        self.num_negatives = queries * images - int(self.number.sum())

    def of(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gallery images of the same identity as queries start..stop: rows (from 0), columns, and which are matches.

        The others are under the query's own camera, and ignored. Sorted by row, then by gallery order.
        """
        number = self.number[start:stop]
        row = torch.arange(stop - start, device=number.device).repeat_interleave(number)
        column = self.by_pid[ranges(self.first[start:stop], number)]
        return row, column, self.query_camids[start + row] != self.gallery_camids[column]


def _rows_per_block(queries: int, images: int) -> int:
    """Queries per block: about equal blocks of multiples of 64, as other and small matrix products are slower."""
    most = max(1, BLOCK_BYTES // (4 * max(images, 1)))
    blocks = max(1, -(-queries // most))
    rows = max(1, -(-queries // blocks))
    return rows if rows < 64 else min(-(-rows // 64) * 64, queries)


def _score(
    block: Callable[[int, int], Tensor], finish: Callable[[Tensor, int], Tensor], truth: Truth,
    rows: int, max_rank: int, roc: bool,
) -> Scores:  # fmt: skip
    """Scores of what `block` returns for queries start..stop, (rows, G) that may be overwritten, once `finish` has
    turned some of these rows, the first of which is query `start`, into distances in place."""
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, not {max_rank}")
    queries = len(truth.number)
    ap, inp, first = (np.full(queries, np.nan) for _ in range(3))
    counter = RocCounter(truth.num_negatives) if roc else None
    for start in tqdm(range(0, queries, rows), desc="scoring", unit="block", leave=False, disable=None, delay=2):
        stop = min(start + rows, queries)
        distance, (row, column, match) = block(start, stop), truth.of(start, stop)
        distance[row[~match], column[~match]] = torch.nan  # ignored: neither smaller nor larger than anything
        row, column = row[match], column[match]
        ranks, number = _ranks(distance, row, column, lambda part, offset, start=start: finish(part, start + offset))
        if counter:
            counter.add(distance, row, column)
        valid = np.flatnonzero(number)
        ranks, number = ranks[valid], number[valid]
        hits = np.arange(1, ranks.shape[1] + 1)
        ap[start + valid] = np.where(hits <= number[:, None], hits / ranks, 0).sum(1) / number
        inp[start + valid] = number / ranks[np.arange(len(valid)), number - 1]
        first[start + valid] = ranks[:, :1].ravel()
    valid = ~np.isnan(ap)
    if not valid.any():
        raise ValueError(NO_MATCH)
    cmc = (first[valid, None] <= np.arange(1, max_rank + 1)).mean(0)
    scores = Scores(float(ap[valid].mean()), float(inp[valid].mean()), cmc, int(valid.sum()), ap)
    scores.roc = counter.result() if counter else None
    return scores


def _ranks(
    distance: Tensor, row: Tensor, column: Tensor, finish: Callable[[Tensor, int], Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Ascending ranks (B, most matches of a row) of the matches in each row of `distance` (B, G); their number (B,).

    row, column: places of the matches, sorted by row, then by gallery order. NaN entries are ignored. As many rows as
    fit into a CPU's cache are turned into distances by `finish` and counted at a time.
    """
    number, slot = padded_places(row, len(distance))
    width = int(number.max()) if len(number) else 0
    place = column.new_zeros(len(distance), width)
    place[row, slot] = column
    real = torch.arange(width, device=row.device) < number[:, None]
    ranks = torch.full((len(distance), width), distance.shape[1] + 1, device=row.device)
    step = max(1, _tile_elements(distance.device) // (4 * max(distance.shape[1], 1)))
    for first in range(0, len(distance), step):
        part = slice(first, first + step)
        rows = finish(distance[part], first)
        wide = int(number[part].max())
        if wide:
            counted = preceding(rows, place[part, :wide], real[part, :wide])
            ranks[part, :wide] = torch.where(real[part, :wide], counted + 1, ranks[part, :wide])
    return ranks.sort(1).values.cpu().numpy(), number.cpu().numpy()


def preceding(distance: Tensor, place: Tensor, real: Tensor) -> Tensor:
    """How many entries of each row of `distance` (B, G) precede the entries at `place` (B, W) of it: (B, W) int64.

    Smaller ones do, and equal ones at a smaller column; NaN entries never do. Where `real` (B, W) is False the result
    is undefined.
    """
    value = distance.gather(1, place).masked_fill_(~real, -torch.inf)
    if place.shape[1] >= MANY_MATCHES:
        ordered = torch.where(distance.isnan(), torch.inf, distance).sort(1).values  # searchsorted expects no NaN
        smaller, not_larger = (torch.searchsorted(ordered, value, right=right) for right in (False, True))
    else:
        smaller, not_larger = (_count(compare, distance, value) for compare in (torch.lt, torch.le))
    tied = ((not_larger - smaller > 1) & real).nonzero(as_tuple=True)
    before = torch.arange(distance.shape[1], device=distance.device)
    step = max(1, _tile_elements(distance.device) // max(distance.shape[1], 1))
    for some in zip(*(x.split(step) for x in tied), strict=True):  # rare with real features
        equal = distance[some[0]] == value[some][:, None]
        smaller[some] += (equal & (before < place[some][:, None])).sum(1)
    return smaller


def _count(compare: Callable, distance: Tensor, value: Tensor) -> Tensor:
    """For every value (B, W), how many entries of its row of `distance` (B, G) satisfy compare(entry, value)."""
    rows, width = value.shape
    # Comparisons written as numbers of the compared type, then summed, are several times as fast as booleans.
    step = min(_tile_elements(distance.device) // (rows * width), distance.shape[1], 1 << 24)  # float32 counts so far
    tile = distance.new_empty(rows, width, max(step, 1))
    total = torch.zeros(rows, width, dtype=torch.float64, device=distance.device)
    for part in distance.split(max(step, 1), dim=1):
        total += compare(part[:, None], value[:, :, None], out=tile[..., : part.shape[1]]).sum(2)
    return total.long()


def _tile_elements(device: torch.device) -> int:
    """Comparisons at a time: what stays in a core's cache, or keeps a GPU busy."""
    return 1 << 20 if device.type == "cpu" else 1 << 26
