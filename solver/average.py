"""Exponential moving average of the weights (Polyak & Juditsky 1992; Tarvainen & Valpola, Mean Teacher, 2017)."""

import copy

import torch
from torch import nn

from config import Config


def make_average(model: nn.Module) -> nn.Module:
    """Return a copy of the model in evaluation mode, for `update_average`."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def update_average(cfg: Config, average: nn.Module, model: nn.Module, steps_before: int) -> None:
    """Replace each weight w of `average` by d·w + (1 - d)·(model's weight), after step `steps_before` (from 0).

    d = min(ema_decay, (1 + n) / (10 + n)) with n = steps_before, so that the initial weights are soon forgotten
    (TensorFlow's ExponentialMovingAverage). Batch norm's statistics are averaged like weights (timm's ModelEmaV3):
    the latest statistics do not fit averaged weights. Integer counters are copied. Nothing waits for the device.
    """
    decay = min(cfg.solver.ema_decay, (1 + steps_before) / (10 + steps_before))
    pairs = [*zip(average.parameters(), model.parameters(), strict=True)]
    pairs += zip(average.buffers(), model.buffers(), strict=True)
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_(*map(list, zip(*floats, strict=True)), 1 - decay)
    for kept, new in (pair for pair in pairs if not pair[0].is_floating_point()):
        kept.copy_(new)
