"""The values that a report shows: ranked lists, distances of pairs, scores by camera, the training."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from config import Config
from datasets.base import MOST_CAMERAS, ReIDDataset, Sample
from processor.evaluate import Inference, score_values, scores_note
from processor.ranked_lists import choose_queries
from processor.test import TestJob
from utils.metrics import ranked_order
from utils.plots import loss_parts
from utils.protocols import evaluate_by_camera
from utils.roc import PairCounter

NEAREST = 5  # right and wrong images that are kept per query, however far down its list they are
BARS = 100  # of the histogram of distances
STEPS = 20  # thresholds of the ROC per bar
BLOCK_BYTES = 64 << 20  # distances held at a time


class Ranked(NamedTuple):
    """One query's gallery by distance, without images of its identity under its own camera. Ranks count from 1."""

    nearest: np.ndarray  # (at most top,) gallery indices, the nearest first
    distance: np.ndarray  # of these
    hits: np.ndarray  # (matches,) ascending ranks of all images of its identity
    right: list[tuple[int, int, float]]  # rank, gallery index and distance of at most NEAREST of these
    wrong: list[tuple[int, int, float]]  # the same of images of other identities


def report_values(
    test: TestJob, inference: Inference, top: int, checkpoint: str, command: str
) -> tuple[dict[str, Any], list[str], list[Ranked]]:
    """The values of the page, the paths of its pictures in the order of their numbers, and all ranked lists.

    top: images per list. checkpoint: its path, empty for initial weights. command: repeats the report.
    """
    cfg, dataset, query, gallery = test.cfg, test.dataset, test.query, test.gallery
    ids = (query.pids, gallery.pids, query.camids, gallery.camids)
    lists, counter = rank_gallery(cfg, inference, ids, top)
    *_, (last, scores) = inference.scores.items()
    pictures: dict[str, Sample] = {}  # by path, in the order of their numbers
    numbers: dict[str, int] = {}

    def number(sample: Sample) -> int:
        pictures.setdefault(sample.path, sample)
        return numbers.setdefault(sample.path, len(numbers))

    queries = []
    for sample, ranked, ap in zip(query.samples, lists, scores.ap, strict=True):
        nearest = {
            kind: [[rank, number(gallery.samples[g]), np.float32(d)] for rank, g, d in found]
            for kind, found in (("right", ranked.right), ("wrong", ranked.wrong))
        }
        shown = {
            "image": number(sample),
            "ap": 100 * float(ap),
            "list": [number(gallery.samples[g]) for g in ranked.nearest],
            "distance": ranked.distance,
            "hits": ranked.hits,
        }
        queries.append(nearest | shown)
    values = {
        "title": f"{Path(checkpoint).parent.name or cfg.model.backbone}, tested on {dataset.name}",
        "notes": notes(test, dataset),
        "facts": facts(test, dataset, checkpoint, command),
        "counts": {
            "queries": len(query.samples),
            "valid": scores.num_valid_queries,
            "identities": len(np.unique(query.pids)),
            "images": len(gallery.samples),
            "distractors": int((gallery.pids == 0).sum()),
        },
        "shown": last,
        "metric": cfg.eval.metric,
        "scores": score_values(inference.scores),
        "cmc": {name: 100 * s.cmc for name, s in inference.scores.items()},
        "pairs": pair_values(counter),
        "cameras": camera_table(cfg, dataset, inference, ids),
        "history": training_curves(test.state["history"]),
        "losses": ["loss", *loss_parts(test.state["history"])],
        "images": image_values(dataset, list(pictures.values())),
        "queries": queries,
        "top": top,
    }
    return values, list(pictures), lists


def image_values(dataset: ReIDDataset, samples: Sequence[Sample]) -> dict[str, Any]:
    """File names relative to the directory that holds all, pids, cameras (None: unknown), and names of pids."""
    paths = [os.path.abspath(s.path) for s in samples]
    above = os.path.commonpath([os.path.dirname(p) for p in paths])
    return {
        "file": [os.path.relpath(p, above) for p in paths],
        "pid": [s.pid for s in samples],
        "camera": [s.camid for s in samples] if dataset.cameras else None,
        "cameraNames": dataset.camera_names,
        "names": {s.pid: dataset.names[s.pid] for s in samples if s.pid in dataset.names},
    }


