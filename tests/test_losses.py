"""Every loss and its gradient against a slow loop in float64; what all of them promise; the criterion."""

from functools import partial
from math import log

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, softplus

from config import Config
from loss import make_criterion
from loss.center import CenterLoss
from loss.centroid_triplet import centroid_triplet
from loss.circle import circle_loss
from loss.cluster import cluster_loss
from loss.contrastive import contrastive_loss
from loss.cosface import cosface_loss
from loss.cross_entropy import focal_loss
from loss.multi_similarity import multi_similarity_loss
from loss.range import range_loss
from loss.triplet import batch_hard_triplet
from loss.weighted_triplet import weighted_triplet

soft_triplet = partial(batch_hard_triplet, margin=None)

# ---- the loops: features (B, D) float64 and labels as a list to a scalar, or None where there is nothing to sum


def euclid(a, b):
    return (a - b).square().sum().clamp(min=1e-12).sqrt()


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


def mean(values):
    return sum(values) / len(values) if values else None


def anchors(labels):
    """(anchor, its positives, its negatives) of each image that has both, as positions in the batch."""
    for a, own in enumerate(labels):
        positives = [i for i, other in enumerate(labels) if other == own and i != a]
        negatives = [i for i, other in enumerate(labels) if other != own]
        if positives and negatives:
            yield a, positives, negatives


def hinge(gap, margin):
    return softplus(gap) if margin is None else max(margin + gap, 0 * gap)


def clusters(f, labels):
    """The features of each identity."""
    return [[f[i] for i, label in enumerate(labels) if label == pid] for pid in sorted(set(labels))]


def slow_triplet(f, labels, margin=0.3, hard_factor=0.0, alone=False):
    values = []
    for a, own in enumerate(labels):
        positives = [euclid(f[a], f[i]) for i, other in enumerate(labels) if other == own and (alone or i != a)]
        negatives = [euclid(f[a], f[i]) for i, other in enumerate(labels) if other != own]
        if positives and negatives:
            values.append(hinge((1 + hard_factor) * max(positives) - (1 - hard_factor) * min(negatives), margin))
    return mean(values)


def slow_weighted_triplet(f, labels):
    values = []
    for a, p, n in anchors(labels):
        far, near = [euclid(f[a], f[i]) for i in p], [euclid(f[a], f[i]) for i in n]
        far = sum(d.exp() * d for d in far) / sum(d.exp() for d in far)
        near = sum((-d).exp() * d for d in near) / sum((-d).exp() for d in near)
        values.append(softplus(far - near))
    return mean(values)


def slow_contrastive(f, labels, margin=1.0):
    values = []
    for i in range(len(labels)):
        for j in range(i):
            d = euclid(f[i], f[j])
            values.append(d**2 / 2 if labels[i] == labels[j] else max(margin - d, 0 * d) ** 2 / 2)
    return mean(values)


def over_all_pairs(f, labels, term):
    """log(1 + sum of exp(term)) over the cosines of all pairs of a positive and a negative."""
    values = []
    for a, p, n in anchors(labels):
        terms = [term(cosine(f[a], f[i]), cosine(f[a], f[j])) for i in p for j in n]
        values.append(torch.stack([*terms, 0 * terms[0]]).logsumexp(0))
    return mean(values)


def slow_circle(f, labels, margin=0.25, gamma=128.0):
    def term(s_p, s_n):
        a_p, a_n = max(0.0, 1 + margin - s_p.item()), max(0.0, s_n.item() + margin)
        return gamma * (a_n * (s_n - margin) - a_p * (s_p - 1 + margin))

    return over_all_pairs(f, labels, term)


def slow_cosface(f, labels, margin=0.25, gamma=128.0):
    return over_all_pairs(f, labels, lambda s_p, s_n: gamma * (s_n + margin - s_p))


def slow_multi_similarity(f, labels, alpha=2.0, beta=50.0, base=0.5, epsilon=0.1):
    values = []
    for a, p, n in anchors(labels):
        s_p, s_n = [cosine(f[a], f[i]) for i in p], [cosine(f[a], f[i]) for i in n]
        hard_p = [s for s in s_p if s.item() < max(s_n).item() + epsilon]
        hard_n = [s for s in s_n if s.item() > min(s_p).item() - epsilon]
        one = 1 + 0 * s_p[0]
        pull = (one + sum((-alpha * (s - base)).exp() for s in hard_p)).log() / alpha
        push = (one + sum((beta * (s - base)).exp() for s in hard_n)).log() / beta
        values.append(pull + push)
    return mean(values)


def slow_centroid_triplet(f, labels, margin=0.3):
    values = []
    for a, p, n in anchors(labels):
        own = euclid(f[a], sum(f[i] for i in p) / len(p))
        others = [[f[i] for i in n if labels[i] == pid] for pid in {labels[i] for i in n}]
        values.append(hinge(own - min(euclid(f[a], sum(rows) / len(rows)) for rows in others), margin))
    return mean(values)


