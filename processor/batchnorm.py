"""Batch norm's running statistics, kept finite."""

from __future__ import annotations

import torch
from torch import nn


class FiniteStatistics:
    """Takes back what a batch did to batch norm's running statistics where that is not finite.

    A forward pass that overflows, as it may in half precision, moves no weight: its gradients are skipped. But training
    looks at a batch's own mean and variance and never at the running ones, so these would stay NaN for good, in every
    checkpoint from then on, and each test would fail. Nothing here waits for the device.
    """

    def __init__(self, model: nn.Module):
        named = model.named_buffers()
        self.buffers = [x for name, x in named if name.endswith(("running_mean", "running_var"))]
        self.before = self._now()

    def _now(self) -> torch.Tensor:
        return torch.cat([x.flatten() for x in self.buffers]) if self.buffers else torch.empty(0)

    @torch.no_grad()
    def keep(self) -> None:
        """To be called after each forward pass: all statistics as before it, if any of them is not finite now."""
        if not self.buffers:
            return
        now = self._now()
        self.before = torch.where(torch.isfinite(now).all(), now, self.before)
        parts = self.before.split([x.numel() for x in self.buffers])
        torch._foreach_copy_(self.buffers, [part.view_as(x) for part, x in zip(parts, self.buffers, strict=True)])
