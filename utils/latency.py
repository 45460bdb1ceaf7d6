"""Time that modules take on this machine, as undisturbed as can be."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn


@torch.no_grad()
def shortest(modules: Sequence[tuple[nn.Module, torch.Tensor]], rounds: int = 50) -> list[float]:
    """Seconds of the fastest of `rounds` runs of each module, in evaluation mode, on its input.

    What else the machine does only adds, so the fastest counts. The modules run in turns: what disturbs the machine for
    a while disturbs all alike, and each finds the caches full of the others' numbers, as in the network that it is a
    part of. On a CPU with one thread, seconds are those in which the thread ran, so that waiting for others is no part.
    """
    device = modules[0][1].device
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    best = [float("inf")] * len(modules)
    for module, _ in modules:
        module.eval()
    for _ in range(rounds):
        for place, (module, images) in enumerate(modules):
            start = clock()
            module(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best[place] = min(best[place], clock() - start)
    return best
