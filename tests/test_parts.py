"""docs/parts.md names every part, and files that exist."""

import re
from typing import get_args

import pytest
from helpers import ROOT

from config.config import METRIC_LOSSES, Optimizer, Protocol, Sampler
from model import BACKBONES, BRANCHES
from model.attention import ATTENTION
from model.heads import HEADS
from model.pooling import POOLING

TEXT = (ROOT / "docs" / "parts.md").read_text()


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("Backbones", [*BACKBONES, "timm/NAME", "searched:FILE.json", "supernet"]),
        ("Attention", ATTENTION),
        ("Pooling", POOLING),
        ("Heads", HEADS),
        ("Models of branches", BRANCHES),
        ("Identity losses", ["cross_entropy", "focal"]),
        ("Metric losses", ["triplet, hard", "triplet, weighted", *set(METRIC_LOSSES) - {"triplet"}, "center"]),
        ("Optimizers", get_args(Optimizer)),
        ("Schedules", ["steps", "cosine", "linear"]),
        ("Samplers", get_args(Sampler)),
        ("Evaluation", set(get_args(Protocol)) - {"auto"}),
    ],
)
def test_every_part_is_in_its_section(section, names):
    (text,) = re.findall(rf"^## {section}\b.*?(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert set(names) <= set(re.findall("`(.+?)`", text))


def test_every_file_exists():
    assert not [path for path in re.findall(r"\]\(\.\./(\S+)\)", TEXT) if not (ROOT / path).exists()]
