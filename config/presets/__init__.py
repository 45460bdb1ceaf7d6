"""Recipes by name, one file per source. Each gives only what differs from the defaults of `Config`.

The comment above a recipe says where it comes from, what was published (mAP / Rank-1 in percent on Market-1501 unless
it names another dataset), and how it knowingly differs from the source. Differences that several share:

* HN, fast-reid, and SBN except for its first figures, train in half precision; recipes do not set the precision.
* The learning rate changes with every step here, once per epoch in Tiny, AGW, DER, HN and SBN. All of these but HN
  count epochs from 1, so a step falls one epoch before the number in their files; those of SBN, whose runs are short,
  are corrected.
* An epoch of Market-1501 has 202 batches in MLR and fast-reid, 185 (K = 4) or 211 (K = 16) here.
* Erased rectangles get ImageNet's mean color here, in MLR and in fast-reid; Tiny, AGW, DER and HN fill with about 0.48
  after normalization, SBN with 0.5: a lighter gray.
* AGW, HN and fast-reid put a non-local block after each of the last two blocks of the ResNet's second stage and the
  last three of its third; here there is one after each of these stages. The last two do not pad the first max pooling.
"""

import importlib
from collections.abc import Iterator
from typing import Any

from config.config import Config
from utils.errors import UserError, did_you_mean

SOURCES = {
    "demo": ("demo", "demo_light"),
    "tiny": ("tiny_b1", "tiny_b1_hem"),
    "mlr": (
        "mlr_resnet50", "mlr_mobilenet_v2_adam", "mlr_mobilenet_v2_sgd_wd1e4", "mlr_mobilenet_v2_sgd",
        "light_210m", "light_210m_long",
    ),
    "der": ("der_resnet50_scratch", "der_efficientnet_v2_scratch", "der_resnet50_ibn_a", "der_efficientnet_v2"),
    "hn": ("hn_strong", "hn_lightmbn"),
    "sbn": ("sbn_resnet50", "sbn_veri_wild", "sbn_veri776"),
    "beyond": ("sbs_resnet50", "sbs_resnet50_ibn_a", "agw_resnet50"),
}  # fmt: skip
PRESETS = {name: source for source, names in SOURCES.items() for name in names}


def load_preset(name: str) -> Config:
    """The settings of a preset. Raises UserError for an unknown name."""
    return Config(preset=name, **{k: v for k, v in _recipe(name).items() if k != "about"})


def describe_presets() -> Iterator[tuple[str, str]]:
    """Name and one line about each preset."""
    for name in PRESETS:
        yield name, _recipe(name)["about"]


def _recipe(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        hint = did_you_mean(name, PRESETS, cutoff=0.4) or f"there are: {', '.join(PRESETS)}"
        raise UserError(f"no preset is called {name}; {hint}")
    return importlib.import_module(f"config.presets.{PRESETS[name]}").PRESETS[name]
