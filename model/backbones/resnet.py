"""torchvision's ResNet (He et al., Deep Residual Learning for Image Recognition, CVPR 2016), and its wider kinds:
ResNeXt (Xie et al., CVPR 2017) and Wide ResNet (Zagoruyko & Komodakis, BMVC 2016)."""

from torch import nn
from torchvision import models

from config import Config
from model.backbones.stages import Backbone

STAGES = [["conv1", "bn1", "relu", "maxpool", "layer1"], ["layer2"], ["layer3"], ["layer4"]]


def resnet(cfg: Config) -> Backbone:
    """The ResNet of the settings: (B, 3, H, W) to (B, C, H/16, W/16), or H/32 with last stride 2."""
    net = models.get_model(cfg.model.backbone)
    if cfg.model.stride_in_1x1:
        # Caffe's ResNets have the stride of a stage in its first 1×1 convolution, and their weights need it there
        for first in (net.layer2[0], net.layer3[0], net.layer4[0]):
            first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
    backbone = cut_resnet(cfg, net)
    # V1 is what the Bag of Tricks papers started from; V2 transfers worse
    backbone.imagenet = models.get_model_weights(cfg.model.backbone).IMAGENET1K_V1.url
    return backbone


def cut_resnet(cfg: Config, net: nn.Module) -> Backbone:
    """Turn a ResNet into a backbone, with the first layers of other projects if the settings say so."""
    if cfg.model.stem.startswith("no_relu"):
        net.relu = nn.Identity()
    if cfg.model.stem in ("no_relu_pool2", "ceil"):
        net.maxpool = nn.MaxPool2d(2) if cfg.model.stem == "no_relu_pool2" else nn.MaxPool2d(3, 2, ceil_mode=True)
    return Backbone(net, STAGES, [net.fc.in_features // n for n in (8, 4, 2, 1)], cfg.model.last_stride)
