"""From which similarity on two pictures are taken for the same person: counted over labelled pairs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from utils.distance import exact_products
from utils.ids import Ids, check_ids

STEPS = 1 << 13  # thresholds between 0 and 1; a power of two, by which a product is exact
BLOCK = 1 << 22  # pairs that are counted at a time


class Operating(NamedTuple):
    """A threshold, and what is accepted from it on: shares of the pairs of one person and of different people."""

    threshold: float
    tpr: float
    fpr: float


class Counts:
    """Pairs by their similarity: `same` and `others` (2 STEPS + 1,), the i-th from (i - STEPS) / STEPS on."""

    def __init__(self, same: np.ndarray, others: np.ndarray):
        self.same, self.others = same, others

    def quantile(self, share: float, of: np.ndarray) -> float:
        """The similarity that this share of the pairs lies below, to one step."""
        return float(np.searchsorted(of.cumsum(), share * of.sum()) - STEPS) / STEPS

    def operating(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Thresholds, ascending, with the TPR and FPR of each."""
        tpr, fpr = (x[::-1].cumsum()[::-1] / x.sum() for x in (self.same, self.others))
        return np.arange(-STEPS, STEPS + 1) / STEPS, tpr, fpr

    def at_fpr(self, most: float) -> Operating:
        """The lowest threshold that accepts at most this share of the pairs of different people."""
        thresholds, tpr, fpr = self.operating()
        fits = np.flatnonzero(fpr <= most + 1e-12)  # 0.001 of 1000 is 1, also in binary
        # Beyond all pairs of different people, and as far as two pictures can be alike, where even that is not enough.
        place = fits[0] if len(fits) else len(fpr) - 1
        return Operating(thresholds[place], tpr[place], fpr[place])

    def equal_error(self) -> Operating:
        """The threshold that refuses the same share of the one kind as it accepts of the other; of several, the middle.

        Where steps leave no such threshold, the one where the two shares are nearest.
        """
        thresholds, tpr, fpr = self.operating()
        apart = np.abs(fpr - (1 - tpr))
        best = np.flatnonzero(apart == apart.min())
        place = best[len(best) // 2]
        return Operating(thresholds[place], tpr[place], fpr[place])


def count_pairs(
    query: torch.Tensor,
    gallery: torch.Tensor,
    query_pids: Ids,
    gallery_pids: Ids,
    query_camids: Ids,
    gallery_camids: Ids,
) -> Counts:
    """Counts of the cosines of features (Q, D) and (G, D) float32 of length 1, some queries at a time.

    A pair of the same person under the same camera does not count, as in the standard protocol. Raises ValueError for
    ids that do not fit, and where there is no pair of one person or none of different people.
    """
    of_query = check_ids(len(query), query_pids=query_pids, query_camids=query_camids)
    of_gallery = check_ids(len(gallery), gallery_pids=gallery_pids, gallery_camids=gallery_camids)
    pids, camids, others, other_camids = (torch.from_numpy(x) for x in (*of_query, *of_gallery))
    counts = torch.zeros(2, 2 * STEPS + 1, dtype=torch.int64)
    rows = max(1, BLOCK // max(len(gallery), 1))
    for start in range(0, len(query), rows):
        part = slice(start, start + rows)
        with exact_products(query.device):
            step = (query[part] @ gallery.T).mul_(STEPS).floor_().clamp_(-STEPS, STEPS).long().add_(STEPS)
        same = pids[part, None] == others
        ignored = same & (camids[part, None] == other_camids)
        for row, chosen in enumerate((same & ~ignored, ~same)):
            counts[row] += step[chosen].bincount(minlength=counts.shape[1])
    if not counts[0].any() or not counts[1].any():
        lacking = "of different people" if counts[0].any() else "of one person under two cameras"
        raise ValueError(f"there are no two pictures {lacking}")
    return Counts(*counts.numpy())
