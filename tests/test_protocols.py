"""Multi-query, random galleries and pairs of cameras against loops over the definitions, and on real features."""

import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Allocations

from utils import protocols
from utils.distance import pairwise_distance
from utils.metrics import Scores, evaluate
from utils.protocols import (
    TrialScores,
    evaluate_by_camera,
    evaluate_multi_query,
    evaluate_single_shot,
    evaluate_vehicle_id,
    multi_query,
)

SOME = settings(max_examples=40, deadline=None, derandomize=True)
METRICS = ("euclidean", "cosine")
WITH_FOUR_IDS = (evaluate_multi_query, evaluate_single_shot, evaluate_by_camera)


def vehicle_id_of_gallery(query, gallery, query_pids, gallery_pids, query_camids, gallery_camids, **options):
    """`evaluate_vehicle_id` with the arguments of the others."""
    return evaluate_vehicle_id(gallery, gallery_pids, **options)


WITH_TRIALS = (evaluate_single_shot, vehicle_id_of_gallery)


@st.composite
def retrievals(draw):
    """(query, gallery, ids, metric): few identities and cameras, so that every kind of query comes up.

    Half of them hold small whole numbers: duplicates and ties, at euclidean distances that are exact in float32.
    """
    queries, images = draw(st.integers(1, 10)), draw(st.integers(1, 40))
    identities, cameras, width = draw(st.integers(1, 12)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = tuple(rng.integers(0, top, n) for top in (identities, cameras) for n in (queries, images))
    whole = draw(st.booleans())
    features = [rng.integers(0, 3, (n, width)) if whole else rng.normal(size=(n, width)) for n in (queries, images)]
    query, gallery = (torch.from_numpy(x).float() for x in features)
    return query, gallery, ids, "euclidean" if whole else draw(st.sampled_from(METRICS))


def simple(queries: int = 6, images: int = 40, width: int = 5, seed: int = 0):
    """Random features of which every query has matches: three identities, queries under camera 0, gallery 0 and 1."""
    rng = np.random.default_rng(seed)
    features = [torch.from_numpy(rng.normal(size=(n, width)).astype(np.float32)) for n in (queries, images)]
    return *features, (np.arange(queries) % 3, np.arange(images) % 3, np.zeros(queries, int), np.arange(images) % 2)


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
    """(trials, Q) ranks, NaN without a match. An identity's image is the first in the trial's order that may stand."""
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
    """`score()` gives the scores of these ranks (trials, Q), or an error where there are none."""
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


def assert_same(scores: Scores, expected: Scores) -> None:
    assert scores.num_valid_queries == expected.num_valid_queries
    assert (scores.mAP, scores.mINP) == pytest.approx((expected.mAP, expected.mINP), abs=1e-8)
    np.testing.assert_allclose(scores.cmc, expected.cmc, rtol=0, atol=1e-8)
    np.testing.assert_allclose(scores.ap, expected.ap, rtol=0, atol=1e-8)  # NaN equals NaN only


def reference_multi_query(query, pool, query_pids, pool_pids, query_camids, pool_camids, how: str) -> torch.Tensor:
    """Each query with the pool's images of its identity and camera, one after another; float64 inside."""
    rows = []
    for q, row in enumerate(query):
        members = [row.double()]
        for g, image in enumerate(pool):
            if pool_pids[g] == query_pids[q] and pool_camids[g] == query_camids[q]:
                members.append(image.double())
        rows.append(sum(members) / len(members) if how == "mean" else torch.stack(members).amax(0))
    return torch.stack(rows).float()


# ---- multi-query


@SOME
@given(retrievals(), st.sampled_from(("mean", "max")))
def test_pooled_queries_equal_a_loop(retrieval, how):
    query, pool, (query_pids, pool_pids, query_camids, pool_camids), _ = retrieval
    found = multi_query(query, query_pids, query_camids, pool, pool_pids, pool_camids, how)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reference_multi_query(query, pool, *retrieval[2], how))


def test_pooled_queries_worked_out_by_hand():
    query = torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    pool = torch.tensor([[4.0, -2.0], [4.0, 6.0], [9.0, 9.0], [7.0, 7.0]])
    ids = {"query_pids": [5, 8], "query_camids": [0, 0], "pool_pids": [5, 5, 5, 6], "pool_camids": [0, 0, 1, 0]}
    assert multi_query(query, pool=pool, **ids).tolist() == [[3.0, 2.0], [1.0, 0.0]]
    assert multi_query(query, pool=pool, how="max", **ids).tolist() == [[4.0, 6.0], [1.0, 0.0]]


