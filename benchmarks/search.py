"""`search`: the ten nearest of a million vectors.

`exact` is ours; `flat`, `ivf` and `hnsw` are FAISS with the settings of `tools/search.py`. The vectors are clustered as
in `eval`, but in `inner` dimensions, rotated into `width`: real features fill their space unevenly too, and approximate
search depends on that. With 24, similarities and the recall of hnsw are like those of OSNet's features of Market-1501.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.features import GALLERY_STREAM, QUERY_STREAM, make_features
from benchmarks.measure import lacking_memory, measure
from benchmarks.task import Task
from tools.gallery.engines import build_engine, load_faiss, nearest, search_engine
from utils.errors import UserError

CPU = torch.device("cpu")
SIZES = {"million": 1_000_000, "small": 4_000}
K, IMAGES, CAMERAS, ROTATION_STREAM = 10, 20, 16, 5  # neighbors, images and cameras of a person, random numbers
LEAST_RECALL = {"exact": 1.0, "flat": 0.999, "ivf": 0.5, "hnsw": 0.5}  # what finds less is broken
COPIES = {"exact": 1, "flat": 2, "ivf": 2, "hnsw": 2.3}  # of the vectors in memory at a time, about


@dataclass
class Search(Task):
    """The ten nearest of a million vectors, exactly and by FAISS"""

    size: Literal["million", "small"] = "million"  # 1,000,000 vectors, or 4,000 for a try
    width: int = 512  # of a vector
    inner: int = 24  # number of dimensions in which the vectors vary
    queries: int = 1000  # number of queries searched together
    repeats: int = 3  # searches of each contender, of which the fastest counts

    task = "search"
    contenders = tuple(COPIES)

    def reason_not_to_run(self, contender: str) -> str:
        return lacking_memory(COPIES[contender] * SIZES[self.size] * self.width * 4 + (500 << 20))

    def measure(self, contender: str) -> dict:
        """Seconds to build and to search, memory, and recall against what `exact` left in the scratch directory."""
        query, vectors = self.make_vectors()
        truth, ids = Path(self.scratch, "truth.npy"), np.arange(len(vectors))
        built = {"seconds": 0.0, "peak_mb": 0.0, "above_mb": 0.0}
        if contender == "exact":
            search = lambda rows: nearest(rows, vectors, K)[1].numpy()  # noqa: E731
        else:
            load_faiss().omp_set_num_threads(torch.get_num_threads())
            built, engine = measure(lambda: build_engine(contender, vectors.numpy(), ids), CPU)
            search = lambda rows: search_engine(engine, rows.numpy(), K, ids)[1]  # noqa: E731
        search(query[:1])  # starts libraries and threads
        row, found = measure(lambda: search(query), CPU, self.repeats)
        row["above_mb"] += built["above_mb"]
        alone, _ = measure(lambda: [search(one[None]) for one in query[:50]], CPU)
        if contender == "exact":
            np.save(truth, found)
        recall = np.mean([np.isin(t, f).mean() for f, t in zip(found, np.load(truth), strict=True)])
        row |= {"queries": len(query), "build_seconds": built["seconds"], "recall": float(recall)}
        return row | {"alone_seconds": alone["seconds"] / min(50, len(query))}

    def make_vectors(self) -> list[torch.Tensor]:
        """Queries (Q, width) and vectors (N, width) of length 1: pictures of the same people, in random order."""
        rng, number = np.random.default_rng([0, ROTATION_STREAM]), SIZES[self.size]
        people = -(-number // IMAGES)
        pids = np.repeat(np.arange(1, people + 1), IMAGES)[:number]
        asked = np.sort(rng.integers(1, people + 1, self.queries))
        rotation = np.linalg.qr(rng.standard_normal((self.width, self.inner)))[0].T.astype(np.float32)
        made = []
        for ids, stream in ((asked, QUERY_STREAM), (pids, GALLERY_STREAM)):
            rows = make_features(ids, rng.integers(1, CAMERAS + 1, len(ids)), "clustered", self.inner, True, stream)
            made.append(torch.mm(rows[rng.permutation(len(rows))], torch.from_numpy(rotation)))
        return made

    def check(self, rows: dict[str, dict]) -> dict[str, float]:
        """The share of the ten nearest that is missed."""
        for name, row in rows.items():
            if not row["recall"] >= LEAST_RECALL[name]:
                raise UserError(f"{name} finds {row['recall']:.2%} of what exact finds: one of them is wrong")
        return {name: 1 - row["recall"] for name, row in rows.items()}
