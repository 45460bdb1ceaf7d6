"""k-reciprocal re-ranking against the dense formulas of the paper."""

from itertools import product

import numpy as np
import pytest
import reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from utils import rerank
from utils.metrics import evaluate_distance
from utils.rerank import k_reciprocal, k_reciprocal_grid

SOME = settings(max_examples=120, deadline=None, derandomize=True)


def clusters(rows: int, width: int = 6, number: int = 5, seed: int = 0) -> torch.Tensor:
    """(rows, width) float32 around `number` random centers."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(number, width)) * 2
    return torch.from_numpy((centers[rng.integers(0, number, rows)] + rng.normal(size=(rows, width))).astype("f4"))


def reranked(features: torch.Tensor, queries: int, *parameters, block_bytes: int | None = None, **more) -> torch.Tensor:
    """k_reciprocal with blocks of so many bytes."""
    with pytest.MonkeyPatch.context() as patch:
        if block_bytes:
            patch.setattr(rerank, "BLOCK_BYTES", block_bytes)
        return k_reciprocal(features[:queries], features[queries:], *parameters, **more)


@SOME
@given(
    rows=st.integers(2, 120), share=st.floats(0, 1), number=st.integers(1, 8), width=st.sampled_from((1, 2, 6, 12, 40)),
    k1=st.integers(1, 45), k2=st.sampled_from((1, 2, 3, 6, 12, 40)), lambda_value=st.sampled_from((0.0, 0.3, 0.5, 1.0)),
    block_bytes=st.sampled_from((None, 1, 3000, 40_000)), offset=st.sampled_from((0, 50)),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_equals_the_dense_formulas_for_blocks_of_any_size_and_more_neighbours_than_rows(
    rows, share, number, width, k1, k2, lambda_value, block_bytes, offset, seed
):
    features = clusters(rows, width, number, seed) + offset
    assume(reference.neighbours_are_clear(features, k1, k2))
    queries = min(max(1, int(share * rows)), rows - 1)
    found = reranked(features, queries, k1, k2, lambda_value, block_bytes=block_bytes)
    expected = reference.k_reciprocal(features.numpy(), queries, k1, k2, lambda_value)
    assert found.dtype == torch.float32 and found.shape == (queries, rows - queries)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


def test_duplicates():
    # Groups of exactly k1 + 1 equal rows: whichever order equal neighbours come in, the result is the same.
    group = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 16.0]])
    features = group.repeat(6, 1)
    square = (group[:, None] - group).square().sum(-1)
    original = (square / square.max(1).values[:, None]).repeat(1, 5)
    for lambda_value in (0.0, 0.3, 1.0):
        found = k_reciprocal(features[:3], features[3:], k1=5, k2=4, lambda_value=lambda_value)
        expected = (1 - lambda_value) * (original > 0).float() + lambda_value * original
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for rows in (2, 10, 60):  # all equal
        found = k_reciprocal(torch.full((rows, 4), 3.0), torch.full((rows, 4), 3.0))
        torch.testing.assert_close(found, found[0, 0].expand(rows, rows), rtol=0, atol=1e-6)  # NaN would differ
    for spread in (0.0, 1e-7, 1e-4):  # nearly equal
        features = 1 + spread * clusters(40, seed=3)
        found = k_reciprocal(features[:10], features[10:])
        assert found.isfinite().all() and float(found.min()) > -1e-5 and float(found.max()) < 1 + 1e-5


def test_copies_rank_by_index_whatever_the_size_of_the_blocks():
    for seed, metric in ((0, "euclidean"), (1, "euclidean"), (2, "cosine")):
        rng = np.random.default_rng(seed)
        features = clusters(90, 24, 8, seed)[rng.integers(0, 30, 90)]  # two thirds are copies, in random order
        rows = torch.nn.functional.normalize(features.double()) if metric == "cosine" else features.double()
        expected = reference.k_reciprocal(rows.numpy(), 30, 7, 3)
        for block_bytes in (None, 1, 3000, 40_000):
            found = reranked(features, 30, 7, 3, block_bytes=block_bytes, metric=metric)
            np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


def test_in_addition_to_the_result_only_lists_of_neighbours_and_blocks_are_allocated(monkeypatch):
    monkeypatch.setattr(rerank, "BLOCK_BYTES", 300_000)
    for dtype, metric in ((torch.float32, "euclidean"), (torch.float16, "cosine")):
        features = clusters(1000, 256, 60).to(dtype)
        query, gallery = features[:200].clone(), features[200:].clone()
        with reference.Allocations(query, gallery) as made:
            found = k_reciprocal(query, gallery, metric=metric)
        result = 4 * found.numel()  # 0.6 MB; a matrix of all distances would have 4 MB, the gallery 0.8 MB in float32
        assert made.largest() == found.untyped_storage().nbytes() == result
        assert len({address for size, address in made.made if size > 500_000}) == 1


# ---- many parameters at once


def test_a_grid_gives_what_each_of_its_parameters_gives(monkeypatch):
    features = clusters(70, seed=21)
    grid = ([3, 100, 1], [6, 1, 80], [0.0, 0.3])
    assert all(reference.neighbours_are_clear(features, k1, k2) for k1, k2 in product(*grid[:2]))
    for queries, metric, block_bytes in ((1, "euclidean", 3000), (30, "cosine", 1 << 20)):
        monkeypatch.setattr(rerank, "BLOCK_BYTES", block_bytes)
        query, gallery = features[:queries], features[queries:]
        found = []
        for k1, k2, lambda_value, distance in k_reciprocal_grid(query, gallery, *grid, metric=metric):
            found.append((k1, k2, lambda_value))
            expected = k_reciprocal(query, gallery, k1, k2, lambda_value, metric=metric)
            torch.testing.assert_close(distance, expected, rtol=0, atol=1e-6)
        assert found == list(product(*grid))  # k1 outermost


# ---- kinds of input


def test_the_cosine_is_the_euclidean_distance_of_unit_rows():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows, k1, k2 = (int(rng.integers(low, high)) for low, high in ((5, 80), (1, 20), (1, 8)))
        unit = torch.nn.functional.normalize(clusters(rows, 2 + seed % 10, 5, seed).double())
        lengths = torch.from_numpy(2.0 ** rng.integers(-40, 41, (rows, 1)))
        expected = reranked(unit.float(), rows // 2, k1, k2)
        found = reranked((unit * lengths).float(), rows // 2, k1, k2, metric="cosine")
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_bad_input_is_refused():
    q, g = clusters(5), clusters(9)
    refused = [{"k1": 0}, {"k2": 0}, {"lambda_value": 1.1}, {"metric": "manhattan"}]
    for parameters in refused + [{name: x} for name in ("k1", "k2", "lambda_value") for x in (-0.1, np.nan, "6")]:
        with pytest.raises(ValueError, match=str(next(iter(parameters.values())))):
            k_reciprocal(q, g, **parameters)
    for grid in (([3, 0], [2], [0.3]), ([3], [2], [0.3, 1.5]), ([], [1], [0.3])):
        with pytest.raises(ValueError, match="k1"):
            next(k_reciprocal_grid(q, g, *grid))
    broken = g.clone()
    broken[3, 0] = broken[8, 5] = np.nan
    for query, gallery, words in ((q[:0], g[:0], "neither"), (q, broken, "2 of 9 gallery features")):
        with pytest.raises(ValueError, match=words):
            k_reciprocal(query, gallery)
    assert k_reciprocal(q[:0], g).shape == (0, 9) and k_reciprocal(q, g[:0]).shape == (5, 0)


# ---- real features: Market-1501 by a published OSNet x0.25


def test_market1501_scores_of_clear_neighbours_are_those_of_the_dense_formulas(market_arrays):
    people = np.unique(market_arrays["qp"])[10::40]  # 87 queries, 435 gallery images
    q, g = (np.isin(market_arrays[name], people) for name in ("qp", "gp"))
    ids = [market_arrays[name][chosen] for name, chosen in (("qp", q), ("gp", g), ("qc", q), ("gc", g))]
    features = torch.from_numpy(np.concatenate([market_arrays["qf"][q], market_arrays["gf"][g]]))
    for metric, k1, k2 in (("euclidean", 20, 6), ("cosine", 20, 6), ("cosine", 7, 3)):
        rows = features.double()
        if metric == "cosine":
            rows = torch.nn.functional.normalize(rows)
        assert reference.neighbours_are_clear(rows, k1, k2, gap=1e-6)
        expected = reference.k_reciprocal(rows, q.sum(), k1, k2)
        for block_bytes in (None, 500_000):
            found = reranked(features, q.sum(), k1, k2, metric=metric, block_bytes=block_bytes)
            np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)
            scores, wanted = evaluate_distance(found, *ids), reference.evaluation(expected, *ids)
            reference.assert_same_scores(scores, wanted, 1e-5)


@pytest.mark.slow
def test_the_whole_of_market1501_scores_as_dense_float64_matrices_say(market_arrays):
    # The figures are those of the dense formulas in float64, which take 13 GB: too much for a test.
    kept = market_arrays["gp"] != -1
    query, gallery = (torch.from_numpy(x) for x in (market_arrays["qf"], market_arrays["gf"][kept]))
    ids = (market_arrays["qp"], market_arrays["gp"][kept], market_arrays["qc"], market_arrays["gc"][kept])
    for metric, mAP in (("euclidean", 0.89259964), ("cosine", 0.89739206)):
        assert evaluate_distance(k_reciprocal(query, gallery, metric=metric), *ids).mAP == pytest.approx(mAP, abs=1e-6)
