"""The tasks `eval` and `rerank` of tools/benchmark.py: scores of made features.

Ours runs against the bare matrix product, the least that an exact method can do, and against plain NumPy. `published`
is numpy with the copies of the authors' own re-ranking code.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from tools import baselines
from tools.benchmark_tables import BENCHMARK_COLUMNS, benchmark_rows
from tools.benchmark_task import Task, from_proc, timed
from tools.made_data import SIZES, Ids, make_data
from utils.errors import UserError
from utils.metrics import evaluate, evaluate_distance
from utils.rerank import k_reciprocal


@dataclass
class Scoring(Task):
    size: Literal["market", "msmt17", "tiny"] = "market"  # dataset whose numbers of images are imitated
    device: Literal["cpu", "cuda"] = "cpu"  # where ours and matmul run; the others run on the CPU
    metric: Literal["cosine", "euclidean"] = "cosine"  # for rerank, cosine means rows of norm 1
    features: Literal["clustered", "random"] = "clustered"  # as of a trained model, or noise
    width: int = 2048  # of a feature
    repeats: int = 1  # calls of each contender, of which the fastest counts
    unit: ClassVar[bool]  # whether the metric cosine makes rows of norm 1
    on_cpu: ClassVar[dict[str, Callable[[int, int, int], int]]]  # contenders that stay there, and the bytes they need
    tolerance: ClassVar[dict[str, float]]  # score to the largest difference between ours and numpy
    columns: ClassVar[tuple[str, ...]] = BENCHMARK_COLUMNS
    table = staticmethod(benchmark_rows)

    def check(self) -> None:
        super().check()
        self.check_at_least_1("width", "repeats")

    def describe(self) -> str:
        size = SIZES[self.size]
        counts = f"{size.queries:,} queries, {size.gallery:,} gallery images"
        return f"{self.task}, {self.metric}: {counts}\n{self.features} features of width {self.width:,}"

    def reason_not_to_run(self, contender: str) -> str:
        if contender not in self.on_cpu:
            return ""
        size = SIZES[self.size]
        needed = self.on_cpu[contender](size.queries, size.gallery, self.width) / 2**20
        try:
            available = from_proc("meminfo", "MemAvailable")
        except OSError:
            available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
        return f"needs {math.ceil(needed / 2**10)} GB" if needed > available else ""

    def measure(self, contender: str, scratch: Path) -> dict:
        """Time, memory and scores."""
        call = self.contenders[contender]
        device = torch.device("cpu" if contender in self.on_cpu else self.device)
        made = (self.features, self.width, self.unit and self.metric == "cosine")
        call(make_data(SIZES["tiny"], *made).to(device), self.metric)  # starts libraries and threads
        data = make_data(SIZES[self.size], *made).to(device)
        times, memory, outcome = timed(lambda: call(data, self.metric), self.repeats, device)
        seconds, cpu_seconds = min(times)
        row = {"contender": contender, "seconds": seconds, "cpu_seconds": cpu_seconds, **memory}
        return row | {"scores": scores(outcome, data.ids)}

    def compare(self, rows: list[dict]) -> dict[str, float]:
        """Score to |ours - numpy|; empty where one of them has not run."""
        scored = {row["contender"]: row["scores"] for row in rows if "scores" in row}
        if not {"ours", "numpy"} <= set(scored):
            print("scores not compared: that takes ours and numpy")
            return {}
        ours, other = scored["ours"], scored["numpy"]
        apart = {name: abs(ours[name] - other[name]) for name in ours}
        print("|ours - numpy|: " + ", ".join(f"{name} {value:.1e}" for name, value in apart.items()))
        for name, limit in self.tolerance.items():
            if not apart[name] <= limit:
                values = f"{ours[name]:.8f} by ours and {other[name]:.8f} by numpy"
                raise UserError(f"{name} is {values}: one of them is wrong")
        return apart

    def file_name(self) -> str:
        """Task, size and device; metric, features and width where they are not the default."""
        default = ("cosine", "clustered", 2048)
        odd = [str(x) for x in (self.metric, self.features, self.width) if x not in default]
        return "_".join(["benchmark", self.task, self.size, self.device, *odd]) + ".json"


@dataclass
class Eval(Scoring):
    """CMC, mAP and mINP of features."""

    task: ClassVar[str] = "eval"
    unit: ClassVar[bool] = False
    contenders: ClassVar[dict[str, Callable]] = {
        "matmul": lambda data, metric: baselines.product(data.query, data.gallery),
        "ours": lambda data, metric: evaluate(data.query, data.gallery, *data.ids, metric=metric),
        "numpy": lambda data, metric: baselines.evaluate(*data.arrays(), *data.ids, metric=metric),
    }
    on_cpu: ClassVar = {"numpy": baselines.evaluation_bytes}
    # torch and NumPy multiply by different libraries, whose float32 sums differ in the last digit: images that are all
    # but equally far change places. That equal distances give equal scores is for the tests to show.
    tolerance: ClassVar[dict[str, float]] = {"mAP": 1e-5, "mINP": 1e-4, "rank1": 1e-3, "rank5": 1e-3, "rank10": 1e-3}


@dataclass
class Rerank(Scoring):
    """k-reciprocal re-ranking with (20, 6, 0.3)."""

    task: ClassVar[str] = "rerank"
    unit: ClassVar[bool] = True
    contenders: ClassVar[dict[str, Callable]] = {
        "matmul": lambda data, metric: baselines.full_product(data.query, data.gallery),
        "ours": lambda data, metric: k_reciprocal(data.query, data.gallery),
        "numpy": lambda data, metric: torch.from_numpy(baselines.k_reciprocal(*data.arrays())),
        "published": lambda data, metric: torch.from_numpy(baselines.published_k_reciprocal(*data.arrays())),
    }
    on_cpu: ClassVar = {"numpy": baselines.reranking_bytes, "published": baselines.published_bytes}
    tolerance: ClassVar[dict[str, float]] = {"mAP": 1e-4}  # nearly equal neighbours fall either way in float32


def scores(outcome: Any, ids: Ids) -> dict[str, float]:
    """Of what a contender found: nothing, scores, or re-ranked distances."""
    if outcome is None:
        return {}
    found = evaluate_distance(outcome, *ids) if isinstance(outcome, torch.Tensor) else outcome
    return {"mAP": found.mAP, "mINP": found.mINP} | {f"rank{k}": float(found.cmc[k - 1]) for k in (1, 5, 10)}
