"""Verification: which share of the matching pairs a distance threshold accepts (TPR) and of the others (FPR)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

PIECE = 1 << 20  # distances that are sifted at a time


@dataclass
class Roc:
    """The exact receiver operating characteristic of all query-gallery pairs but the ignored ones, up to `max_fpr`.

    A pair is accepted where its distance is at most the threshold. positives (P,): ascending distances of the
    matching pairs; negatives: those of the nearest other pairs, as many as `max_fpr` of the `num_negatives` needs.
    """

    positives: np.ndarray
    negatives: np.ndarray
    num_negatives: int
    max_fpr: float

    def tpr(self, fpr: float) -> float:
        """The largest TPR of a threshold whose FPR is at most `fpr`; NaN where there are no negative pairs."""
        if not 0 <= fpr <= self.max_fpr:
            raise ValueError(f"the curve is known for FPR from 0 to {self.max_fpr:g}, not at {fpr:g}")
        if self.num_negatives == 0:
            return float("nan")
        accepted = _share(fpr, self.num_negatives)
        if accepted == self.num_negatives:
            return 1.0
        return float(np.searchsorted(self.positives, self.negatives[accepted])) / len(self.positives)

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """(FPR, TPR) at every matching pair's distance, ascending, as far as `max_fpr`; to be drawn as steps."""
        accepted = np.searchsorted(self.negatives, self.positives, side="right")
        known = accepted <= _share(self.max_fpr, self.num_negatives)
        true = np.searchsorted(self.positives, self.positives, side="right")
        return accepted[known] / max(self.num_negatives, 1), true[known] / len(self.positives)


class RocCounter:
    """Collects a `Roc` a block of distances at a time, keeping the nearest negatives only."""

    def __init__(self, num_negatives: int, max_fpr: float = 1e-2):
        self.num_negatives, self.max_fpr = num_negatives, max_fpr
        self.keep = min(_share(max_fpr, num_negatives) + 1, num_negatives)
        self.positives: list[torch.Tensor] = []
        self.nearest: list[torch.Tensor] = []
        self.collected, self.limit = 0, float("inf")

    def add(self, distance: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> None:
        """Take in distances (B, G): matches at [row, column], which become NaN, and NaN where they are ignored."""
        self.positives.append(distance[row, column])
        distance[row, column] = torch.nan
        for piece in distance.flatten().split(PIECE):
            near = piece[piece <= self.limit]
            self.nearest.append(near)
            self.collected += len(near)
            if self.collected > 2 * self.keep + PIECE:
                self._trim()

    def _trim(self) -> None:
        nearest = torch.cat(self.nearest)
        if len(nearest) > self.keep:
            nearest = nearest.topk(self.keep, largest=False, sorted=False).values
            self.limit = float(nearest.max())
        self.nearest, self.collected = [nearest], len(nearest)

    def result(self) -> Roc:
        self._trim()
        positives, negatives = (torch.cat(x).sort().values.cpu().numpy() for x in (self.positives, self.nearest))
        return Roc(positives, negatives, self.num_negatives, self.max_fpr)


def _share(fpr: float, total: int) -> int:
    """The most negatives that may be accepted at this rate; 1e-9 makes up for what 0.01 · 100 loses in binary."""
    return int(fpr * total + 1e-9)
