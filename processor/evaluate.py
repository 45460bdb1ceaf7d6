"""From images to features to scores."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from tqdm import tqdm

from config import Config
from datasets.loaders import TestLoader
from model import ReIDModel
from utils.distance import pairwise_distance
from utils.errors import UserError
from utils.metrics import Scores, evaluate, evaluate_distance
from utils.rerank import k_reciprocal


@dataclass
class Inference:
    """Scores by protocol ("plain", "flip", "rerank", "flip+rerank"), and what they were made from."""

    scores: dict[str, Scores]
    query: torch.Tensor  # (Q, D) float32, of the last protocol that was asked for
    gallery: torch.Tensor  # (G, D)
    reranked: torch.Tensor | None = None  # (Q, G)

    def distance(self, cfg: Config, queries) -> torch.Tensor:
        """Rows (len(queries), G) of the last protocol that was asked for; queries are indices."""
        if self.reranked is not None:
            return self.reranked[queries]
        return pairwise_distance(self.query[queries], self.gallery, cfg.metric)


@torch.no_grad()
def extract_features(
    model: ReIDModel, loader: TestLoader, device: torch.device, flip: bool = False, channels_last: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings (N, D) float32 on `device` of a split in its order; with `flip` also the mean with the mirror image's.

    The model is put into evaluation mode, and back into the mode that it was in.
    """
    was_training = model.training
    model.eval()
    plain, flipped = [], []
    progress = tqdm(total=len(loader.samples), desc=loader.images.name, unit="img", leave=False, disable=None)
    with contextlib.closing(progress):
        for images in loader.batches(device):
            if not channels_last:
                images = images.contiguous()
            features = model(images).float()
            plain.append(features)
            if flip:
                flipped.append((features + model(images.flip(3)).float()) / 2)
            progress.update(len(images))
    model.train(was_training)
    return torch.cat(plain), torch.cat(flipped) if flip else None


def do_inference(
    cfg: Config, model: ReIDModel, query: TestLoader, gallery: TestLoader, device: torch.device
) -> Inference:
    """Features of both splits and the scores of every protocol that the settings ask for.

    Raises UserError when the features are not finite or nothing can be scored.
    """
    q, g = (extract_features(model, x, device, cfg.flip, cfg.channels_last) for x in (query, gallery))
    ids = (query.pids, gallery.pids, query.camids, gallery.camids)
    try:
        result = Inference({}, q[0], g[0])
        result.scores["plain"] = evaluate(q[0], g[0], *ids, metric=cfg.metric, max_rank=cfg.max_rank)
        if cfg.flip:
            result.query, result.gallery = q[1], g[1]
            result.scores["flip"] = evaluate(q[1], g[1], *ids, metric=cfg.metric, max_rank=cfg.max_rank)
        if cfg.rerank:
            result.reranked = rerank(cfg, result.query, result.gallery)
            name = "flip+rerank" if cfg.flip else "rerank"
            result.scores[name] = evaluate_distance(result.reranked, *ids, max_rank=cfg.max_rank)
    except ValueError as error:
        raise UserError(str(error)) from error
    return result


def rerank(cfg: Config, query: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """Re-ranked distances (Q, G) with the settings' metric and parameters."""
    if cfg.metric == "cosine":  # on unit rows the squared euclidean distance is twice the cosine distance
        query, gallery = (torch.nn.functional.normalize(x, dim=1) for x in (query, gallery))
    return k_reciprocal(query, gallery, cfg.k1, cfg.k2, cfg.lambda_value)


def score_values(scores: dict[str, Scores]) -> dict[str, dict[str, float]]:
    """Plain values, in per cent, for JSON and for `score_table`."""
    return {
        name: {
            "mAP": round(100 * s.mAP, 4),
            "mINP": round(100 * s.mINP, 4),
            **{f"rank{k}": round(100 * s.rank(k), 4) for k in (1, 5, 10, 20) if k <= len(s.cmc)},
            "valid_queries": s.num_valid_queries,
        }
        for name, s in scores.items()
    }


def score_table(values: dict[str, dict[str, float]], note: str = "") -> str:
    """A table for people of what `score_values` gives: one row a protocol, in per cent."""
    columns = {"mAP": "mAP", "mINP": "mINP", "Rank-1": "rank1", "Rank-5": "rank5", "Rank-10": "rank10"}
    lines = [f"{'protocol':<14}" + "".join(f"{title:>8}" for title in columns) + f"{'queries':>9}"]
    for name, row in values.items():
        cells = "".join(f"{row[key]:>8.2f}" if key in row else f"{'-':>8}" for key in columns.values())
        lines.append(f"{name:<14}{cells}{row['valid_queries']:>9}")
    return "\n".join(lines + ([f"note: {note}"] if note else []))
