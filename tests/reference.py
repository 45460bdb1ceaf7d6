"""Slow, obvious references for the fast code: loops straight from the definitions, in float64."""

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from utils.metrics import Scores


def evaluation(distance, query_pids, gallery_pids, query_camids, gallery_camids, max_rank=50) -> Scores:
    """Walk down the ranked list of each query. Queries without a match have NaN, and so have the means if none has."""
    ap, inp, first = [], [], []
    for q, row in enumerate(np.asarray(distance)):
        ranked = ranked_order(row, query_pids[q], query_camids[q], gallery_pids, gallery_camids)
        hits = [place for place, g in enumerate(ranked, 1) if gallery_pids[g] == query_pids[q]]
        ap.append(mean(number / place for number, place in enumerate(hits, 1)))
        inp.append(len(hits) / hits[-1] if hits else np.nan)
        first += hits[:1]
    cmc = [mean(place <= k for place in first) for k in range(1, max_rank + 1)]
    matched = ~np.isnan(ap)
    return Scores(mean(np.array(ap)[matched]), mean(np.array(inp)[matched]), np.array(cmc), len(first), np.array(ap))


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def assert_same_scores(scores, expected, tolerance: float = 1e-8) -> None:
    """NaN equals NaN only."""
    assert scores.num_valid_queries == expected.num_valid_queries and scores.cmc.shape == expected.cmc.shape
    for name in ("mAP", "mINP", "cmc", "ap"):
        np.testing.assert_allclose(getattr(scores, name), getattr(expected, name), rtol=0, atol=tolerance)


def simple(queries: int = 6, images: int = 40, width: int = 6, seed: int = 0) -> tuple:
    """Random features and their ids; each query, under camera 0, has matches under camera 1: three identities."""
    rng = np.random.default_rng(seed)
    features = [torch.from_numpy(rng.normal(size=(n, width)).astype(np.float32)) for n in (queries, images)]
    return *features, (np.arange(queries) % 3, np.arange(images) % 3, np.zeros(queries, int), np.arange(images) % 2)


def ranked_order(distance, query_pid, query_camid, gallery_pids, gallery_camids) -> list[int]:
    """One query's ranked list: by distance, then by place in the gallery, without its own camera's images of it."""
    kept = [g for g in range(len(distance)) if not (gallery_pids[g] == query_pid and gallery_camids[g] == query_camid)]
    return sorted(kept, key=lambda g: (distance[g], g))


def accepted_pairs(distance, query_pids, gallery_pids, query_camids, gallery_camids) -> tuple[list, list]:
    """Distances of all matching pairs, and of all pairs of two identities; ignored pairs are in neither list."""
    positives, negatives = [], []
    for q, row in enumerate(distance):
        for g, value in enumerate(row):
            if gallery_pids[g] != query_pids[q]:
                negatives.append(float(value))
            elif gallery_camids[g] != query_camids[q]:
                positives.append(float(value))
    return positives, negatives


def largest_tpr(positives, negatives, fpr: float) -> float:
    """The largest TPR of all thresholds (and of accepting nothing) whose FPR is at most `fpr`; NaN if no negatives."""
    if len(negatives) == 0:
        return float("nan")
    positives, negatives, best = np.asarray(positives), np.asarray(negatives), 0.0
    for threshold in {*positives.tolist(), *negatives.tolist()}:
        if (negatives <= threshold).sum() / len(negatives) <= fpr:
            best = max(best, float((positives <= threshold).sum() / len(positives)))
    return best


def squared_distances(features) -> np.ndarray:
    """(N, N) squared euclidean distances in float64, from the differences, so that equal rows are at exactly 0."""
    rows = torch.as_tensor(features).double()
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()


def k_reciprocal(features, queries: int, k1: int = 20, k2: int = 6, lambda_value: float = 0.3) -> np.ndarray:
    """Zhong et al. 2017 with dense matrices; the first `queries` rows are the queries. (Q, G) float64."""
    original = squared_distances(features)
    original = original / original.max(1, keepdims=True)
    size = len(original)
    ranking = np.argsort(original, axis=1, kind="stable")

    def reciprocal(i: int, k: int) -> set[int]:
        return {int(j) for j in ranking[i, : k + 1] if i in ranking[j, : k + 1]}

    near = [reciprocal(i, k1) for i in range(size)]
    half = [reciprocal(i, round(k1 / 2)) for i in range(size)]
    encoding = np.zeros((size, size))
    for i in range(size):
        expanded = set(near[i])
        for j in near[i]:
            if 3 * len(half[j] & near[i]) > 2 * len(half[j]):
                expanded |= half[j]
        members = sorted(expanded)
        weight = np.exp(-original[i, members])
        encoding[i, members] = weight / weight.sum()
    if k2 > 1:
        encoding = np.stack([encoding[ranking[i, :k2]].mean(0) for i in range(size)])
    jaccard = np.zeros((queries, size - queries))
    for q in range(queries):
        smaller = np.minimum(encoding[q], encoding[queries:]).sum(1)
        jaccard[q] = 1 - smaller / (2 - smaller)
    return jaccard * (1 - lambda_value) + original[:queries, queries:] * lambda_value


def neighbours_are_clear(features, k1: int, k2: int, gap: float = 2e-6) -> bool:
    """Whether rounding to float32 cannot change who is among the nearest k1 + 1, k1/2 + 1 and k2 rows.

    The farthest that is in and the nearest that is out must differ by `gap` of the row's largest distance.
    """
    distance = squared_distances(features)
    largest = distance.max(1)
    if not largest.all():
        return False
    ordered = np.sort(distance, axis=1) / largest[:, None]
    cuts = [k for k in (k1 + 1, round(k1 / 2) + 1, k2) if k < len(distance)]
    return all((ordered[:, k] - ordered[:, k - 1]).min() > gap for k in cuts)


def is_pk_batch(batch, pids, p: int, k: int) -> bool:
    """P identities with K images each, no image twice where the identity has K."""
    images_of = {pid: [image for image in batch if pids[image] == pid] for pid in pids[batch].tolist()}
    sizes = {len(images) for images in images_of.values()}
    without_copies = all(len(set(images)) == k for pid, images in images_of.items() if np.sum(pids == pid) >= k)
    return len(images_of) == p and sizes == {k} and without_copies


def most_pk_batches(sizes, p: int, k: int) -> int:
    """The most batches that the groups of K images allow: an identity is at most once in a batch."""
    groups = [max(size // k, 1) for size in sizes]
    batches = 0
    while sum(min(number, batches + 1) for number in groups) >= p * (batches + 1):
        batches += 1
    return batches


class Allocations(TorchDispatchMode):
    """While it is entered: how many bytes each storage holds that an operation made, but those of `known` tensors."""

    def __init__(self, *known: torch.Tensor):
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in known}
        self.made: list[tuple[int, int]] = []  # (bytes, address): one made while another is held has its own address

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(result) if isinstance(x, torch.Tensor)):
            if storage.data_ptr() not in self.known:
                self.made.append((storage.nbytes(), storage.data_ptr()))
        return result

    def largest(self) -> int:
        return max(size for size, _ in self.made)
