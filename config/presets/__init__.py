"""Recipes by name, one file per source. Each gives only what differs from the defaults of `Config`.

docs/recipes.md says of each which lines of its source it follows, and where it differs; results/published.json has the
published figures. A name that ends in _code is the recipe that the source's code runs, where the name without it is the
recipe of its README or paper.
"""

import importlib
from collections.abc import Iterator
from typing import Any

from config.config import Config
from utils.errors import UserError, did_you_mean

SOURCES = {
    "demo": ("demo", "demo_light"),
    "tiny": (
        "tiny_b1", "tiny_b1_hem", "tiny_b1_code", "tiny_b1_hem_code", "tiny_b1_hem_rerank", "tiny_b1_hem_searched",
    ),
    "mlr": (
        "mlr_resnet50", "mlr_mobilenet_v2_adam", "mlr_mobilenet_v2_sgd_wd1e4", "mlr_mobilenet_v2_sgd",
        "light_210m", "light_210m_long", "light_210m_512",
    ),
    "der": (
        "der_resnet50_scratch", "der_efficientnet_v2_scratch", "der_resnet50_ibn_a", "der_efficientnet_v2",
        "der_resnet50_scratch_code", "der_efficientnet_v2_scratch_code", "der_resnet50_ibn_a_code",
        "der_efficientnet_v2_code", "der_efficientnet_v2_scratch_cuhk03_code", "der_resnet50_ibn_a_cuhk03_code",
        "der_efficientnet_v2_cuhk03_code",
    ),
    "hn": ("hn_strong", "hn_lightmbn"),
    "sbn": (
        "sbn_resnet50", "sbn_resnet50_fp16", "sbn_resnet50_2gpu", "sbn_partial_ilids", "sbn_veri_wild", "sbn_veri776",
    ),
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
