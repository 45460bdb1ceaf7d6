"""Every position from all others (Wang et al., Non-local Neural Networks, CVPR 2018)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from model.attention.common import reduced, zero_bn
from utils.precision import wide


class NonLocal(nn.Module):
    """x plus what each position gathers from all positions, weighed by dot products over their number.

    This is the form in AGW (Ye et al. 2021), fast-reid and Deep Person Re-identification. The last takes the ratio
    1/16; the other two keep a single channel whatever their ratio says, which is ratio 0 here. Wang et al. take 1/2.
    Starts as the identity.
    """

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        inner = reduced(channels, ratio)
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1, bias=False)  # the batch norm would undo a bias
        self.bn = zero_bn(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta, phi, g = (f(x).flatten(2).transpose(1, 2) for f in (self.theta, self.phi, self.g))
        with torch.autocast(x.device.type, enabled=False):  # products of features outgrow float16
            gathered = self.gather(wide(theta), wide(phi), wide(g)).transpose(1, 2).unflatten(2, x.shape[2:])
            return x + self.bn(self.out(gathered.to(self.out.weight.dtype))).to(x.dtype)

    def gather(self, theta: torch.Tensor, phi: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """All (B, positions, inner)."""
        return theta @ (phi.transpose(1, 2) @ g) / phi.shape[1]  # this order never holds positions × positions


class NonLocalSoftmax(NonLocal):
    """The same with a softmax over the positions: the embedded Gaussian, Wang et al.'s default."""

    def gather(self, theta: torch.Tensor, phi: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(theta, phi, g, scale=1.0)
