"""Trade-offs: which of many are beaten by no other, and how well one order agrees with another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> np.ndarray:
    """Indices of the points that no other beats: none costs as little and gains as much, with one of the two better.
    By rising cost; of equal points the first."""
    order = np.lexsort((np.arange(len(costs)), -np.asarray(gains), np.asarray(costs)))
    front, best = [], -np.inf
    for index in order:
        if gains[index] > best:
            front.append(index)
            best = gains[index]
    return np.array(front, dtype=int)


def kendall(a: Sequence[float], b: Sequence[float], groups: Sequence[object] | None = None) -> float:
    """Kendall's tau-b of two lists (N,): 1 for the same order, -1 for the opposite; ties count as in tau-b. NaN where
    one of the lists holds nothing but equal numbers. groups (N,): only pairs of one group are counted."""
    pairs = np.triu_indices(len(a), 1)
    together = np.array([groups is None or groups[i] == groups[j] for i, j in zip(*pairs, strict=True)], dtype=bool)
    first, second = (np.sign(np.subtract.outer(x, x))[pairs][together] for x in (a, b))
    weight = np.sqrt(np.abs(first).sum() * np.abs(second).sum())
    return float((first * second).sum() / weight) if weight else float("nan")


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation of two lists (N,): Pearson's of their ranks, equal numbers sharing theirs. NaN where
    one of the lists holds nothing but equal numbers."""
    ranks = [np.sign(np.subtract.outer(x, x)).sum(1) for x in (a, b)]
    if not all(np.any(r) for r in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
