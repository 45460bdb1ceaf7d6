"""ResNet (He et al., Deep Residual Learning for Image Recognition, CVPR 2016), torchvision's."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights
from torchvision.models import resnet as torchvision_resnet

from config import Config


class ResNet(torchvision_resnet.ResNet):
    """torchvision's ResNet up to its last feature map; the last stride can be 1 (Sun et al., PCB, ECCV 2018)."""

    def __init__(self, block: type[nn.Module], layers: list[int], last_stride: int, stride_in_1x1: bool):
        super().__init__(block, layers)
        self.out_channels = self.fc.in_features
        del self.avgpool, self.fc
        if stride_in_1x1:
            # Caffe's ResNets take the stride of a stage on the first 1×1 convolution; weights trained so need it there.
            for layer in (self.layer2, self.layer3, self.layer4):
                layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, layer[0].conv1.stride
        if last_stride == 1:
            first = self.layer4[0]
            for conv in (first.conv1, first.conv2, first.downsample[0]):
                conv.stride = (1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def resnet18(cfg: Config) -> ResNet:
    """(B, 3, H, W) to (B, 512, H/16, W/16), or H/32 with last stride 2."""
    net = ResNet(torchvision_resnet.BasicBlock, [2, 2, 2, 2], cfg.last_stride, stride_in_1x1=False)
    net.imagenet = ResNet18_Weights.IMAGENET1K_V1
    return net


def resnet50(cfg: Config) -> ResNet:
    """(B, 3, H, W) to (B, 2048, H/16, W/16), or H/32 with last stride 2."""
    net = ResNet(torchvision_resnet.Bottleneck, [3, 4, 6, 3], cfg.last_stride, cfg.stride_in_1x1)
    net.imagenet = ResNet50_Weights.IMAGENET1K_V1  # what the Bag of Tricks papers started from; V2 transfers worse
    return net
