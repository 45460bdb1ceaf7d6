"""What keeps distances exact: full products whatever is set, and equal rows at equal distances."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.distance import equal_rows, exact_products, pairwise_distance, row_norms
from utils.expansion import expand_queries
from utils.ids import check_ids
from utils.metrics import evaluate
from utils.rerank import k_reciprocal, k_reciprocal_grid

SOME = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture
def fast_products():
    torch.set_float32_matmul_precision("medium")  # bfloat16 on a CPU that has it, TF32 on a GPU
    yield
    assert torch.get_float32_matmul_precision() == "medium", "the user's setting was changed"
    torch.set_float32_matmul_precision("highest")


def rows(number: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, 256, generator=torch.Generator().manual_seed(seed))


def test_distances_do_not_depend_on_the_precision_that_is_set_for_products(fast_products):
    query, gallery = rows(300), rows(600, 1)
    expected = 1 - torch.nn.functional.cosine_similarity(query.double()[:, None], gallery.double(), dim=2)
    assert (pairwise_distance(query, gallery) - expected).abs().max() < 1e-6
    found = k_reciprocal(query, gallery, lambda_value=1.0), expand_queries(query, gallery)
    torch.set_float32_matmul_precision("highest")
    wanted = k_reciprocal(query, gallery, lambda_value=1.0), expand_queries(query, gallery)
    torch.set_float32_matmul_precision("medium")
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


def test_the_precision_is_put_back_after_an_error_too():
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ZeroDivisionError), exact_products(torch.device("cpu")):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert not torch.is_autocast_enabled("cpu")
            raise ZeroDivisionError
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


@SOME
@given(
    number=st.integers(1, 60), width=st.integers(1, 5), levels=st.integers(0, 2), seed=st.integers(0, 10**6),
    dtype=st.sampled_from((torch.float32, torch.float16, torch.bfloat16, torch.float64)),
)  # fmt: skip
def test_equal_rows_are_found_and_no_others(number, width, levels, seed, dtype):
    # Few levels and both signs: many rows of equal norms, of which some are equal and some are not; and -0 equals 0.
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(-levels, levels + 1, (number, width), generator=generator).to(dtype)
    features[features == 0] *= -1
    copies, originals = equal_rows(features, row_norms(features, "gallery"))
    expected = {}
    for i in range(number):
        first = next(j for j in range(i + 1) if torch.equal(features[i], features[j]))
        if first < i:
            expected[i] = first
    assert dict(zip(copies.tolist(), originals.tolist(), strict=True)) == expected


def test_integer_features_are_refused_with_their_kind():
    with pytest.raises(ValueError, match=r"gallery features must be floating-point numbers, not torch\.int64"):
        pairwise_distance(rows(2), torch.ones(3, 256, dtype=torch.int64))


def test_nothing_depends_on_the_default_type():
    query, gallery = rows(4), rows(30, 1)
    ids = ([0, 1, 2, 3], [i % 4 for i in range(30)], [0] * 4, [1] * 30)
    expected = evaluate(query, gallery, *ids).mAP, k_reciprocal(query, gallery, k1=5, k2=2)
    torch.set_default_dtype(torch.float64)
    try:
        found = evaluate(query, gallery, *ids).mAP, k_reciprocal(query, gallery, k1=5, k2=2)
        expanded = expand_queries(query, gallery)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])
    assert found[1].dtype == expanded.dtype == torch.float32


def test_features_that_are_too_small_for_euclidean_distances_are_refused():
    with pytest.raises(ValueError, match="too small to square"):
        pairwise_distance(rows(3) * 1e-25, rows(4) * 1e-25, "euclidean")
    assert pairwise_distance(torch.zeros(2, 3), torch.zeros(4, 3), "euclidean").eq(0).all()


def test_ids_beyond_what_an_integer_holds_are_refused_by_name():
    with pytest.raises(ValueError, match=f"gallery_pids holds {2**63}"):
        check_ids(2, gallery_pids=np.array([1, 2**63], dtype=np.uint64))


@pytest.mark.parametrize("block_bytes", [0, -500000, 1.5, float("nan")])
def test_a_block_that_there_cannot_be_is_refused(block_bytes):
    with pytest.raises(ValueError, match="block_bytes must be a whole number above 0"):
        k_reciprocal(rows(3), rows(4), block_bytes=block_bytes)


@pytest.mark.parametrize("grid", [([], [1], [0.3]), ([2], [], [0.3]), ([2], [1], []), ([2], [0], [0.3])])
def test_a_grid_that_is_none_is_refused_at_once(grid):
    with pytest.raises(ValueError, match=r"one or more values|at least 1"):
        k_reciprocal_grid(rows(3), rows(4), *grid)  # before the first step is asked for
    steps = k_reciprocal_grid(rows(3), rows(4), iter([2, 3]), (1, 2), iter([0.3]))
    assert [step[:3] for step in steps] == [(2, 1, 0.3), (2, 2, 0.3), (3, 1, 0.3), (3, 2, 0.3)]
