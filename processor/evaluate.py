"""From features to scores, by every protocol that the settings ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from config import Config
from config.config import option, undefined_for_protocol
from datasets.base import MOST_CAMERAS, ReIDDataset
from datasets.loaders import TestLoader
from model import ReIDModel
from processor.distributed import ALONE, Ranks
from processor.extract import extract_features
from utils.distance import pairwise_distance
from utils.errors import UserError
from utils.expansion import augment_gallery, expand_queries
from utils.logging import log
from utils.metrics import Scores, evaluate, evaluate_distance
from utils.protocols import (
    TrialScores,
    evaluate_by_camera,
    evaluate_single_shot,
    evaluate_vehicle_id,
    pool_queries,
)
from utils.rerank import k_reciprocal

FALSE_POSITIVE_RATES = (1e-4, 1e-3, 1e-2)


@dataclass
class Inference:
    """Scores by what was done to the features ("plain", "flip+rerank", ...), and what the last were made from."""

    scores: dict[str, Scores]
    query: torch.Tensor  # (Q, D) float32
    gallery: torch.Tensor  # (G, D)
    reranked: torch.Tensor | None = None  # (Q, G)
    by_camera: dict[tuple[int, int], Scores] = field(default_factory=dict)  # (query camera, gallery camera)

    def distance(self, cfg: Config, queries) -> torch.Tensor:
        """Rows (len(queries), G) that the last scores were made from; queries are indices."""
        if self.reranked is not None:
            return self.reranked[queries]
        return pairwise_distance(self.query[queries], self.gallery, cfg.eval.metric)


def quick(cfg: Config) -> Config:
    """The settings less all that is scored beside plain features."""
    return cfg.replace(flip=False, rerank=False, query_expansion=0, augmentation_k=0, roc=False, by_camera=False)


def do_inference(
    cfg: Config,
    model: ReIDModel,
    query: TestLoader,
    gallery: TestLoader,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Inference | None:
    """Features of both splits and all scores that the settings ask for. Of several processes only the first scores.

    Raises UserError when the features are not finite or nothing can be scored.
    """
    q, g = (extract_features(cfg, model, x, device, cfg.eval.flip, ranks) for x in (query, gallery))
    if not ranks.first:
        return None
    pairs = {"plain": (q[0], g[0])} | ({"flip": (q[1], g[1])} if cfg.eval.flip else {})
    return score_features(cfg, pairs, (query.pids, gallery.pids, query.camids, gallery.camids))


def score_features(cfg: Config, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], ids: tuple) -> Inference:
    """All scores that the settings ask for. pairs: query (Q, D) and gallery (G, D) features by name, the best last:
    expansion and re-ranking start from these. ids: as `evaluate` takes them.

    Raises UserError when the features are not finite or nothing can be scored.
    """
    result = Inference({}, *pairs[list(pairs)[-1]])
    try:
        for name, (query, gallery) in pairs.items():
            query = _pooled(cfg, query, gallery, ids)
            result.scores[name] = _score(cfg, query, gallery, ids)
        result.query = query
        name = "" if name == "plain" else f"{name}+"
        if cfg.eval.augmentation_k:
            result.gallery = augment_gallery(result.gallery, cfg.eval.augmentation_k, cfg.eval.expansion_alpha)
            name += "dba+"
        if cfg.eval.query_expansion:
            result.query = expand_queries(
                result.query, result.gallery, cfg.eval.query_expansion, cfg.eval.expansion_alpha
            )
            name += "qe+"
        if cfg.eval.augmentation_k or cfg.eval.query_expansion:
            result.scores[name[:-1]] = _score(cfg, result.query, result.gallery, ids)
        if cfg.eval.by_camera:
            result.by_camera = evaluate_by_camera(
                result.query, result.gallery, *ids, metric=cfg.eval.metric, max_rank=cfg.eval.max_rank
            )
        if cfg.eval.rerank:
            rows = (result.query, result.gallery)
            result.reranked = k_reciprocal(
                *rows, cfg.eval.k1, cfg.eval.k2, cfg.eval.lambda_value, metric=cfg.eval.metric
            )
            scores = evaluate_distance(result.reranked, *ids, max_rank=cfg.eval.max_rank, roc=cfg.eval.roc)
            result.scores[f"{name}rerank"] = scores
    except ValueError as error:
        raise UserError(str(error)) from error
    return result


def _pooled(cfg: Config, query: torch.Tensor, gallery: torch.Tensor, ids: tuple) -> torch.Tensor:
    return pool_queries(query, gallery, *ids, metric=cfg.eval.metric) if cfg.eval.protocol == "multi_query" else query


def _score(cfg: Config, query: torch.Tensor, gallery: torch.Tensor, ids: tuple) -> Scores:
    """Scores by the protocol of the settings."""
    common = {"metric": cfg.eval.metric, "max_rank": cfg.eval.max_rank}
    if cfg.eval.protocol == "single_shot":
        return evaluate_single_shot(query, gallery, *ids, **common, trials=cfg.eval.trials, seed=cfg.run.seed)
    if cfg.eval.protocol == "vehicle_id":
        pids = np.concatenate(ids[:2])
        people = np.flatnonzero(pids != 0)  # distractors are not one identity, and must not be queries
        rows = torch.cat([query, gallery])[people]
        return evaluate_vehicle_id(rows, pids[people], **common, trials=cfg.eval.trials, seed=cfg.run.seed)
    return evaluate(query, gallery, *ids, **common, roc=cfg.eval.roc)


def scored_as(cfg: Config, dataset: ReIDDataset) -> Config:
    """The settings, their protocol `auto` settled as the dataset's authors score it.

    Raises UserError where that protocol does not go with other settings, or the dataset has more cameras than a table.
    """
    if cfg.eval.protocol == "auto":
        cfg = cfg.replace(protocol=dataset.protocol)
        for name in undefined_for_protocol(cfg):
            mend = option(f"no_{name}") if cfg.get(name) is True else f"{option(name)} 0"
            raise UserError(
                f"{dataset.name} is scored by the protocol {cfg.eval.protocol}, which {option(name)} is not defined for; "
                f"add {mend}, or --protocol standard"
            )
    cameras = max(len({s.camid for s in samples}) for samples in (dataset.query, dataset.gallery))
    if cfg.eval.by_camera and not dataset.cameras:
        raise UserError(f"--by-camera needs cameras, and those of {dataset.name} are unknown; leave it out")
    if cfg.eval.by_camera and cameras > MOST_CAMERAS:
        raise UserError(f"--by-camera is a table of {MOST_CAMERAS} cameras at most, {dataset.name} has {cameras}")
    return cfg


def scores_note(cfg: Config, note: str = "") -> str:
    """What the scores must be read with, after the dataset's note; empty for the full protocol of single queries."""
    notes = [note]
    if cfg.eval.protocol in ("single_shot", "vehicle_id"):
        notes.append(f"protocol {cfg.eval.protocol}, mean of {cfg.eval.trials} random galleries (seed {cfg.run.seed})")
    elif cfg.eval.protocol == "multi_query":
        notes.append(f"protocol {cfg.eval.protocol}")
    if cfg.eval.rerank and cfg.eval.rerank_note:
        notes.append(cfg.eval.rerank_note)
    return "; ".join(filter(None, notes))


