"""The space of searched networks: what they cost, MobileNetV2 as one of them, specifications as files."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import ROOT, filled, save_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from config import Config
from model.attention import make_attention
from model.backbones import find_backbone, searchable
from model.backbones import space as space_module
from model.backbones.searchable import Searched, self_contained
from model.backbones.space import (
    DEPTHS,
    EXPANSIONS,
    KERNELS,
    STRIDES,
    WIDTHS,
    Space,
    Spec,
    blocks,
    mobilenet_v2,
    multiply_adds,
    read_spec,
)
from model.weights import load_backbone
from processor.checkpoint import load_model
from utils.errors import UserError
from utils.files import write_json

MEGA = 1e6


def counted(net: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of convolutions as torch's flop counter counts them, which is a slow run with every layer."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.empty(1, 3, height, width, device="meta"))
    return counter.get_total_flops() // 2


def made(spec: Spec) -> Searched:
    with torch.device("meta"):
        return Searched(spec)


# ---- costs


@pytest.mark.parametrize("size", [(256, 128), (96, 48), (75, 50), (33, 32)])
def test_multiply_adds_are_those_that_torchs_flop_counter_finds(size):
    space, rng, seen = Space(*size), np.random.default_rng(0), set()
    specs = [space.random(rng) for _ in range(4)] + [replace(space.largest(), last_stride=2), space.smallest()]
    specs[:2] = [replace(spec, last_stride=stride) for spec, stride in zip(specs, (1, 2), strict=False)]
    for spec in specs:
        assert multiply_adds(spec) == counted(made(spec), spec.height, spec.width)
        seen.add((spec.height, spec.width, spec.last_stride))
    assert len(seen) > 2


def test_mobilenet_v2_is_a_point_of_the_space_with_torchvisions_cost():
    spec, net = mobilenet_v2(256, 128), models.mobilenet_v2().features.to("meta")
    assert multiply_adds(spec) == counted(net, 256, 128) and round(multiply_adds(spec) / MEGA, 1) == 195.6
    ours = sum(p.numel() for p in made(spec).parameters())
    assert ours == sum(p.numel() for p in net.parameters()) == 3_504_872 - 1_281_000  # published, less its classifier
    for size in ((256, 128), (96, 48), (100, 50)):
        for last_stride in (1, 2):
            inside = Space(*size).take_apart(mobilenet_v2(*size, last_stride))
            assert all(value in Space(*size).choices(gene) for gene, value in inside.items())


def test_its_210_m_of_matrix_light_reid_count_norms_relus_and_the_pooling_too():
    """mmcv's count, by which that search has its budget: two for an element that is normalised, one for a ReLU's or a
    pooling's."""
    net, more = made(mobilenet_v2(256, 128)), []
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.register_forward_hook(lambda _m, _inputs, out: more.append(2 * out.numel()))
        elif isinstance(m, nn.ReLU6):
            m.register_forward_hook(lambda _m, _inputs, out: more.append(out.numel()))
    net.register_forward_hook(lambda _m, _inputs, out: more.append(out.numel()))
    products = counted(net, 256, 128)
    assert (round(products / MEGA, 1), round((products + sum(more)) / MEGA, 1)) == (195.6, 208.3)  # published: 210


