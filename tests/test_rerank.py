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

SOME = settings(max_examples=60, deadline=None, derandomize=True)


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


def assert_equals_reference(features, queries: int, block_bytes: int | None = None, **parameters) -> None:
    found = reranked(features, queries, block_bytes=block_bytes, **parameters)
    expected = reference.k_reciprocal(features.numpy(), queries, **parameters)
    assert found.dtype == torch.float32
    assert found.shape == (queries, len(features) - queries)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


@SOME
@given(
    rows=st.integers(5, 120), share=st.floats(0, 1), number=st.integers(1, 8),
    width=st.sampled_from((1, 2, 6, 12, 40)), k1=st.integers(1, 30), k2=st.integers(1, 12),
    lambda_value=st.sampled_from((0.0, 0.3, 0.5, 1.0)), block_bytes=st.sampled_from((None, 1, 3000, 40_000)),
    offset=st.sampled_from((0, 50)), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_equals_the_dense_formulas_for_blocks_of_any_size(
    rows, share, number, width, k1, k2, lambda_value, block_bytes, offset, seed
):
    features = clusters(rows, width, number, seed) + offset
    assume(reference.neighbours_are_clear(features, k1, k2))
    queries = min(max(1, int(share * rows)), rows - 1)
    assert_equals_reference(features, queries, block_bytes, k1=k1, k2=k2, lambda_value=lambda_value)


def test_special_sizes_equal_the_dense_formulas():
    cases = [(120, 40, 20, 6, 6, None)]  # the default parameters
    cases += [(100, 30, k1, 2, 4, None) for k1 in (1, 2, 3, 5, 7, 11, 15, 19)]  # k1 / 2 rounds half to even, as NumPy
    cases += [(12, 4, k1, k2, 6, None) for k1 in (11, 12, 13, 40) for k2 in (1, 6, 12, 40)]  # more than images
    cases += [(q + g, q, 5, 3, 6, None) for q, g in ((1, 1), (1, 30), (30, 1), (2, 3))]
    cases += [(q + g, q, 9, 4, 7, 1) for q in (1, 15, 16, 17, 33) for g in (1, 16, 31, 65)]  # tiles of 16 rows
    checked = 0
    for rows, queries, k1, k2, width, block_bytes in cases:
        features = clusters(rows, width, seed=rows + queries)
        if reference.neighbours_are_clear(features, k1, k2):
            checked += 1
            assert_equals_reference(features, queries, block_bytes, k1=k1, k2=k2)
    assert checked > 0.8 * len(cases)


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
    checked = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows, k1, k2 = rng.integers(5, 80), rng.integers(1, 20), rng.integers(1, 8)
        unit = torch.nn.functional.normalize(clusters(rows, 2 + seed % 10, 5, seed).double())
        if reference.neighbours_are_clear(unit, k1, k2):
            checked += 1
            queries = int(rng.integers(1, rows))
            features = (unit * torch.from_numpy(2.0 ** rng.integers(-40, 41, (rows, 1)))).float()
            expected = reference.k_reciprocal(unit, queries, k1, k2)
            found = reranked(features, queries, k1, k2, metric="cosine", block_bytes=(None, 1)[seed % 2])
            np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)
    assert checked > 20


def test_bad_input_is_refused():
    q, g = clusters(5), clusters(9)
    refused = [{"k1": 0}, {"k2": 0}, {"lambda_value": -0.1}, {"lambda_value": 1.1}, {"metric": "manhattan"}]
    refused += [{name: x} for name in ("k1", "k2", "lambda_value") for x in (2.5, np.nan, "6")]
    for parameters in refused:
        with pytest.raises(ValueError, match=str(next(iter(parameters.values())))):
            k_reciprocal(q, g, **parameters)
    for grid in (([3, 0], [2], [0.3]), ([3], [2, 0], [0.3]), ([3], [2], [0.3, 1.5]), ([], [1], [0.3])):
        with pytest.raises(ValueError, match="k1"):
            next(k_reciprocal_grid(q, g, *grid))
    broken = g.clone()
    broken[3, 0] = broken[8, 5] = np.nan
    for query, gallery, words in (
        (q[:, :3], g, "features must be"),
        (q, g.long(), "features must be"),
        (q[:0], g[:0], "neither"),
        (q, broken, "2 of 9 gallery features"),
        (q * 1e20, g * 1e20, "too large"),
    ):
        with pytest.raises(ValueError, match=words):
            k_reciprocal(query, gallery)
    assert k_reciprocal(q[:0], g).shape == (0, 9) and k_reciprocal(q, g[:0]).shape == (5, 0)


# ---- real features: Market-1501 by a published OSNet x0.25


def market_part(arrays: dict, queries: int, images: int, identities: int, seed: int) -> dict:
    """All gallery images of some random identities, filled up with others, and queries of those identities."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.unique(arrays["qp"]))[:identities]
    q = rng.permutation(np.flatnonzero(np.isin(arrays["qp"], chosen)))[:queries]
    mates = rng.permutation(np.flatnonzero(np.isin(arrays["gp"], chosen)))
    others = rng.permutation(np.flatnonzero(~np.isin(arrays["gp"], [-1, *chosen])))
    g = np.concatenate([mates, others])[:images]
    ids = (arrays["qp"][q], arrays["gp"][g], arrays["qc"][q], arrays["gc"][g])
    return {"query": torch.from_numpy(arrays["qf"][q]), "gallery": torch.from_numpy(arrays["gf"][g]), "ids": ids}


def test_market1501_scores_of_clear_neighbours_are_those_of_the_dense_formulas(market_arrays):
    part = market_part(market_arrays, 60, 500, 20, 1)
    for metric, k1, k2 in (("euclidean", 20, 6), ("cosine", 20, 6), ("cosine", 7, 3)):
        rows = torch.cat([part["query"], part["gallery"]]).double()
        if metric == "cosine":
            rows = torch.nn.functional.normalize(rows)
        assert reference.neighbours_are_clear(rows, k1, k2, gap=1e-6)
        expected = reference.k_reciprocal(rows, 60, k1, k2)
        features = torch.cat([part["query"], part["gallery"]])
        for block_bytes in (None, 500_000):
            found = reranked(features, 60, k1, k2, metric=metric, block_bytes=block_bytes)
            np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)
            scores, wanted = evaluate_distance(found, *part["ids"]), reference.evaluation(expected, *part["ids"])
            reference.assert_same_scores(scores, wanted, 1e-5)


@pytest.mark.slow
def test_the_whole_of_market1501_scores_as_dense_float64_matrices_say(market_arrays):
    # The figures are those of the dense formulas in float64, which take 13 GB: too much for a test.
    kept = market_arrays["gp"] != -1
    query, gallery = (torch.from_numpy(x) for x in (market_arrays["qf"], market_arrays["gf"][kept]))
    ids = (market_arrays["qp"], market_arrays["gp"][kept], market_arrays["qc"], market_arrays["gc"][kept])
    for metric, mAP in (("euclidean", 0.89259964), ("cosine", 0.89739206)):
        assert evaluate_distance(k_reciprocal(query, gallery, metric=metric), *ids).mAP == pytest.approx(mAP, abs=1e-6)