def test_the_largest_value_of_negative_features_is_negative():
    pool = torch.tensor([[-3.0, -1.0], [-8.0, -8.0]])
    assert multi_query(torch.tensor([[-2.0, -5.0]]), [1], [0], pool, [1, 2], [0, 0], "max").tolist() == [[-2.0, -1.0]]


def test_queries_of_one_person_under_one_camera_share_the_pool_but_not_each_other():
    found = multi_query(line(0, 6), [1, 1], [0, 0], line(3), [1], [0])
    assert found.tolist() == [[1.5], [4.5]]


def test_an_empty_pool_and_no_queries_are_fine():
    none = np.zeros(0, int)
    assert multi_query(line(2, 3), [1, 1], [0, 0], line()[:0], none, none).tolist() == [[2.0], [3.0]]
    assert multi_query(line()[:0], none, none, line(2, 3), [1, 1], [0, 0]).shape == (0, 1)


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_pooled_as_their_float32_values(dtype, how):
    query, pool, ids = simple()
    query, pool = query.to(dtype), pool.to(dtype)
    found = multi_query(query, ids[0], ids[2], pool, ids[1], ids[3], how)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reference_multi_query(query.float(), pool.float(), *ids, how))


def test_features_that_still_require_a_gradient_are_pooled_to_some_that_do_not():
    query, pool, ids = simple()
    assert not multi_query(query.requires_grad_(), ids[0], ids[2], pool.requires_grad_(), ids[1], ids[3]).requires_grad


def test_pooling_makes_no_matrix_of_queries_and_images():
    query, pool, ids = simple(queries=300, images=400, width=2)
    for how in ("mean", "max"):
        with Allocations(query, pool) as made:
            multi_query(query, ids[0], ids[2], pool, ids[1], ids[3], how)
        assert 400 * 2 * 4 <= made.largest() <= 2 * (300 + 400) * 8


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("metric", METRICS)
def test_multi_query_scores_are_those_of_the_pooled_queries(metric, how):
    query, gallery, ids = simple()
    rows = query, gallery
    if metric == "cosine":
        rows = [x / x.norm(dim=1, keepdim=True) for x in rows]
    pooled = reference_multi_query(*rows, *ids, how)
    expected = reference.evaluation(pairwise_distance(pooled, gallery, metric).numpy(), *ids, max_rank=7)
    assert_same(evaluate_multi_query(query, gallery, *ids, metric=metric, max_rank=7, how=how), expected)


# ---- one random image an identity


@SOME
@given(retrievals(), st.integers(1, 4), st.integers(0, 99), st.sampled_from((1, 5, 50)))
def test_single_shot_scores_equal_a_loop(retrieval, trials, seed, max_rank):
    query, gallery, ids, metric = retrieval
    orders = random_orders(len(gallery), trials, seed)
    ranks = reference_single_shot(pairwise_distance(query, gallery, metric).numpy(), *ids, orders)
    options = {"metric": metric, "max_rank": max_rank, "trials": trials, "seed": seed}
    assert_trials(lambda: evaluate_single_shot(query, gallery, *ids, **options), ranks, max_rank)


@SOME
@given(retrievals(), st.integers(1, 4), st.integers(0, 99), st.sampled_from((1, 5, 50)))
def test_vehicle_id_scores_equal_a_loop(retrieval, trials, seed, max_rank):
    _, features, (_, pids, _, _), metric = retrieval
    orders = random_orders(len(features), trials, seed)
    ranks = reference_vehicle_id(pairwise_distance(features, features, metric).numpy(), pids, orders)
    options = {"metric": metric, "max_rank": max_rank, "trials": trials, "seed": seed}
    assert_trials(lambda: evaluate_vehicle_id(features, pids, **options), ranks, max_rank)


def test_with_one_image_an_identity_single_shot_is_the_ordinary_protocol():
    query, gallery, _ = simple(20, 20)
    ids = (np.arange(20), np.arange(20)[::-1].copy(), np.zeros(20, int), np.arange(20) % 3)
    scores = evaluate_single_shot(query, gallery, *ids, trials=3)
    assert scores.num_valid_queries == 13  # the others' only image is under their own camera
    assert_same(scores, evaluate(query, gallery, *ids))
    assert scores.mAP_std < 1e-12 and scores.cmc_std.max() < 1e-12


