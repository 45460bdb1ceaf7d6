"""Results of the architecture search: tables, pictures, specifications; and checks of what the search relies on."""

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
from model.backbones.searchable import Searched, multiply_adds
from processor.environment import describe_environment, pick_device
from tools.light.evolution import Candidate, pareto_front
from tools.light.latency import measure, parts
from tools.light.runs import Search, spec_id, usual_last_stride
from tools.light.space import Space, mobilenet_v2
from tools.model_summary import count
from tools.tables import mean_and_std, text_table
from utils.files import write_atomically, write_json
from utils.logging import log
from utils.lookup import package

MARKED = {  # backbones whose costs are marked in the picture
    "mobilenet_v2": "MobileNetV2", "osnet_x0_25": "OSNet x0.25", "shufflenet_v2_x1_0": "ShuffleNetV2",
    "mobilenet_v3_small": "MobileNetV3 small", "mobilenet_v3_large": "MobileNetV3 large",
}  # fmt: skip

DRAWS = 2000  # bootstrap samples


def report(search: Search, found: Sequence[Candidate]) -> str:
    """Write pareto.png and front/*.json; return the Pareto front as text, one line per network."""
    reference = search.score(mobilenet_v2(search.cfg.data.height, search.cfg.data.width))
    draw_front(search, found, reference)
    for old in (search.directory / "front").glob("*.json"):
        old.unlink()
    rows = [["M multiply-adds", "ms", "input", "stride", "mAP", "stages: depth x width/expansion"]]
    front = pareto_front([c.costs[-1] for c in found], [c.mAP for c in found])
    for place, c in enumerate((found[i] for i in front), 1):
        write_spec(search, search.directory / "front" / f"{place:02}-{c.costs[0] / 1e6:.1f}M.json", c)
        stages = " ".join(f"{s.depth}x{s.width}/{s.expansion}k{s.kernel}{'s' if s.se else ''}" for s in c.spec.stages)
        ms, size = f"{c.costs[1] * 1e3:.2f}" if len(c.costs) > 1 else "-", "x".join(map(str, c.size))
        rows.append([f"{c.costs[0] / 1e6:.1f}", ms, size, str(c.spec.last_stride), f"{c.mAP:.2f}", stages])
    title = f"Pareto front of {len(found)} networks, mAP on held-out identities {search.scored}:"
    last = f"MobileNetV2 1.0 {search.scored} has {reference:.2f}"
    return "\n".join([title, text_table(rows, str.ljust), last])


def write_winner(search: Search, candidate: Candidate, score: float | None) -> Path:
    """Write the specification of the best network. score: on the held-out identities, if it was trained alone."""
    for old in search.directory.glob("winner-*.json"):
        old.unlink()
    file = search.directory / f"winner-{spec_id(candidate.spec)}.json"
    write_spec(search, file, candidate, {} if score is None else {"heldout_mAP_trained_alone": score})
    return file


def write_spec(search: Search, file: Path, candidate: Candidate, more: dict[str, Any] | None = None) -> None:
    """Write a specification, with how it was found."""
    data, about = search.cfg.data, {"found_by": typed_command(), "when": date.today().isoformat()}
    about["on"] = f"{data.dataset}, scored on {data.holdout_ids} training identities held out"
    scored = search.scored.replace(" ", "_")
    about |= {"multiply_adds": candidate.costs[0], f"heldout_mAP_{scored}": round(candidate.mAP, 2)}
    write_json(file, about | (more or {}) | candidate.spec.to_dict())


def reference_costs(search: Search) -> dict[str, tuple[float, ...]]:
    """Return the costs of the marked backbones, like those of candidates."""
    bare = {"weights": "none", "embedding_dim": 0, "attention": "none", "branches": "one"}
    cfgs = {n: search.cfg.replace(backbone=n, last_stride=usual_last_stride(n), **bare) for n in MARKED}
    costs = {name: (float(count(cfg)["multiply-adds"]),) for name, cfg in cfgs.items()}
    if search.table:
        shape = (3, search.cfg.data.height, search.cfg.data.width)
        seconds = search.table.look_up({n: (partial(find_backbone(n), cfg), shape) for n, cfg in cfgs.items()})
        costs = {name: (*costs[name], seconds[name]) for name in costs}
    return costs


