"""Name to backbone: a function of the Config that gives a module from images (B, 3, H, W) to a map (B, C, h, w).

It has `out_channels` (C), `stage_channels` (the widths after its stages), `attention` (a ModuleDict of modules that run
after the stages, by their number) and `imagenet` (its weights there, with `get_state_dict` and `url`). Parameter names
are those of published files. A new one is one file, and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from config import Config
from model.backbones import resnet_ibn
from model.backbones.convnext import CONVNEXTS
from model.backbones.efficientnet import EFFICIENTNETS
from model.backbones.mobilenet import MOBILENETS
from model.backbones.osnet import OSNETS
from model.backbones.regnet import REGNETS
from model.backbones.resnet import RESNETS
from model.backbones.searchable import read_spec, searched
from model.backbones.shufflenet import SHUFFLENETS
from model.backbones.timm_backbone import timm_backbone
from model.backbones.vit import TRANSFORMERS
from utils.errors import UserError, did_you_mean

BACKBONES: dict[str, Callable[[Config], nn.Module]] = {
    **RESNETS,
    "resnet50_ibn_a": resnet_ibn.resnet50_ibn_a,
    "resnet101_ibn_a": resnet_ibn.resnet101_ibn_a,
    "resnet18_ibn_b": resnet_ibn.resnet18_ibn_b,
    "resnet50_ibn_b": resnet_ibn.resnet50_ibn_b,
    **OSNETS,
    **MOBILENETS,
    **SHUFFLENETS,
    **EFFICIENTNETS,
    **REGNETS,
    **CONVNEXTS,
    **TRANSFORMERS,
}


def find_backbone(name: str) -> Callable[[Config], nn.Module]:
    """The backbone of that name, `timm/` and a name there, `searched:` and a file, or `supernet`, which trains all that
    the search chooses from; `supernet:` and a number, those of up to so many multiply-adds. Raises UserError for a name
    that is none."""
    if name in BACKBONES:
        return BACKBONES[name]
    if name.split(":")[0] == "supernet":
        from tools.light.supernet import supernet  # a tool; only its own checkpoints and trainings need it

        return partial(supernet, name.removeprefix("supernet").removeprefix(":"))
    if name.startswith("searched:"):
        return partial(searched, read_spec(name.removeprefix("searched:")))
    if name.startswith("timm/"):
        return partial(timm_backbone, name.removeprefix("timm/"))
    hint = (
        did_you_mean(name, BACKBONES, cutoff=0.4)
        or f"the names are {', '.join(BACKBONES)}, timm/NAME and searched:FILE.json"
    )
    raise UserError(f"no backbone is called {name}; {hint}")
