"""Attention modules against loops in float64, and what each promises of its start, its size and its precision."""

import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.attention import ATTENTION, make_attention
from model.attention.common import reduced
from model.attention.dual import ChannelAttention, PositionAttention
from utils.errors import UserError

IDENTITY = ["gc", "nonlocal", "nonlocal_softmax", "fpb"]
GATES = ["se", "cbam", "gc_gate"]


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics of a trained module: nothing is 0 or 1 any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                value.copy_(noise.abs() + 0.5 if name.endswith("running_var") else 0.5 * noise)
    return module


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


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


SLOW = {
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
@pytest.mark.parametrize("size", [(4, 3), (1, 1), (3, 9), (1, 5)])
def test_a_trained_module_equals_the_loops(name, size):
    module = randomise(ATTENTION[name](12, 0.25).double()).eval()
    x = maps(2, 12, *size)
    expected = np.stack([SLOW[name](module, image) for image in x.numpy()])
    torch.testing.assert_close(module(x), torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


# ---- shapes, starts and sizes


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize(("channels", "ratio", "size"), [(1, 0.0625, (1, 1)), (3, 0.0, (7, 5)), (16, 1.0, (2, 1))])
def test_any_width_ratio_and_size_trains(name, channels, ratio, size):
    module = randomise(ATTENTION[name](channels, ratio)).train()
    x = maps(3, channels, *size, dtype=torch.float32).requires_grad_()
    out = module(x)
    out.square().sum().backward()
    assert out.shape == x.shape and out.dtype == torch.float32
    assert all(v.grad is not None and v.grad.isfinite().all() for v in (x, *module.parameters()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", IDENTITY)
def test_what_is_said_to_start_as_the_identity_does_and_leaves_it(name, training):
    torch.manual_seed(0)
    module = ATTENTION[name](8, 0.25).train(training)
    x = maps(4, 8, 6, 3, dtype=torch.float32)
    assert torch.equal(module(x), x)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(module(x), x.flip(0)).backward()
        optimizer.step()
    assert not torch.allclose(module(x), x)


@pytest.mark.parametrize("name", GATES)
def test_gates_weigh_between_0_and_1(name):
    module = randomise(ATTENTION[name](8, 0.25).double())
    weights = module(maps(2, 8, 6, 3)) / maps(2, 8, 6, 3)
    assert ((weights > 0) & (weights < 1)).all()
    torch.manual_seed(0)
    start = ATTENTION[name](64, 0.25).double()(maps(2, 64, 6, 3)) / maps(2, 64, 6, 3)
    middle = 0.25 if name == "cbam" else 0.5  # CBAM weighs twice
    assert start.mean().item() == pytest.approx(middle, abs=0.1)


def test_plr_starts_as_squeeze_and_excitation():
    module = ATTENTION["plr"](8, 0.25)
    x = maps(2, 8, 6, 3, dtype=torch.float32)
    assert torch.equal(module(x), module[1](x))


@pytest.mark.parametrize(
    ("name", "expected"),  # of 64 channels with 4 of them inside
    [
        ("se", 64 * 4 + 4 + 4 * 64 + 64),
        ("cbam", 2 * 64 * 4 + 2 * 7 * 7 + 2),
        ("gc", 64 + 64 * 4 + 4 + 2 * 4 + 4 * 64 + 64),
        ("gc_gate", 64 + 64 * 4 + 4 + 2 * 4 + 4 * 64 + 64),
        ("nonlocal", 3 * (64 * 4 + 4) + 4 * 64 + 2 * 64),
        ("nonlocal_softmax", 3 * (64 * 4 + 4) + 4 * 64 + 2 * 64),
        ("plr", (2 * 64 * 4 + 4 + 64 * 64 + 2 * 64) + (64 * 4 + 4 + 4 * 64 + 64)),
        ("fpb", (2 * 64 * 4 + 4 + 64 * 64 + 2 * 64) + 2 * 64),
    ],
)
def test_number_of_parameters(name, expected):
    assert sum(p.numel() for p in ATTENTION[name](64, 0.0625).parameters()) == expected


def test_a_reduced_width_is_the_nearest_whole_number_and_at_least_one():
    assert [reduced(c, r) for c, r in [(512, 0.0625), (100, 0.29), (8, 0.0625), (8, 0.0), (1, 0.5)]] == [
        32,
        29,
        1,
        1,
        1,
    ]


@pytest.mark.parametrize("name", ATTENTION)
def test_every_parameter_has_a_part_in_the_result(name):
    module = randomise(ATTENTION[name](16, 0.5).double(), seed=2)
    (module(maps(4, 16, 5, 3)) * maps(4, 16, 5, 3, seed=1)).sum().backward()
    idle = {n for n, p in module.named_parameters() if p.grad.abs().max() < 1e-9}
    undone = {"phi.bias", "g.bias"}  # by the softmax, and by the batch norm of weights that sum to 1
    assert idle == (undone if name == "nonlocal_softmax" else set())


# ---- what must not matter


@pytest.mark.parametrize("name", ATTENTION)
def test_images_do_not_see_each_other_and_memory_order_does_not_matter(name):
    module = randomise(ATTENTION[name](8, 0.5).double()).eval()
    x = maps(3, 8, 5, 4)
    whole = module(x)
    torch.testing.assert_close(torch.cat([module(image[None]) for image in x]), whole)
    torch.testing.assert_close(module(x.contiguous(memory_format=torch.channels_last)), whole)


@pytest.mark.parametrize("name", [n for n in ATTENTION if n != "cbam"])
def test_without_convolutions_over_space_positions_can_be_shuffled(name):
    module = randomise(ATTENTION[name](8, 0.5).double()).eval()
    x, order = maps(2, 8, 5, 3), torch.randperm(15, generator=torch.Generator().manual_seed(0))

    def shuffle(m):
        return m.flatten(2)[:, :, order].unflatten(2, (5, 3))

    torch.testing.assert_close(module(shuffle(x)), shuffle(module(x)))


@pytest.mark.parametrize("name", ATTENTION)
def test_gradients_are_those_of_finite_differences(name):
    module = randomise(ATTENTION[name](4, 0.5).double(), seed=1).eval()
    x = maps(2, 4, 2, 3).requires_grad_()
    parameters = dict(module.named_parameters())

    def function(x, *values):
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters.values()))


# ---- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ATTENTION)
def test_autocast_changes_rounding_only(name, dtype):
    module = randomise(ATTENTION[name](16, 0.25)).eval()
    x = 0.3 * maps(2, 16, 6, 4, dtype=torch.float32)
    expected = module(x)
    with torch.autocast("cpu", dtype=dtype):
        found = module(x)
    found.float().square().sum().backward()
    error = (found.float() - expected).norm() / expected.norm()
    assert error < (0.03 if dtype == torch.bfloat16 else 0.004)
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", ATTENTION)
def test_products_that_outgrow_float16_do_no_harm(name):
    torch.manual_seed(0)
    module = ATTENTION[name](32, 1.0).train()
    x = 100 * maps(2, 32, 16, 8, dtype=torch.float16).abs()
    assert not (x.flatten(2) @ x.flatten(2).transpose(1, 2)).isfinite().all()
    with torch.autocast("cpu", dtype=torch.float16):
        out = module(x)
    out.float().mean().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", ATTENTION)
def test_weights_survive_a_float16_file(name):
    module, file = randomise(ATTENTION[name](16, 0.25)).eval(), io.BytesIO()
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()}, file)
    file.seek(0)
    loaded = ATTENTION[name](16, 0.25).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    x = 0.3 * maps(2, 16, 6, 4, dtype=torch.float32)
    assert (loaded(x) - module(x)).norm() < 0.004 * module(x).norm()