def test_every_image_that_may_stand_for_an_identity_is_drawn_equally_often():
    # images of the query's person at 0 (under its own camera: never drawn), 1, 3 and 5; of two others at 2 and 4
    gallery, pids, camids = line(0, 1, 3, 5, 2, 4), [7, 7, 7, 7, 8, 9], [0, 1, 2, 2, 0, 1]
    scores = evaluate_single_shot(line(0), gallery, [7], pids, [0], camids, metric="euclidean", trials=900, seed=1)
    np.testing.assert_allclose(scores.cmc[:3], [1 / 3, 2 / 3, 1], atol=0.05)  # three standard deviations
    # for the others, too: the person's images at 0, 1, 3 and 5 stand before the match at 2 half of the time
    scores = evaluate_single_shot(line(0), gallery, [8], pids, [3], camids, metric="euclidean", trials=900, seed=1)
    np.testing.assert_allclose(scores.cmc[:2], [1 / 2, 1], atol=0.05)


def test_vehicle_id_draws_every_image_equally_often():
    # of the vehicle at 0, 1 and 10 one is drawn, and the other two look for it past the one at 4:
    # 0 is drawn: ranks 1 (of 1) and 2 (of 10); 1 is drawn: 1 (of 0) and 2 (of 10); 10 is drawn: 2 and 2
    scores = evaluate_vehicle_id(line(0, 1, 10, 4), [3, 3, 3, 9], metric="euclidean", trials=900, seed=1)
    assert (scores.num_valid_queries, scores.trials) == (2, 900)
    assert scores.cmc[0] == pytest.approx(1 / 3, abs=0.03)
    assert (scores.cmc[1:] == 1).all()
    np.testing.assert_allclose(scores.ap[:3], [3 / 4, 3 / 4, 1 / 2], atol=0.05)
    assert np.isnan(scores.ap[3])  # the only image of its vehicle is never a query


@pytest.mark.parametrize("score", WITH_TRIALS)
def test_a_seed_gives_the_same_galleries_and_another_seed_others(score):
    query, gallery, ids = simple()
    first, again, other = (score(query, gallery, *ids, seed=seed) for seed in (5, 5, 6))
    assert_same(first, again)
    assert (first.mAP_std, first.mAP) == (again.mAP_std, again.mAP)
    assert first.mAP != other.mAP
    assert first.mAP_std > 0 and first.cmc_std.max() > 0  # the trials differ, too


@pytest.mark.parametrize("score", WITH_TRIALS)
def test_the_random_state_of_the_program_is_left_alone(score):
    query, gallery, ids = simple()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    score(query, gallery, *ids)
    assert torch.equal(torch.rand(3), expected)


def test_scores_over_trials_can_stand_for_scores():
    query, gallery, ids = simple()
    scores = evaluate_single_shot(query, gallery, *ids, max_rank=4)
    assert isinstance(scores, TrialScores) and isinstance(scores, Scores)
    assert scores.rank(2) == scores.cmc[1]
    assert scores.cmc.shape == scores.cmc_std.shape == (4,)


@pytest.mark.parametrize("score", WITH_TRIALS)
def test_equal_features_score_only_what_the_gallery_order_gives(score):
    pids = np.repeat(np.arange(10), 2)
    ids = (np.arange(10), pids, np.zeros(10, int), np.tile([1, 2], 10))
    scores = score(torch.ones(10, 3), torch.ones(20, 3), *ids, trials=2)
    np.testing.assert_allclose(scores.cmc[:10], np.arange(1, 11) / 10)


@pytest.mark.parametrize("score", WITH_TRIALS)
def test_distances_are_made_in_blocks(score, monkeypatch):
    query, gallery, ids = simple(queries=40)
    expected = score(query, gallery, *ids, trials=2, metric="euclidean")
    shapes = []

    def noted(*args):
        distance = pairwise_distance(*args)
        shapes.append(distance.shape)
        return distance

    monkeypatch.setattr(protocols, "pairwise_distance", noted)
    monkeypatch.setattr(protocols, "BLOCK_BYTES", 100)
    assert_same(score(query, gallery, *ids, trials=2, metric="euclidean"), expected)
    assert all(rows == 1 or 4 * rows * columns <= 100 for rows, columns in shapes)
    assert max(columns for _, columns in shapes) <= 6  # of three identities at most two images each, never the gallery


# ---- pairs of cameras


