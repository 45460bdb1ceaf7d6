"""EfficientNetV2 (Tan & Le, Smaller Models and Faster Training, ICML 2021), torchvision's."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import EfficientNet_V2_S_Weights
from torchvision.models import efficientnet_v2_s as torchvision_efficientnet_v2_s

from config import Config


class EfficientNet(nn.Module):
    """The feature stages of a torchvision EfficientNet."""

    def __init__(self, net: nn.Module, last_stride: int):
        super().__init__()
        self.features = net.features
        self.out_channels = net.classifier[-1].in_features
        if last_stride == 1:
            strided = [m for m in self.features.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
            strided[-1].stride = (1, 1)  # the only strided convolution of the last down-sampling block is depthwise

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images)


def efficientnet_v2_s(cfg: Config) -> EfficientNet:
    """(B, 3, H, W) to (B, 1280, H/16, W/16), or H/32 with last stride 2."""
    net = EfficientNet(torchvision_efficientnet_v2_s(), cfg.last_stride)
    net.imagenet = EfficientNet_V2_S_Weights.IMAGENET1K_V1
    return net
