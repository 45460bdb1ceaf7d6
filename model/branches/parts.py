"""Parts of feature maps and of backbones, from which branches are built."""

import copy

import torch
from torch import nn

from model.backbones.stages import Staged, drop_stride
from utils.errors import UserError
from utils.precision import at_least_float32


def stripes(maps: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Split (B, C, H, W) into `count` maps of whole rows, from top to bottom, like adaptive pooling: rows floor(i·H /
    count) to ceil((i + 1)·H / count). Raises UserError for fewer rows than parts."""
    rows = maps.shape[2]
    if rows < count:
        raise UserError(f"the model's last map has {rows} rows, too few for {count} parts; give a larger --height")
    return [maps[:, :, i * rows // count : -(-(i + 1) * rows // count)] for i in range(count)]


def drop_random_rows(maps: torch.Tensor, share: float = 1 / 3) -> torch.Tensor:
    """Return maps (B, C, H, W) with a block of round(share × H) rows set to 0, the same block in the whole batch.

    All positions of the block are equally likely (Dai et al., Batch DropBlock, ICCV 2019). One number is drawn from
    torch's global generator on the maps' device, without synchronization.
    """
    height = maps.shape[2]
    size = round(share * height)
    top = torch.randint(height - size + 1, (1,), device=maps.device)
    rows = torch.arange(height, device=maps.device)
    return maps.masked_fill(((rows >= top) & (rows < top + size))[:, None], 0)


def drop_top_rows(maps: torch.Tensor, share: float = 0.33) -> torch.Tensor:
    """Return maps (B, C, H, W) in which the round(share × H) rows of each image with the highest peaks are set to 0.

    Quispe & Pedrini, Top-DB-Net: Top DropBlock for Activation Enhancement in Person Re-Identification, ICPR 2020. The
    activation of a position is the sum of its squares over the channels; a row's peak is its largest activation.
    """
    peaks = at_least_float32(maps.detach()).square().sum(1).amax(2)
    top = peaks.topk(round(share * maps.shape[2]), dim=1).indices
    kept = torch.ones_like(peaks, dtype=torch.bool).scatter(1, top, False)
    return maps * kept[:, None, :, None]


class Split(nn.Module):
    """A backbone up to the first block of its second-to-last stage, and copies of the rest, one per branch.

    Maps images (B, 3, H, W) to one map (B, C, h, w) per copy. ResNets are cut after the first block of layer3, as in
    MGN; OSNets after that of conv3, as in LightMBN. The copies start with the same weights and are trained separately,
    including attention after the last two stages. The first copy has --last-stride, the others have stride 1. With 2,
    strides are those of both papers; with 1, of fast-reid's MGN. Raises UserError for a backbone without such stages.
    """

    def __init__(self, backbone: nn.Module, copies: int, name: str):
        super().__init__()
        if not isinstance(backbone, Staged) or type(backbone).forward is not Staged.forward:
            raise UserError(
                f"--backbone {name} has no stages that could be copied for several branches; use a ResNet, an OSNet or "
                "another CNN that is not timm's, or --branches one, pcb or bdb"
            )
        self.imagenet = backbone.imagenet
        self.stage_channels, self.out_channels = backbone.stage_channels, backbone.out_channels
        last = len(backbone.stages) - 1  # the stage that is cut, counted from 1
        before = [block for number in range(1, last) for block in blocks(backbone, number)]
        first, *rest = blocks(backbone, last)
        self.trunk = without(backbone, [*rest, *blocks(backbone, last + 1)], range(last, last + 2))
        self.tails = nn.ModuleList(without(backbone, [*before, first], range(1, last)) for _ in range(copies))
        for tail in self.tails[1:]:
            for layer in tail.stages[-1]:
                drop_stride(tail.get_submodule(layer))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        shared = self.trunk(images)
        return [tail(shared) for tail in self.tails]

    def rename(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename the weights of a whole backbone to those of its parts: a layer that was copied goes to each copy."""
        parts = {f"tails.{i}": set(tail.state_dict()) for i, tail in enumerate(self.tails)}
        parts["trunk"] = set(self.trunk.state_dict())
        renamed = {}
        for name, tensor in state.items():
            places = [f"{part}.{name}" for part, names in parts.items() if name in names]
            renamed |= dict.fromkeys(places or [name], tensor)
        return renamed


def blocks(backbone: Staged, number: int) -> list[str]:
    """Return the names of the blocks of a stage (counted from 1), in the order in which they run.

    A layer that is a sequence of blocks yields each block; a layer that is a sequence of single layers is one block.
    """
    names = []
    for layer in backbone.stages[number - 1]:
        module = backbone.get_submodule(layer)
        parts = dict(module.named_children()) if isinstance(module, nn.Sequential) else {}
        nested = parts and all(any(part.children()) for part in parts.values())
        names += [f"{layer}.{part}" for part in parts] if nested else [layer]
    return names


def without(backbone: Staged, layers: list[str], stages: range) -> Staged:
    """Return a copy with these layers replaced by the identity, and without attention after these stages."""
    part = copy.deepcopy(backbone)
    for layer in layers:
        part.set_submodule(layer, nn.Identity(), strict=True)
    for stage in set(map(str, stages)) & set(part.attention):
        part.attention.pop(stage)
    return part