@SOME
@given(retrievals())
def test_scores_of_pairs_of_cameras_equal_a_loop(retrieval):
    query, gallery, (query_pids, gallery_pids, query_camids, gallery_camids), metric = retrieval
    distance = pairwise_distance(query, gallery, metric).numpy()
    expected = {}
    for a in sorted(set(query_camids.tolist())):
        for b in sorted(set(gallery_camids.tolist())):
            q = [i for i, camera in enumerate(query_camids) if camera == a]
            g = [i for i, camera in enumerate(gallery_camids) if camera == b]
            ids = (query_pids[q], gallery_pids[g], query_camids[q], gallery_camids[g])
            scores = reference.evaluation(distance[q][:, g], *ids, max_rank=7)
            if scores.num_valid_queries:
                expected[a, b] = scores
    options = {"metric": metric, "max_rank": 7}
    if not expected:
        with pytest.raises(ValueError, match="no query has a match"):
            evaluate_by_camera(query, gallery, *retrieval[2], **options)
        return
    found = evaluate_by_camera(query, gallery, *retrieval[2], **options)
    assert list(found) == list(expected)
    for pair, scores in found.items():
        assert_same(scores, expected[pair])


def test_pairs_of_cameras_worked_out_by_hand():
    query_ids = {"query_pids": [1, 2], "query_camids": [4, 6]}
    gallery_ids = {"gallery_pids": [2, 1, 1, 3], "gallery_camids": [5, 5, 4, 6]}
    scores = evaluate_by_camera(line(0, 0), line(1, 2, 0, 0), **query_ids, **gallery_ids, metric="euclidean")
    assert {pair: value.ap.tolist() for pair, value in scores.items()} == {(4, 5): [0.5], (6, 5): [1.0]}
    assert all(type(camera) is int for pair in scores for camera in pair)


# ---- all of them


@pytest.mark.parametrize("score", (*WITH_FOUR_IDS, vehicle_id_of_gallery))
def test_kinds_of_input_that_score_alike(score):
    query, gallery, ids = simple()

    def values(query, gallery, ids):
        scores = score(query, gallery, *ids)
        return [x.mAP for x in scores.values()] if isinstance(scores, dict) else [scores.mAP]

    expected = pytest.approx(values(query, gallery, ids), abs=1e-8)
    wide = torch.full((40, 10), 99.0)
    wide[:, ::2] = gallery
    assert values(query.T.contiguous().T, wide[:, ::2], ids) == expected  # not contiguous
    assert values(query.clone().requires_grad_(), gallery.clone().requires_grad_(), ids) == expected
    assert values(query, gallery, [x.tolist() for x in ids]) == expected
    assert values(query, gallery, [torch.from_numpy(x).int() for x in ids]) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert values(query, gallery, ids) == expected
    half = query.half(), gallery.half()
    assert values(*half, ids) == pytest.approx(values(*(x.float() for x in half), ids), abs=1e-8)


@pytest.mark.parametrize("score", (*WITH_FOUR_IDS, vehicle_id_of_gallery))
def test_the_inputs_are_left_as_they_were(score):
    query, gallery, ids = simple()
    before = [x.clone() for x in (query, gallery)]
    ids_before = [x.copy() for x in ids]
    for metric in METRICS:
        score(query, gallery, *ids, metric=metric)
    assert torch.equal(query, before[0]) and torch.equal(gallery, before[1])
    for now, then in zip(ids, ids_before, strict=True):
        np.testing.assert_array_equal(now, then)


# ---- errors


@pytest.mark.parametrize("score", WITH_FOUR_IDS)
@pytest.mark.parametrize("name", ["query", "gallery"])
def test_features_that_are_not_finite_are_refused_and_counted(score, name):
    query, gallery, ids = simple()
    broken = query if name == "query" else gallery
    broken[0, 1] = np.nan
    broken[3, 0] = broken[3, 2] = np.inf
    with pytest.raises(ValueError, match=f"2 of {len(broken)} {name} features"):
        score(query, gallery, *ids)


