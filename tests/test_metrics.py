"""Scores against a stable full sort of every query, ties, odd inputs, and the exact scores of real features."""

from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_same_scores, simple

from utils import distance as distances
from utils import metrics, roc
from utils.distance import pairwise_distance
from utils.metrics import evaluate, evaluate_distance, ranked_order
from utils.roc import STEPS, PairCounter

SOME = settings(max_examples=150, deadline=None, derandomize=True)
METRICS = ("euclidean", "cosine")
CPU = torch.profiler.ProfilerActivity.CPU


@st.composite
def retrievals(draw):
    """(random generator, Q, G, ids): few identities and cameras, so that every kind of query occurs."""
    queries, images = draw(st.integers(0, 10)), draw(st.integers(0, 40))
    identities, cameras = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = tuple(rng.integers(0, top, n) for top in (identities, cameras) for n in (queries, images))
    return rng, queries, images, ids


def assert_agree(score, distance, ids, max_rank: int = 50) -> None:
    """`score()` gives what the reference gives on this distance matrix, or the error if nothing can be scored."""
    expected = reference.evaluation(distance, *ids, max_rank)
    if expected.num_valid_queries == 0:
        with pytest.raises(ValueError, match="no query has a match"):
            score()
    else:
        assert_same_scores(score(), expected)


# ---- distances


def test_distances_are_those_of_the_definition_and_float32():
    query, gallery, _ = simple(width=16)
    q, g = query.double(), gallery.double()
    cosine = 1 - torch.nn.functional.cosine_similarity(q[:, None], g, dim=2)
    for metric, expected in (("cosine", cosine), ("euclidean", torch.cdist(q, g))):
        distance = pairwise_distance(query, gallery, metric)
        assert distance.shape == (6, 40) and distance.dtype == torch.float32
        torch.testing.assert_close(distance.double(), expected, rtol=0, atol=2e-6)
    zero = pairwise_distance(torch.zeros_like(query), gallery, "cosine")
    assert torch.equal(zero, torch.ones(6, 40))
    rows = torch.tensor([[3.0, -7.0, 11.0], [0.0, 0.0, 0.0], [100.0, 5.0, 1.0]])
    assert torch.equal(pairwise_distance(rows, rows, "euclidean").diagonal(), torch.zeros(3))
    for offset in (0, 30):
        rows = offset + torch.randn(200, 33, generator=torch.Generator().manual_seed(0))
        distance = pairwise_distance(rows, rows, "euclidean")  # of squares that may come out below 0
        assert distance.isfinite().all() and float(distance.diagonal().max()) < 1e-3 * float(rows.norm(dim=1).max())


def test_neither_autocast_nor_a_lower_precision_of_matrix_products_changes_anything():
    query, gallery, ids = simple(100, 200, 512)
    before = torch.get_float32_matmul_precision()
    try:
        for metric in METRICS:
            torch.set_float32_matmul_precision("highest")
            expected = pairwise_distance(query, gallery, metric), evaluate(query, gallery, *ids, metric=metric)
            torch.set_float32_matmul_precision("medium")  # bfloat16, where the processor has it
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(pairwise_distance(query, gallery, metric), expected[0])
                assert_same_scores(evaluate(query, gallery, *ids, metric=metric), expected[1], 0)
            with pytest.raises(ValueError, match="no query has a match"):
                evaluate(query, gallery, ids[0], ids[1] + 10, *ids[2:], metric=metric)
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


# ---- against the reference: few or many rows, columns and matches at a time

FEW_OR_MANY = {  # elements of a tile, bytes of a block, bytes of a chunk
    "tile": st.sampled_from((1, 7, 64, 1 << 20)),
    "block": st.sampled_from((1, 500, 64 << 20)),
    "chunk": st.sampled_from((1, 100, 8 << 20)),
}


@contextmanager
def parts_of(tile: int = 1 << 20, block: int = 64 << 20, chunk: int = 8 << 20):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "TILE_CPU", tile)
        patch.setattr(metrics, "BLOCK_BYTES", block)
        patch.setattr(distances, "CHUNK_BYTES", chunk)
        yield


KINDS = ("real", "whole", "equal", "copies", "infinite", "signed zeros", "next numbers", "extremes")


