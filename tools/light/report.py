"""Results of the architecture search: tables, pictures, specifications."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from config import Config
from config.cli import typed_command
from model.backbones import find_backbone
from tools.light.evolution import Candidate, pareto_front
from tools.light.latency import Part
from tools.light.runs import Search, spec_id, usual_last_stride
from tools.light.space import mobilenet_v2
from tools.model_summary import count
from utils.files import write_atomically, write_json

MARKED = {  # backbones whose costs are marked in the picture
    "mobilenet_v2": "MobileNetV2", "osnet_x0_25": "OSNet x0.25", "shufflenet_v2_x1_0": "ShuffleNetV2",
    "mobilenet_v3_small": "MobileNetV3 small", "mobilenet_v3_large": "MobileNetV3 large",
}  # fmt: skip


def report(search: Search, found: Sequence[Candidate]) -> str:
    """Write pareto.png and front/*.json; the Pareto front as text, one line per network."""
    reference = search.score(mobilenet_v2(search.cfg.data.height, search.cfg.data.width))
    draw_front(search, found, reference)
    for old in (search.directory / "front").glob("*.json"):
        old.unlink()
    lines = [f"Pareto front of {len(found)} networks, mAP on held-out identities with shared weights:"]
    lines.append(
        f"{'M multiply-adds':>15}{'ms':>8}{'input':>10}{'stride':>8}{'mAP':>8}  stages: depth x width/expansion"
    )
    front = pareto_front([c.costs[-1] for c in found], [c.mAP for c in found])
    for place, c in enumerate((found[i] for i in front), 1):
        write_spec(search, search.directory / "front" / f"{place:02}-{c.costs[0] / 1e6:.1f}M.json", c)
        stages = " ".join(f"{s.depth}x{s.width}/{s.expansion}k{s.kernel}{'s' if s.se else ''}" for s in c.spec.stages)
        ms, size = f"{c.costs[1] * 1e3:.2f}" if len(c.costs) > 1 else "-", "x".join(map(str, c.size))
        lines.append(f"{c.costs[0] / 1e6:>15.1f}{ms:>8}{size:>10}{c.spec.last_stride:>8}{c.mAP:>8.2f}  {stages}")
    return "\n".join([*lines, f"MobileNetV2 1.0 with the shared weights has {reference:.2f}"])


def write_winner(search: Search, candidate: Candidate, score: float | None) -> Path:
    """The specification of the best network; score: its own on the held-out identities, if it was trained alone."""
    for old in search.directory.glob("winner-*.json"):
        old.unlink()
    file = search.directory / f"winner-{spec_id(candidate.spec)}.json"
    write_spec(search, file, candidate, {} if score is None else {"heldout_mAP_trained_alone": score})
    return file


def write_spec(search: Search, file: Path, candidate: Candidate, more: dict[str, Any] | None = None) -> None:
    """A specification, with how it was found."""
    data, about = search.cfg.data, {"found_by": typed_command(), "when": date.today().isoformat()}
    about["on"] = f"{data.dataset}, scored on {data.holdout_ids} training identities held out"
    about |= {"multiply_adds": candidate.costs[0], "heldout_mAP_with_shared_weights": round(candidate.mAP, 2)}
    write_json(file, about | (more or {}) | candidate.spec.to_dict())


def reference_costs(search: Search) -> dict[str, tuple[float, ...]]:
    """Costs of the marked backbones, as those of candidates."""
    bare = {"weights": "none", "embedding_dim": 0, "attention": "none", "branches": "one"}
    cfgs = {n: search.cfg.replace(backbone=n, last_stride=usual_last_stride(n), **bare) for n in MARKED}
    costs = {name: (float(count(cfg)["multiply-adds"]),) for name, cfg in cfgs.items()}
    if search.table:
        shape = (3, search.cfg.data.height, search.cfg.data.width)
        seconds = search.table.look_up({n: Part(partial(find_backbone(n), cfg), shape) for n, cfg in cfgs.items()})
        costs = {name: (*costs[name], seconds[name]) for name in costs}
    return costs


def draw_front(search: Search, found: Sequence[Candidate], reference: float) -> None:
    """pareto.png: score against multiply-adds and, if limited, latency; reference: the score of MobileNetV2."""
    kinds = [(1e-6, "M multiply-adds")]
    if search.table:
        kinds.append((1e3, f"ms for {search.table.batch} images on {search.table.about['hardware']}"))
    figure, marked = Figure(figsize=(7.2 * len(kinds), 5.4), dpi=110, layout="constrained"), reference_costs(search)
    for n, (axis, (scale, label)) in enumerate(
        zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True)
    ):
        costs, scores = np.array([scale * c.costs[n] for c in found]), np.array([c.mAP for c in found])
        front = pareto_front(costs, scores)
        axis.scatter(costs, scores, s=16, color="#9a9a9a", label="scored")
        axis.plot(costs[front], scores[front], "o-", color="#1a6faf", label="Pareto front")
        own = scale * marked["mobilenet_v2"][n]
        axis.plot([own], [reference], "*", ms=13, color="#d7191c", label="MobileNetV2 1.0, part of the supernet")
        shown = {MARKED[name]: scale * c[n] for name, c in marked.items() if scale * c[n] <= 1.4 * max(costs)}
        for cost in shown.values():
            axis.axvline(cost, color="#404040", lw=0.8, ls=":")
        top = axis.secondary_xaxis("top")
        top.set_xticks(list(shown.values()), list(shown), rotation=50, ha="left", fontsize=8)
        axis.margins(y=0.12)
        axis.set(xlabel=label, ylabel="mAP in %, held-out identities, shared weights")
        axis.grid(alpha=0.3)
    figure.legend(handles=axis.get_legend_handles_labels()[0], loc="outside lower center", ncols=3)
    save(figure, search.directory / "pareto.png")


def save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def compare(search: Search, results: dict[str, list[dict]]) -> str:
    """Test scores of networks trained alone, the winner first, with their costs: text, comparison.json and .png.

    results: of each network one result per seed.
    """
    rows = []
    figure = Figure(figsize=(7.2, 5.4), dpi=110, layout="constrained")
    axis = figure.subplots()
    lines = [f"{'trained alone':<24}{'M multiply-adds':>16}{'M parameters':>14}{'mAP':>16}{'Rank-1':>16}{'n':>4}"]
    for name, runs in results.items():
        costs = count(Config.from_dict(runs[0]["settings"]).replace(weights="none"))
        scores = {key: [r["scores"]["plain"][key] for r in runs] for key in ("mAP", "rank1")}
        rows.append({"name": name, **costs, **scores, "seeds": len(runs)})
        million, mAP = (costs["multiply-adds"] / 1e6, costs["parameters"] / 1e6), scores["mAP"]
        cells = "".join(f"{mean_and_std(values):>16}" for values in scores.values())
        lines.append(f"{name:<24}{million[0]:>16.1f}{million[1]:>14.2f}{cells}{len(runs):>4}")
        mean = statistics.mean(mAP)
        bars = [[mean - min(mAP)], [max(mAP) - mean]]
        axis.errorbar([million[0]], [mean], bars, fmt="o", capsize=3, label=MARKED.get(name, name))
    axis.set(xlabel="M multiply-adds", ylabel=f"test mAP in %, mean, worst and best of {len(runs)} seeds")
    axis.margins(x=0.15, y=0.15)
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, search.directory / "comparison.png")
    about = {"command": typed_command(), "epochs": search.cfg.solver.epochs, "dataset": search.cfg.data.dataset}
    about |= {key: runs[0][key] for key in ("note", "hardware")}
    write_json(search.directory / "comparison.json", about | {"rows": rows})
    return "\n".join(lines + [difference(rows[0], row) for row in rows[1:]])


def mean_and_std(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def difference(winner: dict, other: dict) -> str:
    """Mean difference of mAP over the seeds, with its standard error."""
    gaps = np.subtract(winner["mAP"], other["mAP"])
    text = f"mAP of the {winner['name']} minus {other['name']}: {gaps.mean():+.2f}"
    if len(gaps) < 2:
        return f"{text}, one seed"
    error = gaps.std(ddof=1) / np.sqrt(len(gaps))
    return f"{text}, standard error {error:.2f}; better with {(gaps > 0).sum()} of {len(gaps)} seeds"
