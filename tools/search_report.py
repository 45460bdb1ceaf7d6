"""What a search for a backbone found, as tables and specifications."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np

from config import Config
from config.cli import typed_command
from model.backbones.space import mobilenet_v2
from processor.search import Candidate
from tools.model_summary import count
from tools.search_pictures import draw, draw_comparison
from tools.search_steps import Search, short
from utils.files import write_json
from utils.pareto import pareto_front


def report(search: Search, found: Sequence[Candidate]) -> str:
    """The Pareto front as text, picture and files."""
    reference, best = search.score(mobilenet_v2(search.cfg.data.height, search.cfg.data.width)), front(found)
    draw(search, found, reference)
    places = search.directory / "front"
    for old in places.glob("*.json"):
        old.unlink()
    for place, candidate in enumerate(best, 1):
        write_spec(search, places / f"{place:02}-{candidate.costs[0] / 1e6:.1f}M.json", candidate)
    return f"{front_table(best, len(found))}\nMobileNetV2 1.0 with the shared weights has {reference:.2f}"


def front(found: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in the last cost (latency, where it is limited) and score, by rising cost."""
    return [found[i] for i in pareto_front([c.costs[-1] for c in found], [c.mAP for c in found])]


def front_table(best: Sequence[Candidate], count: int) -> str:
    """The Pareto front of so many networks, a line each."""
    lines = [f"Pareto front of {count} networks, mAP on held-out identities with shared weights:"]
    lines.append(f"{'M multiply-adds':>15}{'ms':>8}{'input':>10}{'stride':>8}{'mAP':>8}  stages: blocks x width/inside")
    for c in best:
        stages = " ".join(f"{s.depth}x{s.width}/{s.expansion}k{s.kernel}{'s' if s.se else ''}" for s in c.spec.stages)
        ms = f"{c.costs[1] * 1e3:.2f}" if len(c.costs) > 1 else "-"
        size = f"{c.spec.height}x{c.spec.width}"
        lines.append(f"{c.costs[0] / 1e6:>15.1f}{ms:>8}{size:>10}{c.spec.last_stride:>8}{c.mAP:>8.2f}  {stages}")
    return "\n".join(lines)


def write_winner(search: Search, candidate: Candidate, alone: float | None) -> Path:
    """The specification of the best network; alone: its score when trained by itself, where it was."""
    for old in search.directory.glob("winner-*.json"):
        old.unlink()
    file = search.directory / f"winner-{short(candidate.spec)}.json"
    write_spec(search, file, candidate, {} if alone is None else {"heldout_mAP_by_itself": alone})
    return file


def write_spec(search: Search, file: Path, candidate: Candidate, more: dict | None = None) -> None:
    """A specification, with how it was found."""
    cfg = search.cfg
    about = {"found_by": typed_command(), "when": date.today().isoformat()}
    about["on"] = f"{cfg.data.dataset}, {cfg.data.holdout_ids} of its training identities held out to score on"
    about |= {"multiply_adds": candidate.costs[0], "heldout_mAP_with_shared_weights": round(candidate.mAP, 2)}
    write_json(file, about | (more or {}) | candidate.spec.to_dict())


def comparison(search: Search, results: dict[str, list[dict]]) -> str:
    """Test scores of networks trained by themselves, the winner first, with their costs: a table, comparison.json and
    comparison.png. results: those of each network, one a seed."""
    rows = []
    for name, runs in results.items():
        scores = {key: [r["scores"]["plain"][key] for r in runs] for key in ("mAP", "rank1")}
        settings = Config.from_dict(runs[0]["settings"])
        rows.append({"name": name, **count(replace(settings, weights="none")), **scores, "seeds": len(runs)})
    about = {"command": typed_command(), "epochs": search.cfg.solver.epochs, "dataset": search.cfg.data.dataset}
    about |= {"note": runs[0]["note"], "hardware": runs[0]["hardware"]}
    write_json(search.directory / "comparison.json", about | {"rows": rows})
    draw_comparison(search.directory / "comparison.png", rows)
    lines = [f"{'trained by itself':<24}{'M multiply-adds':>16}{'M parameters':>14}{'mAP':>16}{'Rank-1':>16}{'n':>4}"]
    for row in rows:
        million = (row["multiply-adds"] / 1e6, row["parameters"] / 1e6)
        cells = "".join(f"{spread(row[key]):>16}" for key in ("mAP", "rank1"))
        lines.append(f"{row['name']:<24}{million[0]:>16.1f}{million[1]:>14.2f}{cells}{row['seeds']:>4}")
    return "\n".join(lines + [verdict(rows[0], row) for row in rows[1:]])


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def verdict(winner: dict, other: dict) -> str:
    """By how much the winner is better, and how sure that is."""
    differences = np.subtract(winner["mAP"], other["mAP"])
    words = f"the {winner['name']}'s mAP is {differences.mean():+.2f} beside {other['name']}"
    if len(differences) < 2:
        return f"{words}; one seed, so nobody knows how sure that is"
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    better = (differences > 0).sum()
    return f"{words}, standard error {error:.2f}; better with {better} of {len(differences)} seeds"
