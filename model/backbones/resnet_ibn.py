"""ResNet-IBN (Pan et al., Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net, ECCV 2018).
Instance norm removes an image's own color and brightness. Parameter names are those of the authors' weights."""

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from config import Config
from model.backbones.checks import refuse_tiny_images
from model.backbones.resnet import cut_resnet
from model.backbones.stages import Backbone

# name: blocks per stage, kind, first digits of the SHA-256 of the authors' weights
PUBLISHED = {
    "resnet50_ibn_a": ((3, 4, 6, 3), "a", "d9d0bb7b"),
    "resnet101_ibn_a": ((3, 4, 23, 3), "a", "59ea0ac6"),
    "resnet18_ibn_b": ((2, 2, 2, 2), "b", "bc2f3c11"),
    "resnet50_ibn_b": ((3, 4, 6, 3), "b", "9ca61e85"),
}


class IBN(nn.Module):
    """Instance norm of the first half of the channels (rounded down), batch norm of the rest."""

    def __init__(self, channels: int):
        super().__init__()
        self.IN = nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = nn.BatchNorm2d(channels - channels // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, rest = x.split([self.IN.num_features, self.BN.num_features], 1)
        return torch.cat([self.IN(first), self.BN(rest)], 1)


class NormAfterSum(nn.Module):
    """torchvision's block with IBN-b's instance norm between the sum with the shortcut and the last ReLU."""

    def __init__(self, block: BasicBlock | Bottleneck, channels: int):
        super().__init__()
        for name, layer in block.named_children():
            self.add_module(name, layer)
        self.IN = nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):  # a bottleneck
            out = self.bn3(self.conv3(self.relu(out)))
        return self.relu(self.IN(out + x))


def resnet_ibn(cfg: Config) -> Backbone:
    """The ResNet-IBN of the settings: (B, 3, H, W) to (B, C, H/16, W/16), or H/32 with last stride 2.

    Kind a has IBN as the first norm of every block of stages 1 to 3: best on the domain that it is trained on. Kind b
    has instance norm after the stem's convolution and after the sum of the last block of stages 1 and 2: best on other
    domains. Raises UserError for kind a and images below 32 pixels.
    """
    layers, kind, digits = PUBLISHED[cfg.model.backbone]
    block = BasicBlock if cfg.model.backbone.startswith("resnet18") else Bottleneck
    net = ResNet(block, layers)
    if kind == "a":
        refuse_tiny_images(cfg)
        for unit in (*net.layer1, *net.layer2, *net.layer3):
            unit.bn1 = IBN(unit.bn1.num_features)
    else:
        net.bn1 = nn.InstanceNorm2d(net.bn1.num_features, affine=True)
        for layer, width in ((net.layer1, 64), (net.layer2, 128)):
            layer[-1] = NormAfterSum(layer[-1], width * block.expansion)
    backbone = cut_resnet(cfg, net)
    release = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0"
    backbone.imagenet = f"{release}/{cfg.model.backbone}-{digits}.pth"
    return backbone
