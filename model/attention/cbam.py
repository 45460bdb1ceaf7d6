"""Channels, then positions, weighed by mean and maximum (Woo et al., CBAM, ECCV 2018)."""

from __future__ import annotations

import torch
from torch import nn

from model.attention.common import reduced


class CBAM(nn.Module):
    """x times a weight in 0..1 for each channel, and the result times one for each position.

    The paper's ratio is 1/16. The batch norm after the 7 × 7 convolution is not in its formula, but in its authors'
    code and in the others'. Untrained, the weights are about a half.
    """

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        inner = reduced(channels, ratio)
        self.channel = nn.Sequential(
            nn.Linear(channels, inner, bias=False), nn.ReLU(inplace=True), nn.Linear(inner, channels, bias=False)
        )
        self.spatial = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = (self.channel(x.mean((2, 3))) + self.channel(x.amax((2, 3)))).sigmoid()
        x = x * weights[:, :, None, None]
        return x * self.spatial(torch.stack([x.mean(1), x.amax(1)], 1)).sigmoid()
