"""Distillation from the stored features of a teacher, with a regressor as in FitNets (Romero et al., FitNets: Hints for
Thin Deep Nets, ICLR 2015); the cosine ignores the length of features, as retrieval does."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class TeacherLoss(nn.Module):
    """Mean over the batch of 1 - cosine of the teacher's feature and a linear projection of the model's, in float32.

    features: one (B, D) per branch, concatenated; teacher: (B, width). The projection is trained with the model, and
    used for equal widths too: pooled features after a ReLU are never negative, but those of a teacher usually are.
    """

    def __init__(self, feature_dims: Sequence[int], width: int):
        super().__init__()
        self.projection = nn.Linear(sum(feature_dims), width)

    def forward(self, features: Sequence[torch.Tensor], teacher: torch.Tensor) -> torch.Tensor:
        with torch.autocast(teacher.device.type, enabled=False):
            projected = self.projection(torch.cat([x.float() for x in features], 1))
            return 1 - F.cosine_similarity(projected, teacher).mean()