@pytest.mark.parametrize("last_stride", [1, 2])
def test_with_torchvisions_weights_it_computes_what_torchvisions_does(last_stride):
    theirs = filled(models.mobilenet_v2().features)
    if last_stride == 1:
        theirs[14].conv[1][0].stride = (1, 1)
    ours = Searched(mobilenet_v2(96, 64, last_stride)).double()
    pairs = list(zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True))
    assert all(a.shape == b.shape and m.rsplit(".", 1)[1] == n.rsplit(".", 1)[1] for (m, a), (n, b) in pairs)
    ours.load_state_dict({name: value for (name, _), (_, value) in pairs})
    images = torch.randn(3, 3, 96, 64, dtype=torch.float64)
    for net in (ours, theirs):
        net.eval()
    assert torch.allclose(ours(images), theirs(images))
    assert torch.allclose(ours.train()(images), theirs.train()(images))
    for (_, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.allclose(a, b)  # statistics, too, have moved alike


# ---- the space


@pytest.mark.parametrize("size", [(256, 128), (96, 48), (100, 50), (32, 32)])
def test_drawn_mutated_and_crossed_networks_are_in_the_space_and_no_larger_than_the_largest(size):
    space, rng = Space(*size), np.random.default_rng(1)
    assert space.sizes[0] == size and min(map(min, space.sizes)) >= 16
    most = space.largest()
    assert (most.height, most.width, most.last_stride) == (*size, 1)
    specs = [space.random(rng) for _ in range(40)]
    specs += [space.mutate(spec, rng, 0.5) for spec in specs] + [
        space.cross(a, b, rng) for a in specs for b in specs[:2]
    ]
    for spec in [*specs, most, space.smallest()]:
        values = space.take_apart(spec)
        assert space.build(values) == spec and values.keys() == set(space.genes())
        assert all(value in space.choices(gene) for gene, value in values.items())
        assert np.all(np.less_equal(*([list(asdict(s).values()) for s in x.stages] for x in (spec, most))))
        assert multiply_adds(space.smallest()) <= multiply_adds(spec) <= multiply_adds(most)


def test_every_value_of_a_gene_is_drawn_as_often_as_the_others():
    space, rng, n = Space(64, 32), np.random.default_rng(2), 3000
    drawn = [space.take_apart(space.random(rng)) for _ in range(n)]
    for gene in space.genes():
        count, choices = Counter(values[gene] for values in drawn), space.choices(gene)
        assert set(count) == set(choices)
        expected = n / len(choices)
        assert all(abs(c - expected) < 5 * expected**0.5 for c in count.values()), (gene, count)
    assert {len(space.choices((str(stage), "depth"))) for stage in range(7)} == set(map(len, DEPTHS))
    for number, name in enumerate(("width", "kernel")):
        assert space.choices(("3", name)) == (WIDTHS[3], KERNELS)[number]
    assert space.choices(("0", "expansion")) == (1,) and space.choices(("1", "expansion")) == EXPANSIONS


def test_a_mutant_differs_in_its_share_of_genes_and_a_cross_has_each_gene_from_a_parent():
    space, rng = Space(96, 48), np.random.default_rng(3)
    a, b = space.largest(), space.smallest()
    assert space.mutate(a, rng, 0.0) == a
    first, second = space.take_apart(a), space.take_apart(b)
    changed = [
        sum(space.take_apart(space.mutate(a, rng, 0.3))[gene] != value for gene, value in first.items())
        for _ in range(200)
    ]
    # a gene that is drawn anew may come out as it was
    expected = sum(0.3 * (1 - 1 / len(space.choices(gene))) for gene in first)
    assert np.mean(changed) == pytest.approx(expected, rel=0.1)
    from_first = []
    for _ in range(100):
        child = space.take_apart(space.cross(a, b, rng))
        differing = [gene for gene in first if first[gene] != second[gene]]
        assert all(child[gene] in (first[gene], second[gene]) for gene in first)
        from_first.append(np.mean([child[gene] == first[gene] for gene in differing]))
    assert np.mean(from_first) == pytest.approx(0.5, abs=0.05)


def test_the_same_seed_draws_the_same_networks():
    space = Space(96, 48)
    first, again, other = ([space.random(rng) for _ in range(5)] for rng in map(np.random.default_rng, (7, 7, 8)))
    assert first == again and first != other


def test_draws_within_a_budget_are_as_many_of_each_size_and_there_the_draws_that_happen_to_be():
    most, n, free = multiply_adds(mobilenet_v2(96, 48)), 2000, Space(96, 48)
    tight, rng = Space(96, 48, most), np.random.default_rng(3)
    drawn = [tight.random(rng) for _ in range(n)]
    assert all(multiply_adds(spec) <= most for spec in drawn)
    for size in free.sizes:
        found = [spec for spec in drawn if (spec.height, spec.width) == size]
        assert abs(len(found) - n / 4) < 5 * (n / 4) ** 0.5
        expected = [spec for spec in (free.of_size(size).random(rng) for _ in range(n)) if multiply_adds(spec) <= most]
        assert len(expected) > n / 5 and {(spec.height, spec.width) for spec in expected} == {size}
        for value in (lambda spec: spec.last_stride, lambda spec: spec.stages[4].width, lambda spec: spec.stages[2].se):
            sides = [[float(value(spec)) for spec in side] for side in (found, expected)]
            error = np.sqrt(sum(np.var(side) / len(side) for side in sides))
            assert abs(np.subtract(*map(np.mean, sides))) < 5 * error


def test_sizes_that_no_network_within_a_budget_can_take_are_left_out(monkeypatch):
    monkeypatch.setattr(space_module, "TRIES", 50)  # chance would look for the smallest for ages
    free, rng = Space(96, 48), np.random.default_rng(3)
    least = [multiply_adds(free.of_size(size).smallest()) for size in free.sizes]
    assert least == sorted(least, reverse=True) and len(least) == 4
    space = Space(96, 48, least[2])
    assert space.sizes == free.sizes[2:] == [(72, 32), (64, 32)]
    assert {space.random(rng) for _ in range(20)} > {free.of_size((72, 32)).smallest()}
    assert Space(96, 48, least[3]).random(rng) == free.smallest()
    with pytest.raises(UserError, match=r"no network of the space is within 2\.7 M .* smallest has 2\.7 M; allow more"):
        Space(96, 48, least[3] - 1)


@pytest.mark.parametrize("size", [(31, 64), (64, 16)])
def test_images_that_are_too_small_are_refused(size):
    with pytest.raises(UserError, match=f"{size[0]} x {size[1]} are too small .* 32 x 32 or more"):
        Space(*size)


def test_blocks_follow_each_other_and_halve_the_map_where_mobilenet_v2_does():
    for last_stride, cells in ((1, (16, 8)), (2, (8, 4))):
        found = blocks(mobilenet_v2(256, 128, last_stride))
        assert len(found) == 17 and found[0].c_in == 32 and (found[0].rows, found[0].columns) == (128, 64)
        for before, block in pairwise(found):
            assert (block.c_in, (block.rows, block.columns)) == (before.c_out, before.size_out)
        firsts = [next(b.stride for b in found if b.stage == stage) for stage in range(7)]
        assert firsts == [*STRIDES[:5], last_stride, 1] and found[-1].size_out == cells


# ---- specifications as files, and what is built of them


def test_a_specification_survives_json_and_what_is_beside_it_plays_no_part(tmp_path):
    space, rng = Space(96, 48), np.random.default_rng(4)
    for number in range(5):
        spec, file = space.random(rng), tmp_path / f"{number}.json"
        write_json(file, {"found_by": "a test", "heldout_mAP": 1.5} | spec.to_dict())
        assert read_spec(file) == read_spec(str(file)) == read_spec(json.dumps(spec.to_dict())) == spec


def test_a_relative_name_is_looked_for_here_and_then_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "model/backbones/specs/light_210m.json"
    assert read_spec(name) == read_spec(ROOT / name)
    (tmp_path / "model/backbones/specs").mkdir(parents=True)
    write_json(tmp_path / name, mobilenet_v2(64, 32).to_dict())
    assert read_spec(name) == mobilenet_v2(64, 32)


GOOD = mobilenet_v2(96, 48).to_dict()


def spoiled(place: tuple, value: object) -> str:
    """The good specification with another value at a place; `...` takes it out."""
    values = json.loads(json.dumps(GOOD))
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("[]", "needs a list of 7 stages"),
        ("7", "needs a list of 7 stages"),
        ('{"stages": 3}', "needs a list of 7 stages"),
        ('{"stages": [1, 2, 3, 4, 5, 6, 7]}', "needs a list of 7 stages"),
        ("[" * 100_000, "recursion"),
        (json.dumps(GOOD)[:200], "Unterminated string"),
        (spoiled(("stages", 6), ...), "needs a list of 7 stages"),
        (spoiled(("height",), ...), "height is missing"),
        (spoiled(("stages", 2, "se"), ...), "se is missing"),
        (spoiled(("width",), 48.0), "width is 48.0, no whole number from 1 to 4096"),
        (spoiled(("height",), -96), "height is -96"),
        (spoiled(("last_stride",), 3), "last_stride is 3, no whole number from 1 to 2"),
        (spoiled(("stages", 0, "depth"), 0), "depth is 0"),
        (spoiled(("stages", 0, "depth"), True), "depth is True"),
        (spoiled(("stages", 3, "depth"), 10**9), "depth is 1000000000, no whole number from 1 to 32"),
        (spoiled(("stages", 3, "width"), "64"), "width is '64'"),
        (spoiled(("stages", 3, "width"), None), "width is None"),
        (spoiled(("stages", 3, "expansion"), [6]), r"expansion is \[6\]"),
        (spoiled(("stages", 3, "kernel"), 4), "kernel 4 is even"),
        (spoiled(("stages", 3, "kernel"), "x" * 10**6), "kernel is 'xxx"),
        (spoiled(("stages", 3, "se"), 1), "se is 1, neither true nor false"),
    ],
)
def test_a_bad_file_gets_one_short_sentence(tmp_path, text, words):
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_spec(file)
    said = str(error.value)
    assert said.startswith(f"{file} is no specification of a searched network (") and "tools/search_backbone.py" in said
    assert len(said) < 350 and "\n" not in said


