"""Focal loss and the metric losses beside the batch-hard triplet, against loops straight from the formulas."""

from functools import partial
from math import exp, log, log1p

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, softplus
from torch.utils._python_dispatch import TorchDispatchMode

from loss.centroid_triplet import centroid_triplet
from loss.circle import circle_loss
from loss.cluster import cluster_loss
from loss.contrastive import contrastive_loss
from loss.cosface import cosface_loss
from loss.cross_entropy import focal_loss
from loss.multi_similarity import multi_similarity_loss
from loss.range import range_loss
from loss.triplet import batch_hard_triplet, weighted_triplet

SOME = settings(max_examples=20, deadline=None, derandomize=True)
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


def clusters(f, labels):
    """The features of each identity."""
    return [[f[i] for i, label in enumerate(labels) if label == pid] for pid in sorted(set(labels))]


def slow_soft_triplet(f, labels, hard_factor=0.0):
    return mean([
        softplus((1 + hard_factor) * max(euclid(f[a], f[i]) for i in p)
                 - (1 - hard_factor) * min(euclid(f[a], f[i]) for i in n))
        for a, p, n in anchors(labels)
    ])  # fmt: skip


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


def slow_circle(f, labels, margin=0.25, gamma=128.0):
    values = []
    for a, p, n in anchors(labels):
        terms = []
        for i in p:
            for j in n:
                s_p, s_n = cosine(f[a], f[i]), cosine(f[a], f[j])
                a_p, a_n = max(0.0, 1 + margin - s_p.item()), max(0.0, s_n.item() + margin)
                terms.append(gamma * (a_n * (s_n - margin) - a_p * (s_p - 1 + margin)))
        values.append(torch.stack([*terms, 0 * terms[0]]).logsumexp(0))
    return mean(values)


def slow_cosface(f, labels, margin=0.25, gamma=128.0):
    values = []
    for a, p, n in anchors(labels):
        terms = [gamma * (cosine(f[a], f[j]) + margin - cosine(f[a], f[i])) for i in p for j in n]
        values.append(torch.stack([*terms, 0 * terms[0]]).logsumexp(0))
    return mean(values)


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
        gap = own - min(euclid(f[a], sum(rows) / len(rows)) for rows in others)
        values.append(softplus(gap) if margin is None else max(margin + gap, 0 * gap))
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
    centers = [sum(r) / len(r) for r in rows]
    if len(rows) < 2:
        return None
    return mean([
        max(0 * f.sum(), margin + max(euclid(centers[i], x) for x in rows[i])
            - min(euclid(centers[i], c) for j, c in enumerate(centers) if j != i))
        for i in range(len(rows))
    ])  # fmt: skip


METRIC = {  # name: the loss, its loop, settings to try
    "soft triplet": (soft_triplet, slow_soft_triplet, ({}, {"hard_factor": 0.2})),
    "weighted triplet": (weighted_triplet, slow_weighted_triplet, ({},)),
    "contrastive": (contrastive_loss, slow_contrastive, ({}, {"margin": 4.0})),
    "circle": (circle_loss, slow_circle, ({}, {"margin": 0.4, "gamma": 16.0})),
    "cosface": (cosface_loss, slow_cosface, ({}, {"margin": 0.4, "gamma": 16.0})),
    "multi-similarity": (
        multi_similarity_loss,
        slow_multi_similarity,
        ({}, {"alpha": 3.0, "beta": 40.0, "base": 0.7, "epsilon": 0.3}, {"epsilon": 2.1}),
    ),
    "centroid triplet": (centroid_triplet, slow_centroid_triplet, ({}, {"margin": 3.0}, {"margin": None})),
    "range": (range_loss, slow_range, ({}, {"margin": 4.0, "intra": 0.2, "inter": 3.0, "k": 3}, {"k": 1})),
    "cluster": (cluster_loss, slow_cluster, ({}, {"margin": 1.0})),
}
FAST = {name: fast for name, (fast, _, _) in METRIC.items()}
every_metric_loss = pytest.mark.parametrize("loss", FAST.values(), ids=FAST.keys())
on_anchors = pytest.mark.parametrize("name", [name for name in FAST if name not in ("contrastive", "range", "cluster")])


def batch(labels, width: int = 8, seed: int = 0, dtype=torch.float32):
    """Random features (B, width), with a gradient, and the labels as a tensor."""
    features = np.random.default_rng(seed).normal(size=(len(labels), width))
    return torch.from_numpy(features).to(dtype).requires_grad_(), torch.tensor(labels)


