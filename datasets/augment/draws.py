"""The random numbers of one batch: drawn on the CPU from a key, so that every device and every process agrees."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch


class Draws:
    """All random numbers of one batch, from a key of integers such as (seed, epoch, step).

    Each method draws for the `total` images of the batch over all processes, and gives the numbers of the `batch`
    images from `first` on. A process with a share of a batch therefore augments it as a single process would. Numbers
    are drawn for every image, chosen or not, so that no image's depend on what another's turned out to be.
    """

    def __init__(self, *key: int, batch: int, first: int = 0, total: int | None = None):
        self.total = batch if total is None else total
        if not 0 <= first <= first + batch <= self.total:
            raise ValueError(f"images {first} to {first + batch} are no part of a batch of {self.total}")
        self.part = slice(first, first + batch)
        seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]  # keys that differ: independent streams
        self.generator = torch.Generator().manual_seed(int(seed >> np.uint64(1)))

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """(B, *shape) float32, uniform in [low, high)."""
        return torch.empty(self.total, *shape).uniform_(low, high, generator=self.generator)[self.part]

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """(B, *shape) int64, low <= n < high, all equally likely."""
        return torch.randint(low, high, (self.total, *shape), generator=self.generator)[self.part]

    def chance(self, probability: float) -> torch.Tensor:
        """(B,) bool, each true with this probability."""
        return self.uniform(0, 1) < probability

    def bytes(self, *shape: int) -> torch.Tensor:
        """(B, *shape) uint8, 0 to 255, all equally likely."""
        count = self.total * math.prod(shape)
        # Eight to a 64-bit number: six times as fast as to draw them one by one.
        numbers = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None, generator=self.generator)
        return numbers.view(torch.uint8)[:count].view(self.total, *shape)[self.part]


def on_chosen(images: torch.Tensor, chosen: torch.Tensor, change: Callable, *numbers: torch.Tensor) -> torch.Tensor:
    """The batch with `change(some images, *their numbers)` in place of the chosen ones; nothing else is computed.

    images: (B, ...) on any device. chosen: (B,) bool, and numbers: (B, ...) each, both on the CPU.
    """
    index = chosen.nonzero()[:, 0]
    if not len(index):
        return images
    changed = change(images.index_select(0, index.to(images.device, non_blocking=True)), *(n[index] for n in numbers))
    order = torch.arange(len(images))
    order[index] = torch.arange(len(images), len(images) + len(index))
    return torch.cat([images, changed]).index_select(0, order.to(images.device, non_blocking=True))
