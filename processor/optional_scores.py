"""Scores that are off by default: expansion, random galleries, and those by camera."""

from __future__ import annotations

import numpy as np
import torch

from config import Config
from config.config import option, undefined_for_protocol
from datasets.base import MOST_CAMERAS, ReIDDataset
from utils.errors import UserError
from utils.expansion import augment_gallery, expand_queries
from utils.metrics import Scores
from utils.protocols import TrialScores, evaluate_vehicle_id
from utils.protocols import evaluate_single_shot as single_shot

__all__ = ["camera_table", "expand", "refuse_undefined", "single_shot", "vehicle_id"]


def expand(cfg: Config, query: torch.Tensor, gallery: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Database augmentation and query expansion of features (Q, D) and (G, D), and their names in the scores."""
    settings, steps = cfg.eval, ""
    if settings.augmentation_k:
        gallery = augment_gallery(gallery, settings.augmentation_k, settings.expansion_alpha)
        steps += "dba+"
    if settings.query_expansion:
        query = expand_queries(query, gallery, settings.query_expansion, settings.expansion_alpha)
        steps += "qe+"
    return query, gallery, steps


def vehicle_id(query: torch.Tensor, gallery: torch.Tensor, *ids: np.ndarray, **options) -> TrialScores:
    """`evaluate_vehicle_id` of both splits together, with the ids of `evaluate`."""
    pids = np.concatenate(ids[:2])
    known = np.flatnonzero(pids != 0)  # distractors are not one identity, and must not be queries
    return evaluate_vehicle_id(torch.cat([query, gallery])[known], pids[known], **options)


def refuse_undefined(cfg: Config, dataset: ReIDDataset) -> None:
    """Raises UserError for settings that the protocol does not define, and for too many or unknown cameras."""
    for name in undefined_for_protocol(cfg):
        fix = option(f"no_{name}") if cfg.get(name) is True else f"{option(name)} 0"
        raise UserError(
            f"{dataset.name} is evaluated by the protocol {cfg.eval.protocol}, for which {option(name)} is not "
            f"defined; add {fix}, or --protocol standard"
        )
    cameras = max(len({s.camid for s in samples}) for samples in (dataset.query, dataset.gallery))
    if not dataset.cameras:
        raise UserError(f"--by-camera needs cameras, and those of {dataset.name} are unknown; leave it out")
    if cameras > MOST_CAMERAS:
        raise UserError(f"--by-camera is for up to {MOST_CAMERAS} cameras, {dataset.name} has {cameras}; leave it out")


def camera_table(by_camera: dict[tuple[int, int], Scores]) -> str:
    """mAP / Rank-1 in percent of one camera's queries (rows) in another's gallery (columns)."""
    rows, columns = (sorted({pair[i] for pair in by_camera}) for i in (0, 1))
    lines = ["rows: query camera, columns: gallery camera, mAP / Rank-1"]
    lines.append(" " * 6 + "".join(f"{camera:>18}" for camera in columns))
    for q in rows:
        cells = (by_camera.get((q, g)) for g in columns)
        texts = (f"{100 * s.mAP:.2f} / {100 * s.rank(1):.2f}" if s else "-" for s in cells)
        lines.append(f"{q:>6}" + "".join(f"{text:>18}" for text in texts))
    return "\n".join(lines)
