"""k-reciprocal re-ranking against the dense formulas of the paper."""

from itertools import product

import numpy as np
import pytest
import reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from utils import rerank
from utils.metrics import evaluate, evaluate_distance
from utils.neighbours import Features
from utils.rerank import k_reciprocal, k_reciprocal_grid

SOME = settings(max_examples=50, deadline=None, derandomize=True)


def clusters(rows: int, width: int = 6, number: int = 5, seed: int = 0) -> torch.Tensor:
    """(rows, width) float32 around `number` random centers."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(number, width)) * 2
    return torch.from_numpy((centers[rng.integers(0, number, rows)] + rng.normal(size=(rows, width))).astype("f4"))


def assert_equals_reference(
    features: torch.Tensor, queries: int, tolerance: float = 1e-5, block_bytes: int | None = None, **parameters
) -> None:
    found = k_reciprocal(features[:queries], features[queries:], block_bytes=block_bytes, **parameters)
    expected = reference.k_reciprocal(features.numpy(), queries, **parameters)
    assert found.dtype == torch.float32
    assert found.shape == (queries, len(features) - queries)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=tolerance)


@SOME
@given(
    rows=st.integers(5, 120),
    share=st.floats(0, 1),
    number=st.integers(1, 8),
    width=st.integers(2, 12),
    k1=st.integers(1, 30),
    k2=st.integers(1, 12),
    lambda_value=st.sampled_from((0.0, 0.3, 0.5, 1.0)),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_dense_formulas(rows, share, number, width, k1, k2, lambda_value, seed):
    features = clusters(rows, width, number, seed)
    assume(reference.neighbours_are_clear(features, k1, k2))
    queries = min(max(1, int(share * rows)), rows - 1)
    assert_equals_reference(features, queries, k1=k1, k2=k2, lambda_value=lambda_value)


def test_equals_the_dense_formulas_with_the_default_parameters():
    features = clusters(120, seed=1)
    assert reference.neighbours_are_clear(features, 20, 6)
    assert_equals_reference(features, 40)


@pytest.mark.parametrize("k1", [1, 2, 3, 5, 7, 11, 15, 19])
def test_half_of_an_odd_k1_is_rounded_to_even_as_numpy_does(k1):
    features = clusters(100, 4, seed=20)
    assert reference.neighbours_are_clear(features, k1, 2)
    assert_equals_reference(features, 30, k1=k1, k2=2)


@pytest.mark.parametrize("k1", [11, 12, 13, 40])
@pytest.mark.parametrize("k2", [1, 6, 12, 40])
def test_more_neighbours_than_images_count_as_all_of_them(k1, k2):
    features = clusters(12, seed=2)
    assert reference.neighbours_are_clear(features, k1, k2)
    assert_equals_reference(features, 4, k1=k1, k2=k2)


@pytest.mark.parametrize(("queries", "images"), [(1, 1), (1, 30), (30, 1), (2, 3)])
def test_one_query_or_one_gallery_image_is_enough(queries, images):
    features = clusters(queries + images, seed=3)
    assert reference.neighbours_are_clear(features, 5, 3)
    assert_equals_reference(features, queries, k1=5, k2=3)


def test_lambda_1_is_the_original_distance_over_the_largest_of_the_row():
    features = clusters(50, seed=4)
    original = reference.squared_distances(features)
    expected = (original / original.max(1, keepdims=True))[:20, 20:]
    found = k_reciprocal(features[:20], features[20:], lambda_value=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


def test_lambda_0_is_the_jaccard_distance_alone():
    near, far = torch.zeros(4, 3), torch.full((4, 3), 9.0)
    near, far = near + clusters(4, 3, 1, 5) * 0.01, far + clusters(4, 3, 1, 6) * 0.01
    found = k_reciprocal(torch.cat([near[:1], far[:1]]), torch.cat([near[1:], far[1:]]), k1=3, k2=1, lambda_value=0)
    expected = torch.tensor([[0.0, 0, 0, 1, 1, 1], [1.0, 1, 1, 0, 0, 0]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # two groups that share no neighbour


@pytest.mark.parametrize("lambda_value", [0.0, 0.3, 1.0])
def test_identical_images_of_a_group_are_at_0_and_share_nothing_with_other_groups(lambda_value):
    # Groups of exactly k1 + 1 equal rows: whichever order equal neighbours come in, the result is the same.
    group = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 16.0]])
    features = group.repeat(6, 1)
    found = k_reciprocal(features[:3], features[3:], k1=5, k2=4, lambda_value=lambda_value)
    square = (group[:, None] - group).square().sum(-1)
    original = (square / square.max(1).values[:, None]).repeat(1, 5)
    expected = (1 - lambda_value) * (original > 0).float() + lambda_value * original
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 10, 60])
def test_all_features_equal_prefer_nobody(rows):
    found = k_reciprocal(torch.full((rows, 4), 3.0), torch.full((rows, 4), 3.0))
    torch.testing.assert_close(found, found[0, 0].expand(rows, rows), rtol=0, atol=1e-6)  # NaN would differ


@SOME
@given(rows=st.integers(4, 60), levels=st.integers(1, 3), k1=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_duplicates_give_finite_distances_between_0_and_1(rows, levels, k1, seed):
    features = torch.from_numpy(np.random.default_rng(seed).integers(0, levels + 1, (rows, 2))).float()
    found = k_reciprocal(features[: rows // 2], features[rows // 2 :], k1=k1, k2=3)
    assert found.isfinite().all()
    assert float(found.min()) >= -1e-6
    assert float(found.max()) <= 1 + 1e-6


def test_another_gallery_order_permutes_the_columns_and_nothing_else():
    features = clusters(80, seed=7)
    assert reference.neighbours_are_clear(features, 20, 6)
    order = torch.from_numpy(np.random.default_rng(0).permutation(60))
    found = k_reciprocal(features[:20], features[20:])
    permuted = k_reciprocal(features[:20], features[20:][order])
    torch.testing.assert_close(permuted, found[:, order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("block_bytes", [1, 3000, 50000])
def test_the_size_of_the_blocks_does_not_matter(block_bytes):
    features = clusters(90, seed=8)
    assert reference.neighbours_are_clear(features, 20, 6)
    expected = k_reciprocal(features[:30], features[30:])
    found = k_reciprocal(features[:30], features[30:], block_bytes=block_bytes)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


# ---- many tiles and blocks


@SOME
@given(
    queries=st.integers(1, 70),
    images=st.integers(1, 100),
    width=st.sampled_from((1, 2, 6, 40)),
    k1=st.integers(1, 25),
    k2=st.integers(1, 10),
    block_bytes=st.sampled_from((1, 3000, 40_000)),
    seed=st.integers(0, 2**32 - 1),
)
def test_tiles_of_any_size_give_the_dense_formulas(queries, images, width, k1, k2, block_bytes, seed):
    # Tiles of 16 rows or so: a last one of every size, queries that fill less than one, one gallery row.
    features = clusters(queries + images, width, 5, seed)
    assume(reference.neighbours_are_clear(features, k1, k2))
    assert_equals_reference(features, queries, k1=k1, k2=k2, block_bytes=block_bytes)
    whole = k_reciprocal(features[:queries], features[queries:], k1, k2)
    parts = k_reciprocal(features[:queries], features[queries:], k1, k2, block_bytes=block_bytes)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("queries", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("images", [1, 16, 31, 65])
def test_tiles_that_end_with_the_queries_or_one_row_later(queries, images):
    assert Features(clusters(queries), clusters(images), "euclidean", 1).step == 16
    features = clusters(queries + images, 7, seed=31 * queries + images)
    assert reference.neighbours_are_clear(features, 9, 4)
    assert_equals_reference(features, queries, k1=9, k2=4, block_bytes=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_beside_the_result_only_lists_of_neighbours_and_blocks_are_held(dtype, metric):
    features = clusters(1500, 256, 60).to(dtype)
    query, gallery = features[:200].clone(), features[200:].clone()
    with reference.Allocations(query, gallery) as made:
        found = k_reciprocal(query, gallery, metric=metric, block_bytes=300_000)
    result = 4 * found.numel()  # 1 MB; a matrix of all distances would have 9 MB, the gallery 1.3 MB in float32
    assert made.largest() == found.untyped_storage().nbytes() == result
    assert len({address for size, address in made.made if size > 600_000}) == 1


# ---- many parameters at once


@pytest.mark.parametrize("block_bytes", [None, 1])
@pytest.mark.parametrize("queries", [1, 30, 69])
def test_a_grid_gives_what_each_of_its_parameters_gives(queries, block_bytes):
    features = clusters(70, seed=21)
    query, gallery = features[:queries], features[queries:]
    grid = ([3, 100, 1, 12], [6, 1, 80], [0.0, 0.3, 1.0])
    assert all(reference.neighbours_are_clear(features, k1, k2) for k1, k2 in product(*grid[:2]))
    found = []
    for k1, k2, lambda_value, distance in k_reciprocal_grid(query, gallery, *grid, block_bytes=block_bytes):
        found.append((k1, k2, lambda_value))
        assert distance.dtype == torch.float32
        expected = k_reciprocal(query, gallery, k1, k2, lambda_value, block_bytes=block_bytes)
        torch.testing.assert_close(distance, expected, rtol=0, atol=1e-6)
    assert found == list(product(*grid))  # k1 outermost


def test_a_grid_may_be_left_early_and_changes_no_mode_around_it():
    features = clusters(60, seed=22)
    before = features.clone()
    features.requires_grad_()
    expected = k_reciprocal(features[:20], features[20:], 8, 3, 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grid = k_reciprocal_grid(features[:20], features[20:], [8, 40], [3, 1], [0.3, 0.5])
        distance = next(grid)[3].clone()
        assert torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
        grid.close()
    assert torch.is_grad_enabled() and not distance.requires_grad
    torch.testing.assert_close(distance, expected, rtol=0, atol=1e-6)
    assert torch.equal(features, before)
    other = k_reciprocal_grid(features[:20], features[20:], [8], [3], [0.5, 0.3])
    next(other)  # in a tensor that the next step overwrites
    torch.testing.assert_close(next(other)[3], expected, rtol=0, atol=1e-6)


def test_a_grid_of_the_cosine_is_that_of_unit_rows():
    features = clusters(60, seed=23)
    for k1, k2, lambda_value, distance in k_reciprocal_grid(
        features[:20], features[20:], [4, 9], [2, 30], [0.3], metric="cosine"
    ):
        expected = k_reciprocal(features[:20], features[20:], k1, k2, lambda_value, metric="cosine")
        torch.testing.assert_close(distance, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [([3, 0], [2], [0.3]), ([3], [2, 0], [0.3]), ([3], [2], [0.3, 1.5])], ids=str)
def test_a_grid_is_refused_before_anything_is_computed(monkeypatch, grid):
    monkeypatch.setattr(rerank, "search", None)
    with pytest.raises(ValueError, match="k1 and k2 must be at least 1"):
        list(k_reciprocal_grid(clusters(5), clusters(9), *grid))


# ---- kinds of input


@SOME
@given(
    rows=st.integers(5, 80), queries=st.integers(1, 79), width=st.integers(2, 12), k1=st.integers(1, 20),
    k2=st.integers(1, 8), block_bytes=st.sampled_from((None, 1)), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_cosine_is_the_euclidean_distance_of_unit_rows(rows, queries, width, k1, k2, block_bytes, seed):
    rng = np.random.default_rng(seed)
    unit = torch.nn.functional.normalize(clusters(rows, width, 5, seed).double())
    assume(reference.neighbours_are_clear(unit, k1, k2))
    queries = min(queries, rows - 1)
    features = (unit * torch.from_numpy(2.0 ** rng.integers(-40, 41, (rows, 1)))).float()
    expected = reference.k_reciprocal(unit, queries, k1, k2)
    found = k_reciprocal(features[:queries], features[queries:], k1, k2, metric="cosine", block_bytes=block_bytes)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"manhattan.*cosine.*euclidean"):
        k_reciprocal(clusters(5), clusters(9), metric="manhattan")


@SOME
@given(
    rows=st.integers(8, 90), queries=st.integers(1, 60), block_bytes=st.sampled_from((None, 1)),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_features_far_from_the_origin_are_told_apart(rows, queries, block_bytes, seed):
    # Squared lengths of 60,000 and squared distances of 0.1: float32 has seven digits.
    rng = np.random.default_rng(seed)
    features = torch.from_numpy((100 + 0.1 * rng.normal(size=(rows, 6))).astype("f4"))
    assume(reference.neighbours_are_clear(features, 6, 3))
    queries = min(queries, rows - 1)
    assert_equals_reference(features, queries, k1=6, k2=3, block_bytes=block_bytes)
    assert_equals_reference(features, queries, k1=6, k2=3, block_bytes=block_bytes, lambda_value=0)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("mode", ["c", "r"])
@pytest.mark.parametrize("dtype", ["f2", "f4"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_features_in_a_mapped_file_give_what_those_in_memory_give(tmp_path, mode, dtype, metric):
    stored = [clusters(rows, seed=rows).numpy().astype(dtype) for rows in (25, 60)]
    for name, rows in zip(("query", "gallery"), stored, strict=True):
        np.save(tmp_path / f"{name}.npy", rows)
    before = [(tmp_path / f"{name}.npy").read_bytes() for name in ("query", "gallery")]
    mapped = [torch.from_numpy(np.load(tmp_path / f"{name}.npy", mmap_mode=mode)) for name in ("query", "gallery")]
    found = k_reciprocal(*mapped, metric=metric, block_bytes=1)
    assert torch.equal(found, k_reciprocal(*map(torch.from_numpy, stored), metric=metric, block_bytes=1))
    assert [(tmp_path / f"{name}.npy").read_bytes() for name in ("query", "gallery")] == before
    assert all(np.array_equal(x.numpy(), y) for x, y in zip(mapped, stored, strict=True))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_converted_tile_by_tile(dtype, metric):
    query, gallery = clusters(20, 8, seed=24).to(dtype), clusters(50, 8, seed=25)  # of different types, too
    found = k_reciprocal(query, gallery, metric=metric, block_bytes=1)
    torch.testing.assert_close(found, k_reciprocal(query.float(), gallery, metric=metric), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("queries", "images"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_rank_is_an_empty_result_or_an_error_that_says_so(queries, images):
    for run in (k_reciprocal, lambda *x: next(k_reciprocal_grid(*x, [3], [2], [0.3]))[3]):
        try:
            found = run(clusters(9)[:queries], clusters(9)[:images])
        except ValueError:
            continue
        assert found.shape == (queries, images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_give_what_their_float32_values_give(dtype):
    features = clusters(60, seed=10).to(dtype)
    found = k_reciprocal(features[:20], features[20:])
    assert found.dtype == torch.float32
    assert torch.equal(found, k_reciprocal(features[:20].float(), features[20:].float()))


def test_non_contiguous_features_give_the_same():
    features = clusters(60, seed=11)
    assert reference.neighbours_are_clear(features, 20, 6)
    turned = features.T.contiguous().T
    assert not turned.is_contiguous()
    expected = k_reciprocal(features[:20], features[20:])
    torch.testing.assert_close(k_reciprocal(turned[:20], turned[20:]), expected, rtol=0, atol=1e-5)


def test_features_that_still_require_a_gradient_are_taken():
    features = clusters(60, seed=12)
    expected = k_reciprocal(features[:20], features[20:])
    features.requires_grad_()
    assert torch.equal(k_reciprocal(features[:20], features[20:]).detach(), expected)


def test_the_inputs_are_left_as_they_were():
    query, gallery = clusters(20, seed=13), clusters(40, seed=14)
    before = query.clone(), gallery.clone()
    k_reciprocal(query, gallery)
    assert torch.equal(query, before[0])
    assert torch.equal(gallery, before[1])


def test_autocast_changes_nothing():
    features = clusters(60, 32, seed=15)
    expected = k_reciprocal(features[:20], features[20:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = k_reciprocal(features[:20], features[20:])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_lower_precision_of_matrix_products_is_put_aside_and_kept():
    features = clusters(300, 512, seed=27)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        expected = k_reciprocal(features[:100], features[100:])
        torch.set_float32_matmul_precision("medium")  # bfloat16, where the processor has it
        medium = [x.matmul.fp32_precision for x in (torch.backends.cuda, torch.backends.mkldnn)]
        assert torch.equal(k_reciprocal(features[:100], features[100:]), expected)
        grid = k_reciprocal_grid(features[:100], features[100:], [20], [6], [0.3])
        torch.testing.assert_close(next(grid)[3], expected, rtol=0, atol=1e-6)
        assert [x.matmul.fp32_precision for x in (torch.backends.cuda, torch.backends.mkldnn)] == medium
    finally:
        torch.set_float32_matmul_precision(before)


# ---- errors


@pytest.mark.parametrize(
    "parameters",
    [{"k1": 0}, {"k1": -3}, {"k2": 0}, {"lambda_value": -0.1}, {"lambda_value": 1.1}, {"lambda_value": float("nan")}],
    ids=str,
)
def test_parameters_out_of_range_are_refused_with_their_value(parameters):
    value = next(iter(parameters.values()))
    with pytest.raises(ValueError, match=f"k1 and k2 must be at least 1.*{value}"):
        k_reciprocal(clusters(5), clusters(9), **parameters)


@pytest.mark.parametrize("name", ["k1", "k2", "lambda_value"])
@pytest.mark.parametrize("value", [2.5, float("nan"), float("inf"), -float("inf"), "6", "many"], ids=str)
def test_parameters_that_are_no_such_numbers_are_refused_with_their_value(name, value):
    with pytest.raises(ValueError, match=f"k1 and k2 must be at least 1.*{value}"):
        k_reciprocal(clusters(5), clusters(9), **{name: value})


@pytest.mark.parametrize("number", [int, float, np.int64, np.float32])
def test_whole_numbers_of_any_type_are_taken(number):
    features = clusters(40, seed=26)
    found = k_reciprocal(features[:10], features[10:], number(7), number(3), number(1))
    assert torch.equal(found, k_reciprocal(features[:10], features[10:], 7, 3, 1))


def test_features_of_a_wrong_shape_are_refused():
    features = clusters(9)
    for query, gallery in ((features[:, :3], features), (features[0], features), (features, features[None])):
        with pytest.raises(ValueError, match=r"must be \(Q, D\) and \(G, D\)"):
            k_reciprocal(query, gallery)


def test_features_that_are_no_floating_point_numbers_are_refused_by_name():
    with pytest.raises(ValueError, match="gallery features must be floating-point"):
        k_reciprocal(clusters(5), clusters(9).long())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused_and_counted(value):
    query, gallery = clusters(5), clusters(9)
    query[1, 2] = gallery[3, 0] = gallery[3, 1] = gallery[8, 5] = value
    with pytest.raises(ValueError, match="1 of 5 query features"):
        k_reciprocal(query, gallery)
    with pytest.raises(ValueError, match="2 of 9 gallery features"):
        k_reciprocal(clusters(5), gallery)


@pytest.mark.parametrize(("scale", "dtype"), [(1e20, torch.float32), (1e100, torch.float64)], ids=["1e20", "1e100"])
def test_features_too_large_to_square_are_refused_or_ranked_rightly(scale, dtype):
    features = clusters(30, seed=16)
    expected = k_reciprocal(features[:10], features[10:])
    try:
        found = k_reciprocal(features[:10].to(dtype) * scale, features[10:].to(dtype) * scale)
    except ValueError:
        return
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


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


@pytest.fixture(scope="module")
def market_subset(market_arrays) -> dict:
    return market_part(market_arrays, 300, 1500, 80, 5)


def test_market1501_subset_equals_the_dense_formulas_and_gains(market_subset):
    query, gallery, ids = market_subset["query"], market_subset["gallery"], market_subset["ids"]
    assert (len(query), len(gallery)) == (300, 1500)
    found = k_reciprocal(query, gallery)
    expected = reference.k_reciprocal(torch.cat([query, gallery]).numpy(), 300)
    # Among 1,800 rows a few neighbours are as near as float32 can tell: leave room for one to change places.
    assert (np.abs(found.numpy() - expected) > 1e-5).mean() < 0.002
    scores, wanted = evaluate_distance(found, *ids), reference.evaluation(expected, *ids)
    assert scores.num_valid_queries == wanted.num_valid_queries
    assert scores.mAP == pytest.approx(wanted.mAP, abs=1e-4)
    assert scores.mINP == pytest.approx(wanted.mINP, abs=5e-4)
    assert scores.mAP > evaluate(query, gallery, *ids, metric="euclidean").mAP + 0.03


@pytest.mark.parametrize(("metric", "k1", "k2"), [("euclidean", 20, 6), ("cosine", 20, 6), ("cosine", 7, 3)])
def test_market1501_scores_of_clear_neighbours_are_those_of_the_dense_formulas(market_arrays, metric, k1, k2):
    part = market_part(market_arrays, 60, 500, 20, 1)
    rows = torch.cat([part["query"], part["gallery"]]).double()
    if metric == "cosine":
        rows = torch.nn.functional.normalize(rows)
    assert reference.neighbours_are_clear(rows, k1, k2, gap=1e-6)
    expected = reference.k_reciprocal(rows, 60, k1, k2)
    for block_bytes in (None, 500_000):
        found = k_reciprocal(part["query"], part["gallery"], k1, k2, metric=metric, block_bytes=block_bytes)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)
        scores, wanted = evaluate_distance(found, *part["ids"]), reference.evaluation(expected, *part["ids"])
        for name in ("mAP", "mINP", "cmc", "ap"):
            np.testing.assert_allclose(getattr(scores, name), getattr(wanted, name), rtol=0, atol=1e-5)


def test_features_that_are_all_but_equal_give_finite_distances():
    for spread in (0.0, 1e-7, 1e-4):
        features = 1 + spread * clusters(40, seed=3)
        found = k_reciprocal(features[:10], features[10:])
        assert torch.isfinite(found).all() and found.min() > -1e-5 and found.max() < 1 + 1e-5


@pytest.mark.parametrize(("metric", "mAP"), [("euclidean", 0.89259964), ("cosine", 0.89739206)])
def test_the_whole_of_market1501_scores_as_dense_float64_matrices_say(market_arrays, metric, mAP):
    # The figures are those of the dense formulas in float64, which take 13 GB: too much for a test.
    kept = market_arrays["gp"] != -1
    query, gallery = (torch.from_numpy(x) for x in (market_arrays["qf"], market_arrays["gf"][kept]))
    ids = (market_arrays["qp"], market_arrays["gp"][kept], market_arrays["qc"], market_arrays["gc"][kept])
    assert evaluate_distance(k_reciprocal(query, gallery, metric=metric), *ids).mAP == pytest.approx(mAP, abs=1e-6)
