"""Networks of the search space, built as they are: `--backbone searched:FILE.json`. Inverted residuals (Sandler et al.,
MobileNetV2, CVPR 2018) with squeeze-and-excitation (Hu et al., CVPR 2018) where the specification says so."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace

import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from config import Config
from model.backbones.space import HEAD, STEM, Block, Spec, blocks, multiply_adds, read_spec, squeezed
from model.backbones.stages import Staged, init_convolutions
from utils.errors import UserError
from utils.logging import log


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

    Blocks that are added to their input begin as nothing but it (Goyal et al., Accurate, Large Minibatch SGD, 2017).
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
        init_convolutions(self)
        for block in (m for m in self.modules() if isinstance(m, InvertedResidual) and m.added):
            nn.init.zeros_(block.layers.project[1].weight)  # begins as nothing but its input, as in the supernet


def searched(spec: Spec, cfg: Config) -> Searched:
    """The network of a specification. It takes images of any size; a warning says what it costs at one that it was not
    found for. Raises UserError for another last stride than its own."""
    called = "the searched network" if "{" in cfg.model.backbone else cfg.model.backbone
    if cfg.model.last_stride != spec.last_stride:
        raise UserError(f"{called} has last stride {spec.last_stride}; give --last-stride {spec.last_stride} with it")
    if (cfg.data.height, cfg.data.width) != (spec.height, spec.width):
        here = multiply_adds(replace(spec, height=cfg.data.height, width=cfg.data.width)) / 1e6
        log.warning(
            "warning: %s was found for images of %d x %d, where it has %.1f M multiply-adds; at %d x %d it has %.1f M",
            called, spec.height, spec.width, multiply_adds(spec) / 1e6, cfg.data.height, cfg.data.width, here,
        )  # fmt: skip
    return Searched(spec)


def self_contained(backbone: str) -> str:
    """The name of a backbone with the specification itself in place of its file, which checkpoints then do not need."""
    if not backbone.startswith("searched:"):
        return backbone
    spec = read_spec(backbone.removeprefix("searched:"))
    return "searched:" + json.dumps(spec.to_dict(), separators=(",", ":"))
