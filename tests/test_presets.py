"""Presets: facts of their sources that a typing error would break, and each builds; test_fake_cuda.py trains them."""

import json
from collections.abc import Callable

import pytest
import torch
from helpers import ROOT

from config import PRESETS, Config, load_preset
from loss import make_criterion
from model import build_model
from solver import lr_factor
from tools.model_summary import count

DEMO = {"demo", "demo_light"}
OF_THEIR_OWN = {"light_210m", "light_210m_long", "light_210m_512", "hn_lightmbn"}  # networks that other tests are about
KNOWN = {name: load_preset(name) for name in PRESETS if name not in DEMO | OF_THEIR_OWN}  # with facts below


def test_presets_and_published_rows_belong_together():
    """Every recipe has a row on the set that it is tested on, and every row a recipe that gives its protocol."""
    rows = json.loads((ROOT / "results" / "published.json").read_text())["rows"]
    named = {(name, row.get("dataset", "market1501")): row for row in rows for name in row["experiments"]}
    tested = {name: load_preset(name) for name in PRESETS if name not in DEMO}
    assert {(name, cfg.data.test_dataset or cfg.data.dataset) for name, cfg in tested.items()} == set(named)
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert not [name for name in tested if f"`{name}`" not in page]
    for row in rows:
        for protocol in row["protocol"].split("+"):
            assert protocol == "plain" or any(load_preset(name).get(protocol) for name in row["experiments"]), row


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "_v2_scratch_c" in name else name for name in PRESETS]
)
def test_every_preset_passes_its_checks_and_builds_a_model_and_a_criterion(name):
    cfg = load_preset(name).check().replace(weights="none")
    if cfg.model.backbone.startswith("timm/"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        model = build_model(cfg, 5)
        make_criterion(cfg, 5, model.feature_dims, [head.add_margin for head in model.heads])
    assert cfg.run.preset == name


def rate(name: str, epoch: float, steps_per_epoch: int = 202) -> float:
    """Learning rate of a preset after so many epochs."""
    return load_preset(name).solver.lr * lr_factor(load_preset(name), epoch, steps_per_epoch)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        # configs/reid/resnet50_market1501.py: warm-up of 2,000 iterations from 0.01, steps 40 and 90
        ("mlr_resnet50", {0: 3.5e-6, 2000 / 202: 3.5e-4, 39.9: 3.5e-4, 40: 3.5e-5, 90: 3.5e-6}),
        # the README's "50,120,150"
        ("mlr_mobilenet_v2_adam", {0: 3.5e-4, 49.9: 3.5e-4, 50: 3.5e-5, 119.9: 3.5e-5, 120: 3.5e-6}),
        ("mlr_mobilenet_v2_sgd_wd1e4", {0: 0.1, 50: 0.01, 120: 0.001}),
        ("mlr_mobilenet_v2_sgd", {0: 0.065, 50: 0.0065, 120: 0.00065}),
        ("der_resnet50_scratch", {0: 1.05e-4, 500 / 202: 3.5e-4, 30: 3.5e-5, 54.9: 3.5e-5, 55: 3.5e-6}),
        # "Base Lr" in its logs, of epochs 1, 5, 10, 19, 20, 29, 30, 40, 60
        ("sbn_resnet50", {0: 1.09e-5, 4.5: 5.05e-5, 9.9: 1e-4, 18.5: 1e-4, 19.5: 6e-5, 28.5: 6e-5, 29.5: 3.6e-5}),
        ("sbn_veri_wild", {0.5: 1.09e-5, 18.5: 1e-4, 19.5: 6e-5, 39.5: 3.6e-5}),
        ("sbn_veri776", {0.5: 1.09e-5, 39.5: 3.6e-5, 44.5: 2.16e-5, 59.5: 1.296e-5}),
        # ETA_MIN_LR 7e-7 in both, half-way between it and the base rate in the middle of the cosine
        ("hn_strong", {0: 3.5e-6, 10: 3.5e-4, 30: 3.5e-4, 90: 1.7535e-4, 150: 7e-7}),
        ("sbs_resnet50", {0: 3.5e-5, 1000 / 202: 1.925e-4, 2000 / 202: 3.5e-4, 30: 3.5e-4, 45: 1.7535e-4, 60: 7e-7}),
        # once per epoch, counted from 1
        ("agw_resnet50", {0: 3.815e-5, 9: 3.5e-4, 38.9: 3.5e-4, 39: 3.5e-5, 69: 3.5e-6}),
        ("tiny_b1_code", {0: 3.815e-5, 9: 3.5e-4, 39: 3.5e-5, 69: 3.5e-6, 128.9: 3.5e-6, 129: 3.5e-7}),
        ("der_resnet50_ibn_a_code", {0: 1.0549e-4, 28.5: 1.1921e-4, 29: 1.197e-5, 54: 1.3195e-6, 59: 1.344e-6}),
    ],
)
def test_rates_are_those_of_the_source(name, rates):
    assert {epoch: rate(name, epoch) for epoch in rates} == pytest.approx(rates, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "p", "k", "height", "width"),
    [("mlr_resnet50", 16, 4, 256, 128), ("hn_strong", 4, 16, 384, 128), ("sbn_resnet50", 8, 8, 224, 224),
     ("sbn_veri_wild", 6, 6, 384, 384), ("sbn_veri776", 6, 6, 384, 384), ("sbs_resnet50", 4, 16, 384, 128),
     ("agw_resnet50", 16, 4, 256, 128), ("sbn_resnet50_2gpu", 8, 16, 224, 224),
     ("sbn_partial_ilids", 8, 8, 384, 256), ("tiny_b1_hem_code", 16, 4, 256, 128)],
)  # fmt: skip
def test_batches_and_images_are_those_of_the_source(name, p, k, height, width):
    cfg = load_preset(name)
    assert (cfg.data.batch_size, cfg.data.images_per_id) == (p * k, k)
    assert (cfg.data.height, cfg.data.width) == (height, width)


