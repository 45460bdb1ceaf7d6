"""The similarity from which on two pictures count as of the same person, from labelled pairs."""

from __future__ import annotations

import torch

from utils.distance import exact_products
from utils.ids import Ids, check_ids
from utils.roc import PairCounter

STEPS = 1 << 13  # thresholds between 0 and 1; a power of two, so that they are exact
BLOCK = 1 << 22  # pairs that are counted at a time
FPR = 1e-3
RELIABLE = 10_000  # pairs of different people, of which FPR accepts ten


def count_pairs(
    query: torch.Tensor,
    gallery: torch.Tensor,
    query_pids: Ids,
    gallery_pids: Ids,
    query_camids: Ids,
    gallery_camids: Ids,
) -> PairCounter:
    """Pairs of features (Q, D) and (G, D) float32 of length 1 by their negative cosine, in steps of 1 / STEPS.

    Pairs of the same person under the same camera do not count, as in the standard protocol. Raises ValueError for ids
    that do not fit, and if there is no pair of one person or none of different people.
    """
    of_query = check_ids(len(query), query_pids=query_pids, query_camids=query_camids)
    of_gallery = check_ids(len(gallery), gallery_pids=gallery_pids, gallery_camids=gallery_camids)
    pids, camids, other_pids, other_camids = (torch.from_numpy(x) for x in (*of_query, *of_gallery))
    counter = PairCounter(torch.arange(-STEPS, STEPS + 1) / STEPS)
    for rows in torch.arange(len(query)).split(max(1, BLOCK // max(len(gallery), 1))):
        with exact_products(query.device):
            distance = -(query[rows] @ gallery.T)
        same = pids[rows, None] == other_pids
        counter.add(distance[same & (camids[rows, None] != other_camids)], distance[~same])
    if not counter.number.all():
        missing = "of different people" if counter.number[0] else "of one person under two cameras"
        raise ValueError(f"there are no two pictures {missing}")
    return counter


def find_thresholds(counter: PairCounter) -> dict[str, tuple[float, float, float]]:
    """By their rule, thresholds and the shares of pairs of one person (TPR) and of others (FPR) that they accept."""
    tpr, fpr = counter.rates()
    found = {"equal error rate": counter.equal_error(), f"FPR {FPR:g}": counter.at_fpr(FPR)}
    return {rule: (-float(counter.thresholds[i]), tpr[i], fpr[i]) for rule, i in found.items()}


def threshold_table(counter: PairCounter) -> str:
    """The similarities of both kinds of pairs, one line per threshold, and a warning if there are too few pairs."""
    lines = []
    for kind, name in enumerate(("of one person", "of different people")):
        low, middle, high = (-float(counter.thresholds[counter.quantile(kind, 1 - q)]) for q in (0.05, 0.5, 0.95))
        number = f"{counter.number[kind]:>13,} pairs {name:<19}"
        lines.append(f"{number} similarity {middle:.3f}, nine of ten {low:.3f} to {high:.3f}")
    lines.append(f"{'':<17} threshold  of one person accepted  of different people accepted")
    for rule, (value, tpr, fpr) in find_thresholds(counter).items():
        lines.append(f"{rule:<17} {value:>9.3f} {100 * tpr:>20.2f} % {100 * fpr:>26.3f} %")
    if counter.number[1] < RELIABLE:
        lines.append(f"FPR 1e-3 is a guess with fewer than {RELIABLE:,} pairs of different people; use more pictures")
    return "\n".join(lines)
