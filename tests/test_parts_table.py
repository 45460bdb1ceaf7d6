"""docs/parts.md: all parts of the code, each once, with its seeds, its file and its paper."""

from __future__ import annotations

import re
from functools import partial
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import torch
from helpers import ROOT, program, refused

from config import Config
from config.config import METRIC_LOSSES
from datasets.augment import Draws, recipe
from tools import parts_table
from tools.parts import AUGMENTATIONS, EVALUATION, SAMPLERS, Inside, groups
from tools.parts_seeds import EACH, LEGEND, SEEDS
from tools.parts_table import document, file_and_source, references, who_has
from utils.errors import UserError

# What no docstring names a paper for: the field's common property, or another program's.
WITHOUT_A_PAPER = {
    "timm/NAME", "avg", "max", "avg_max", "cross_entropy", "sgd", "adamw_amsgrad", "steps", "linear", "pk_cameras",
    "weighted", "shuffle", "flip", "pad and crop", "rotation", "colour jitter", "grayscale", "harder example mining",
    "embedding layer", "frozen start", "ROC", "scores by camera", "flipped features",
}  # fmt: skip


def choices(setting: str) -> set[str]:
    """The values that a setting of Config takes, less those that stand for no part."""
    return set(get_args(get_type_hints(Config)[setting])) - {"none", "auto"}


def test_the_file_is_what_the_code_says():
    shown = program("tools/parts_table.py", "--check")
    assert shown.returncode == 0, shown.stderr


def test_a_file_that_is_stale_or_absent_is_refused_and_written_anew(tmp_path):
    path = tmp_path / "parts.md"
    refused(program("tools/parts_table.py", "--check", "--output", path), "parts.md is not what the code says")
    assert not path.exists()
    assert program("tools/parts_table.py", "--output", path).returncode == 0
    assert path.read_text() == document()
    assert program("tools/parts_table.py", "--check", "--output", path).returncode == 0
    path.write_text(path.read_text().replace("OSNet", "OsNet").replace("`osnet_x1_0`, ", "", 1))
    refused(program("tools/parts_table.py", "--check", "--output", path), "run python tools/parts_table.py")


def test_every_value_of_a_setting_is_a_part():
    parts = {title: set(group.parts) for title, group in groups().items()}
    for title, group in groups().items():
        if group.setting and title != "Backbones":  # whose names are a dict's only
            assert parts[title] == choices(group.setting.removeprefix("--").replace("-", "_")), title
    assert set(SAMPLERS) == choices("sampler") and choices("protocol") < set(EVALUATION)
    triplets = {f"triplet, {kind}" for kind in choices("triplet")}
    assert parts["Metric losses"] == triplets | set(METRIC_LOSSES) - {"triplet"} | {"center"}


def test_each_transform_calls_the_function_that_is_named_for_it(monkeypatch):
    assert set(AUGMENTATIONS) == set(recipe.TRANSFORMS)
    images, called = torch.zeros(1, 32, 16, 3, dtype=torch.uint8), []

    def spy(name, images, *_rest):
        called.append(name)
        return images

    for name in {function.__name__ for function in AUGMENTATIONS.values()} | {"erase_"}:
        monkeypatch.setattr(recipe, name, partial(spy, name))
    for name, function in AUGMENTATIONS.items():
        recipe.augment(images, Config().replace(**recipe.OFF | recipe.TRANSFORMS[name]), Draws(0, batch=1))
        # once normalised, a batch is ours, so that it is erased in place by what random_erasing is made of
        assert called.pop() == ("erase_" if name == "random erasing, mean" else function.__name__) and not called, name


@pytest.mark.parametrize("title", SEEDS)
def test_seeds_are_known_ones_and_name_each_part_of_the_code_once(title):
    assert set(SEEDS) == set(groups())
    for seeds in who_has(title, groups()[title]).values():
        assert set(seeds.split(", ")) <= set(LEGEND)
    assert EACH.split(", ") == [seed for seed in LEGEND if seed != "others"]


