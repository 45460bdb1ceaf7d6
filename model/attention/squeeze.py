"""Channels weighed by the map's mean (Hu et al., Squeeze-and-Excitation Networks, CVPR 2018)."""

from __future__ import annotations

import torch
from torch import nn

from model.attention.common import reduced


class SE(nn.Module):
    """x times a weight in 0..1 for each channel. The paper's ratio is 1/16. Untrained, the weights are about a half."""

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        self.squeeze = nn.Linear(channels, reduced(channels, ratio))
        self.excite = nn.Linear(reduced(channels, ratio), channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return x * weights[:, :, None, None]
