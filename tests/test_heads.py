"""Classification heads, poolings and attention modules against loops, at the edges, and in half precision."""

import math

import numpy as np
import pytest
import torch
from helpers import filled
from scipy.signal import correlate2d
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy

from config import Config
from model.attention import ATTENTION, make_attention
from model.heads import HEADS, make_head
from model.other_pooling import GeM
from model.pooling import POOLING, make_pooling
from utils.errors import UserError

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
    **dict.fromkeys(("linear", "cosine", "cosine_learned"), lambda c, is_label, m: c),
    "cosface": lambda c, is_label, m: c - m if is_label else c,
    "arcface": slow_arc,
    "subcenter_arcface": slow_arc,
    "circle": slow_circle,
}


def trained(head: torch.nn.Module, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logits for training."""
    return head.add_margin(head(features), labels)


def slow_cosines(name: str, features: torch.Tensor, weight: torch.Tensor, classes: int) -> torch.Tensor:
    """(B, C) of the nearest of each class's centers, or products where the head is linear."""
    found = features @ weight.T if name == "linear" else F.cosine_similarity(features[:, None], weight, dim=2)
    return found.unflatten(1, (classes, -1)).amax(2)


@pytest.mark.parametrize("name", HEADS)
def test_logits_equal_the_loops(name):
    for seed, (scale, margin, centers, width, classes) in enumerate(
        [(16.0, 0.35, 3, 6, 4), (1.0, 0.0, 1, 1, 2), (64.0, 1.5, 2, 5, 3), (30.0, 0.5, 3, 2, 5)]
    ):
        features, labels = batch(5, width, classes, seed, torch.float64)
        head = make(name, width, classes, scale, margin, centers).double()
        factor = 1.0 if name == "linear" else scale
        cosines = slow_cosines(name, features, head.weight, classes)
        torch.testing.assert_close(head(features), factor * cosines, rtol=1e-9, atol=1e-9)
        rows = [
            [factor * SLOW[name](min(max(c, -1), 1), k == label, margin) for k, c in enumerate(row)]
            for row, label in zip(cosines.tolist(), labels.tolist(), strict=True)
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
            longer = trained(head, 1e4 * features.float(), labels)
            torch.testing.assert_close(longer, expected)
        with torch.autocast("cpu", dtype=dtype):
            assert make("linear")(features).dtype == dtype


# ---- pooling


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


SLOW_POOLING = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "avg_max": lambda x: x.mean((2, 3)) + x.amax((2, 3)),
    "gem": lambda x: x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3),
}
SLOW_POOLING["gem_fixed"] = SLOW_POOLING["gem"]


@pytest.mark.parametrize("name", POOLING)
def test_a_pooling_equals_the_loops_and_is_float32_in_half_precision(name):
    pool = make_pooling(name)
    for size in ((4, 3), (1, 1), (17, 5)):
        x = maps(3, 5, *size)
        found = make_pooling(name).double()(x)
        torch.testing.assert_close(found, SLOW_POOLING[name](x), rtol=1e-9, atol=1e-12)
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
    layout, layouts = torch.channels_last, []
    x = maps(3, 5, 8, 4, dtype=torch.float32).contiguous(memory_format=layout).requires_grad_() * 1
    x.register_hook(lambda gradient: layouts.append(gradient.is_contiguous(memory_format=layout)))
    pool(x).mul(maps(3, 5)).sum().backward()
    assert layouts == [True]
    most = 65504.0  # of float16, which does not overflow
    expected = torch.full((2, 3), 2 * most if name == "avg_max" else most)
    torch.testing.assert_close(pool(torch.full((2, 3, 16, 8), most, dtype=torch.float16)), expected, rtol=1e-5, atol=0)


def test_gems_gradients_are_those_of_finite_differences():
    pool, x = GeM().double(), (0.5 + maps(2, 3, 3, 2).abs()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: torch.func.functional_call(pool, {"p": p}, (x,)), (x, pool.p))


# ---- attention modules


# ---- the slow references: one image (C, H, W) at a time, in float64


def affine(layer: nn.Module, vector: torch.Tensor) -> torch.Tensor:
    """A linear layer or a 1 × 1 convolution, of one position."""
    return F.linear(vector, layer.weight.flatten(1), layer.bias)


