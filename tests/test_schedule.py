"""The learning rate at every moment of training."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config import Config
from solver import schedule
from solver.schedule import beyond_the_end, set_lr

RECIPE = Config(warmup_epochs=10.0, warmup_factor=0.01, steps=(40.0, 70.0), gamma=0.1)
STEPS = 8  # steps an epoch


def lr_factor(cfg, progress):
    return schedule.lr_factor(cfg, progress, STEPS)


@pytest.mark.parametrize(
    ("progress", "factor"),
    [
        (0, 0.01),
        (1, 0.109),
        (5, 0.505),
        (9.5, 0.9505),
        (10, 1.0),
        (10.001, 1.0),
        (39.999, 1.0),
        (40, 0.1),
        (40.5, 0.1),
        (69.999, 0.1),
        (70, 0.01),
        (120, 0.01),
        (10_000, 0.01),
    ],
)
def test_the_recipe_warms_up_and_steps_down(progress, factor):
    assert lr_factor(RECIPE, progress) == pytest.approx(factor, rel=1e-9)


@given(st.floats(0, 10), st.floats(0, 10))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_warm_up_rises_linearly_without_a_jump(one, other):
    low, high = lr_factor(RECIPE, min(one, other)), lr_factor(RECIPE, max(one, other))
    assert high - low == pytest.approx(0.99 * abs(one - other) / 10, abs=1e-9)


def test_without_warm_up_training_starts_at_the_full_rate():
    cfg = Config(warmup_epochs=0.0, steps=(2.0,), gamma=0.5)
    assert [lr_factor(cfg, x) for x in (0, 0.5, 1.999, 2, 3)] == [1, 1, 1, 0.5, 0.5]


def test_warm_up_from_the_full_rate_changes_nothing():
    cfg = Config(warmup_epochs=5.0, warmup_factor=1.0, steps=())
    assert {lr_factor(cfg, x / 4) for x in range(40)} == {1.0}


def test_warm_up_may_start_at_0():
    cfg = Config(warmup_epochs=4.0, warmup_factor=0.0, steps=())
    assert [lr_factor(cfg, x) for x in (0, 1, 2, 4)] == [0, 0.25, 0.5, 1]


def test_no_steps_keep_the_rate():
    cfg = Config(warmup_epochs=0.0, steps=())
    assert {lr_factor(cfg, x) for x in range(0, 500, 7)} == {1.0}


def test_a_step_within_warm_up_multiplies_it():
    cfg = Config(warmup_epochs=10.0, warmup_factor=0.0, steps=(5.0,), gamma=0.1)
    assert lr_factor(cfg, 4) == pytest.approx(0.4)
    assert lr_factor(cfg, 6) == pytest.approx(0.06)
    assert lr_factor(cfg, 12) == pytest.approx(0.1)


def test_steps_at_the_same_epoch_multiply_twice():
    cfg = Config(warmup_epochs=0.0, steps=(3.0, 3.0), gamma=0.1)
    assert lr_factor(cfg, 3) == pytest.approx(0.01)


def test_the_factor_depends_on_the_moment_alone():
    moments = [55.5, 0.0, 99.0, 3.25]
    assert [lr_factor(RECIPE, x) for x in moments] == [lr_factor(RECIPE, x) for x in moments]
    assert lr_factor(RECIPE, 3) == lr_factor(RECIPE, 3.0)


def test_set_lr_gives_every_group_its_share_of_the_rate_and_returns_the_whole():
    cfg = Config(lr=2.0, warmup_epochs=10.0, warmup_factor=0.01, steps=(40.0, 70.0), gamma=0.1)
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": weights[:1], "lr": 9.0, "lr_factor": 1.0}, {"params": weights[1:], "lr_factor": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=5.0)
    for progress, rate in ((0, 0.02), (20, 2.0), (50, 0.2), (20, 2.0)):  # back again, too: nothing accumulates
        assert set_lr(cfg, optimizer, progress, STEPS) == pytest.approx(rate)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate, rate / 10])


def test_warm_up_in_steps_wins_over_epochs_and_takes_exactly_so_many_steps():
    # Matrix Light ReID: 2,000 iterations of 202 an epoch; a constant factor shows an error of a single step
    cfg = Config(warmup_epochs=1.0, warmup_iters=2000, warmup_factor=0.25, warmup_method="constant", steps=())
    for steps in (1, 3, 202, 187, 7):
        factors = [schedule.lr_factor(cfg, step / steps, steps) for step in range(2100)]
        assert factors == [0.25] * 2000 + [1.0] * 100


def test_warm_up_in_steps_rises_as_mmcv_does():
    cfg = Config(warmup_iters=2000, warmup_factor=0.01, steps=(), lr=0.065)
    for step in (0, 1, 999, 1500, 1999, 2000):
        k = (1 - step / 2000) * (1 - 0.01) if step < 2000 else 0.0  # mmcv's LrUpdaterHook
        assert schedule.lr_factor(cfg, step / 202, 202) == pytest.approx(1 - k, rel=1e-12)


def test_constant_warm_up_of_epochs_jumps_at_its_end():
    cfg = Config(warmup_epochs=1.5, warmup_factor=0.1, warmup_method="constant", steps=())
    assert [lr_factor(cfg, x) for x in (0, 0.7, 1.4999, 1.5, 2)] == [0.1, 0.1, 0.1, 1, 1]


COSINE = Config(schedule="cosine", epochs=60, warmup_epochs=10.0, warmup_factor=0.1)


@pytest.mark.parametrize(
    ("changes", "progress", "factor"),
    [
        ({}, 0, 0.1),
        ({}, 5, 0.55),
        ({}, 10, 1.0),
        ({}, 35, 0.5),  # half way down
        ({}, 10 + 50 / 3, 0.75),
        ({}, 10 + 100 / 3, 0.25),
        ({}, 60, 0.0),
        ({}, 61, 0.0),
        ({"min_lr_factor": 0.002}, 60, 0.002),
        ({"min_lr_factor": 0.002}, 35, 0.501),
        ({"delay_epochs": 30.0}, 29.9, 1.0),
        ({"delay_epochs": 30.0}, 30, 1.0),
        ({"delay_epochs": 30.0}, 45, 0.5),
        ({"delay_epochs": 30.0}, 60, 0.0),
        ({"delay_epochs": 5.0}, 5, 0.55),  # warm-up is not cut short
        ({"delay_epochs": 5.0}, 35, 0.5),
        ({"warmup_iters": 160}, 40, 0.5),  # 20 epochs of 8 steps
        ({"warmup_epochs": 0.0}, 0, 1.0),
        ({"schedule": "linear"}, 10, 1.0),
        ({"schedule": "linear"}, 20, 0.8),
        ({"schedule": "linear"}, 60, 0.0),
        ({"schedule": "linear", "min_lr_factor": 0.1}, 35, 0.55),
        ({"schedule": "linear", "delay_epochs": 50.0}, 55, 0.5),
        ({"schedule": "linear", "delay_epochs": 50.0}, 99, 0.0),
        ({"warmup_epochs": 60.0}, 60, 1.0),  # nothing is left to fall in, and nothing is divided by 0
        ({"warmup_epochs": 60.0}, 60.5, 0.0),
        ({"warmup_epochs": 120.0}, 60, 0.55),
    ],
)
def test_cosine_and_linear_at_their_corners(changes, progress, factor):
    cfg = replace(COSINE, **changes)
    assert lr_factor(cfg, progress) == pytest.approx(factor, abs=1e-9)


def test_cosine_is_what_torch_and_fast_reid_step_through():
    # fast-reid SBS: Adam 3.5e-4 down to 7e-7 over the 30 epochs after DELAY_EPOCHS, a step an epoch
    cfg = Config(schedule="cosine", lr=3.5e-4, epochs=60, warmup_epochs=0.0, delay_epochs=30.0, min_lr_factor=0.002)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3.5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=7e-7)
    for epoch in range(30, 61):
        assert 3.5e-4 * lr_factor(cfg, epoch) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


@given(
    st.sampled_from(["steps", "cosine", "linear"]),
    st.floats(0, 8),
    st.floats(0, 9),
    st.floats(0, 1),
    st.integers(0, 40),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_every_schedule_rises_in_warm_up_falls_after_it_and_never_leaves_its_bounds(kind, warmup, delay, least, iters):
    cfg = Config(schedule=kind, epochs=10, warmup_epochs=warmup, warmup_iters=iters, warmup_factor=0.1, steps=(9.5,))
    cfg = cfg.replace(delay_epochs=delay, min_lr_factor=least)
    length = iters / STEPS if iters else warmup
    moments = [step / 40 for step in range(401)]
    factors = [lr_factor(cfg, x) for x in moments]
    # no jump, but at a step: the slope is at most that of warm-up or, of the decay, pi / 2 over what is left
    steep = max(0.9 / length if length else 0, math.pi / 2 / (10 - max(length, delay)))
    for x, before, after in zip(moments, factors, factors[1:], strict=False):
        if x + 1 / 40 <= length:
            assert after >= before
        elif x >= length:
            assert after <= before + 1e-12
        assert abs(after - before) <= steep / 40 + 1e-9 or (kind == "steps" and x < 9.5 <= x + 1 / 40)
    assert all(min(0.1, least) - 1e-12 <= f <= 1 for f in factors)
    if kind != "steps":
        assert factors[-1] == pytest.approx(least)


def test_what_comes_only_after_the_last_epoch_is_told():
    fine = Config(epochs=10, steps=(5.0,), warmup_epochs=2.0, freeze_epochs=1.0)
    assert beyond_the_end(fine, STEPS) == []
    assert beyond_the_end(replace(fine, schedule="cosine", steps=(40.0,)), STEPS) == []
    for changes, words in (
        ({"steps": (5.0, 10.0)}, ["--steps 5.0 10.0", "10 epochs"]),
        ({"warmup_iters": 2000}, ["250 epochs", "--lr"]),
        ({"warmup_epochs": 10.0}, ["10 epochs", "--lr"]),
        ({"freeze_epochs": 10.0}, ["--freeze-epochs 10.0", "never trained"]),
    ):
        (sentence,) = beyond_the_end(replace(fine, **changes), STEPS)
        assert all(word in sentence for word in words), sentence
