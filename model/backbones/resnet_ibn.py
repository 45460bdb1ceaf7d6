"""ResNet-IBN (Pan et al., Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net, ECCV 2018).
Instance norm takes out an image's own colour and light. Parameter names are those of the authors' weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.hub import load_state_dict_from_url
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from config import Config
from model.backbones.resnet import STAGES
from model.backbones.stages import Backbone
from utils.errors import UserError


@dataclass(frozen=True)
class ReleasedWeights:
    """Weights at an address whose file name ends in the first digits of its SHA-256, as in `name-d9d0bb7b.pth`."""

    url: str

    def get_state_dict(self, progress: bool, check_hash: bool) -> dict[str, Any]:
        """The state dict, downloaded once to torch.hub's directory. Raises OSError without a network, RuntimeError when
        what arrived has another hash."""
        options = {"map_location": "cpu", "weights_only": True}
        return load_state_dict_from_url(self.url, progress=progress, check_hash=check_hash, **options)

    def __str__(self) -> str:
        return self.url.rsplit("/", 1)[-1]


class IBN(nn.Module):
    """Instance norm of the first half of the channels (of an odd number, the smaller part), batch norm of the rest."""

    def __init__(self, channels: int):
        super().__init__()
        self.IN = nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = nn.BatchNorm2d(channels - channels // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, rest = x.split([self.IN.num_features, self.BN.num_features], 1)
        return torch.cat([self.IN(first), self.BN(rest)], 1)


class BasicBlockIBN(BasicBlock):
    """ResNet's block of two convolutions, with room for IBN-b's norm between its sum and the last ReLU."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.IN = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(self.IN(out + (x if self.downsample is None else self.downsample(x))))


class BottleneckIBN(Bottleneck):
    """ResNet's bottleneck, with room for IBN-b's norm between its sum and the last ReLU."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.IN = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(self.IN(out + (x if self.downsample is None else self.downsample(x))))


class ResNetIBN(Backbone):
    """A ResNet with instance norm, up to its last feature map.

    Kind a has IBN as the first norm of every block of stages 1 to 3: best on the domain it is trained on. Kind b has
    instance norm after the stem's convolution and after the sum of the last block of stages 1 and 2: best on others.
    """

    def __init__(self, block: type[nn.Module], layers: list[int], kind: Literal["a", "b"], last_stride: int):
        net = ResNet(block, layers)
        channels = [width * block.expansion for width in (64, 128, 256, 512)]
        if kind == "a":
            for unit in (*net.layer1, *net.layer2, *net.layer3):
                unit.bn1 = IBN(unit.bn1.num_features)
        else:
            net.bn1 = nn.InstanceNorm2d(net.bn1.num_features, affine=True)
            net.layer1[-1].IN = nn.InstanceNorm2d(channels[0], affine=True)
            net.layer2[-1].IN = nn.InstanceNorm2d(channels[1], affine=True)
        super().__init__(net, STAGES, channels, last_stride)


def refuse_tiny_images(cfg: Config) -> None:
    """Instance norm of a map of one cell is always 0. Raises UserError where the map at 1/16 would be so small."""
    if max(cfg.data.height, cfg.data.width) < 32:
        raise UserError(
            f"--backbone {cfg.model.backbone} normalises over an image's map at 1/16 of its size, which has one cell with "
            f"--height {cfg.data.height} --width {cfg.data.width}; give --height 32 or more, or another --backbone"
        )


def resnet50_ibn_a(cfg: Config) -> ResNetIBN:
    """(B, 3, H, W) to (B, 2048, H/16, W/16), or H/32 with last stride 2. Raises UserError for images below 32 × 32."""
    refuse_tiny_images(cfg)
    net = ResNetIBN(BottleneckIBN, [3, 4, 6, 3], "a", cfg.model.last_stride)
    net.imagenet = _release("resnet50_ibn_a-d9d0bb7b")
    return net


def resnet101_ibn_a(cfg: Config) -> ResNetIBN:
    """(B, 3, H, W) to (B, 2048, H/16, W/16), or H/32 with last stride 2. Raises UserError for images below 32 × 32."""
    refuse_tiny_images(cfg)
    net = ResNetIBN(BottleneckIBN, [3, 4, 23, 3], "a", cfg.model.last_stride)
    net.imagenet = _release("resnet101_ibn_a-59ea0ac6")
    return net


def resnet18_ibn_b(cfg: Config) -> ResNetIBN:
    """(B, 3, H, W) to (B, 512, H/16, W/16), or H/32 with last stride 2."""
    net = ResNetIBN(BasicBlockIBN, [2, 2, 2, 2], "b", cfg.model.last_stride)
    net.imagenet = _release("resnet18_ibn_b-bc2f3c11")
    return net


def resnet50_ibn_b(cfg: Config) -> ResNetIBN:
    """(B, 3, H, W) to (B, 2048, H/16, W/16), or H/32 with last stride 2."""
    net = ResNetIBN(BottleneckIBN, [3, 4, 6, 3], "b", cfg.model.last_stride)
    net.imagenet = _release("resnet50_ibn_b-9ca61e85")
    return net


def _release(file: str) -> ReleasedWeights:
    return ReleasedWeights(f"https://github.com/XingangPan/IBN-Net/releases/download/v1.0/{file}.pth")
