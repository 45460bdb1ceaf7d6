"""What several attention modules share."""

from __future__ import annotations

from torch import nn


def reduced(channels: int, ratio: float) -> int:
    """That share of the channels, and never less than one."""
    return max(1, round(channels * ratio))


def zero_bn(channels: int) -> nn.BatchNorm2d:
    """Batch norm that gives 0 until it is trained: what it is added to starts unchanged (Goyal et al. 2017)."""
    bn = nn.BatchNorm2d(channels)
    nn.init.zeros_(bn.weight)
    return bn
