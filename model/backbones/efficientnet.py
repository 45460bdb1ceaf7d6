"""EfficientNet (Tan & Le, Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019) and EfficientNetV2
(Tan & Le, Smaller Models and Faster Training, ICML 2021), torchvision's."""

from __future__ import annotations

from functools import partial

from torchvision import models

from config import Config
from model.backbones.stages import Backbone, cut

NAMES = (*(f"efficientnet_b{n}" for n in range(5)), "efficientnet_v2_s", "efficientnet_v2_m")


def efficientnet(name: str, cfg: Config) -> Backbone:
    """The EfficientNet called `name`: (B, 3, H, W) to (B, C, H/16, W/16), or H/32 with last stride 2.

    C is 1280 for B0, B1 and V2, 1408, 1536 and 1792 for B2, B3 and B4.
    """
    net = models.get_model(name)
    ends = (3, 4, 6, len(net.features))  # V2-S has one block type less than the others in its last stage
    channels = [net.features[end - 1][-1].out_channels for end in ends[:-1]] + [net.classifier[-1].in_features]
    backbone = Backbone(net, cut("features", ends), channels, cfg.model.last_stride)
    backbone.imagenet = models.get_model_weights(name).IMAGENET1K_V1
    return backbone


EFFICIENTNETS = {name: partial(efficientnet, name) for name in NAMES}