def test_files_that_are_absent_or_no_text_get_a_sentence(tmp_path):
    (tmp_path / "bytes.json").write_bytes(bytes(range(256)))
    for name, words in (("absent.json", "No such file"), ("", "directory"), ("bytes.json", "can't decode")):
        with pytest.raises(UserError, match=f"no specification of a searched network .*{words}"):
            read_spec(tmp_path / name)
    with pytest.raises(UserError, match="this text is no specification"):
        read_spec('{"stages": []}')
    with pytest.raises(UserError, match="no specification of a searched network"):
        find_backbone("searched:")  # before anything else is done


def test_files_spoiled_by_chance_are_read_or_refused_and_nothing_else():
    rng, text, refused = np.random.default_rng(5), json.dumps(GOOD), 0
    for _ in range(400):
        characters = list(text)
        for _ in range(rng.integers(1, 4)):
            characters[rng.integers(len(text))] = str(rng.choice(list('0123456789-.e{}[]",:tfn ')))
        try:
            assert isinstance(read_spec("{" + "".join(characters)[1:]), Spec)
        except UserError:
            refused += 1
    assert 200 < refused < 400


def backbone(spec: Spec, **settings) -> nn.Module:
    settings = {"height": spec.height, "width": spec.width, "last_stride": spec.last_stride} | settings
    name = "searched:" + json.dumps(spec.to_dict())
    return find_backbone(name)(Config(backbone=name, weights="none", **settings))


