"""Poolings against loops in float64, and the limits of GeM and of half precision."""

import numpy as np
import pytest
import torch
from torch import nn

from model.pooling import POOLING, GeM


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def slow_mean(values):
    return sum(float(v) for v in values) / len(values)


def slow_gem(values, p=3):
    return slow_mean([max(float(v), 1e-6) ** p for v in values]) ** (1 / p)


SLOW = {
    "avg": slow_mean,
    "max": lambda v: max(float(x) for x in v),
    "avg_max": lambda v: slow_mean(v) + max(float(x) for x in v),
    "gem": slow_gem,
    "gem_fixed": slow_gem,
}


@pytest.mark.parametrize("name", POOLING)
def test_a_pooling_equals_the_loops_and_is_float32_in_half_precision(name):
    pool = POOLING[name]()
    for size in ((4, 3), (1, 1), (17, 5)):
        x = maps(3, 5, *size)
        expected = [[SLOW[name](channel.flatten()) for channel in image] for image in x]
        found = POOLING[name]().double()(x)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(POOLING[name]().double()(x.contiguous(memory_format=torch.channels_last)), found)
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


def test_gems_p_learns_and_its_gradient_is_that_of_finite_differences():
    x = maps(16, 8, 6, 4, dtype=torch.float32).abs()
    target, pool = GeM(p=6.0)(x).detach(), GeM()
    optimizer = torch.optim.Adam(pool.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.mse_loss(pool(x), target).backward()
        optimizer.step()
    assert pool.p.item() == pytest.approx(6, abs=0.1)
    pool, x = GeM().double(), (0.5 + maps(2, 3, 3, 2).abs()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: torch.func.functional_call(pool, {"p": p}, (x,)), (x, pool.p))
