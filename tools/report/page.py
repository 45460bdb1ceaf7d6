"""The report's page: its values (ranked lists, distances of pairs, scores by camera, training), and the file."""

import base64
import html
import json
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from config import Config
from datasets.augment import normalise
from datasets.base import MOST_CAMERAS, ReIDDataset, Sample
from datasets.images import decode, read_input, read_whole
from processor.evaluate import Inference, rank1_interval, score_values, scores_note
from processor.ranked_lists import choose_queries
from processor.test import TestJob
from tools.gradcam import activation_maps, overlay, similarity_maps
from utils.metrics import ranked_order
from utils.plots import loss_parts
from utils.protocols import evaluate_by_camera
from utils.roc import PairCounter, count_pairs

PAGE = Path(__file__).resolve().parent
SCRIPTS = ("plots.js", "page.js", "lists.js", "query.js")
GRAY = 128  # gray level around images whose shape differs from the thumbnails'
QUALITY = 75  # of the JPEGs, 0 to 100
NEAREST = 5  # right and wrong images that are kept per query, at any rank
LONGEST = 256  # pixels of a heat map
BARS = 100  # of the histogram of cosines, at most
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
    """Return the values of the page, the paths of its pictures in the order of their numbers, and all ranked lists.

    top: images per list. checkpoint: its path, empty for initial weights. command: the one that repeats the report.
    """
    cfg, dataset, query, gallery = test.cfg, test.dataset, test.query, test.gallery
    ids = (query.pids, gallery.pids, query.camids, gallery.camids)
    lists = rank_gallery(cfg, inference, ids, top)
    pairs = count_pairs(*(F.normalize(x.cpu()) for x in (inference.query, inference.gallery)), *ids)
    *_, (last, scores) = inference.scores.items()
    pictures: dict[str, Sample] = {}  # by path, in the order of their numbers
    numbers: dict[str, int] = {}

    def number(sample: Sample) -> int:
        pictures.setdefault(sample.path, sample)
        return numbers.setdefault(sample.path, len(numbers))

    def tiles(found: list[tuple[int, int, float]]) -> list[tuple]:
        return [(rank, number(gallery.samples[g]), np.float32(distance)) for rank, g, distance in found]

    queries = [
        {
            "image": number(sample), "ap": 100 * float(ap), "hits": ranked.hits, "distance": ranked.distance,
            "list": [number(gallery.samples[g]) for g in ranked.nearest],
            "right": tiles(ranked.right), "wrong": tiles(ranked.wrong),
        }
        for sample, ranked, ap in zip(query.samples, lists, scores.ap, strict=True)
    ]  # fmt: skip
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
        "scores": score_values(inference.scores),
        "cmc": {name: 100 * s.cmc for name, s in inference.scores.items()},
        "interval": rank1_interval(score_values(inference.scores)),
        "pairs": pair_values(pairs) | {"features": last.removesuffix("rerank").rstrip("+") or "plain"},
        "cameras": camera_table(cfg, dataset, inference, ids),
        "history": test.state["history"],
        "losses": ["loss", *loss_parts(test.state["history"])],
        "images": image_values(dataset, list(pictures.values())),
        "queries": queries,
        "top": top,
    }
    return values, list(pictures), lists


def image_values(dataset: ReIDDataset, samples: Sequence[Sample]) -> dict[str, Any]:
    """File names relative to their common directory, pids, cameras (None: unknown), and names of pids."""
    paths = [os.path.abspath(s.path) for s in samples]
    above = os.path.commonpath([os.path.dirname(p) for p in paths])
    return {
        "file": [os.path.relpath(p, above) for p in paths],
        "pid": [s.pid for s in samples],
        "camera": [s.camid for s in samples] if dataset.cameras else None,
        "cameraNames": dataset.camera_names,
        "names": {s.pid: dataset.names[s.pid] for s in samples if s.pid in dataset.names},
    }