UNEVEN = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4]  # five images of one identity, one of others


# ---- what holds for every metric loss


@pytest.mark.parametrize(
    ("name", "config"), [(n, c) for n, (_, _, configs) in METRIC.items() for c in configs], ids=lambda x: str(x)
)
@SOME
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=11), width=st.integers(2, 9), seed=st.integers(0, 2**31))
@example(labels=[0, 1, 2, 3], width=4, seed=0)
@example(labels=[7, 7, 7, 7], width=4, seed=0)
@example(labels=UNEVEN, width=4, seed=0)
def test_loss_and_gradient_equal_the_loops(name, config, labels, width, seed):
    fast, slow, _ = METRIC[name]
    rows, targets = batch(labels, width, seed, torch.float64)
    expected = slow(rows, labels, **config)
    if expected is None:
        with pytest.raises(ValueError, match="needs a batch with two"):
            fast(rows, targets, **config)
        return
    (wanted,) = torch.autograd.grad(expected, rows)
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 2e-3)):
        features = rows.detach().to(dtype).requires_grad_()
        found = fast(features, targets, **config)
        assert found.shape == ()
        assert found.dtype == dtype
        assert found.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
        (gradient,) = torch.autograd.grad(found, features)
        torch.testing.assert_close(gradient.double(), wanted, rtol=tolerance, atol=tolerance * (1 + wanted.abs().max()))


@pytest.mark.parametrize("name", [name for name in FAST if name != "circle"])  # its weights have no gradient
def test_gradient_is_that_of_finite_differences(name):
    features, labels = batch([0, 0, 0, 1, 1, 2], 4, 5, torch.float64)
    assert torch.autograd.gradcheck(lambda x: FAST[name](x, labels), features)


@every_metric_loss
def test_order_and_names_of_identities_do_not_matter(loss):
    features, labels = batch(UNEVEN)
    expected = loss(features, labels).item()
    order = torch.from_numpy(np.random.default_rng(1).permutation(len(UNEVEN)))
    assert loss(features[order], labels[order]).item() == pytest.approx(expected, rel=1e-5)
    assert loss(features, (labels * 1000 - 7).int()).item() == expected


@every_metric_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_half_precision_and_autocast_are_computed_in_float32(loss, dtype, autocast):
    features, labels = batch(UNEVEN, 256)
    features = (3 * features).to(dtype)
    expected = loss(features.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = loss(features, labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


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
        rows[1] = rows[0]
        rows[6] = rows[0]  # one of another identity
        rows[8:10] = rows[8].clone()
    if kind == "opposite":
        rows[:6] = rows[0] * torch.tensor([1.0, -1, 1, -1, 1, -1])[:, None]
    return rows * {"tiny": 1e-30, "small": 1e-9, "huge": 1e6}.get(kind, 1.0)


@every_metric_loss
@pytest.mark.parametrize(
    "kind", ["all equal", "all zero", "some zero", "duplicates", "opposite", "tiny", "small", "huge"]
)
def test_loss_and_gradient_are_finite_for(loss, kind):
    features = special(kind).requires_grad_()
    value = loss(features, torch.tensor(UNEVEN))
    value.backward()
    assert value.isfinite()
    assert value >= 0
    assert features.grad.isfinite().all()
    largest = max(1.0, features.detach().abs().max().item())
    assert features.grad.abs().max() < 1e4 * largest  # not blown up either, as 1/norm of a row of zeros would be


@every_metric_loss
@pytest.mark.parametrize(("value", "row"), [(np.nan, 0), (np.nan, 11), (np.inf, 0)])  # row 11 is alone of its identity
def test_features_that_are_not_finite_are_not_hidden(loss, value, row):
    features, labels = batch(UNEVEN)
    with torch.no_grad():
        features[row, 3] = value
    assert not loss(features, labels).isfinite()  # so that the training loop sees that it has diverged


@on_anchors
@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3], [7, 7, 7, 7], [5]], ids=["one image each", "one identity", "one image"]
)
def test_a_batch_without_positives_or_negatives_is_refused(name, labels):
    with pytest.raises(ValueError, match="two images of one identity and one image of another"):
        FAST[name](*batch(labels))


@pytest.mark.parametrize(
    ("loss", "labels"), [(contrastive_loss, [5]), (range_loss, [5]), (cluster_loss, [5, 5, 5]), (cluster_loss, [5])]
)
def test_a_batch_without_pairs_or_without_a_second_identity_is_refused(loss, labels):
    with pytest.raises(ValueError, match="needs a batch with two"):
        loss(*batch(labels))


