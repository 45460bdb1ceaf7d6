"""Multi-query, random galleries and pairs of cameras against loops over the definitions, and on real features."""

import math

import numpy as np
import pytest
import reference
import torch
from reference import Allocations, assert_same_scores, simple

from utils import expansion
from utils.distance import pairwise_distance
from utils.expansion import augment_gallery, expand_queries
from utils.metrics import evaluate
from utils.protocols import evaluate_by_camera, evaluate_single_shot, evaluate_vehicle_id, pool_queries

METRICS = ("euclidean", "cosine")


def random_retrieval(seed: int):
    """(query, gallery, ids, metric): few identities and cameras, so that every kind of query occurs.

    Half of them hold small whole numbers: duplicates and ties, at euclidean distances that are exact in float32.
    """
    rng = np.random.default_rng(seed)
    queries, images, identities, cameras, width = rng.integers(1, (11, 41, 13, 5, 6))
    ids = tuple(rng.integers(0, top, n) for top in (identities, cameras) for n in (queries, images))
    whole = seed % 2
    features = [rng.integers(0, 3, (n, width)) if whole else rng.normal(size=(n, width)) for n in (queries, images)]
    query, gallery = (torch.from_numpy(x).float() for x in features)
    return query, gallery, ids, "euclidean" if whole else METRICS[seed // 2 % 2]


def line(*places: float) -> torch.Tensor:
    """Features (N, 1) on a line, for euclidean distances that can be read off."""
    return torch.tensor(places, dtype=torch.float32)[:, None]


def random_orders(images: int, trials: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(images, generator=generator).tolist() for _ in range(trials)]


def rank_in_drawn(distance, own: int, others: list[int]) -> int:
    """Rank of image `own` in a list sorted by distance, then by place in the gallery."""
    return sorted([own, *others], key=lambda g: (distance[g], g)).index(own) + 1


def reference_single_shot(distance, query_pids, gallery_pids, query_camids, gallery_camids, orders) -> np.ndarray:
    """(trials, Q) ranks, NaN without a match. An identity's image is the first suitable one in the trial's order."""
    ranks = np.full((len(orders), len(query_pids)), np.nan)
    for trial, order in enumerate(orders):
        for q, (pid, camera) in enumerate(zip(query_pids, query_camids, strict=True)):
            chosen = {}
            for g in order:
                if not (gallery_pids[g] == pid and gallery_camids[g] == camera):
                    chosen.setdefault(gallery_pids[g], g)
            if pid in chosen:
                own = chosen.pop(pid)
                ranks[trial, q] = rank_in_drawn(distance[q], own, list(chosen.values()))
    return ranks


def reference_vehicle_id(distance, pids, orders) -> np.ndarray:
    """(trials, N) ranks, NaN for the images that are drawn into the gallery."""
    ranks = np.full((len(orders), len(pids)), np.nan)
    for trial, order in enumerate(orders):
        chosen = {}
        for g in order:
            chosen.setdefault(pids[g], g)
        for q in set(order) - set(chosen.values()):
            others = [g for pid, g in chosen.items() if pid != pids[q]]
            ranks[trial, q] = rank_in_drawn(distance[q], chosen[pids[q]], others)
    return ranks


def assert_trials(score, ranks: np.ndarray, max_rank: int) -> None:
    """`score()` gives the scores of these ranks (trials, Q), or an error if there are none."""
    if np.isnan(ranks).all():
        with pytest.raises(ValueError, match="no query has a match"):
            score()
        return
    found = score()
    per_trial = [[float(rank) for rank in row if not math.isnan(rank)] for row in ranks]
    mAP = [sum(1 / rank for rank in row) / len(row) for row in per_trial]
    cmc = [[sum(rank <= k for rank in row) / len(row) for k in range(1, max_rank + 1)] for row in per_trial]
    assert (found.trials, found.num_valid_queries) == (len(ranks), len(per_trial[0]))
    assert found.mAP == found.mINP == pytest.approx(np.mean(mAP))
    np.testing.assert_allclose(found.cmc, np.mean(cmc, axis=0))
    if len(ranks) == 1:
        assert np.isnan(found.mAP_std) and np.isnan(found.cmc_std).all() and found.cmc_std.shape == (max_rank,)
    else:
        assert found.mAP_std == pytest.approx(np.std(mAP, ddof=1), abs=1e-12)
        np.testing.assert_allclose(found.cmc_std, np.std(cmc, axis=0, ddof=1), atol=1e-12)
    assert found.ap.shape == (ranks.shape[1],)
    for q, ap in enumerate(found.ap):
        reciprocal = [1 / rank for rank in ranks[:, q] if not math.isnan(rank)]
        assert ap == pytest.approx(np.mean(reciprocal)) if reciprocal else math.isnan(ap)


# ---- multi-query


def test_pooled_queries_equal_a_loop():
    for seed in range(60):
        query, gallery, ids, metric = random_retrieval(seed)
        query_pids, gallery_pids, query_camids, gallery_camids = ids
        q, g = query.double(), gallery.double()
        if metric == "cosine":
            q, g = (torch.nn.functional.normalize(x) for x in (q, g))
        rows = []
        for i, row in enumerate(q):
            same = (gallery_pids == query_pids[i]) & (gallery_camids == query_camids[i])
            rows.append(torch.cat([row[None], g[same]]).mean(0))
        found = pool_queries(query, gallery, *ids, metric=metric)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.stack(rows).float())
    found = pool_queries(line(0, 6), line(3), [1, 1], [1], [0, 0], [0], metric="euclidean")
    assert found.tolist() == [[1.5], [4.5]]  # queries share the gallery, but not each other
    query, gallery, ids = simple(queries=300, images=400, width=2)
    with Allocations(query, gallery) as made:
        pool_queries(query, gallery, *ids)
    assert made.largest() <= 2 * (300 + 400) * 8  # no matrix of queries and images


