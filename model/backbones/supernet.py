"""All networks of the search space in one, with shared weights: `--backbone supernet` trains it, the search tests parts
of it (Guo et al., Single Path One-Shot NAS, ECCV 2020; Yu et al., BigNAS, ECCV 2020)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from config import Config
from model.backbones.searchable import NoWeights, Searched
from model.backbones.space import HEAD, STEM, Block, Space, Spec, blocks, squeezed
from model.backbones.stages import init_convolutions
from utils.errors import UserError


class ElasticConv(nn.Conv2d):
    """A convolution of which a part is used: the first channels in and out, and the middle of the kernel."""

    def part(self, x: torch.Tensor, c_out: int, kernel: int = 1, stride: int = 1) -> torch.Tensor:
        c_in, cut = 1 if self.groups > 1 else x.shape[1], (self.kernel_size[0] - kernel) // 2
        weight = self.weight[:c_out, :c_in, cut : cut + kernel, cut : cut + kernel]
        bias = None if self.bias is None else self.bias[:c_out]
        return F.conv2d(x, weight, bias, stride, kernel // 2, groups=c_out if self.groups > 1 else 1)


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
    """The largest inverted residual that its place may have; each call says which part of it runs."""

    def __init__(self, block: Block, c_in: int):
        super().__init__()
        hidden = c_in * block.expansion
        if block.expansion > 1:
            self.expand, self.norm1 = ElasticConv(c_in, hidden, 1, bias=False), ElasticNorm(hidden)
        self.within, self.norm2 = ElasticConv(hidden, hidden, 7, groups=hidden, bias=False), ElasticNorm(hidden)
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
    """Every step of training runs another network, drawn from the space; a test runs `chosen`, the largest unless
    somebody chooses. Images are resized to those that the network takes.

    Which networks come follows from the seed and from how many steps there were, which the checkpoint holds. No part
    has statistics of batch norm of its own before `processor.scorer.recalibrate`, and without them a score says
    little. Blocks that are added to their input begin as nothing but it (BigNAS, section 3.1): otherwise networks of
    different depths hold each other back for hundreds of steps.
    """

    imagenet = NoWeights()

    def __init__(self, space: Space, seed: int):
        super().__init__()
        self.space, self.seed, self.chosen = space, seed, space.largest()
        self.fixed = False  # training mode runs `chosen`, too
        self.out_channels = HEAD
        self.steps = 0  # of training
        self.stem, self.stem_norm = nn.Conv2d(3, STEM, 3, 2, 1, bias=False), ElasticNorm(STEM)
        largest, self.stages = blocks(self.chosen), nn.ModuleList()
        for number in range(len(self.chosen.stages)):
            row = [block for block in largest if block.stage == number]
            self.stages.append(nn.ModuleList(ElasticBlock(block, block.c_in) for block in row))
        self.head, self.head_norm = ElasticConv(largest[-1].c_out, HEAD, 1, bias=False), ElasticNorm(HEAD)
        init_convolutions(self)
        for stage in self.stages:
            for added in stage[1:]:
                nn.init.zeros_(added.norm3.weight)

    def get_extra_state(self) -> torch.Tensor:
        """What the checkpoint holds beside the weights."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.steps = int(state)

    def next(self) -> Spec:
        """The network of this step."""
        return self.space.random(np.random.default_rng([self.seed, self.steps]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        spec = self.chosen
        if self.training and not self.fixed:
            spec = self.next()
            self.steps += 1
        if images.shape[2:] != (spec.height, spec.width):
            images = F.interpolate(images, (spec.height, spec.width), mode="bilinear", antialias=True)
        x = F.relu6(self.stem_norm(self.stem(images)))
        places = [block for row, stage in zip(self.stages, spec.stages, strict=True) for block in row[: stage.depth]]
        for elastic, block in zip(places, blocks(spec), strict=True):
            x = elastic(x, block)
        return F.relu6(self.head_norm(self.head.part(x, HEAD)))

    def extract(self, spec: Spec) -> Searched:
        """The network of a specification with a copy of its part of the weights and statistics."""
        net = Searched(spec).to(self.stem.weight)  # its device and numbers
        rows = [self.stages[n][place] for n, stage in enumerate(spec.stages) for place in range(stage.depth)]
        plain = [block for n in range(len(spec.stages)) for block in getattr(net, f"stage{n + 1}")]
        with torch.no_grad():
            copy_part(net.stem[0], self.stem), copy_part(net.stem[1], self.stem_norm)
            copy_part(net.head[0], self.head), copy_part(net.head[1], self.head_norm)
            for elastic, block in zip(rows, plain, strict=True):
                copy_block(block.layers, elastic)
        return net.train(self.training)


def copy_block(layers: nn.Sequential, elastic: ElasticBlock) -> None:
    """Fill the layers of an inverted residual with their part of an elastic one."""
    pairs = {"expand": ("expand", "norm1"), "within": ("within", "norm2"), "project": ("project", "norm3")}
    for name, sources in pairs.items():
        if hasattr(layers, name):
            for layer, source in zip(getattr(layers, name), sources, strict=False):
                copy_part(layer, getattr(elastic, source))
    if hasattr(layers, "se"):
        copy_part(layers.se.fc1, elastic.fc1), copy_part(layers.se.fc2, elastic.fc2)


def copy_part(layer: nn.Module, source: nn.Module) -> None:
    """Fill a layer from the first channels, and the middle of the kernel, of another."""
    state = source.state_dict()
    for name, target in layer.state_dict().items():
        part = state[name]
        if part.ndim == 4 and part.shape[2] > target.shape[2]:
            cut = (part.shape[2] - target.shape[2]) // 2
            part = part[:, :, cut : cut + target.shape[2], cut : cut + target.shape[3]]
        target.copy_(part[tuple(map(slice, target.shape))])


def supernet(most: str, cfg: Config) -> Supernet:
    """The supernet for images of up to the settings' size, whose steps train networks of up to `most` multiply-adds, or
    all for "". Raises UserError for what is no number, and for last stride 2: it has both."""
    if cfg.model.last_stride != 1:
        raise UserError("--backbone supernet has networks of both last strides; leave --last-stride out")
    if most and not most.isdecimal():
        raise UserError(f"--backbone supernet:{most} must name a number of multiply-adds, such as supernet:210000000")
    return Supernet(Space(cfg.data.height, cfg.data.width, int(most) if most else math.inf), cfg.run.seed)
