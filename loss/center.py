"""Center loss (Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016)."""

from __future__ import annotations

import torch
from torch import nn


class CenterLoss(nn.Module):
    """Mean squared euclidean distance of each feature to the learned center of its class.

    features (B, D) and labels (B,) in 0..C-1 to a scalar, computed in float32. The centers (C, D) are parameters that
    an optimizer of their own moves; as in Bag of Tricks there is no factor 1/2.
    """

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.centers = nn.Parameter(torch.randn(num_classes, width))

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            # index_select and not [...], whose gradient several threads add up in any order
            return (features.float() - self.centers.index_select(0, labels)).square().sum(1).mean()
