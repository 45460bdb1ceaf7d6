"""Scores against a stable full sort of every query, ties, odd inputs, and the exact scores of real features."""

from contextlib import contextmanager

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import distance as distances
from utils import metrics, roc
from utils.distance import pairwise_distance
from utils.metrics import evaluate, evaluate_distance, ranked_order

SOME = settings(max_examples=60, deadline=None, derandomize=True)
PATHS = settings(SOME, max_examples=40)  # for each kind of input
METRICS = ("euclidean", "cosine")
CPU = torch.profiler.ProfilerActivity.CPU


@pytest.fixture(scope="module")
def market(market_arrays) -> dict:
    arrays = market_arrays
    kept = arrays["gp"] != -1
    ids = (arrays["qp"], arrays["gp"][kept], arrays["qc"], arrays["gc"][kept])
    return {"qf": torch.from_numpy(arrays["qf"]), "gf": torch.from_numpy(arrays["gf"][kept]), "ids": ids}


@st.composite
def retrievals(draw):
    """(random generator, Q, G, ids): few identities and cameras, so that every kind of query comes up."""
    queries, images = draw(st.integers(1, 10)), draw(st.integers(1, 40))
    identities, cameras = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = tuple(rng.integers(0, top, n) for top in (identities, cameras) for n in (queries, images))
    return rng, queries, images, ids


def simple(queries: int = 4, images: int = 20, width: int = 6, seed: int = 0):
    """Random features of which every query has matches: two identities, queries under camera 0, gallery under 1."""
    rng = np.random.default_rng(seed)
    features = [torch.from_numpy(rng.normal(size=(n, width)).astype(np.float32)) for n in (queries, images)]
    ids = (np.arange(queries) % 2, np.arange(images) % 2, np.zeros(queries, int), np.ones(images, int))
    return *features, ids


def assert_same(scores, expected, tolerance: float = 1e-8) -> None:
    assert scores.num_valid_queries == expected.num_valid_queries
    assert scores.mAP == pytest.approx(expected.mAP, abs=tolerance)
    assert scores.mINP == pytest.approx(expected.mINP, abs=tolerance)
    np.testing.assert_allclose(scores.cmc, expected.cmc, rtol=0, atol=tolerance)
    np.testing.assert_allclose(scores.ap, expected.ap, rtol=0, atol=tolerance)  # NaN equals NaN only


def assert_agree(score, distance, ids, max_rank: int) -> None:
    """`score()` gives what the reference gives on this distance matrix, or the error where nothing can be scored."""
    expected = reference.evaluation(distance, *ids, max_rank)
    if expected.num_valid_queries == 0:
        with pytest.raises(ValueError, match="no query has a match"):
            score()
    else:
        assert_same(score(), expected)


# ---- distances


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_those_of_the_definition_and_float32(metric):
    query, gallery, _ = simple(width=16)
    q, g = query.double(), gallery.double()
    distance = pairwise_distance(query, gallery, metric)
    assert distance.shape == (4, 20)
    assert distance.dtype == torch.float32
    for i in range(4):
        for j in range(20):
            if metric == "cosine":
                expected = 1 - float(q[i] @ g[j] / (q[i].norm() * g[j].norm()))
            else:
                expected = float((q[i] - g[j]).norm())
            assert float(distance[i, j]) == pytest.approx(expected, abs=2e-6)


def test_a_zero_row_is_at_cosine_distance_1_of_everything():
    query, gallery, _ = simple()
    assert torch.equal(pairwise_distance(torch.zeros_like(query), gallery, "cosine"), torch.ones(4, 20))


def test_equal_rows_of_whole_numbers_are_at_euclidean_distance_0():
    rows = torch.tensor([[3.0, -7.0, 11.0], [0.0, 0.0, 0.0], [100.0, 5.0, 1.0]])
    assert torch.equal(pairwise_distance(rows, rows, "euclidean").diagonal(), torch.zeros(3))


