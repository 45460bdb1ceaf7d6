"""OSNet (Zhou et al., Omni-Scale Feature Learning for Person Re-Identification, ICCV 2019), with OSNet-IBN and
OSNet-AIN (Zhou et al., Learning Generalisable Omni-Scale Representations, TPAMI 2021). Names are torchreid's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Literal

import torch
from torch import nn

from config import Config
from model.backbones.resnet_ibn import refuse_tiny_images
from model.backbones.stages import Staged, init_convolutions
from utils.errors import UserError

# name: channels after the stem and the three stages, kind of norm, Google Drive's id of the ImageNet weights
PUBLISHED = {
    "osnet_x1_0": ((64, 256, 384, 512), "bn", "1LaG1EJpHrxdAxKnSCJ_i0u-nbxSAeiFY"),
    "osnet_x0_75": ((48, 192, 288, 384), "bn", "1uwA9fElHOk3ZogwbeY5GkLI6QPTX70Hq"),
    "osnet_x0_5": ((32, 128, 192, 256), "bn", "16DGLbZukvVYgINws8u8deSaOqjybZ83i"),
    "osnet_x0_25": ((16, 64, 96, 128), "bn", "1rb8UN5ZzPKRc_xvtHlyDh-cSz88YX9hs"),
    "osnet_ibn_x1_0": ((64, 256, 384, 512), "ibn", "1sr90V6irlYYDd4_4ISU2iruoRG8J__6l"),
    "osnet_ain_x1_0": ((64, 256, 384, 512), "ain", "1-CaioD9NaqbHK_kzSMW8VE4_3KcsRjEo"),
    "osnet_ain_x0_75": ((48, 192, 288, 384), "ain", "1apy0hpsMypqstfencdH-jKIUEFOW4xoM"),
    "osnet_ain_x0_5": ((32, 128, 192, 256), "ain", "1KusKvEYyKGDTUBVRxRiz55G31wkihB6l"),
    "osnet_ain_x0_25": ((16, 64, 96, 128), "ain", "1SxQt2AvmEcgWNhaRb2xC4rP6ZwVDP0Wt"),
}

STAGES = [["conv1", "maxpool", "conv2", "pool2"], ["conv3", "pool3"], ["conv4", "conv5"]]

instance_norm = partial(nn.InstanceNorm2d, affine=True)


@dataclass(frozen=True)
class DriveWeights:
    """Weights on Google Drive, which a person has to fetch: there is no checksum to verify a download by."""

    name: str
    url: str

    def get_state_dict(self, progress: bool, check_hash: bool) -> dict[str, Any]:
        """Raises UserError, which says where the file is."""
        raise UserError(
            f"the ImageNet weights of {self.name} are not downloaded by this program: fetch them from {self.url} "
            "(torchreid also names https://huggingface.co/kaiyangzhou/osnet) and give the file with --weights FILE, or "
            "train from scratch with --weights none"
        )


def convolution(
    c_in: int, c_out: int, kernel: int = 1, stride: int = 1, norm: Callable | None = nn.BatchNorm2d, relu: bool = True
) -> nn.Sequential:
    """Convolution, norm (named bn whatever it is) and ReLU."""
    layers = OrderedDict(conv=nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False))
    if norm:
        layers["bn"] = norm(c_out)
    if relu:
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def light_convolution(c: int) -> nn.Sequential:
    """A 3×3 convolution taken apart: 1×1 across channels, then 3×3 within each; norm and ReLU once, at the end."""
    across = nn.Conv2d(c, c, 1, bias=False)
    within = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
    return nn.Sequential(OrderedDict(conv1=across, conv2=within, bn=nn.BatchNorm2d(c), relu=nn.ReLU(inplace=True)))


def stream(c: int, depth: int) -> nn.Sequential:
    """Light convolutions in a row: its depth sets its scale, a receptive field of 2 * depth + 1."""
    return nn.Sequential(*(light_convolution(c) for _ in range(depth)))


def halve(c: int) -> nn.Sequential:
    """To half the height and width, rounded down."""
    return nn.Sequential(convolution(c, c), nn.AvgPool2d(2))


class Gate(nn.Module):
    """Weighs each channel of a stream by what the whole map shows. All streams of a block share one."""

    def __init__(self, c: int):
        super().__init__()
        self.fc1 = nn.Conv2d(c, c // 16, 1)
        self.fc2 = nn.Conv2d(c // 16, c, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.fc1(pooled).relu()).sigmoid()


class OSBlock(nn.Module):
    """Omni-scale residual block: four streams of one to four light convolutions, gated and summed.

    With instance norm it is IBN's: of the sum with the shortcut.
    """

    def __init__(self, c_in: int, c_out: int, with_in: bool = False):
        super().__init__()
        middle = c_out // 4
        self.conv1 = convolution(c_in, middle)
        self.conv2a = light_convolution(middle)
        self.conv2b, self.conv2c, self.conv2d = (stream(middle, depth) for depth in (2, 3, 4))
        self.gate = Gate(middle)
        self.conv3 = convolution(middle, c_out, relu=False)
        self.downsample = convolution(c_in, c_out, relu=False) if c_in != c_out else nn.Identity()
        self.IN = instance_norm(c_out) if with_in else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        streams = (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        out = self.conv3(gated_sum(self.conv1(x), streams, self.gate))
        return self.IN(out + self.downsample(x)).relu()


class AINBlock(nn.Module):
    """OSNet-AIN's omni-scale block. With instance norm, it takes the place of the last batch norm before the sum."""

    def __init__(self, c_in: int, c_out: int, with_in: bool = False):
        super().__init__()
        middle = c_out // 4
        self.conv1 = convolution(c_in, middle)
        streams = (OrderedDict(layers=stream(middle, depth)) for depth in (1, 2, 3, 4))
        self.conv2 = nn.ModuleList(map(nn.Sequential, streams))
        self.gate = Gate(middle)
        self.conv3 = convolution(middle, c_out, norm=None if with_in else nn.BatchNorm2d, relu=False)
        self.downsample = convolution(c_in, c_out, relu=False) if c_in != c_out else nn.Identity()
        self.IN = instance_norm(c_out) if with_in else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv3(gated_sum(self.conv1(x), self.conv2, self.gate))
        return (self.IN(out) + self.downsample(x)).relu()


