"""Learning rate as a pure function of how far training is: nothing to store in a checkpoint, nothing to step twice."""

from __future__ import annotations

from bisect import bisect_right

import torch

from config import Config


def lr_factor(cfg: Config, progress: float) -> float:
    """Factor on the base rate at `progress` epochs (3.5: in the middle of the fourth). Warm-up rises linearly from
    `warmup_factor` to 1 (Goyal et al. 2017), then each of `steps` multiplies by `gamma`."""
    warmup = 1.0
    if progress < cfg.warmup_epochs:
        done = progress / cfg.warmup_epochs
        warmup = cfg.warmup_factor * (1 - done) + done
    return warmup * cfg.gamma ** bisect_right(cfg.steps, progress)


def set_lr(cfg: Config, optimizer: torch.optim.Optimizer, progress: float) -> float:
    """Give the model's optimizer the rate of this moment and return it."""
    lr = cfg.lr * lr_factor(cfg, progress)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr
