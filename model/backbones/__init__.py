"""Name to backbone: a function of the Config that gives a module from images (B, 3, H, W) to a map (B, C, h, w), with
the attribute `out_channels`. Parameter names are torchvision's. A new one is one file, and one line here."""

from model.backbones.efficientnet import efficientnet_v2_s
from model.backbones.mobilenet import mobilenet_v2
from model.backbones.resnet import resnet18, resnet50

BACKBONES = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_v2_s": efficientnet_v2_s,
}
