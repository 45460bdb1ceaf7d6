"""tools/model_summary.py as people run it."""

from __future__ import annotations

from unittest.mock import patch

from helpers import program

from config import Config
from model import BACKBONES
from tools.model_summary import count


def summary(*args: object):
    return program("tools/model_summary.py", *args)


def cells(shown) -> list[list[str]]:
    """Name and numbers of each row of the table."""
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    return [line.split() for line in lines[2:] if not line.startswith(("left out", "latency"))]


def test_costs_are_the_published_ones_and_follow_the_settings():
    shown = summary("resnet50")
    assert shown.stdout.splitlines()[0] == "one image of 256 x 128, last stride 1"
    assert cells(shown) == [["resnet50", "23.51", "4053.27", "8.29", "2048"]]
    torchvisions = 25_557_032 - 2048 * 1000 - 1000  # less its classifier
    assert count(Config(backbone="resnet50"))["parameters"] == torchvisions + 2 * 2048  # the neck
    (coarse,) = cells(summary("mobilenet_v2", "--last-stride", 2, "--width-multiplier", 0.5))
    assert coarse[0] == "mobilenet_v2" and float(coarse[2]) < 195.6 / 2 and coarse[4] == "1280"
    # activations in millions, MODEL_ZOO of facebookresearch/pycls, at 224 x 224 with last stride 2
    published = {"resnet50": 11.1, "regnet_x_800mf": 5.1, "regnet_y_400mf": 3.9, "regnet_y_1_6gf": 8.0}
    for backbone, mega in published.items():
        counted = count(Config(backbone=backbone, height=224, width=224, last_stride=2))
        assert round(counted["activations"] / 1e6, 1) == mega
    plain, squeezed, non_local = (  # the last is counted where the meta device fails
        count(Config(backbone="resnet18", height=64, width=32, attention=name, attention_stages=(2,)))
        for name in ("none", "se", "nonlocal")
    )
    assert squeezed["parameters"] - plain["parameters"] == 2 * 128 * 8 + 128 + 8
    assert squeezed["multiply-adds"] - plain["multiply-adds"] == 2 * 128 * 8
    assert squeezed["activations"] == plain["activations"]
    assert non_local["activations"] - plain["activations"] == (3 * 8 + 128) * 8 * 4  # its four 1 x 1 convolutions


def test_all_backbones_make_a_table_and_those_that_cannot_be_made_are_named():
    some = {name: BACKBONES[name] for name in ("resnet18", "osnet_x0_25", "regnet_y_400mf")}
    with patch.dict(BACKBONES, some, clear=True):
        assert [row[0] for row in cells(summary("--all"))] == list(some)
        shown = summary("--all", "--last-stride", 2)
        assert [row[0] for row in cells(shown)] == ["resnet18", "regnet_y_400mf"]
        assert shown.stdout.splitlines()[-1].startswith("left out:") and "osnet_x0_25" in shown.stdout