def slow_range(f, labels, margin=0.1, intra=0.5, inter=0.5, k=2):
    if len(labels) < 2:
        return None
    total = 0 * f.sum()
    for rows in clusters(f, labels):
        ranges = sorted((euclid(a, b) for i, a in enumerate(rows) for b in rows[:i]), reverse=True)[:k]
        if ranges:
            total = total + intra * len(ranges) / sum(1 / d for d in ranges)
    centers = [sum(rows) / len(rows) for rows in clusters(f, labels)]
    gaps = [euclid(a, b) for i, a in enumerate(centers) for b in centers[:i]]
    return total + inter * max(margin - min(gaps), 0 * total) if gaps else total


def slow_cluster(f, labels, margin=10.0):
    rows = clusters(f, labels)
    if len(rows) < 2:
        return None
    centers = [sum(r) / len(r) for r in rows]
    values = []
    for i, center in enumerate(centers):
        radius = max(euclid(center, x) for x in rows[i])
        nearest = min(euclid(center, c) for j, c in enumerate(centers) if j != i)
        values.append(max(0 * f.sum(), margin + radius - nearest))
    return mean(values)


METRIC = {  # name: the loss, its loop, settings to try
    "triplet": (
        batch_hard_triplet,
        slow_triplet,
        ({}, {"margin": 5.0}, {"margin": 1.2, "hard_factor": 0.7}, {"margin": 2.0, "alone": True}),
    ),
    "soft triplet": (soft_triplet, partial(slow_triplet, margin=None), ({}, {"hard_factor": 0.2})),
    "weighted triplet": (weighted_triplet, slow_weighted_triplet, ({},)),
    "contrastive": (contrastive_loss, slow_contrastive, ({}, {"margin": 4.0})),
    "circle": (circle_loss, slow_circle, ({}, {"margin": 0.4, "gamma": 16.0})),
    "cosface": (cosface_loss, slow_cosface, ({}, {"margin": 0.4, "gamma": 16.0})),
    "multi-similarity": (
        multi_similarity_loss,
        slow_multi_similarity,
        ({}, {"alpha": 3.0, "beta": 40.0, "epsilon": 2.1}),
    ),
    "centroid triplet": (centroid_triplet, slow_centroid_triplet, ({}, {"margin": 3.0}, {"margin": None})),
    "range": (range_loss, slow_range, ({}, {"margin": 4.0, "intra": 0.2, "inter": 3.0, "k": 3}, {"k": 1})),
    "cluster": (cluster_loss, slow_cluster, ({}, {"margin": 1.0})),
}
UNEVEN = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4]  # five images of one identity, one of others
every_metric_loss = pytest.mark.parametrize("name", METRIC)


def batch(labels, width: int = 8, seed: int = 0, dtype=torch.float32):
    """Random features (B, width), with a gradient, and the labels as a tensor."""
    features = np.random.default_rng(seed).normal(size=(len(labels), width))
    return torch.from_numpy(features).to(dtype).requires_grad_(), torch.tensor(labels)


@every_metric_loss
def test_loss_and_gradient_equal_the_loops(name):
    fast, slow, configs = METRIC[name]
    rng = np.random.default_rng(0)
    batches = [[0, 1, 2, 3], [7, 7, 7, 7], [5], UNEVEN, *(rng.integers(0, 5, n).tolist() for n in (2, 3, 5, 8, 11, 16))]
    for seed, (labels, config) in enumerate((labels, config) for labels in batches for config in configs):
        rows, targets = batch(labels, int(rng.integers(2, 10)), seed, torch.float64)
        expected = slow(rows, labels, **config)
        if expected is None:
            with pytest.raises(ValueError, match="needs a batch with two"):
                fast(rows, targets, **config)
            continue
        (wanted,) = torch.autograd.grad(expected, rows)
        for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 2e-3)):
            features = rows.detach().to(dtype).requires_grad_()
            found = fast(features, targets, **config)
            assert found.shape == () and found.dtype == dtype
            assert found.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
            (gradient,) = torch.autograd.grad(found, features)
            scale = 1 + wanted.abs().max()
            torch.testing.assert_close(gradient.double(), wanted, rtol=tolerance, atol=tolerance * scale)


def special(kind: str) -> torch.Tensor:
    """Features (12, 16) that are hard to differentiate at."""
    rows = batch(UNEVEN, 16)[0].detach().clone()
    if kind == "all equal":
        return torch.full_like(rows, 12.345)
    if kind == "all zero":
        return torch.zeros_like(rows)
    if kind == "some zero":
        rows[[0, 3, 5, 11]] = 0.0
    if kind == "duplicates":
        rows[1] = rows[6] = rows[0]  # 6 is of another identity
        rows[8:10] = rows[8].clone()
    if kind == "opposite":
        rows[:6] = rows[0] * torch.tensor([1.0, -1, 1, -1, 1, -1])[:, None]
    return rows * {"tiny": 1e-30, "small": 1e-9, "huge": 1e6}.get(kind, 1.0)


