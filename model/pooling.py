"""Global pooling: modules from maps (B, C, H, W) of any float type to features (B, C) in float32 (float64 stays)."""

import torch
from torch import nn

from utils.lookup import load

POOLING = {  # --pooling: a function without arguments
    "avg": "model.pooling:Average",
    "max": "model.other_pooling:Maximum",
    "avg_max": "model.other_pooling:AverageMaximum",
    "gem": "model.other_pooling:GeM",
    "gem_fixed": "model.other_pooling:fixed_gem",
}


def make_pooling(name: str) -> nn.Module:
    return load(POOLING[name])()


class Average(nn.Module):
    """Mean over the positions."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        # movedim: the gradient gets the layout NHWC of the maps; batch norm on a CPU is 20 times slower with another
        return maps.movedim(1, 3).mean((1, 2), dtype=torch.promote_types(maps.dtype, torch.float32))
