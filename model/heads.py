"""Name to classification head: from features behind the neck (B, D) to the logits (B, C) of a cross entropy.

All are made from (feature_dim, num_classes, scale, margin, sub_centers) and use those that they know. `head(features)`
gives plain logits, for tests and accuracies; `head(features, labels)` makes those of the labels harder to reach, for
training. It is `head.harden(head.plain(features), labels)`, so that a step that wants both computes the product once.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from utils.precision import wide


class LinearHead(nn.Linear):
    """Products with a weight a class, without bias and margin (Luo et al., Bag of Tricks, CVPR workshops 2019)."""

    std = 0.001  # of the weights at the start

    def __init__(self, feature_dim: int, num_classes: int, scale: float, margin: float, sub_centers: int):
        super().__init__(feature_dim, num_classes, bias=False)
        nn.init.normal_(self.weight, std=self.std)

    def plain(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(features, self.weight)

    def harden(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        logits = self.plain(features)
        return logits if labels is None else self.harden(logits, labels)


class CosineHead(LinearHead):
    """Cosines times a fixed scale, in float32 (Wang et al., NormFace, ACM Multimedia 2017)."""

    std = 0.01  # as in fast-reid

    def __init__(self, feature_dim: int, num_classes: int, scale: float, margin: float, sub_centers: int):
        super().__init__(feature_dim, num_classes, scale, margin, sub_centers)
        self.scale, self.margin = scale, margin

    def cosines(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(F.normalize(wide(features)), F.normalize(wide(self.weight)))

    def plain(self, features: torch.Tensor) -> torch.Tensor:
        return self.scale * self.cosines(features)


class LearnedCosineHead(CosineHead):
    """The same with a scale that is trained, from the given one."""

    def __init__(self, feature_dim: int, num_classes: int, scale: float, margin: float, sub_centers: int):
        super().__init__(feature_dim, num_classes, scale, margin, sub_centers)
        self.scale = nn.Parameter(torch.tensor(float(scale)))


class CosFaceHead(CosineHead):
    """The label's cosine less the margin (Wang et al., CosFace; Wang et al., AM-Softmax; both 2018)."""

    def harden(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        target = logits.gather(1, labels[:, None])
        return logits.scatter(1, labels[:, None], target - self.scale * self.margin)


class ArcFaceHead(CosineHead):
    """The label's angle more by the margin, in radians (Deng et al., ArcFace, CVPR 2019).

    Angles beyond pi - margin would come out below pi again; there the cosine falls by margin × sin(margin) instead,
    as in the authors' code.
    """

    def harden(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cosine = logits.gather(1, labels[:, None]) / self.scale
        sine = (1 - cosine.square()).clamp(min=1e-12).sqrt()  # the clamp keeps the root's gradient finite at ±1
        turned = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        lowered = cosine - self.margin * math.sin(self.margin)
        turned = torch.where(cosine > math.cos(math.pi - self.margin), turned, lowered)
        return logits.scatter(1, labels[:, None], self.scale * turned)


class SubCenterArcFaceHead(ArcFaceHead):
    """ArcFace with several weights a class, the nearest of which counts (Deng et al., Sub-center ArcFace, ECCV 2020).

    The weights of a class are rows next to each other.
    """

    def __init__(self, feature_dim: int, num_classes: int, scale: float, margin: float, sub_centers: int):
        super().__init__(feature_dim, num_classes * sub_centers, scale, margin, sub_centers)
        self.out_features, self.sub_centers = num_classes, sub_centers

    def cosines(self, features: torch.Tensor) -> torch.Tensor:
        return super().cosines(features).unflatten(1, (-1, self.sub_centers)).amax(2)


class CircleHead(CosineHead):
    """Every cosine weighed by how far it is from its optimum: 1 + margin for the label, -margin for the others
    (Sun et al., Circle Loss, CVPR 2020, with class-level labels; the weights are constants to the gradient)."""

    def harden(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cosine = logits / self.scale
        weights = (cosine.detach() + self.margin).relu()
        others = weights * (cosine - self.margin)
        target = cosine.gather(1, labels[:, None])
        weight = (1 + self.margin - target.detach()).relu()
        return self.scale * others.scatter(1, labels[:, None], weight * (target - (1 - self.margin)))


HEADS = {
    "linear": LinearHead,
    "cosine": CosineHead,
    "cosine_learned": LearnedCosineHead,
    "cosface": CosFaceHead,
    "arcface": ArcFaceHead,
    "subcenter_arcface": SubCenterArcFaceHead,
    "circle": CircleHead,
}