@every_metric_loss
def test_extreme_features_give_finite_losses_and_gradients_and_nan_is_not_hidden(name):
    loss = METRIC[name][0]
    for kind in ("all equal", "all zero", "some zero", "duplicates", "opposite", "tiny", "small", "huge"):
        features = special(kind).requires_grad_()
        value = loss(features, torch.tensor(UNEVEN))
        value.backward()
        assert value.isfinite() and value >= 0 and features.grad.isfinite().all(), kind
        largest = max(1.0, features.detach().abs().max().item())
        assert features.grad.abs().max() < 1e4 * largest, kind  # as 1 / norm of a row of zeros would be
    for value, row in ((np.nan, 0), (np.nan, 11), (np.inf, 0)):  # row 11 is the only one of its identity
        features, labels = batch(UNEVEN)
        with torch.no_grad():
            features[row, 3] = value
        assert not loss(features, labels).isfinite()


@every_metric_loss
def test_half_precision_and_autocast_are_computed_in_float32_and_order_and_labels_do_not_matter(name):
    loss = METRIC[name][0]
    features, labels = batch(UNEVEN, 64)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        rounded = (3 * features.detach()).to(dtype)
        expected = loss(rounded.float(), labels)
        for enabled in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                found = loss(rounded, labels)
            assert found.dtype == torch.float32 and torch.equal(found, expected)
    order = torch.from_numpy(np.random.default_rng(1).permutation(len(UNEVEN)))
    expected = loss(features, labels).item()
    assert loss(features[order], labels[order]).item() == pytest.approx(expected, rel=1e-5)
    assert loss(features, (labels * 1000 - 7).int()).item() == expected


# ---- focal loss


def slow_focal(logits, labels, gamma, epsilon):
    total = 0
    for row, label in zip(logits, labels, strict=True):
        p = row.exp() / row.exp().sum()
        for c in range(len(row)):
            q = epsilon / len(row) + (1 - epsilon if c == label else 0)
            total = total - q * (1 - p[c]) ** gamma * p[c].log()
    return total / len(labels)


def test_focal_loss():
    logits, labels = batch([0, 3, 1, 1, 4, 2, 0], 5, 1, torch.float64)
    for gamma, epsilon in ((0.0, 0.1), (0.5, 0.0), (1.5, 1.0), (2.0, 0.1)):
        expected = slow_focal(3 * logits, labels.tolist(), gamma, epsilon)
        found = focal_loss(3 * logits, labels, gamma, epsilon)
        assert found.item() == pytest.approx(expected.item(), rel=1e-9)
        torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))
        for scale in (0.0, 20.0, 1e4):
            sure = (scale * torch.eye(3)[[0, 1, 2, 0]]).requires_grad_()
            loss = focal_loss(sure, torch.tensor([0, 1, 2, 2]), gamma, epsilon)  # the last one is wrong
            loss.backward()
            assert loss.isfinite() and sure.grad.isfinite().all()
    same = cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(focal_loss(logits, labels, 0.0, 0.1), same)
    assert focal_loss(torch.zeros(3, 4), torch.tensor([0, 1, 3]), 2.0).item() == pytest.approx(0.75**2 * log(4))


# ---- center loss


def slow_center(features, labels, centers):
    """Mean over the batch of the squared distance to the center of the own class."""
    return sum((x - centers[label]).square().sum() for x, label in zip(features, labels, strict=True)) / len(labels)


def test_center_loss_equals_the_loops_in_all_precisions():
    rng = np.random.default_rng(0)
    for size, width, classes in ((1, 1, 1), (5, 3, 2), (12, 8, 5)):
        labels = torch.from_numpy(rng.integers(0, classes, size))
        loss = CenterLoss(classes, width)
        features = torch.from_numpy(rng.normal(size=(size, width)).astype(np.float32)).requires_grad_()
        slow, centers = (x.detach().double().requires_grad_() for x in (features, loss.centers))
        found, expected = loss(features, labels), slow_center(slow, labels, centers)
        assert found.shape == () and found.item() == pytest.approx(expected.item(), rel=1e-5)
        found.backward()
        expected.backward()
        for gradient, wanted in ((features.grad, slow.grad), (loss.centers.grad, centers.grad)):
            torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-5)
        for dtype in (torch.float16, torch.bfloat16):
            half = features.detach().to(dtype)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(loss(half, labels), loss(half.float(), labels))


