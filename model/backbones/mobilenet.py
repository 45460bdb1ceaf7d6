"""MobileNetV2 (Sandler et al., Inverted Residuals and Linear Bottlenecks, CVPR 2018) and MobileNetV3 (Howard et al.,
Searching for MobileNetV3, ICCV 2019), torchvision's."""

from __future__ import annotations

from functools import partial

from torchvision import models

from config import Config
from model.backbones.stages import Backbone, cut

# layers before which the map is halved next, and their number
ENDS = {"mobilenet_v2": (4, 7, 14, 19), "mobilenet_v3_small": (2, 4, 9, 13), "mobilenet_v3_large": (4, 7, 13, 17)}


def mobilenet(name: str, cfg: Config) -> Backbone:
    """The MobileNet called `name`: (B, 3, H, W) to (B, C, H/16, W/16), or H/32 with last stride 2.

    C is 1280 for V2 (times a `width_multiplier` above 1), 576 and 960 for V3, whose layer to 1280 or 1024 comes after
    the pooling and is left out.
    """
    options = {"width_mult": cfg.model.width_multiplier} if name == "mobilenet_v2" else {}
    net = models.get_model(name, **options)
    channels = [net.features[end - 1].out_channels for end in ENDS[name]]
    backbone = Backbone(net, cut("features", ENDS[name]), channels, cfg.model.last_stride)
    backbone.imagenet = models.get_model_weights(name).IMAGENET1K_V1
    return backbone


MOBILENETS = {name: partial(mobilenet, name) for name in ENDS}
