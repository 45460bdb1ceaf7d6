"""Center loss (Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016)."""

import torch
from torch import nn

from utils.precision import at_least_float32


class CenterLoss(nn.Module):
    """Mean squared euclidean distance of each feature to the center of its class, in float32.

    Maps features (B, D) and labels (B,) in 0..C-1 to a scalar. As in Bag of Tricks, there is no factor 1/2. The centers
    (C, D) are initialized at random.
    """

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.centers = nn.Parameter(torch.randn(num_classes, width))

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            # index_select and not [...]: the gradient of the latter is added up by several threads in any order
            return (at_least_float32(features) - self.centers.index_select(0, labels)).square().sum(1).mean()

    @torch.no_grad()
    def move(self, features: torch.Tensor, labels: torch.Tensor, lr: float, moved: torch.Tensor | None = None) -> None:
        """Update the centers by one step of plain SGD on this loss, or not at all if the scalar `moved` is 0."""
        shift = features.to(self.centers.dtype) - self.centers.index_select(0, labels)
        if moved is not None:  # torch.where does not wait for the device; 0 × NaN would be NaN
            shift = torch.where(moved > 0, shift, 0.0)
        self.centers.index_add_(0, labels, shift, alpha=2 * lr / len(labels))
