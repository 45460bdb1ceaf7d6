"""Classification heads and poolings against formulas in loops, at the edges of the cosine, and in half precision."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from config import Config
from model.heads import HEADS, make_head
from model.other_pooling import GeM
from model.pooling import POOLING, make_pooling

COSINE = [name for name in HEADS if name != "linear"]


def make(name: str, width: int = 6, classes: int = 4, scale: float = 16.0, margin: float = 0.35, centers: int = 3):
    torch.manual_seed(0)
    cfg = Config(head=name, head_scale=scale, head_margin=margin, sub_centers=centers)
    return make_head(cfg, width, classes)


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


def trained(head: torch.nn.Module, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logits for training."""
    return head.add_margin(head(features), labels)


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
def test_logits_equal_the_loops(name):
    for seed, (scale, margin, centers, width, classes) in enumerate(
        [(16.0, 0.35, 3, 6, 4), (1.0, 0.0, 1, 1, 2), (64.0, 1.5, 2, 5, 3), (30.0, 0.5, 3, 2, 5)]
    ):
        features, labels = batch(5, width, classes, seed, torch.float64)
        head = make(name, width, classes, scale, margin, centers).double()
        factor = 1.0 if name == "linear" else scale
        cosines = slow_cosines(name, features.tolist(), head.weight.tolist(), classes)
        plain = torch.tensor([[factor * c for c in row] for row in cosines], dtype=torch.float64)
        torch.testing.assert_close(head(features), plain, rtol=1e-9, atol=1e-9)
        rows = [
            [factor * SLOW[name](min(max(c, -1), 1), k == label, margin) for k, c in enumerate(row)]
            for row, label in zip(cosines, labels.tolist(), strict=True)
        ]
        # 1e-4 because the sine is not let below 1e-6: one feature alone has cosines of exactly 1 and -1
        found, expected = trained(head, features, labels), torch.tensor(rows, dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_stay_small_at_the_edges_of_the_cosine(name):
    """No cosine of a unit feature changes faster than 1, times the scale of 64; the mean is over 50 images."""
    for dtype in (torch.float32, torch.float64):
        head = make(name, width=64, classes=50, scale=64.0, margin=0.5, centers=1).to(dtype)
        labels = torch.arange(50)
        for sign, noise in ((1, 0.0), (-1, 0.0), (1, 1e-6), (-1, 1e-4)):
            features = sign * head.weight.detach() / head.weight.detach().norm(dim=1, keepdim=True)
            features = (features + noise * torch.randn(50, 64, dtype=dtype)).requires_grad_()
            loss = cross_entropy(trained(head, features, labels), labels)
            loss.backward()
            assert loss.isfinite() and head.weight.grad.isfinite().all()
            assert features.grad.norm(dim=1).max() <= 2 * 2 * 64 / 50
    features, labels = torch.zeros(2, 6, requires_grad=True), torch.tensor([0, 3])
    head = make(name)
    cross_entropy(trained(head, features, labels), labels).backward()
    assert features.grad.isfinite().all() and head.weight.grad.isfinite().all() and (head(features) == 0).all()


def test_cosines_are_float32_and_a_linear_head_follows_autocast():
    for dtype in (torch.bfloat16, torch.float16):
        features, labels = batch(dtype=dtype)
        for name in COSINE:
            head = make(name)
            expected = trained(head, features.float(), labels)
            with torch.autocast("cpu", dtype=dtype):
                found = trained(head, features, labels)
            assert found.dtype == torch.float32 and torch.equal(found, expected)
            torch.testing.assert_close(
                trained(head, 1e4 * features.float(), labels), expected
            )  # the length does not matter
        with torch.autocast("cpu", dtype=dtype):
            assert make("linear")(features).dtype == dtype


# ---- pooling


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def slow_mean(values):
    return sum(float(v) for v in values) / len(values)


def slow_gem(values, p=3):
    return slow_mean([max(float(v), 1e-6) ** p for v in values]) ** (1 / p)


SLOW_POOLING = {
    "avg": slow_mean,
    "max": lambda v: max(float(x) for x in v),
    "avg_max": lambda v: slow_mean(v) + max(float(x) for x in v),
    "gem": slow_gem,
    "gem_fixed": slow_gem,
}


@pytest.mark.parametrize("name", POOLING)
def test_a_pooling_equals_the_loops_and_is_float32_in_half_precision(name):
    pool = make_pooling(name)
    for size in ((4, 3), (1, 1), (17, 5)):
        x = maps(3, 5, *size)
        expected = [[SLOW_POOLING[name](channel.flatten()) for channel in image] for image in x]
        found = make_pooling(name).double()(x)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(make_pooling(name).double()(x.contiguous(memory_format=torch.channels_last)), found)
    for dtype in (torch.float16, torch.bfloat16):
        x = maps(3, 5, 8, 4, dtype=dtype).requires_grad_()
        for enabled in (False, True):
            with torch.autocast("cpu", dtype=dtype, enabled=enabled):
                found = pool(x)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, pool(x.float()), rtol=1e-6, atol=1e-6)
        found.sum().backward()
        assert x.grad.dtype == dtype and x.grad.isfinite().all()
    most = 65504.0  # of float16, which does not overflow
    expected = torch.full((2, 3), 2 * most if name == "avg_max" else most)
    torch.testing.assert_close(pool(torch.full((2, 3, 16, 8), most, dtype=torch.float16)), expected, rtol=1e-5, atol=0)


def test_gems_gradients_are_those_of_finite_differences():
    pool, x = GeM().double(), (0.5 + maps(2, 3, 3, 2).abs()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: torch.func.functional_call(pool, {"p": p}, (x,)), (x, pool.p))
