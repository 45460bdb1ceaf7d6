"""Name to attention module: a class of (channels, ratio) that maps (B, C, H, W) to the same shape, for any H and W.
`ratio` is the share of the channels that is kept inside. A new one is one file, and one line here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from model.attention.cbam import CBAM
from model.attention.dual import FPB, PLR
from model.attention.global_context import GatedContext, GlobalContext
from model.attention.non_local import NonLocal, NonLocalSoftmax
from model.attention.squeeze import SE
from utils.errors import UserError

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
    """One module for each of `stages`, under the stage's number as text; none at all for the name `none`.

    stage_channels: widths behind the backbone's stages 1, 2, ... Raises UserError for a stage that it has not.
    """
    if name == "none":
        return nn.ModuleDict()
    for stage in stages:
        if not 1 <= stage <= len(stage_channels):
            raise UserError(f"--attention-stages {stage} does not exist; this backbone has 1 to {len(stage_channels)}")
    return nn.ModuleDict({str(n): ATTENTION[name](stage_channels[n - 1], ratio) for n in stages})
