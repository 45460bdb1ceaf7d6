"""Networks found by `tools/search_backbone.py`: `--backbone searched:FILE.json` reads a specification and builds it.

Inverted residuals (Sandler et al., MobileNetV2, CVPR 2018) with optional squeeze-and-excitation (Hu et al., CVPR 2018).
MobileNetV2 itself is one of these networks.
"""

import functools
import json
import math
from collections import OrderedDict
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from config import Config
from model.backbones.checks import init_convolutions
from model.backbones.stages import Staged
from utils.errors import UserError
from utils.files import reading
from utils.logging import log

# Strides of each stage's first block after a stem of stride 2, by the number of stages; 0 stands for the last stride.
# Seven stages are MobileNetV2's, five those of Matrix Light ReID's search.
STRIDES = {7: (1, 2, 2, 2, 1, 0, 1), 5: (1, 2, 2, 2, 0)}
# Largest values of a specification, far above those of the search space: a larger value is a mistake.
LIMITS = {"height": 4096, "width": 4096, "last_stride": 2, "depth": 32, "expansion": 16, "kernel": 31}
LIMITS |= {"stem": 4096, "head": 16384}
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Stage:
    """A row of inverted residual blocks."""

    depth: int  # number of blocks
    width: int  # output channels
    expansion: int  # hidden channels of a block, as a multiple of its input channels
    kernel: int  # kernel size of the depthwise convolution
    se: bool  # squeeze-and-excitation


