"""OSNet (Zhou et al., Omni-Scale Feature Learning for Person Re-Identification, ICCV 2019), with OSNet-IBN and
OSNet-AIN (Zhou et al., Learning Generalisable Omni-Scale Representations, TPAMI 2021). Names are torchreid's."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial, reduce

import torch
from torch import nn

from config import Config
from model.backbones.checks import init_convolutions, refuse_last_stride_2, refuse_tiny_images
from model.backbones.stages import Staged

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


def convolution(
    c_in: int, c_out: int, kernel: int = 1, stride: int = 1, norm: Callable | None = nn.BatchNorm2d, relu: bool = True
) -> nn.Sequential:
    """Convolution, norm (always named bn) and ReLU."""
    layers = OrderedDict(conv=nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False))
    if norm:
        layers["bn"] = norm(c_out)
    if relu:
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def light_convolution(c: int) -> nn.Sequential:
    """A factorized 3×3 convolution: 1×1 across channels, then 3×3 within each, then norm and ReLU."""
    across = nn.Conv2d(c, c, 1, bias=False)
    within = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
    return nn.Sequential(OrderedDict(conv1=across, conv2=within, bn=nn.BatchNorm2d(c), relu=nn.ReLU(inplace=True)))


def stream(c: int, depth: int) -> nn.Sequential:
    """`depth` light convolutions: a receptive field of 2 * depth + 1."""
    return nn.Sequential(*(light_convolution(c) for _ in range(depth)))


def halve(c: int) -> nn.Sequential:
    """Halve height and width, rounded down."""
    return nn.Sequential(convolution(c, c), nn.AvgPool2d(2))


class Gate(nn.Module):
    """Weights the channels of a stream by means over the whole map. All streams of a block share one gate."""

    def __init__(self, c: int):
        super().__init__()
        self.fc1 = nn.Conv2d(c, c // 16, 1)
        self.fc2 = nn.Conv2d(c // 16, c, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.fc1(pooled).relu()).sigmoid()


class OSBlock(nn.Module):
    """Omni-scale residual block: four streams of one to four light convolutions, gated and summed.

    with_in: add instance norm; in OSNet-IBN after the sum with the shortcut, in OSNet-AIN (ain) as last norm before it.
    """

    def __init__(self, c_in: int, c_out: int, with_in: bool = False, ain: bool = False):
        super().__init__()
        self.ain, middle = ain, c_out // 4
        self.conv1 = convolution(c_in, middle)
        if ain:
            streams = (OrderedDict(layers=stream(middle, depth)) for depth in (1, 2, 3, 4))
            self.conv2 = nn.ModuleList(map(nn.Sequential, streams))
        else:
            self.conv2a = light_convolution(middle)
            self.conv2b, self.conv2c, self.conv2d = (stream(middle, depth) for depth in (2, 3, 4))
        self.gate = Gate(middle)
        self.conv3 = convolution(middle, c_out, norm=None if ain and with_in else nn.BatchNorm2d, relu=False)
        self.downsample = convolution(c_in, c_out, relu=False) if c_in != c_out else nn.Identity()
        self.IN = instance_norm(c_out) if with_in else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        streams = self.conv2 if self.ain else (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        out = self.conv1(x)
        out = self.conv3(reduce(torch.add, (self.gate(stream(out)) for stream in streams)))
        if self.ain:
            return (self.IN(out) + self.downsample(x)).relu()
        return self.IN(out + self.downsample(x)).relu()


class OSNet(Staged):
    """OSNet up to its last feature map, at 1/16 of the image as published: there is no last stride to remove.

    kind: bn; ibn, with instance norm in the stem and in stage 1; or ain, with instance norm where an architecture
    search put it. Stage 1 ends at 1/8 of the image size, stages 2 and 3 at 1/16.
    """

    def __init__(self, channels: tuple[int, int, int, int], kind: str):
        super().__init__(STAGES, channels[1:])
        stem, c2, c3, c4 = channels
        self.conv1 = convolution(3, stem, 7, 2, nn.BatchNorm2d if kind == "bn" else instance_norm)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        if kind == "ain":
            self.conv2 = nn.Sequential(OSBlock(stem, c2, True, ain=True), OSBlock(c2, c2, True, ain=True))
            self.conv3 = nn.Sequential(OSBlock(c2, c3, ain=True), OSBlock(c3, c3, True, ain=True))
            self.conv4 = nn.Sequential(OSBlock(c3, c4, True, ain=True), OSBlock(c4, c4, ain=True))
            self.pool2, self.pool3 = halve(c2), halve(c3)
        else:
            ibn = kind == "ibn"
            self.conv2 = nn.Sequential(OSBlock(stem, c2, ibn), OSBlock(c2, c2, ibn), halve(c2))
            self.conv3 = nn.Sequential(OSBlock(c2, c3), OSBlock(c3, c3), halve(c3))
            self.conv4 = nn.Sequential(OSBlock(c3, c4), OSBlock(c4, c4))
            self.pool2, self.pool3 = nn.Identity(), nn.Identity()  # torchreid has them in conv2 and conv3 here
        self.conv5 = convolution(c4, c4)
        init_convolutions(self)


def osnet(cfg: Config) -> OSNet:
    """The OSNet of the settings: (B, 3, H, W) to (B, C, H/16, W/16). Raises UserError for last stride 2, and for
    OSNet-AIN and images below 32 pixels."""
    channels, kind, drive = PUBLISHED[cfg.model.backbone]
    refuse_last_stride_2(cfg)
    if kind == "ain":
        refuse_tiny_images(cfg)
    net = OSNet(channels, kind)
    net.imagenet = f"https://drive.google.com/file/d/{drive}/view"  # also at https://huggingface.co/kaiyangzhou/osnet
    return net
