"""torchvision's CNNs, cut into four stages, with the stride of the last one optional.

* ResNet (He et al., Deep Residual Learning for Image Recognition, CVPR 2016), and ResNeXt (Xie et al., CVPR 2017) and
  Wide ResNet (Zagoruyko & Komodakis, BMVC 2016), which differ in the width of their blocks
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

RESNET = [["conv1", "bn1", "relu", "maxpool", "layer1"], ["layer2"], ["layer3"], ["layer4"]]
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
    if family == "shufflenet":
        inner = [2 * stage[0].branch2[0].out_channels for stage in (net.stage2, net.stage3)]
        return SHUFFLENET, [net.conv1[0].out_channels, *inner, net.conv5[0].out_channels]
    width = net.fc.in_features
    return RESNET, [width // 8, width // 4, width // 2, width]


def set_stem(net: nn.Module, cfg: Config) -> None:
    """The first layers of a ResNet as in other projects: without ReLU, or with their pooling of partial windows."""
    if cfg.model.stem == "no_relu":
        net.relu = nn.Identity()
    elif cfg.model.stem == "ceil":
        net.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)


def torchvision_net(cfg: Config) -> Backbone:
    """The network of the settings: (B, 3, H, W) to (B, C, H/16, W/16), or H/32 with last stride 2."""
    name = cfg.model.backbone
    options = {"width_mult": cfg.model.width_multiplier} if name == "mobilenet_v2" else {}
    net = models.get_model(name, **options)
    if cfg.model.stride_in_1x1:
        # Caffe's ResNets have the stride of a stage in its first 1×1 convolution, and their weights need it there
        for first in (net.layer2[0], net.layer3[0], net.layer4[0]):
            first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
    set_stem(net, cfg)
    backbone = Backbone(net, *stages_of(name, net), cfg.model.last_stride)
    # V1 is what the Bag of Tricks papers started from; V2 transfers worse
    backbone.imagenet = models.get_model_weights(name).IMAGENET1K_V1
    return backbone