def draw_front(search: Search, found: Sequence[Candidate], reference: float) -> None:
    """pareto.png: score against multiply-adds and, if limited, latency; reference: the score of MobileNetV2."""
    kinds = [(1e-6, "M multiply-adds")]
    if search.table:
        kinds.append((1e3, f"ms for {search.table.batch} images on {search.table.about['hardware']}"))
    figure, marked = Figure(figsize=(7.2 * len(kinds), 5.4), dpi=110, layout="constrained"), reference_costs(search)
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    for n, (axis, (scale, label)) in enumerate(zip(axes, kinds, strict=True)):
        costs, scores = np.array([scale * c.costs[n] for c in found]), np.array([c.mAP for c in found])
        front = pareto_front(costs, scores)
        axis.scatter(costs, scores, s=16, color="#9a9a9a", label="scored")
        axis.plot(costs[front], scores[front], "o-", color="#1a6faf", label="Pareto front")
        own = scale * marked["mobilenet_v2"][n]
        axis.plot([own], [reference], "*", ms=13, color="#d7191c", label="MobileNetV2 1.0")
        shown = {MARKED[name]: scale * c[n] for name, c in marked.items() if scale * c[n] <= 1.4 * max(costs)}
        for cost in shown.values():
            axis.axvline(cost, color="#404040", lw=0.8, ls=":")
        top = axis.secondary_xaxis("top")
        top.set_xticks(list(shown.values()), list(shown), rotation=50, ha="left", fontsize=8)
        axis.margins(y=0.12)
        axis.set(xlabel=label, ylabel=f"mAP in %, held-out identities, {search.scored}")
        axis.grid(alpha=0.3)
    figure.legend(handles=axis.get_legend_handles_labels()[0], loc="outside lower center", ncols=3)
    save(figure, search.directory / "pareto.png")


def save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def compare(search: Search, results: dict[str, list[dict]]) -> str:
    """Compare test scores and costs of networks trained alone, the winner first: text, comparison.json and .png.

    results: for each network, one result per seed.
    """
    rows, shown = [], [["trained alone", "M multiply-adds", "M parameters", "mAP", "Rank-1", "n"]]
    figure = Figure(figsize=(7.2, 5.4), dpi=110, layout="constrained")
    axis = figure.subplots()
    for name, runs in results.items():
        costs = count(Config.from_dict(runs[0]["settings"]).replace(weights="none"))
        scores = {key: [r["scores"]["plain"][key] for r in runs] for key in ("mAP", "rank1")}
        rows.append({"name": name, **costs, **scores, "seeds": len(runs)})
        million, mAP = (costs["multiply-adds"] / 1e6, costs["parameters"] / 1e6), scores["mAP"]
        cells = map(mean_and_std, scores.values())
        shown.append([name, f"{million[0]:.1f}", f"{million[1]:.2f}", *cells, str(len(runs))])
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
    return "\n".join([text_table(shown), *(difference(rows[0], row) for row in rows[1:])])


def difference(winner: dict, other: dict) -> str:
    """Mean difference of mAP over the seeds, with its standard error."""
    gaps = np.subtract(winner["mAP"], other["mAP"])
    text = f"mAP of the {winner['name']} minus {other['name']}: {gaps.mean():+.2f}"
    if len(gaps) < 2:
        return f"{text}, one seed"
    error = gaps.std(ddof=1) / np.sqrt(len(gaps))
    return f"{text}, standard error {error:.2f}; better with {(gaps > 0).sum()} of {len(gaps)} seeds"


# ---- checks: the ranking by shared weights, and latency as a sum of blocks


def kendall(a: Sequence[float], b: Sequence[float], groups: Sequence[str]) -> tuple[float, list[float]]:
    """Kendall's tau-b of two lists (N,) over the pairs within a group, which scipy's function does not offer, and its
    5th and 95th percentile over bootstrap samples of the networks. NaN where one of the lists has only ties."""
    same = np.equal.outer(groups, groups)
    first, second = (np.sign(np.subtract.outer(x, x)) * same for x in (a, b))

    def tau(rows: np.ndarray) -> float:
        x, y = (signs[np.ix_(rows, rows)] for signs in (first, second))
        weight = np.sqrt(np.abs(x).sum() * np.abs(y).sum())
        return float((x * y).sum() / weight) if weight else float("nan")

    draws = np.random.default_rng(0).integers(len(a), size=(DRAWS, len(a)))
    return tau(np.arange(len(a))), np.nanpercentile([tau(rows) for rows in draws], [5, 95]).tolist()


