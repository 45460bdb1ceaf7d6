"""Time that a module takes on this machine, as undisturbed as can be."""

from __future__ import annotations

import time

import torch
from torch import nn


@torch.no_grad()
def fastest(module: nn.Module, images: torch.Tensor, runs: int = 10) -> float:
    """Seconds of the fastest of `runs` calls, after three that do not count: what else the machine does only adds."""
    module.eval()
    best = float("inf")
    for run in range(3 + runs):
        start = time.perf_counter()
        module(images)
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        if run >= 3:
            best = min(best, time.perf_counter() - start)
    return best