@pytest.mark.parametrize(
    ("seeds", "wrong"),
    [
        ({"avg + max": "HN"}, "gem"),  # one is not named
        ({"avg + max": "HN", "gem": "HN", "min": "HN"}, "min"),  # one is not there
        ({"avg + max": "HN", "gem": "HN", "max + avg": "SBN"}, "avg, max"),  # two are named twice
    ],
)
def test_seeds_that_miss_invent_or_double_a_part_are_refused(monkeypatch, seeds, wrong):
    group = SimpleNamespace(parts=dict.fromkeys(["avg", "max", "gem"]))
    monkeypatch.setattr(parts_table, "SEEDS", {"Pooling": seeds})
    with pytest.raises(UserError, match=rf"parts_seeds\.py, Pooling: .* see {wrong}$"):
        who_has("Pooling", group)


def test_files_are_where_the_links_lead_and_hold_the_part():
    links = re.findall(r"\| \[(\S+)\]\(\.\./(\S+)\) \|", document())
    assert len(links) > 60 and all(name == path and (ROOT / path).is_file() for name, path in links)
    for title, name, path in (
        ("Backbones", "swin_t", "model/backbones/vit.py"),  # a partial
        ("Backbones", "resnet50_ibn_a", "model/backbones/resnet_ibn.py"),  # a function
        ("Heads", "arcface", "model/heads.py"),  # a class
        ("Optimizers", "amsgrad", "solver/optimizer.py"),  # a partial of torch's
        ("Metric losses", "range", "loss/range.py"),
        ("Models of branches", "pcb", "model/branches/pcb.py"),
    ):
        group = groups()[title]
        assert file_and_source(group, name, group.parts[name])[0] == path


def test_all_but_these_parts_have_a_paper():
    parts = [(group, name, part) for group in groups().values() for name, part in group.parts.items()]
    assert {name for group, name, part in parts if file_and_source(group, name, part)[1] == "–"} == WITHOUT_A_PAPER


@pytest.mark.parametrize(
    ("title", "name", "source"),
    [
        ("Heads", "cosface", "Wang et al., CosFace; Wang et al., AM-Softmax; both 2018"),
        ("Heads", "cosine_learned", "Wang et al., NormFace, ACM Multimedia 2017"),  # its base class's
        ("Attention", "nonlocal", "Wang et al., Non-local Neural Networks, CVPR 2018"),  # its module's
        ("Schedules", "cosine", "Loshchilov & Hutter 2017"),  # one sentence of several in a docstring
        ("Schedules", "linear", "–"),
        ("Optimizers", "amsgrad", "Reddi et al. 2018"),  # a comment's
        ("Tricks", "harder example mining", "–"),
    ],
)
def test_sources_are_those_that_the_code_names(title, name, source):
    group = groups()[title]
    assert file_and_source(group, name, group.parts[name])[1] == source


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["A net (Ma et al., Nets: v2.1, ECCV 2018), torchvision's."], ["Ma et al., Nets: v2.1, ECCV 2018"]),
        (["Tan & Le, One, ICML 2019) and (Tan & Le, Two, 2021"], ["Tan & Le, One, ICML 2019", "Tan & Le, Two, 2021"]),
        (["Zhou and Xiang, Torch, arXiv:1910.10093)."], ["Zhou and Xiang, Torch, arXiv:1910.10093"]),
        (["Li et al., arXiv:2001.01234, 2020"], ["Li et al., arXiv:2001.01234, 2020"]),
        (["As in AGW (Ye et al. 2021).", "Nets (Wang et al., Nets, 2018)"], ["Wang et al., Nets, 2018"]),
        (["As in AGW (Ye et al. 2021).", "Nets."], ["Ye et al. 2021"]),
        (["Wang et al. take 1/2. Others, in 2019, do not.", "From 2019 on."], []),
        ([], []),
    ],
)  # fmt: skip
def test_references_are_found_in_docstrings(texts, found):
    assert references(texts, None) == found


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("Warm-up", ["Goyal et al. 2017"]),
        ("`steps`", []),
        ("`cosine`", ["Loshchilov & Hutter 2017"]),
        ("`linear`", []),
        ("absent", []),
    ],
)
def test_the_reference_of_one_of_several_parts_is_that_behind_its_word_in_its_sentence(word, found):
    text = "Warm-up (Goyal et al. 2017): slow. `steps` of v1.5. `cosine` (Loshchilov & Hutter 2017) and `linear` end."
    assert references(["", text], Inside(None, word)) == found