def check_ranking(search: Search, number: int, seeds: int) -> None:
    """Kendall's tau between scores with shared weights and scores after training alone, for random networks.

    Also the one of multiply-adds and, with several seeds, the one between two trainings, which is the best to expect.
    Logs them and writes ranking.json.
    """
    networks = sorted(search.run(number, number), key=lambda c: spec_id(c.spec))  # not in the order of scores
    trained = [search.train_each(networks, search.cfg.run.seed + n) for n in range(seeds)]
    alone, shared = np.mean(trained, axis=0).tolist(), [c.mAP for c in networks]
    costs, sizes = [c.costs[0] for c in networks], [str(c.size) for c in networks]
    pairs = {"shared weights": (shared, alone), "multiply-adds": (costs, alone)}
    if len(trained) > 1:
        pairs["one training and another"] = tuple(trained[:2])
    result = {}
    for name, (a, b) in pairs.items():
        for suffix, groups in (("", [""] * len(a)), (" within each image size", sizes)):
            tau, bounds = kendall(a, b, groups)
            result[name + suffix] = {"kendall": tau, "90 % of bootstraps": bounds}
            log.info("Kendall's tau %.2f (90 %%: %.2f to %.2f): %s", tau, *bounds, name + suffix)
    rows = [
        {"multiply_adds": c.costs[0], "shared": c.mAP, "alone": score, "by_seed": each, "spec": c.spec.to_dict()}
        for c, score, each in zip(networks, alone, zip(*trained, strict=True), strict=True)
    ]
    write_json(search.directory / "ranking.json", {"command": typed_command(), **result, "rows": rows})


def check_latency(cfg: Config, number: int, batch: int) -> None:
    """Spearman's rank correlation of the sums of block latencies with the latencies of whole networks.

    For random networks, none more expensive than MobileNetV2 1.0, measured in turns on the device of the settings. Logs
    it, with that of multiply-adds, and writes latency_*.json. Raises UserError without scipy.
    """
    spearmanr = package("scipy.stats", "--check-latency").spearmanr
    device, rng = pick_device(cfg.run.device), np.random.default_rng(cfg.run.seed)
    height, width = cfg.data.height, cfg.data.width
    space = Space(height, width, multiply_adds(mobilenet_v2(height, width)))
    specs = [space.random(rng) for _ in range(number)]
    some = {str(n): (partial(Searched, s), (3, s.height, s.width)) for n, s in enumerate(specs)}
    for spec in specs:
        some |= dict(parts(spec))
    seconds = measure(some, device, batch)
    wholes = [seconds[str(n)] for n in range(number)]
    sums = [sum(seconds[key] for key, _ in parts(spec)) for spec in specs]
    ratio, costs = np.divide(sums, wholes), [multiply_adds(spec) for spec in specs]
    result = {
        "spearman": float(spearmanr(sums, wholes).statistic),
        "spearman_of_multiply_adds": float(spearmanr(costs, wholes).statistic),
        "sum_by_whole": {"mean": float(ratio.mean()), "std": float(ratio.std())},
        "rows": [{"whole": w, "sum": s, "spec": x.to_dict()} for w, s, x in zip(wholes, sums, specs, strict=True)],
    }
    file = Path(cfg.run.log_dir) / f"latency_{height}x{width}_batch{batch}_{device.type}.json"
    write_json(file, describe_environment(device) | result)
    log.info(
        "%d networks: Spearman's correlation with the measured latency is %.3f for sums of blocks, %.3f for "
        "multiply-adds; a sum is %.2f ± %.2f of the whole; written to %s",
        number, result["spearman"], result["spearman_of_multiply_adds"], ratio.mean(), ratio.std(), file,
    )  # fmt: skip
