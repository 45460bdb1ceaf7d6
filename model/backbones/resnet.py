"""ResNet (He et al., Deep Residual Learning for Image Recognition, CVPR 2016), torchvision's; with it ResNeXt (Xie et
al., CVPR 2017) and Wide ResNet (Zagoruyko & Komodakis, BMVC 2016), which differ in the width of their blocks."""

from __future__ import annotations

from functools import partial

from torchvision import models

from config import Config
from model.backbones.stages import Backbone

STAGES = [["conv1", "bn1", "relu", "maxpool", "layer1"], ["layer2"], ["layer3"], ["layer4"]]


def resnet(name: str, cfg: Config) -> Backbone:
    """The ResNet called `name`: (B, 3, H, W) to (B, C, H/16, W/16), or H/32 with last stride 2.

    C is 512 for 18 and 34 layers, 2048 for more.
    """
    net = models.get_model(name)
    width = net.fc.in_features
    if cfg.model.stride_in_1x1:
        # Caffe's ResNets take the stride of a stage on the first 1×1 convolution; weights trained so need it there.
        for first in (net.layer2[0], net.layer3[0], net.layer4[0]):
            first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
    backbone = Backbone(net, STAGES, [width // 8, width // 4, width // 2, width], cfg.model.last_stride)
    # V1 is what the Bag of Tricks papers started from; V2 transfers worse
    backbone.imagenet = models.get_model_weights(name).IMAGENET1K_V1
    return backbone


BASIC = ("resnet18", "resnet34")
BOTTLENECK = ("resnet50", "resnet101", "resnet152")
WIDER = ("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2")
RESNETS = {name: partial(resnet, name) for name in (*BASIC, *BOTTLENECK, *WIDER)}
