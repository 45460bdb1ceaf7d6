"""Backbones: `find_backbone(name)` returns a function that builds a module from the Config. The module maps images
(B, 3, H, W) to a feature map (B, C, h, w).

The module has `out_channels` (C), `stage_channels` (the widths after its stages), `attention` (a ModuleDict of modules
that run after the stages, by their number) and `imagenet` (the address of pretrained weights; empty: there are none).
Parameter names are those of published files. A new backbone is one file, and one line in BACKBONES.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from config import Config
from utils.errors import UserError, did_you_mean
from utils.lookup import load

RESNET = "model.backbones.resnet:resnet"
TORCHVISION = "model.backbones.torchvision_nets:torchvision_net"
IBN = "model.backbones.resnet_ibn:resnet_ibn"
OSNET = "model.backbones.osnet:osnet"

# --backbone: "module:function" of (Config)
BACKBONES = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), RESNET),
    **dict.fromkeys(("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"), RESNET),
    **dict.fromkeys(("resnet50_ibn_a", "resnet101_ibn_a", "resnet18_ibn_b", "resnet50_ibn_b"), IBN),
    **dict.fromkeys(("osnet_x1_0", "osnet_x0_75", "osnet_x0_5", "osnet_x0_25", "osnet_ibn_x1_0"), OSNET),
    **dict.fromkeys([f"osnet_ain_x{width}" for width in ("1_0", "0_75", "0_5", "0_25")], OSNET),
    **dict.fromkeys(("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"), TORCHVISION),
    **dict.fromkeys([f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")], TORCHVISION),
    **dict.fromkeys([f"efficientnet_b{n}" for n in range(5)], TORCHVISION),
    **dict.fromkeys(("efficientnet_v2_s", "efficientnet_v2_m"), TORCHVISION),
    **dict.fromkeys([f"regnet_{k}_{size}" for k in "yx" for size in ("400mf", "800mf", "1_6gf", "3_2gf")], TORCHVISION),
    **dict.fromkeys(("convnext_tiny", "convnext_small", "convnext_base"), "model.backbones.convnext:convnext"),
    **dict.fromkeys(("swin_t", "swin_v2_t"), "model.backbones.swin:swin"),
    "vit_b_16": "model.backbones.vit:vit",
}


def find_backbone(name: str) -> Callable[[Config], nn.Module]:
    """Return the function that builds the backbone `name`.

    Other names than those in BACKBONES: `timm/NAME`; `searched:FILE.json`; `supernet`, which trains all networks that
    the architecture search chooses from; `supernet:N`, only those of at most N multiply-adds. Raises UserError for an
    unknown name.
    """
    if name in BACKBONES:
        return load(BACKBONES[name])
    if name.startswith("timm/"):
        return load("model.backbones.timm_backbone:timm_backbone")
    if name.startswith("searched:"):
        spec = load("model.backbones.searchable:read_spec")(name.removeprefix("searched:"))
        return partial(load("model.backbones.searchable:searched"), spec)
    if name.split(":")[0] == "supernet":
        return partial(load("tools.light.supernet:supernet"), name.removeprefix("supernet").removeprefix(":"))
    hint = did_you_mean(name, BACKBONES, cutoff=0.4)
    hint = hint or f"the names are {', '.join(BACKBONES)}, timm/NAME and searched:FILE.json"
    raise UserError(f"no backbone is called {name}; {hint}")
