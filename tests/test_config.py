"""Settings, command lines and presets."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from helpers import ROOT, done

from config import Config, load_preset
from config.cli import parse_settings, parse_train
from config.config import METRIC_LOSSES, RANGE_OF, SECTION_OF, SECTIONS, SETTINGS
from config.help import option_lines
from config.options import parse_command, parse_options
from config.presets import describe_presets
from loss import make_criterion
from loss.criterion import metric_losses
from model import build_model
from solver import lr_factor
from tools.model_summary import count
from utils.errors import UserError


def test_presets_have_a_description_and_demo_is_the_default():
    assert parse_train([], {}) == load_preset("demo")
    assert all(describe_presets().values())


def test_settings_override_the_preset():
    cfg = parse_train(["tiny_b1", "--epochs", "20", "--steps", "11", "17", "--train_ids", "5", "--flip"], {})
    assert (cfg.solver.epochs, cfg.solver.steps, cfg.data.train_ids, cfg.eval.flip) == (20, (11, 17), 5, True)
    assert cfg.model.backbone == "resnet50"
    assert parse_train(["--lr=0.5", "--ms-base", "-0.5"], {}).get("ms_base") == -0.5


def test_booleans_take_every_spelling():
    for words, flip in (
        (["--flip"], True), (["--no-flip"], False), (["--flip", "False"], False), (["--flip=true"], True),
        (["--flip", "--seed", "1"], True), (["--no_flip"], False),
    ):  # fmt: skip
        assert parse_train(words, {}).eval.flip is flip
    for words, value in ((["--no-decay-norm-bias"], True), (["--no-no-decay-norm-bias"], False)):
        assert parse_train(words, {}).solver.no_decay_norm_bias is value  # its name begins with no_


def test_data_root_comes_from_the_command_line_then_the_variable_then_the_default():
    assert parse_train([], {}).data.data_root == "data"
    assert parse_train([], {"REID_DATA": "/elsewhere"}).data.data_root == "/elsewhere"
    assert parse_train(["--data-root", "/here"], {"REID_DATA": "/elsewhere"}).data.data_root == "/here"


def test_the_published_recipes_are_what_their_papers_say():
    cfg = load_preset("tiny_b1")
    assert (cfg.model.backbone, cfg.data.height, cfg.data.width, cfg.model.last_stride) == ("resnet50", 256, 128, 1)
    assert (cfg.data.batch_size, cfg.data.images_per_id) == (64, 4)
    assert (cfg.solver.lr, cfg.solver.weight_decay, cfg.solver.epochs) == (3.5e-4, 5e-4, 120)
    assert (cfg.solver.warmup_epochs, cfg.solver.steps) == (10, (40, 70))
    assert (cfg.loss.label_smoothing, cfg.loss.triplet_margin, cfg.augment.erase_prob) == (0.1, 0.3, 0.5)
    assert (cfg.loss.center_weight, cfg.loss.center_lr) == (5e-4, 0.5)
    assert load_preset("tiny_b1_hem") == cfg.replace(hard_factor=0.2, preset="tiny_b1_hem")


def test_a_config_survives_json_and_files_of_other_versions():
    cfg = load_preset("tiny_b1").replace(steps=(1.5, 3), seed=7)
    assert Config.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    assert Config.from_dict({"epochs": 3, "from_the_future": 1}).solver.epochs == 3
    old = {k: v for k, v in cfg.to_dict().items() if k not in ("holdout_ids", "rerank_note")}  # older than these
    assert Config.from_dict(old) == cfg


def test_values_of_the_wrong_type_in_a_file_are_refused_by_name():
    wrong = {
        "height": ["tall", 1e9, None, True, [256]], "lr": ["fast", [0.1]], "flip": ["yes", 1], "backbone": [3, ["a"]],
        "pooling": ["gen", 0], "steps": [40, ["a"], "40"], "last_stride": [True, "1", 3], "jitter": [[0.1, 0.1]],
    }  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(UserError, match=name):
                Config.from_dict({name: value})


def test_every_number_has_a_range_or_is_only_finite():
    numbers = [n for n, s in SETTINGS.items() if s.type in (int, float)]
    for name in numbers:
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} "):
            Config(**{name: math.nan}).check()
    assert set(RANGE_OF) <= set(numbers)
    assert all(math.isfinite(Config().get(name)) for name in numbers)


def test_every_setting_has_a_help_line_and_a_unique_name():
    lines = [line for kind in SECTIONS.values() for line in option_lines(kind)]
    assert len(lines) == len(SECTION_OF) - 2  # the preset and its note are not listed
    assert all(len(line) > 50 for line in lines)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["tiny_b2"], ["tiny_b2", "tiny_b1"]),
        (["--batch-size", "62"], ["--images-per-id 4", "--batch-size 60"]),
        (["--batch-size", "4"], ["one identity", "--batch-size 16"]),
        (["--triplet-weight", "0", "--id-weight", "0"], ["--id-weight"]),
        (["--stride-in-1x1"], ["resnet18", "--stride-in-1x1"]),
        (["--steps", "70", "40"], ["--steps"]),
        (["--name", "a/b"], ["--name", "--log-dir"]),
        (["demo", "tiny_b1"], ["tiny_b1"]),
        (["--epoch", "3"], ["--epoch", "--epochs"]),
        (["--epochs", "many"], ["--epochs", "many"]),
        (["--pooling", "gen"], ["--pooling", "gen", "gem"]),
        (["--flip=maybe"], ["--flip", "maybe"]),
        (["--help", "nothing"], ["nothing", "loss"]),
    ],
)
def test_bad_command_lines_get_one_sentence_that_names_what_is_wrong(args, words):
    with pytest.raises(UserError) as error:
        parse_train(args, {})
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_every_metric_loss_needs_batches_with_positives_and_is_built_by_the_criterion():
    for loss in METRIC_LOSSES:
        on = {f"{name}_weight": 0.0 for name in METRIC_LOSSES} | {f"{loss}_weight": 0.5, "center_weight": 0.0}
        cfg = Config(**on, id_weight=0.0).check()
        assert list(metric_losses(cfg)) == [loss]
        for change in ({"sampler": "shuffle"}, {"images_per_id": 1}, {f"{loss}_weight": 0.0}, {f"{loss}_weight": -1.0}):
            with pytest.raises(UserError):
                cfg.replace(**change).check()


@dataclass
class Own:
    """Does something. More about it."""

    folder: str  # folder of pictures
    num: int = 8  # number of images
    kind: Literal["a", "b"] = "a"  # kind


def test_programs_have_options_of_their_own(capsys):
    def parsed(*words: str) -> tuple[Config, Own]:
        return parse_settings(["--folder", "here", *words], Config(), {}, "about", Own, {"num": "[1, inf)"})

    cfg, own = parsed("--num", "3", "--seed", "4")
    assert (own.num, cfg.run.seed) == (3, 4)
    with pytest.raises(UserError, match="--num"):
        parsed("--num", "0")
    assert parse_options(["here", "--kind", "b"], Own, "about", "folder") == Own("here", 8, "b")
    with pytest.raises(UserError, match="folder"):
        parse_options([], Own, "about", "folder")
    assert parse_command(["do", "here"], {"do": Own}, "about", {"do": "folder"}) == Own("here")
    with pytest.raises(UserError, match="undo"):
        parse_command(["undo"], {"do": Own}, "about", {"do": "folder"})
    with pytest.raises(SystemExit):
        parse_command(["do", "--help"], {"do": Own}, "about", {"do": "folder"})
    assert "number of images" in capsys.readouterr().out


def test_help_is_short_and_sections_and_presets_are_listed_on_request():
    assert len(done("train.py", "--help").splitlines()) < 60
    losses = done("train.py", "--help", "losses")
    assert "--triplet-weight" in losses and "--lr " not in losses
    everything = done("train.py", "tiny_b1", "--help", "all")
    for name in SECTION_OF:
        assert name.startswith("preset") or f"--{name.replace('_', '-')} " in everything
    presets = done("train.py", "--presets")
    assert all(name in presets for name in describe_presets())
    pipe = "set -o pipefail; {} train.py --help all | head -n 2"
    assert subprocess.run(["bash", "-c", pipe.format(sys.executable)], cwd=ROOT, timeout=120).returncode == 0


# ---- facts of the presets' sources that a typing error would break; test_fake_cuda.py trains each


DEMO = {"demo", "demo_light"}
PRESETS = describe_presets()
# networks that other tests are about
OF_THEIR_OWN = {name for name in PRESETS if name.startswith("light_")} | {"hn_lightmbn"}
KNOWN = {name: load_preset(name) for name in PRESETS if name not in DEMO | OF_THEIR_OWN}  # with facts below


def test_presets_and_published_rows_belong_together():
    """Every recipe has a row on the set that it is tested on, and every row a recipe that gives its protocol."""
    rows = json.loads((ROOT / "results" / "published.json").read_text())["rows"]
    named = {(name, row.get("dataset", "market1501")): row for row in rows for name in row["experiments"]}
    tested = {name: load_preset(name).check() for name in PRESETS if name not in DEMO}
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
    cfg = load_preset(name)
    found = {epoch: cfg.solver.lr * lr_factor(cfg, epoch, 202) for epoch in rates}  # of 202 steps each
    assert found == pytest.approx(rates, rel=1e-6)


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
