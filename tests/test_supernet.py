"""The supernet beside its parts as networks of their own, in the training loop, and recalibrated."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_tree
from torch import nn
from torch.nn import functional as F

import processor.train
from config import Config
from model import make_model
from model.backbones.searchable import Searched
from model.backbones.space import Space, Spec, mobilenet_v2, multiply_adds
from model.backbones.supernet import ElasticNorm, Supernet, copy_part
from processor import do_train, load_model
from processor.checkpoint import read_checkpoint
from processor.scorer import recalibrate
from utils.errors import Stopped, UserError

SIZE = (64, 32)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


def supernet(seed: int = 0) -> Supernet:
    """In float64, with statistics and normalisation that are nowhere the ones of the start."""
    net = Supernet(Space(*SIZE), seed).double()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, ElasticNorm):
                module.weight.uniform_(0.5, 1.5), module.bias.normal_(std=0.3)
                module.running_mean.normal_(std=0.3), module.running_var.uniform_(0.5, 1.5)
    return net


def some_specs(count: int = 3) -> list[Spec]:
    space, rng = Space(*SIZE), np.random.default_rng(0)
    drawn = [space.random(rng) for _ in range(count)]
    return [*drawn, space.largest(), space.smallest(), mobilenet_v2(*SIZE)]


def shrunk(images: torch.Tensor, spec: Spec) -> torch.Tensor:
    return F.interpolate(images, (spec.height, spec.width), mode="bilinear", antialias=True)


def statistics(net: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items() if k.endswith(("running_mean", "running_var", "tracked"))}


def moved(net: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {k for k, v in statistics(net).items() if not torch.equal(v, before[k])}


# ---- a part is the network that stands alone


@pytest.mark.parametrize("number", range(6))
def test_the_chosen_part_is_the_extracted_network_in_evaluation_and_training(number):
    net, spec = supernet(), some_specs()[number]
    alone = net.extract(spec)
    assert isinstance(alone, Searched) and alone.spec == spec and alone.training
    images = torch.randn(3, 3, *SIZE, dtype=torch.float64)
    net.chosen, net.fixed = spec, True
    net.eval(), alone.eval()
    maps = net(images)
    assert maps.std() > 0.01 and torch.allclose(maps, alone(shrunk(images, spec)))
    net.train(), alone.train()
    before = statistics(net)
    assert torch.allclose(net(images), alone(shrunk(images, spec)))
    assert moved(net, before)
    after = net.extract(spec)  # whose statistics are those that training left
    for (name, a), (_, b) in zip(after.state_dict().items(), alone.state_dict().items(), strict=True):
        assert torch.allclose(a.double(), b.double()), name


@pytest.mark.parametrize("number", [0, 1, 4])
def test_gradients_are_those_of_the_extracted_network_and_nothing_else_gets_any(number):
    net, spec = supernet(), some_specs()[number]
    alone = net.extract(spec).train()
    net.chosen, net.fixed = spec, True
    net.train()
    images = torch.randn(3, 3, *SIZE, dtype=torch.float64)
    maps = net(images)
    weight = torch.randn_like(maps)
    (maps * weight).sum().backward()
    (alone(shrunk(images, spec)) * weight).sum().backward()
    total = sum(p.grad.abs().sum() for p in net.parameters() if p.grad is not None)
    expected = sum(p.grad.abs().sum() for p in alone.parameters())
    assert torch.allclose(total, expected)  # so what is outside of the part has none
    with torch.no_grad():  # a supernet whose weights are its gradients, so that `extract` takes those of the part
        for parameter in net.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    for (name, a), (_, b) in zip(net.extract(spec).named_parameters(), alone.named_parameters(), strict=True):
        assert torch.allclose(a, b.grad, atol=1e-9), name


def test_small_kernels_are_the_middle_of_the_large_one_and_few_channels_its_first():
    source, layer = nn.Conv2d(6, 6, 7, groups=6, bias=False), nn.Conv2d(4, 4, 3, groups=4, bias=False)
    with torch.no_grad():
        copy_part(layer, source)
    assert torch.equal(layer.weight, source.weight[:4, :, 2:5, 2:5])


def test_it_trains_in_bfloat16_autocast():
    net = Supernet(Space(*SIZE), 0).train()
    for _ in range(4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            maps = net(torch.randn(4, 3, *SIZE))
        maps.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


# ---- which network a step trains, and what it leaves


def test_each_step_trains_a_network_within_the_budget_that_the_seed_and_its_number_draw():
    space = Space(*SIZE, most=multiply_adds(mobilenet_v2(*SIZE)))
    net, seen = Supernet(space, 3).train(), []
    net.next = lambda real=net.next: seen.append(real()) or seen[-1]
    for _ in range(8):
        net(torch.randn(4, 3, *SIZE))
    assert net.steps == len(set(seen)) == 8
    assert all(multiply_adds(spec) <= space.most for spec in seen)

    def follow(seed: int, first: int) -> list[Spec]:
        other = Supernet(space, seed)
        other.load_state_dict(net.state_dict() | {"_extra_state": torch.tensor(first)})
        found = []
        while other.steps < 8:
            found.append(other.next())
            other.steps += 1
        return found

    assert follow(3, 0) == seen and follow(3, 5) == seen[5:] and follow(4, 0) != seen
    net.eval()(torch.randn(4, 3, *SIZE))
    assert net.steps == 8 and len(seen) == 8  # tests run what is chosen, and count for nothing


def test_a_networks_step_moves_the_statistics_of_its_part_alone():
    net = supernet().train()
    images, spec = torch.randn(4, 3, *SIZE, dtype=torch.float64), net.space.smallest()
    part = net.extract(spec)
    part(shrunk(images, spec))
    net.next = lambda: spec
    before = statistics(net)
    net(images)
    assert moved(net, before) < set(before)  # blocks that it has not got keep theirs
    assert torch.allclose(net.stages[0][0].norm2.running_mean[:32], part.stage1[0].layers.within[1].running_mean)
    norm, was, width = net.stages[0][0].norm3, before["stages.0.0.norm3.running_mean"], spec.stages[0].width
    assert not torch.equal(norm.running_mean[:width], was[:width])
    assert torch.equal(norm.running_mean[width:], was[width:])
    net.eval()
    before = statistics(net)
    net(images)
    assert not moved(net, before)


def test_blocks_that_are_added_begin_as_nothing():
    net = Supernet(Space(*SIZE), 0).train()
    net.fixed = True
    images, deep = torch.randn(2, 3, *SIZE), net.space.largest()
    flat = replace(deep, stages=tuple(replace(stage, depth=1) for stage in deep.stages))
    maps = []
    for net.chosen in (deep, flat):
        maps.append(net(images))
    assert torch.allclose(*maps, atol=1e-6) and maps[0].abs().max() > 0.01


def test_every_parameter_of_the_largest_gets_a_gradient_once_no_block_is_nothing():
    net = supernet().float().train()
    net.next = net.space.largest
    maps = net(torch.randn(8, 3, *SIZE))
    (maps * torch.randn_like(maps)).sum().backward()
    assert all(p.grad.any() and p.grad.isfinite().all() for p in net.parameters())


# ---- recalibration


def model_of(net_name: str, **settings) -> tuple[nn.Module, Config]:
    cfg = Config(backbone=net_name, weights="none", height=SIZE[0], width=SIZE[1], **settings)
    return make_model(cfg, 5), cfg


@pytest.mark.parametrize("number", [0, 4, 5])
def test_recalibration_leaves_what_a_pass_of_the_network_alone_leaves(number):
    (model, _), spec = model_of("supernet"), some_specs()[number]
    model.double()
    model.backbone.load_state_dict(supernet().state_dict())
    weights = {k: v.clone() for k, v in model.named_parameters()}
    batches = [torch.randn(4, 3, *SIZE, dtype=torch.float64) for _ in range(3)]
    alone, neck = model.backbone.extract(spec), nn.BatchNorm1d(1280).double()
    for norm in [neck, *(m for m in alone.modules() if isinstance(m, nn.BatchNorm2d))]:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for images in batches:
            neck.train()(alone.train()(shrunk(images, spec)).mean((2, 3)))
    for _ in range(2):  # the second time, nothing of the first is left
        model.backbone.chosen = spec
        recalibrate(model, batches)
    for name, value in model.backbone.extract(spec).state_dict().items():
        assert torch.allclose(value.double(), alone.state_dict()[name].double()), name
    for name in ("running_mean", "running_var"):
        assert torch.allclose(getattr(model.branches[0].neck, name), getattr(neck, name)), name
    assert not model.training and not model.backbone.fixed and model.backbone.steps == 0
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}


# ---- in the training loop


@pytest.fixture
def short(tmp_path) -> Config:
    """Settings that train a supernet for two epochs of three steps."""
    write_tree(tmp_path / "data" / "demo", train_ids=6, test_ids=2, cameras=2)
    return Config(
        preset="demo", dataset="demo", data_root=str(tmp_path / "data"), log_dir=str(tmp_path / "log"), device="cpu",
        height=32, width=32, pad=2, batch_size=8, images_per_id=2, workers=1, backbone="supernet", weights="none",
        epochs=2, warmup_epochs=1, steps=(2,), eval_first=False, eval_every=2, center_weight=0.0,
    )  # fmt: skip


def stopped_after(cfg: Config, count: int, monkeypatch) -> None:
    """Train until a signal comes in step `count`."""
    real, steps = processor.train.set_lr, []

    def set_lr_and_interrupt(*args):
        steps.append(0)
        if len(steps) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(processor.train, "set_lr", set_lr_and_interrupt)
    with pytest.raises(Stopped):
        do_train(cfg)
    monkeypatch.setattr(processor.train, "set_lr", real)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_stopped_and_resumed_training_ends_with_the_same_bits(short, monkeypatch, ema_decay):
    cfg = short.replace(ema_decay=ema_decay)
    whole = do_train(cfg.replace(name="whole"))
    stopped_after(cfg.replace(name="parts"), 2, monkeypatch)
    torch.manual_seed(12345)  # a new process would not have the old one's random state
    resumed = do_train(cfg.replace(name="parts", resume=True))
    assert whole.model.backbone.steps == resumed.model.backbone.steps == 6
    first, second = (read_checkpoint(run.directory / "last.pth") for run in (whole, resumed))
    for kind in {"model", "training_model"} & first.keys():
        assert all(torch.equal(value, second[kind][name]) for name, value in first[kind].items())
    assert whole.history[-1]["loss"] == resumed.history[-1]["loss"]


def test_a_checkpoint_loads_and_holds_the_average_whose_parts_can_be_chosen(short):
    run = do_train(short.replace(ema_decay=0.9))
    model, _ = load_model(run.directory / "last.pth", "cpu")
    assert not model.training and model.backbone.chosen == Space(32, 32).largest()
    trained, averaged = run.model.state_dict(), model.state_dict()
    assert all(torch.equal(value, run.average.state_dict()[name]) for name, value in averaged.items())
    assert not torch.equal(averaged["backbone.stem.weight"], trained["backbone.stem.weight"])
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        embeddings = []
        for spec in (Space(32, 32).smallest(), mobilenet_v2(32, 32)):
            model.backbone.chosen = spec
            recalibrate(model, [torch.randn(8, 3, 32, 32)])
            embeddings.append(model(images))
    assert all(e.shape == (4, 1280) and e.isfinite().all() for e in embeddings)
    assert not torch.allclose(*embeddings)


# ---- what cannot be had


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"last_stride": 2}, "networks of both last strides; leave --last-stride out"),
        ({"backbone": "supernet:3M"}, "supernet:3M must name a number of multiply-adds"),
        ({"backbone": "supernet:300000"}, r"within 0.3 M multiply-adds: the smallest has \d\.\d M"),
        ({"height": 16}, "16 x 32 are too small to search networks for"),
        ({"weights": "imagenet"}, "no ImageNet weights; give --weights none"),
        ({"attention": "se"}, "--backbone supernet has no place for attention"),
        ({"branches": "mgn"}, "supernet"),
        ({"branches": "lightmbn"}, "supernet"),
    ],
)
def test_settings_that_a_supernet_cannot_have_are_refused(settings, words):
    plain = {"backbone": "supernet", "weights": "none", "height": SIZE[0], "width": SIZE[1]}
    with pytest.raises(UserError, match=words):
        make_model(Config(**plain | settings), 5)
