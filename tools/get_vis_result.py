"""Draw ranked lists: `python tools/get_vis_result.py [CKPT] [--sort worst|best|random] [--num N]`.

One PNG a query (query | rank 1 ... rank 10) and one of up to ten queries together. Right matches are framed green,
wrong ones red; images of the same person under the same camera are left out, as the protocol does.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from datasets.images import read_image
from processor.test import Tested, do_test, parse_test
from utils.errors import run
from utils.logging import log
from utils.visualize import QUERY, RIGHT, WRONG, Tile, draw_rows


@dataclass
class VisConfig(Config):
    sort: Literal["worst", "best", "random"] = "worst"  # queries with the lowest AP, with the highest, or any
    num: int = 10  # queries to draw
    top: int = 10  # ranks to draw
    output: str = ""  # directory of the pictures; empty: results/ranked_SORT in the run's directory

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        for name in ("num", "top"):
            if getattr(self, name) < 1:
                yield f"--{name} must be at least 1, not {getattr(self, name)}"
        if self.protocol in ("single_shot", "vehicle_id"):
            yield f"--protocol {self.protocol} has many random galleries, so no one ranked list to draw; leave it out"


def choose_queries(ap: np.ndarray, sort: str, num: int, seed: int) -> np.ndarray:
    """Indices of `num` queries that have a match (a NaN in `ap` says that one has none)."""
    valid = np.flatnonzero(~np.isnan(ap))
    if sort == "random":
        return np.sort(np.random.default_rng(seed).permutation(valid)[:num])
    order = valid[np.argsort(ap[valid], kind="stable")]
    return order[:num] if sort == "worst" else np.flip(order)[:num].copy()


def ranked_row(tested: Tested, index: int, distance: np.ndarray, ap: float, top: int) -> tuple[str, list[Tile]]:
    """Title and tiles of one query: itself, then the nearest gallery images that the protocol lets count."""
    query, gallery = tested.query, tested.gallery
    pid, camid = query.pids[index], query.camids[index]
    ignored = (gallery.pids == pid) & (gallery.camids == camid)
    order = np.argsort(distance, kind="stable")
    order = order[~ignored[order]][:top]
    tiles = [Tile(read_image(query.samples[index].path, 256, 128), f"pid {pid}\ncam {camid}", QUERY)]
    for g in order:
        who = f"pid {gallery.pids[g]}" if gallery.pids[g] else "distractor"
        colour = RIGHT if gallery.pids[g] == pid else WRONG
        caption = f"{who}\ncam {gallery.camids[g]} · {distance[g]:.3f}"
        tiles.append(Tile(read_image(gallery.samples[g].path, 256, 128), caption, colour))
    matches = int(((gallery.pids == pid) & ~ignored).sum())
    return f"AP {100 * ap:.1f} %, {matches} {'match' if matches == 1 else 'matches'} in the gallery", tiles


def main() -> None:
    cfg, stored = parse_test(None, os.environ, "get_vis_result.py [CKPT]", VisConfig)
    cfg.protocol = "standard" if cfg.protocol == "auto" else cfg.protocol  # one ranked list a query, whatever the set
    tested = do_test(cfg, stored, command=shlex.join(["python", *sys.argv]))
    ap = list(tested.inference.scores.values())[-1].ap
    directory = Path(cfg.output) if cfg.output else tested.directory / "results" / f"ranked_{cfg.sort}"
    directory.mkdir(parents=True, exist_ok=True)
    chosen = choose_queries(ap, cfg.sort, cfg.num, cfg.seed)
    distances = tested.inference.distance(cfg, chosen).cpu().numpy()
    columns = ["query", *(f"rank {k}" for k in range(1, cfg.top + 1))]
    rows = [ranked_row(tested, i, d, ap[i], cfg.top) for i, d in zip(chosen, distances, strict=True)]
    for place, (index, row) in enumerate(zip(chosen, rows, strict=True), 1):
        name = f"{place:03}_ap{100 * ap[index]:05.1f}_{Path(tested.query.samples[index].path).stem}.png"
        draw_rows(directory / name, [row], columns)
    draw_rows(directory / "overview.png", rows[:10], columns)
    log.info("%d ranked lists and overview.png written to %s", len(rows), directory)


if __name__ == "__main__":
    run(main)
