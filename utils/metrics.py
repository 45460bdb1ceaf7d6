"""CMC, mAP and mINP without sorting the gallery: each image is counted between the sorted matches of its query.

Protocol (Zheng et al., ICCV 2015): for each query, gallery images of the same identity *and* the same camera are
ignored. AP is the mean of the precision at each match (the step form), CMC@k the share of queries with a match among
the first k, INP the number of matches divided by the rank of the last one (Ye et al., AGW, 2020). All are means over
the queries that have a match. Equal distances rank by gallery order, as in a stable sort.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.distance import Pair
from utils.ids import Ids, check_ids
from utils.lookup import load
from utils.ragged import padded_places, ranges

BLOCK_BYTES = 64 << 20  # of distances computed by one matrix product, whatever the size of the gallery
TILE_CPU, TILE_GPU = 1 << 20, 1 << 24  # distances at a time: what stays in a core's cache, or keeps a GPU busy
NO_MATCH = "no query has a match in the gallery under another camera, so there is nothing to score"


@dataclass
class Scores:
    """Retrieval scores, each in 0..1. cmc[k-1] is Rank-k. `ap` holds one value per query, NaN if it has no match."""

    mAP: float
    mINP: float
    cmc: np.ndarray  # (max_rank,) float64
    num_valid_queries: int
    ap: np.ndarray  # (Q,) float64
    roc: Any = None  # utils.roc.Roc, if requested
    first: np.ndarray | None = None  # (Q,) rank of each query's first match, from 1; NaN: no match; None: many trials

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
    return _score(lambda start, stop: pair.distances(start, stop, buffer[: stop - start]), truth, rows, max_rank, roc)


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
    if missing := sum(int(part.isnan().sum()) for part in distance.split(rows)):
        raise ValueError(f"{missing} of {distance.numel()} distances are NaN")
    truth = Truth((query_pids, gallery_pids, query_camids, gallery_camids), *distance.shape, distance.device)
    copy = partial(torch.clone, memory_format=torch.contiguous_format)
    return _score(lambda start, stop: copy(distance[start:stop]), truth, rows, max_rank, roc)


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

        The other images are under the query's own camera and are ignored. Sorted by row, then by gallery order.
        """
        number = self.number[start:stop]
        row = torch.arange(stop - start, device=number.device).repeat_interleave(number)
        column = self.by_pid[ranges(self.first[start:stop], number)]
        return row, column, self.query_camids[start + row] != self.gallery_camids[column]


def _rows_per_block(queries: int, images: int) -> int:
    """Queries per block, about equally many, in multiples of 64, as other or small matrix products are slower."""
    blocks = max(1, -(-queries * 4 * images // BLOCK_BYTES))
    rows = max(1, -(-queries // blocks))
    return rows if rows < 64 else min(-(-rows // 64) * 64, queries)


def _score(block: Callable[[int, int], Tensor], truth: Truth, rows: int, max_rank: int, roc: bool) -> Scores:
    """Score the distances (stop - start, G) that `block(start, stop)` returns; they are overwritten."""
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, not {max_rank}")
    queries = len(truth.number)
    ap, inp, first = (np.full(queries, np.nan) for _ in range(3))
    curve = load("utils.roc:Roc")(truth.num_negatives) if roc else None
    for start in tqdm(range(0, queries, rows), desc="scoring", unit="block", leave=False, disable=None, delay=2):
        stop = min(start + rows, queries)
        distance, (row, column, match) = block(start, stop), truth.of(start, stop)
        distance[row[~match], column[~match]] = torch.nan  # ignored: neither smaller nor larger than anything
        row, column = row[match], column[match]
        ranks, number = _ranks(distance, row, column)
        if curve:
            curve.add(distance, row, column)
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
    return Scores(float(ap[valid].mean()), float(inp[valid].mean()), cmc, int(valid.sum()), ap, curve, first)


def _ranks(distance: Tensor, row: Tensor, column: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return ascending ranks (B, most matches of a row) of the matches in each row of `distance` (B, G), and their
    number (B,). row, column: places of the matches, sorted by row. NaN entries are ignored.
    """
    number, slot = padded_places(row, len(distance))
    width = int(number.max()) if len(number) else 0
    value = distance.new_full((len(distance), width), torch.inf)
    value[row, slot] = distance[row, column]
    value = value.sort(1).values
    real = torch.arange(width, device=row.device) < number[:, None]
    ranks = torch.empty(value.shape, dtype=torch.int64, device=distance.device)
    size = TILE_CPU if distance.device.type == "cpu" else TILE_GPU
    step = max(1, size // max(distance.shape[1], 1))
    for start in range(0, len(distance) if width else 0, step):
        part = slice(start, start + step)
        tile, matches = distance[part], value[part]
        place = torch.searchsorted(matches, tile)  # how many matches an image comes after; all if it is NaN
        bins = place + torch.arange(len(tile), device=tile.device)[:, None] * (width + 1)
        counts = bins.flatten().bincount(minlength=len(tile) * (width + 1)).view(-1, width + 1)
        ranks[part] = counts.cumsum(1)[:, :width]  # correct unless another image is at the same distance
        equal = (tile == matches.gather(1, place.clamp_(max=width - 1))).sum(1)
        twice = ((matches[:, 1:] == matches[:, :-1]) & real[part, 1:]).any(1)
        for tied in (start + ((equal != number[part]) | twice).nonzero()[:, 0]).tolist():
            order = distance[tied].argsort(stable=True)  # rare with real features
            ranks[tied, : number[tied]] = 1 + torch.isin(order, column[row == tied]).nonzero()[:, 0]
    return ranks.masked_fill_(~real, distance.shape[1] + 1).cpu().numpy(), number.cpu().numpy()
