"""Base classes of the backbones: layers under their published names, run stage by stage."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn


class Staged(nn.Module):
    """A backbone that runs stage by stage: images (B, 3, H, W) to the last feature map (B, C, h, w).

    stages: names of the layers of each stage, in the order in which they run; stage_channels: the widths after them.
    `attention` holds modules that run after a stage, by its number: "1", "2", ...; it starts empty.
    """

    imagenet = ""  # address of ImageNet weights

    def __init__(self, stages: Sequence[Sequence[str]], stage_channels: Sequence[int]):
        super().__init__()
        self.stages = stages
        self.stage_channels, self.out_channels = tuple(stage_channels), stage_channels[-1]
        self.attention = nn.ModuleDict()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images
        for number, stage in enumerate(self.stages, 1):
            for layer in stage:
                x = self.get_submodule(layer)(x)
            x = self.attend(number, x)
        return x

    def attend(self, number: int, maps: torch.Tensor) -> torch.Tensor:
        """Apply the attention of a stage, if it has any, to its map (B, C, h, w)."""
        return self.attention[str(number)](maps) if str(number) in self.attention else maps


class Backbone(Staged):
    """Layers of a torchvision network, under their own names, so that torchvision's weights fit.

    The stages are ResNet's: the first ends at 1/4 of the image size, and each further stage halves it. last_stride 1
    removes the stride of the last stage (Sun et al., PCB, ECCV 2018).
    """

    def __init__(self, net: nn.Module, stages: list[list[str]], stage_channels: Sequence[int], last_stride: int):
        super().__init__(stages, stage_channels)
        for name in dict.fromkeys(layer.split(".")[0] for stage in stages for layer in stage):
            self.add_module(name, getattr(net, name))
        if last_stride == 1:
            for layer in stages[-1]:
                drop_stride(self.get_submodule(layer))


def drop_stride(layer: nn.Module) -> None:
    """Set stride 1 in all convolutions of the layer, including shortcuts; all are padded, so the map keeps its size."""
    for conv in layer.modules():
        if isinstance(conv, nn.Conv2d):
            conv.stride = (1, 1)


def cut(sequence: str, ends: Sequence[int]) -> list[list[str]]:
    """Stages of the nn.Sequential with that name; each ends before the layer with the number in `ends`."""
    return [[f"{sequence}.{i}" for i in range(*pair)] for pair in itertools.pairwise((0, *ends))]
