"""Learning rate as a pure function of the progress of training, so that a checkpoint need not store it."""

import math
from bisect import bisect_right

import torch

from config import Config


def lr_factor(cfg: Config, progress: float, steps_per_epoch: int) -> float:
    """Factor of the base learning rate at `progress` epochs (3.5: middle of the fourth epoch): warm-up times decay.

    Warm-up (Goyal et al. 2017) is linear from `warmup_factor` to 1, or constant at `warmup_factor`.
    Decay: `steps` multiplies by `gamma` at each of the steps. `cosine` (one cycle of SGDR, Loshchilov & Hutter 2017)
    and `linear` stay at 1 until warm-up and `delay_epochs` are over (fast-reid's DELAY_EPOCHS) and reach
    `min_lr_factor` at the end of the last epoch. With rate_changes "epoch", the whole epoch has the factor of its
    start; with "epoch_from_1", it has the factor of its end, as in the code of Bag of Tricks.
    """
    solver, warmup, warmup_end = cfg.solver, 1.0, warmup_length(cfg, steps_per_epoch)
    if solver.rate_changes != "step":
        progress = math.floor(progress) + (solver.rate_changes == "epoch_from_1")
    if progress < warmup_end:
        done = progress / warmup_end if solver.warmup_method == "linear" else 0.0
        warmup = solver.warmup_factor * (1 - done) + done
    if solver.schedule == "steps":
        return warmup * solver.gamma ** bisect_right(solver.steps, progress)
    start = max(warmup_end, solver.delay_epochs)
    if progress <= start:
        return warmup
    done = min((progress - start) / (solver.epochs - start), 1.0) if start < solver.epochs else 1.0
    left = (1 + math.cos(math.pi * done)) / 2 if solver.schedule == "cosine" else 1 - done
    return solver.min_lr_factor + (1 - solver.min_lr_factor) * left


def warmup_length(cfg: Config, steps_per_epoch: int) -> float:
    """Return the length of the warm-up in epochs."""
    return cfg.solver.warmup_iters / steps_per_epoch if cfg.solver.warmup_iters else cfg.solver.warmup_epochs


def set_lr(cfg: Config, optimizer: torch.optim.Optimizer, progress: float, steps_per_epoch: int) -> float:
    """Set the learning rate of each parameter group; return the rate of a group with factor 1."""
    lr = cfg.solver.lr * lr_factor(cfg, progress, steps_per_epoch)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    return lr


def settings_without_effect(cfg: Config, steps_per_epoch: int) -> list[str]:
    """Return one sentence for each setting that would take effect only after the last epoch."""
    solver, epochs, sentences = cfg.solver, cfg.solver.epochs, []
    last = epochs if solver.rate_changes == "epoch_from_1" else epochs - 1e-9  # where a step still has an effect
    if solver.schedule == "steps" and any(step > last for step in solver.steps):
        sentences.append(f"--steps {' '.join(map(str, solver.steps))} go beyond the {epochs} epochs")
    length = warmup_length(cfg, steps_per_epoch)
    if length >= epochs:
        sentences.append(f"warm-up takes {length:.4g} epochs, but there are {epochs}: --lr is never reached")
    if solver.freeze_epochs >= epochs:
        sentences.append(f"--freeze-epochs {solver.freeze_epochs} of {epochs} epochs: the backbone is never trained")
    return sentences