def gated_sum(x: torch.Tensor, streams: Any, gate: nn.Module) -> torch.Tensor:
    """What the streams make of x, gated, summed: (B, C, H, W) to the same shape."""
    return reduce(torch.add, (gate(stream(x)) for stream in streams))


class OSNet(Staged):
    """OSNet up to its last feature map, at 1/16 of the image as published: there is no last stride to take out.

    Kind ibn has instance norm in the stem and in stage 1, kind ain where an architecture search put it.
    Stage 1 ends at 1/8 of the image, 2 and 3 at 1/16.
    """

    def __init__(self, channels: tuple[int, int, int, int], kind: Literal["bn", "ibn", "ain"]):
        super().__init__(STAGES, channels[1:])
        stem, c2, c3, c4 = channels
        self.conv1 = convolution(3, stem, 7, 2, nn.BatchNorm2d if kind == "bn" else instance_norm)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        if kind == "ain":
            self.conv2 = nn.Sequential(AINBlock(stem, c2, with_in=True), AINBlock(c2, c2, with_in=True))
            self.conv3 = nn.Sequential(AINBlock(c2, c3), AINBlock(c3, c3, with_in=True))
            self.conv4 = nn.Sequential(AINBlock(c3, c4, with_in=True), AINBlock(c4, c4))
            self.pool2, self.pool3 = halve(c2), halve(c3)
        else:
            ibn = kind == "ibn"
            self.conv2 = nn.Sequential(OSBlock(stem, c2, ibn), OSBlock(c2, c2, ibn), halve(c2))
            self.conv3 = nn.Sequential(OSBlock(c2, c3), OSBlock(c3, c3), halve(c3))
            self.conv4 = nn.Sequential(OSBlock(c3, c4), OSBlock(c4, c4))
            self.pool2, self.pool3 = nn.Identity(), nn.Identity()  # torchreid has them in conv2 and conv3 here
        self.conv5 = convolution(c4, c4)
        init_convolutions(self)


def osnet(name: str, cfg: Config) -> OSNet:
    """The OSNet called `name`: (B, 3, H, W) to (B, C, H/16, W/16), C = 512 times its width.

    Raises UserError for last stride 2, which it cannot have, and for images that are too small for OSNet-AIN.
    """
    channels, kind, drive = PUBLISHED[name]
    if cfg.model.last_stride != 1:
        raise UserError(
            f"--last-stride {cfg.model.last_stride} cannot be had of {name}, which ends at 1/16; leave it out"
        )
    if kind == "ain":
        refuse_tiny_images(cfg)
    net = OSNet(channels, kind)
    net.imagenet = DriveWeights(name, f"https://drive.google.com/file/d/{drive}/view")
    return net


OSNETS = {name: partial(osnet, name) for name in PUBLISHED}