WAITS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2"}
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_"}  # with a mask they wait too


class Refused(TorchDispatchMode):
    """While it is entered, the named operations raise AssertionError."""

    def __init__(self, names):
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.names, f"{name} is refused"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_gpu(monkeypatch):
    """The check of the labels is left out, as it is for labels on a GPU."""
    for module in ("pairs", "cluster"):
        monkeypatch.setattr(f"loss.{module}.refuse_unless", lambda usable, sentence: None)


def test_refused_sees_what_waits_for_a_gpu():
    values = torch.arange(4.0)
    for waits in (lambda: values[values > 1], lambda: bool(values.any()), lambda: values.sum().item()):
        with pytest.raises(AssertionError), Refused(WAITS | INDEXES):
            waits()


@every_metric_loss
@pytest.mark.usefixtures("as_on_gpu")
def test_nothing_waits_for_a_gpu_and_no_gradient_is_added_up_in_any_order(loss):
    features, labels = batch(UNEVEN)
    with Refused(WAITS | INDEXES):
        loss(features, labels).backward()


@every_metric_loss
@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [7, 7, 7, 7], [0, 0]], ids=["one image each", "one identity", "two"])
def test_hopeless_labels_on_a_gpu_give_a_finite_loss_and_gradient(loss, labels):
    features, targets = batch(labels)
    value = loss(features, targets)
    value.backward()
    assert features.grad.isfinite().all()
    if loss not in (contrastive_loss, range_loss, *([cluster_loss] if len(set(labels)) > 1 else [])):
        assert value.item() == 0
        assert not features.grad.any()


@every_metric_loss
def test_gradients_are_bit_identical_every_time_on_two_threads(loss):
    features = torch.randn(64, 2048, generator=torch.Generator().manual_seed(0))
    features[0] *= 0.01  # near to all: many gradients meet in one row
    labels, threads, seen = torch.arange(64) // 4, torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for _ in range(6):
            row = features.clone().requires_grad_()
            loss(row, labels).backward()
            seen.append(row.grad)
    finally:
        torch.set_num_threads(threads)
    assert seen[0].any()
    assert all(torch.equal(seen[0], other) for other in seen)


@every_metric_loss
def test_descent_makes_the_nearest_neighbour_one_of_the_same_identity(loss):
    features, labels = batch([0, 0, 0, 0, 1, 1, 1, 2, 2, 2], 4, seed=3)
    if loss is range_loss:
        loss = partial(range_loss, margin=3.0)
    optimizer = torch.optim.Adam([features], lr=0.05)

    def hits():
        distances = torch.cdist(features, features).fill_diagonal_(torch.inf)
        return (labels[distances.argmin(1)] == labels).float().mean().item()

    assert hits() < 0.7
    for _ in range(150):
        optimizer.zero_grad()
        loss(features, labels).backward()
        optimizer.step()
    assert hits() == 1.0


# ---- worked out by hand

LINE = torch.tensor([[0.0], [1.0], [4.0], [10.0], [12.0], [20.0]])
LINE_LABELS = torch.tensor([1, 1, 1, 2, 2, 3])  # the means are at 5/3, 11 and 20


def test_soft_margin_by_hand():
    # anchors 0 and 3, positives at 3, nearest negatives at 5 and 2; identities 2 and 3 have one image
    found = soft_triplet(torch.tensor([[0.0], [3.0], [5.0], [20.0]]), torch.tensor([1, 1, 2, 3]))
    assert found.item() == pytest.approx((log1p(exp(3 - 5)) + log1p(exp(3 - 2))) / 2)


def test_weighted_triplet_by_hand():
    found = weighted_triplet(torch.tensor([[0.0], [1.0], [3.0], [4.0]]), torch.tensor([1, 1, 2, 3]))
    from_0 = (3 + 4 * exp(-1)) / (1 + exp(-1))  # negatives at 3 and 4
    from_1 = (2 + 3 * exp(-1)) / (1 + exp(-1))
    assert found.item() == pytest.approx((log1p(exp(1 - from_0)) + log1p(exp(1 - from_1))) / 2)


def test_weighted_triplet_counts_far_negatives_in_full():
    # the authors' code adds 1e-6 to the sum of the weights: here it would take the negatives to be near 0
    found = weighted_triplet(torch.tensor([[0.0], [40.0], [-50.0]]), torch.tensor([1, 1, 2]))
    assert found.item() == pytest.approx((log1p(exp(40 - 50)) + log1p(exp(40 - 90))) / 2, rel=1e-4)