# ---- one random image per identity


def test_scores_of_random_galleries_equal_a_loop():
    for seed in range(80):
        query, gallery, ids, metric = random_retrieval(seed)
        trials, max_rank = 1 + seed % 4, (1, 5, 50)[seed % 3]
        options = {"metric": metric, "max_rank": max_rank, "trials": trials, "seed": seed}
        orders = random_orders(len(gallery), trials, seed)
        ranks = reference_single_shot(pairwise_distance(query, gallery, metric).numpy(), *ids, orders)
        assert_trials(lambda q=query, g=gallery, i=ids, o=options: evaluate_single_shot(q, g, *i, **o), ranks, max_rank)
        ranks = reference_vehicle_id(pairwise_distance(gallery, gallery, metric).numpy(), ids[1], orders)
        assert_trials(lambda g=gallery, i=ids, o=options: evaluate_vehicle_id(g, i[1], **o), ranks, max_rank)


# ---- pairs of cameras


def test_scores_of_pairs_of_cameras_equal_a_loop():
    for seed in range(60):
        query, gallery, ids, metric = random_retrieval(seed)
        query_pids, gallery_pids, query_camids, gallery_camids = ids
        distance = pairwise_distance(query, gallery, metric)
        expected = {}
        for a in sorted(set(query_camids.tolist())):
            for b in sorted(set(gallery_camids.tolist())):
                q, g = np.flatnonzero(query_camids == a), np.flatnonzero(gallery_camids == b)
                of_pair = (query_pids[q], gallery_pids[g], query_camids[q], gallery_camids[g])
                scores = reference.evaluation(distance.numpy()[q][:, g], *of_pair, max_rank=7)
                if scores.num_valid_queries:
                    expected[a, b] = scores
        for matrix in (None, distance):
            options = {"metric": metric, "max_rank": 7, "distance": matrix}
            if not expected:
                with pytest.raises(ValueError, match="no query has a match"):
                    evaluate_by_camera(query, gallery, *ids, **options)
                continue
            found = evaluate_by_camera(query, gallery, *ids, **options)
            assert list(found) == list(expected)
            for pair, scores in found.items():
                assert_same_scores(scores, expected[pair])
    scores = evaluate_by_camera(
        line(0, 0), line(1, 2, 0, 0), [1, 2], [2, 1, 1, 3], [4, 6], [5, 5, 4, 6], metric="euclidean"
    )
    assert {pair: value.ap.tolist() for pair, value in scores.items()} == {(4, 5): [0.5], (6, 5): [1.0]}
    assert all(type(camera) is int for pair in scores for camera in pair)


# ---- all of them


def test_bad_input_is_refused_by_name():
    query, gallery, ids = simple()
    broken = gallery.clone()
    broken[0, 1] = broken[3, 0] = np.nan
    for score in (pool_queries, evaluate_by_camera, evaluate_single_shot):
        with pytest.raises(ValueError, match="2 of 40 gallery features"):
            score(query, broken, *ids)
        for position, name in enumerate(("query_pids", "gallery_pids", "query_camids", "gallery_camids")):
            with pytest.raises(ValueError, match=name):
                score(query, gallery, *(x[:-1] if i == position else x for i, x in enumerate(ids)))
    for options in ({"trials": 0}, {"max_rank": 0}, {"metric": "manhattan"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            evaluate_single_shot(query, gallery, *ids, **options)
        with pytest.raises(ValueError, match=next(iter(options))):
            evaluate_vehicle_id(gallery, ids[1], **options)
    for score in (evaluate_by_camera, evaluate_single_shot):
        for these in ((ids[0], ids[1] + 10, *ids[2:]), (*ids[:3], ids[3] * 0)):  # no one in common, one camera
            with pytest.raises(ValueError, match="no query has a match"):
                score(query, gallery, *these)
    with pytest.raises(ValueError, match="no query has a match"):
        evaluate_vehicle_id(torch.ones(5, 3), np.arange(5))


# ---- query expansion and database-side augmentation against loops over the formulas


def slow_expansion(query, gallery, k: int, alpha: float, itself: bool) -> np.ndarray:
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
        (expand_queries(query, gallery, k, alpha), slow_expansion(query, gallery, k, alpha, itself=False)),
        (augment_gallery(gallery, k, alpha), slow_expansion(gallery, gallery, k, alpha, itself=True)),
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


def test_bad_input_of_expansions_is_refused_by_name():
    query, gallery = normal(5, 8), normal(30, 8, 1)
    broken = query.clone()
    broken[0, 1] = broken[3, 0] = np.nan
    broken[3, 7] = np.inf
    for run, name in (
        (lambda: expand_queries(broken, gallery), "2 of 5 query"),
        (lambda: augment_gallery(broken), "2 of 5 gallery"),
        (lambda: expand_queries(query[:, :7], gallery), "query .*gallery"),
        (lambda: augment_gallery(torch.zeros(2, 3, 4)), "gallery"),
        (lambda: expand_queries(query, gallery, k=2.5), "^k must"),
        (lambda: expand_queries(query, gallery, k=0), "^k must"),
        (lambda: augment_gallery(gallery, alpha=-0.1), "^alpha must"),
        (lambda: augment_gallery(gallery, alpha=np.nan), "^alpha must"),
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
