"""The learning rate at every moment of training."""

import pytest
import torch

from config import Config
from solver import lr_factor

STEPS = 8  # steps per epoch
RECIPE = Config(warmup_epochs=10.0, warmup_factor=0.01, steps=(40.0, 70.0), gamma=0.1)
CONSTANT = Config(warmup_epochs=1.5, warmup_factor=0.1, warmup_method="constant", steps=())
COSINE = Config(schedule="cosine", epochs=60, warmup_epochs=10.0, warmup_factor=0.1)


@pytest.mark.parametrize(
    ("cfg", "changes", "factors"),
    [
        (RECIPE, {}, {0: 0.01, 1: 0.109, 5: 0.505, 9.5: 0.9505, 10: 1, 39.999: 1, 40: 0.1, 69.999: 0.1, 70: 0.01}),
        (RECIPE, {"warmup_epochs": 0.0, "steps": (2.0,), "gamma": 0.5}, {0: 1, 1.999: 1, 2: 0.5, 99: 0.5}),
        (RECIPE, {"warmup_factor": 1.0, "steps": ()}, {0: 1, 5: 1, 500: 1}),
        (RECIPE, {"warmup_factor": 0.0, "steps": (5.0,)}, {0: 0, 4: 0.4, 6: 0.06, 12: 0.1}),  # a step within warm-up
        (RECIPE, {"warmup_epochs": 0.0, "steps": (3.0, 3.0)}, {3: 0.01}),
        (CONSTANT, {}, {0: 0.1, 1.4999: 0.1, 1.5: 1, 2: 1}),
        (COSINE, {}, {0: 0.1, 5: 0.55, 10: 1, 35: 0.5, 10 + 50 / 3: 0.75, 10 + 100 / 3: 0.25, 60: 0, 61: 0}),
        (COSINE, {"min_lr_factor": 0.002}, {35: 0.501, 60: 0.002}),
        (COSINE, {"delay_epochs": 30.0}, {29.9: 1, 30: 1, 45: 0.5, 60: 0}),
        (COSINE, {"delay_epochs": 5.0}, {5: 0.55, 35: 0.5}),  # warm-up is not cut short
        (COSINE, {"warmup_iters": 160}, {40: 0.5}),  # 20 epochs of 8 steps
        (COSINE, {"warmup_epochs": 0.0}, {0: 1}),
        (COSINE, {"schedule": "linear"}, {10: 1, 20: 0.8, 60: 0}),
        (COSINE, {"schedule": "linear", "min_lr_factor": 0.1}, {35: 0.55}),
        (COSINE, {"schedule": "linear", "delay_epochs": 50.0}, {55: 0.5, 99: 0}),
        (COSINE, {"warmup_epochs": 60.0}, {60: 1, 60.5: 0}),  # no time is left to decay in
        (COSINE, {"warmup_epochs": 120.0}, {60: 0.55}),
    ],
)
def test_factors_at_the_corners(cfg, changes, factors):
    cfg = cfg.replace(**changes)
    found = {progress: lr_factor(cfg, progress, STEPS) for progress in factors}
    assert found == pytest.approx(factors, abs=1e-9)


def test_warm_up_in_steps_wins_over_epochs_and_takes_exactly_so_many_steps():
    # Matrix Light ReID: 2,000 iterations of 202 per epoch; a constant factor shows an error of a single step
    cfg = Config(warmup_epochs=1.0, warmup_iters=2000, warmup_factor=0.25, warmup_method="constant", steps=())
    for steps in (1, 3, 202, 187, 7):
        factors = [lr_factor(cfg, step / steps, steps) for step in range(2100)]
        assert factors == [0.25] * 2000 + [1.0] * 100
    cfg = Config(warmup_iters=2000, warmup_factor=0.01, steps=(), lr=0.065)
    for step in (0, 1, 999, 1999, 2000):
        k = (1 - step / 2000) * (1 - 0.01) if step < 2000 else 0.0  # mmcv's LrUpdaterHook
        assert lr_factor(cfg, step / 202, 202) == pytest.approx(1 - k, rel=1e-12)


def test_cosine_is_what_torch_and_fast_reid_step_through():
    # fast-reid SBS: Adam 3.5e-4 down to 7e-7 over the 30 epochs after DELAY_EPOCHS, a step per epoch
    cfg = Config(schedule="cosine", lr=3.5e-4, epochs=60, warmup_epochs=0.0, delay_epochs=30.0, min_lr_factor=0.002)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3.5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=7e-7)
    for epoch in range(30, 61):
        assert 3.5e-4 * lr_factor(cfg, epoch, STEPS) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()
