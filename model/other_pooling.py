"""Global pooling other than the mean, with the interface of `model.pooling.Average`."""

import math

import torch
from torch import nn

from model.pooling import Average
from utils.precision import at_least_float32


class Maximum(nn.Module):
    """Largest value over the positions."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return at_least_float32(maps.amax((2, 3)))


class AverageMaximum(nn.Module):
    """Mean plus maximum, as in fast-reid's AdaptiveAvgMaxPool."""

    def __init__(self):
        super().__init__()
        self.average, self.maximum = Average(), Maximum()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.average(maps) + self.maximum(maps)


class GeM(nn.Module):
    """Generalized mean, (mean of x^p)^(1/p), of values clamped to at least `eps` (Radenović et al., Fine-tuning CNN
    Image Retrieval with No Human Annotation, TPAMI 2019): the average at p = 1, the maximum as p grows.

    learn: train p, a single number (fast-reid's GeneralizedMeanPoolingP), or keep it fixed (GeneralizedMeanPooling).
    A p below 1 counts as 1: otherwise near-zero values of the background would dominate.
    """

    def __init__(self, p: float = 3.0, learn: bool = True, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        if learn:
            self.p = nn.Parameter(torch.tensor(p))
        else:
            self.register_buffer("p", torch.tensor(p), persistent=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        logs = at_least_float32(maps).clamp(min=self.eps).log().flatten(2)
        p = at_least_float32(self.p).clamp(min=1.0)
        # in logarithms no power overflows
        return ((torch.logsumexp(p * logs, 2) - math.log(logs.shape[2])) / p).exp()


def fixed_gem() -> GeM:
    """Generalized mean with p = 3."""
    return GeM(learn=False)
