"""LightMBN (Herzog et al., Lightweight Multi-Branch Network for Person Re-Identification, ICIP 2021), as in the
authors' code (jixunbo/LightMBN: model/lmbn_n.py on OSNet, model/lmbn_r.py on ResNet50)."""

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

from config import Config
from model.backbones.osnet import OSBlock, OSNet
from model.branches.parts import Split, drop_top_rows, stripes
from model.pooling import make_pooling
from model.reid import Branch, ReIDModel

# the authors' pooling of each feature, in the order of the branches; all backbones but OSNets get that of ResNet50
OSNET_POOLING = ("avg", "max", "max", "avg", "avg", "avg", "avg")
RESNET_POOLING = ("max", "max", "max", "avg", "avg", "max", "max")


class LightMBN(ReIDModel):
    """Three copies of the backbone's end: one for the whole image, one for its parts, one for halves of its channels.

    Seven features of 512 channels (--embedding-dim). From the first copy, after one more block: the whole map, and the
    map without its most active rows (dropped in training only). From the second: the whole map, its upper and its lower
    half. From the third: the two halves of the channels, which share a reduction with batch norm and ReLU. The other
    five have a linear layer each. All seven are classified and embedded; metric losses use the first three.

    --pooling avg means the authors' choice of mean or maximum, as listed above; any other pooling is used for all. With
    a ResNet, --last-stride 2 gives their strides. They use images of 384 × 128, and also score flipped images (--flip).
    Raises UserError for a backbone that cannot be split.
    """

    def __init__(self, cfg: Config, num_classes: int):
        super().__init__(cfg, num_classes)
        inputs, width = self.backbone.out_channels, cfg.model.embedding_dim or 512
        osnet = isinstance(self.backbone, OSNet)
        self.backbone = Split(self.backbone, 3, cfg.model.backbone)
        self.block = OSBlock(inputs, inputs) if osnet else Bottleneck(inputs, inputs // Bottleneck.expansion)
        published = OSNET_POOLING if osnet else RESNET_POOLING
        self.pools = nn.ModuleList(
            make_pooling(p) for p in (published if cfg.model.pooling == "avg" else [cfg.model.pooling] * 7)
        )
        self.shared = nn.Sequential(
            nn.Linear(inputs // 2, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)
        )
        reductions = [*(nn.Linear(inputs, width, bias=False) for _ in range(5)), None, None]
        self.branches = nn.ModuleList(
            Branch(cfg, width, num_classes, fc, metric=number < 3) for number, fc in enumerate(reductions)
        )

    def pooled(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        whole, parts, channels = self.backbone(images)
        whole = self.block(whole)
        dropped = drop_top_rows(whole) if self.training else whole
        maps = (whole, dropped, parts, *stripes(parts, 2), *channels.chunk(2, dim=1))
        *pooled, first, second = (pool(x) for pool, x in zip(self.pools, maps, strict=True))
        return [*pooled, self.shared(first), self.shared(second)]
