"""Attention modules, constructed from (channels, ratio), that map (B, C, H, W) to the same shape, for any H and W.

`ratio` is the number of inner channels as a share of `channels`. Gates start with weights of about 0.5; residual
modules (gc, nonlocal, fpb) start as the identity.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from utils.errors import UserError
from utils.precision import at_least_float32


def reduced(channels: int, ratio: float) -> int:
    """Return the number of inner channels, at least one."""
    return max(1, round(channels * ratio))


def zero_bn(channels: int) -> nn.BatchNorm2d:
    """Batch norm that outputs 0 until it is trained, so that a residual starts as the identity (Goyal et al. 2017)."""
    bn = nn.BatchNorm2d(channels)
    nn.init.zeros_(bn.weight)
    return bn


class SE(nn.Module):
    """x times a weight in 0..1 per channel, from the channels' means (Hu et al., Squeeze-and-Excitation Networks, CVPR
    2018). The paper's ratio is 1/16."""

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        self.squeeze = nn.Linear(channels, reduced(channels, ratio))
        self.excite = nn.Linear(reduced(channels, ratio), channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return x * weights[:, :, None, None]


class CBAM(nn.Module):
    """x times a weight in 0..1 per channel, then per position, from means and maxima (Woo et al., CBAM, ECCV 2018).

    The paper's ratio is 1/16. The batch norm after the 7 × 7 convolution is not in the paper's formula, but in the
    authors' code.
    """

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        inner = reduced(channels, ratio)
        self.channel = nn.Sequential(
            nn.Linear(channels, inner, bias=False), nn.ReLU(inplace=True), nn.Linear(inner, channels, bias=False)
        )
        self.spatial = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = (self.channel(x.mean((2, 3))) + self.channel(x.amax((2, 3)))).sigmoid()
        x = x * weights[:, :, None, None]
        return x * self.spatial(torch.stack([x.mean(1), x.amax(1)], 1)).sigmoid()


class GatedContext(nn.Module):
    """x times a weight in 0..1 per channel, from a global context of the map (Cao et al., GCNet, ICCV workshops 2019).

    GCNet's code calls it `channel_mul`. It is timm's default; Deep Person Re-identification uses it in LightMBN, at
    ratio 1/16.
    """

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        inner = reduced(channels, ratio)
        self.attend = nn.Conv2d(channels, 1, 1, bias=False)  # a bias would cancel in the softmax over positions
        nn.init.kaiming_normal_(self.attend.weight, nonlinearity="relu")
        self.transform = nn.Sequential(
            nn.Linear(channels, inner), nn.LayerNorm(inner), nn.ReLU(inplace=True), nn.Linear(inner, channels)
        )

    def context(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, 1, 1)."""
        weights = self.attend(x).flatten(2).softmax(2)
        mean = (x.flatten(2) @ weights.transpose(1, 2)).squeeze(2)
        return self.transform(mean)[:, :, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.context(x).sigmoid()


class GlobalContext(GatedContext):
    """x plus the context, GCNet's own choice (its ratios: 1/4 and 1/16)."""

    def __init__(self, channels: int, ratio: float):
        super().__init__(channels, ratio)
        nn.init.zeros_(self.transform[-1].weight)
        nn.init.zeros_(self.transform[-1].bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.context(x)


class NonLocal(nn.Module):
    """x plus a sum over all positions, weighted by dot products divided by the number of positions (Wang et al.,
    Non-local Neural Networks, CVPR 2018).

    The form of AGW (Ye et al. 2021), fast-reid and Deep Person Re-identification. The last uses ratio 1/16; the other
    two keep one channel whatever their ratio setting says (ratio 0 here). Wang et al. use 1/2.
    """

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        inner = reduced(channels, ratio)
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1, bias=False)  # a bias would cancel in the batch norm
        self.bn = zero_bn(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta, phi, g = (f(x).flatten(2).transpose(1, 2) for f in (self.theta, self.phi, self.g))
        with torch.autocast(x.device.type, enabled=False):  # products of features overflow float16
            gathered = self.gather(*map(at_least_float32, (theta, phi, g)))
            gathered = gathered.transpose(1, 2).unflatten(2, x.shape[2:])
            return x + self.bn(self.out(gathered.to(self.out.weight.dtype))).to(x.dtype)

    def gather(self, theta: torch.Tensor, phi: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """All arguments and the result: (B, positions, inner)."""
        return theta @ (phi.transpose(1, 2) @ g) / phi.shape[1]  # in this order no positions × positions matrix is made


class NonLocalSoftmax(NonLocal):
    """`NonLocal` with a softmax over the positions: the embedded Gaussian, Wang et al.'s default."""

    def gather(self, theta: torch.Tensor, phi: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(theta, phi, g, scale=1.0)


class PositionAttention(nn.Module):
    """x plus, at each position, the mean over all positions weighted by a softmax of dot products.

    PAM of DANet (Fu et al., CVPR 2019) with ABD-Net's batch norm (Chen et al., ICCV 2019). The weight of the batch norm
    replaces the papers' gamma, whose scale normalization would cancel. The papers' ratio is 1/8.
    """

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        inner = reduced(channels, ratio)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1, bias=False)  # a bias would cancel in the softmax
        self.value = nn.Conv2d(channels, channels, 1, bias=False)  # and here in the batch norm
        self.bn = zero_bn(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (f(x).flatten(2).transpose(1, 2) for f in (self.query, self.key, self.value))
        mean = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self.bn(mean.transpose(1, 2).unflatten(2, x.shape[2:]))


class ChannelAttention(nn.Module):
    """x plus, for each channel, a mean of all channels in which the least similar ones weigh most: DANet's CAM with
    ABD-Net's batch norm, which has the only weights."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn = zero_bn(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = x.flatten(2)
        # DANet's softmax(max - similarity) is the softmax of the negative similarity
        mean = F.scaled_dot_product_attention(-maps, maps, maps, scale=1.0)
        return x + self.bn(mean.unflatten(2, x.shape[2:]))


class PLR(nn.Sequential):
    """Position attention, then squeeze-and-excitation: used by PLR-OSNet after its first two stages (Xie et al.,
    Learning Diverse Features with Part-Level Resolution for Person Re-Identification, 2020).

    As in Deep Person Re-identification; the authors' code uses x itself as value, and its squeeze-and-excitation has no
    pooling (commented out), so it weights every position separately.
    """

    def __init__(self, channels: int, ratio: float):
        super().__init__(PositionAttention(channels, ratio), SE(channels, ratio))


class FPB(nn.Sequential):
    """Position attention, then channel attention: used after the second stage by Zhang et al., FPB: Feature Pyramid
    Branch for Person Re-Identification, 2021. As in Deep Person Re-identification, without the authors' dropout of 0.2
    and without their pyramid."""

    def __init__(self, channels: int, ratio: float):
        super().__init__(PositionAttention(channels, ratio), ChannelAttention(channels))


# --attention
ATTENTION = {
    "se": SE,
    "cbam": CBAM,
    "gc": GlobalContext,
    "gc_gate": GatedContext,
    "nonlocal": NonLocal,
    "nonlocal_softmax": NonLocalSoftmax,
    "plr": PLR,
    "fpb": FPB,
}


def make_attention(name: str, stages: Sequence[int], stage_channels: Sequence[int], ratio: float) -> nn.ModuleDict:
    """Make one module per stage in `stages`; the keys are the stage numbers as text.

    stage_channels: widths after the backbone's stages 1, 2, ... Raises UserError for a stage that does not exist.
    """
    for stage in stages:
        if not 1 <= stage <= len(stage_channels):
            raise UserError(f"--attention-stages {stage} does not exist; this backbone has 1 to {len(stage_channels)}")
    return nn.ModuleDict({str(n): ATTENTION[name](stage_channels[n - 1], ratio) for n in stages})
