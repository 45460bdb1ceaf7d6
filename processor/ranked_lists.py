"""Ranked lists: which queries, and their nearest gallery images, as rows of pictures."""

from pathlib import Path

import numpy as np

from config import Config
from datasets.images import read_whole
from datasets.loaders import TestLoader
from processor.evaluate import Inference
from utils.metrics import ranked_order
from utils.pictures import QUERY, RIGHT, WRONG, Tile, draw_rows

TOP = 10  # ranks drawn during training


def choose_queries(ap: np.ndarray, sort: str, num: int, seed: int) -> np.ndarray:
    """Indices of `num` queries that have a match (`ap` is NaN if not): the worst, the best, or random ones."""
    valid = np.flatnonzero(~np.isnan(ap))
    if sort == "random":
        return np.sort(np.random.default_rng(seed).permutation(valid)[:num])
    order = valid[np.argsort(ap[valid], kind="stable")]
    return order[:num] if sort == "worst" else np.flip(order)[:num].copy()


def ranked_row(
    query: TestLoader, gallery: TestLoader, index: int, distance: np.ndarray, ap: float, top: int
) -> tuple[str, list[Tile]]:
    """Title and tiles of one query: the query, then the nearest gallery images that count in the scores."""
    pid, camid = query.pids[index], query.camids[index]
    order = ranked_order(distance, pid, camid, gallery.pids, gallery.camids)
    matches = int((gallery.pids[order] == pid).sum())
    tiles = [Tile(read_whole(query.samples[index].path, 256), query.caption(index), QUERY)]
    for g in order[:top]:
        color = RIGHT if gallery.pids[g] == pid else WRONG
        caption = gallery.caption(g, f"{distance[g]:.3f}")
        tiles.append(Tile(read_whole(gallery.samples[g].path, 256), caption, color))
    return f"AP {100 * ap:.1f} %, {matches} {'match' if matches == 1 else 'matches'} in the gallery", tiles


def ranked_rows(
    cfg: Config, inference: Inference, query: TestLoader, gallery: TestLoader, chosen: np.ndarray, top: int
) -> tuple[list[tuple[str, list[Tile]]], list[str]]:
    """Rows of the chosen queries, by the last of the scores, and the titles of their columns."""
    ap = list(inference.scores.values())[-1].ap
    distances = inference.distance(cfg, chosen).cpu().numpy()
    rows = [ranked_row(query, gallery, i, d, ap[i], top) for i, d in zip(chosen, distances, strict=True)]
    return rows, ["query", *(f"rank {k}" for k in range(1, top + 1))]


def draw_some(cfg: Config, inference: Inference, query: TestLoader, gallery: TestLoader, path: Path) -> np.ndarray:
    """Draw some queries to a picture, the same ones at every evaluation; returns its pixels (H, W, 3)."""
    ap = list(inference.scores.values())[-1].ap
    chosen = choose_queries(ap, "random", cfg.loop.ranked_lists, cfg.run.seed)
    rows, columns = ranked_rows(cfg, inference, query, gallery, chosen, TOP)
    return draw_rows(path, rows, columns)