def rank_gallery(cfg: Config, inference: Inference, ids: tuple, top: int) -> tuple[list[Ranked], PairCounter]:
    """Every query's list of `top` images by the distances of the last scores, and the counts of all pairs.

    ids: as `evaluate` takes them, as arrays. Equal distances rank by gallery order.
    """
    query_pids, gallery_pids, query_camids, gallery_camids = ids
    blocks = torch.arange(len(query_pids)).split(max(1, BLOCK_BYTES // (4 * max(len(gallery_pids), 1))))
    ends = torch.stack([torch.stack(inference.distance(cfg, rows).aminmax()).cpu() for rows in blocks])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    counter = PairCounter(torch.from_numpy(np.linspace(float(low), float(high), BARS * STEPS + 1, dtype=np.float32)))
    lists = []
    for rows in tqdm(blocks, desc="ranked lists", unit="block", leave=False, disable=None, delay=2):
        for query, distance in zip(rows.tolist(), inference.distance(cfg, rows).cpu().numpy(), strict=True):
            order = ranked_order(distance, query_pids[query], query_camids[query], gallery_pids, gallery_camids)
            ordered, right = distance[order], gallery_pids[order] == query_pids[query]
            counter.add(torch.from_numpy(ordered[right]), torch.from_numpy(ordered[~right]))
            hits, misses = np.flatnonzero(right), np.flatnonzero(~right)
            both = [[(int(i) + 1, int(order[i]), float(ordered[i])) for i in at[:NEAREST]] for at in (hits, misses)]
            lists.append(Ranked(order[:top], ordered[:top], hits + 1, *both))
    return lists, counter


def pair_values(counter: PairCounter) -> dict[str, Any]:
    """Numbers of matching and other pairs; `edges` of the bars and the share of each kind per bar; the ROC and the
    equal error rate, where there are pairs of both kinds."""
    thresholds, rates = counter.thresholds.numpy(), counter.rates()
    bars = np.diff(rates[:, ::STEPS], axis=1)
    bars[:, 0] += rates[:, 0]  # pairs at the lowest distance
    positives, negatives = counter.number.tolist()
    values = {"positives": positives, "negatives": negatives, "edges": thresholds[::STEPS], "bars": bars, "roc": None}
    if positives and negatives:
        tpr, fpr = rates
        i = counter.equal_error()
        values["roc"] = {"threshold": thresholds, "tpr": tpr, "fpr": fpr}
        values["equal_error"] = {"rate": float((1 - tpr[i] + fpr[i]) / 2), "threshold": float(thresholds[i])}
    return values


def camera_table(cfg: Config, dataset: ReIDDataset, inference: Inference, ids: tuple) -> dict[str, Any] | str:
    """mAP and Rank-1 in per cent of each camera's queries (rows) in each camera's gallery (columns), None where there
    is no match; or a sentence that says why there is no table."""
    most = max(len(np.unique(camids)) for camids in ids[2:])
    if not dataset.cameras:
        return "The cameras are unknown, so every image counts as a camera of its own."
    if most > MOST_CAMERAS:
        return f"There are {most} cameras, which is too many for a table; {MOST_CAMERAS} is the most."
    query, gallery, distance = inference.query, inference.gallery, inference.reranked
    scores = evaluate_by_camera(query, gallery, *ids, metric=cfg.eval.metric, distance=distance)
    rows, columns = (sorted({pair[i] for pair in scores}) for i in (0, 1))
    cells = {
        pair: {"mAP": 100 * s.mAP, "rank1": 100 * s.rank(1), "queries": s.num_valid_queries}
        for pair, s in scores.items()
    }
    named = ([dataset.camera_names.get(c, c) for c in some] for some in (rows, columns))
    return {
        **dict(zip(("rows", "columns"), named, strict=True)),
        "cells": [[cells.get((q, g)) for g in columns] for q in rows],
    }


def training_curves(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A checkpoint's history: the numbers of each epoch, and mAP and Rank-1 of each test in per cent."""
    curves = []
    for entry in history:
        tests = {name: {key: row.get(key) for key in ("mAP", "rank1")} for name, row in entry.get("scores", {}).items()}
        numbers = {key: value for key, value in entry.items() if isinstance(value, (int, float))}
        curves.append(numbers | ({"scores": tests} if tests else {}))
    return curves


def notes(test: TestJob, dataset: ReIDDataset) -> list[str]:
    """What a reader of the scores must know."""
    protocol = test.cfg.eval.protocol
    found = [scores_note(test.cfg, test.note)]
    if dataset.protocol not in ("standard", protocol):
        found.append(
            f"the authors of {dataset.name} score it by the protocol {dataset.protocol}; here each query has one list "
            f"of the whole gallery (protocol {protocol}), which gives other scores"
        )
    if test.what == "best":
        found.append("best.pth was chosen by its score on the test split, which flatters it; last.pth was not")
    return [note for note in found if note]


def facts(test: TestJob, dataset: ReIDDataset, checkpoint: str, command: str) -> list[tuple[str, str]]:
    """Names and values of what was tested and how it was trained."""
    cfg, state, environment = test.cfg, test.state, test.state["environment"]
    trained = f"{state['epoch']} of {cfg.solver.epochs} epochs, seed {cfg.run.seed}, in {state['seconds'] / 60:.1f} min"
    return [
        ("Checkpoint", checkpoint or f"none: weights {cfg.model.weights} as they are"),
        ("Model", f"{cfg.model.backbone}, {cfg.data.height} × {cfg.data.width} pixels"),
        ("Tested on", dataset.name),
        ("Trained on", f"{cfg.data.dataset}: {trained}" if checkpoint else "nothing by PlainReID"),
        *((name.capitalize(), environment[name]) for name in ("hardware", "torch", "commit") if name in environment),
        ("Trained by", state["command"]),
        ("Report by", command),
        ("Made", datetime.now().strftime("%Y-%m-%d %H:%M")),
    ]


def queries_with_maps(ap: np.ndarray, number: int) -> list[int]:
    """So many queries that have a match, half of them with the lowest AP and half with the highest."""
    worst = choose_queries(ap, "worst", number - number // 2, 0).tolist()
    best = choose_queries(ap, "best", len(ap), 0).tolist()
    return worst + [q for q in best if q not in set(worst)][: number // 2]


def plain_values(value: Any) -> Any:
    """Values for JSON: NumPy's numbers with 5 significant digits, which keeps the page small, None for NaN and inf."""
    if isinstance(value, dict):
        return {key: plain_values(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain_values(v) for v in value]
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        value = float(f"{value:.5g}")
    return None if isinstance(value, float) and not math.isfinite(value) else value
