"""One context for the whole map, from the positions that matter (Cao et al., GCNet, ICCV workshops 2019)."""

from __future__ import annotations

import torch
from torch import nn

from model.attention.common import reduced


class GatedContext(nn.Module):
    """x times a weight in 0..1 for each channel, made of the context.

    GCNet's code has it as `channel_mul`, beside its choice below; it is timm's default, and what the LightMBN of Deep
    Person Re-identification has, at ratio 1/16. Untrained, the weights are about a half.
    """

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        inner = reduced(channels, ratio)
        self.attend = nn.Conv2d(channels, 1, 1, bias=False)  # the softmax over positions would undo a bias
        nn.init.kaiming_normal_(self.attend.weight, nonlinearity="relu")
        self.transform = nn.Sequential(
            nn.Linear(channels, inner), nn.LayerNorm(inner), nn.ReLU(inplace=True), nn.Linear(inner, channels)
        )

    def context(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, 1, 1)."""
        weights = self.attend(x).flatten(2).softmax(2)
        mean = (x.flatten(2) @ weights.transpose(1, 2)).squeeze(2)
        return self.transform(mean)[:, :, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.context(x).sigmoid()


class GlobalContext(GatedContext):
    """x plus the context, as GCNet has it (its ratios: 1/4 and 1/16). Starts as the identity."""

    def __init__(self, channels: int, ratio: float):
        super().__init__(channels, ratio)
        nn.init.zeros_(self.transform[-1].weight)
        nn.init.zeros_(self.transform[-1].bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.context(x)
