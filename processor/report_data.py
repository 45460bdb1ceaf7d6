"""What a report shows of a test, as plain values for JSON: ranked lists, distances of pairs, cameras, the training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from config import Config
from processor.evaluate import Inference
from utils.metrics import Scores, evaluate_distance
from utils.protocols import evaluate_by_camera

NEAREST = 5  # right and wrong images that are kept of each query, however far down its list they are
BARS = 100  # of the histogram of distances
STEPS = 20  # thresholds of the ROC a bar
BLOCK_BYTES = 64 << 20  # distances held at a time


class Ranked(NamedTuple):
    """One query's gallery by distance; images of its identity under its camera are left out. Ranks count from 1."""

    nearest: np.ndarray  # (at most top,) gallery indices, the nearest first
    distance: np.ndarray  # of these
    hits: np.ndarray  # (matches,) ascending ranks of all images of its identity
    right: list[tuple[int, int, float]]  # rank, gallery index and distance of at most NEAREST of these
    wrong: list[tuple[int, int, float]]  # and of the images of others


def ranked_lists(inference: Inference, cfg: Config, ids: tuple, top: int) -> tuple[list[Ranked], dict[str, Any]]:
    """Every query's list of `top` images by the distances that the last scores were made from, and `PairCounter`'s
    result for all pairs. ids: as `evaluate` takes them, as arrays. Equal distances rank by gallery order.
    """
    query_pids, gallery_pids, query_camids, gallery_camids = ids
    blocks = list(_blocks(len(query_pids), len(gallery_pids)))
    ends = [inference.distance(cfg, rows).aminmax() for rows in blocks]
    counter = PairCounter(min(float(e.min) for e in ends), max(float(e.max) for e in ends))
    lists = []
    for rows in tqdm(blocks, desc="ranked lists", unit="block", leave=False, disable=None, delay=2):
        for query, distance in zip(rows.tolist(), inference.distance(cfg, rows).cpu().numpy(), strict=True):
            same = gallery_pids == query_pids[query]
            counted = np.flatnonzero(~(same & (gallery_camids == query_camids[query])))
            order = counted[np.argsort(distance[counted], kind="stable")]
            ordered, right = distance[order], same[order]
            counter.add(ordered[right], ordered[~right])
            hits = np.flatnonzero(right)
            both = [
                [(int(i) + 1, int(order[i]), float(ordered[i])) for i in places[:NEAREST]]
                for places in (hits, np.flatnonzero(~right))
            ]
            lists.append(Ranked(order[:top], ordered[:top], hits + 1, *both))
    return lists, counter.result()


def _blocks(queries: int, images: int) -> Iterator[torch.Tensor]:
    yield from torch.arange(queries).split(max(1, BLOCK_BYTES // (4 * max(images, 1))))


class PairCounter:
    """How many matching and other pairs are accepted by thresholds from `low` to `high`: those whose distance is at
    most the threshold, as in `utils.roc`."""

    def __init__(self, low: float, high: float):
        self.thresholds = np.linspace(low, high, BARS * STEPS + 1, dtype=np.float32)
        self.accepted = np.zeros((2, len(self.thresholds)), dtype=np.int64)  # matching pairs, others
        self.number = np.zeros(2, dtype=np.int64)

    def add(self, positives: np.ndarray, negatives: np.ndarray) -> None:
        """Ascending float32 distances of one query's matches and of the others."""
        for kind, distances in enumerate((positives, negatives)):
            self.accepted[kind] += np.searchsorted(distances, self.thresholds, side="right")
            self.number[kind] += len(distances)

    def result(self) -> dict[str, Any]:
        """The numbers of pairs; `edges` of the bars and the share of each kind in each; the ROC, exact at each of its
        thresholds, and the equal error rate, where there are both kinds."""
        shares = self.accepted / np.maximum(self.number, 1)[:, None]
        bars = np.diff(shares[:, ::STEPS], axis=1)
        bars[:, 0] += shares[:, 0]  # pairs at the very lowest distance
        result = {"positives": int(self.number[0]), "negatives": int(self.number[1])}
        result |= {"edges": rounded(self.thresholds[::STEPS]), "bars": [rounded(kind) for kind in bars], "roc": None}
        if self.number.all():
            tpr, fpr = shares
            equal = int(np.argmax(fpr >= 1 - tpr))
            error = {"rate": float((1 - tpr[equal] + fpr[equal]) / 2), "threshold": float(self.thresholds[equal])}
            result["roc"] = {"threshold": rounded(self.thresholds), "tpr": rounded(tpr), "fpr": rounded(fpr)}
            result["equal_error"] = error
        return result


def camera_table(scores: dict[tuple[int, int], Scores]) -> dict[str, Any]:
    """mAP and Rank-1 in per cent of each camera's queries (rows) in each camera's gallery (columns), and the number of
    queries with a match; None where there is none."""
    rows, columns = (sorted({pair[i] for pair in scores}) for i in (0, 1))

    def cell(pair: tuple[int, int]) -> dict[str, float] | None:
        s = scores.get(pair)
        return s and {"mAP": 100 * s.mAP, "rank1": 100 * s.rank(1), "queries": s.num_valid_queries}

    return {"rows": rows, "columns": columns, "cells": [[cell((q, g)) for g in columns] for q in rows]}


def camera_scores(inference: Inference, cfg: Config, ids: tuple) -> dict[tuple[int, int], Scores]:
    """`evaluate_by_camera` of the distances that the last scores were made from, which may be re-ranked ones."""
    if inference.reranked is None:
        return evaluate_by_camera(inference.query, inference.gallery, *ids, metric=cfg.eval.metric)
    query_pids, gallery_pids, query_camids, gallery_camids = ids
    scores = {}
    for pair in product(np.unique(query_camids).tolist(), np.unique(gallery_camids).tolist()):
        q, g = np.flatnonzero(query_camids == pair[0]), np.flatnonzero(gallery_camids == pair[1])
        if pair[0] != pair[1] and np.isin(query_pids[q], gallery_pids[g]).any():
            distance = inference.reranked[torch.from_numpy(q)][:, torch.from_numpy(g)]
            scores[pair] = evaluate_distance(
                distance, query_pids[q], gallery_pids[g], query_camids[q], gallery_camids[g]
            )
    return scores


def training_curves(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A checkpoint's history: of each epoch its numbers, and mAP and Rank-1 of each test in per cent."""
    curves = []
    for entry in history:
        tests = {name: {key: row.get(key) for key in ("mAP", "rank1")} for name, row in entry.get("scores", {}).items()}
        numbers = {key: value for key, value in entry.items() if isinstance(value, (int, float))}
        curves.append(numbers | ({"scores": tests} if tests else {}))
    return curves


def rounded(values: np.ndarray, digits: int = 5) -> list[float | None]:
    """Plain numbers of so many significant digits, which keeps the page small; None for what is not finite."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in values.tolist()]


def plain(value: Any) -> Any:
    """The same with None for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
