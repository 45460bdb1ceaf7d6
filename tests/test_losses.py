"""Losses and their gradients against loops in float64, and the criterion that adds them up."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config import Config
from loss import CenterLoss, Criterion, batch_hard_triplet, make_criterion

SOME = settings(max_examples=50, deadline=None, derandomize=True)


def unchanged(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A head without a margin."""
    return logits


def batch(size: int = 12, width: int = 8, identities: int = 3, seed: int = 0, scale: float = 1.0):
    """Random features (size, width) float32 and labels 0..identities-1, each of which is there."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(identities), rng.integers(0, identities, size - identities)])
    features = torch.from_numpy((rng.normal(size=(size, width)) * scale).astype(np.float32))
    return features, torch.from_numpy(rng.permutation(labels))


# ---- triplet


@SOME
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=16),
    width=st.integers(1, 20),
    margin=st.sampled_from((0.0, 0.3, 1.2, 5.0)),
    hard_factor=st.sampled_from((0.0, 0.2, 0.7)),
    seed=st.integers(0, 2**32 - 1),
)
def test_triplet_and_its_gradient_equal_the_loops(labels, width, margin, hard_factor, seed):
    values = np.random.default_rng(seed).normal(size=(len(labels), width)).astype(np.float32)
    slow = torch.from_numpy(values).double().requires_grad_()
    expected = reference.triplet(slow, labels, margin, hard_factor)
    fast = torch.from_numpy(values).requires_grad_()
    if expected is None:
        with pytest.raises(ValueError, match="two images of one identity and one image of another"):
            batch_hard_triplet(fast, torch.tensor(labels), margin, hard_factor)
        return
    loss = batch_hard_triplet(fast, torch.tensor(labels), margin, hard_factor)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(fast.grad.double(), slow.grad, rtol=2e-3, atol=2e-3)


def test_triplet_worked_out_by_hand():
    features = torch.tensor([[0.0], [3.0], [5.0], [20.0]])
    labels = torch.tensor([1, 1, 2, 3])  # identities 2 and 3 have no positive: they are only negatives
    # anchor 0: positive at 3, nearest negative at 5; anchor 1: positive at 3, nearest negative at 2
    assert batch_hard_triplet(features, labels, margin=0.5).item() == pytest.approx((0 + 1.5) / 2)
    assert batch_hard_triplet(features, labels, margin=3.0).item() == pytest.approx((1 + 4) / 2)
    # harder: positives 1.5 times as far, negatives half as far
    assert batch_hard_triplet(features, labels, 0.5, 0.5).item() == pytest.approx((2.5 + 4) / 2)


def test_triplet_tells_small_distances_apart():
    features = torch.tensor([[0.0], [3e-5], [5e-5], [1.0]])
    loss = batch_hard_triplet(features, torch.tensor([1, 1, 2, 3]), margin=0.5e-5)
    assert loss.item() == pytest.approx(1.5e-5 / 2, rel=1e-3)


def test_triplet_does_not_assume_k_images_an_identity_or_an_order():
    features, _ = batch(10, seed=1)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2, 3])
    order = torch.from_numpy(np.random.default_rng(0).permutation(10))
    loss = batch_hard_triplet(features, labels)
    assert loss.item() == pytest.approx(reference.triplet(features.double(), labels).item(), rel=1e-5)
    assert batch_hard_triplet(features[order], labels[order]).item() == pytest.approx(loss.item(), rel=1e-5)


def test_triplet_takes_any_integers_as_labels():
    features, labels = batch()
    expected = batch_hard_triplet(features, labels)
    assert torch.equal(batch_hard_triplet(features, labels * 1000 - 7), expected)
    assert torch.equal(batch_hard_triplet(features, labels.int()), expected)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 123.456])
def test_triplet_of_equal_features_is_the_margin_and_has_a_finite_gradient(value):
    features = torch.full((8, 64), value, requires_grad=True)
    loss = batch_hard_triplet(features, torch.arange(8) // 2, 0.3)
    loss.backward()
    assert loss.item() == pytest.approx(0.3, abs=1e-4)
    assert features.grad.isfinite().all()


def test_triplet_of_some_equal_features_has_a_finite_gradient():
    features, labels = batch(seed=2)
    features[torch.nonzero(labels == 0).flatten()] = features[0].clone()  # one identity collapsed
    features[5] = features[6].clone()
    features.requires_grad_()
    batch_hard_triplet(features, labels, 3.0).backward()
    assert features.grad.isfinite().all()
    assert features.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3], [7, 7, 7, 7], [5]], ids=["one image each", "one identity", "one image"]
)
def test_triplet_without_positives_or_negatives_is_refused(labels):
    features = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="two images of one identity and one image of another"):
        batch_hard_triplet(features, torch.tensor(labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_triplet_of_half_precision_features_is_computed_in_float32(dtype):
    features, labels = batch(16, 256, scale=3.0)
    features = features.to(dtype)
    loss = batch_hard_triplet(features, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, batch_hard_triplet(features.float(), labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triplet_distances_stay_float32_under_autocast(dtype):
    features, labels = batch(16, 256, scale=3.0)
    features = features.to(dtype)
    expected = batch_hard_triplet(features, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch_hard_triplet(features, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_triplet_gradient_descent_pulls_identities_together_and_apart():
    features, labels = batch(12, 4, 3, seed=3)
    features.requires_grad_()
    for _ in range(300):
        loss = batch_hard_triplet(features, labels, 1.0)
        (gradient,) = torch.autograd.grad(loss, features)
        features = (features - 0.3 * gradient).detach().requires_grad_()
    assert batch_hard_triplet(features, labels, 1.0).item() < 0.05


# ---- center


@SOME
@given(st.integers(1, 12), st.integers(1, 8), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_center_loss_and_its_gradients_equal_the_loops(size, width, classes, seed):
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, classes, size))
    values = rng.normal(size=(size, width)).astype(np.float32)
    loss = CenterLoss(classes, width)
    centers = torch.from_numpy(rng.normal(size=(classes, width)).astype(np.float32))
    loss.centers.data.copy_(centers)
    fast, slow = torch.from_numpy(values).requires_grad_(), torch.from_numpy(values).double().requires_grad_()
    slow_centers = centers.double().requires_grad_()
    found, expected = loss(fast, labels), reference.center(slow, labels, slow_centers)
    assert found.shape == ()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    expected.backward()
    torch.testing.assert_close(fast.grad.double(), slow.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.centers.grad.double(), slow_centers.grad, rtol=1e-4, atol=1e-5)


def test_center_loss_has_one_learned_center_a_class():
    loss = CenterLoss(7, 5)
    assert [tuple(p.shape) for p in loss.parameters()] == [(7, 5)]
    assert loss.centers.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_center_loss_is_float32_under_autocast(dtype):
    features, labels = batch(scale=9.0)
    loss = CenterLoss(3, 8)
    features = features.to(dtype)
    expected = loss(features.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(features, labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


# ---- criterion

ALL = Config(
    id_weight=0.5, triplet_weight=2.0, center_weight=0.01, triplet_margin=0.7, hard_factor=0.1, label_smoothing=0.2
)


def outputs(branches: int = 1, classes: int = 3, seed: int = 0):
    """Logits and features of some branches, and labels."""
    labels = batch(seed=seed)[1]
    features = [batch(seed=seed + 10 + b)[0].requires_grad_() for b in range(branches)]
    rng = np.random.default_rng(seed)
    logits = [torch.from_numpy(rng.normal(size=(12, classes)).astype(np.float32) * 3) for _ in range(branches)]
    return [x.requires_grad_() for x in logits], features, labels


@pytest.mark.parametrize("branches", [1, 3])
def test_criterion_is_the_weighted_sum_of_its_unweighted_parts(branches):
    logits, features, labels = outputs(branches)
    criterion = make_criterion(ALL, 3, [8] * branches, [unchanged] * branches)
    total, parts = criterion(logits, features, labels)
    expected = {
        "id": np.mean([reference.smoothed_cross_entropy(x.detach(), labels, 0.2) for x in logits]),
        "triplet": np.mean([reference.triplet(x.detach().double(), labels, 0.7, 0.1).item() for x in features]),
        "center": np.mean(
            [reference.center(x, labels, c.centers).item() for x, c in zip(features, criterion.centers, strict=True)]
        ),
    }
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, rel=1e-4)
    weighted = 0.5 * expected["id"] + 2.0 * expected["triplet"] + 0.01 * expected["center"]
    assert total.item() == pytest.approx(weighted, rel=1e-4)
    total.backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (*logits, *features))


@pytest.mark.parametrize("name", ["id", "triplet", "center"])
def test_weight_0_switches_a_loss_off(name):
    cfg = Config(**{**ALL.to_dict(), f"{name}_weight": 0.0})
    logits, features, labels = outputs()
    criterion = Criterion(cfg, 3, [8], [unchanged])
    total, parts = criterion(logits, features, labels)
    assert set(parts) == {"id", "triplet", "center"} - {name}
    weights = {"id": 0.5, "triplet": 2.0, "center": 0.01}
    assert total.item() == pytest.approx(sum(weights[n] * v.item() for n, v in parts.items()), rel=1e-5)
    assert len(list(criterion.parameters())) == (0 if name == "center" else 1)


def test_a_switched_off_triplet_does_not_refuse_a_batch_without_positives():
    cfg = Config(triplet_weight=0.0, center_weight=0.0)
    total, _ = Criterion(cfg, 12, [8], [unchanged])([torch.zeros(12, 12)], [torch.zeros(12, 8)], torch.arange(12))
    assert total.item() == pytest.approx(np.log(12), rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_label_smoothing_spreads_epsilon_over_all_classes(epsilon, classes):
    cfg = Config(triplet_weight=0.0, center_weight=0.0, label_smoothing=epsilon)
    rng = np.random.default_rng(classes)
    logits = torch.from_numpy(rng.normal(size=(9, classes)) * 4).float()
    labels = torch.from_numpy(rng.integers(0, classes, 9))
    total, _ = Criterion(cfg, classes, [8], [unchanged])([logits], [torch.zeros(9, 8)], labels)
    assert total.item() == pytest.approx(reference.smoothed_cross_entropy(logits, labels, epsilon), rel=1e-5)


@pytest.mark.parametrize("weight", [5e-4, 3.0])
def test_undoing_the_center_weight_leaves_the_centers_the_plain_gradient(weight):
    cfg = Config(id_weight=0.0, triplet_weight=0.0, center_weight=weight)
    logits, features, labels = outputs()
    criterion = Criterion(cfg, 3, [8], [unchanged])
    total, _ = criterion(logits, features, labels)
    total.backward()
    weighted_pull = features[0].grad.clone()
    criterion.undo_center_weight()
    centers = criterion.centers[0].centers.detach().double().requires_grad_()
    rows = features[0].detach().double().requires_grad_()
    reference.center(rows, labels, centers).backward()
    torch.testing.assert_close(criterion.centers[0].centers.grad.double(), centers.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weighted_pull.double(), weight * rows.grad, rtol=1e-4, atol=1e-6)
    assert torch.equal(features[0].grad, weighted_pull)  # the features keep the weight


def test_undoing_the_center_weight_is_harmless_without_centers_or_gradients():
    Criterion(Config(center_weight=0.0), 3, [8], [unchanged]).undo_center_weight()
    criterion = Criterion(ALL, 3, [8], [unchanged])
    criterion.undo_center_weight()  # before any backward pass
    assert criterion.centers[0].centers.grad is None


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_criterion_takes_half_precision_and_computes_in_float32(autocast):
    logits, features, labels = outputs()
    logits, features = [x.detach().bfloat16() for x in logits], [x.detach().bfloat16() for x in features]
    criterion = Criterion(ALL, 3, [8], [unchanged])
    expected, _ = criterion([x.float() for x in logits], [x.float() for x in features], labels)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        total, parts = criterion(logits, features, labels)
    assert total.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in parts.values())
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_criterion_refuses_a_batch_without_positives_for_the_triplet():
    with pytest.raises(ValueError, match="two images of one identity"):
        Criterion(Config(), 12, [8], [unchanged])([torch.zeros(12, 12)], [torch.zeros(12, 8)], torch.arange(12))


@pytest.mark.parametrize("loss", ["triplet", "center"])
def test_gradients_are_bit_identical_every_time_on_several_threads(loss):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(64, 2048, generator=generator)
    features[0] *= 0.01  # nearest to all: many gradients meet in one row
    labels = torch.arange(64) // 4 if loss == "triplet" else torch.zeros(64, dtype=torch.int64)
    center, threads, seen = CenterLoss(2, 2048), torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for _ in range(40):
            row = features.clone().requires_grad_()
            center.zero_grad()
            (batch_hard_triplet(row, labels, 5.0) if loss == "triplet" else center(row, labels)).backward()
            seen.append(row.grad if loss == "triplet" else center.centers.grad.clone())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(seen[0], other) for other in seen)
