"""Scores that are off by default: pooled queries, expansion, random galleries, re-ranking, and scores by camera."""

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch

from config import Config
from config.config import option
from datasets.base import MOST_CAMERAS, ReIDDataset
from processor.evaluate import Inference, Pair
from utils.errors import UserError, printable
from utils.expansion import augment_gallery, expand_queries
from utils.metrics import Scores, evaluate, evaluate_distance
from utils.protocols import TrialScores, evaluate_by_camera, evaluate_single_shot, evaluate_vehicle_id, pool_queries
from utils.rerank import k_reciprocal

WITH_RANKED_LISTS = ("rerank", "query_expansion", "augmentation_k", "roc", "by_camera")  # not for random galleries
single_shot = evaluate_single_shot  # functions with the names of the protocols


def pool(cfg: Config, pairs: dict[str, Pair], ids: tuple) -> dict[str, Pair]:
    """Return the features for the protocol `multi_query`."""
    return {name: (pool_queries(q, g, *ids, metric=cfg.eval.metric), g) for name, (q, g) in pairs.items()}


def add_scores(cfg: Config, inference: Inference, score: Callable[..., Scores], ids: tuple) -> None:
    """Add the scores after expansion, by camera, and after re-ranking, as far as the settings ask for them.

    score: the protocol as a function of features and ids. The features of `inference` become those of its last scores.
    """
    settings, query, gallery = cfg.eval, inference.query, inference.gallery
    name = list(inference.scores)[-1]
    prefix = "" if name == "plain" else f"{name}+"
    if settings.augmentation_k:
        gallery = augment_gallery(gallery, settings.augmentation_k, settings.expansion_alpha)
        prefix += "dba+"
    if settings.query_expansion:
        query = expand_queries(query, gallery, settings.query_expansion, settings.expansion_alpha)
        prefix += "qe+"
    if settings.augmentation_k or settings.query_expansion:
        inference.scores[prefix[:-1]] = score(query, gallery, *ids)
        inference.query, inference.gallery = query, gallery
    if settings.by_camera:
        common = {"metric": settings.metric, "max_rank": settings.max_rank}
        inference.by_camera = evaluate_by_camera(query, gallery, *ids, **common)
    if settings.rerank:
        parameters = (settings.k1, settings.k2, settings.lambda_value)
        inference.reranked = k_reciprocal(query, gallery, *parameters, metric=settings.metric)
        inference.scores[f"{prefix}rerank"] = evaluate_distance(inference.reranked, *ids, max_rank=settings.max_rank)


def evaluate_with_cosine_roc(*features_and_ids, metric: str, max_rank: int) -> Scores:
    """Return the scores with another distance, but the error rates of thresholds on the cosine."""
    scores = evaluate(*features_and_ids, metric=metric, max_rank=max_rank)
    scores.roc = evaluate(*features_and_ids, max_rank=max_rank, roc=True).roc
    return scores


def vehicle_id(query: torch.Tensor, gallery: torch.Tensor, *ids: np.ndarray, **options) -> TrialScores:
    """Apply `evaluate_vehicle_id` to both splits together, with the ids of `evaluate`."""
    pids = np.concatenate(ids[:2])
    known = np.flatnonzero(pids != 0)  # distractors are not one identity, and must not be queries
    return evaluate_vehicle_id(torch.cat([query, gallery])[known], pids[known], **options)


def drop_undefined(cfg: Config) -> Config:
    """Return the settings without scores that are not defined for random galleries, with a warning for each. Raises
    UserError for a score that was typed."""
    for name in filter(cfg.get, WITH_RANKED_LISTS):
        problem = f"{option(name)} is not defined for --protocol {cfg.eval.protocol}"
        if name in cfg.typed:
            raise UserError(f"{problem}; leave it out, or add --protocol standard")
        warnings.warn(f"{problem}, so it is left out", stacklevel=1)
        cfg = cfg.replace(**{name: Config().get(name)})
    return cfg


def check_cameras(dataset: ReIDDataset) -> None:
    """Raises UserError if cameras are unknown, or too many for a table."""
    cameras = max(len({s.camid for s in samples}) for samples in (dataset.query, dataset.gallery))
    if not dataset.cameras:
        raise UserError(f"--by-camera needs cameras, and those of {dataset.name} are unknown; leave it out")
    if cameras > MOST_CAMERAS:
        raise UserError(f"--by-camera is for up to {MOST_CAMERAS} cameras, {dataset.name} has {cameras}; leave it out")


def camera_table(by_camera: dict[tuple[int, int], Scores], names: Mapping[int, str] = {}) -> str:
    """Return a table of mAP / Rank-1 in percent, by camera of the queries (rows) and of the gallery (columns)."""
    rows, columns = (sorted({pair[i] for pair in by_camera}) for i in (0, 1))
    name = {camera: printable(names.get(camera, camera)) for camera in (*rows, *columns)}
    first, width = (max(least, *(len(name[c]) + 1 for c in some)) for least, some in ((6, rows), (18, columns)))
    lines = ["rows: query camera, columns: gallery camera, mAP / Rank-1"]
    lines.append(" " * first + "".join(f"{name[camera]:>{width}}" for camera in columns))
    for q in rows:
        cells = (by_camera.get((q, g)) for g in columns)
        texts = (f"{100 * s.mAP:.2f} / {100 * s.rank(1):.2f}" if s else "-" for s in cells)
        lines.append(f"{name[q]:>{first}}" + "".join(f"{text:>{width}}" for text in texts))
    return "\n".join(lines)