@pytest.mark.parametrize("offset", [0, 30])
def test_equal_real_valued_rows_are_nearly_at_euclidean_distance_0(offset):
    rows = offset + torch.randn(200, 33, generator=torch.Generator().manual_seed(0))
    distance = pairwise_distance(rows, rows, "euclidean")  # of squares that may come out below 0
    assert distance.isfinite().all()
    assert float(distance.diagonal().max()) < 1e-3 * float(rows.norm(dim=1).max())


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_float32_under_autocast_too(metric):
    query, gallery, _ = simple(width=64)
    expected = pairwise_distance(query, gallery, metric)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = pairwise_distance(query, gallery, metric)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_a_lower_precision_of_matrix_products_is_put_aside_and_kept(metric):
    query, gallery, ids = simple(100, 200, 512)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        expected = pairwise_distance(query, gallery, metric), evaluate(query, gallery, *ids, metric=metric)
        torch.set_float32_matmul_precision("medium")  # bfloat16, where the processor has it
        medium = [x.matmul.fp32_precision for x in (torch.backends.cuda, torch.backends.mkldnn)]
        assert torch.equal(pairwise_distance(query, gallery, metric), expected[0])
        assert_same(evaluate(query, gallery, *ids, metric=metric), expected[1], 0)
        with pytest.raises(ValueError, match="no query has a match"):
            evaluate(query, gallery, ids[0], ids[1] + 10, *ids[2:], metric=metric)
        assert [x.matmul.fp32_precision for x in (torch.backends.cuda, torch.backends.mkldnn)] == medium
    finally:
        torch.set_float32_matmul_precision(before)


# ---- against the reference


@SOME
@given(retrievals(), st.sampled_from(METRICS), st.integers(0, 4), st.integers(1, 3), st.sampled_from((1, 5, 50)))
def test_scores_equal_a_stable_sort_with_ties_and_duplicates(retrieval, metric, levels, width, max_rank):
    rng, queries, images, ids = retrieval
    query, gallery = (torch.from_numpy(rng.integers(0, levels + 1, (n, width))).float() for n in (queries, images))
    distance = pairwise_distance(query, gallery, metric).numpy()
    assert_agree(lambda: evaluate(query, gallery, *ids, metric=metric, max_rank=max_rank), distance, ids, max_rank)


@SOME
@given(retrievals(), st.sampled_from(METRICS), st.integers(1, 33))
def test_scores_equal_a_stable_sort_of_real_valued_features(retrieval, metric, width):
    rng, queries, images, ids = retrieval
    query, gallery = (torch.from_numpy(rng.normal(size=(n, width)).astype(np.float32)) for n in (queries, images))
    distance = pairwise_distance(query, gallery, metric).numpy()
    assert_agree(lambda: evaluate(query, gallery, *ids, metric=metric), distance, ids, 50)


@SOME
@given(retrievals(), st.sampled_from(["real", "whole", "infinite", "equal"]), st.sampled_from((np.float32, np.float64)))
def test_scores_of_a_distance_matrix_equal_a_stable_sort(retrieval, kind, dtype):
    rng, queries, images, ids = retrieval
    distance = rng.normal(size=(queries, images)).astype(dtype)
    if kind == "whole":
        distance = np.round(distance)
    elif kind == "infinite":
        distance[rng.random(distance.shape) < 0.4] = np.inf
        distance[rng.random(distance.shape) < 0.1] = -np.inf
    elif kind == "equal":
        distance[:] = 0.5
    assert_agree(lambda: evaluate_distance(torch.from_numpy(distance), *ids), distance, ids, 50)


@SOME
@given(retrievals(), st.integers(1, 4000))
def test_scores_do_not_depend_on_how_many_queries_a_block_holds(retrieval, block_bytes):
    rng, queries, images, ids = retrieval
    query, gallery = (torch.from_numpy(rng.integers(0, 6, (n, 3))).float() for n in (queries, images))
    distance = pairwise_distance(query, gallery, "euclidean")  # whole numbers: exact whatever the block
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK_BYTES", block_bytes)
        assert_agree(lambda: evaluate(query, gallery, *ids, metric="euclidean"), distance.numpy(), ids, 50)
        assert_agree(lambda: evaluate_distance(distance, *ids), distance.numpy(), ids, 50)


def test_distances_that_differ_in_float64_only_are_told_apart():
    distance = torch.tensor([[1.0 + 1e-12, 1.0]], dtype=torch.float64)
    scores = evaluate_distance(distance, [1], [2, 1], [0], [1, 1])
    assert scores.mAP == 1.0


# ---- every path: few or many rows, columns and matches at a time

