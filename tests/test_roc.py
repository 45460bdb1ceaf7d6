"""The verification curve against all thresholds tried one by one."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from utils import metrics, roc
from utils.distance import pairwise_distance
from utils.metrics import evaluate, evaluate_distance
from utils.roc import Roc, RocCounter

SOME = settings(max_examples=60, deadline=None, derandomize=True)
RATES = (0.0, 1e-4, 1e-3, 0.005, 0.01)  # what `evaluate` keeps reaches up to 1 %


@st.composite
def distances(draw, queries: int = 10, images: int = 40):
    """(distances, ids) of any size up to these: real, few different values, all equal, or with infinities."""
    queries, images = draw(st.integers(1, queries)), draw(st.integers(1, images))
    identities, cameras = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = tuple(rng.integers(0, top, n) for top in (identities, cameras) for n in (queries, images))
    distance = rng.normal(size=(queries, images)).astype(draw(st.sampled_from((np.float32, np.float64))))
    kind = draw(st.sampled_from(("real", "whole", "equal", "infinite")))
    if kind == "whole":
        distance = np.round(distance)  # 0 and -0 among them
    elif kind == "equal":
        distance[:] = 0.5
    elif kind == "infinite":
        distance[rng.random(distance.shape) < 0.3] = np.inf
        distance[rng.random(distance.shape) < 0.1] = -np.inf
    return distance, ids


def counted(distance: np.ndarray, ids: tuple, rows: int, max_fpr: float) -> Roc:
    """The curve from blocks of so many rows, each as `metrics` hands it over: ignored entries are NaN."""
    same_pid, same_camera = ids[0][:, None] == ids[1], ids[2][:, None] == ids[3]
    counter = RocCounter(int((~same_pid).sum()), max_fpr)
    masked = torch.from_numpy(np.where(same_pid & same_camera, np.nan, distance))
    for start in range(0, len(distance), rows):
        where = np.nonzero((same_pid & ~same_camera)[start : start + rows])
        counter.add(masked[start : start + rows], *(torch.from_numpy(x) for x in where))
    return counter.result()


def assert_is_the_curve(found: Roc, positives: list, negatives: list) -> None:
    assert found.num_negatives == len(negatives)
    assert found.positives.tolist() == sorted(positives)
    assert found.negatives.tolist() == sorted(negatives)[: len(found.negatives)]
    for fpr in {0.0, *(k * found.max_fpr / 7 for k in range(1, 7)), found.max_fpr}:
        expected = reference.largest_tpr(positives, negatives, fpr)
        assert found.tpr(fpr) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    total, points = max(len(negatives), 1), []
    for threshold in sorted(positives):
        fpr = (np.asarray(negatives) <= threshold).sum() / total
        if fpr <= found.max_fpr:
            points.append((fpr, (np.asarray(positives) <= threshold).sum() / len(positives)))
    np.testing.assert_allclose(np.stack(found.curve(), 1), np.reshape(points, (-1, 2)), rtol=0, atol=1e-12)


@SOME
@given(
    data=distances(),
    rows=st.integers(1, 10),
    max_fpr=st.sampled_from((0.0, 0.01, 0.1, 0.3, 0.5, 1.0)),
    piece=st.sampled_from((1, 5, 50, 1 << 20)),
)
def test_the_curve_is_that_of_all_thresholds(data, rows, max_fpr, piece):
    distance, ids = data
    positives, negatives = reference.accepted_pairs(distance, *ids)
    assume(positives)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roc, "PIECE", piece)
        found = counted(distance, ids, rows, max_fpr)
    assert_is_the_curve(found, positives, negatives)


@SOME
@given(distances(), st.sampled_from((1, 300, 64 << 20)), st.sampled_from((1, 7, 1 << 20)))
def test_scores_come_with_the_curve_of_their_pairs(data, block_bytes, piece):
    distance, ids = data
    positives, negatives = reference.accepted_pairs(distance, *ids)
    assume(positives)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK_BYTES", block_bytes)
        patch.setattr(roc, "PIECE", piece)
        scores = evaluate_distance(torch.from_numpy(distance), *ids, roc=True)
    assert_is_the_curve(scores.roc, positives, negatives)
    assert scores.roc.max_fpr == 0.01
    expected = evaluate_distance(torch.from_numpy(distance), *ids)
    assert expected.roc is None
    np.testing.assert_allclose(scores.ap, expected.ap, rtol=1e-12)  # counting pairs changes no score
    assert scores.mINP == pytest.approx(expected.mINP, rel=1e-12)
    assert (scores.cmc == expected.cmc).all()


@pytest.fixture(scope="module")
def verification() -> tuple:
    """40 × 600 whole-numbered features of 30 identities and their ids: 23,000 negatives, many of them tied."""
    rng = np.random.default_rng(11)
    pids, centers = [rng.integers(0, 30, n) for n in (40, 600)], rng.normal(size=(30, 8)) * 2
    features = [torch.from_numpy(np.round(centers[p] + rng.normal(size=(len(p), 8)))).float() for p in pids]
    return *features, (*pids, rng.integers(0, 4, 40), rng.integers(0, 4, 600))


@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_nearest_negatives_are_kept_and_the_others_dropped(monkeypatch, verification, piece):
    query, gallery, ids = verification
    square = (query[:, None] - gallery).square().sum(2)  # whole numbers: as exact as float64
    positives, negatives = reference.accepted_pairs(square.numpy(), *ids)
    monkeypatch.setattr(roc, "PIECE", piece)
    monkeypatch.setattr(metrics, "BLOCK_BYTES", 7 * 600 * 4)
    kept = len(negatives) // 100 + 1
    collected, trim = [], RocCounter._trim

    def watched(self) -> None:
        collected.append(self.collected)
        trim(self)

    monkeypatch.setattr(RocCounter, "_trim", watched)
    for scores in (
        evaluate(query, gallery, *ids, metric="euclidean", roc=True),
        evaluate_distance(square, *ids, roc=True),
    ):
        assert len(scores.roc.negatives) == kept < len(negatives) / 50
        for fpr in RATES:
            assert scores.roc.tpr(fpr) == pytest.approx(reference.largest_tpr(positives, negatives, fpr), abs=1e-12)
    assert 0.05 < scores.roc.tpr(1e-3) < scores.roc.tpr(1e-2) < 1  # the rates say something about these features
    assert max(collected) <= 2 * kept + 2 * piece
    assert (len(collected) > 10) == (piece == 64)  # trimmed on the way, not at the end only


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_distances_of_different_queries_are_on_one_scale(monkeypatch, verification, metric, dtype):
    # Within a row a factor changes no rank, and no score; between rows it does.
    query, gallery, ids = verification
    query = (query * (1 + torch.arange(40)[:, None] % 5)).to(dtype)
    gallery = gallery.to(dtype)
    monkeypatch.setattr(metrics, "BLOCK_BYTES", 7 * 600 * 4)
    found = evaluate(query, gallery, *ids, metric=metric, roc=True).roc
    positives, negatives = reference.accepted_pairs(pairwise_distance(query, gallery, metric), *ids)
    np.testing.assert_allclose(found.positives, sorted(positives), rtol=0, atol=1e-6 * max(positives))
    nearest = sorted(negatives)[: len(found.negatives)]
    np.testing.assert_allclose(found.negatives, nearest, rtol=0, atol=1e-6 * max(positives))


def test_the_curve_rises_and_agrees_with_the_rate_at_its_points(verification):
    query, gallery, ids = verification
    found = evaluate(query, gallery, *ids, metric="euclidean", roc=True).roc
    false, true = found.curve()
    assert len(false) == len(true) > 20
    assert (np.diff(false) >= 0).all() and (np.diff(true) >= 0).all()
    assert false[0] >= 0 and false[-1] <= 0.01 and true[0] > 0 and true[-1] <= 1
    for fpr in np.unique(false):
        assert found.tpr(fpr) == true[false == fpr].max()
    assert found.tpr(0.01) == true[-1]


def test_rates_worked_out_by_hand():
    #                  match  wrong  ignored match wrong
    distance = torch.tensor([[0.1, 0.2, 0.05, 0.2, 0.3], [0.25, 0.1, 0.0, 0.4, 0.5]])
    ids = ([1, 1], [1, 2, 1, 1, 3], [0, 0], [1, 0, 0, 2, 1])
    # matches at 0.1, 0.2, 0.25, 0.4; others at 0.1, 0.2, 0.3, 0.5: a tie accepts both or neither
    scores = evaluate_distance(distance, *ids, roc=True)
    assert scores.roc.num_negatives == 4
    np.testing.assert_allclose(scores.roc.positives, [0.1, 0.2, 0.25, 0.4], rtol=1e-6)
    assert scores.roc.tpr(0) == 0.0
    found = counted(distance.double().numpy(), tuple(np.array(x) for x in ids), 1, 1.0)
    assert [found.tpr(x) for x in (0, 0.24, 0.25, 0.5, 0.75, 0.99, 1)] == [0, 0, 0.25, 0.75, 1, 1, 1]
    np.testing.assert_allclose(found.curve()[0], [0.25, 0.5, 0.5, 0.75])
    np.testing.assert_allclose(found.curve()[1], [0.25, 0.5, 0.75, 1])


def test_without_another_identity_there_is_no_rate():
    found = evaluate_distance(torch.rand(3, 5), [1] * 3, [1] * 5, [0] * 3, [1] * 5, roc=True).roc
    assert found.num_negatives == 0
    assert np.isnan([found.tpr(fpr) for fpr in RATES]).all()


def test_perfectly_separated_pairs_are_all_accepted_at_rate_0():
    found = evaluate_distance(torch.tensor([[0.1, 0.9, 0.2]]), [1], [1, 2, 1], [0], [1, 1, 1], roc=True).roc
    assert [found.tpr(fpr) for fpr in RATES] == [1.0] * 5


@pytest.mark.parametrize("fpr", [-1e-9, 0.010001, 0.5, 1.0, float("nan"), float("inf")])
def test_rates_outside_of_what_was_kept_are_refused(fpr):
    found = evaluate_distance(torch.rand(3, 5), [1] * 3, [1, 2, 3, 4, 5], [0] * 3, [1] * 5, roc=True).roc
    with pytest.raises(ValueError, match=r"from 0 to 0\.01"):
        found.tpr(fpr)


@pytest.mark.parametrize("total", [100, 300, 700, 2900, 11300, 100_000])
def test_a_rate_that_is_a_whole_number_of_pairs_allows_all_of_them(total):
    # 0.29 × 100 is 28.999999999999996 in binary
    negatives = np.arange(total, dtype=np.float64)
    for percent in (1, 7, 29, 57, 58):
        allowed = percent * total // 100
        found = Roc(np.array([allowed - 0.5, allowed + 0.5]), negatives, total, 1.0)
        assert found.tpr(percent / 100) == 0.5


def test_a_distance_matrix_that_requires_a_gradient_is_counted():
    distance = torch.rand(3, 50, generator=torch.Generator().manual_seed(1))
    ids = ([1, 2, 3], [1 + i % 5 for i in range(50)], [0] * 3, [1] * 50)
    expected = evaluate_distance(distance, *ids, roc=True).roc
    found = evaluate_distance(distance.clone().requires_grad_(), *ids, roc=True).roc
    assert (found.positives == expected.positives).all()
    assert (found.negatives == expected.negatives).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
def test_distances_of_other_types_count_as_their_values(dtype):
    distance = (torch.randn(5, 60, generator=torch.Generator().manual_seed(2)) * 9).to(dtype)
    ids = tuple(np.arange(n) % top for n, top in ((5, 4), (60, 4), (5, 2), (60, 3)))
    positives, negatives = reference.accepted_pairs(distance.double().numpy(), *ids)
    assert_is_the_curve(evaluate_distance(distance, *ids, roc=True).roc, positives, negatives)


def test_nothing_to_score_is_an_error_with_the_curve_too():
    for queries, images in ((0, 5), (5, 0), (0, 0), (3, 5)):
        ids = (np.zeros(queries, int), np.ones(images, int), np.zeros(queries, int), np.ones(images, int))
        with pytest.raises(ValueError, match="no query has a match"):
            evaluate_distance(torch.rand(queries, images), *ids, roc=True)
        with pytest.raises(ValueError, match="no query has a match"):
            evaluate(torch.rand(queries, 4), torch.rand(images, 4), *ids, roc=True)
