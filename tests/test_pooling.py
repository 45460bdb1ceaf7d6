"""Poolings against loops in float64, and what holds at the limits of GeM and of half precision."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from model.pooling import POOLING, GeM


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def slow_gem(values, p):
    total = 0.0
    for v in values:
        total += max(float(v), 1e-6) ** p
    return (total / len(values)) ** (1 / p)


SLOW = {
    "avg": lambda v: sum(float(x) for x in v) / len(v),
    "max": lambda v: max(float(x) for x in v),
    "avg_max": lambda v: sum(float(x) for x in v) / len(v) + max(float(x) for x in v),
    "gem": lambda v: slow_gem(v, 3),
    "gem_fixed": lambda v: slow_gem(v, 3),
}


@pytest.mark.parametrize("name", POOLING)
@pytest.mark.parametrize("size", [(4, 3), (1, 1), (1, 7), (17, 5)])
def test_a_pooling_equals_the_loops(name, size):
    x = maps(3, 5, *size)
    values = [[SLOW[name](channel.flatten()) for channel in image] for image in x]
    pool = POOLING[name]().double()
    torch.testing.assert_close(pool(x), torch.tensor(values, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(pool(x.contiguous(memory_format=torch.channels_last)), pool(x))


@pytest.mark.parametrize("name", POOLING)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_pooled_as_float32_under_autocast_or_not(name, dtype):
    pool, x = POOLING[name](), maps(3, 5, 8, 4, dtype=dtype).requires_grad_()
    expected = pool(x.float())
    with torch.autocast("cpu", dtype=dtype):
        inside = pool(x)
    for found in (pool(x), inside):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    inside.sum().backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()


@pytest.mark.parametrize("name", POOLING)
def test_the_largest_float16_does_not_overflow(name):
    x = torch.full((2, 3, 16, 8), 65504.0, dtype=torch.float16)
    expected = 2 * 65504.0 if name == "avg_max" else 65504.0
    torch.testing.assert_close(POOLING[name]()(x), torch.full((2, 3), expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", POOLING)
def test_gradients_are_those_of_finite_differences(name):
    pool = POOLING[name]().double()
    x = (0.5 + maps(2, 3, 3, 2).abs()).requires_grad_()
    parameters = dict(pool.named_parameters())

    def function(x, *values):
        return torch.func.functional_call(pool, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters.values()))


def test_only_gem_learns_and_only_its_p():
    learned = {name: [n for n, _ in POOLING[name]().named_parameters()] for name in POOLING}
    assert learned == {"avg": [], "max": [], "avg_max": [], "gem": ["p"], "gem_fixed": []}
    assert POOLING["gem"]().p.item() == POOLING["gem_fixed"]().p.item() == 3
    assert not POOLING["gem_fixed"]().state_dict()
    assert POOLING["gem"]() is not POOLING["gem"]()


# ---- GeM


def test_gem_worked_out_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 0.0, -5.0, 0.0]).view(1, 1, 3, 2)
    assert GeM(p=3.0)(x).item() == pytest.approx((36 / 6) ** (1 / 3))
    assert GeM(p=2.0)(x).item() == pytest.approx((14 / 6) ** 0.5)


def test_gem_is_the_average_at_p_1_and_near_the_maximum_at_a_large_p():
    x = maps(4, 6, 8, 4, dtype=torch.float32).abs() * 1e4  # 1e4 to the power of 1000 has no place in any float
    torch.testing.assert_close(GeM(p=1.0)(x), x.mean((2, 3)), rtol=1e-5, atol=0)
    torch.testing.assert_close(GeM(p=1000.0)(x), x.amax((2, 3)), rtol=0.005, atol=0)
    assert (GeM(p=1000.0)(x) <= x.amax((2, 3)) * 1.0001).all()


def test_gem_grows_with_p():
    x = maps(4, 6, 8, 4).abs()
    pooled = [GeM(p=p).double()(x) for p in (1.0, 1.5, 3.0, 6.0, 50.0)]
    assert all((a < b).all() for a, b in pairwise(pooled))


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-6, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_map_without_a_positive_value_gives_epsilon_and_finite_gradients(value, dtype):
    pool, x = GeM(), torch.full((2, 3, 4, 2), value, dtype=dtype, requires_grad=True)
    out = pool(x)
    out.sum().backward()
    torch.testing.assert_close(out, torch.full((2, 3), 1e-6), rtol=0.02, atol=0)  # float16 has 1.01e-6
    assert x.grad.isfinite().all() and pool.p.grad.isfinite()


def test_a_p_below_1_counts_as_1():
    x = maps(2, 3, 4, 2, dtype=torch.float32).abs()
    for p in (0.5, 0.0, -2.0):
        torch.testing.assert_close(GeM(p=p)(x), x.mean((2, 3)))


def test_p_learns_which_mean_was_meant():
    x = maps(16, 8, 6, 4, dtype=torch.float32).abs()
    target, pool = GeM(p=6.0)(x).detach(), GeM()
    optimizer = torch.optim.Adam(pool.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.mse_loss(pool(x), target).backward()
        optimizer.step()
    assert pool.p.item() == pytest.approx(6, abs=0.1)


def test_p_survives_a_float16_file_and_a_model_cast_to_half():
    pool, file = GeM(p=4.5), io.BytesIO()
    torch.save(pool.half().state_dict(), file)
    file.seek(0)
    loaded = GeM()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    x = maps(2, 3, 4, 2, dtype=torch.float16)
    assert loaded.p.item() == 4.5 and loaded.p.dtype == torch.float32
    torch.testing.assert_close(pool(x), loaded(x))
