"""Optimizers, parameter groups, freezing, clipping and the average of the weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from config import Config
from model import ReIDModel, make_model
from processor import do_train
from solver import make_optimizer, restore_optimizer, set_frozen
from solver.average import make_average, update_average
from solver.optimizer import parameter_groups
from utils.errors import UserError


class Toy(nn.Module):
    """Stands for a ReID model: a backbone with all that freezing must hold still, then layers that go on learning."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 6))
        self.backbone[3].bias.requires_grad_(False)  # frozen for good, as the neck's bias is
        self.power = nn.Parameter(torch.tensor([3.0]))  # like GeM's
        self.neck = nn.BatchNorm1d(6)
        self.classifier = nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return self.classifier(self.neck(self.backbone(x) * self.power))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad(set_to_none=True)
    model(x).square().sum().backward()
    optimizer.step()


def reference(name: str, w, gradients, lr=0.1, decay=0.2, momentum=0.8, nesterov=False):
    """The optimizers as their papers write them, in float64."""
    m = v = largest = torch.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        if name.startswith("adamw"):
            w = w - lr * decay * w
        else:
            g = g + decay * w
        if name == "sgd":
            m = g if t == 1 else momentum * m + g
            w = w - lr * (g + momentum * m if nesterov else m)
            continue
        m = momentum * m + (1 - momentum) * g
        v = 0.999 * v + 0.001 * g * g
        largest = torch.maximum(largest, v)
        second = largest if "amsgrad" in name else v
        w = w - lr * (m / (1 - momentum**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    return w


@pytest.mark.parametrize(
    ("name", "nesterov"),
    [("adam", False), ("amsgrad", False), ("adamw", False), ("adamw_amsgrad", False), ("sgd", False), ("sgd", True)],
)
def test_each_optimizer_takes_the_steps_of_its_paper(name, nesterov):
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    cfg = Config(optimizer=name, nesterov=nesterov, lr=0.1, weight_decay=0.2, momentum=0.8).check()
    optimizer = make_optimizer(cfg, model)
    # the second moment falls again after the first step, which is what amsgrad is about
    gradients = [torch.tensor(g, dtype=torch.float64) for g in ([3.0, 9.0, -4.0], [0.1, -0.2, 0.3], [0.0, 0.5, 0.1])]
    start = model.w.detach().clone()
    for g in gradients:
        model.w.grad = g.clone()
        optimizer.step()
    expected = reference(name, start, gradients, nesterov=nesterov)
    assert torch.allclose(model.w, expected, rtol=1e-10)
    others = [reference(n, start, gradients) for n in ("adam", "amsgrad", "adamw", "adamw_amsgrad", "sgd") if n != name]
    assert not any(torch.allclose(expected, other, rtol=1e-6) for other in others)


def test_each_trainable_parameter_is_in_one_of_as_few_groups_as_the_settings_need():
    for changes, count in (
        ({}, 1),
        ({"backbone_lr_factor": 0.1}, 2),
        ({"bias_lr_factor": 2.0}, 2),
        ({"no_decay_norm_bias": True}, 2),
        ({"backbone_lr_factor": 0.1, "bias_lr_factor": 2.0, "no_decay_norm_bias": True}, 6),
        ({"backbone_lr_factor": 0.5, "bias_lr_factor": 2.0}, 3),  # a backbone's bias has the rate of a head's weight
    ):
        model = Toy()
        model.twin = nn.Linear(6, 3, bias=False)
        model.twin.weight = model.classifier.weight  # shared by two layers, moved once
        groups = parameter_groups(Config(**changes), model)
        grouped = [id(p) for group in groups for p in group["params"]]
        assert len(groups) == count and len(grouped) == len(set(grouped))
        assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    (group,) = parameter_groups(Config(), model)  # in the model's order, as in old checkpoints
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters() if p.requires_grad]


def test_rates_and_weight_decay_of_every_weight():
    model = Toy()
    cfg = Config(lr=1.0, backbone_lr_factor=0.1, bias_lr_factor=2.0, weight_decay=0.5, no_decay_norm_bias=True)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(cfg, model)
    assert all(group["lr"] == cfg.solver.lr * group["lr_factor"] for group in groups)
    found = {names[id(p)]: (g["lr_factor"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        "backbone.0.weight": (0.1, 0.5),
        "backbone.0.bias": (0.2, 0.0),
        "backbone.1.weight": (0.1, 0.0),
        "backbone.1.bias": (0.2, 0.0),
        "backbone.3.weight": (0.1, 0.5),
        "power": (1.0, 0.0),
        "neck.weight": (1.0, 0.0),
        "neck.bias": (2.0, 0.0),
        "classifier.weight": (1.0, 0.5),
    }


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_frozen_backbone_does_not_move_and_then_moves(name):
    torch.manual_seed(0)
    model = Toy()
    optimizer = make_optimizer(Config(optimizer=name, lr=0.01), model)
    before = copy.deepcopy(model.state_dict())

    set_frozen(model, optimizer, True)
    for seed in range(3):
        step(model, optimizer, seed)
    after = model.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved == {k for k in before if not k.startswith("backbone.")}  # statistics of the neck, too
    assert all(p.grad is None for p in model.backbone.parameters())
    x = torch.randn(8, 4)
    assert torch.equal(model.backbone(x), model.backbone(x))  # dropout is off

    model.eval()
    model.train()  # as a test leaves it
    set_frozen(model, optimizer, True)
    assert model.neck.training and not any(m.training for m in model.backbone.modules())
    set_frozen(model, optimizer, False)
    step(model, optimizer, 3)
    now = model.state_dict()
    still = {k for k in before if torch.equal(before[k], now[k])}
    assert still == {"backbone.3.bias"}  # what no optimizer moves is always frozen
    assert model.training and all(m.training for m in model.modules())


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_is_that_of_a_loop_in_float64(decay):
    torch.manual_seed(0)
    cfg = Config(ema_decay=decay)
    model = Toy()
    average = make_average(cfg, model)
    wanted = {k: v.double() for k, v in model.state_dict().items()}
    assert all(torch.equal(v, average.state_dict()[k]) for k, v in model.state_dict().items())
    optimizer = make_optimizer(Config(optimizer="sgd", lr=0.01), model)
    decays = []
    for n in range(30):
        step(model, optimizer, n)
        update_average(cfg, average, model, n)
        decays.append(min(decay, (1 + n) / (10 + n)))
        for name, value in model.state_dict().items():
            whole = not value.is_floating_point()
            wanted[name] = value.double() if whole else decays[-1] * wanted[name] + (1 - decays[-1]) * value.double()
    assert decays[0] == 0.1 and decays[-1] == (0.5 if decay == 0.5 else 30 / 39)
    for name, value in average.state_dict().items():
        assert torch.allclose(value.double(), wanted[name], rtol=1e-5, atol=1e-6), name
    assert average.neck.num_batches_tracked == 30
    assert not torch.allclose(average.neck.running_mean, model.neck.running_mean)
    assert not average.training and not any(p.requires_grad for p in average.parameters())


def test_the_average_of_weights_that_stand_still_is_exactly_these_weights():
    model = make_model(Config(backbone="resnet18", weights="none"), 3).to(memory_format=torch.channels_last)
    cfg = Config(ema_decay=0.9999)
    average = make_average(cfg, model)
    for n in (0, 1, 2, 500, 10**6):
        update_average(cfg, average, model, n)
    assert all(torch.equal(v, average.state_dict()[k]) for k, v in model.state_dict().items())


class Reads(TorchDispatchMode):
    """Counts how often Python reads a tensor's value, which would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_averaging_does_not_wait_for_the_device():
    model, cfg = Toy(), Config(ema_decay=0.9)
    average = make_average(cfg, model)
    with Reads() as reads:
        update_average(cfg, average, model, 0)
    assert reads.count == 0
    with Reads() as reads:
        torch.ones(1).item()
    assert reads.count == 1


def test_clipping_bounds_a_step_of_the_model_and_logs_the_norm_before(tiny, monkeypatch):
    cfg = tiny.replace(optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=0.1, warmup_epochs=0.0, steps=(), epochs=1)
    forward, seen = ReIDModel.forward, []

    def record(model: ReIDModel, images: torch.Tensor):
        if model.training:
            seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return forward(model, images)

    monkeypatch.setattr(ReIDModel, "forward", record)
    lengths = {}
    for bound in (0.0, 1e-2, 1e6):
        seen.clear()
        do_train(cfg.replace(clip_grad=bound, name=f"clip-{bound}", eval_first=False, log_every=1))
        lengths[bound] = (seen[1] - seen[0]).double().norm().item()
        log = (Path(cfg.run.log_dir) / f"clip-{bound}" / "metrics.jsonl").read_text()
        assert ("grad_norm" in json.loads(log)) == (bound > 0)
    assert lengths[1e-2] == pytest.approx(0.1 * 1e-2, rel=1e-2) and lengths[0.0] > 0.1 * 1e-2
    assert lengths[1e6] == lengths[0.0]


def test_a_restored_optimizer_has_the_moments_of_then_and_the_settings_of_now():
    model = Toy()
    then = make_optimizer(Config(optimizer="sgd", weight_decay=0.1), model)
    step(model, then, 0)
    state = copy.deepcopy(then.state_dict())
    now = make_optimizer(Config(optimizer="sgd", weight_decay=0.2, momentum=0.5), model)
    restore_optimizer(now, state)
    (group,) = now.param_groups
    assert (group["weight_decay"], group["momentum"]) == (0.2, 0.5)
    for p in model.parameters():
        if p.requires_grad:
            assert torch.equal(now.state[p]["momentum_buffer"], then.state[p]["momentum_buffer"])
    del state["param_groups"][0]["lr_factor"]  # a checkpoint from before there were groups
    restore_optimizer(now, state)
    assert now.param_groups[0]["lr_factor"] == 1.0
    with pytest.raises(ValueError, match="parameter group"):
        restore_optimizer(make_optimizer(Config(backbone_lr_factor=0.1), model), state)


def test_bad_settings_of_the_solver_are_refused_and_named():
    for changes, words in (
        ({"backbone_lr_factor": 0.0}, "--backbone-lr-factor"),
        ({"bias_lr_factor": float("nan")}, "--bias-lr-factor"),
        ({"lr": float("inf")}, "--lr"),
        ({"momentum": 1.0}, "--momentum"),
        ({"ema_decay": 1.0}, "--ema-decay"),
        ({"ema_decay": -0.1}, "--ema-decay"),
        ({"clip_grad": -1.0}, "--clip-grad"),
        ({"freeze_epochs": -1.0}, "--freeze-epochs"),
        ({"warmup_iters": -1}, "--warmup-iters"),
        ({"warmup_factor": 1.5}, "--warmup-factor"),
        ({"gamma": 10.0}, "--gamma"),
        ({"min_lr_factor": 2.0, "schedule": "cosine"}, "--min-lr-factor"),
        ({"nesterov": True}, "--optimizer sgd"),
        ({"nesterov": True, "optimizer": "sgd", "momentum": 0.0}, "--momentum"),
        ({"freeze_epochs": 1.0, "id_weight": 0.0}, "--id-weight"),
        ({"delay_epochs": 5.0}, "--schedule cosine"),
        ({"min_lr_factor": 0.1}, "--schedule cosine"),
        ({"delay_epochs": 120.0, "schedule": "linear"}, "--epochs 120"),
    ):
        with pytest.raises(UserError, match=words):
            Config(**changes).check()
