"""Query expansion and database-side augmentation against loops over the formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Allocations

from utils import expansion
from utils.expansion import augment_gallery, expand_queries
from utils.metrics import evaluate

SOME = settings(max_examples=40, deadline=None, derandomize=True)


def reference(query, gallery, k: int, alpha: float, itself: bool) -> np.ndarray:
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
        (expand_queries(query, gallery, k, alpha), reference(query, gallery, k, alpha, itself=False)),
        (augment_gallery(gallery, k, alpha), reference(gallery, gallery, k, alpha, itself=True)),
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


# ---- against the reference


@SOME
@given(
    queries=st.integers(1, 12),
    images=st.integers(1, 30),
    width=st.integers(1, 9),
    k=st.integers(1, 35),
    alpha=st.sampled_from((0.0, 0.5, 1.0, 3.0)),
    seed=st.integers(0, 2**32 - 1),
)
def test_expansion_equals_the_formula(queries, images, width, k, alpha, seed):
    assert_expanded(normal(queries, width, seed), normal(images, width, seed + 1), k, alpha)


@SOME
@given(
    queries=st.integers(1, 12),
    images=st.integers(1, 40),
    k=st.integers(1, 12),
    alpha=st.sampled_from((0.0, 1.0, 3.0)),
    seed=st.integers(0, 2**32 - 1),
    block_bytes=st.sampled_from((1, 300, 1 << 20)),
)
def test_equally_near_rows_are_taken_by_gallery_order_whatever_the_block(queries, images, k, alpha, seed, block_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expansion, "BLOCK_BYTES", block_bytes)
        assert_expanded(coarse(queries, seed), coarse(images, seed + 1), k, alpha)


# ---- cases worked out by hand


def test_a_query_and_its_neighbours_worked_out_by_hand():
    query, gallery = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0], [12.0, 5.0]])
    # of cosines 3/5, 0 and 12/13 the two largest, squared: 9/25 of (3/5, 4/5) and 144/169 of (12/13, 5/13)
    expected = np.array([1 + 27 / 125 + 1728 / 2197, 36 / 125 + 720 / 2197])
    found = expand_queries(query, gallery, k=2, alpha=2)
    np.testing.assert_allclose(found.numpy()[0], expected / np.linalg.norm(expected), atol=1e-6)


def test_alpha_0_is_the_plain_average_even_of_opposite_rows():
    query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[-3.0, 4.0], [0.0, 9.0]])
    expected = np.array([1 - 0.6 + 0, 0 + 0.8 + 1])
    found = expand_queries(query, gallery, k=2, alpha=0)
    np.testing.assert_allclose(found.numpy()[0], expected / np.linalg.norm(expected), atol=1e-6)


def test_rows_on_the_other_side_weigh_nothing():
    query, gallery = torch.tensor([[3.0, 4.0]]), torch.tensor([[-1.0, -1.0], [-5.0, 0.0]])
    torch.testing.assert_close(expand_queries(query, gallery, k=2, alpha=1), torch.tensor([[0.6, 0.8]]))


def test_a_row_is_no_neighbour_of_itself_but_its_duplicates_are():
    a, b = [1.0, 0.0], [0.0, 1.0]
    diagonal = [0.5**0.5, 0.5**0.5]
    # alpha 0: with its duplicate a stays a, with the only other row it becomes the mean of both
    torch.testing.assert_close(augment_gallery(torch.tensor([a, a]), 1, 0), torch.tensor([a, a]))
    torch.testing.assert_close(augment_gallery(torch.tensor([a, b]), 1, 0), torch.tensor([diagonal, diagonal]))
    found = augment_gallery(torch.tensor([b, a, a, a]), 1, 0)
    torch.testing.assert_close(found, torch.tensor([diagonal, a, a, a]))


def test_a_gallery_of_one_row_is_only_normalised():
    torch.testing.assert_close(augment_gallery(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 0.8]]))


def test_without_a_gallery_queries_are_only_normalised():
    found = expand_queries(torch.tensor([[3.0, 4.0]]), torch.zeros(0, 2))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8]]))


def test_no_queries_give_no_rows():
    assert expand_queries(torch.zeros(0, 3), normal(5, 3)).shape == (0, 3)
    assert augment_gallery(torch.zeros(0, 3)).shape == (0, 3)


def test_zero_rows_find_every_row_at_cosine_0():
    found = expand_queries(torch.zeros(2, 3), normal(5, 3), k=2, alpha=1)
    assert torch.equal(found, torch.zeros(2, 3))


# ---- kinds of input


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_expanded_as_their_float32_values(dtype):
    query, gallery = normal(5, 8).to(dtype), normal(30, 8, 1).to(dtype)
    torch.testing.assert_close(expand_queries(query, gallery), expand_queries(query.float(), gallery.float()))
    torch.testing.assert_close(augment_gallery(gallery), augment_gallery(gallery.float()))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_only_directions_count(scale):
    query, gallery = normal(5, 8), normal(30, 8, 1)
    expected = expand_queries(query, gallery)
    torch.testing.assert_close(expand_queries(query * scale, gallery / scale), expected)


def test_non_contiguous_features_are_expanded_alike():
    query, gallery = normal(5, 8), normal(30, 8, 1)
    wide = torch.full((30, 16), 99.0)
    wide[:, ::2] = gallery
    assert not query.T.contiguous().T.is_contiguous() and not wide[:, ::2].is_contiguous()
    torch.testing.assert_close(expand_queries(query.T.contiguous().T, wide[:, ::2]), expand_queries(query, gallery))
    torch.testing.assert_close(augment_gallery(wide[:, ::2]), augment_gallery(gallery))


def test_the_inputs_are_left_as_they_were_even_if_normalised_already():
    query, gallery = (torch.nn.functional.normalize(normal(n, 8, n)) for n in (5, 30))
    before = query.clone(), gallery.clone()
    expand_queries(query, gallery).zero_()
    augment_gallery(gallery).zero_()
    augment_gallery(gallery[:1]).zero_()  # the case in which nothing is added
    assert torch.equal(query, before[0]) and torch.equal(gallery, before[1])


def test_the_products_are_float32_under_autocast_too():
    query, gallery = normal(10, 64), normal(80, 64, 1)
    expected = expand_queries(query, gallery), augment_gallery(gallery)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = expand_queries(query, gallery), augment_gallery(gallery)
    for now, then in zip(found, expected, strict=True):
        assert now.dtype == torch.float32
        torch.testing.assert_close(now, then)


def test_features_that_still_require_a_gradient_give_some_that_do_not():
    query, gallery = normal(5, 8).requires_grad_(), normal(30, 8, 1).requires_grad_()
    assert not expand_queries(query, gallery).requires_grad
    assert not augment_gallery(gallery).requires_grad


@pytest.mark.parametrize("k", [1, 20, 500])
def test_no_tensor_is_larger_than_a_block_or_the_features(monkeypatch, k):
    monkeypatch.setattr(expansion, "BLOCK_BYTES", 40_000)
    gallery = torch.cat((normal(250, 4), normal(250, 4)))  # duplicates: ties are settled within the block, too
    with Allocations(gallery) as made:
        expand_queries(gallery, gallery, k)
        augment_gallery(gallery, k)
    assert 500 * 4 * 4 <= made.largest() <= 40_000  # bytes, not 500 × 500, nor 500 × k × 4


# ---- errors


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused_and_counted(value):
    query, gallery = normal(5, 8), normal(30, 8, 1)
    broken = query.clone()
    broken[0, 1] = broken[3, 0] = broken[3, 7] = value
    with pytest.raises(ValueError, match="2 of 5 query features"):
        expand_queries(broken, gallery)
    with pytest.raises(ValueError, match="2 of 5 gallery features"):
        expand_queries(query, broken)
    with pytest.raises(ValueError, match="2 of 5 gallery features"):
        augment_gallery(broken)


def test_features_of_a_wrong_shape_are_refused_by_name():
    for query, gallery in (
        (normal(5, 7), normal(30, 8)),
        (normal(5, 8)[0], normal(30, 8)),
        (normal(5, 8), normal(8, 8)[0]),
    ):
        with pytest.raises(ValueError, match=r"must be \(N, D\).*query \(.*gallery \("):
            expand_queries(query, gallery)
    with pytest.raises(ValueError, match=r"must be \(N, D\).*gallery \(2, 3, 4\)"):
        augment_gallery(torch.zeros(2, 3, 4))


@pytest.mark.parametrize(("name", "value"), [("k", 0), ("k", -1), ("k", 2.5), ("alpha", -0.1), ("alpha", np.nan)])
def test_parameters_that_make_no_sense_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must.*not {value}"):
        expand_queries(normal(5, 8), normal(30, 8), **{name: value})
    with pytest.raises(ValueError, match=rf"^{name} must.*not {value}"):
        augment_gallery(normal(30, 8), **{name: value})


# ---- real features: every fourth query of Market-1501


def test_expansion_raises_the_scores_of_market1501(market_arrays):
    kept = market_arrays["gp"] != -1
    query, gallery = (torch.from_numpy(x) for x in (market_arrays["qf"][::4], market_arrays["gf"][kept]))
    ids = [market_arrays[name] for name in ("qp", "gp", "qc", "gc")]
    ids = (ids[0][::4], ids[1][kept], ids[2][::4], ids[3][kept])
    plain, expanded = evaluate(query, gallery, *ids), evaluate(expand_queries(query, gallery), gallery, *ids)
    assert expanded.mAP > plain.mAP + 0.04
    assert expanded.rank(1) > plain.rank(1)
