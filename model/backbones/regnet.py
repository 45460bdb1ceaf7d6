"""RegNet (Radosavovic et al., Designing Network Design Spaces, CVPR 2020), torchvision's; Y is X with
squeeze-and-excitation."""

from __future__ import annotations

from functools import partial

from torchvision import models

from config import Config
from model.backbones.stages import Backbone

STAGES = [["stem", "trunk_output.block1"], ["trunk_output.block2"], ["trunk_output.block3"], ["trunk_output.block4"]]
NAMES = [f"regnet_{kind}_{size}" for kind in "yx" for size in ("400mf", "800mf", "1_6gf", "3_2gf")]


def regnet(name: str, cfg: Config) -> Backbone:
    """The RegNet called `name`: (B, 3, H, W) to (B, C, H/16, W/16), or H/32 with last stride 2.

    C is 440, 784, 888 and 1512 for Y of 0.4, 0.8, 1.6 and 3.2 G multiply-adds at 224 × 224, 400, 672, 912, 1008 for X.
    """
    net = models.get_model(name)
    channels = [block[-1].f.c.out_channels for block in net.trunk_output]
    backbone = Backbone(net, STAGES, channels, cfg.model.last_stride)
    backbone.imagenet = models.get_model_weights(name).IMAGENET1K_V1
    return backbone


REGNETS = {name: partial(regnet, name) for name in NAMES}
