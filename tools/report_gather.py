"""All that tools/report.py shows, gathered from a test: plain values, and pictures."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from config import Config
from datasets.base import ReIDDataset, Sample
from datasets.check import MOST_CAMERAS
from datasets.make import make_test_set
from processor.evaluate import Inference, score_values, scores_note
from processor.ranked_lists import choose_queries
from processor.report_data import Ranked, camera_scores, camera_table, plain, ranked_lists, rounded, training_curves
from processor.report_images import heat_maps, thumbnails
from processor.test import TestJob
from utils.plots import loss_parts


def gather(
    cfg: Config, test: TestJob, inference: Inference, checkpoint: str, command: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """The values that the page shows, and its pictures, in the order in which the values number them.

    cfg: a ReportConfig. checkpoint: its path, empty for bare weights. command: the words that repeat the report.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were said when the split was read for the test
        dataset = make_test_set(cfg)  # for its names
    query, gallery = test.query, test.gallery
    ids = (query.pids, gallery.pids, query.camids, gallery.camids)
    lists, pairs = ranked_lists(inference, cfg, ids, cfg.top)
    *_, (shown, scores) = inference.scores.items()
    pictures = Pictures()
    queries = [
        query_values(pictures, sample, gallery.samples, ranked, ap)
        for sample, ranked, ap in zip(query.samples, lists, scores.ap, strict=True)
    ]
    size = (max(1, round(cfg.thumb_height * cfg.data.width / cfg.data.height)), cfg.thumb_height)
    chosen = queries_with_maps(scores.ap, cfg.heatmaps)
    values = {
        "title": f"{Path(checkpoint).parent.name or cfg.model.backbone}, tested on {dataset.name}",
        "notes": notes(cfg, test, dataset),
        "facts": facts(cfg, test, dataset, checkpoint, command),
        "counts": counts(query.samples, gallery.samples, scores.num_valid_queries),
        "shown": shown,
        "metric": cfg.eval.metric,
        "scores": score_values(inference.scores),
        "cmc": {name: rounded(100 * s.cmc) for name, s in inference.scores.items()},
        "pairs": pairs,
        "cameras": by_camera(cfg, dataset, inference, ids),
        "history": training_curves(test.state["history"]),
        "losses": ["loss", *loss_parts(test.state["history"])],
        "images": pictures.values(dataset),
        "queries": queries,
        "heatmaps": {
            int(q): heat_maps(cfg, test.model, test.device, *pairs_of(query.samples[q], gallery.samples, lists[q]))
            for q in chosen
        },
        "size": size,
        "top": cfg.top,
    }
    return plain(values), thumbnails(list(pictures.samples), *reversed(size), cfg.data.workers)


class Pictures:
    """Images in the order in which they were asked for, each once."""

    def __init__(self):
        self.samples: dict[str, tuple[int, Sample]] = {}

    def number(self, sample: Sample) -> int:
        return self.samples.setdefault(sample.path, (len(self.samples), sample))[0]

    def values(self, dataset: ReIDDataset) -> dict[str, Any]:
        """File names below the directory that all lie in, pids, cameras (None where unknown), and names of pids."""
        samples = [sample for _, sample in self.samples.values()]
        paths = [os.path.abspath(s.path) for s in samples]
        above = os.path.commonpath([os.path.dirname(p) for p in paths])
        return {
            "file": [os.path.relpath(p, above) for p in paths],
            "pid": [s.pid for s in samples],
            "camera": [s.camid for s in samples] if dataset.cameras else None,
            "names": {s.pid: dataset.names[s.pid] for s in samples if s.pid in dataset.names},
        }


def query_values(
    pictures: Pictures, sample: Sample, gallery: Sequence[Sample], ranked: Ranked, ap: float
) -> dict[str, Any]:
    """One query: its picture's number, AP in per cent (NaN without a match), list, ranks of its matches, and the
    nearest right and wrong images as (rank, picture, distance)."""
    found = {
        kind: [[rank, pictures.number(gallery[g]), *rounded(np.array([d]))] for rank, g, d in getattr(ranked, kind)]
        for kind in ("right", "wrong")
    }
    return found | {
        "image": pictures.number(sample),
        "ap": 100 * float(ap),
        "list": [pictures.number(gallery[g]) for g in ranked.nearest],
        "distance": rounded(ranked.distance),
        "hits": ranked.hits.tolist(),
    }


def queries_with_maps(ap: np.ndarray, number: int) -> list[int]:
    """So many queries that have a match, half of them with the lowest AP and half with the highest."""
    worst = choose_queries(ap, "worst", number - number // 2, 0).tolist()
    best = choose_queries(ap, "best", len(ap), 0).tolist()
    return worst + [q for q in best if q not in set(worst)][: number // 2]


def pairs_of(query: Sample, gallery: Sequence[Sample], ranked: Ranked) -> tuple[str, list[tuple[str, str]]]:
    """The query's path, and words and path of what it is compared with: its nearest right and wrong image."""
    kinds = (("right", ranked.right), ("wrong", ranked.wrong))
    nearest = sorted((found[0][0], word, gallery[found[0][1]].path) for word, found in kinds if found)
    return query.path, [(f"rank {rank:,}, {word}", path) for rank, word, path in nearest]


def by_camera(cfg: Config, dataset: ReIDDataset, inference: Inference, ids: tuple) -> dict[str, Any] | str:
    """The table of cameras, or a sentence that says why there is none."""
    most = max(len(np.unique(camids)) for camids in ids[2:])
    if not dataset.cameras:
        return "The cameras are unknown, so every image counts as a camera of its own."
    if most > MOST_CAMERAS:
        return f"There are {most} cameras, which is too many for a table; {MOST_CAMERAS} is the most."
    return camera_table(camera_scores(inference, cfg, ids))


def counts(query: Sequence[Sample], gallery: Sequence[Sample], valid: int) -> dict[str, int]:
    return {
        "queries": len(query),
        "valid": valid,
        "identities": len({s.pid for s in query}),
        "images": len(gallery),
        "distractors": sum(s.pid == 0 for s in gallery),
    }


def notes(cfg: Config, test: TestJob, dataset: ReIDDataset) -> list[str]:
    """What the scores must be read with."""
    found = [scores_note(cfg, test.note)]
    if dataset.protocol not in ("standard", cfg.eval.protocol):
        found.append(
            f"the authors of {dataset.name} score it by the protocol {dataset.protocol}; here each query has one list "
            f"of the whole gallery (protocol {cfg.eval.protocol}), which gives other scores"
        )
    if test.what == "best":
        found.append("best.pth was chosen by its score on the test split, which flatters it; last.pth was not")
    return [note for note in found if note]


def facts(cfg: Config, test: TestJob, dataset: ReIDDataset, checkpoint: str, command: str) -> list[tuple[str, str]]:
    """Names and values of what was tested and how it was trained."""
    state, environment = test.state, test.state["environment"]
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