FEW_OR_MANY = {  # elements of a tile, matches from which on a row is sorted, bytes of a block, bytes of a chunk
    "tile": st.sampled_from((1, 7, 64, 1 << 20)),
    "many": st.sampled_from((1, 3, 256)),
    "block": st.sampled_from((1, 500, 64 << 20)),
    "chunk": st.sampled_from((1, 100, 8 << 20)),
}


@contextmanager
def parts_of(tile: int = 1 << 20, many: int = 256, block: int = 64 << 20, chunk: int = 8 << 20):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_tile_elements", lambda device: tile)
        patch.setattr(metrics, "MANY_MATCHES", many)
        patch.setattr(metrics, "BLOCK_BYTES", block)
        patch.setattr(distances, "CHUNK_BYTES", chunk)
        yield


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "kind", ["real", "whole", "equal", "copies", "infinite", "signed zeros", "next numbers", "extremes"]
)
@PATHS
@given(retrieval=retrievals(), **FEW_OR_MANY)
def test_every_path_ranks_a_distance_matrix_as_a_stable_sort(kind, dtype, retrieval, **parts):
    rng, queries, images, ids = retrieval
    distance = of_kind(kind, rng.normal(size=(queries, images)).astype(dtype), rng).astype(dtype)
    with parts_of(**parts):
        assert_agree(lambda: evaluate_distance(torch.from_numpy(distance), *ids), distance, ids, 50)


def laid_out(rows: torch.Tensor, layout: str) -> torch.Tensor:
    """The same rows, elsewhere in memory."""
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


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@PATHS
@given(
    retrieval=retrievals(), width=st.sampled_from((1, 4, 16)), layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
    **FEW_OR_MANY,
)  # fmt: skip
def test_every_path_ranks_features_by_their_exact_distances(metric, dtype, retrieval, width, layouts, **parts):
    # Entries of 1 and -1, or small whole numbers: products and norms are exact, and many distances equal.
    rng, queries, images, ids = retrieval
    values = [-1, 1] if metric == "cosine" else [-3, -1, 0, 1, 2]
    query, gallery = (rng.choice(values, (n, width)) for n in (queries, images))
    distance = -(query @ gallery.T) if metric == "cosine" else ((query[:, None] - gallery) ** 2).sum(2)
    rows = [
        laid_out(torch.from_numpy(x).to(dtype), layout) for x, layout in zip((query, gallery), layouts, strict=True)
    ]
    with parts_of(**parts):
        assert_agree(lambda: evaluate(*rows, *ids, metric=metric), distance, ids, 50)


@SOME
@given(retrievals(), st.sets(st.sampled_from((-140, -83, -50, 0, 40, 83)), min_size=1), st.booleans(), st.booleans())
def test_the_length_of_rows_does_not_matter_to_the_cosine(retrieval, powers, zeros, half_of_it_float64):
    # From 1e-42 to 1e25: their products alone would be 0 or infinite in float32.
    rng, queries, images, ids = retrieval
    query, gallery = (rng.choice([-1, 1], (n, 16)) for n in (queries, images))
    lengths = [2.0 ** rng.choice(sorted(powers), (n, 1)) for n in (queries, images)]
    if zeros:
        lengths = [np.where(rng.random(x.shape) < 0.3, 0, x) for x in lengths]
    distance = -(query * (lengths[0] > 0)) @ (gallery * (lengths[1] > 0)).T
    rows = [torch.from_numpy((x * length).astype("f4")) for x, length in zip((query, gallery), lengths, strict=True)]
    if half_of_it_float64:
        rows[1] = rows[1].double()
    assert_agree(lambda: evaluate(*rows, *ids, metric="cosine"), distance, ids, 50)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@PATHS