def test_features_that_are_not_finite_are_refused_by_their_own_names():
    query, gallery, ids = simple()
    gallery[2, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 40 pool features"):
        multi_query(query, ids[0], ids[2], gallery, ids[1], ids[3])
    with pytest.raises(ValueError, match="1 of 40 vehicle features"):
        evaluate_vehicle_id(gallery, ids[1])


@pytest.mark.parametrize("score", WITH_FOUR_IDS)
def test_features_of_a_wrong_shape_are_refused_by_name(score):
    query, gallery, ids = simple()
    for q, g in ((query[:, :4], gallery), (query[None], gallery), (query, gallery[0])):
        with pytest.raises(ValueError, match=r"must be \(N, D\).*query \(.*gallery \("):
            score(q, g, *ids)
    with pytest.raises(ValueError, match=r"must be \(N, D\).*vehicle \(5,\)"):
        evaluate_vehicle_id(gallery[0], ids[1])


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize(
    "damage",
    [lambda x: x[:-1], lambda x: np.append(x, 0), lambda x: x[:, None], lambda x: x.astype(float), lambda x: x[0]],
    ids=["too few", "too many", "2-d", "floats", "a number"],
)
def test_ids_of_a_wrong_length_shape_or_type_are_refused_by_name(position, damage):
    query, gallery, ids = simple()
    names = ("query_pids", "gallery_pids", "query_camids", "gallery_camids")
    damaged = [damage(x) if i == position else x for i, x in enumerate(ids)]
    for score in WITH_FOUR_IDS:
        with pytest.raises(ValueError, match=f"^{names[position]} must be {(6, 40)[position % 2]} integers, not"):
            score(query, gallery, *damaged)
    with pytest.raises(ValueError, match=f"^{names[position].replace('gallery', 'pool')} must be"):
        multi_query(query, damaged[0], damaged[2], gallery, damaged[1], damaged[3])
    with pytest.raises(ValueError, match=r"^pids must be 40 integers, not"):
        evaluate_vehicle_id(gallery, damage(ids[1]))


@pytest.mark.parametrize("score", WITH_TRIALS)
@pytest.mark.parametrize(("name", "value"), [("trials", 0), ("trials", -2), ("max_rank", 0)])
def test_counts_below_1_are_refused_by_name(score, name, value):
    query, gallery, ids = simple()
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not {value}"):
        score(query, gallery, *ids, **{name: value})


@pytest.mark.parametrize("score", (*WITH_FOUR_IDS, vehicle_id_of_gallery))
def test_an_unknown_metric_is_refused(score):
    query, gallery, ids = simple()
    with pytest.raises(ValueError, match="manhattan"):
        score(query, gallery, *ids, metric="manhattan")


def test_an_unknown_way_of_pooling_is_refused():
    query, gallery, ids = simple()
    with pytest.raises(ValueError, match=r"median.*mean.*max"):
        evaluate_multi_query(query, gallery, *ids, how="median")


@pytest.mark.parametrize("score", WITH_FOUR_IDS)
def test_nothing_to_score_is_an_error(score):
    query, gallery, ids = simple()
    none = np.zeros(0, int)
    for q, g, *these in (
        (query, gallery, ids[0], ids[1] + 10, ids[2], ids[3]),  # no identity in common
        (query, gallery, ids[0], ids[1], ids[2], ids[3] * 0),  # all under one camera
        (query, gallery[:0], ids[0], none, ids[2], none),  # an empty gallery
        (query[:0], gallery, none, ids[1], none, ids[3]),  # no queries
        (query[:0], gallery[:0], none, none, none, none),
    ):
        with pytest.raises(ValueError, match="no query has a match"):
            score(q, g, *these)


def test_vehicles_of_one_image_each_are_nothing_to_score():
    for images in (5, 0):
        with pytest.raises(ValueError, match="no query has a match"):
            evaluate_vehicle_id(torch.ones(images, 3), np.arange(images))


# ---- real features: every fourth query of Market-1501


@pytest.fixture(scope="module")
def market(market_arrays):
    """(query, gallery, ids), without junk."""
    kept = market_arrays["gp"] != -1
    ids = [market_arrays[name] for name in ("qp", "gp", "qc", "gc")]
    ids = (ids[0][::4], ids[1][kept], ids[2][::4], ids[3][kept])
    return torch.from_numpy(market_arrays["qf"][::4]), torch.from_numpy(market_arrays["gf"][kept]), ids


@pytest.mark.parametrize("how", ["mean", "max"])
def test_more_images_of_the_query_raise_the_scores_of_market1501(market, how):
    query, gallery, ids = market
    single, several = evaluate(query, gallery, *ids), evaluate_multi_query(query, gallery, *ids, how=how)
    assert several.num_valid_queries == single.num_valid_queries == 842
    assert several.mAP > single.mAP + 0.05
    assert several.rank(1) > single.rank(1)


def test_one_image_an_identity_makes_the_first_hit_on_market1501_rarer(market):
    # only one of a person's images is there to be found, and it is the nearest one by chance
    query, gallery, ids = market
    scores = evaluate_single_shot(query, gallery, *ids)
    assert scores.num_valid_queries == 842
    assert 0.7 < scores.rank(1) < evaluate(query, gallery, *ids).rank(1) - 0.05
    assert 0 < scores.mAP_std < 0.02


def test_pairs_of_cameras_of_market1501_split_the_queries(market):
    query, gallery, ids = market
    scores = evaluate_by_camera(query, gallery, *ids)
    assert set(scores) == {(a, b) for a in range(1, 7) for b in range(1, 7) if a != b}
    for camera in range(1, 7):
        number = int((ids[2] == camera).sum())
        assert all(len(value.ap) == number for pair, value in scores.items() if pair[0] == camera)
