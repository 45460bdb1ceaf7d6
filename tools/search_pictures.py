"""Pictures of what a search for a backbone found."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model.backbones import find_backbone
from processor.latency_table import Part
from processor.search import Candidate
from tools.model_summary import count
from tools.search_settings import plain
from tools.search_steps import Search, last_stride
from utils.files import write_atomically
from utils.pareto import pareto_front

MARKED = {  # backbones whose costs are marked in the picture
    "mobilenet_v2": "MobileNetV2",
    "osnet_x0_25": "OSNet x0.25",
    "shufflenet_v2_x1_0": "ShuffleNetV2",
    "mobilenet_v3_small": "MobileNetV3 small",
    "mobilenet_v3_large": "MobileNetV3 large",
}
SCORED = "mAP in %, held-out identities, shared weights"


def marks(search: Search) -> dict[str, tuple[float, ...]]:
    """Costs of the marked backbones by their names, as those of candidates."""
    bare = {"weights": "none", "embedding_dim": 0, "attention": "none", "branches": "one"}
    cfgs = {name: plain(search.cfg, backbone=name, last_stride=last_stride(name), **bare) for name in MARKED}
    costs = {name: (float(count(cfg)["multiply-adds"]),) for name, cfg in cfgs.items()}
    if search.table:
        shape = (3, search.cfg.data.height, search.cfg.data.width)
        seconds = search.table.look_up({n: Part(partial(find_backbone(n), cfg), shape) for n, cfg in cfgs.items()})
        costs = {name: (*costs[name], seconds[name]) for name in costs}
    return costs


def draw(search: Search, found: Sequence[Candidate], reference: float) -> None:
    """pareto.png: score against multiply-adds and, where it was measured, against latency. reference: MobileNetV2's
    score with the shared weights."""
    kinds = [(1e-6, "M multiply-adds")]
    if search.table:
        kinds.append((1e3, f"ms for {search.table.batch} images of {search.table.about['hardware']}"))
    figure = Figure(figsize=(7.2 * len(kinds), 5.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    marked = marks(search)
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    for number, (axis, (scale, words)) in enumerate(zip(axes, kinds, strict=True)):
        costs, scores = [scale * c.costs[number] for c in found], [c.mAP for c in found]
        axis.scatter(costs, scores, s=16, color="#9a9a9a", label="scored")
        chosen = pareto_front(costs, scores)
        axis.plot(np.array(costs)[chosen], np.array(scores)[chosen], "o-", color="#1a6faf", label="Pareto front")
        own = scale * marked["mobilenet_v2"][number]
        axis.plot([own], [reference], "*", ms=13, color="#d7191c", label="MobileNetV2 1.0, part of the supernet")
        axis.margins(y=0.12)
        mark(axis, {MARKED[name]: scale * cost[number] for name, cost in marked.items()}, 1.4 * max(costs))
        axis.set_xlabel(words)
        axis.set_ylabel(SCORED)
        axis.grid(alpha=0.3)
    figure.legend(handles=axis.get_legend_handles_labels()[0], loc="outside lower center", ncols=3)
    write_atomically(search.directory / "pareto.png", lambda temporary: figure.savefig(temporary, format="png"))


def mark(axis: Axes, costs: dict[str, float], most: float) -> None:
    """A dotted line for each cost up to `most`, with its name above the frame, where no point is."""
    shown = {name: cost for name, cost in costs.items() if cost <= most}
    for cost in shown.values():
        axis.axvline(cost, color="#404040", lw=0.8, ls=":")
    above = axis.secondary_xaxis("top")
    above.set_xticks(list(shown.values()), list(shown), rotation=50, ha="left", fontsize=8)


def draw_comparison(path: Path, rows: Sequence[dict]) -> None:
    """Test mAP against multiply-adds, a point a network, a bar from its worst to its best seed."""
    figure = Figure(figsize=(7.2, 5.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for row in rows:
        mean, cost = statistics.mean(row["mAP"]), row["multiply-adds"] / 1e6
        low, high = mean - min(row["mAP"]), max(row["mAP"]) - mean
        axis.errorbar([cost], [mean], [[low], [high]], fmt="o", capsize=3, label=MARKED.get(row["name"], row["name"]))
    axis.set_xlabel("M multiply-adds")
    axis.set_ylabel(f"test mAP in %, mean, worst and best of {rows[0]['seeds']} seeds")
    axis.margins(x=0.15, y=0.15)
    axis.grid(alpha=0.3)
    axis.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