@given(
    rows=st.integers(1, 6), images=st.integers(1, 80), different=st.integers(1, 6), width=st.integers(1, 70),
    layout=st.sampled_from(LAYOUTS), chunk=st.sampled_from((1, 3000, 8 << 20)), seed=st.integers(0, 2**32 - 1),
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
    q, g = query.double(), gallery.double()
    expected = torch.cdist(q, g) if metric == "euclidean" else 1 - torch.cosine_similarity(q[:, None], g, dim=2)
    torch.testing.assert_close(distance.double(), expected, rtol=0, atol=2e-3)  # the root of a small square is rough
    for number in range(different):
        of_it = distance[:, copy_of == number]
        assert torch.equal(of_it, of_it[:, :1].expand_as(of_it))


@pytest.mark.parametrize("kind", ["real", "whole", "equal", "infinite"])
@pytest.mark.parametrize("identities", [1, 2])
def test_hundreds_of_matches_of_a_query_rank_as_in_a_stable_sort(kind, identities):
    # Some are ignored; query 1 has none, and lies in one tile with those that have hundreds.
    rng = np.random.default_rng(identities)
    ids = [rng.integers(0, top, n) for n, top in ((6, identities), (1500, identities), (6, 3), (1500, 3))]
    ids[0][1] = 9
    distance = of_kind(kind, rng.normal(size=(6, 1500)).astype("f4"), rng).astype("f4")
    assert_same(evaluate_distance(torch.from_numpy(distance), *ids), reference.evaluation(distance, *ids))


@SOME
@given(retrievals(), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=8, max_size=8, unique=True), st.booleans())
def test_ids_may_be_any_64_bit_numbers(retrieval, names, as_lists):
    rng, queries, images, ids = retrieval
    distance = rng.normal(size=(queries, images))
    named = tuple(np.array(names)[x] for x in ids)
    given_ids = tuple(x.tolist() for x in named) if as_lists else named
    assert_agree(lambda: evaluate_distance(torch.from_numpy(distance), *given_ids), distance, ids, 50)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("queries", "images", "width"), [(1, 1, 1), (1, 9, 3), (9, 1, 3), (5, 9, 1), (1, 300, 1)])
def test_one_query_image_or_dimension_is_enough(metric, queries, images, width):
    rng = np.random.default_rng(4)
    query, gallery = (torch.from_numpy(rng.integers(-9, 9, (n, width))).float() for n in (queries, images))
    ids = (np.zeros(queries, int), np.arange(images) % 3, np.zeros(queries, int), 1 + np.arange(images) % 2)
    expected = reference.evaluation(pairwise_distance(query, gallery, metric).numpy(), *ids)
    assert_same(evaluate(query, gallery, *ids, metric=metric), expected)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["c", "r"])
@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_features_in_a_mapped_file_score_as_those_in_memory(tmp_path, metric, mode, dtype):
    query, gallery, ids = simple(20, 300, 12)
    camids = np.arange(300) % 2  # half of the images are ignored
    stored = [x.numpy().astype(dtype) for x in (query, gallery)]
    for name, rows in zip(("query", "gallery"), stored, strict=True):
        np.save(tmp_path / f"{name}.npy", rows)
    bytes_before = (tmp_path / "gallery.npy").read_bytes()
    mapped = [torch.from_numpy(np.load(tmp_path / f"{name}.npy", mmap_mode=mode)) for name in ("query", "gallery")]
    with parts_of(block=5000, chunk=1000):
        expected = evaluate(*map(torch.from_numpy, stored), *ids[:3], camids, metric=metric, roc=True)
        found = evaluate(*mapped, *ids[:3], camids, metric=metric, roc=True)
    assert_same(found, expected, 0)
    assert (found.roc.negatives == expected.roc.negatives).all()
    assert (tmp_path / "gallery.npy").read_bytes() == bytes_before
    assert np.array_equal(mapped[1].numpy(), stored[1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        (torch.float32, "plain"),
        (torch.float32, "transposed"),
        (torch.float16, "plain"),
        (torch.float16, "every other column"),
    ],
)
def test_nothing_of_the_size_of_the_gallery_or_of_all_distances_is_made(monkeypatch, metric, dtype, layout):
    rng = np.random.default_rng(6)
    query, gallery = (laid_out(torch.from_numpy(rng.normal(size=(n, 64))).to(dtype), layout) for n in (300, 3000))
    ids = (rng.integers(0, 50, 300), rng.integers(0, 50, 3000), rng.integers(0, 4, 300), rng.integers(0, 4, 3000))
    monkeypatch.setattr(roc, "PIECE", 16_000)
    with parts_of(tile=25_000, block=100_000, chunk=100_000), reference.Allocations(query, gallery) as made:
        evaluate(query, gallery, *ids, metric=metric, roc=True)
    assert 90_000 < made.largest() < 200_000  # the gallery has at least 384,000 bytes, all distances 3,600,000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("metric", METRICS)
