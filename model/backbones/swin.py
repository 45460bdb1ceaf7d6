"""Swin Transformer (Liu et al., ICCV 2021; V2: Liu et al., CVPR 2022), torchvision's."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.swin_transformer import PatchMergingV2

from config import Config
from model.backbones.stages import Backbone, cut


class Swin(Backbone):
    """Swin Transformer up to its last layer norm. Its layers are channels-last; attention gets channels-first maps."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).permute(0, 3, 1, 2)

    def attend(self, number: int, maps: torch.Tensor) -> torch.Tensor:
        return super().attend(number, maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DenseMerging(nn.Module):
    """Swin's patch merging at every position instead of every second, zero-padded at the bottom and right: the map
    keeps its size, and its even positions hold the result of the original merging."""

    def __init__(self, merging: nn.Module):
        super().__init__()
        self.reduction, self.norm = merging.reduction, merging.norm
        self.norm_first = not isinstance(merging, PatchMergingV2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) to (B, H, W, 2C)."""
        x = F.pad(x, (0, 0, 0, 1, 0, 1))
        top, bottom = x[:, :-1], x[:, 1:]
        x = torch.cat([top[:, :, :-1], bottom[:, :, :-1], top[:, :, 1:], bottom[:, :, 1:]], -1)
        return self.reduction(self.norm(x)) if self.norm_first else self.norm(self.reduction(x))


def swin(cfg: Config) -> Swin:
    """The Swin of the settings: (B, 3, H, W) to (B, 768, H/16, W/16), or H/32 with last stride 2."""
    net = models.get_model(cfg.model.backbone)
    if cfg.model.last_stride == 1:
        net.features[6] = DenseMerging(net.features[6])
    channels = [net.features[0][0].out_channels * 2**n for n in range(4)]
    stages = cut("features", (2, 4, 6, 8))
    stages[-1].append("norm")
    backbone = Swin(net, stages, channels, cfg.model.last_stride)
    backbone.imagenet = models.get_model_weights(cfg.model.backbone).IMAGENET1K_V1.url
    return backbone