def test_contrastive_by_hand():
    found = contrastive_loss(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([1, 1, 2]), margin=2.5)
    assert found.item() == pytest.approx((1 / 2 + 0 + 0.5**2 / 2) / 3)


RIGHT_ANGLE = torch.tensor([[2.0, 0.0], [5.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1, 2])  # s_p = 1, s_n = 0


def test_circle_by_hand():
    # both weights are 0.25: 8·0.25·(0 - 0.25) - 8·0.25·(1 - 0.75) = -1
    assert circle_loss(*RIGHT_ANGLE, margin=0.25, gamma=8.0).item() == pytest.approx(log1p(exp(-1)))


def test_cosface_by_hand():
    assert cosface_loss(*RIGHT_ANGLE, margin=0.25, gamma=2.0).item() == pytest.approx(log1p(exp(2 * (0.25 - 1))))


def test_multi_similarity_by_hand():
    assert multi_similarity_loss(*RIGHT_ANGLE).item() == 0  # no pair is hard
    expected = log1p(exp(-2 * 0.5)) / 2 + log1p(exp(-50 * 0.5)) / 50
    assert multi_similarity_loss(*RIGHT_ANGLE, epsilon=1.1).item() == pytest.approx(expected)


def test_centroid_triplet_by_hand():
    features, labels = torch.tensor([[0.0], [2.0], [4.0], [10.0], [12.0]]), torch.tensor([1, 1, 1, 2, 2])
    # own centroids at 3, 2, 1 and 12, 10; the others' at 11 and at 2
    expected = [9 + 3 - 11, 9 + 0 - 9, 9 + 3 - 7, 9 + 2 - 8, 9 + 2 - 10]
    assert centroid_triplet(features, labels, margin=9.0).item() == pytest.approx(np.mean(expected))


def test_range_by_hand():
    # largest distances 4 and 3 of the first identity, 2 of the second, none of the third; the nearest means 9 apart
    expected = 0.5 * (2 / (1 / 4 + 1 / 3) + 2) + 0.7 * (10 - 9)
    assert range_loss(LINE, LINE_LABELS, margin=10.0, inter=0.7).item() == pytest.approx(expected)


def test_cluster_by_hand():
    expected = [10 + 7 / 3 - 28 / 3, 10 + 1 - 9, 10 + 0 - 9]
    assert cluster_loss(LINE, LINE_LABELS, margin=10.0).item() == pytest.approx(np.mean(expected))


# ---- focal loss


def slow_focal(logits, labels, gamma, epsilon):
    total = 0
    for row, label in zip(logits, labels, strict=True):
        p = row.exp() / row.exp().sum()
        for c in range(len(row)):
            q = epsilon / len(row) + (1 - epsilon if c == label else 0)
            total = total - q * (1 - p[c]) ** gamma * p[c].log()
    return total / len(labels)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_focal_loss_and_its_gradient_equal_the_loops(gamma, epsilon):
    logits, labels = batch([0, 3, 1, 1, 4, 2, 0], 5, 1, torch.float64)
    expected = slow_focal(3 * logits, labels.tolist(), gamma, epsilon)
    found = focal_loss(3 * logits, labels, gamma, epsilon)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    assert focal_loss(3 * logits.float(), labels, gamma, epsilon).item() == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, labels, gamma, epsilon), logits)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_focal_loss_with_gamma_0_is_the_cross_entropy(epsilon):
    logits, labels = batch([0, 3, 1, 1, 4, 2, 0], 5)
    expected = cross_entropy(logits, labels, label_smoothing=epsilon)
    assert focal_loss(logits, labels, 0.0, epsilon).item() == pytest.approx(expected.item(), rel=1e-5)


def test_focal_loss_by_hand():
    assert focal_loss(torch.zeros(3, 4), torch.tensor([0, 1, 3]), 2.0).item() == pytest.approx(0.75**2 * log(4))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("scale", [0.0, 20.0, 1e4])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_focal_loss_is_finite_for_sure_and_for_wrong_predictions(gamma, scale, epsilon):
    logits = (scale * torch.eye(3)[[0, 1, 2, 0]]).requires_grad_()
    loss = focal_loss(logits, torch.tensor([0, 1, 2, 2]), gamma, epsilon)  # the last one is wrong
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_focal_loss_of_half_precision_and_under_autocast_is_computed_in_float32(dtype):
    logits, labels = batch([0, 3, 1, 1, 4, 2, 0], 5)
    logits = (5 * logits).to(dtype)
    expected = focal_loss(logits.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = focal_loss(logits, labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
