"""What keeps distances exact: full products whatever is set, and equal rows at equal distances."""

import pytest
import torch

from utils.distance import equal_rows, exact_products, row_norms


def rows(number: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, 256, generator=torch.Generator().manual_seed(seed))


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


def test_equal_rows_are_found_and_no_others():
    # Few levels and both signs: many rows of equal norms, of which some are equal and some are not; and -0 equals 0.
    for seed in range(80):
        generator = torch.Generator().manual_seed(seed)
        number, width, levels = 1 + seed * 7 % 60, 1 + seed % 5, seed % 3
        dtype = (torch.float32, torch.float16, torch.bfloat16, torch.float64)[seed % 4]
        features = torch.randint(-levels, levels + 1, (number, width), generator=generator).to(dtype)
        features[features == 0] *= -1
        copies, originals = equal_rows(features, row_norms(features, "gallery"))
        expected = {}
        for i in range(number):
            first = next(j for j in range(i + 1) if torch.equal(features[i], features[j]))
            if first < i:
                expected[i] = first
        assert dict(zip(copies.tolist(), originals.tolist(), strict=True)) == expected
