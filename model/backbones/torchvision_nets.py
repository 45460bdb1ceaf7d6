"""torchvision's CNNs that are no ResNets, cut into four stages, with the stride of the last one optional.

* MobileNetV2 (Sandler et al., Inverted Residuals and Linear Bottlenecks, CVPR 2018) and MobileNetV3 (Howard et al.,
  Searching for MobileNetV3, ICCV 2019)
* ShuffleNetV2 (Ma et al., Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018)
* EfficientNet (Tan & Le, Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019) and EfficientNetV2 (Tan
  & Le, Smaller Models and Faster Training, ICML 2021)
* RegNet (Radosavovic et al., Designing Network Design Spaces, CVPR 2020); Y is X with squeeze-and-excitation
"""

from torch import nn
from torchvision import models

from config import Config
from model.backbones.stages import Backbone, cut

REGNET = [["stem", "trunk_output.block1"], ["trunk_output.block2"], ["trunk_output.block3"], ["trunk_output.block4"]]
SHUFFLENET = [["conv1", "maxpool"], ["stage2"], ["stage3"], ["stage4", "conv5"]]
# stages of `features` end before these layers, each of which halves the map
MOBILENET = {"mobilenet_v2": (4, 7, 14, 19), "mobilenet_v3_small": (2, 4, 9, 13), "mobilenet_v3_large": (4, 7, 13, 17)}


def stages_of(name: str, net: nn.Module) -> tuple[list[list[str]], list[int]]:
    """Layers of each stage, and the channels after it. Layers that come after the pooling are left out."""
    family = name.split("_")[0]
    if family == "mobilenet":
        return cut("features", MOBILENET[name]), [net.features[end - 1].out_channels for end in MOBILENET[name]]
    if family == "efficientnet":
        ends = (3, 4, 6, len(net.features))  # V2-S has one block type less than the others in its last stage
        channels = [net.features[end - 1][-1].out_channels for end in ends[:-1]]
        return cut("features", ends), [*channels, net.classifier[-1].in_features]
    if family == "regnet":
        return REGNET, [block[-1].f.c.out_channels for block in net.trunk_output]
    inner = [2 * stage[0].branch2[0].out_channels for stage in (net.stage2, net.stage3)]  # ShuffleNet
    return SHUFFLENET, [net.conv1[0].out_channels, *inner, net.conv5[0].out_channels]


def torchvision_net(cfg: Config) -> Backbone:
    """The network of the settings: (B, 3, H, W) to (B, C, H/16, W/16), or H/32 with last stride 2."""
    name = cfg.model.backbone
    options = {"width_mult": cfg.model.width_multiplier} if name == "mobilenet_v2" else {}
    net = models.get_model(name, **options)
    for layer in net.modules():  # in place, activations other than ReLU copy their input, which their gradient needs
        if getattr(layer, "inplace", False) and not isinstance(layer, nn.ReLU):
            layer.inplace = False
    backbone = Backbone(net, *stages_of(name, net), cfg.model.last_stride)
    backbone.imagenet = models.get_model_weights(name).IMAGENET1K_V1.url
    return backbone