def test_centers_move_as_by_sgd_on_the_loss_without_its_weight():
    """Several steps beside the two optimizers of commit 90ae170: branches, groups of batches, skipped steps, bf16."""
    for branches, group, dtype in ((1, 1, torch.float32), (2, 4, torch.float32), (1, 1, torch.bfloat16)):
        cfg = Config(id_weight=0.0, triplet_weight=0.0, center_weight=3e-4, center_lr=0.7)
        by_hand, old = (make_criterion(cfg, 5, [8] * branches, []) for _ in range(2))
        old.load_state_dict(by_hand.state_dict())
        optimizer = torch.optim.SGD(old.parameters(), lr=cfg.loss.center_lr)
        start = by_hand.centers[0].centers.detach().clone()
        for step in range(6):
            batches = []
            for number in range(group):
                rows = [batch(UNEVEN, seed=100 * step + 10 * number + b)[0].detach().to(dtype) for b in range(branches)]
                labels = torch.tensor(UNEVEN).roll(step)
                batches.append((rows, labels))
                (old([], rows, labels)[0] / group).backward()
            moved = torch.tensor(float(step != 2))
            for loss in old.centers:
                loss.centers.grad /= cfg.loss.center_weight
            if moved:
                optimizer.step()
            else:
                batches[0][0][0][0, 0] = torch.nan
            optimizer.zero_grad()
            features = [torch.cat(rows) for rows in zip(*(rows for rows, _ in batches), strict=True)]
            by_hand.move_centers(features, torch.cat([labels for _, labels in batches]), moved if step else None)
        for ours, theirs in zip(by_hand.centers, old.centers, strict=True):
            torch.testing.assert_close(ours.centers, theirs.centers, rtol=1e-5, atol=1e-6)
        assert (by_hand.centers[0].centers - start).abs().max() > 0.1
    make_criterion(cfg.replace(center_weight=0.0), 5, [8], []).move_centers([torch.zeros(2, 8)], torch.zeros(2))


# ---- criterion

ALL = Config(
    id_weight=0.5, triplet_weight=2.0, center_weight=0.01, triplet_margin=0.7, hard_factor=0.1, label_smoothing=0.2
)


def unchanged(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A head without a margin."""
    return logits


def outputs(branches: int):
    """Logits and features of some branches, and labels."""
    features = [batch(UNEVEN, seed=10 + b)[0] for b in range(branches)]
    logits = [3 * batch(UNEVEN, 5, seed=b)[0].detach() for b in range(branches)]
    return [x.requires_grad_() for x in logits], features, torch.tensor(UNEVEN)


@pytest.mark.parametrize("branches", [1, 3])
def test_criterion_is_the_weighted_sum_of_its_parts_and_weight_0_removes_one(branches):
    logits, features, labels = outputs(branches)
    criterion = make_criterion(ALL, 5, [8] * branches, [unchanged] * branches)
    total, parts = criterion(logits, features, labels)
    centers = [loss.centers for loss in criterion.centers]
    expected = {
        "id": np.mean([slow_focal(x.double(), labels, 0, 0.2).item() for x in logits]),
        "triplet": np.mean([slow_triplet(x.double(), labels, 0.7, 0.1).item() for x in features]),
        "center": np.mean([slow_center(x, labels, c).item() for x, c in zip(features, centers, strict=True)]),
    }
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, rel=1e-4)
    weights = {"id": 0.5, "triplet": 2.0, "center": 0.01}
    assert total.item() == pytest.approx(sum(weights[n] * v for n, v in expected.items()), rel=1e-4)
    total.backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (*logits, *features))
    for name in expected:
        without = make_criterion(ALL.replace(**{f"{name}_weight": 0.0}), 5, [8] * branches, [unchanged] * branches)
        assert set(without(logits, features, labels)[1]) == set(expected) - {name}
        assert len(list(without.parameters())) == (0 if name == "center" else branches)


def test_criterion_computes_in_float32_and_refuses_a_batch_without_positives():
    logits, features, labels = outputs(1)
    criterion = make_criterion(ALL, 5, [8], [unchanged])
    half = [[x.detach().bfloat16() for x in rows] for rows in (logits, features)]
    expected, _ = criterion(*([x.float() for x in rows] for rows in half), labels)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            total, parts = criterion(*half, labels)
        assert all(value.dtype == torch.float32 for value in (total, *parts.values()))
        assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    hopeless = [torch.zeros(12, 12)], [torch.zeros(12, 8)], torch.arange(12)
    with pytest.raises(ValueError, match="two images of one identity"):
        make_criterion(Config(), 12, [8], [unchanged])(*hopeless)
    total, _ = make_criterion(Config(triplet_weight=0.0, center_weight=0.0), 12, [8], [unchanged])(*hopeless)
    assert total.item() == pytest.approx(log(12), rel=1e-5)
