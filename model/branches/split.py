"""A backbone whose last stages are there several times, each copy for a branch of its own."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn

from model.backbones.stages import Staged, drop_stride
from utils.errors import UserError


class Split(nn.Module):
    """A backbone up to the first block of its last stage but one, and copies of what follows.

    Images (B, 3, H, W) to as many maps (B, C, h, w) as there are copies. For ResNets the cut is after layer3's first
    block, as in MGN; for OSNets after conv3's, as in LightMBN. The copies start alike, from the same weights, and each
    trains its own, those of attention after the last two stages too. The first has the stride that --last-stride says,
    the others keep the finer map, so that 2 gives both papers' strides and 1 those of fast-reid's MGN. Raises UserError
    for a backbone without such stages.
    """

    def __init__(self, backbone: nn.Module, copies: int, name: str):
        super().__init__()
        if not isinstance(backbone, Staged) or type(backbone).forward is not Staged.forward:
            raise UserError(
                f"--backbone {name} has no stages of layers that could be copied for branches of their own; take a "
                "ResNet, an OSNet or another CNN that is not timm's, or --branches one, pcb or bdb"
            )
        self.imagenet = backbone.imagenet
        self.stage_channels, self.out_channels = backbone.stage_channels, backbone.out_channels
        last = len(backbone.stages) - 1  # the stage that is cut, counted from 1
        before = list(itertools.chain(*(blocks(backbone, n) for n in range(1, last))))
        cut, *rest = blocks(backbone, last)
        self.trunk = without(backbone, [*rest, *blocks(backbone, last + 1)], range(last, last + 2))
        self.tails = nn.ModuleList(without(backbone, [*before, cut], range(1, last)) for _ in range(copies))
        for tail in self.tails[1:]:
            for layer in tail.stages[-1]:
                drop_stride(tail.get_submodule(layer))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        shared = self.trunk(images)
        return [tail(shared) for tail in self.tails]

    def rename(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights of the whole backbone to those of its parts: a layer of the copies goes to each of them."""
        homes = {f"tails.{i}": set(tail.state_dict()) for i, tail in enumerate(self.tails)}
        homes["trunk"] = set(self.trunk.state_dict())
        renamed = {}
        for name, tensor in state.items():
            places = [f"{home}.{name}" for home, names in homes.items() if name in names]
            renamed |= dict.fromkeys(places or [name], tensor)
        return renamed


def blocks(backbone: Staged, number: int) -> list[str]:
    """Names of the blocks of a stage, counted from 1, in the order in which they run.

    A layer that is a sequence of blocks is taken apart; one that is a sequence of single layers is a block itself.
    """
    names = []
    for layer in backbone.stages[number - 1]:
        module = backbone.get_submodule(layer)
        parts = dict(module.named_children()) if isinstance(module, nn.Sequential) else {}
        apart = parts and all(any(part.children()) for part in parts.values())
        names += [f"{layer}.{part}" for part in parts] if apart else [layer]
    return names


def without(backbone: Staged, layers: list[str], stages: range) -> Staged:
    """A copy that passes what it gets through these layers unchanged, and has no attention after these stages."""
    part = copy.deepcopy(backbone)
    for layer in layers:
        part.set_submodule(layer, nn.Identity(), strict=True)
    for stage in set(map(str, stages)) & set(part.attention):
        part.attention.pop(stage)
    return part