def report(inference: Inference, note: str) -> dict[str, dict]:
    """Print the tables; give the same as plain values for JSON: `scores` and, where asked for, `by_camera`."""
    values = {"scores": score_values(inference.scores)}
    log.info(score_table(values["scores"], note))
    if inference.by_camera:
        log.info(camera_table(inference.by_camera))
        values["by_camera"] = score_values({f"{q} to {g}": s for (q, g), s in inference.by_camera.items()})
    return values


def score_values(scores: dict[str, Scores]) -> dict[str, dict[str, float]]:
    """Plain values, in per cent, for JSON and for `score_table`."""
    return {name: _values(s) for name, s in scores.items()}


def _values(s: Scores) -> dict[str, float]:
    values = {"mAP": s.mAP, "mINP": s.mINP} | {f"rank{k}": s.rank(k) for k in (1, 5, 10, 20) if k <= len(s.cmc)}
    if s.roc:
        values |= {f"tpr@{fpr:.0e}": s.roc.tpr(fpr) for fpr in FALSE_POSITIVE_RATES}
    if isinstance(s, TrialScores):
        values |= {"mAP_std": s.mAP_std, "rank1_std": float(s.cmc_std[0])}
    finite = {name: round(100 * value, 4) for name, value in values.items() if math.isfinite(value)}
    return {**finite, "valid_queries": s.num_valid_queries}


COLUMNS = {"mAP": "mAP", "mINP": "mINP", "Rank-1": "rank1", "Rank-5": "rank5", "Rank-10": "rank10"}
OPTIONAL = {"mAP ±": "mAP_std", "R-1 ±": "rank1_std"} | {
    f"T@F{fpr:.0e}".replace("e-0", "e-"): f"tpr@{fpr:.0e}" for fpr in FALSE_POSITIVE_RATES
}


def score_table(values: dict[str, dict[str, float]], note: str = "") -> str:
    """A table for people of what `score_values` gives: one row a protocol, in per cent."""
    columns = COLUMNS | {k: v for k, v in OPTIONAL.items() if any(v in row for row in values.values())}
    wide = max(14, *(len(name) + 1 for name in values))
    lines = [f"{'protocol':<{wide}}" + "".join(f"{title:>8}" for title in columns) + f"{'queries':>9}"]
    for name, row in values.items():
        cells = "".join(f"{row[key]:>8.2f}" if key in row else f"{'-':>8}" for key in columns.values())
        lines.append(f"{name:<{wide}}{cells}{row['valid_queries']:>9}")
    return "\n".join(lines + ([f"note: {note}"] if note else []))


def camera_table(by_camera: dict[tuple[int, int], Scores]) -> str:
    """mAP / Rank-1 in per cent of one camera's queries (rows) in another's gallery (columns)."""
    rows, columns = (sorted({pair[i] for pair in by_camera}) for i in (0, 1))
    lines = ["query camera down, gallery camera across: mAP / Rank-1"]
    lines.append(" " * 6 + "".join(f"{camera:>18}" for camera in columns))
    for q in rows:
        cells = (by_camera.get((q, g)) for g in columns)
        texts = (f"{100 * s.mAP:.2f} / {100 * s.rank(1):.2f}" if s else "-" for s in cells)
        lines.append(f"{q:>6}" + "".join(f"{text:>18}" for text in texts))
    return "\n".join(lines)
