"""Networks of the search space, built as they are: `--backbone searched:FILE.json`."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from config import Config
from model.backbones.space import HEAD, STEM, Block, Spec, blocks, read_spec, squeezed
from model.backbones.stages import Staged
from utils.errors import UserError


def convolution(
    c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution that keeps the size (but for its stride), batch norm and, mostly, ReLU6."""
    layers = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)]
    return nn.Sequential(*layers, *[nn.ReLU6(inplace=True)] * relu)


class InvertedResidual(nn.Module):
    """1×1 to more channels, k×k within each, squeeze-and-excitation if asked for, 1×1 to few; added to its input where
    their shapes are equal."""

    def __init__(self, block: Block):
        super().__init__()
        hidden, layers = block.hidden, OrderedDict()
        if block.expansion > 1:
            layers["expand"] = convolution(block.c_in, hidden, 1)
        layers["within"] = convolution(hidden, hidden, block.kernel, block.stride, groups=hidden)
        if block.se:
            layers["se"] = SqueezeExcitation(hidden, squeezed(hidden))
        layers["project"] = convolution(hidden, block.c_out, 1, relu=False)
        self.layers = nn.Sequential(layers)
        self.added = block.stride == 1 and block.c_in == block.c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.added else self.layers(x)


class NoWeights:
    """What a searched network has in place of weights from ImageNet."""

    url = ""

    def get_state_dict(self, progress: bool, check_hash: bool):
        raise UserError("searched networks have no ImageNet weights; give --weights none, or a file")


class Searched(Staged):
    """The network of a specification: (B, 3, H, W) to (B, 1280, H/16, W/16), or H/32 with last stride 2.

    Its layers are stem, stage1 to stage7, head; stages in the sense of attention end where the map is halved next.
    """

    imagenet = NoWeights()

    def __init__(self, spec: Spec):
        widths = [stage.width for stage in spec.stages]
        ends = [["stem", "stage1", "stage2"], ["stage3"], ["stage4", "stage5"], ["stage6", "stage7", "head"]]
        super().__init__(ends, [widths[1], widths[2], widths[4], HEAD])
        self.spec = spec
        self.stem = convolution(3, STEM, 3, stride=2)
        for number in range(len(spec.stages)):
            row = [InvertedResidual(block) for block in blocks(spec) if block.stage == number]
            self.add_module(f"stage{number + 1}", nn.Sequential(*row))
        self.head = convolution(widths[-1], HEAD, 1)
        for conv in (m for m in self.modules() if isinstance(m, nn.Conv2d)):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


def searched(path: str, cfg: Config) -> Searched:
    """The network whose specification is in the file. Raises UserError for a file that holds none, and for settings
    that are not the specification's."""
    spec = read_spec(path)
    if (cfg.height, cfg.width, cfg.last_stride) != (spec.height, spec.width, spec.last_stride):
        raise UserError(
            f"{path} is a network for --height {spec.height} --width {spec.width} --last-stride {spec.last_stride}; "
            "give these with it"
        )
    return Searched(spec)
