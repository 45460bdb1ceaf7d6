"""How well a supernet ranks networks: `tools/check_ranking.py [PRESET] [--ranking 12]`, with the search's settings.

Networks drawn by chance within the budget are scored with the shared weights, then each is trained by itself with the
preset's schedule and scored on the same held-out identities. Kendall's rank correlation says how well the one foretells
the other, and, beside it, how well the number of multiply-adds alone does. With `--ranking-seeds 2` each is trained
twice; how well one of these trainings foretells the other is what can be hoped for. Stopped, it goes on where it was.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config.cli import parse_train, typed_command
from tools.search_settings import SearchConfig, plain
from tools.search_steps import open_search, short, size_of, train_each
from utils.errors import run
from utils.files import write_atomically, write_json
from utils.logging import log, setup_logging
from utils.pareto import kendall


@dataclass
class RankingConfig(SearchConfig):
    ranking: int = 12  # networks that are drawn and trained
    ranking_seeds: int = 1  # trainings of each

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        if self.ranking < 3:
            yield f"--ranking must be at least 3, not {self.ranking}"
        if self.ranking_seeds < 1:
            yield f"--ranking-seeds must be at least 1, not {self.ranking_seeds}"


def interval(a: Sequence[float], b: Sequence[float], groups: Sequence[object] | None, draws: int = 2000) -> list[float]:
    """The 5th and 95th percentile of Kendall's correlation when networks are drawn with replacement (bootstrap)."""
    rng, found = np.random.default_rng(0), []
    for _ in range(draws):
        drawn = rng.integers(len(a), size=len(a))
        found.append(kendall(*([some[i] for i in drawn] for some in (a, b, groups) if some is not None)))
    return np.nanpercentile(found, [5, 95]).tolist()


def draw_pairs(path: Path, rows: Sequence[dict]) -> None:
    """Score by itself against score with shared weights, a point a network."""
    figure = Figure(figsize=(6.0, 5.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    x, y, cost = ([row[key] for row in rows] for key in ("shared", "alone", "multiply_adds"))
    points = axis.scatter(x, y, c=np.array(cost) / 1e6)
    figure.colorbar(points, label="M multiply-adds")
    axis.set_xlabel("mAP in % with the shared weights")
    axis.set_ylabel("mAP in % when trained by itself")
    axis.grid(alpha=0.3)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def main() -> None:
    cfg = parse_train(None, os.environ, RankingConfig, "tools/check_ranking.py")
    search = open_search(cfg)
    setup_logging(search.directory / "ranking.log")
    drawn = search.run(cfg.ranking, cfg.ranking)
    drawn.sort(key=lambda c: short(c.spec))  # in no order that has to do with the score, so that estimates are fair
    seeds = range(cfg.run.seed, cfg.run.seed + cfg.ranking_seeds)
    trained = [train_each(search, plain(cfg, seed=seed), drawn, "ranking.log") for seed in seeds]
    scores = np.mean(trained, axis=0).tolist()
    rows = [
        {"multiply_adds": c.costs[0], "shared": c.mAP, "alone": score, "by_seed": each, "spec": c.spec.to_dict()}
        for c, score, each in zip(drawn, scores, zip(*trained, strict=True), strict=True)
    ]
    sizes = [size_of(c) for c in drawn]
    pairs = {"shared weights": ([c.mAP for c in drawn], scores)}
    pairs["multiply-adds alone"] = ([c.costs[0] for c in drawn], scores)
    if len(trained) > 1:
        pairs["one training by itself and another"] = tuple(trained[:2])
    result, words = {}, []
    for name, (foretold, seen) in pairs.items():
        for where, groups in (("", None), (" within each size of images", sizes)):
            tau, about = kendall(foretold, seen, groups), interval(foretold, seen, groups)
            result[name + where] = {"kendall": tau, "90 % of bootstraps": about}
            words.append(f"{tau:.2f} ({about[0]:.2f} to {about[1]:.2f}) for {name}{where}")
    write_json(search.directory / "ranking.json", {"command": typed_command(), **result, "rows": rows})
    draw_pairs(search.directory / "ranking.png", rows)
    log.info(
        "Kendall's correlation over %d networks, with 90 %% of bootstraps:\n%s\neverything is in %s",
        len(drawn), "\n".join(words), search.directory,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
