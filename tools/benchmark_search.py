"""The task `search` of tools/benchmark.py: the ten nearest of a million vectors.

`exact` is ours; `flat`, `ivf` and `hnsw` are FAISS with the settings of `tools/search.py`, which this measures. Vectors
are clustered as in the other tasks, but in `inner` dimensions, turned into `width`: real features fill their space
unevenly too, and approximate search lives from that. With 24, exact search finds similarities, and hnsw a recall, like
those among OSNet's features of Market-1501 (ivf finds a little more there); with as many as `width`, they are like
nobody's and far harder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from tools.benchmark_tables import SEARCH_COLUMNS, search_rows
from tools.benchmark_task import Task, from_proc, timed
from tools.gallery.engines import build_engine, load_faiss, nearest, search_engine
from tools.made_data import GALLERY_STREAM, QUERY_STREAM, make_features
from utils.errors import UserError

CPU = torch.device("cpu")
SIZES = {"million": 1_000_000, "small": 4_000}
K = 10  # nearest that are asked for
IMAGES, CAMERAS = 20, 16  # of a person
TURN_STREAM = 5  # of random numbers
LEAST = {"flat": 0.999, "ivf": 0.5, "hnsw": 0.5}  # recall: flat differs by rounding alone, others are broken below
COPIES = {"exact": 1, "flat": 2, "ivf": 2, "hnsw": 2.3}  # of the vectors that are in memory at a time, about


@dataclass
class Search(Task):
    """Ten nearest of a million vectors, exactly and by FAISS."""

    size: Literal["million", "small"] = "million"  # 1,000,000 vectors, or 4,000 to see whether it runs
    width: int = 512  # of a vector
    inner: int = 24  # dimensions that they vary in
    queries: int = 1000  # searched together, for queries/s
    repeats: int = 3  # searches of each contender, of which the fastest counts
    task: ClassVar[str] = "search"
    device: ClassVar[str] = "cpu"
    contenders: ClassVar[dict[str, Callable]] = dict.fromkeys(COPIES)
    columns: ClassVar[tuple[str, ...]] = SEARCH_COLUMNS
    table = staticmethod(search_rows)

    def check(self) -> None:
        super().check()
        self.check_at_least_1("width", "inner", "queries", "repeats")
        if self.inner > self.width:
            raise UserError(f"--inner {self.inner} dimensions do not go into --width {self.width}; take fewer")
        if "exact" in self.skip:
            raise UserError("--skip exact: recall is measured against it, so it cannot be left out")

    def describe(self) -> str:
        made = f"{SIZES[self.size]:,} vectors of {self.width} dimensions, which vary in {self.inner}"
        return f"search: the {K} nearest of {made}; {self.queries:,} queries"

    def versions(self) -> dict[str, str]:
        return {"faiss": load_faiss().__version__}

    def reason_not_to_run(self, contender: str) -> str:
        needed = COPIES[contender] * SIZES[self.size] * self.width * 4 / 2**20 + 500
        try:
            available = from_proc("meminfo", "MemAvailable")
        except OSError:
            available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
        return f"needs {needed / 2**10:.1f} GB" if needed > available else ""

    def measure(self, contender: str, scratch: Path) -> dict:
        """Seconds to build and to search, memory, and recall against what `exact` left in `scratch`."""
        query, vectors = self.made()
        if contender != "exact":
            load_faiss().omp_set_num_threads(torch.get_num_threads())
        (built,), build_memory, search = timed(lambda: self.searcher(contender, vectors), 1, CPU)
        search(query[:1])  # starts libraries and threads
        times, memory, found = timed(lambda: search(query), self.repeats, CPU)
        few = query[: min(len(query), 50)]
        alone, _, _ = timed(lambda: [search(row[None]) for row in few], 1, CPU)
        (seconds, cpu_seconds) = min(times)
        if contender == "exact":
            np.save(scratch / "truth.npy", found)
        row = {"contender": contender, "queries": len(query), "seconds": seconds, "cpu_seconds": cpu_seconds}
        row |= {"build_seconds": built[0], "alone_seconds": alone[0][0] / len(few), "peak_mb": memory["peak_mb"]}
        row["above_mb"] = memory["peak_mb"] - (build_memory["peak_mb"] - build_memory["above_mb"])
        return row | {"recall": recall(found, np.load(scratch / "truth.npy"))}

    def made(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (Q, width) and vectors (N, width) of length 1: pictures of the same people, in random order."""
        rng = np.random.default_rng([0, TURN_STREAM])
        number = SIZES[self.size]
        people = -(-number // IMAGES)
        pids = np.repeat(np.arange(1, people + 1), IMAGES)[:number]
        asked = np.sort(rng.integers(1, people + 1, self.queries))
        turn = np.linalg.qr(rng.standard_normal((self.width, self.inner)))[0].T.astype(np.float32)
        made = []
        for ids, stream in ((asked, QUERY_STREAM), (pids, GALLERY_STREAM)):
            rows = make_features(ids, rng.integers(1, CAMERAS + 1, len(ids)), "clustered", self.inner, True, stream)
            made.append(torch.mm(rows[rng.permutation(len(rows))], torch.from_numpy(turn)))
        return made[0], made[1]

    def searcher(self, contender: str, vectors: torch.Tensor) -> Callable[[torch.Tensor], np.ndarray]:
        """What gives the rows (Q, K) of the nearest."""
        if contender == "exact":
            return lambda query: nearest(query, vectors, K)[1].numpy()
        ids = np.arange(len(vectors))
        engine = build_engine(contender, vectors.numpy(), ids)
        return lambda query: search_engine(engine, query.numpy(), K, ids)[1]

    def compare(self, rows: list[dict]) -> dict[str, float]:
        """Share of the ten nearest that is missed."""
        missed = {row["contender"]: 1 - row["recall"] for row in rows if "recall" in row}
        for name, share in missed.items():
            if not 1 - share >= LEAST.get(name, 1):
                raise UserError(f"{name} finds {100 * (1 - share):.2f} % of what exact finds: one of them is wrong")
        return missed

    def file_name(self) -> str:
        """Task, size and device; all that is not the default."""
        values = {f"w{self.width}": "w512", f"i{self.inner}": "i24", f"q{self.queries}": "q1000"}
        odd = [value for value, default in values.items() if value != default]
        return "_".join(["benchmark", self.task, self.size, self.device, *odd]) + ".json"


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the rows in `truth` (Q, K) that are in the same row of `found`."""
    return float(np.mean([np.isin(t, f).mean() for f, t in zip(found, truth, strict=True)]))