def test_no_operation_converts_all_features_inside_of_itself(metric, dtype):
    query, gallery = torch.randn(2, 3000, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    with parts_of(chunk=50_000), torch.profiler.profile(activities=[CPU], profile_memory=True) as profile:
        pair = distances.Pair(query, gallery, metric)
        pair.finish(pair.product(0, 3), 0)
    taken = max(event.self_cpu_memory_usage for event in profile.events())
    assert 40_000 < taken < 100_000  # the features have at least 384,000 bytes each


@pytest.mark.parametrize("many", [1, 256])
def test_no_second_distance_matrix_is_made(monkeypatch, many):
    rng = np.random.default_rng(6)
    distance = torch.from_numpy(np.round(rng.normal(size=(300, 3000)), 1).astype("f4"))  # all of them tied
    ids = (rng.integers(0, 50, 300), rng.integers(0, 50, 3000), rng.integers(0, 4, 300), rng.integers(0, 4, 3000))
    monkeypatch.setattr(roc, "PIECE", 16_000)
    with parts_of(tile=25_000, block=100_000, many=many), reference.Allocations(distance) as made:
        evaluate_distance(distance, *ids, roc=True)
    assert 90_000 < made.largest() < 200_000


def test_matches_behind_thousands_of_images_are_counted_exactly():
    rng = np.random.default_rng(8)
    distance = rng.normal(size=(3, 20_001)).astype("f4")
    gallery_pids = np.full(20_001, 7)
    gallery_pids[rng.permutation(20_001)[:12]] = np.arange(12) % 3
    ids = (np.arange(3), gallery_pids, np.zeros(3, int), np.ones(20_001, int))
    assert_same(evaluate_distance(torch.from_numpy(distance), *ids), reference.evaluation(distance, *ids), 1e-12)


def test_the_ranked_list_leaves_out_the_same_identity_and_camera_and_keeps_gallery_order():
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 30, 300):
        for levels in (1, 4, 1000):  # all equal, many ties, few ties
            distance = rng.integers(0, levels, size).astype("f4")
            pids, camids = rng.integers(0, 4, size), rng.integers(0, 3, size)
            expected = reference.ranked_order(distance, 1, 2, pids, camids)
            assert ranked_order(distance, 1, 2, pids, camids).tolist() == expected


# ---- cases worked out by hand


