"""Optimizers, parameter groups, freezing, clipping and the average of the weights."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from config import Config
from loss import make_criterion
from model import make_model
from processor.distributed import Ranks
from processor.precision import Scaler
from processor.train import Network, train_step
from solver import (
    lr_factor,
    make_average,
    make_optimizer,
    restore_optimizer,
    set_frozen,
    update_average,
)
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


SETTINGS = [
    {},
    {"backbone_lr_factor": 0.1},
    {"bias_lr_factor": 2.0},
    {"no_decay_norm_bias": True},
    {"backbone_lr_factor": 0.1, "bias_lr_factor": 2.0, "no_decay_norm_bias": True},
    {"backbone_lr_factor": 0.5, "bias_lr_factor": 2.0},  # a bias of the backbone has the rate of a weight of the head
]


@pytest.mark.parametrize("changes", SETTINGS)
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_each_trainable_parameter_is_in_one_group_and_frozen_ones_in_none(backbone, changes):
    model = make_model(Config(backbone=backbone, weights="none"), 3)
    model.backbone.requires_grad_(True)
    next(model.backbone.parameters()).requires_grad_(False)
    grouped = [id(p) for group in parameter_groups(Config(**changes), model) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    assert id(model.branches[0].neck.bias) not in grouped and id(next(model.backbone.parameters())) not in grouped


def test_groups_are_as_few_as_the_settings_need():
    counts = [len(parameter_groups(Config(**changes), Toy())) for changes in SETTINGS]
    assert counts == [1, 2, 2, 2, 6, 3]
    model = Toy()
    (group,) = parameter_groups(Config(), model)  # in the model's order, as checkpoints from before groups have it
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


def test_a_weight_that_two_layers_share_is_moved_once():
    model = Toy()
    model.twin = nn.Linear(6, 3, bias=False)
    model.twin.weight = model.classifier.weight
    grouped = [id(p) for group in parameter_groups(Config(backbone_lr_factor=0.1), model) for p in group["params"]]
    assert grouped.count(id(model.classifier.weight)) == 1


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
    assert torch.equal(model.backbone(x), model.backbone(x))  # dropout rests

    set_frozen(model, optimizer, False)
    step(model, optimizer, 3)
    now = model.state_dict()
    still = {k for k in before if torch.equal(before[k], now[k])}
    assert still == {"backbone.3.bias"}  # what no optimizer moves stays frozen for good
    assert model.training and all(m.training for m in model.modules())


def test_freezing_holds_after_a_test_has_changed_the_mode():
    model = Toy()
    optimizer = make_optimizer(Config(), model)
    set_frozen(model, optimizer, True)
    model.eval()
    model.train()  # as extract_features leaves it
    set_frozen(model, optimizer, True)
    assert model.neck.training and not any(m.training for m in model.backbone.modules())
    model.eval()
    set_frozen(model, optimizer, False)
    assert all(m.training for m in model.modules())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["backbone.3.bias"]


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


def test_without_ema_there_is_no_copy():
    assert make_average(Config(), Toy()) is None


def parts(**changes) -> tuple[SimpleNamespace, Network]:
    """What train_step needs of a run, with a small model and a center loss."""
    torch.manual_seed(0)
    cfg = Config(backbone="resnet18", weights="none", optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1.0)
    cfg = cfg.replace(**changes)
    model, cpu = make_model(cfg, 4), torch.device("cpu")
    criterion = make_criterion(cfg, 4, model.feature_dims, [head.harden for head in model.heads])
    session = SimpleNamespace(device=cpu, precision="float32", ranks=Ranks())
    state = SimpleNamespace(cfg=cfg, session=session, model=model, criterion=criterion.requires_grad_(False))
    state.optimizer, state.scaler = make_optimizer(cfg, model), Scaler(cpu, "float32")
    return state, Network(state)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(8, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    return images.to(memory_format=torch.channels_last), torch.arange(8) % 4


def gradients(run: SimpleNamespace) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])


def test_clipping_scales_the_whole_gradient_and_returns_its_norm_before():
    free, clipped = parts(), parts(clip_grad=0.25)
    assert "grad_norm" not in train_step(*free, *batch())
    norm = train_step(*clipped, *batch())["grad_norm"]
    whole = gradients(free[0]).double().norm()
    assert whole > 0.25  # or nothing is shown
    assert norm.item() == pytest.approx(whole.item(), rel=1e-4)
    assert gradients(clipped[0]).double().norm().item() == pytest.approx(0.25, rel=1e-4)
    assert torch.allclose(gradients(clipped[0]), gradients(free[0]) * (0.25 / whole).float(), rtol=1e-3, atol=1e-7)
    # the centers are not clipped
    centers = [state.criterion.centers[0].centers for state, _ in (free, clipped)]
    assert torch.equal(*centers)
    large = parts(clip_grad=1e6)
    train_step(*large, *batch())
    assert torch.equal(gradients(free[0]), gradients(large[0]))


class Reads(TorchDispatchMode):
    """Notes every time that a tensor's value is fetched by Python, for which it would wait on a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_neither_clipping_nor_averaging_waits_for_the_device():
    run, network = parts(clip_grad=0.1, ema_decay=0.99)  # SGD itself reads nothing
    average = make_average(run.cfg, run.model)
    images, labels = batch()
    run.criterion = Plain()
    with Reads() as reads:
        train_step(run, network, images, labels)
        update_average(run.cfg, average, run.model, 0)
    assert reads.count == 0
    with Reads() as reads:
        torch.ones(1).item()
    assert reads.count == 1