def chosen(test: Callable[[Config], bool]) -> set[str]:
    return {name for name, cfg in KNOWN.items() if test(cfg)}


def test_losses_are_those_of_the_source():
    der, sbn = ({name for name in KNOWN if name.startswith(start)} for start in ("der_", "sbn_"))
    tiny = {name for name in KNOWN if name.startswith("tiny_")}
    assert chosen(lambda cfg: cfg.loss.center_weight > 0) == {"agw_resnet50"} | tiny | der
    assert chosen(lambda cfg: cfg.loss.label_smoothing == 0) == sbn
    circle = {"hn_strong", "sbs_resnet50", "sbs_resnet50_ibn_a"}
    head = ("circle", 64, 0.35)
    assert chosen(lambda cfg: (cfg.model.head, cfg.model.head_scale, cfg.model.head_margin) == head) == circle
    assert chosen(lambda cfg: cfg.loss.soft_margin) == circle
    assert chosen(lambda cfg: cfg.loss.triplet == "weighted") == {"agw_resnet50"}
    assert chosen(lambda cfg: cfg.loss.triplet_alone) == {name for name in der if name.endswith("_code")}
    mobilenets = {name for name in KNOWN if name.startswith("mlr_mobilenet")}
    assert chosen(lambda cfg: cfg.model.metric_feature == "pooled") == mobilenets
    assert chosen(lambda cfg: cfg.model.metric_feature == "after") == circle


@pytest.mark.parametrize(
    ("name", "embedding", "least", "most"),
    [
        ("mlr_resnet50", 2048, 4.04e9, 4.08e9),  # published 4.08 G, with batch norm and ReLU
        ("mlr_mobilenet_v2_sgd", 256, 195e6, 210e6),  # published 210 M, with batch norm and ReLU
        ("der_resnet50_ibn_a", 2048, 4.04e9, 4.08e9),
        ("der_efficientnet_v2", 1280, 1.8e9, 1.9e9),  # V2-S has 2.9 G at 224 × 224 with last stride 2 (torchvision)
    ],
)
def test_widths_and_multiply_adds_are_those_of_the_source(name, embedding, least, most):
    counted = count(load_preset(name))
    assert counted["embedding"] == embedding and least <= counted["multiply-adds"] <= most
