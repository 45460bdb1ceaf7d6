"""`--backbone supernet`: all networks of the search space with shared weights.

Training runs a random network at each step; the search then scores parts of it (Guo et al., Single Path One-Shot NAS,
ECCV 2020; Yu et al., BigNAS, ECCV 2020).
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from config import Config
from model.backbones.checks import init_convolutions
from model.backbones.searchable import Block, Spec, blocks, squeezed
from tools.light.space import Space
from utils.errors import UserError
from utils.precision import conv2d


class ElasticConv(nn.Conv2d):
    """A convolution of which a part runs: the first channels in and out, and the center of the kernel."""

    def part(self, x: torch.Tensor, c_out: int, kernel: int = 1, stride: int = 1) -> torch.Tensor:
        c_in, cut = 1 if self.groups > 1 else x.shape[1], (self.kernel_size[0] - kernel) // 2
        weight = self.weight[:c_out, :c_in, cut : cut + kernel, cut : cut + kernel]
        bias = None if self.bias is None else self.bias[:c_out]
        return conv2d(x, weight, bias, stride, kernel // 2, groups=c_out if self.groups > 1 else 1)


class ElasticNorm(nn.BatchNorm2d):
    """Batch norm of the first channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, factor = x.shape[1], 0.0
        if self.training:
            self.num_batches_tracked += 1
            factor = self.momentum or 1.0 / float(self.num_batches_tracked)
        mean, var = self.running_mean[:n], self.running_var[:n]
        return F.batch_norm(x, mean, var, self.weight[:n], self.bias[:n], self.training, factor, self.eps)


class ElasticBlock(nn.Module):
    """The largest inverted residual at its place; `forward` runs the part that `block` describes."""

    def __init__(self, block: Block):
        super().__init__()
        hidden = block.hidden
        if block.expansion > 1:
            self.expand, self.norm1 = ElasticConv(block.c_in, hidden, 1, bias=False), ElasticNorm(hidden)
        self.within = ElasticConv(hidden, hidden, block.kernel, groups=hidden, bias=False)
        self.norm2 = ElasticNorm(hidden)
        self.fc1, self.fc2 = ElasticConv(hidden, squeezed(hidden), 1), ElasticConv(squeezed(hidden), hidden, 1)
        self.project, self.norm3 = ElasticConv(hidden, block.c_out, 1, bias=False), ElasticNorm(block.c_out)

    def forward(self, x: torch.Tensor, block: Block) -> torch.Tensor:
        y = F.relu6(self.norm1(self.expand.part(x, block.hidden))) if block.expansion > 1 else x
        y = F.relu6(self.norm2(self.within.part(y, block.hidden, block.kernel, block.stride)))
        if block.se:
            gate = self.fc1.part(y.mean((2, 3), keepdim=True), squeezed(block.hidden)).relu()
            y = y * self.fc2.part(gate, block.hidden).sigmoid()
        y = self.norm3(self.project.part(y, block.c_out))
        return x + y if block.stride == 1 and block.c_in == block.c_out else y


class Supernet(nn.Module):
    """All networks of a space in one: images (B, 3, H, W) to the map of the network that runs.

    The images are resized to the size of that network. Each training step runs a random network, which depends on
    the seed and on the number of steps so far; a checkpoint holds that number. In evaluation mode the largest runs.
    `select` chooses one for both. A part needs batch norm statistics of its own (see `runs.Scorer`) before
    its score means anything. Blocks with a shortcut start as the identity (BigNAS, section 3.1); otherwise networks of
    different depths disturb each other for hundreds of steps.
    """

    no_cuda_graph = True  # it would run the same network at each step

    def __init__(self, space: Space, seed: int):
        super().__init__()
        self.space, self.seed, self.largest, self.steps = space, seed, space.largest(), 0
        self.selected: Spec | None = None
        self.out_channels = self.largest.head
        stem, head = self.largest.stem, self.largest.head
        self.stem, self.stem_norm = nn.Conv2d(3, stem, 3, 2, 1, bias=False), ElasticNorm(stem)
        largest, self.stages = blocks(self.largest), nn.ModuleList()
        for number in range(len(self.largest.stages)):
            self.stages.append(nn.ModuleList(ElasticBlock(block) for block in largest if block.stage == number))
        self.head, self.head_norm = ElasticConv(largest[-1].c_out, head, 1, bias=False), ElasticNorm(head)
        init_convolutions(self)
        for stage in self.stages:
            for block in stage[1:]:
                nn.init.zeros_(block.norm3.weight)

    def select(self, spec: Spec | None) -> None:
        """Run this network from now on, in training and evaluation mode; None: go back to random ones in training."""
        self.selected = spec

    def sample(self) -> Spec:
        """The random network of the current step."""
        return self.space.random(np.random.default_rng([self.seed, self.steps]))

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.steps = int(state)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        spec = self.selected or self.largest
        if self.training and self.selected is None:
            spec = self.sample()
            self.steps += 1
        if images.shape[2:] != (spec.height, spec.width):
            images = F.interpolate(images, (spec.height, spec.width), mode="bilinear", antialias=True)
        x = F.relu6(self.stem_norm(self.stem(images)))
        for elastic, block in zip(self.part(spec), blocks(spec), strict=True):
            x = elastic(x, block)
        return F.relu6(self.head_norm(self.head.part(x, self.out_channels)))

    def part(self, spec: Spec) -> list[ElasticBlock]:
        """The blocks that a network uses."""
        return [block for row, stage in zip(self.stages, spec.stages, strict=True) for block in row[: stage.depth]]


def supernet(budget: str, cfg: Config) -> Supernet:
    """The supernet for images of at most the size in the settings; it trains networks of at most `budget` multiply-adds
    ("": all). Raises UserError if `budget` is not a number, and for last stride 2, as it has networks of both."""
    if cfg.model.last_stride != 1:
        raise UserError("--backbone supernet has networks of both last strides; leave --last-stride out")
    if budget and not budget.isdecimal():
        raise UserError(f"--backbone supernet:{budget} must name a number of multiply-adds, such as supernet:210000000")
    return Supernet(Space(cfg.data.height, cfg.data.width, int(budget) if budget else math.inf), cfg.run.seed)
