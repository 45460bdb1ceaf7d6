"""ShuffleNetV2 (Ma et al., Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018), torchvision's."""

from __future__ import annotations

from functools import partial

from torchvision import models

from config import Config
from model.backbones.stages import Backbone

STAGES = [["conv1", "maxpool"], ["stage2"], ["stage3"], ["stage4", "conv5"]]
CHANNELS = {  # after each of them: the paper's table 5
    "shufflenet_v2_x0_5": (24, 48, 96, 1024),
    "shufflenet_v2_x1_0": (24, 116, 232, 1024),
    "shufflenet_v2_x1_5": (24, 176, 352, 1024),
    "shufflenet_v2_x2_0": (24, 244, 488, 2048),
}


def shufflenet(name: str, cfg: Config) -> Backbone:
    """The ShuffleNetV2 called `name`: (B, 3, H, W) to (B, C, H/16, W/16), or H/32 with last stride 2.

    C is 1024, 2048 for x2_0.
    """
    backbone = Backbone(models.get_model(name), STAGES, CHANNELS[name], cfg.model.last_stride)
    backbone.imagenet = models.get_model_weights(name).IMAGENET1K_V1
    return backbone


SHUFFLENETS = {name: partial(shufflenet, name) for name in CHANNELS}
