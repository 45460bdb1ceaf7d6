"""What keeps distances exact: full products whatever is set, and equal rows at equal distances."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.distance import equal_rows, exact_products, pairwise_distance, row_norms
from utils.expansion import expand_queries
from utils.rerank import k_reciprocal

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
