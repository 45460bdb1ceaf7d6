"""`eval` and `rerank`: scores of generated features.

ours against the bare matrix product, the least that an exact method must compute, and against NumPy; `published` is
re-ranking with the copies of its authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from benchmarks import classic_scoring
from benchmarks.features import SIZES, Data, make_data
from benchmarks.measure import lacking_memory, measure
from benchmarks.task import Task
from utils.errors import UserError
from utils.metrics import evaluate, evaluate_distance
from utils.rerank import k_reciprocal

BLOCK_BYTES = 64 << 20  # of a product that is thrown away
# Largest difference of scores between ours and numpy: float32 sums of torch and NumPy differ in the last digit, and
# images at nearly equal distances swap places.
TOLERANCE = {
    "eval": {"mAP": 1e-5, "mINP": 1e-4, "rank1": 1e-3, "rank5": 1e-3, "rank10": 1e-3},
    "rerank": {"mAP": 1e-4},
}


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
