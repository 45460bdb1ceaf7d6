"""ConvNeXt (Liu et al., A ConvNet for the 2020s, CVPR 2022), torchvision's."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from config import Config
from model.backbones.stages import Backbone, cut
from utils.errors import UserError


class DenseConvolution(nn.Module):
    """A 2 × 2 convolution at every position instead of every second, zero-padded at the bottom and right: the map keeps
    its size, and its even positions hold the result of the stride-2 convolution."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


def convnext(cfg: Config) -> Backbone:
    """The ConvNeXt of the settings: (B, 3, H, W) to (B, C, H/16, W/16), or H/32 with last stride 2; rounded down.

    torchvision's last norm comes after the pooling; here it comes before, at each position, as in Swin and ViT. Raises
    UserError for images that are too small to leave a map.
    """
    height, width, least = cfg.data.height, cfg.data.width, 16 * cfg.model.last_stride
    if min(height, width) < least:
        raise UserError(
            f"--backbone {cfg.model.backbone} leaves nothing of --height {height} --width {width} at last stride "
            f"{cfg.model.last_stride}; give {least} or more for both"
        )
    net = models.get_model(cfg.model.backbone)
    net.classifier = net.classifier[:1]
    if cfg.model.last_stride == 1:
        net.features[6][1] = DenseConvolution(net.features[6][1])
    channels = [net.features[0].out_channels * 2**n for n in range(4)]
    stages = cut("features", (2, 4, 6, 8))
    stages[-1].append("classifier.0")
    backbone = Backbone(net, stages, channels, cfg.model.last_stride)
    backbone.imagenet = models.get_model_weights(cfg.model.backbone).IMAGENET1K_V1.url
    return backbone
