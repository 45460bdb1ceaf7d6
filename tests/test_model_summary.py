"""tools/model_summary.py as people run it."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from helpers import program, refused
from torch import nn

from config import Config
from model import BACKBONES
from tools.model_summary import ConvolutionOutputs, SummaryConfig, count, latency


def summary(*args: object):
    return program("tools/model_summary.py", *args)


def cells(shown) -> list[list[str]]:
    """Name and numbers of each row of the table."""
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    return [line.split() for line in lines[2:] if not line.startswith(("left out", "latency"))]


def test_one_model_at_the_size_of_the_settings():
    shown = summary("resnet50")
    assert shown.stdout.splitlines()[0] == "one image of 256 x 128, last stride 1"
    assert cells(shown) == [["resnet50", "23.51", "4053.27", "8.29", "2048"]]
    torchvisions = 25_557_032 - 2048 * 1000 - 1000  # less its classifier
    assert count(Config(backbone="resnet50"))["parameters"] == torchvisions + 2 * 2048  # the neck
    (small,) = cells(summary("resnet50", "--height", 128, "--width", 64))
    assert float(small[2]) == pytest.approx(4053.27 / 4, rel=1e-5)
    (coarse,) = cells(summary("mobilenet_v2", "--last-stride", 2, "--width-multiplier", 0.5))
    assert coarse[0] == "mobilenet_v2" and float(coarse[2]) < 195.6 / 2 and coarse[4] == "1280"


@pytest.mark.parametrize(
    ("backbone", "mega"),
    [("resnet50", 11.1), ("regnet_x_800mf", 5.1), ("regnet_y_400mf", 3.9), ("regnet_y_1_6gf", 8.0)],
)
def test_activations_are_those_that_pycls_publishes(backbone, mega):
    """MODEL_ZOO of facebookresearch/pycls, in millions, at 224 × 224 with last stride 2. torchvision's X of 0.4 G and Y
    of 0.8 G have other widths than those there: 5.5 and 6.4 M parameters where pycls has 5.2 and 6.3."""
    counted = count(Config(backbone=backbone, height=224, width=224, last_stride=2))
    assert round(counted["activations"] / 1e6, 1) == mega


def test_outputs_of_convolutions_are_counted_and_of_nothing_else():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1, stride=2), nn.Flatten(), nn.Linear(8, 5))
    with ConvolutionOutputs() as outputs:
        net(torch.zeros(1, 3, 6, 6))
    assert outputs.elements == 4 * 4 * 4 + 2 * 2 * 2


def test_attention_costs_and_counts_the_same_where_the_meta_device_fails():
    plain, squeezed, non_local = (
        count(Config(backbone="resnet18", height=64, width=32, attention=name, attention_stages=(2,)))
        for name in ("none", "se", "nonlocal")
    )
    assert squeezed["parameters"] - plain["parameters"] == 2 * 128 * 8 + 128 + 8
    assert squeezed["multiply-adds"] - plain["multiply-adds"] == 2 * 128 * 8
    assert squeezed["activations"] == plain["activations"]
    assert non_local["activations"] - plain["activations"] == (3 * 8 + 128) * 8 * 4  # its four 1 × 1 convolutions


def test_all_backbones_make_a_table_and_those_that_cannot_be_had_are_named():
    some = {name: BACKBONES[name] for name in ("resnet18", "osnet_x0_25", "regnet_y_400mf", "swin_t")}
    # monkeypatch.delitem would put them back in another order
    with patch.dict(BACKBONES, some, clear=True):
        assert [row[0] for row in cells(summary("--all"))] == ["resnet18", "osnet_x0_25", "regnet_y_400mf", "swin_t"]
        shown = summary("--all", "--last-stride", 2)
        assert [row[0] for row in cells(shown)] == ["resnet18", "regnet_y_400mf", "swin_t"]
        assert shown.stdout.splitlines()[-1].startswith("left out: --last-stride 2 cannot be had of osnet_x0_25")


def test_latency_is_a_column_for_each_batch_and_says_where_it_was_measured():
    shown = summary("mobilenet_v3_small", "--height", 32, "--width", 16, "--latency", "--runs", 2, "--device", "cpu")
    (row,) = cells(shown)
    assert len(row) == 7 and float(row[5]) > 0 and float(row[6]) > 0
    head, last = shown.stdout.splitlines()[1], shown.stdout.splitlines()[-1]
    assert head.endswith("ms for 1  ms for 32")
    assert last.startswith("latency: median of 2 runs") and f"torch {torch.__version__}" in last


def test_latency_is_the_median_of_the_runs_after_three(monkeypatch):
    times = iter([0, 9, 0, 9, 0, 9, 0, 2, 0, 1, 0, 4])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    cfg = SummaryConfig(backbone="mobilenet_v3_small", height=32, width=16, runs=3)
    assert latency(cfg, torch.device("cpu"), 2) == 2


def test_bad_settings_get_one_sentence():
    refused(summary("resnet50", "--all"), "either resnet50 or --all")
    refused(summary("resnet50", "--runs", 0), "--runs", "at least 1")
    refused(summary("osnet_x0_25", "--last-stride", 2), "--last-stride 2 cannot be had of osnet_x0_25")
    refused(summary("resnet18", "--width-multiplier", 0.5), "--width-multiplier is for mobilenet_v2")
