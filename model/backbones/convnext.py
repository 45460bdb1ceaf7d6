"""ConvNeXt (Liu et al., A ConvNet for the 2020s, CVPR 2022), torchvision's."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from config import Config
from model.backbones.stages import Backbone, cut
from utils.errors import UserError

NAMES = ("convnext_tiny", "convnext_small", "convnext_base")


class DenseConvolution(nn.Module):
    """A 2 × 2 convolution at every position instead of every second, with zeros past the last row and column: the map
    keeps its size, and what the stride would have given is at its even positions."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


def convnext(name: str, cfg: Config) -> Backbone:
    """The ConvNeXt called `name`: (B, 3, H, W) to (B, C, H/16, W/16), or H/32 with last stride 2; sizes rounded down.

    C is 768, 1024 for base. torchvision's last norm comes after the pooling; here it comes before, at each position,
    as in Swin and ViT. Raises UserError for images that leave no map.
    """
    if min(cfg.data.height, cfg.data.width) < 16 * cfg.model.last_stride:
        raise UserError(
            f"--backbone {name} leaves nothing of --height {cfg.data.height} --width {cfg.data.width} at last stride "
            f"{cfg.model.last_stride}; give {16 * cfg.model.last_stride} or more for both"
        )
    net = models.get_model(name)
    net.classifier = net.classifier[:1]
    if cfg.model.last_stride == 1:
        net.features[6][1] = DenseConvolution(net.features[6][1])
    channels = [net.features[0].out_channels * 2**n for n in range(4)]
    stages = cut("features", (2, 4, 6, 8))
    backbone = Backbone(net, [*stages[:3], [*stages[3], "classifier.0"]], channels, cfg.model.last_stride)
    backbone.imagenet = models.get_model_weights(name).IMAGENET1K_V1
    return backbone


CONVNEXTS = {name: partial(convnext, name) for name in NAMES}