def test_a_searched_network_has_the_interface_of_the_others():
    space, rng, images = Space(64, 32), np.random.default_rng(6), torch.randn(2, 3, 64, 32)
    for last_stride in (1, 2):
        spec = replace(space.random(rng), height=64, width=32, last_stride=last_stride)
        net = backbone(spec).eval()
        with torch.no_grad():
            maps = net(images)
        assert maps.shape == (2, net.out_channels, *((4, 2) if last_stride == 1 else (2, 1))) and maps.min() >= 0
        seen = []
        net.attention.update(make_attention("se", (1, 2, 3, 4), net.stage_channels, 0.25))
        for module in net.attention.values():
            module.register_forward_hook(lambda _m, x, _out, seen=seen: seen.append(tuple(x[0].shape[2:])))
        with torch.no_grad():
            assert not torch.equal(net(images), maps)
        assert seen == [(16, 8), (8, 4), (4, 2), (4, 2) if last_stride == 1 else (2, 1)]


def test_every_parameter_of_a_searched_network_is_trained():
    rng = np.random.default_rng(8)
    net = backbone(replace(Space(64, 32).random(rng), height=64, width=32)).train()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.ones_(norm.weight)  # blocks that begin as nothing hand no gradient on
    out = net(torch.randn(4, 3, 64, 32))
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or ".se." in name, name  # a squeeze of few channels may be shut by its ReLU


def test_settings_that_are_not_the_specifications_are_refused_or_warned_about(monkeypatch):
    spec = mobilenet_v2(96, 48)
    with pytest.raises(UserError, match="the searched network has last stride 2; give --last-stride 2 with it"):
        backbone(spec, last_stride=1)
    with pytest.raises(UserError, match="searched networks have no ImageNet weights; give --weights none, or a file"):
        load_backbone(backbone(spec), "imagenet")
    said = []
    monkeypatch.setattr(searchable.log, "warning", lambda text, *values: said.append(text % values))
    backbone(spec)
    assert not said
    backbone(spec, height=256, width=128)
    assert len(said) == 1 and said[0].endswith(
        "images of 96 x 48, where it has 29.9 M multiply-adds; at 256 x 128 it has 195.6 M"
    )


def test_a_checkpoint_needs_no_file_where_the_name_holds_the_specification(tiny, tmp_path):
    file, spec = tmp_path / "spec.json", Space(32, 32).smallest()
    write_json(file, spec.to_dict())
    name = self_contained(f"searched:{file}")
    assert self_contained(name) == name and self_contained("resnet50") == "resnet50"
    cfg = tiny.replace(height=spec.height, width=spec.width, last_stride=2)
    lost = save_model(cfg.replace(backbone=f"searched:{file}"))
    kept = save_model(cfg.replace(backbone=name, log_dir=str(tmp_path / "kept")))
    file.unlink()
    model, trained = load_model(kept, "cpu")
    assert model.backbone.spec == spec and trained.model.backbone == name
    with pytest.raises(UserError, match=r"spec\.json is no specification .*No such file"):
        load_model(lost, "cpu")
