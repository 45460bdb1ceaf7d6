from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from config import PRESETS, Config
from config.cli import parse_settings, parse_train, widen
from config.config import METRIC_LOSSES
from loss.criterion import metric_losses
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def test_no_preset_is_demo_and_presets_carry_their_name():
    assert parse_train([], {}) == PRESETS["demo"]
    assert all(cfg.preset == name for name, cfg in PRESETS.items())


def test_every_preset_passes_its_own_checks():
    for cfg in PRESETS.values():
        assert cfg.check() is cfg


def test_settings_override_the_preset_and_leave_it_alone():
    before = dataclasses.replace(PRESETS["tiny_b1"])
    cfg = parse_train(["tiny_b1", "--epochs", "20", "--steps", "11", "17", "--train_ids", "5", "--flip"], {})
    assert (cfg.epochs, cfg.steps, cfg.train_ids, cfg.flip, cfg.backbone) == (20, (11, 17), 5, True, "resnet50")
    assert PRESETS["tiny_b1"] == before


def test_data_root_comes_from_the_command_line_then_the_variable_then_the_default():
    assert parse_train([], {}).data_root == "data"
    assert parse_train([], {"REID_DATA": "/elsewhere"}).data_root == "/elsewhere"
    assert parse_train(["--data-root", "/here"], {"REID_DATA": "/elsewhere"}).data_root == "/here"


def test_the_published_recipes_are_what_their_papers_say():
    cfg = PRESETS["tiny_b1"]
    assert (cfg.backbone, cfg.height, cfg.width, cfg.last_stride) == ("resnet50", 256, 128, 1)
    assert (cfg.batch_size, cfg.images_per_id, cfg.lr, cfg.weight_decay) == (64, 4, 3.5e-4, 5e-4)
    assert (cfg.warmup_epochs, cfg.steps, cfg.epochs, cfg.label_smoothing) == (10, (40, 70), 120, 0.1)
    assert (cfg.triplet_margin, cfg.center_weight, cfg.center_lr, cfg.erase_prob) == (0.3, 5e-4, 0.5, 0.5)
    assert dataclasses.replace(PRESETS["tiny_b1_hem"], hard_factor=0.0, preset="tiny_b1") == cfg
    assert PRESETS["tiny_b1_hem"].hard_factor == 0.2


def test_round_trip_through_json():
    cfg = dataclasses.replace(PRESETS["tiny_b1"], steps=(1.5, 3), seed=7)
    assert Config.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    assert Config.from_dict({"epochs": 3, "from_the_future": 1}).epochs == 3
    old = {k: v for k, v in cfg.to_dict().items() if k not in ("holdout_ids", "rerank_note")}  # older than these
    assert Config.from_dict(old) == cfg and (cfg.holdout_ids, cfg.rerank_note) == (0, "")


def test_every_setting_has_its_meaning_on_its_own_line():
    source = inspect.getsource(Config).split("def ")[0]
    for field in dataclasses.fields(Config):
        assert re.search(rf"^    {field.name}: .+ = .+  # \w", source, re.MULTILINE), field.name


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["tiny_b2"], ["tiny_b2", "tiny_b1", "did you mean"]),
        (["zzzz"], ["zzzz", "demo", "tiny_b1"]),
        (["--batch-size", "62"], ["62", "--images-per-id 4", "--batch-size 60"]),
        (["--batch-size", "4"], ["one identity", "--batch-size 16"]),
        (["--sampler", "shuffle"], ["--sampler pk", "--triplet-weight 0"]),
        (["--images-per-id", "1"], ["positive", "--images-per-id 1"]),
        (["--triplet-weight", "0", "--id-weight", "0"], ["--id-weight"]),
        (["--stride-in-1x1"], ["resnet18", "--stride-in-1x1"]),
        (["--erase-prob", "1.5"], ["--erase-prob", "between 0 and 1"]),
        (["--epochs", "0"], ["--epochs", "at least 1"]),
        (["--holdout-ids", "-1"], ["--holdout-ids", "at least 0"]),
        (["--lr", "nan"], ["--lr", "above 0"]),
        (["--lambda-value", "nan"], ["--lambda-value"]),
        (["--steps", "70", "40"], ["--steps", "rise"]),
        (["--hard-factor", "1"], ["--hard-factor"]),
        (["--name", "a/b"], ["--name", "--log-dir"]),
        (["demo", "tiny_b1"], ["tiny_b1", "not expected"]),
    ],
)
def test_bad_settings_get_one_sentence_that_says_what_would_be_right(args, words):
    with pytest.raises(UserError) as error:
        parse_train(args, {})
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def command(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "train.py", *args], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_help_lists_every_setting_with_its_meaning_type_and_default():
    shown = command("--help")
    assert shown.returncode == 0
    text = " ".join(shown.stdout.replace("│", " ").split())
    for field in dataclasses.fields(Config):
        if field.name != "preset":
            assert f"--{field.name.replace('_', '-')}" in text, field.name
    assert "--- " not in text  # a section's title, which tyro takes where a setting's line has no comment of its own
    assert "K; batch_size must be a multiple of it (default: 4)" in text
    assert "INT" in text and "FLOAT" in text and "{avg,max,avg_max,gem,gem_fixed}" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--epoch", "3"], ["--epoch", "--epochs"]),
        (["--epochs", "many"], ["--epochs", "many"]),
        (["--pooling", "gen"], ["gen", "gem"]),
    ],
)
def test_wrong_names_and_types_are_refused_with_the_right_ones(args, words):
    shown = command(*args)
    assert shown.returncode == 2
    assert "Traceback" not in shown.stderr
    for word in words:
        assert word in shown.stderr


def test_a_wider_config_keeps_the_settings_and_adds_its_own():
    @dataclasses.dataclass
    class Wider(Config):
        extra: int = 1  # a setting of one tool

    wide = widen(PRESETS["tiny_b1"], Wider)
    assert parse_settings(wide, ["--extra", "3"], {}, "tool").extra == 3
    assert wide.backbone == "resnet50"


@pytest.mark.parametrize("loss", METRIC_LOSSES)
def test_every_metric_loss_wants_batches_with_positives_and_is_a_part_of_the_criterion(loss):
    on = {f"{name}_weight": 0.0 for name in METRIC_LOSSES} | {f"{loss}_weight": 0.5, "center_weight": 0.0}
    cfg = Config(**on, id_weight=0.0).check()
    assert list(metric_losses(cfg)) == [loss] and metric_losses(cfg)[loss][0] == 0.5
    for change, words in (({"sampler": "shuffle"}, "--sampler pk"), ({"images_per_id": 1}, "use 2 or more")):
        with pytest.raises(UserError, match=rf"the {loss} loss needs .*{words}.*--{loss.replace('_', '-')}-weight 0"):
            dataclasses.replace(cfg, **change).check()
    with pytest.raises(UserError, match=f"--{loss.replace('_', '-')}-weight must be at least 0"):
        dataclasses.replace(cfg, **{f"{loss}_weight": -1.0}).check()
    with pytest.raises(UserError, match="all loss weights are 0"):
        dataclasses.replace(cfg, **{f"{loss}_weight": 0.0}).check()