@dataclass(frozen=True)
class Spec:
    """Specification of a network: size of its input images, last stride, stages, and channels of stem and head."""

    height: int
    width: int
    last_stride: int
    stages: tuple[Stage, ...]
    stem: int = 32  # of the first convolution
    head: int = 1280  # of the last one

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Block:
    """One inverted residual with the size of its input map, rows x columns."""

    stage: int
    c_in: int
    c_out: int
    expansion: int
    kernel: int
    se: bool
    stride: int
    rows: int
    columns: int

    @property
    def hidden(self) -> int:
        return self.c_in * self.expansion

    @property
    def size_out(self) -> tuple[int, int]:
        return -(-self.rows // self.stride), -(-self.columns // self.stride)

    def multiply_adds(self, norms: bool) -> int:
        before, after = self.rows * self.columns, math.prod(self.size_out)
        expanded = before if self.expansion > 1 else 0
        gate = 2 * self.hidden * squeezed(self.hidden) if self.se else 0
        per_place = self.hidden * (self.kernel**2 + self.c_out)
        extra = 3 * self.hidden * (expanded + after) + 2 * self.c_out * after if norms else 0
        return self.c_in * self.hidden * expanded + per_place * after + gate + extra


def squeezed(hidden: int) -> int:
    """Inner channels of squeeze-and-excitation."""
    return max(hidden // 4, 8)


def blocks(spec: Spec) -> list[Block]:
    """All blocks of a network, in the order in which they run."""
    size, c_in, found = (-(-spec.height // 2), -(-spec.width // 2)), spec.stem, []
    for number, (stage, stride) in enumerate(zip(spec.stages, STRIDES[len(spec.stages)], strict=True)):
        for place in range(stage.depth):
            step = (stride or spec.last_stride) if place == 0 else 1
            found.append(Block(number, c_in, stage.width, stage.expansion, stage.kernel, stage.se, step, *size))
            c_in, size = stage.width, found[-1].size_out
    return found


@functools.lru_cache(maxsize=4096)
def multiply_adds(spec: Spec, norms: bool = False) -> int:
    """Multiply-adds of the convolutions for one image, as torch's flop counter counts them.

    norms: also count batch norm (2 per value), ReLU (1) and pooling (1), as mmcv and therefore Matrix Light ReID do.
    """
    found = blocks(spec)
    before, after = found[0].rows * found[0].columns, math.prod(found[-1].size_out)
    stem = spec.stem * (27 + 3 * norms) * before
    return stem + sum(b.multiply_adds(norms) for b in found) + spec.head * (found[-1].c_out + 4 * norms) * after


def read_spec(source: str | Path) -> Spec:
    """Read a network from a JSON file or from JSON text, as `Spec.to_dict` gives it; other entries are ignored.

    A relative path is looked up in the working directory, then in this repository. Raises UserError if it is invalid.
    """
    inline, path = str(source).lstrip().startswith("{"), Path(source)
    with reading("the specification" if inline else source, "give a file that tools/search_backbone.py wrote"):
        text = str(source) if inline else (path if path.exists() else ROOT / path).read_text(encoding="utf-8")
        values = {"stem": Spec.stem, "head": Spec.head} | json.loads(text)  # older files have neither
        stages = tuple(Stage(**{f.name: _check(row, f.name) for f in fields(Stage)}) for row in values["stages"])
        if len(stages) not in STRIDES:
            raise ValueError(f"it has {len(stages)} stages, not {' or '.join(map(str, STRIDES))}")
        return Spec(**{f.name: _check(values, f.name) for f in fields(Spec) if f.name != "stages"}, stages=stages)


def _check(values: dict[str, Any], name: str) -> int | bool:
    """Return an entry of a specification. Raises ValueError if it is missing or invalid."""
    value, switch = values.get(name), name == "se"
    if type(value) is not (bool if switch else int) or not (switch or 1 <= value <= LIMITS[name]):
        expected = "true or false" if switch else f"a whole number from 1 to {LIMITS[name]}"
        raise ValueError(f"{name} is {value!r:.40}, not {expected}")
    if name == "kernel" and value % 2 == 0:
        raise ValueError(f"kernel {value} is even")
    return value


def self_contained(backbone: str) -> str:
    """Turn `searched:FILE` into `searched:{...}`, so that checkpoints do not need the file; keep other names."""
    if not backbone.startswith("searched:"):
        return backbone
    return "searched:" + json.dumps(read_spec(backbone.removeprefix("searched:")).to_dict(), separators=(",", ":"))


# Convolution, batch norm and ReLU6, from c_in, c_out, kernel size and stride; stride 1 keeps the size of the map.
convolution = functools.partial(Conv2dNormActivation, activation_layer=nn.ReLU6, inplace=False)


class InvertedResidual(nn.Module):
    """1×1 expansion, k×k depthwise, squeeze-and-excitation, 1×1 projection; a shortcut where the shapes are equal."""

    def __init__(self, block: Block):
        super().__init__()
        hidden, layers = block.hidden, OrderedDict()
        if block.expansion > 1:
            layers["expand"] = convolution(block.c_in, hidden, 1)
        layers["within"] = convolution(hidden, hidden, block.kernel, block.stride, groups=hidden)
        if block.se:
            layers["se"] = SqueezeExcitation(hidden, squeezed(hidden))
        layers["project"] = convolution(hidden, block.c_out, 1, activation_layer=None)
        self.layers = nn.Sequential(layers)
        self.shortcut = block.stride == 1 and block.c_in == block.c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


class Searched(Staged):
    """The network of a specification: (B, 3, H, W) to (B, head, H/16, W/16), or H/32 with last stride 2.

    Layers are stem, stage1, stage2, ..., head. Blocks with a shortcut start as the identity (Goyal et al., Accurate,
    Large Minibatch SGD, 2017), as in the supernet.
    """

    def __init__(self, spec: Spec):
        strides = STRIDES[len(spec.stages)]
        starts = [0, *(n for n in range(2, len(strides)) if strides[n] != 1), len(strides)]  # of torchvision's stages
        rows = [[f"stage{n + 1}" for n in range(*pair)] for pair in pairwise(starts)]
        channels = [*(spec.stages[end - 1].width for end in starts[1:-1]), spec.head]
        super().__init__([["stem", *rows[0]], *rows[1:-1], [*rows[-1], "head"]], channels)
        self.spec = spec
        self.stem = convolution(3, spec.stem, 3, stride=2)
        for number in range(len(spec.stages)):
            row = [InvertedResidual(block) for block in blocks(spec) if block.stage == number]
            self.add_module(f"stage{number + 1}", nn.Sequential(*row))
        self.head = convolution(spec.stages[-1].width, spec.head, 1)
        init_convolutions(self)
        for block in (m for m in self.modules() if isinstance(m, InvertedResidual) and m.shortcut):
            nn.init.zeros_(block.layers.project[1].weight)


def searched(spec: Spec, cfg: Config) -> Searched:
    """Build the network of a specification. A different image size is allowed, with a warning that gives the cost.

    Raises UserError for a different last stride.
    """
    name, height, width = cfg.model.backbone, cfg.data.height, cfg.data.width
    name = "the searched network" if "{" in name else name
    if cfg.model.last_stride != spec.last_stride:
        raise UserError(f"{name} has last stride {spec.last_stride}; give --last-stride {spec.last_stride} with it")
    if (height, width) != (spec.height, spec.width):
        log.warning(
            "warning: %s was found for images of %d x %d, where it has %.1f M multiply-adds; at %d x %d it has %.1f M",
            name, spec.height, spec.width, multiply_adds(spec) / 1e6,
            height, width, multiply_adds(replace(spec, height=height, width=width)) / 1e6,
        )  # fmt: skip
    return Searched(spec)
