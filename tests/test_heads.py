"""Classification heads, poolings and attention modules against loops, at the edges, and in half precision."""

import math

import numpy as np
import pytest
import torch
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


# ---- attention modules


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics of a trained module: nothing is 0 or 1 any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                value.copy_(noise.abs() + 0.5 if name.endswith("running_var") else 0.5 * noise)
    return module


# ---- the slow references: one image (C, H, W) at a time, in float64


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def array(tensor):
    return tensor.detach().numpy()


def affine(layer, vector):
    """A linear layer or a 1 × 1 convolution, of one position."""
    weight = array(layer.weight).reshape(layer.weight.shape[0], -1)
    return weight @ vector + (0 if layer.bias is None else array(layer.bias))


def batch_norm(bn, x):
    """The tested form, of (C, ...)."""
    per = [array(v).reshape(-1, *[1] * (x.ndim - 1)) for v in (bn.running_mean, bn.running_var, bn.weight, bn.bias)]
    return (x - per[0]) / np.sqrt(per[1] + bn.eps) * per[2] + per[3]


def slow_se(m, x):
    mean = np.array([channel.mean() for channel in x])
    weights = sigmoid(affine(m.excite, np.maximum(affine(m.squeeze, mean), 0)))
    return np.stack([w * channel for w, channel in zip(weights, x, strict=True)])


def slow_cbam(m, x):
    def mlp(vector):
        return affine(m.channel[2], np.maximum(affine(m.channel[0], vector), 0))

    weights = sigmoid(mlp(x.mean((1, 2))) + mlp(x.max((1, 2))))
    x = x * weights[:, None, None]
    both, kernel = np.stack([x.mean(0), x.max(0)]), array(m.spatial[0].weight)[0]
    out = np.zeros_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            total = 0.0
            for di in range(-3, 4):
                for dj in range(-3, 4):
                    if 0 <= i + di < x.shape[1] and 0 <= j + dj < x.shape[2]:
                        total += kernel[:, di + 3, dj + 3] @ both[:, i + di, j + dj]
            out[:, i, j] = x[:, i, j] * sigmoid(batch_norm(m.spatial[1], np.array([total])))
    return out


def slow_context(m, x):
    flat = x.reshape(len(x), -1)
    weights = softmax(np.array([affine(m.attend, flat[:, n])[0] for n in range(flat.shape[1])]))
    hidden = affine(m.transform[0], sum(w * flat[:, n] for n, w in enumerate(weights)))
    norm = m.transform[1]
    hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + norm.eps) * array(norm.weight) + array(norm.bias)
    return affine(m.transform[3], np.maximum(hidden, 0))[:, None, None]


def slow_pairs(query, key, value, weigh, x):
    """The sum over positions j of weigh(query(i) · key(j)) value(j), for every position i of (C, H, W)."""
    flat = x.reshape(len(x), -1)
    positions = range(flat.shape[1])
    out = []
    for i in positions:
        dots = np.array([affine(query, flat[:, i]) @ affine(key, flat[:, j]) for j in positions])
        out.append(sum(w * affine(value, flat[:, j]) for j, w in enumerate(weigh(dots))))
    return np.stack(out, 1).reshape(-1, *x.shape[1:])


def slow_non_local(m, x, weigh=lambda dots: dots / len(dots)):
    gathered = slow_pairs(m.theta, m.phi, m.g, weigh, x)
    out = np.stack([affine(m.out, v) for v in gathered.reshape(len(gathered), -1).T], 1).reshape(x.shape)
    return x + batch_norm(m.bn, out)


def slow_positions(m, x):
    return x + batch_norm(m.bn, slow_pairs(m.query, m.key, m.value, softmax, x))


def slow_channels(m, x):
    out = np.zeros_like(x)
    for i in range(len(x)):
        similarity = np.array([(x[i] * x[j]).sum() for j in range(len(x))])
        for j, weight in enumerate(softmax(similarity.max() - similarity)):
            out[i] += weight * x[j]
    return x + batch_norm(m.bn, out)


SLOW_ATTENTION = {
    "se": slow_se,
    "cbam": slow_cbam,
    "gc": lambda m, x: x + slow_context(m, x),
    "gc_gate": lambda m, x: x * sigmoid(slow_context(m, x)),
    "nonlocal": slow_non_local,
    "nonlocal_softmax": lambda m, x: slow_non_local(m, x, softmax),
    "plr": lambda m, x: slow_se(m[1], slow_positions(m[0], x)),
    "fpb": lambda m, x: slow_channels(m[1], slow_positions(m[0], x)),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_a_trained_module_equals_the_loops_and_trains_at_any_size(name):
    for size in ((4, 3), (1, 1), (3, 9)):
        module = randomise(ATTENTION[name](12, 0.25).double()).eval()
        x = maps(2, 12, *size)
        expected = np.stack([SLOW_ATTENTION[name](module, image) for image in x.numpy()])
        torch.testing.assert_close(module(x), torch.from_numpy(expected), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(module(x.contiguous(memory_format=torch.channels_last)), module(x))
    for channels, ratio, size in ((1, 0.0625, (1, 1)), (3, 0.0, (7, 5)), (16, 1.0, (2, 1))):
        module = randomise(ATTENTION[name](channels, ratio)).train()
        x = maps(3, channels, *size, dtype=torch.float32).requires_grad_()
        out = module(x)
        out.square().sum().backward()
        assert out.shape == x.shape and out.dtype == torch.float32
        assert all(v.grad is not None and v.grad.isfinite().all() for v in (x, *module.parameters()))
    module = randomise(ATTENTION[name](16, 0.5).double(), seed=2)
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
    module = randomise(ATTENTION[name](16, 0.25)).eval()
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
