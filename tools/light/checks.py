"""Checks of what the search relies on: the ranking by shared weights, and latency as a sum of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from config import Config
from config.cli import typed_command
from model.backbones.searchable import Searched, multiply_adds
from processor.environment import describe_environment, pick_device
from tools.light.latency import Part, measure, parts
from tools.light.report import save
from tools.light.runs import Search, spec_id
from tools.light.space import Space, mobilenet_v2
from utils.errors import UserError
from utils.files import write_json
from utils.logging import log


def kendall(a: Sequence[float], b: Sequence[float], groups: Sequence[object]) -> float:
    """Kendall's tau-b of two lists (N,) over the pairs within a group, which scipy's function does not offer.

    NaN where one of the lists has only ties.
    """
    pairs = np.triu_indices(len(a), 1)
    same = np.array([groups[i] == groups[j] for i, j in zip(*pairs, strict=True)], dtype=bool)
    first, second = (np.sign(np.subtract.outer(x, x))[pairs][same] for x in (a, b))
    weight = np.sqrt(np.abs(first).sum() * np.abs(second).sum())
    return float((first * second).sum() / weight) if weight else float("nan")


def interval(a: Sequence[float], b: Sequence[float], groups: Sequence[object], draws: int = 2000) -> list[float]:
    """5th and 95th percentile of Kendall's tau over bootstrap samples of the networks."""
    rng, found = np.random.default_rng(0), []
    for rows in rng.integers(len(a), size=(draws, len(a))):
        found.append(kendall(*([some[i] for i in rows] for some in (a, b, groups))))
    return np.nanpercentile(found, [5, 95]).tolist()


def check_ranking(search: Search, number: int, seeds: int) -> None:
    """Kendall's tau between scores with shared weights and scores after training alone, for random networks.

    Also that of multiply-adds and, with several seeds, that of one training with another, which is the best to hope
    for. Logs them and writes ranking.json and ranking.png.
    """
    networks = sorted(search.run(number, number), key=lambda c: spec_id(c.spec))  # not in the order of scores
    trained = [search.train_each(networks, search.cfg.run.seed + n) for n in range(seeds)]
    alone, shared = np.mean(trained, axis=0).tolist(), [c.mAP for c in networks]
    costs, sizes = [c.costs[0] for c in networks], [c.size for c in networks]
    pairs = {"shared weights": (shared, alone), "multiply-adds": (costs, alone)}
    if len(trained) > 1:
        pairs["one training and another"] = tuple(trained[:2])
    result = {}
    for name, (a, b) in pairs.items():
        for suffix, groups in (("", [0] * len(a)), (" within each image size", sizes)):
            tau, bounds = kendall(a, b, groups), interval(a, b, groups)
            result[name + suffix] = {"kendall": tau, "90 % of bootstraps": bounds}
            log.info("Kendall's tau %.2f (90 %%: %.2f to %.2f): %s", tau, *bounds, name + suffix)
    rows = [
        {"multiply_adds": c.costs[0], "shared": c.mAP, "alone": score, "by_seed": each, "spec": c.spec.to_dict()}
        for c, score, each in zip(networks, alone, zip(*trained, strict=True), strict=True)
    ]
    write_json(search.directory / "ranking.json", {"command": typed_command(), **result, "rows": rows})
    figure = Figure(figsize=(6.0, 5.0), dpi=110, layout="constrained")
    axis = figure.subplots()
    figure.colorbar(axis.scatter(shared, alone, c=np.array(costs) / 1e6), label="M multiply-adds")
    axis.set(xlabel="mAP in % with the shared weights", ylabel="mAP in % when trained alone")
    axis.grid(alpha=0.3)
    save(figure, search.directory / "ranking.png")


def check_latency(cfg: Config, number: int, batch: int) -> None:
    """Spearman's rank correlation of the sums of block latencies with the latencies of whole networks.

    For random networks, none more expensive than MobileNetV2 1.0, measured in turns on the device of the settings. Logs
    it, with that of multiply-adds, and writes latency_*.json. Raises UserError without scipy.
    """
    try:
        from scipy.stats import spearmanr
    except ImportError as error:
        raise UserError("--check-latency needs scipy: pip install scipy") from error
    device, rng = pick_device(cfg.run.device), np.random.default_rng(cfg.run.seed)
    height, width = cfg.data.height, cfg.data.width
    space = Space(height, width, multiply_adds(mobilenet_v2(height, width)))
    specs = [space.random(rng) for _ in range(number)]
    some = {str(n): Part(partial(Searched, s), (3, s.height, s.width)) for n, s in enumerate(specs)}
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
