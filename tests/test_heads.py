"""Classification heads against formulas in loops, at the edges of the cosine, and in half precision."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from model.heads import HEADS

SOME = settings(max_examples=25, deadline=None, derandomize=True)
COSINE = [name for name in HEADS if name != "linear"]
MARGINS = ["cosface", "arcface", "subcenter_arcface"]  # those that touch the label's logit only


def make(name: str, width: int = 6, classes: int = 4, scale: float = 16.0, margin: float = 0.35, centers: int = 3):
    torch.manual_seed(0)
    return HEADS[name](width, classes, scale, margin, centers)


def batch(size: int = 8, width: int = 6, classes: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32):
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(size, width))).to(dtype)
    return features, torch.from_numpy(rng.integers(0, classes, size))


# ---- the slow references: the new value of one cosine


def slow_arc(cosine, is_label, m):
    if not is_label:
        return cosine
    angle = math.acos(cosine)
    return math.cos(angle + m) if angle + m <= math.pi else cosine - m * math.sin(m)


def slow_circle(cosine, is_label, m):
    if is_label:
        return max(1 + m - cosine, 0) * (cosine - (1 - m))
    return max(cosine + m, 0) * (cosine - m)


SLOW = {
    "linear": lambda c, is_label, m: c,
    "cosine": lambda c, is_label, m: c,
    "cosine_learned": lambda c, is_label, m: c,
    "cosface": lambda c, is_label, m: c - m if is_label else c,
    "arcface": slow_arc,
    "subcenter_arcface": slow_arc,
    "circle": slow_circle,
}


def slow_cosines(name, features, weight, classes):
    """(B, C), or products where the head is linear."""
    rows = []
    centers = len(weight) // classes
    for x in features:
        found = []
        for w in weight:
            dot = sum(a * b for a, b in zip(x, w, strict=True))
            norms = math.sqrt(sum(a**2 for a in x)) * math.sqrt(sum(b**2 for b in w))
            found.append(dot if name == "linear" else dot / norms)
        rows.append([max(found[c * centers : (c + 1) * centers]) for c in range(classes)])
    return rows


@pytest.mark.parametrize("name", HEADS)
@SOME
@given(
    margin=st.sampled_from([0.0, 0.2, 0.5, 1.5]),
    scale=st.sampled_from([1.0, 30.0]),
    centers=st.integers(1, 3),
    width=st.integers(1, 5),
    classes=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_logits_equal_the_loops(name, margin, scale, centers, width, classes, seed):
    features, labels = batch(5, width, classes, seed, torch.float64)
    head = make(name, width, classes, scale, margin, centers).double()
    factor = 1.0 if name == "linear" else scale
    cosines = slow_cosines(name, features.tolist(), head.weight.tolist(), classes)
    plain = torch.tensor([[factor * c for c in row] for row in cosines], dtype=torch.float64)
    torch.testing.assert_close(head(features), plain, rtol=1e-9, atol=1e-9)
    hard = [
        [factor * SLOW[name](min(max(c, -1), 1), k == label, margin) for k, c in enumerate(row)]
        for row, label in zip(cosines, labels.tolist(), strict=True)
    ]
    # 1e-4 because the sine is not let below 1e-6: one feature alone has cosines of exactly 1 and -1
    torch.testing.assert_close(head(features, labels), torch.tensor(hard, dtype=torch.float64), rtol=1e-7, atol=1e-4)
    assert torch.equal(head(features, labels), head.harden(head.plain(features), labels))


def test_angles_worked_out_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    head = make("arcface", 2, 2, scale=10.0, margin=math.pi / 6)
    angle = math.radians(60)
    head.weight.data = torch.tensor([[math.cos(angle), math.sin(angle)], [-3.0, 0.0]])
    plain = torch.tensor([[5.0, -10.0], [10 * math.cos(math.radians(30)), 0.0]])
    torch.testing.assert_close(head(features), plain, atol=1e-5, rtol=0)
    hard = head(features, torch.tensor([0, 0]))  # 60° + 30° and 30° + 30°
    torch.testing.assert_close(hard, torch.tensor([[0.0, -10.0], [5.0, 0.0]]), atol=1e-4, rtol=0)
    beyond = head(features[:1], torch.tensor([1]))  # 180°: no room for 30° more
    assert beyond[0, 1].item() == pytest.approx(-10 - 10 * (math.pi / 6) * 0.5, abs=1e-4)


def test_circle_worked_out_by_hand():
    head = make("circle", 2, 3, scale=10.0, margin=0.25)
    head.weight.data = torch.tensor([[0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    hard = head(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    # the label: (1.25 - 0.6) × (0.6 - 0.75); at a right angle: 0.25 × -0.25; opposite: weight 0
    torch.testing.assert_close(hard, torch.tensor([[-0.975, -0.625, 0.0]]), atol=1e-5, rtol=0)


def test_circles_weights_are_constants_to_the_gradient():
    cosines = torch.tensor([[0.6, 0.1, -0.9]], dtype=torch.float64, requires_grad=True)
    head = make("circle", scale=1.0, margin=0.25)
    head.harden(cosines, torch.tensor([0])).sum().backward()
    torch.testing.assert_close(cosines.grad, torch.tensor([[0.65, 0.35, 0.0]], dtype=torch.float64))


# ---- what margins do and leave


@pytest.mark.parametrize("name", MARGINS)
def test_a_margin_lowers_the_labels_logit_and_no_other(name):
    features, labels = batch(64, classes=5)
    head = make(name, classes=5)
    plain, hard = head(features), head(features, labels)
    label = torch.nn.functional.one_hot(labels, 5).bool()
    assert (hard[label] < plain[label] - 0.1).all()
    assert torch.equal(hard[~label], plain[~label])


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_learned"])
def test_heads_without_a_margin_give_the_same_with_labels(name):
    features, labels = batch()
    head = make(name)
    assert torch.equal(head(features), head(features, labels))


def test_a_larger_angle_never_gives_a_larger_logit():
    cosines = torch.linspace(1, -1, 2001, dtype=torch.float64)[:, None]
    for name in MARGINS:
        for margin in (0.1, 0.5, 1.5):
            hard = make(name, scale=1.0, margin=margin).harden(cosines, torch.zeros(2001, dtype=torch.long))
            assert (hard.diff(dim=0) < 0).all()


def test_a_classs_nearest_center_alone_counts_and_learns():
    features, labels = batch(1)
    head = make("subcenter_arcface", centers=3)
    one = torch.nn.functional.cosine_similarity(features, head.weight).view(4, 3)
    torch.testing.assert_close(head(features)[0], 16 * one.amax(1))
    cross_entropy(head(features, labels), labels).backward()
    moved = head.weight.grad.abs().sum(1).view(4, 3) > 0
    assert torch.equal(moved, one == one.amax(1, keepdim=True))


def test_one_center_a_class_is_arcface():
    features, labels = batch()
    one, plain = make("subcenter_arcface", centers=1), make("arcface")
    assert torch.equal(one.weight, plain.weight)
    assert torch.equal(one(features, labels), plain(features, labels))


@pytest.mark.parametrize("name", COSINE)
def test_the_length_of_a_feature_does_not_matter(name):
    features, labels = batch()
    head = make(name)
    torch.testing.assert_close(head(1e4 * features, labels), head(1e-3 * features, labels))


# ---- gradients


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", [n for n in HEADS if n != "circle"])  # circle's weights have no gradient on purpose
def test_gradients_are_those_of_finite_differences(name, labelled):
    features, labels = batch(3, dtype=torch.float64)
    head = make(name).double()
    parameters = dict(head.named_parameters())

    def function(x, *values):
        given = (x, labels) if labelled else (x,)
        return torch.func.functional_call(head, dict(zip(parameters, values, strict=True)), given)

    assert torch.autograd.gradcheck(function, (features.requires_grad_(), *parameters.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", HEADS)
def test_gradients_stay_small_where_the_label_is_straight_ahead_or_behind(name, sign, dtype):
    head = make(name, width=64, classes=50, scale=64.0, margin=0.5, centers=1).to(dtype)
    labels = torch.arange(50)
    for noise in (0.0, 1e-8, 1e-6, 1e-4):
        features = sign * head.weight.detach() / head.weight.detach().norm(dim=1, keepdim=True)
        features = (features + noise * torch.randn(50, 64, dtype=dtype)).requires_grad_()
        loss = cross_entropy(head(features, labels), labels)
        loss.backward()
        assert loss.isfinite()
        # a unit feature and a scale of 64: no cosine changes faster than 1 × 64, and the mean is over 50
        assert features.grad.norm(dim=1).max() <= 2 * 2 * 64 / 50
        assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_a_feature_of_zeros_has_finite_logits_and_gradients(name):
    features, labels = torch.zeros(2, 6, requires_grad=True), torch.tensor([0, 3])
    head = make(name)
    logits = head(features, labels)
    cross_entropy(logits, labels).backward()
    assert logits.isfinite().all() and features.grad.isfinite().all() and head.weight.grad.isfinite().all()
    assert (head(features) == 0).all()


# ---- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", COSINE)
def test_cosines_are_float32_whatever_comes_and_under_autocast(name, dtype):
    features, labels = batch(dtype=dtype)
    head = make(name)
    expected = head(features.float(), labels)
    with torch.autocast("cpu", dtype=dtype):
        found = head(features, labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(head(features, labels), expected)


def test_a_linear_head_follows_autocast():
    features, labels = batch()
    head = make("linear")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(features, labels)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), head(features), rtol=0.03, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_weights_survive_a_float16_file(name):
    features, labels = batch()
    head, file = make(name), io.BytesIO()
    torch.save({k: v.half() for k, v in head.state_dict().items()}, file)
    file.seek(0)
    torch.manual_seed(1)
    loaded = HEADS[name](6, 4, 16.0, 0.35, 3)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(loaded(features, labels), head(features, labels), rtol=0.01, atol=0.02)


# ---- parameters and training


@pytest.mark.parametrize("name", HEADS)
def test_weights_at_the_start(name):
    head = make(name, width=256, classes=100, centers=3)
    assert head.weight.shape == ((300, 256) if name == "subcenter_arcface" else (100, 256))
    assert head.out_features == 100
    assert head.weight.std().item() == pytest.approx(0.001 if name == "linear" else 0.01, rel=0.05)
    assert head.weight.mean().item() == pytest.approx(0, abs=2e-4)
    assert list(head.state_dict()) == (["weight", "scale"] if name == "cosine_learned" else ["weight"])


def test_a_learned_scale_starts_as_given_and_learns():
    features, labels = batch()
    head = make("cosine_learned", scale=20.0)
    assert head.scale.item() == 20
    cross_entropy(head(features, labels), labels).backward()
    assert head.scale.grad.abs() > 1e-3


@pytest.mark.parametrize("name", HEADS)
def test_a_small_batch_is_learned_by_heart_in_a_few_steps(name):
    torch.manual_seed(0)
    body = torch.nn.Linear(20, 16)
    head = HEADS[name](16, 8, 30.0, 0.35, 2)
    inputs, labels = torch.randn(32, 20), torch.arange(8).repeat(4)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=0.02)
    losses = []
    for _ in range(80):
        loss = cross_entropy(head(body(inputs), labels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert torch.equal(head(body(inputs)).argmax(1), labels)
