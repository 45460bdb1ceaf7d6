"""CMC, mAP and mINP without sorting: the rank of a match is one plus the number of gallery images that precede it.

Protocol (Zheng et al., ICCV 2015): for each query, gallery images of the same identity *and* the same camera are
ignored. AP is the mean of the precision at each match (the step form), CMC@k the share of queries with a match among
the first k, INP the number of matches divided by the rank of the last (Ye et al., AGW, 2020). All are means over the
queries that have a match at all. Equal distances rank by gallery order, as a stable sort would have them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from utils.distance import from_product, prepare

BLOCK_BYTES = 32 << 20  # distances held at a time: memory stays flat whatever the gallery


@dataclass
class Scores:
    """Retrieval scores, each in 0..1. cmc[k-1] is Rank-k. `ap` holds one value a query, NaN where it has no match."""

    mAP: float
    mINP: float
    cmc: np.ndarray  # (max_rank,) float64
    num_valid_queries: int
    ap: np.ndarray  # (Q,) float64

    def rank(self, k: int) -> float:
        """CMC@k."""
        return float(self.cmc[k - 1])


def evaluate(
    query: torch.Tensor,
    gallery: torch.Tensor,
    query_pids,
    gallery_pids,
    query_camids,
    gallery_camids,
    *,
    metric: str = "cosine",
    max_rank: int = 50,
) -> Scores:
    """Score features (Q, D) and (G, D), on whatever device they are. Distances are made a block of queries at a time.

    The ids are 1-d integers: arrays, tensors or lists. Raises ValueError for NaN or infinite features (and says how
    many), ids that do not fit the features, unknown metrics, and when no query has a match.
    """
    query, gallery = prepare(query, gallery, metric)
    query_squares, gallery_squares = query.square().sum(1), gallery.square().sum(1)

    def block(start: int, stop: int) -> torch.Tensor:
        with torch.autocast(query.device.type, enabled=False):
            product = query[start:stop] @ gallery.T
        return from_product(product, query_squares[start:stop], gallery_squares, metric)

    ids = (query_pids, gallery_pids, query_camids, gallery_camids)
    return _score(block, len(query), len(gallery), ids, query.device, max_rank)


def evaluate_distance(
    distance: torch.Tensor, query_pids, gallery_pids, query_camids, gallery_camids, *, max_rank: int = 50
) -> Scores:
    """Score a distance matrix (Q, G), such as a re-ranked one. Ids and errors as for `evaluate`."""
    distance = torch.as_tensor(distance)
    if distance.dtype not in (torch.float32, torch.float64):
        distance = distance.float() if distance.is_floating_point() else distance.double()
    if distance.ndim != 2:
        raise ValueError(f"distance must be (Q, G), not {tuple(distance.shape)}")
    if distance.isnan().any():
        raise ValueError(f"{int(distance.isnan().sum())} of {distance.numel()} distances are NaN")
    ids = (query_pids, gallery_pids, query_camids, gallery_camids)
    return _score(
        lambda a, b: distance[a:b].clone(memory_format=torch.contiguous_format),
        *distance.shape,
        ids,
        distance.device,
        max_rank,
    )


def _score(
    block: Callable[[int, int], torch.Tensor],
    queries: int,
    images: int,
    ids: tuple,
    device: torch.device,
    max_rank: int,
) -> Scores:
    """Scores from a function that gives the distances (rows, G) of queries start..stop, which may be overwritten."""
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, not {max_rank}")
    query_pids, gallery_pids, query_camids, gallery_camids = _check_ids(ids, queries, images, device)
    ap, inp, cmc = np.full(queries, np.nan), np.full(queries, np.nan), np.zeros(max_rank)
    rows = max(1, BLOCK_BYTES // (4 * max(images, 1)))
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        same_pid = query_pids[start:stop, None] == gallery_pids
        same_camera = query_camids[start:stop, None] == gallery_camids
        ranks = ranks_of_matches(block(start, stop), same_pid & ~same_camera, same_pid & same_camera)
        for i, found in enumerate(ranks, start):
            if len(found):
                ap[i] = np.mean(np.arange(1, len(found) + 1) / found)
                inp[i] = len(found) / found[-1]
                cmc[found[0] - 1 :] += 1
    valid = int((~np.isnan(ap)).sum())
    if valid == 0:
        raise ValueError("no query has a match in the gallery under another camera, so there is nothing to score")
    return Scores(float(np.nanmean(ap)), float(np.nanmean(inp)), cmc / valid, valid, ap)


def ranks_of_matches(distance: torch.Tensor, match: torch.Tensor, ignore: torch.Tensor) -> list[np.ndarray]:
    """For each row of `distance` (B, G): the ranks, from 1 up, of its matches among all images but the ignored ones.

    match, ignore: (B, G) bool. Every image is put between the row's sorted match distances (a search among a handful
    of numbers) and counted there; that gives how many come before each match. `distance` is overwritten.
    """
    distance.masked_fill_(ignore, torch.inf)
    row, column = match.nonzero(as_tuple=True)  # by row, and within one by gallery order
    number = match.sum(1)
    width = int(number.max()) if len(number) else 0
    slot = torch.arange(len(row), device=row.device) - (number.cumsum(0) - number)[row]
    matches = distance.new_full((len(distance), width), torch.inf)
    matches[row, slot] = distance[row, column]
    matches = matches.sort(1).values

    def counts(right: bool) -> torch.Tensor:  # column k: images with `k` match distances below (or equal, if right)
        place = torch.searchsorted(matches, distance, right=right)
        offset = torch.arange(len(distance), device=place.device)[:, None] * (width + 1)
        flat = torch.bincount((place + offset).flatten(), minlength=len(distance) * (width + 1))
        return flat.view(len(distance), width + 1).cumsum(1)[:, :width]

    closer = counts(right=True)  # images strictly nearer than match k
    not_farther = counts(right=False)  # images at most as far as match k, itself included
    tied = ((not_farther - closer) > 1) & (torch.arange(width, device=number.device) < number[:, None])
    ranks, number, tied_rows = (closer + 1).cpu().numpy(), number.tolist(), tied.any(1).tolist()
    result = []
    for i, n in enumerate(number):
        if tied_rows[i]:  # rare with real features: let a stable sort of this one row decide
            order = torch.argsort(distance[i], stable=True)
            order = order[~ignore[i][order]]
            found = (match[i][order].nonzero().flatten() + 1).cpu().numpy()
            result.append(found)
        else:
            result.append(ranks[i, :n])
    return result


def _check_ids(ids: tuple, queries: int, images: int, device: torch.device) -> list[torch.Tensor]:
    checked = []
    names = ("query_pids", "gallery_pids", "query_camids", "gallery_camids")
    for name, values, length in zip(names, ids, (queries, images, queries, images), strict=True):
        try:
            array = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        except ValueError:  # lists within lists, of unequal lengths
            array = np.empty((), dtype=object)
        if array.shape != (length,) or (array.dtype.kind not in "iu" and length):
            raise ValueError(f"{name} must be {length} integers, not {array.dtype} of shape {array.shape}")
        checked.append(torch.from_numpy(array.astype(np.int64)).to(device))
    return checked
