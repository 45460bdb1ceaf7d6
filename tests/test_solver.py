"""Optimizers, parameter groups, freezing, clipping, the average of the weights, and the learning rate."""

import copy
from functools import partial

import pytest
import torch
from helpers import start_training
from torch import nn

from config import Config
from processor.resume import restore_optimizer
from processor.train import train_step
from solver import lr_factor, make_optimizer, set_frozen
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


OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, betas=(0.8, 0.999)),
    "amsgrad": partial(torch.optim.Adam, betas=(0.8, 0.999), amsgrad=True),
    "adamw": partial(torch.optim.AdamW, betas=(0.8, 0.999)),
    "adamw_amsgrad": partial(torch.optim.AdamW, betas=(0.8, 0.999), amsgrad=True),
    "sgd": partial(torch.optim.SGD, momentum=0.8),
    "sgd nesterov": partial(torch.optim.SGD, momentum=0.8, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_is_torchs_with_the_settings(name):
    # the second moment falls again after the first step, which is what amsgrad is about
    gradients = [torch.tensor(g, dtype=torch.float64) for g in ([3.0, 9.0, -4.0], [0.1, -0.2, 0.3], [0.0, 0.5, 0.1])]
    kind, nesterov = name.split()[0], name.endswith("nesterov")
    cfg = Config(optimizer=kind, nesterov=nesterov, lr=0.1, weight_decay=0.2, momentum=0.8).check()

    def stepped(make) -> torch.Tensor:
        model = nn.Module()
        model.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        optimizer = make(model)
        for g in gradients:
            model.w.grad = g.clone()
            optimizer.step()
        return model.w.detach()

    found = stepped(lambda model: make_optimizer(cfg, model))
    for other, make in OPTIMIZERS.items():
        expected = stepped(lambda model, make=make: make([model.w], lr=0.1, weight_decay=0.2))
        assert torch.allclose(found, expected, rtol=1e-6) == (other == name), other


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
    groups = parameter_groups(Config(weight_decay=0.5, bias_decay_factor=0.2), model)
    found = {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}
    assert found == {name: 0.1 if name.endswith("bias") else 0.5 for name in found}


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
    average = make_average(model)
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


def test_clipping_bounds_a_step_of_the_model_and_logs_the_norm_before(tiny):
    cfg, lengths = tiny.replace(optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=0.1), {}
    for bound in (0.0, 1e-2, 1e6):
        state, network, data = start_training(cfg.replace(clip_grad=bound))
        before = torch.cat([p.detach().flatten() for p in state.model.parameters()])
        (losses,) = train_step(state, network, data.train.epoch(0, state.session.device))
        after = torch.cat([p.detach().flatten() for p in state.model.parameters()])
        lengths[bound] = (after - before).double().norm().item()
        assert ("grad_norm" in losses) == (bound > 0)
        assert bound == 0 or 0.1 * losses["grad_norm"].item() == pytest.approx(lengths[0.0], rel=1e-2)
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
    with pytest.raises(ValueError, match=r"zip"):
        restore_optimizer(make_optimizer(Config(backbone_lr_factor=0.1), model), state)


def test_settings_of_the_solver_that_contradict_each_other_are_refused():
    for changes, words in (
        ({"nesterov": True}, "--optimizer sgd"),
        ({"nesterov": True, "optimizer": "sgd", "momentum": 0.0}, "--momentum"),
        ({"freeze_epochs": 1.0, "id_weight": 0.0}, "--id-weight"),
        ({"delay_epochs": 5.0}, "--schedule cosine"),
        ({"min_lr_factor": 0.1}, "--schedule cosine"),
        ({"delay_epochs": 120.0, "schedule": "linear"}, "--epochs 120"),
    ):
        with pytest.raises(UserError, match=words):
            Config(**changes).check()


# ---- the learning rate at every moment

STEPS = 8  # steps per epoch
RECIPE = Config(warmup_epochs=10.0, warmup_factor=0.01, steps=(40.0, 70.0), gamma=0.1)
CONSTANT = Config(warmup_epochs=1.5, warmup_factor=0.1, warmup_method="constant", steps=())
COSINE = Config(schedule="cosine", epochs=60, warmup_epochs=10.0, warmup_factor=0.1)


@pytest.mark.parametrize(
    ("cfg", "changes", "factors"),
    [
        (RECIPE, {}, {0: 0.01, 1: 0.109, 5: 0.505, 9.5: 0.9505, 10: 1, 39.999: 1, 40: 0.1, 69.999: 0.1, 70: 0.01}),
        (RECIPE, {"warmup_epochs": 0.0, "steps": (2.0,), "gamma": 0.5}, {0: 1, 1.999: 1, 2: 0.5, 99: 0.5}),
        (RECIPE, {"warmup_factor": 0.0, "steps": (5.0,)}, {0: 0, 4: 0.4, 6: 0.06, 12: 0.1}),  # a step within warm-up
        (RECIPE, {"warmup_epochs": 0.0, "steps": (3.0, 3.0)}, {3: 0.01}),
        (RECIPE, {"rate_changes": "epoch"}, {0: 0.01, 0.9: 0.01, 1.9: 0.109, 10: 1, 39.9: 1, 40: 0.1}),
        (RECIPE, {"rate_changes": "epoch_from_1"}, {0: 0.109, 0.9: 0.109, 9: 1, 38.9: 1, 39: 0.1, 69.5: 0.01}),
        (CONSTANT, {}, {0: 0.1, 1.4999: 0.1, 1.5: 1, 2: 1}),
        (COSINE, {}, {0: 0.1, 5: 0.55, 10: 1, 35: 0.5, 10 + 50 / 3: 0.75, 10 + 100 / 3: 0.25, 60: 0, 61: 0}),
        (COSINE, {"min_lr_factor": 0.002}, {35: 0.501, 60: 0.002}),
        (COSINE, {"delay_epochs": 30.0}, {29.9: 1, 30: 1, 45: 0.5, 60: 0}),
        (COSINE, {"delay_epochs": 5.0}, {5: 0.55, 35: 0.5}),  # warm-up is not cut short
        (COSINE, {"warmup_iters": 160}, {40: 0.5}),  # 20 epochs of 8 steps
        (COSINE, {"schedule": "linear"}, {10: 1, 20: 0.8, 60: 0}),
        (COSINE, {"schedule": "linear", "min_lr_factor": 0.1}, {35: 0.55}),
        (COSINE, {"schedule": "linear", "delay_epochs": 50.0}, {55: 0.5, 99: 0}),
        (COSINE, {"warmup_epochs": 60.0}, {60: 1, 60.5: 0}),  # no time is left to decay in
        (COSINE, {"warmup_epochs": 120.0}, {60: 0.55}),
    ],
)
def test_factors_at_the_corners(cfg, changes, factors):
    cfg = cfg.replace(**changes)
    found = {progress: lr_factor(cfg, progress, STEPS) for progress in factors}
    assert found == pytest.approx(factors, abs=1e-9)


def test_warm_up_in_steps_wins_over_epochs_and_takes_exactly_so_many_steps():
    # Matrix Light ReID: 2,000 iterations of 202 per epoch; a constant factor shows an error of a single step
    cfg = Config(warmup_epochs=1.0, warmup_iters=2000, warmup_factor=0.25, warmup_method="constant", steps=())
    for steps in (1, 3, 202, 187, 7):
        factors = [lr_factor(cfg, step / steps, steps) for step in range(2100)]
        assert factors == [0.25] * 2000 + [1.0] * 100
