"""Ranked lists: choose queries, and draw their nearest gallery images as rows of pictures."""

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
    """Return indices of `num` queries with a match (`ap` is NaN without): the worst, the best, or random ones."""
    valid = np.flatnonzero(~np.isnan(ap))
    if sort == "random":
        return np.sort(np.random.default_rng(seed).permutation(valid)[:num])
    order = valid[np.argsort(ap[valid], kind="stable")]
    return order[:num] if sort == "worst" else np.flip(order)[:num].copy()


def ranked_rows(
    cfg: Config, inference: Inference, query: TestLoader, gallery: TestLoader, chosen: np.ndarray, top: int
) -> tuple[list[tuple[str, list[Tile]]], list[str]]:
    """Return title and tiles of each chosen query, by the last scores, and the titles of the columns: the query, then
    the nearest gallery images that count in the scores."""
    ap, rows = list(inference.scores.values())[-1].ap, []
    for index, distance in zip(chosen, inference.distance(cfg, chosen).cpu().numpy(), strict=True):
        pid = query.pids[index]
        order = ranked_order(distance, pid, query.camids[index], gallery.pids, gallery.camids)
        tiles = [Tile(read_whole(query.samples[index].path, 256), query.caption(index), QUERY)]
        for g in order[:top]:
            caption, color = gallery.caption(g, f"{distance[g]:.3f}"), RIGHT if gallery.pids[g] == pid else WRONG
            tiles.append(Tile(read_whole(gallery.samples[g].path, 256), caption, color))
        matches = int((gallery.pids[order] == pid).sum())
        words = "match" if matches == 1 else "matches"
        rows.append((f"AP {100 * ap[index]:.1f} %, {matches} {words} in the gallery", tiles))
    return rows, ["query", *(f"rank {k}" for k in range(1, top + 1))]


def draw_some(cfg: Config, inference: Inference, query: TestLoader, gallery: TestLoader, path: Path) -> np.ndarray:
    """Draw ranked lists of some queries, the same ones at every evaluation; return the pixels (H, W, 3)."""
    ap = list(inference.scores.values())[-1].ap
    chosen = choose_queries(ap, "random", cfg.loop.ranked_lists, cfg.run.seed)
    rows, columns = ranked_rows(cfg, inference, query, gallery, chosen, TOP)
    return draw_rows(path, rows, columns)