def rank_gallery(cfg: Config, inference: Inference, ids: tuple, top: int) -> list[Ranked]:
    """Every query's list of `top` images by the distances of the last scores.

    ids: as `evaluate` takes them, as arrays. Equal distances rank by gallery order.
    """
    query_pids, gallery_pids, query_camids, gallery_camids = ids
    blocks = torch.arange(len(query_pids)).split(max(1, BLOCK_BYTES // (4 * max(len(gallery_pids), 1))))
    lists = []
    for rows in tqdm(blocks, desc="ranked lists", unit="block", leave=False, disable=None, delay=2):
        for query, distance in zip(rows.tolist(), inference.distance(cfg, rows).cpu().numpy(), strict=True):
            order = ranked_order(distance, query_pids[query], query_camids[query], gallery_pids, gallery_camids)
            ordered, right = distance[order], gallery_pids[order] == query_pids[query]
            hits, misses = np.flatnonzero(right), np.flatnonzero(~right)
            both = [[(int(i) + 1, int(order[i]), float(ordered[i])) for i in at[:NEAREST]] for at in (hits, misses)]
            lists.append(Ranked(order[:top], ordered[:top], hits + 1, *both))
    return lists


def pair_values(counter: PairCounter) -> dict[str, Any]:
    """Numbers of matching and other pairs; `edges` of the bars, ascending cosines, and the share of each kind per bar;
    the ROC and the equal error rate, where there are pairs of both kinds."""
    cosines, rates = -counter.thresholds.numpy(), counter.rates()
    used = np.flatnonzero(counter.first.sum(0).numpy())
    first, last = max(used[0] - 1, 0), min(used[-1], len(cosines) - 1)  # all pairs lie between these two thresholds
    last = max(last, first + 1)
    step = -(-(last - first) // (BARS * STEPS))
    places = np.minimum(np.arange(first, last + step * STEPS, step), len(cosines) - 1)
    places = places[: 1 + (len(places) - 1) // STEPS * STEPS]
    bars = np.diff(rates[:, places[::STEPS]], axis=1)
    bars[:, 0] += rates[:, first]  # pairs of cosine 1
    positives, negatives = counter.number.tolist()
    values = {"positives": positives, "negatives": negatives, "roc": None}
    values |= {"edges": cosines[places[::STEPS]][::-1], "bars": bars[:, ::-1]}
    if positives and negatives:
        values["roc"] = {"threshold": cosines[places], "tpr": rates[0, places], "fpr": rates[1, places]}
        i = counter.equal_error()
        values["equal_error"] = {"rate": float((1 - rates[0, i] + rates[1, i]) / 2), "threshold": float(cosines[i])}
    return values


def camera_table(cfg: Config, dataset: ReIDDataset, inference: Inference, ids: tuple) -> dict[str, Any] | str:
    """mAP and Rank-1 in percent of each camera's queries (rows) in each camera's gallery (columns), None where there
    is no match; or a sentence that says why there is no table."""
    most = max(len(np.unique(camids)) for camids in ids[2:])
    if not dataset.cameras:
        return "The cameras are unknown, so every image counts as its own camera."
    if most > MOST_CAMERAS:
        return f"There are {most} cameras, too many for a table, which has at most {MOST_CAMERAS}."
    query, gallery, distance = inference.query, inference.gallery, inference.reranked
    scores = evaluate_by_camera(query, gallery, *ids, metric=cfg.eval.metric, distance=distance)
    rows, columns = (sorted({pair[i] for pair in scores}) for i in (0, 1))
    cells = {
        pair: {"mAP": 100 * s.mAP, "rank1": 100 * s.rank(1), "queries": s.num_valid_queries}
        for pair, s in scores.items()
    }
    return {
        "rows": [dataset.camera_names.get(c, c) for c in rows],
        "columns": [dataset.camera_names.get(c, c) for c in columns],
        "cells": [[cells.get((q, g)) for g in columns] for q in rows],
    }


def notes(test: TestJob, dataset: ReIDDataset) -> list[str]:
    """Return what a reader of the scores must know."""
    protocol = test.cfg.eval.protocol
    found = [scores_note(test.cfg, test.note)]
    if dataset.protocol not in ("standard", protocol):
        found.append(
            f"the authors of {dataset.name} use the protocol {dataset.protocol}; here each query ranks the whole "
            f"gallery (protocol {protocol}), which gives different scores"
        )
    if test.what == "best":
        found.append("best.pth was chosen by its score on the test split, so that score is too high; last.pth was not")
    return [note for note in found if note]


def facts(test: TestJob, dataset: ReIDDataset, checkpoint: str, command: str) -> list[tuple[str, str]]:
    """Return names and values of what was tested and how it was trained."""
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
    """Return `number` queries that have a match, half of them with the lowest AP and half with the highest."""
    worst = choose_queries(ap, "worst", number - number // 2, 0).tolist()
    best = choose_queries(ap, "best", len(ap), 0).tolist()
    return worst + [q for q in best if q not in set(worst)][: number // 2]


def plain_values(value: Any) -> Any:
    """Values for JSON: NumPy's numbers with 5 significant digits, to keep the page small, None for NaN and inf."""
    if isinstance(value, dict):
        return {key: plain_values(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain_values(v) for v in value]
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        value = float(f"{value:.5g}")
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- the file


def make_page(values: dict[str, Any], thumbs: Sequence[str]) -> str:
    """Return the HTML page of values for JSON and of the output of `thumbnails`. No value can become markup."""

    def read(name: str) -> str:
        return (PAGE / name).read_text(encoding="utf-8")

    common = os.path.commonprefix(thumbs)  # noqa: RUF071 (no paths; storing it once saves a third)
    parts = {
        "title": html.escape(values["title"].encode(errors="replace").decode()),
        "style": read("page.css"),
        "script": "\n".join(map(read, SCRIPTS)),
        # "<" is escaped, or a name that contains "</script>" would end the element early
        "data": json.dumps(values, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "thumbs": "\n".join([common, *(thumb[len(common) :] for thumb in thumbs)]),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], read("page.html"))


def thumbnails(paths: Sequence[str | Path], height: int, width: int, workers: int) -> list[str]:
    """Return each image as a JPEG of this size in base64. All begin with the same characters: encoder tables."""
    with ThreadPoolExecutor(workers) as pool:
        made = pool.map(lambda path: jpeg(letterbox(decode(path), height, width)), paths)
        return list(tqdm(made, desc="pictures", unit="img", total=len(paths), leave=False, disable=None, delay=2))


def letterbox(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale an image without distortion into the middle of a gray one of this size."""
    scale = min(height / image.shape[0], width / image.shape[1])
    rows, columns = (max(1, round(scale * side)) for side in image.shape[:2])
    top, left = (height - rows) // 2, (width - columns) // 2
    boxed = np.full((height, width, 3), GRAY, np.uint8)
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    boxed[top : top + rows, left : left + columns] = cv2.resize(image, (columns, rows), interpolation=kind)
    return boxed


def jpeg(image: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB to a JPEG in base64."""
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return base64.b64encode(data.tobytes()).decode()


def heat_maps(test: TestJob, query: int, ranked: Ranked) -> list[dict[str, Any]]:
    """A query's heat maps: where its features are strong, and what makes it similar to its nearest right and wrong
    image. Each is a dict of `words` and `images`, JPEGs in base64 of the query and of the other image."""
    gallery = test.gallery.samples
    others = sorted((found[0], word) for word in ("right", "wrong") if (found := getattr(ranked, word)))
    paths = [test.query.samples[query].path, *(gallery[g].path for (_, g, _), _ in others)]
    pixels = np.stack([read_input(path, test.cfg.data) for path in paths])
    drawn = [read_whole(path, LONGEST) for path in paths]
    images = normalise(torch.from_numpy(pixels).to(test.device))
    strong = activation_maps(test.model, images[:1]).mean(1)[0]
    strong = strong - strong.min()  # as tools/heatmap.py draws it
    maps = [{"words": "features alone", "images": [jpeg(overlay(drawn[0], strong.cpu().numpy()))]}]
    for place, ((rank, *_), word) in enumerate(others, 1):
        *both, cosines = similarity_maps(test.model, images[:1], images[place : place + 1])
        heats = [m[0].mean(0).cpu().numpy() for m in both]
        both = [jpeg(overlay(drawn[i], heat)) for i, heat in zip((0, place), heats, strict=True)]
        maps.append({"words": f"rank {rank:,}, {word}: cosine {cosines.mean():.2f}", "images": both})
    return maps