def test_a_ranked_list_worked_out_by_hand():
    #            ignored  wrong  match  wrong  match  ignored  wrong
    distance = [[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]
    gallery_pids, gallery_camids = [7, 1, 7, 2, 7, 7, 3], [0, 0, 1, 1, 2, 0, 0]
    scores = evaluate_distance(torch.tensor(distance), [7], gallery_pids, [0], gallery_camids, max_rank=3)
    assert scores.mAP == pytest.approx((1 / 2 + 2 / 4) / 2)  # without the two ignored images: ranks 2 and 4
    assert scores.mINP == pytest.approx(2 / 4)
    assert scores.cmc.tolist() == [0.0, 1.0, 1.0]
    assert (scores.rank(1), scores.rank(2)) == (0.0, 1.0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("place", [0, 4, 9])
def test_equal_features_score_only_what_the_gallery_order_gives(metric, place):
    gallery_pids = [5] * 10
    gallery_pids[place] = 1
    scores = evaluate(torch.ones(1, 4), torch.ones(10, 4), [1], gallery_pids, [0], [1] * 10, metric=metric)
    assert scores.mAP == pytest.approx(1 / (place + 1))
    assert scores.mINP == pytest.approx(1 / (place + 1))
    assert scores.cmc.tolist() == [0.0] * place + [1.0] * (50 - place)


def test_features_that_say_nothing_score_as_chance_would():
    rng = np.random.default_rng(0)
    ids = (rng.integers(0, 20, 50), rng.integers(0, 20, 400), np.zeros(50, int), np.ones(400, int))
    scores = evaluate(torch.ones(50, 8), torch.ones(400, 8), *ids)
    assert scores.mAP < 0.12  # one image in twenty is a match


def test_a_query_without_a_match_is_nan_and_not_counted():
    distance = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    # identity 9 is not in the gallery; identity 4 is, but only under the query's own camera
    scores = evaluate_distance(distance, [1, 9, 4], [2, 1, 4], [0, 0, 0], [1, 1, 0])
    assert scores.num_valid_queries == 1
    assert scores.ap[0] == 0.5
    assert np.isnan(scores.ap[1:]).all()
    assert scores.ap.shape == (3,)
    assert (scores.mAP, scores.mINP) == (0.5, 0.5)
    assert scores.cmc[:3].tolist() == [0.0, 1.0, 1.0]


def test_one_image_an_identity_gives_ap_one_over_rank():
    rng = np.random.default_rng(3)
    distance = rng.random((12, 12))
    pids = np.arange(12)
    scores = evaluate_distance(torch.from_numpy(distance), pids, pids, np.zeros(12, int), np.ones(12, int))
    ranks = (distance < distance.diagonal()[:, None]).sum(1) + 1
    np.testing.assert_allclose(scores.ap, 1 / ranks)
    assert scores.mINP == pytest.approx(scores.mAP)


def test_the_same_camera_hides_the_same_identity_only():
    # the nearest image is of another identity under the query's camera: it must count as a miss
    scores = evaluate_distance(torch.tensor([[0.1, 0.2]]), [1], [2, 1], [0], [0, 1])
    assert scores.mAP == 0.5


def test_a_perfect_ranking_scores_1():
    gallery_pids = np.repeat([1, 2, 3], 4)
    distance = (np.array([1, 2, 3])[:, None] != gallery_pids).astype(np.float32)
    scores = evaluate_distance(torch.from_numpy(distance), [1, 2, 3], gallery_pids, [0] * 3, [1] * 12)
    assert (scores.mAP, scores.mINP, scores.num_valid_queries) == (1.0, 1.0, 3)
    assert (scores.cmc == 1).all()


@pytest.mark.parametrize("max_rank", [1, 20, 21, 1000])
def test_the_curve_has_max_rank_entries_however_small_the_gallery(max_rank):
    query, gallery, ids = simple()
    scores = evaluate(query, gallery, *ids, max_rank=max_rank)
    expected = reference.evaluation(pairwise_distance(query, gallery).numpy(), *ids, max_rank)
    assert scores.cmc.shape == (max_rank,)
    assert_same(scores, expected)


# ---- kinds of input


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_score_as_their_float32_values(metric, dtype):
    query, gallery, ids = simple(8, 60)
    query, gallery = query.to(dtype), gallery.to(dtype)
    expected = evaluate(query.float(), gallery.float(), *ids, metric=metric)
    assert_same(evaluate(query, gallery, *ids, metric=metric), expected, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.int16])
def test_distance_matrices_of_other_types_score_as_their_values(dtype):
    rng = np.random.default_rng(1)
    distance = torch.from_numpy(rng.normal(scale=9, size=(5, 30))).to(dtype)
    _, _, ids = simple(5, 30)
    expected = reference.evaluation(distance.double().numpy(), *ids)
    assert_same(evaluate_distance(distance, *ids), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_non_contiguous_features_score_alike(metric):
    query, gallery, ids = simple(6, 40)
    expected = evaluate(query, gallery, *ids, metric=metric)
    wide = torch.full((40, 12), 99.0)
    wide[:, ::2] = gallery
    transposed = query.T.contiguous().T
    assert not transposed.is_contiguous() and not wide[:, ::2].is_contiguous()
    assert_same(evaluate(transposed, wide[:, ::2], *ids, metric=metric), expected, 1e-6)


def test_non_contiguous_distances_score_alike():
    rng = np.random.default_rng(2)
    distance = torch.from_numpy(rng.normal(size=(6, 40)))
    _, _, ids = simple(6, 40)
    expected = reference.evaluation(distance.numpy(), *ids)
    assert_same(evaluate_distance(distance.T.contiguous().T, *ids), expected)
    one_row = distance[:1].expand(6, 40)
    assert_same(evaluate_distance(one_row, *ids), reference.evaluation(one_row.numpy(), *ids))


@pytest.mark.parametrize(
    "convert",
    [
        list,
        lambda x: x.tolist(),
        torch.from_numpy,
        lambda x: x.astype(np.int32),
        lambda x: x.astype(np.uint8),
        lambda x: torch.from_numpy(x).int(),
        lambda x: np.repeat(x, 2)[::2],
        lambda x: x[::-1].copy()[::-1],
    ],
    ids=["list", "ints", "tensor", "int32", "uint8", "int32 tensor", "strided", "reversed view"],
)
def test_ids_may_be_any_integer_array_list_or_tensor(convert):
    query, gallery, ids = simple()
    expected = evaluate(query, gallery, *ids)
    assert_same(evaluate(query, gallery, *(convert(x) for x in ids)), expected, 0)


def test_ids_of_different_integer_types_can_be_mixed():
    query, gallery, ids = simple()
    mixed = (ids[0].astype(np.int16), ids[1].tolist(), torch.from_numpy(ids[2]), ids[3].astype(np.uint8))
    assert_same(evaluate(query, gallery, *mixed), evaluate(query, gallery, *ids), 0)


def test_features_that_still_require_a_gradient_are_scored():
    query, gallery, ids = simple()
    expected = evaluate(query, gallery, *ids)
    assert_same(evaluate(query.clone().requires_grad_(), gallery.clone().requires_grad_(), *ids), expected, 0)


def test_the_inputs_are_left_as_they_were():
    query, gallery, ids = simple()
    distance = pairwise_distance(query, gallery)
    before = [x.clone() for x in (query, gallery, distance)]
    camids = np.array([0, 1] * 10)  # with ignored images, whose distances are masked inside
    for metric in METRICS:
        evaluate(query, gallery, *ids[:3], camids, metric=metric)
    evaluate_distance(distance, *ids[:3], camids)
    evaluate_distance(distance.numpy(), *ids[:3], camids)
    for now, then in zip((query, gallery, distance), before, strict=True):
        assert torch.equal(now, then)


def test_scores_under_autocast_are_those_without():
    query, gallery, ids = simple(10, 200, 32)
    expected = evaluate(query, gallery, *ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = evaluate(query, gallery, *ids)
    assert_same(scores, expected)


# ---- errors


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["query", "gallery"])
def test_features_that_are_not_finite_are_refused_and_counted(name, value):
    query, gallery, ids = simple()
    broken = query if name == "query" else gallery
    broken[0, 1] = broken[2, 0] = broken[2, 3] = value
    with pytest.raises(ValueError, match=f"2 of {len(broken)} {name} features"):
        evaluate(query, gallery, *ids)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("scale", "dtype"), [(1e20, torch.float32), (1e100, torch.float64)], ids=["1e20", "1e100"])
def test_features_too_large_to_square_are_refused_or_scored_rightly(metric, scale, dtype):
    query, gallery, ids = simple(6, 30, 8)
    expected = evaluate(query, gallery, *ids, metric=metric)
    try:
        scores = evaluate(query.to(dtype) * scale, gallery.to(dtype) * scale, *ids, metric=metric)
    except ValueError:
        return
    assert_same(scores, expected, 1e-6)


def test_nan_distances_are_refused_and_counted():
    distance = torch.zeros(4, 20)
    distance[0, 3] = distance[2, 5] = distance[2, 6] = np.nan
    with pytest.raises(ValueError, match="3 of 80"):
        evaluate_distance(distance, *simple()[2])


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize(
    "damage",
    [lambda x: x[:-1], lambda x: np.append(x, 0), lambda x: x[:, None], lambda x: x.astype(float), lambda x: x[0]],
    ids=["too few", "too many", "2-d", "floats", "a number"],
)
def test_ids_of_a_wrong_length_shape_or_type_are_refused_by_name(position, damage):
    query, gallery, ids = simple()
    name = ("query_pids", "gallery_pids", "query_camids", "gallery_camids")[position]
    damaged = [damage(x) if i == position else x for i, x in enumerate(ids)]
    with pytest.raises(ValueError, match=name):
        evaluate(query, gallery, *damaged)
    with pytest.raises(ValueError, match=name):
        evaluate_distance(torch.zeros(4, 20), *damaged)


@pytest.mark.parametrize("damage", [lambda x: x.astype(str).tolist(), lambda x: x.astype(str)], ids=["list", "array"])
def test_ids_that_are_texts_are_refused_by_name(damage):
    query, gallery, ids = simple()
    with pytest.raises(ValueError, match="query_pids"):
        evaluate(query, gallery, damage(ids[0]), *ids[1:])


def test_nothing_to_score_is_an_error():
    query, gallery, ids = simple()
    with pytest.raises(ValueError, match="no query has a match"):
        evaluate(query, gallery, ids[0], ids[1] + 10, *ids[2:])  # no identity in common
    with pytest.raises(ValueError, match="no query has a match"):
        evaluate(query, gallery, *ids[:2], ids[2], np.zeros(20, int))  # all under one camera
    with pytest.raises(ValueError, match="no query has a match"):
        evaluate(query, gallery[:0], ids[0], np.zeros(0, int), ids[2], np.zeros(0, int))  # an empty gallery
    with pytest.raises(ValueError, match="no query has a match"):
        evaluate(query[:0], gallery, np.zeros(0, int), ids[1], np.zeros(0, int), ids[3])  # no queries
    for rows, columns in ((0, 20), (4, 0), (0, 0)):
        with pytest.raises(ValueError, match="no query has a match"):
            evaluate_distance(
                torch.zeros(rows, columns), ids[0][:rows], ids[1][:columns], ids[2][:rows], ids[3][:columns]
            )


def test_features_and_distances_of_a_wrong_shape_are_refused():
    query, gallery, ids = simple()
    for q, g in ((query[:, :5], gallery), (query[None], gallery), (query[0], gallery), (query, gallery[0])):
        with pytest.raises(ValueError, match=r"must be \(Q, D\) and \(G, D\)"):
            evaluate(q, g, *ids)
        with pytest.raises(ValueError, match=r"must be \(Q, D\) and \(G, D\)"):
            pairwise_distance(q, g)
    for distance in (torch.zeros(80), torch.zeros(4, 20, 1)):
        with pytest.raises(ValueError, match=r"must be \(Q, G\)"):
            evaluate_distance(distance, *ids)


@pytest.mark.parametrize("max_rank", [0, -1])
def test_a_curve_without_ranks_is_refused(max_rank):
    query, gallery, ids = simple()
    with pytest.raises(ValueError, match=f"max_rank.*{max_rank}"):
        evaluate(query, gallery, *ids, max_rank=max_rank)
    with pytest.raises(ValueError, match=f"max_rank.*{max_rank}"):
        evaluate_distance(torch.zeros(4, 20), *ids, max_rank=max_rank)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_features_that_are_no_floating_point_numbers_are_refused_by_name(dtype):
    query, gallery, ids = simple()
    with pytest.raises(ValueError, match="query features must be floating-point"):
        evaluate(query.to(dtype), gallery, *ids)
    with pytest.raises(ValueError, match="gallery features must be floating-point"):
        evaluate(query, gallery.to(dtype), *ids)


def test_an_unknown_metric_is_refused_with_the_known_ones():
    query, gallery, ids = simple()
    with pytest.raises(ValueError, match=r"manhattan.*cosine.*euclidean"):
        evaluate(query, gallery, *ids, metric="manhattan")


# ---- real features: Market-1501 by a published OSNet x0.25


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("euclidean", (74.94, 37.00, 91.18, 96.62, 97.92)), ("cosine", (77.39, 43.73, 91.48, 96.91, 98.04))],
)
def test_market1501_scores_are_exact(market, metric, expected):
    scores = evaluate(market["qf"], market["gf"], *market["ids"], metric=metric)
    assert scores.num_valid_queries == 3368
    found = (scores.mAP, scores.mINP, scores.rank(1), scores.rank(5), scores.rank(10))
    assert tuple(round(100 * value, 2) for value in found) == expected
    assert scores.mAP == pytest.approx(scores.ap.mean(), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_market1501_ap_of_random_queries_equals_a_stable_sort(market, metric):
    chosen = np.random.default_rng(7).choice(len(market["qf"]), 40, replace=False)
    ids = (market["ids"][0][chosen], market["ids"][1], market["ids"][2][chosen], market["ids"][3])
    distance = pairwise_distance(market["qf"][chosen], market["gf"], metric).numpy()
    expected = reference.evaluation(distance, *ids)
    assert_same(evaluate(market["qf"][chosen], market["gf"], *ids, metric=metric), expected)
