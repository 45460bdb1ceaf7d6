"""Heads on cosines, most of them with a margin, with the interface of `model.heads.LinearHead`."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from config import Config
from model.heads import LinearHead
from utils.precision import at_least_float32


class CosineHead(LinearHead):
    """Cosines times a scale, in float32 (Wang et al., NormFace, ACM Multimedia 2017)."""

    std = 0.01  # as in fast-reid

    def __init__(self, cfg: Config, width: int, num_classes: int):
        super().__init__(cfg, width, num_classes)
        self.scale, self.margin = cfg.model.head_scale, cfg.model.head_margin  # some heads use no margin

    def cosines(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(F.normalize(at_least_float32(features)), F.normalize(at_least_float32(self.weight)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.scale * self.cosines(features)


class LearnedCosineHead(CosineHead):
    """CosineHead whose scale is trained."""

    def __init__(self, cfg: Config, width: int, num_classes: int):
        super().__init__(cfg, width, num_classes)
        self.scale = nn.Parameter(torch.tensor(float(self.scale)))


class CosFaceHead(CosineHead):
    """The label's cosine minus the margin (Wang et al., CosFace; Wang et al., AM-Softmax; both 2018)."""

    def add_margin(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        target = logits.gather(1, labels[:, None])
        return logits.scatter(1, labels[:, None], target - self.scale * self.margin)


class ArcFaceHead(CosFaceHead):
    """The label's angle plus the margin, in radians (Deng et al., ArcFace, CVPR 2019).

    An angle above pi - margin would wrap around; there the cosine is lowered by margin × sin(margin) instead, as in the
    authors' code.
    """

    def add_margin(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cosine = logits.gather(1, labels[:, None]) / self.scale
        sine = (1 - cosine.square()).clamp(min=1e-12).sqrt()  # the clamp keeps the root's gradient finite at ±1
        rotated = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        lowered = cosine - self.margin * math.sin(self.margin)
        target = torch.where(cosine > math.cos(math.pi - self.margin), rotated, lowered)
        return logits.scatter(1, labels[:, None], self.scale * target)


class SubCenterArcFaceHead(ArcFaceHead):
    """ArcFace with several weight vectors per class, of which the nearest counts (Deng et al., Sub-center ArcFace, ECCV
    2020). The vectors of one class are adjacent rows."""

    def __init__(self, cfg: Config, width: int, num_classes: int):
        super().__init__(cfg, width, num_classes * cfg.model.sub_centers)
        self.out_features, self.sub_centers = num_classes, cfg.model.sub_centers

    def cosines(self, features: torch.Tensor) -> torch.Tensor:
        return super().cosines(features).unflatten(1, (-1, self.sub_centers)).amax(2)


class CircleHead(CosFaceHead):
    """Every cosine weighted by its distance from its optimum: 1 + margin for the label, -margin for the others (Sun et
    al., Circle Loss, CVPR 2020, with class-level labels; no gradient flows through the weights)."""

    def add_margin(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cosine = logits / self.scale
        others = (cosine.detach() + self.margin).relu() * (cosine - self.margin)
        target = cosine.gather(1, labels[:, None])
        weight = (1 + self.margin - target.detach()).relu()
        return self.scale * others.scatter(1, labels[:, None], weight * (target - (1 - self.margin)))