def batch_norm(bn: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """In evaluation mode, of one image."""
    return F.batch_norm(x[None], bn.running_mean, bn.running_var, bn.weight, bn.bias)[0]


def slow_se(m, x):
    weights = affine(m.excite, affine(m.squeeze, x.mean((1, 2))).relu()).sigmoid()
    return torch.stack([w * channel for w, channel in zip(weights, x, strict=True)])


def slow_cbam(m, x):
    def mlp(vector):
        return affine(m.channel[2], affine(m.channel[0], vector).relu())

    weights = (mlp(x.mean((1, 2))) + mlp(x.amax((1, 2)))).sigmoid()
    x = x * weights[:, None, None]
    both = np.stack([x.mean(0), x.amax(0)])
    kernels = m.spatial[0].weight[0].numpy()
    total = sum(correlate2d(plane, kernel, mode="same") for plane, kernel in zip(both, kernels, strict=True))
    return x * batch_norm(m.spatial[1], torch.from_numpy(total)[None]).sigmoid()


def slow_context(m, x):
    flat = x.flatten(1)
    weights = torch.cat([affine(m.attend, position) for position in flat.T]).softmax(0)
    hidden = affine(m.transform[0], sum(w * position for w, position in zip(weights, flat.T, strict=True)))
    hidden = F.layer_norm(hidden, hidden.shape, m.transform[1].weight, m.transform[1].bias)
    return affine(m.transform[3], hidden.relu())[:, None, None]


def slow_pairs(query, key, value, weigh, x):
    """The sum over positions j of weigh(query(i) · key(j)) value(j), for every position i of (C, H, W)."""
    positions, out = x.flatten(1).T, []
    for own in positions:
        dots = torch.stack([affine(query, own) @ affine(key, other) for other in positions])
        out.append(sum(w * affine(value, other) for w, other in zip(weigh(dots), positions, strict=True)))
    return torch.stack(out, 1).unflatten(1, x.shape[1:])


def slow_non_local(m, x, weigh=lambda dots: dots / len(dots)):
    gathered = slow_pairs(m.theta, m.phi, m.g, weigh, x)
    out = torch.stack([affine(m.out, position) for position in gathered.flatten(1).T], 1)
    return x + batch_norm(m.bn, out.unflatten(1, x.shape[1:]))


def softmax(dots):
    return dots.softmax(0)


def slow_positions(m, x):
    return x + batch_norm(m.bn, slow_pairs(m.query, m.key, m.value, softmax, x))


def slow_channels(m, x):
    out = torch.zeros_like(x)
    for i in range(len(x)):
        similarity = torch.stack([(x[i] * other).sum() for other in x])
        for weight, other in zip((similarity.max() - similarity).softmax(0), x, strict=True):
            out[i] += weight * other
    return x + batch_norm(m.bn, out)


SLOW_ATTENTION = {
    "se": slow_se,
    "cbam": slow_cbam,
    "gc": lambda m, x: x + slow_context(m, x),
    "gc_gate": lambda m, x: x * slow_context(m, x).sigmoid(),
    "nonlocal": slow_non_local,
    "nonlocal_softmax": lambda m, x: slow_non_local(m, x, softmax),
    "plr": lambda m, x: slow_se(m[1], slow_positions(m[0], x)),
    "fpb": lambda m, x: slow_channels(m[1], slow_positions(m[0], x)),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_a_trained_module_equals_the_loops_and_trains_at_any_size(name):
    for size in ((4, 3), (1, 1), (3, 9)):
        module, x = filled(ATTENTION[name](12, 0.25)), maps(2, 12, *size)
        with torch.no_grad():
            expected = torch.stack([SLOW_ATTENTION[name](module, image) for image in x])
            torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(module(x.contiguous(memory_format=torch.channels_last)), module(x))
    for channels, ratio, size in ((1, 0.0625, (1, 1)), (3, 0.0, (7, 5)), (16, 1.0, (2, 1))):
        module = filled(ATTENTION[name](channels, ratio)).float().train()
        x = maps(3, channels, *size, dtype=torch.float32).requires_grad_()
        out = module(x)
        out.square().sum().backward()
        assert out.shape == x.shape and out.dtype == torch.float32
        assert all(v.grad is not None and v.grad.isfinite().all() for v in (x, *module.parameters()))
    module = filled(ATTENTION[name](16, 0.5)).train()
    (module(maps(4, 16, 5, 3)) * maps(4, 16, 5, 3, seed=1)).sum().backward()
    idle = {n for n, p in module.named_parameters() if p.grad.abs().max() < 1e-9}
    cancelled = {"phi.bias", "g.bias"}  # by the softmax, and by the batch norm of weights that sum to 1
    assert idle == (cancelled if name == "nonlocal_softmax" else set())


def test_residual_modules_start_as_the_identity_and_learn():
    torch.manual_seed(0)
    x = maps(4, 8, 6, 3, dtype=torch.float32)
    for name in ("gc", "nonlocal", "nonlocal_softmax", "fpb"):
        for training in (True, False):
            module = ATTENTION[name](8, 0.25).train(training)
            assert torch.equal(module(x), x), name
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                F.mse_loss(module(x), x.flip(0)).backward()
                optimizer.step()
            assert not torch.allclose(module(x), x), name


@pytest.mark.parametrize("name", ATTENTION)
def test_autocast_changes_rounding_only_and_large_products_do_not_overflow(name):
    module = filled(ATTENTION[name](16, 0.25)).float()
    x = 0.3 * maps(2, 16, 6, 4, dtype=torch.float32)
    for dtype, most in ((torch.bfloat16, 0.03), (torch.float16, 0.004)):
        with torch.autocast("cpu", dtype=dtype):
            found = module(x)
        assert (found.float() - module(x)).norm() < most * module(x).norm()
    torch.manual_seed(0)
    module = ATTENTION[name](32, 1.0).train()
    x = 100 * maps(2, 32, 16, 8, dtype=torch.float16).abs()
    assert not (x.flatten(2) @ x.flatten(2).transpose(1, 2)).isfinite().all()
    with torch.autocast("cpu", dtype=torch.float16):
        out = module(x)
    out.float().mean().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in module.parameters())


def test_each_stage_gets_a_module_of_its_width_and_a_missing_stage_is_refused():
    attention = make_attention("nonlocal", (2, 3), (256, 512, 1024, 2048), 0.0625)
    assert [(n, *module.theta.weight.shape[:2]) for n, module in attention.items()] == [("2", 32, 512), ("3", 64, 1024)]
    for stage in (0, 3, -1):
        with pytest.raises(UserError, match=rf"--attention-stages {stage} "):
            make_attention("se", (1, stage), (8, 16), 0.0625)