def of_kind(kind: str, distance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The distances with ties of that kind between matches, other images and ignored ones alike."""
    if kind == "whole":
        distance = np.round(distance)
    elif kind == "equal":
        distance[:] = -0.0
    elif kind == "copies":
        distance = rng.permuted(distance[:, rng.integers(0, 1 + distance.shape[1] // 3, distance.shape[1])], axis=1)
    elif kind == "infinite":
        distance = rng.choice([np.inf, -np.inf, 0.0, 1.0], distance.shape, p=[0.5, 0.2, 0.2, 0.1])
    elif kind == "signed zeros":
        distance = rng.choice([0.0, -0.0, 5e-324, -5e-324], distance.shape)  # the last two are 0 too in float32
    elif kind == "next numbers":
        distance = 1 + rng.integers(0, 4, distance.shape) * np.finfo(distance.dtype).eps
    elif kind == "extremes":
        largest = np.finfo(distance.dtype).max
        distance = rng.choice([np.inf, largest, -largest, np.finfo(distance.dtype).tiny, 0], distance.shape)
    return distance


@SOME
@given(
    kind=st.sampled_from(KINDS), dtype=st.sampled_from((np.float32, np.float64)), retrieval=retrievals(),
    max_rank=st.sampled_from((1, 5, 50, 1000)), **FEW_OR_MANY,
)  # fmt: skip
def test_a_distance_matrix_is_ranked_as_by_a_stable_sort(kind, dtype, retrieval, max_rank, **parts):
    rng, queries, images, ids = retrieval
    distance = of_kind(kind, rng.normal(size=(queries, images)).astype(dtype), rng).astype(dtype)
    with parts_of(**parts):
        matrix = torch.from_numpy(distance)
        assert_agree(lambda: evaluate_distance(matrix, *ids, max_rank=max_rank), distance, ids, max_rank)


def laid_out(rows: torch.Tensor, layout: str) -> torch.Tensor:
    """The same rows, with other strides."""
    if layout == "transposed":
        return rows.T.contiguous().T
    if layout == "every other column":
        wide = torch.full((len(rows), 2 * rows.shape[1]), 99.0, dtype=rows.dtype)
        wide[:, ::2] = rows
        return wide[:, ::2]
    if layout == "every other row":
        return torch.stack([rows, torch.full_like(rows, -99)], 1).flatten(0, 1)[::2]
    return rows


LAYOUTS = ("plain", "transposed", "every other column", "every other row")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@SOME
@given(
    metric=st.sampled_from(METRICS), dtype=st.sampled_from(DTYPES), retrieval=retrievals(),
    width=st.sampled_from((1, 4, 16)), layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2), **FEW_OR_MANY,
)  # fmt: skip
def test_features_are_ranked_by_their_exact_distances(metric, dtype, retrieval, width, layouts, **parts):
    # Entries of 1 and -1, or small whole numbers: products and norms are exact, and many distances equal.
    rng, queries, images, ids = retrieval
    values = [-1, 1] if metric == "cosine" else [-3, -1, 0, 1, 2]
    query, gallery = (rng.choice(values, (n, width)) for n in (queries, images))
    distance = -(query @ gallery.T) if metric == "cosine" else ((query[:, None] - gallery) ** 2).sum(2)
    rows = [laid_out(torch.from_numpy(x).to(dtype), y) for x, y in zip((query, gallery), layouts, strict=True)]
    with parts_of(**parts):
        assert_agree(lambda: evaluate(*rows, *ids, metric=metric), distance, ids)


@SOME
@given(
    metric=st.sampled_from(METRICS), dtype=st.sampled_from(DTYPES), rows=st.integers(1, 6), images=st.integers(1, 80),
    different=st.integers(1, 6), width=st.integers(1, 70), layout=st.sampled_from(LAYOUTS),
    chunk=st.sampled_from((1, 3000, 8 << 20)), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_equal_images_are_at_equal_distances(metric, dtype, rows, images, different, width, layout, chunk, seed):
    # Wherever they are: a matrix product may add up the last columns in another order than the others.
    rng = np.random.default_rng(seed)
    kinds = rng.normal(size=(different, 1 + width))
    kinds[1::3], kinds[2::3, 1:] = -kinds[0], np.roll(kinds[0, 1:], 1)  # of equal lengths, but other images
    kinds[:, 0] = 0
    copy_of = rng.integers(0, different, images)
    query, gallery = (torch.from_numpy(x).float() for x in (rng.normal(size=(rows, 1 + width)), kinds[copy_of]))
    gallery[:, 0] *= torch.from_numpy(rng.choice([-1.0, 1.0], images))  # -0 equals 0
    query, gallery = query.to(dtype), gallery.to(dtype)
    with parts_of(chunk=chunk):
        distance = pairwise_distance(query, laid_out(gallery, layout), metric)
    for number in range(different):
        of_it = distance[:, copy_of == number]
        assert torch.equal(of_it, of_it[:, :1].expand_as(of_it))


def test_the_ranked_list_leaves_out_the_same_identity_and_camera_and_keeps_gallery_order():
    rng = np.random.default_rng(0)
    for size, levels in product((0, 1, 2, 30, 300), (1, 4, 1000)):  # all equal, many ties, few ties
        distance = rng.integers(0, levels, size).astype("f4")
        pids, camids = rng.integers(0, 4, size), rng.integers(0, 3, size)
        expected = reference.ranked_order(distance, 1, 2, pids, camids)
        assert ranked_order(distance, 1, 2, pids, camids).tolist() == expected


# ---- memory


def test_nothing_of_the_size_of_the_gallery_or_of_all_distances_is_allocated(monkeypatch):
    rng = np.random.default_rng(6)
    ids = (rng.integers(0, 50, 30), rng.integers(0, 50, 3000), rng.integers(0, 4, 30), rng.integers(0, 4, 3000))
    monkeypatch.setattr(roc, "PIECE", 16_000)
    for metric, (dtype, layout) in product(METRICS, ((torch.float32, "transposed"), (torch.float16, "plain"))):
        query, gallery = (laid_out(torch.from_numpy(rng.normal(size=(n, 64))).to(dtype), layout) for n in (30, 3000))
        with parts_of(tile=25_000, block=100_000, chunk=100_000), reference.Allocations(query, gallery) as made:
            evaluate(query, gallery, *ids, metric=metric, roc=True)
        assert 90_000 < made.largest() < 200_000  # the gallery has at least 384,000 bytes, all distances 360,000
        with parts_of(chunk=50_000), torch.profiler.profile(activities=[CPU], profile_memory=True) as profile:
            pair = distances.Pair(query, gallery, metric)
            pair.distances(0, 3)
        assert max(event.self_cpu_memory_usage for event in profile.events()) < 100_000  # no hidden conversion
    distance = torch.from_numpy(np.round(rng.normal(size=(30, 3000)), 1).astype("f4"))  # all of them tied
    with parts_of(tile=25_000, block=100_000), reference.Allocations(distance) as made:
        evaluate_distance(distance, *ids, roc=True)
    assert 90_000 < made.largest() < 200_000


# ---- cases worked out by hand


def test_ranked_lists_worked_out_by_hand():
    #            ignored  wrong  match  wrong  match  ignored  wrong
    distance = [[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]
    gallery_pids, gallery_camids = [7, 1, 7, 2, 7, 7, 3], [0, 0, 1, 1, 2, 0, 0]
    scores = evaluate_distance(torch.tensor(distance), [7], gallery_pids, [0], gallery_camids, max_rank=3)
    assert scores.mAP == pytest.approx((1 / 2 + 2 / 4) / 2)  # without the two ignored images: ranks 2 and 4
    assert scores.mINP == pytest.approx(2 / 4)
    assert scores.cmc.tolist() == [0.0, 1.0, 1.0] and (scores.rank(1), scores.rank(2)) == (0.0, 1.0)
    # the nearest image is of another identity under the query's camera: it must count as a miss
    assert evaluate_distance(torch.tensor([[0.1, 0.2]]), [1], [2, 1], [0], [0, 1]).mAP == 0.5


# ---- errors


def test_bad_features_distances_and_ids_are_refused_by_name():
    query, gallery, ids = simple()
    for value, name in product((np.nan, np.inf), ("query", "gallery")):
        broken = {"query": query.clone(), "gallery": gallery.clone()}
        broken[name][0, 1] = broken[name][2, 0] = broken[name][2, 3] = value
        with pytest.raises(ValueError, match=f"2 of {len(broken[name])} {name} features"):
            evaluate(*broken.values(), *ids)
    for q, g in ((query[:, :5], gallery), (query[None], gallery), (query, gallery[0]), (query, gallery.long())):
        with pytest.raises(ValueError, match="features must be"):
            evaluate(q, g, *ids)
    with pytest.raises(ValueError, match="too large"):
        evaluate(query * 1e20, gallery * 1e20, *ids, metric="euclidean")
    for options in ({"metric": "manhattan"}, {"max_rank": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            evaluate(query, gallery, *ids, **options)
    distance = torch.zeros(6, 40)
    distance[0, 3] = distance[2, 5] = distance[2, 6] = np.nan
    for bad, words in ((distance, "3 of 240"), (torch.zeros(80), r"must be \(Q, G\)")):
        with pytest.raises(ValueError, match=words):
            evaluate_distance(bad, *ids)
    damages = (lambda x: x[:-1], lambda x: x[:, None], lambda x: x.astype(float), lambda x: x.astype(str))
    for position, damage in product(range(4), damages):
        name = ("query_pids", "gallery_pids", "query_camids", "gallery_camids")[position]
        damaged = [damage(x) if i == position else x for i, x in enumerate(ids)]
        with pytest.raises(ValueError, match=name):
            evaluate_distance(torch.zeros(6, 40), *damaged)


# ---- real features: Market-1501 by a published OSNet x0.25


def test_market1501_scores_are_exact(market_arrays):
    kept = market_arrays["gp"] != -1
    query, gallery = torch.from_numpy(market_arrays["qf"]), torch.from_numpy(market_arrays["gf"][kept])
    ids = (market_arrays["qp"], market_arrays["gp"][kept], market_arrays["qc"], market_arrays["gc"][kept])
    for metric, expected, mAP in (
        ("euclidean", (74.94, 37.00, 91.18, 96.62, 97.92), 0.7493693487874461),
        ("cosine", (77.39, 43.73, 91.48, 96.91, 98.04), 0.7739377362983583),
    ):
        scores = evaluate(query, gallery, *ids, metric=metric)
        assert scores.num_valid_queries == 3368
        found = (scores.mAP, scores.mINP, scores.rank(1), scores.rank(5), scores.rank(10))
        assert tuple(round(100 * value, 2) for value in found) == expected
        assert scores.mAP == pytest.approx(mAP, abs=1e-7) == pytest.approx(scores.ap.mean(), abs=1e-12)


# ---- the verification curve against all thresholds tried one by one


@SOME
@given(
    kind=st.sampled_from(KINDS), dtype=st.sampled_from((np.float32, np.float64)), retrieval=retrievals(),
    piece=st.sampled_from((1, 5, 50, 1 << 20)), most=st.sampled_from((0.0, 0.01, 0.1, 0.3, 0.5, 0.9)), **FEW_OR_MANY,
)  # fmt: skip
def test_the_curve_is_that_of_all_thresholds(kind, dtype, retrieval, piece, most, **parts):
    rng, queries, images, ids = retrieval
    distance = of_kind(kind, rng.normal(size=(queries, images)).astype(dtype), rng).astype(dtype)
    positives, negatives = reference.accepted_pairs(distance, *ids)
    matrix = torch.from_numpy(distance)
    if not positives:
        with pytest.raises(ValueError, match="no query has a match"):
            evaluate_distance(matrix, *ids, roc=True)
        return
    expected = evaluate_distance(matrix, *ids)
    with parts_of(**parts), pytest.MonkeyPatch.context() as patch:
        patch.setattr(roc, "PIECE", piece)
        patch.setattr(roc, "MAX_FPR", most)
        scores = evaluate_distance(matrix, *ids, roc=True)
        found = scores.roc
        assert found.num_negatives == len(negatives) and sorted(found.positives.tolist()) == sorted(positives)
        assert sorted(found.negatives.tolist()) == sorted(negatives)[: len(found.negatives)]
        for fpr in {0.0, *(k * most / 7 for k in range(1, 7)), most}:
            largest = reference.largest_tpr(positives, negatives, fpr)
            assert found.tpr(fpr) == pytest.approx(largest, abs=1e-12, nan_ok=True)
    assert expected.roc is None
    assert scores.mAP == pytest.approx(expected.mAP, rel=1e-12)  # counting pairs changes no score


# ---- counts at given thresholds


def test_pairs_are_counted_at_every_threshold():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        counter = PairCounter()
        thresholds = counter.thresholds.numpy()[:: STEPS // 8]
        values = np.concatenate([thresholds, np.nextafter(thresholds, np.float32(np.inf)), rng.normal(size=20)])
        values = np.append(values, [np.inf, -np.inf]).astype(np.float32)
        blocks = [[rng.choice(values, rng.integers(0, 200)) for _ in "ab"] for _ in range(3)]
        for block in blocks:
            counter.add(*map(torch.from_numpy, block))
        pairs = [np.concatenate(kind) for kind in zip(*blocks, strict=True)]
        assert counter.number.tolist() == [len(kind) for kind in pairs]
        thresholds = counter.thresholds.numpy()
        expected = np.array([[(kind <= t).sum() / max(len(kind), 1) for t in thresholds] for kind in pairs])
        np.testing.assert_allclose(counter.rates(), expected, rtol=1e-12)
        for most in (0, 0.1, 0.5, 1):
            fits = [i for i in range(len(thresholds)) if expected[1, i] <= most + 1e-12]
            assert counter.at_fpr(most) == (fits[-1] if fits else 0)
        apart = np.abs(expected[1] - (1 - expected[0]))
        assert apart[counter.equal_error()] == apart.min()
        for kind in range(2):
            reached = [i for i in range(len(thresholds)) if expected[kind, i] >= 0.5 - 1e-12]
            assert counter.quantile(kind, 0.5) == (reached[0] if reached else len(thresholds) - 1)