# ---- several stages


def test_one_module_a_stage_of_the_stages_own_width():
    attention = make_attention("nonlocal", (2, 3), (256, 512, 1024, 2048), 0.0625)
    assert list(attention) == ["2", "3"]
    assert [attention[n].theta.weight.shape[:2] for n in attention] == [(32, 512), (64, 1024)]
    assert len(make_attention("none", (2, 3), (), 0.0625)) == 0


@pytest.mark.parametrize("stage", [0, 3, -1])
def test_a_stage_that_is_not_there_is_refused(stage):
    with pytest.raises(UserError, match=rf"--attention-stages {stage} does not exist; this backbone has 1 to 2"):
        make_attention("se", (1, stage), (8, 16), 0.0625)


@pytest.mark.parametrize("module", [PositionAttention(8, 0.25), ChannelAttention(8)])
def test_the_papers_gamma_before_the_batch_norm_is_a_switch_only(module):
    """Why it is left out: its size is normalised away."""
    x = maps(4, 8, 6, 3, dtype=torch.float32)
    bn = nn.BatchNorm2d(8)
    torch.testing.assert_close(bn(0.3 * x), bn(7.0 * x), rtol=1e-3, atol=1e-3)
    nn.init.ones_(module.bn.weight)
    branch = module(x) - x
    torch.testing.assert_close(branch.var((0, 2, 3), correction=0), torch.ones(8), rtol=0.01, atol=0.01)
