"""MobileNetV2 (Sandler et al., Inverted Residuals and Linear Bottlenecks, CVPR 2018), torchvision's."""

from __future__ import annotations

import torch
from torchvision.models import MobileNet_V2_Weights
from torchvision.models import MobileNetV2 as TorchvisionMobileNetV2

from config import Config


class MobileNetV2(TorchvisionMobileNetV2):
    """torchvision's MobileNetV2 up to its last feature map."""

    def __init__(self, last_stride: int):
        super().__init__()
        self.out_channels = self.last_channel
        del self.classifier
        if last_stride == 1:
            self.features[14].conv[1][0].stride = (1, 1)  # the depthwise convolution of the last strided block

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images)


def mobilenet_v2(cfg: Config) -> MobileNetV2:
    """(B, 3, H, W) to (B, 1280, H/16, W/16), or H/32 with last stride 2."""
    net = MobileNetV2(cfg.last_stride)
    net.imagenet = MobileNet_V2_Weights.IMAGENET1K_V1
    return net