class Plain(nn.Module):
    """A criterion of one loss that reads no value."""

    centers = ()

    def forward(self, logits, features, labels):
        return logits[0].square().mean(), {}

    def undo_center_weight(self):
        pass


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone_lr_factor": 0.0}, ["--backbone-lr-factor", "above 0"]),
        ({"bias_lr_factor": float("nan")}, ["--bias-lr-factor", "above 0"]),
        ({"lr": float("inf")}, ["--lr", "above 0"]),
        ({"momentum": 1.0}, ["--momentum", "below 1"]),
        ({"ema_decay": 1.0}, ["--ema-decay", "below 1"]),
        ({"ema_decay": -0.1}, ["--ema-decay", "at least 0"]),
        ({"clip_grad": -1.0}, ["--clip-grad", "at least 0"]),
        ({"freeze_epochs": -1.0}, ["--freeze-epochs", "at least 0"]),
        ({"warmup_iters": -1}, ["--warmup-iters", "at least 0"]),
        ({"warmup_factor": 1.5}, ["--warmup-factor", "between 0 and 1"]),
        ({"gamma": 10.0}, ["--gamma", "between 0 and 1"]),
        ({"min_lr_factor": 2.0, "schedule": "cosine"}, ["--min-lr-factor", "between 0 and 1"]),
        ({"nesterov": True}, ["--nesterov", "--optimizer sgd"]),
        ({"nesterov": True, "optimizer": "sgd", "momentum": 0.0}, ["--nesterov", "--momentum above 0"]),
        ({"freeze_epochs": 1.0, "id_weight": 0.0}, ["--freeze-epochs", "--id-weight"]),
        ({"delay_epochs": 5.0}, ["--delay-epochs", "--schedule cosine"]),
        ({"min_lr_factor": 0.1}, ["--min-lr-factor", "--schedule cosine"]),
        ({"delay_epochs": 120.0, "schedule": "linear"}, ["--delay-epochs 120.0", "--epochs 120"]),
    ],
)
def test_bad_settings_of_the_solver_get_one_sentence(changes, words):
    with pytest.raises(UserError) as error:
        Config(**changes).check()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


SGD = {"optimizer": "sgd", "lr": 0.065, "weight_decay": 5e-4}
STEPS_PER_EPOCH = 202  # Market-1501: 12,936 images in batches of 64


@pytest.mark.parametrize(
    ("changes", "epochs_and_factors"),
    [
        # Matrix Light ReID: mobile networks from scratch, then with warm-up, then its ResNet50
        ({**SGD, "epochs": 150, "warmup_epochs": 0.0, "steps": (50, 120)}, {0: 1, 49: 1, 50: 0.1, 120: 0.01}),
        (
            {**SGD, "epochs": 350, "warmup_iters": 2000, "steps": (150, 250, 320)},
            {0: 0.01, 1000 / 202: 0.505, 2000 / 202: 1, 320: 1e-3},
        ),
        ({"warmup_iters": 2000, "steps": (40, 90)}, {0: 0.01, 10: 1, 40: 0.1, 90: 0.01}),
        # deep-efficient-reid: AdamW with amsgrad, its warm-up of 500 counted in epochs, of which there are 60
        (
            {"optimizer": "adamw_amsgrad", "momentum": 0.937, "bias_lr_factor": 2.0, "epochs": 60}
            | {"warmup_epochs": 500.0, "warmup_factor": 0.3, "steps": (30, 55)},
            {0: 0.3, 50: 0.037, 60: 0.00384},
        ),
        ({"optimizer": "amsgrad", "epochs": 60, "warmup_epochs": 0.0, "steps": (30, 55)}, {0: 1, 30: 0.1, 55: 0.01}),
        # fast-reid SBS: cosine from epoch 30 to 7e-7, the backbone frozen for 1,000 iterations
        (
            {"schedule": "cosine", "delay_epochs": 30.0, "min_lr_factor": 0.002, "epochs": 60}
            | {"warmup_iters": 2000, "warmup_factor": 0.1, "freeze_epochs": 1000 / 202},
            {0: 0.1, 1000 / 202: 0.55, 10: 1, 30: 1, 45: 0.501, 60: 0.002},
        ),
        # AGW: that of Bag of Tricks
        ({"warmup_epochs": 10.0, "warmup_factor": 0.01, "steps": (40, 70)}, {0: 0.01, 5: 0.505, 39: 1, 70: 0.01}),
        # fast-reid's ViT: SGD, cosine, gradients clipped
        (
            {"optimizer": "sgd", "lr": 0.008, "weight_decay": 1e-4, "clip_grad": 5.0, "schedule": "cosine"}
            | {"warmup_iters": 1000, "min_lr_factor": 0.002},
            {0: 0.01, 5: 1, 120: 0.002},
        ),
    ],
)
def test_published_recipes_can_be_expressed(changes, epochs_and_factors):
    cfg = Config(**changes).check()
    for epoch, factor in epochs_and_factors.items():
        assert lr_factor(cfg, epoch, STEPS_PER_EPOCH) == pytest.approx(factor, rel=1e-2), epoch
    make_optimizer(cfg, Toy())
