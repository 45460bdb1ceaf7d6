"""What a search for a backbone found, as tables and pictures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from config import Config
from processor.latency_table import LatencyTable
from processor.search import Candidate
from tools.model_summary import count
from utils.files import write_atomically, write_json
from utils.pareto import pareto_front


def front(found: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in multiply-adds and score, by rising cost."""
    return [found[i] for i in pareto_front([c.costs[0] for c in found], [c.mAP for c in found])]


def front_table(found: Sequence[Candidate]) -> str:
    """The Pareto front, a line a network."""
    lines = [
        f"{'M multiply-adds':>15}{'input':>10}{'stride':>8}{'mAP':>8}  depth, width, expansion, kernel, SE a stage"
    ]
    for c in front(found):
        stages = " ".join(f"{s.depth}x{s.width}/{s.expansion}k{s.kernel}{'s' if s.se else ''}" for s in c.spec.stages)
        size = f"{c.spec.height}x{c.spec.width}"
        lines.append(f"{c.costs[0] / 1e6:>15.1f}{size:>10}{c.spec.last_stride:>8}{c.mAP:>8.2f}  {stages}")
    return f"Pareto front of {len(found)} networks, mAP on held-out identities with shared weights:\n" + "\n".join(
        lines
    )


def draw(path: Path, found: Sequence[Candidate], table: LatencyTable | None) -> None:
    """mAP against multiply-adds and, where it was measured, against latency."""
    kinds = [(0, 1e-6, "M multiply-adds")] + ([(1, 1e3, f"ms, batch of {table.batch}")] if table else [])
    figure = Figure(figsize=(6.4 * len(kinds), 4.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (number, scale, words) in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        costs, scores = [scale * c.costs[number] for c in found], [c.mAP for c in found]
        axis.scatter(costs, scores, s=16, color="#9a9a9a", label="scored")
        chosen = pareto_front(costs, scores)
        axis.plot(np.array(costs)[chosen], np.array(scores)[chosen], "o-", color="#1a6faf", label="Pareto front")
        axis.set_xlabel(words)
        axis.set_ylabel("mAP in %, held-out identities, shared weights")
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def comparison(cfg: Config, directory: Path, runs: dict[str, list[Path]]) -> str:
    """Test scores of the retrained networks with their costs: a table, comparison.json, and comparison.png."""
    rows = []
    for name, directories in runs.items():
        results = [json.loads((d / "results" / "train.json").read_text()) for d in directories]
        settings = Config.from_dict(json.loads((directories[0] / "config.json").read_text()))
        scores = {key: [r["scores"]["plain"][key] for r in results] for key in ("mAP", "rank1")}
        costs = count(replace(settings, weights="none"))
        rows.append({"name": name, "backbone": settings.backbone, **costs, **scores, "seeds": len(results)})
    write_json(directory / "comparison.json", {"epochs": cfg.epochs, "dataset": cfg.dataset, "rows": rows})
    draw_comparison(directory / "comparison.png", rows)
    lines = [f"{'trained by itself':<24}{'M multiply-adds':>16}{'M parameters':>14}{'mAP':>16}{'Rank-1':>16}{'n':>4}"]
    for row in rows:
        million = (row["multiply-adds"] / 1e6, row["parameters"] / 1e6)
        cells = "".join(f"{spread(row[key]):>16}" for key in ("mAP", "rank1"))
        lines.append(f"{row['name']:<24}{million[0]:>16.1f}{million[1]:>14.2f}{cells}{row['seeds']:>4}")
    return "\n".join(lines + [verdict(rows)])


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def verdict(rows: Sequence[dict]) -> str:
    """By how much the winner is better than the first reference, and how sure that is."""
    differences = np.subtract(rows[0]["mAP"], rows[1]["mAP"])
    words = f"the winner's mAP is {differences.mean():+.2f} beside {rows[1]['name']}"
    if len(differences) < 2:
        return f"{words}; one seed, so nobody knows how sure that is"
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return f"{words}, standard error {error:.2f} over {len(differences)} pairs of seeds"


def draw_comparison(path: Path, rows: Sequence[dict]) -> None:
    """Test mAP against multiply-adds, a point a network, a bar from its worst to its best seed."""
    figure = Figure(figsize=(6.4, 4.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for row in rows:
        mean, cost = statistics.mean(row["mAP"]), row["multiply-adds"] / 1e6
        low, high = mean - min(row["mAP"]), max(row["mAP"]) - mean
        axis.errorbar([cost], [mean], [[low], [high]], fmt="o", capsize=3)
        axis.annotate(row["name"], (cost, mean), textcoords="offset points", xytext=(7, 4))
    axis.set_xlabel("M multiply-adds")
    axis.set_ylabel("test mAP in %")
    axis.margins(x=0.25, y=0.2)
    axis.grid(alpha=0.3)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
