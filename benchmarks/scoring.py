"""`eval`, `rerank` and `search`: scores and neighbors of generated features, which are like those of a trained model.

`eval` and `rerank` compare ours with the bare matrix product, the least that an exact method must compute, and with
NumPy. `search` finds the ten nearest of many vectors; `exact` is ours, `hnsw` FAISS and `milvus` Milvus Lite with the
settings of `tools/search.py`.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from benchmarks import classic
from benchmarks.task import Task, lacking_memory, measure
from tools.gallery.engines import build_engine, load_faiss, nearest, search_engine
from tools.gallery.index import File
from tools.gallery.milvus import MilvusIndex
from utils.metrics import evaluate, evaluate_distance
from utils.rerank import k_reciprocal

BLOCK = 1024  # rows generated at a time
CLARITY = 6.5  # similarity of a person's images, in standard deviations of the similarity of strangers
SPREAD = 0.3  # standard deviation of the logarithm of an image's clarity: some are easy, some hard
CAMERA = 0.5  # weight of the camera in an image's signal; that of the person is 1
QUERY, GALLERY, PEOPLE = range(3)  # streams of random numbers
BLOCK_BYTES = 64 << 20  # of a product that is thrown away
CPU = torch.device("cpu")
VECTORS = {"million": 1_000_000, "100k": 100_000, "10k": 10_000, "small": 4_000}
K, IMAGES, CAMERAS = 10, 20, 16  # neighbors to find, images per person, cameras
COPIES = {"exact": 1, "hnsw": 2.3, "milvus": 5}  # approximate number of copies of the vectors in memory at a time


class Size(NamedTuple):
    queries: int
    gallery: int
    identities: int
    cameras: int
    distractors: int  # gallery images with pid 0


SIZES = {
    "market": Size(3368, 15913, 750, 6, 2798),
    "msmt17": Size(11659, 82161, 3060, 15, 0),
    "tiny": Size(60, 300, 16, 5, 50),
}


class Data(NamedTuple):
    query: torch.Tensor  # (Q, D) float32
    gallery: torch.Tensor  # (G, D)
    ids: tuple[np.ndarray, ...]  # query pids, gallery pids, query cameras, gallery cameras


def make_data(size: Size, kind: str, width: int, unit: bool, device: torch.device) -> Data:
    """Features of `kind` clustered or random; `unit`: rows of length 1. The same arguments give the same data."""
    rng = np.random.default_rng(PEOPLE)
    known = rng.integers(1, size.identities + 1, size.queries + size.gallery - size.distractors)
    pids = known[: size.queries], np.r_[np.zeros(size.distractors, int), known[size.queries :]]
    cameras = [rng.integers(1, size.cameras + 1, len(x)) for x in pids]
    rows = [make_features(*x, kind, width, unit, s) for *x, s in zip(pids, cameras, (QUERY, GALLERY), strict=True)]
    return Data(*(x.to(device) for x in rows), (*pids, *cameras))


def make_features(
    pids: np.ndarray, cameras: np.ndarray, kind: str, width: int, unit: bool, stream: int
) -> torch.Tensor:
    """(N, width) float32: noise (random), or person + camera + noise of variance 1 (clustered); the parts of a person
    and of a camera do not depend on `stream`."""
    rng = np.random.default_rng([0, stream])
    persons, views = (  # the first rows do not depend on their number
        np.random.default_rng([PEOPLE, i]).standard_normal((x.max() + 1, width), np.float32)
        for i, x in enumerate((pids, cameras))
    )
    features = rng.standard_normal((len(pids), width), np.float32)
    for start in range(0, len(pids), BLOCK):
        rows, pid = features[start : start + BLOCK], pids[start : start + BLOCK]
        if kind == "clustered":
            signal = persons[pid]
            signal[pid == 0] = rng.standard_normal(((pid == 0).sum(), width), np.float32)  # all different
            signal = (signal + CAMERA * views[cameras[start : start + BLOCK]]) / np.float32(np.sqrt(1 + CAMERA**2))
            share = CLARITY / np.sqrt(width) * rng.lognormal(0, SPREAD, (len(rows), 1))
            share = np.minimum(share, 0.9).astype(np.float32)  # of the variance
            rows *= np.sqrt(1 - share)
            rows += np.sqrt(share) * signal
        if unit:
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(features)


@dataclass
class Eval(Task):
    """CMC, mAP and mINP of generated features"""

    size: Literal["market", "msmt17", "tiny"] = "market"  # dataset whose numbers of images and identities are used
    device: Literal["cpu", "cuda"] = "cpu"  # device of ours and matmul; numpy runs on the CPU
    metric: Literal["cosine", "euclidean"] = "cosine"  # distance; for rerank, cosine means rows of length 1
    features: Literal["clustered", "random"] = "clustered"  # like those of a trained model, or noise
    width: int = 2048  # number of dimensions of a feature
    repeats: int = 1  # calls of each contender; the fastest counts

    task = "eval"
    contenders = ("matmul", "ours", "numpy")
    # float32 sums of torch and NumPy differ in the last digit, so images at nearly equal distances swap places
    compared, limits = "mAP", {"ours": 1e-4}

    def reason_not_to_run(self, contender: str) -> str:
        size = SIZES[self.size]
        rows, pairs = size.queries + size.gallery, size.queries * size.gallery
        bytes_of = {"eval": 4 * rows * self.width + 21 * pairs, "rerank": 8 * rows * self.width + 16 * rows**2}
        return lacking_memory(bytes_of[self.task]) if contender == "numpy" else ""

    def measure(self, contender: str) -> dict:
        device = torch.device(self.device if contender != "numpy" else "cpu")
        call = getattr(self, contender)
        made = (self.features, self.width, self.task == "rerank" and self.metric == "cosine", device)
        call(make_data(SIZES["tiny"], *made))  # starts libraries and threads
        data = make_data(SIZES[self.size], *made)
        row, mAP = measure(lambda: call(data), device, self.repeats)
        if isinstance(mAP, torch.Tensor):  # re-ranked distances
            mAP = evaluate_distance(mAP, *data.ids).mAP
        return row if mAP is None else row | {"mAP": mAP}

    def matmul(self, data: Data) -> None:
        """The inner products of queries and gallery."""
        data.query @ data.gallery.T

    def ours(self, data: Data):
        return evaluate(data.query, data.gallery, *data.ids, metric=self.metric).mAP

    def numpy(self, data: Data):
        distance = classic.distances(data.query.numpy(), data.gallery.numpy(), self.metric)
        return classic.evaluate(distance, *data.ids)[0]


@dataclass
class Rerank(Eval):
    """k-reciprocal re-ranking with (20, 6, 0.3) of generated features"""

    task = "rerank"

    def matmul(self, data: Data) -> None:
        """The inner products of all rows with all rows, in blocks."""
        rows = max(1, BLOCK_BYTES // (4 * (len(data.query) + len(data.gallery))))
        for features in (data.query, data.gallery):
            for part in features.split(rows):
                for others in (data.query, data.gallery):
                    part @ others.T

    def ours(self, data: Data):
        return k_reciprocal(data.query, data.gallery)

    def numpy(self, data: Data):
        return torch.from_numpy(classic.k_reciprocal(data.query.numpy(), data.gallery.numpy()))


@dataclass
class Search(Task):
    """Search for the ten nearest of a million vectors: exactly, with FAISS, and with Milvus Lite

    The vectors are clustered as in `eval`, but in `inner` dimensions, rotated into `width`: real features fill their
    space unevenly as well, and approximate search depends on it. With 24, similarities and the recall of hnsw are like
    those of OSNet's features of Market-1501.
    """

    size: Literal["million", "100k", "10k", "small"] = "million"  # number of vectors; small: 4,000, for a try
    width: int = 512  # number of dimensions of a vector
    inner: int = 24  # number of dimensions in which the vectors vary
    queries: int = 1000  # number of queries searched together
    repeats: int = 3  # searches of each contender; the fastest counts

    task = "search"
    contenders = tuple(COPIES)
    compared, limits = "recall", {"": 0.5}  # a contender that finds less is broken

    def reason_not_to_run(self, contender: str) -> str:
        if contender == "milvus" and not find_spec("milvus_lite"):
            return "needs pip install pymilvus milvus-lite"
        return lacking_memory(COPIES[contender] * VECTORS[self.size] * self.width * 4 + (500 << 20))

    def measure(self, contender: str) -> dict:
        """Seconds to build and to search, memory, and recall against what `exact` left in the scratch directory."""
        query, vectors = self.make_vectors()
        truth, ids = Path(self.scratch, "truth.npy"), np.arange(len(vectors))
        built = {"seconds": 0.0, "peak_mb": 0.0, "above_mb": 0.0}
        if contender == "exact":
            search = lambda rows: nearest(rows, vectors, K)[1].numpy()  # noqa: E731
        elif contender == "milvus":
            about = {"model": "benchmark", "flip": False, "half": False, "root": "", "dim": self.width}
            index = MilvusIndex(Path(self.scratch), about | {"uri": f"{self.scratch}/milvus.db"}, [], [])
            files = [File(str(row), 0, 0) for row in ids]
            built, _ = measure(lambda: (index.append(files, vectors.numpy()), index.finish()), CPU)
            search = lambda rows: [[int(file.path) for _, file in hits] for hits in index.find_all(rows, K)]  # noqa: E731
        else:
            load_faiss().omp_set_num_threads(torch.get_num_threads())
            built, engine = measure(lambda: build_engine(vectors.numpy(), ids), CPU)
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
        rng, number = np.random.default_rng(PEOPLE), VECTORS[self.size]
        rotation = np.linalg.qr(rng.standard_normal((self.width, self.inner)))[0].T.astype(np.float32)
        people, made = -(-number // IMAGES) + 1, []
        for rows, stream in ((self.queries, QUERY), (number, GALLERY)):
            ids = rng.integers(1, people, rows), rng.integers(1, CAMERAS + 1, rows)
            inner = make_features(*ids, "clustered", self.inner, True, stream)
            made.append(torch.mm(inner, torch.from_numpy(rotation)))
        return made
