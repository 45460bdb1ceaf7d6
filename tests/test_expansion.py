"""Query expansion and database-side augmentation against loops over the formulas."""

import numpy as np
import pytest
import torch

from utils import expansion
from utils.expansion import augment_gallery, expand_queries
from utils.metrics import evaluate


def reference(query, gallery, k: int, alpha: float, itself: bool) -> np.ndarray:
    """Row by row in float64, the neighbours from a stable sort; `itself`: row i of both is the same image."""

    def unit(row: np.ndarray) -> np.ndarray:
        return row / (np.linalg.norm(row) or 1)

    gallery = [unit(row) for row in np.asarray(gallery, dtype=np.float64)]
    result = []
    for i, row in enumerate(np.asarray(query, dtype=np.float64)):
        row = unit(row)
        candidates = [j for j in range(len(gallery)) if not (itself and i == j)]
        nearest = sorted(candidates, key=lambda j: -float(row @ gallery[j]))[:k]
        result.append(unit(row + sum(max(float(row @ gallery[j]), 0.0) ** alpha * gallery[j] for j in nearest)))
    return np.array(result)


def assert_expanded(query: torch.Tensor, gallery: torch.Tensor, k: int, alpha: float) -> None:
    """Both functions give what the reference gives: unit rows, float32."""
    for found, expected in (
        (expand_queries(query, gallery, k, alpha), reference(query, gallery, k, alpha, itself=False)),
        (augment_gallery(gallery, k, alpha), reference(gallery, gallery, k, alpha, itself=True)),
    ):
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-6)


def normal(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32))


def coarse(rows: int, seed: int) -> torch.Tensor:
    """(rows, 4) of lengths 0, 1 and 2 whose cosines are exact in float32: mostly ties, many of different rows."""
    rng = np.random.default_rng(seed)
    axes = np.eye(4) * rng.choice([-1, 1], (rows, 1, 1))
    corners = rng.choice([-1, 1], (rows, 4))
    drawn = np.where(rng.random((rows, 1)) < 0.5, axes[np.arange(rows), rng.integers(0, 4, rows)], corners)
    return torch.from_numpy(drawn * (rng.random((rows, 1)) < 0.9)).float()


def test_expansion_equals_the_formula_and_ties_are_taken_by_gallery_order_whatever_the_block(monkeypatch):
    for seed in range(80):
        rng = np.random.default_rng(seed)
        queries, images, width = rng.integers(1, (13, 40, 10))
        k, alpha = int(rng.integers(1, 36)), (0.0, 0.5, 1.0, 3.0)[seed % 4]
        monkeypatch.setattr(expansion, "BLOCK_BYTES", (1, 300, 1 << 20)[seed % 3])
        assert_expanded(normal(queries, width, seed), normal(images, width, seed + 1), k, alpha)
        assert_expanded(coarse(queries, seed), coarse(images, seed + 1), min(k, 12), alpha)


def test_bad_input_is_refused_by_name():
    query, gallery = normal(5, 8), normal(30, 8, 1)
    broken = query.clone()
    broken[0, 1] = broken[3, 0] = np.nan
    broken[3, 7] = np.inf
    for run, name in (
        (lambda: expand_queries(broken, gallery), "2 of 5 query"),
        (lambda: expand_queries(query, broken), "2 of 5 gallery"),
        (lambda: augment_gallery(broken), "2 of 5 gallery"),
        (lambda: expand_queries(query[:, :7], gallery), "query .*gallery"),
        (lambda: expand_queries(query[0], gallery), "query .*gallery"),
        (lambda: augment_gallery(torch.zeros(2, 3, 4)), "gallery"),
        *((lambda k=k: expand_queries(query, gallery, k=k), "^k must") for k in (0, -1, 2.5)),
        *((lambda a=a: augment_gallery(gallery, alpha=a), "^alpha must") for a in (-0.1, np.nan)),
    ):
        with pytest.raises(ValueError, match=name):
            run()


def test_expansion_raises_the_scores_of_market1501(market_arrays):
    kept = market_arrays["gp"] != -1
    query, gallery = (torch.from_numpy(x) for x in (market_arrays["qf"][::8], market_arrays["gf"][kept]))
    ids = [market_arrays[name] for name in ("qp", "gp", "qc", "gc")]
    ids = (ids[0][::8], ids[1][kept], ids[2][::8], ids[3][kept])
    plain, expanded = evaluate(query, gallery, *ids), evaluate(expand_queries(query, gallery), gallery, *ids)
    assert expanded.mAP > plain.mAP + 0.04
    assert expanded.rank(1) > plain.rank(1)
