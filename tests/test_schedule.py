"""The learning rate at every moment of training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config import Config
from solver.schedule import lr_factor, set_lr

RECIPE = Config(warmup_epochs=10.0, warmup_factor=0.01, steps=(40.0, 70.0), gamma=0.1)


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


def test_set_lr_gives_every_group_the_rate_and_returns_it():
    cfg = Config(lr=2.0, warmup_epochs=10.0, warmup_factor=0.01, steps=(40.0, 70.0), gamma=0.1)
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr": 9.0}, {"params": weights[1:]}], lr=5.0)
    for progress, rate in ((0, 0.02), (20, 2.0), (50, 0.2), (20, 2.0)):  # back again, too: nothing accumulates
        assert set_lr(cfg, optimizer, progress) == pytest.approx(rate)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate, rate])
