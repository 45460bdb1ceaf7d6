"""`eval`, `rerank` and `search`: scores and neighbors of generated features, which are like those of a trained model.

`eval` and `rerank`: ours against the bare matrix product, the least that an exact method must compute, and against
NumPy; `published` is re-ranking with the copies of its authors' code. `search`: the ten nearest of a million vectors;
`exact` is ours, `hnsw` FAISS with the settings of `tools/search.py`.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from benchmarks import classic_scoring
from benchmarks.task import Task, lacking_memory, measure
from tools.gallery.engines import build_engine, load_faiss, nearest, search_engine
from utils.errors import UserError
from utils.metrics import evaluate, evaluate_distance
from utils.rerank import k_reciprocal

BLOCK = 128  # rows generated at a time
CLARITY = 6.5  # similarity of a person's images, in standard deviations of the similarity of strangers
SPREAD = 0.3  # standard deviation of the logarithm of an image's clarity: some are easy, some hard
CAMERA = 0.5  # weight of the camera in an image's signal; that of the person is 1
PERSON_STREAM, CAMERA_STREAM, ID_STREAM, QUERY_STREAM, GALLERY_STREAM, ROTATION_STREAM = range(6)  # of random numbers
BLOCK_BYTES = 64 << 20  # of a product that is thrown away
# Largest difference of scores between ours and numpy: float32 sums of torch and NumPy differ in the last digit, and
# images at nearly equal distances swap places.
TOLERANCE = {
    "eval": {"mAP": 1e-5, "mINP": 1e-4, "rank1": 1e-3, "rank5": 1e-3, "rank10": 1e-3},
    "rerank": {"mAP": 1e-4},
}
CPU = torch.device("cpu")
VECTORS = {"million": 1_000_000, "small": 4_000}
K, IMAGES, CAMERAS = 10, 20, 16  # neighbors, images and cameras of a person
LEAST_RECALL = {"exact": 1.0, "hnsw": 0.5}  # what finds less is broken
COPIES = {"exact": 1, "hnsw": 2.3}  # of the vectors in memory at a time, about


# ---- generated features


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


def make_data(size: Size, kind: str, width: int, unit: bool) -> Data:
    """Features of `kind` clustered or random; `unit`: rows of length 1. The same arguments give the same data."""
    ids = make_ids(size)
    query = make_features(ids[0], ids[2], kind, width, unit, QUERY_STREAM)
    return Data(query, make_features(ids[1], ids[3], kind, width, unit, GALLERY_STREAM), ids)


def make_ids(size: Size) -> tuple[np.ndarray, ...]:
    """One query per identity and camera that saw it, at least two per identity, ordered by both."""
    rng = np.random.default_rng([0, ID_STREAM, 0])
    cameras = rng.permuted(np.tile(np.arange(1, size.cameras + 1), (size.identities, 1)), axis=1)
    seen = np.zeros(cameras.shape, bool)
    seen[:, :2] = True  # every query has a match
    seen.flat[rng.choice(np.flatnonzero(~seen), size.queries - seen.sum(), replace=False)] = True
    pids, cameras = np.nonzero(seen)[0] + 1, cameras[seen]
    order = np.lexsort((cameras, pids))
    pids, cameras = pids[order], cameras[order]
    popularity = rng.lognormal(0, 0.5, size.identities)[pids - 1]  # some are seen far more often than others
    images = 1 + rng.multinomial(size.gallery - size.distractors - len(pids), popularity / popularity.sum())
    distractor_cameras = np.sort(rng.integers(1, size.cameras + 1, size.distractors))
    gallery_pids, gallery_cameras = (np.repeat(x, images) for x in (pids, cameras))
    gallery_pids = np.concatenate([np.zeros(size.distractors, np.int64), gallery_pids])
    return pids, gallery_pids, cameras, np.concatenate([distractor_cameras, gallery_cameras])


def make_features(
    pids: np.ndarray, cameras: np.ndarray, kind: str, width: int, unit: bool, stream: int
) -> torch.Tensor:
    """(N, width) float32, generated in place: noise (random), or person + camera + noise of variance 1 (clustered).

    The parts of a person and of a camera do not depend on `stream`.
    """
    features = np.empty((len(pids), width), np.float32)
    rng = np.random.default_rng([0, stream, 0])
    views = np.random.default_rng([0, CAMERA_STREAM, 0]).standard_normal((cameras.max() + 1, width), np.float32)
    edges = {0, len(pids), *range(0, len(pids), BLOCK), *(np.flatnonzero(np.diff(pids)) + 1).tolist()}
    for start, stop in pairwise(sorted(edges)):  # rows of one person
        rows = features[start:stop]
        rng.standard_normal(dtype=np.float32, out=rows)
        if kind == "clustered":
            pid = int(pids[start])
            person = np.random.default_rng([0, PERSON_STREAM, pid]) if pid else rng  # distractors are all different
            signal = person.standard_normal((1 if pid else len(rows), width), np.float32)
            signal = (signal + CAMERA * views[cameras[start:stop]]) / np.float32(np.sqrt(1 + CAMERA**2))
            share = CLARITY / np.sqrt(width) * rng.lognormal(0, SPREAD, (len(rows), 1))
            share = np.minimum(share, 0.9).astype(np.float32)  # of the variance
            rows *= np.sqrt(1 - share)
            rows += np.sqrt(share) * signal
        if unit:
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(features)


# ---- scores


@dataclass
class Eval(Task):
    """CMC, mAP and mINP of generated features"""

    size: Literal["market", "msmt17", "tiny"] = "market"  # dataset whose numbers of images are imitated
    device: Literal["cpu", "cuda"] = "cpu"  # device of ours and matmul; the others run on the CPU
    metric: Literal["cosine", "euclidean"] = "cosine"  # distance; for rerank, cosine means rows of length 1
    features: Literal["clustered", "random"] = "clustered"  # like those of a trained model, or noise
    width: int = 2048  # of a feature
    repeats: int = 1  # calls of each contender, of which the fastest counts

    task = "eval"
    contenders = ("matmul", "ours", "numpy")

    def reason_not_to_run(self, contender: str) -> str:
        size = SIZES[self.size]
        shape = (size.queries, size.gallery, self.width)
        if contender in ("matmul", "ours"):
            return ""
        if self.task == "eval":
            return lacking_memory(classic_scoring.evaluation_bytes(*shape))
        per_pair = 24 if contender == "published" else 16
        return lacking_memory(classic_scoring.reranking_bytes(*shape, per_pair))

    def measure(self, contender: str) -> dict:
        device = torch.device(self.device if contender in ("matmul", "ours") else "cpu")
        call = getattr(self, contender)
        made = (self.features, self.width, self.task == "rerank" and self.metric == "cosine")
        call(to_device(make_data(SIZES["tiny"], *made), device))  # starts libraries and threads
        data = to_device(make_data(SIZES[self.size], *made), device)
        row, outcome = measure(lambda: call(data), device, self.repeats)
        return row | {"scores": self.scores(outcome, data)}

    def scores(self, outcome, data: Data) -> dict[str, float]:
        """Of re-ranked distances or scores; none of a product."""
        if outcome is None:
            return {}
        if isinstance(outcome, tuple):
            mAP, mINP, cmc = outcome
        else:
            found = evaluate_distance(outcome, *data.ids) if isinstance(outcome, torch.Tensor) else outcome
            mAP, mINP, cmc = found.mAP, found.mINP, found.cmc
        return {"mAP": mAP, "mINP": mINP} | {f"rank{k}": float(cmc[k - 1]) for k in (1, 5, 10)}

    def check(self, rows: dict[str, dict]) -> dict[str, float]:
        """|ours - numpy| of each score. Raises UserError where it is too large."""
        if not {"ours", "numpy"} <= rows.keys():
            return {}
        ours, other = rows["ours"]["scores"], rows["numpy"]["scores"]
        for name, limit in TOLERANCE[self.task].items():
            if not abs(ours[name] - other[name]) <= limit:
                raise UserError(f"{name} is {ours[name]:.8f} by ours and {other[name]:.8f} by numpy: one is wrong")
        return {name: abs(ours[name] - other[name]) for name in ours}

    def matmul(self, data: Data) -> None:
        """The inner products of queries and gallery."""
        data.query @ data.gallery.T

    def ours(self, data: Data):
        return evaluate(data.query, data.gallery, *data.ids, metric=self.metric)

    def numpy(self, data: Data):
        distance = classic_scoring.distances(data.query.numpy(), data.gallery.numpy(), self.metric)
        return classic_scoring.evaluate(distance, *data.ids)


@dataclass
class Rerank(Eval):
    """k-reciprocal re-ranking with (20, 6, 0.3) of generated features"""

    task = "rerank"
    contenders = ("matmul", "ours", "numpy", "published")

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
        return torch.from_numpy(classic_scoring.k_reciprocal(data.query.numpy(), data.gallery.numpy()))

    def published(self, data: Data):
        return torch.from_numpy(classic_scoring.published_k_reciprocal(data.query.numpy(), data.gallery.numpy()))


def to_device(data: Data, device: torch.device) -> Data:
    return Data(data.query.to(device), data.gallery.to(device), data.ids)


# ---- search


@dataclass
class Search(Task):
    """The ten nearest of a million vectors, exactly and by FAISS

    The vectors are clustered as in `eval`, but in `inner` dimensions, rotated into `width`: real features fill their
    space unevenly too, and approximate search depends on that. With 24, similarities and the recall of hnsw are like
    those of OSNet's features of Market-1501.
    """

    size: Literal["million", "small"] = "million"  # 1,000,000 vectors, or 4,000 for a try
    width: int = 512  # of a vector
    inner: int = 24  # number of dimensions in which the vectors vary
    queries: int = 1000  # number of queries searched together
    repeats: int = 3  # searches of each contender, of which the fastest counts

    task = "search"
    contenders = tuple(COPIES)

    def reason_not_to_run(self, contender: str) -> str:
        return lacking_memory(COPIES[contender] * VECTORS[self.size] * self.width * 4 + (500 << 20))

    def measure(self, contender: str) -> dict:
        """Seconds to build and to search, memory, and recall against what `exact` left in the scratch directory."""
        query, vectors = self.make_vectors()
        truth, ids = Path(self.scratch, "truth.npy"), np.arange(len(vectors))
        built = {"seconds": 0.0, "peak_mb": 0.0, "above_mb": 0.0}
        if contender == "exact":
            search = lambda rows: nearest(rows, vectors, K)[1].numpy()  # noqa: E731
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
        rng, number = np.random.default_rng([0, ROTATION_STREAM]), VECTORS[self.size]
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
