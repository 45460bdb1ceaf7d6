"""Verification: the share of matching pairs that a distance threshold accepts (TPR), and the share of others (FPR).

A pair is accepted if its distance is at most the threshold. `Roc` is exact, but covers small FPR only; `PairCounter`
counts all pairs at equally spaced thresholds, for whole curves, histograms and operating points.
"""

from collections.abc import Iterator

import numpy as np
import torch

from utils.distance import exact_products
from utils.ids import Ids, check_ids

MAX_FPR = 0.01
PIECE = 1 << 20  # distances filtered at a time
STEPS = 1 << 13  # thresholds between cosine 0 and 1; a power of two, so that they are exact
BLOCK = 1 << 22  # pairs that are counted at a time


class Roc:
    """The exact receiver operating characteristic up to `MAX_FPR`, from blocks of distances.

    positives: distances of the matching pairs. negatives: distances of the nearest other pairs, as many as an FPR up
    to `MAX_FPR` needs. Ignored pairs are in neither.
    """

    def __init__(self, num_negatives: int):
        self.num_negatives, self.keep = num_negatives, int(MAX_FPR * num_negatives) + 2
        self.positives = self.negatives = torch.empty(0)
        self.limit = float("inf")

    def add(self, distance: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> None:
        """Add distances (B, G) with matches at [row, column] and NaN where pairs are ignored; matches become NaN."""
        self.positives = torch.cat([self.positives.to(distance.device, distance.dtype), distance[row, column]])
        distance[row, column] = torch.nan
        found = [self.negatives.to(distance.device, distance.dtype)]
        for piece in distance.flatten().split(PIECE):
            found.append(piece[piece <= self.limit])
            if sum(map(len, found)) > 2 * self.keep + PIECE:
                found = [self._nearest(found)]
        self.negatives = self._nearest(found)

    def _nearest(self, found: list[torch.Tensor]) -> torch.Tensor:
        nearest = torch.cat(found)
        if len(nearest) > self.keep:
            nearest = nearest.topk(self.keep, largest=False, sorted=False).values
            self.limit = float(nearest.max())
        return nearest

    def tpr(self, fpr: float) -> float:
        """The largest TPR of a threshold whose FPR is at most `fpr`; NaN if there are no other pairs."""
        if not 0 <= fpr <= MAX_FPR:
            raise ValueError(f"the curve is known for FPR from 0 to {MAX_FPR:g}, not at {fpr:g}")
        if self.num_negatives == 0:
            return float("nan")
        accepted = int(fpr * self.num_negatives + 1e-9)  # 1e-9 corrects rounding, as in 0.01 * 100
        first_refused = self.negatives.sort().values[accepted]
        return float((self.positives < first_refused).sum()) / len(self.positives)


class PairCounter:
    """Numbers of matching pairs (row 0) and of other pairs (row 1) by distance, here the negative cosine.

    first: column i counts pairs that thresholds[i] is the first to accept; the last one, pairs that none accepts.
    """

    def __init__(self):
        self.thresholds = torch.arange(-STEPS, STEPS + 1) / STEPS
        self.first = torch.zeros(2, len(self.thresholds) + 1, dtype=torch.int64)

    def add(self, matching: torch.Tensor, others: torch.Tensor) -> None:
        """Count pairs by their distances, of any shape."""
        for counts, distance in zip(self.first, (matching, others), strict=True):
            place = (distance.flatten() * STEPS).ceil_().add_(STEPS).clamp_(0, len(counts) - 1)  # all exact
            counts += place.long().bincount(minlength=len(counts))

    @property
    def number(self) -> np.ndarray:
        """(2,) pairs counted so far."""
        return self.first.sum(1).cpu().numpy()

    def rates(self) -> np.ndarray:
        """(2, T): the TPR and FPR of each threshold; 0 if there are no such pairs."""
        return self.first[:, :-1].cumsum(1).cpu().numpy() / np.maximum(self.number, 1)[:, None]

    def at_fpr(self, most: float) -> int:
        """Index of the largest threshold whose FPR is at most `most`; 0 if there is none."""
        return max(int(np.searchsorted(self.rates()[1], most + 1e-12, side="right")) - 1, 0)

    def equal_error(self) -> int:
        """Index of the threshold where FPR and 1 - TPR differ least; in a tie, the middle one."""
        tpr, fpr = self.rates()
        difference = np.abs(fpr - (1 - tpr))
        best = np.flatnonzero(difference == difference.min())
        return int(best[len(best) // 2])

    def quantile(self, kind: int, share: float) -> int:
        """Index of the first threshold that accepts at least this share of the pairs of a kind (0 or 1)."""
        return min(int(np.searchsorted(self.rates()[kind], share - 1e-12)), len(self.thresholds) - 1)


def count_pairs(query: torch.Tensor, gallery: torch.Tensor, *ids: Ids) -> PairCounter:
    """Count the pairs of `pair_blocks` by negative cosine, in steps of 1 / STEPS. Raises the same ValueError."""
    counter = PairCounter()
    for _, cosine, matching, others in pair_blocks(query, gallery, *ids):
        counter.add(-cosine[matching], -cosine[others])
    return counter


def pair_blocks(
    query: torch.Tensor, gallery: torch.Tensor,
    query_pids: Ids, gallery_pids: Ids, query_camids: Ids, gallery_camids: Ids,
) -> Iterator[tuple[torch.Tensor, ...]]:  # fmt: skip
    """Yield, for some queries at a time, their rows (B,), cosines (B, G), and masks (B, G) of the pairs of one person
    and of two. Features are (Q, D) and (G, D) float32 of length 1.

    Pairs of the same person under the same camera do not count, as in the standard protocol. Raises ValueError if ids
    do not match the features.
    """
    of_query = check_ids(len(query), query_pids=query_pids, query_camids=query_camids)
    of_gallery = check_ids(len(gallery), gallery_pids=gallery_pids, gallery_camids=gallery_camids)
    pids, camids, other_pids, other_camids = (torch.from_numpy(x) for x in (*of_query, *of_gallery))
    for rows in torch.arange(len(query)).split(max(1, BLOCK // max(len(gallery), 1))):
        with exact_products(query.device):
            cosine = query[rows] @ gallery.T
        same = pids[rows, None] == other_pids
        yield rows, cosine, same & (camids[rows, None] != other_camids), ~same
