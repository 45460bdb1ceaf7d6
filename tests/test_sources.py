"""The sources' own training code and ours next to each other, on the CPU, from equal weights and batches.

Nothing of a source is in this repository. REID_SOURCES names a folder with git repositories OWNER+NAME, such as `git
clone --mirror https://github.com/OWNER/NAME OWNER+NAME` makes; without it, a folder .mirror next to this repository or
above it. docs/recipes.md says what was compared, and the largest differences; `pytest -s` prints them.
"""

import contextlib
import importlib
import io
import os
import subprocess
import sys
import tarfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from torch import nn

from config import Config, load_preset
from loss import make_criterion
from loss.criterion import metric_losses
from loss.weighted_triplet import weighted_triplet
from model import make_model
from solver import make_optimizer, set_lr
from solver.optimizer import parameter_groups

pytestmark = pytest.mark.slow
FOLDERS = [Path(os.environ["REID_SOURCES"])] if "REID_SOURCES" in os.environ else []
FOLDERS += [parent / ".mirror" for parent in ROOT.parents]
TINY = ("lulujianjie+person-reid-tiny-baseline", "a13a8a89355d3495560d904123952516cff91e31")
MLR = ("matrixorigin+matrix-light-reid", "ef1fbc9b76db7649af4cd6ea6f6e0bc5f1da143e")
DER = ("lannguyen0910+deep-efficient-person-reid", "3398fc83f389f50fcda74dcb40810f8ca6f26bca")
HN = ("hiennguyen9874+person-reid", "bb277b4")
SBN = ("DTennant+reid_baseline_with_syncbn", "74a6b6b597c77b205f40a886d912defbca0c7b5c")
AGW = ("mangye16+ReID-Survey", "38f59126cfa36c99a28377384dc23a5712dd0411")
FASTREID = ("JDAI-CV+fast-reid", "c9bc3ceb2f7a6438b62fb515ea3df6d1e999e95d")


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """As Adam's first steps have the size of the rate, whatever the gradient's, rounding would become visible."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


IGNITE = ("ignite", "ignite.engine", "ignite.handlers", "ignite.metrics")
IDS, STEPS, EPOCHS = 6, 2, 2  # identities, batches per epoch, epochs


# ---- reading a source, and running it without a GPU and without the packages that it only mentions


def unpacked(source: tuple[str, str], folder: Path, *paths: str) -> Path:
    """These paths of a source's commit as files in `folder`; skips the test where the source is absent."""
    name, commit = source
    places = [base / name / inner for base in FOLDERS for inner in ("", ".git", "repo", "repo/.git")]
    git = next((str(place) for place in places if (place / "HEAD").is_file()), None)
    if git is None:
        pytest.skip(f"no repository {name} in {', '.join(map(str, FOLDERS))}; name their folder with REID_SOURCES")
    made = subprocess.run(["git", f"--git-dir={git}", "archive", commit, *paths], capture_output=True)
    if made.returncode:
        pytest.skip(f"{git} lacks commit {commit}: {made.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


class Named(types.SimpleNamespace):
    """In place of a class of an absent package: keeps its arguments, and takes any attribute."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(args=args, **settings)


class Absent(types.ModuleType):
    """In place of an absent package: any name in it is a class."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Named,), {})


@contextlib.contextmanager
def imported(root: Path, *absent: str) -> Iterator[Callable[[str], Any]]:
    """Import modules of a source whose packages may have the names of ours; `absent` packages are replaced. Calls for
    a GPU stay on the CPU."""
    theirs = {path.stem for path in root.iterdir()}
    hidden = {name: module for name, module in sys.modules.items() if name.split(".")[0] in theirs | {*absent}}
    with pytest.MonkeyPatch.context() as patch:
        for name in hidden:
            del sys.modules[name]
        for name in absent:
            patch.setitem(sys.modules, name, Absent(name))
        patch.syspath_prepend(str(root))
        for kind in (torch.Tensor, nn.Module):
            patch.setattr(kind, "cuda", lambda self, *_: self)
            to = kind.to
            patch.setattr(kind, "to", lambda self, *a, to=to, **k: self if a[:1] == ("cuda",) else to(self, *a, **k))
        try:
            yield importlib.import_module
        finally:
            for name in [name for name in sys.modules if name.split(".")[0] in theirs | {*absent}]:
                del sys.modules[name]
            sys.modules.update(hidden)


# ---- our side


def small(name: str, **changes: Any) -> Config:
    """A preset on images of 64 × 32 and batches of 4 × 2, from random weights."""
    size = {"height": 64, "width": 32, "batch_size": 8, "images_per_id": 2, "weights": "none", "fused": False}
    return load_preset(name).replace(**(size | changes))


def batches(cfg: Config, ids: int = IDS) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random images of `STEPS` batches; P × K labels, or with random batches few pairs."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(STEPS):
        images = torch.randn(8, 3, cfg.data.height, cfg.data.width, generator=generator)
        labels = torch.randperm(ids, generator=generator)[:4].repeat_interleave(2)
        if cfg.data.sampler == "shuffle":
            labels = torch.randint(ids, (8,), generator=generator)
        made.append((images, labels))
    return made


def train(cfg: Config, model: nn.Module, data: list, centers: torch.Tensor | None = None, epochs: int = EPOCHS):
    """Rates and losses of every step, as processor/train.py takes it."""
    criterion = make_criterion(cfg, model.num_classes, model.feature_dims, [head.add_margin for head in model.heads])
    if centers is not None:
        criterion.centers[0].centers.data.copy_(centers)
    criterion.centers.requires_grad_(False)
    optimizer, found = make_optimizer(cfg, model), []
    model.train()
    for epoch in range(epochs):
        for step, (images, labels) in enumerate(data):
            rate = set_lr(cfg, optimizer, epoch + step / len(data), len(data))
            optimizer.zero_grad()
            logits, features = model(images)
            loss, _ = criterion(logits, features, labels)
            loss.backward()
            optimizer.step()
            criterion.move_centers([x.detach() for x in features], labels)
            found.append((rate, loss.item()))
    return found


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights and buffers, before they are trained."""
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def model_with(cfg: Config, state: dict[str, torch.Tensor], maps: nn.Module | None = None, **names: str) -> nn.Module:
    """Our model with a source's weights. names: for each beginning of our names, with _ for a dot, that of theirs.
    maps: in place of the preset's backbone, where that knowingly differs."""
    model = make_model(cfg, IDS)
    model.backbone = maps or model.backbone
    renamed = {}
    for name, tensor in model.state_dict().items():
        ours = max((start for start in names if name.replace(".", "_").startswith(start)), key=len)
        renamed[name] = state[names[ours] + name[len(ours) :]].reshape(tensor.shape)
    model.load_state_dict(renamed)
    return model


LAYERS = {"backbone": "base", "branches_0_neck": "bottleneck", "branches_0_classifier": "classifier"}


def compare(what: str, ours: list[tuple[float, float]], theirs: list[tuple[float, float]], tolerance: float) -> None:
    """Rates are equal, losses within the tolerance, relative; prints the largest difference."""
    assert len(ours) == len(theirs) == len({round(loss, 9) for _, loss in theirs})
    assert [rate for rate, _ in ours] == pytest.approx([rate for rate, _ in theirs], rel=1e-12)
    worst = max(abs(a - b) / abs(b) for (_, a), (_, b) in zip(ours, theirs, strict=True))
    print(f"\n{what}: {len(ours)} steps, losses {theirs[0][1]:.4f} to {theirs[-1][1]:.4f}, difference {worst:.1e}")
    assert worst < tolerance


def recorded(loss_func: Callable[..., torch.Tensor], optimizer: torch.optim.Optimizer, seen: list) -> Callable:
    """A source's loss that adds (rate, loss) to `seen` at each call."""

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        loss = loss_func(*inputs)
        seen.append((optimizer.param_groups[0]["lr"], loss.item()))
        return loss

    return call


def patches(width: int = 2048) -> nn.Module:
    """A backbone for both sides, where those of the source and of the preset differ."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 16, 16), nn.ReLU())


# ---- the sources


@pytest.mark.parametrize("name", ["tiny_b1_code", "tiny_b1_hem_code"])
def test_tiny_baseline(name, tmp_path):
    """Its do_train, with its model, losses, optimizers and schedule."""
    root = unpacked(TINY, tmp_path / "tiny", "config", "loss", "model", "processor", "solver", "utils")
    cfg = small(name)
    data, seen = batches(cfg), []
    with imported(root) as load:
        theirs = load("config.default").DefaultConfig()
        theirs.PRETRAIN_CHOICE, theirs.LOSS_TYPE = "no", "triplet+softmax+center"
        theirs.HARD_FACTOR, theirs.MAX_EPOCHS, theirs.OUTPUT_DIR = cfg.loss.hard_factor, EPOCHS, str(tmp_path)
        torch.manual_seed(0)
        net = load("model").make_model(theirs, IDS)
        loss_func, centers = load("loss").make_loss(theirs, IDS)
        start = weights(net), centers.centers.detach().clone()
        optimizer, center_optimizer = load("solver").make_optimizer(theirs, net, centers)
        warmup = theirs.WARMUP_FACTOR, theirs.WARMUP_EPOCHS, theirs.WARMUP_METHOD
        schedule = load("solver").WarmupMultiStepLR(optimizer, theirs.STEPS, theirs.GAMMA, *warmup)
        loader = type("Loader", (list,), {"batch_size": 8})(data)
        loss_func = recorded(loss_func, optimizer, seen)
        load("processor").do_train(
            theirs, net, centers, loader, [], optimizer, center_optimizer, schedule, loss_func, 0
        )
    compare(name, train(cfg, model_with(cfg, start[0], **LAYERS), data, start[1]), seen, 1e-7)


def test_sync_bn_baseline(tmp_path):
    """Its BaseTrainer with one GPU, and what make_optimizer changes for two."""
    root = unpacked(SBN, tmp_path / "sbn")
    cfg, two = small("sbn_resnet50"), small("sbn_resnet50_2gpu")
    data, seen = batches(cfg), []
    with imported(root, "visdom", "yacs", "yacs.config", "evaluate.eval_cylib.eval_metrics_cy") as load:
        theirs = load("config").cfg
        values = {"BASE_LR": 1e-4, "BIAS_LR_FACTOR": 1, "WEIGHT_DECAY_BIAS": 5e-4, "WARMUP_FACTOR": 0.01}
        values |= {"STEPS": [20, 30, 45], "GAMMA": 0.6, "WARMUP_ITERS": 10, "LOG_PERIOD": 99, "EVAL_PERIOD": 99}
        vars(theirs.SOLVER).update(values)
        theirs.DATALOADER.SAMPLER, theirs.OUTPUT_DIR = "softmax_triplet", str(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(load("model.backbones.resnet").ResNet, "load_param", lambda *_: None)
            torch.manual_seed(0)
            net = load("model").build_model(theirs, IDS)
        start = weights(net)
        trainer = load("trainer").BaseTrainer(theirs, net, data, [], load("losses").make_loss(theirs, IDS), 0, 1)
        trainer.loss_func = recorded(trainer.loss_func, trainer.optim, seen)
        for _ in range(EPOCHS):
            for batch in data:
                trainer.step(batch)
            trainer.handle_new_epoch()
        doubled = load("optim").make_optimizer(theirs, net, 2)
    model = model_with(cfg, start, **LAYERS)
    names = {id(p): name for name, p in net.named_parameters()}
    theirs = {names[id(g["params"][0])]: (g["lr"], g["weight_decay"]) for g in doubled.param_groups}
    names = {id(p): name for name, p in model.named_parameters()}
    ours = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in parameter_groups(two, model) for p in g["params"]}
    assert sorted(ours.values()) == sorted(theirs.values()) and len(set(ours.values())) == 2
    compare("sbn_resnet50", train(cfg, model, data), seen, 1e-7)


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("der_resnet50_scratch_code", "resnet50"), ("der_resnet50_ibn_a_code", "resnet50_ibn_a"),
     ("der_efficientnet_v2_code", "efficientnet_v2")],
)  # fmt: skip
def test_deep_efficient_reid(name, backbone, tmp_path):
    """One step of its trainer after the other, with its model, losses, optimizer and schedule; the centers have SGD."""
    root = unpacked(DER, tmp_path / "der", "dertorch") / "dertorch"
    cfg = small(name)
    data, seen = batches(cfg), []
    with imported(root, *IGNITE, "scipy.misc") as load:
        getter, engine = load("utils.getter"), load("engine.trainer")
        theirs = Named(**{"model_name": backbone, "loss_type": "triplet_center", "margin": 0.3, "label_smooth": "on"})
        theirs.sampler, theirs.center_loss_weight, theirs.mixed_precision = "softmax", 5e-4, True
        policy = {"name": "adam", "lr": cfg.solver.lr, "momentum": 0.937, "weight_decay": 5e-4, "center_lr": 0.5}
        policy |= {"weight_decay_bias": 0.0, "bias_lr_factor": 2}
        torch.manual_seed(0)
        net = load("nets.nn").Backbone(IDS, backbone)
        loss_func, centers = load("losses").make_loss_with_center(theirs, IDS)
        start = weights(net), centers.centers.detach().clone()
        optimizer, _ = getter.get_lr_policy_with_center(policy, net, centers)
        center_optimizer = torch.optim.SGD(centers.parameters(), lr=0.5)
        schedule = getter.WarmupMultiStepLR(optimizer, [30, 55], 0.1, 0.3, 500, "linear")
        loss_func = recorded(loss_func, optimizer, seen)
        made = (theirs, net, centers, optimizer, center_optimizer, loss_func, 5e-4)
        (update,) = engine.create_supervised_trainer_with_center(*made).args
        for _ in range(EPOCHS):
            schedule.step()
            for batch in data:
                update(None, batch)
    model = make_model(cfg, IDS)
    if backbone == "efficientnet_v2":  # the same layers under other names, in the same order
        names = [name for name in model.state_dict() if name.startswith("backbone.")]
        theirs = [name for name in start[0] if name.startswith("base.")]
        start[0].update({f"base.{new[9:]}": start[0].pop(old) for new, old in zip(names, theirs, strict=True)})
    compare(name, train(cfg, model_with(cfg, start[0], **LAYERS), data, start[1]), seen, 1e-7)


def test_agw(tmp_path):
    """One step of its trainer after the other, with its GeM, neck, losses, optimizers and schedule, but the triplet
    loss of Bag of Tricks: its own, weighted one differs knowingly, and is measured on features that are close."""
    root = unpacked(AGW, tmp_path / "agw", "tools", "modeling", "utils")
    cfg = small("agw_resnet50", attention="none", triplet="hard")
    data, seen = batches(cfg), []
    with imported(root, *IGNITE, "data", "data.datasets", "data.datasets.eval_reid", "tools.test") as load:
        model = Named(CENTER_LOSS="on", WEIGHT_REGULARIZED_TRIPLET="off", CENTER_FEAT_DIM=2048)
        solver = {"BASE_LR": 3.5e-4, "WEIGHT_DECAY": 5e-4, "OPTIMIZER_NAME": "Adam", "CENTER_LR": 0.5, "MARGIN": 0.3}
        theirs = Named(MODEL=model, SOLVER=Named(**solver, CENTER_LOSS_WEIGHT=5e-4))
        torch.manual_seed(0)
        net = load("modeling.baseline").Baseline(IDS, 1, "", "resnet50", "on", "none")
        net.base = patches()
        losses = net.get_creterion(theirs, IDS)
        start = weights(net), losses["center"].centers.detach().clone()
        optimizer = net.get_optimizer(theirs, losses)
        losses["total"] = recorded(losses["total"], optimizer["model"], seen)
        (update,) = load("tools.train").create_supervised_trainer(net, optimizer, losses, 5e-4).args
        make = load("utils.lr_scheduler").WarmupMultiStepLR
        schedule = make(optimizer["model"], [40, 70], 0.1, 0.01, 10, "linear")
        for _ in range(EPOCHS):
            schedule.step()
            for batch in data:
                update(None, batch)
        features, labels = torch.randn(16, 64) / 16, torch.arange(4).repeat_interleave(4)
        weighted = load("modeling.layer").WeightedRegularizedTriplet()(features, labels)[0].item()
    ours = model_with(cfg, start[0], patches(), **LAYERS, pool="global_pool")
    compare("agw_resnet50, triplet hard", train(cfg, ours, data, start[1]), seen, 1e-7)
    found = weighted_triplet(features, labels).item()
    print(f"weighted triplet loss: {weighted:.4f} there, {found:.4f} here")
    assert found == pytest.approx(weighted, rel=0.1)


def test_deep_person_reid(tmp_path):
    """Its head, losses, optimizer and schedule, in the order of its trainer, on the maps of a small backbone."""
    root = unpacked(HN, tmp_path / "hn", "src", "configs")
    cfg = small("hn_strong", attention="none")
    data, seen = batches(cfg), []
    with imported(root / "src", "timm", "utils") as load, pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        sys.modules["utils"].__path__ = [str(root / "src" / "utils")]
        theirs = load("utils.config").read_cfg("configs/fast_reid.yaml")
        theirs["model"]["num_classes"] = IDS
        net = nn.Module()
        net.backbone = patches()
        net.head = load("models.heads.embedding").Embedding(theirs["model"], 2048)
        start = weights(net)
        optimizer = load("optimizers").build_optimizers(theirs["optimizer"], net)
        loss_func = recorded(lambda *inputs: load("losses").WrapLoss(theirs["loss"])(*inputs)[0], optimizer, seen)
        schedule = load("schedulers").build_lr_scheduler(theirs["lr_scheduler"], optimizer, STEPS)
        for _ in range(EPOCHS):
            for images, labels in data:
                optimizer.zero_grad(set_to_none=True)
                features, logits, _ = net.head(net.backbone(images), labels)
                loss_func(features, logits, labels).backward()
                optimizer.step()
            schedule.step()
        features, labels = torch.randn(16, 64), torch.arange(4).repeat_interleave(4)
        similarity = load("losses.multi_similarity_loss").MultiSimilarityLoss(2.0, 40.0, 0.7)(features, labels).item()
    weight, similar = metric_losses(load_preset("hn_lightmbn"))["multi_similarity"]
    assert weight == 3 * 0.5 and similar(features, labels).item() == pytest.approx(similarity, rel=1e-9)
    names = {"branches_0_neck": "head.bottleneck.bn", "branches_0_classifier": "head.softmax.sub_center"}
    ours = model_with(cfg, start, patches(), backbone="backbone", pool="head.pool_layer", **names)
    compare("hn_strong, from the maps on", train(cfg, ours, data), seen, 1e-4)


def test_fast_reid(tmp_path):
    """SBS's head and losses on the maps of a small backbone. Its label smoothing of 0.1 is 0.1 · C / (C - 1) here."""
    root = unpacked(FASTREID, tmp_path / "fastreid", "fastreid")
    cfg = small("sbs_resnet50", attention="none", label_smoothing=0.1 * IDS / (IDS - 1), freeze_epochs=0.0)
    data, seen = batches(cfg), []
    with imported(root, "yacs", "yacs.config", "termcolor", "tabulate", "portalocker", "fastreid.modeling") as load:
        sys.modules["fastreid.modeling"].__path__ = [str(root / "fastreid" / "modeling")]
        made = {"feat_dim": 2048, "embedding_dim": 0, "num_classes": IDS, "neck_feat": "after"}
        made |= {"pool_type": "GeneralizedMeanPoolingP", "cls_type": "CircleSoftmax", "scale": 64, "margin": 0.35}
        net = nn.Module()
        net.backbone = patches()
        net.heads = load("fastreid.modeling.heads.embedding_head").EmbeddingHead(
            **made, with_bnneck=True, norm_type="BN"
        )
        start = weights(net)
        smoothed = load("fastreid.modeling.losses.cross_entroy_loss").cross_entropy_loss
        triplet = load("fastreid.modeling.losses.triplet_loss").triplet_loss
        optimizer = torch.optim.Adam(net.parameters(), lr=cfg.solver.lr, weight_decay=5e-4)
        warmup = load("fastreid.solver.lr_scheduler").WarmupLR(optimizer, 0.1, 2000, "linear")

        def losses(logits: torch.Tensor, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return smoothed(logits, labels, 0.1) + triplet(features, labels, 0.0, False, True)

        loss_func = recorded(losses, optimizer, seen)
        for images, labels in data * EPOCHS:
            optimizer.zero_grad()
            outputs = net.heads(net.backbone(images), labels)
            loss_func(outputs["cls_outputs"], outputs["features"], labels).backward()
            optimizer.step()
            warmup.step()
    start["heads.classifier.weight"] = start.pop("heads.weight")
    names = {"branches_0_neck": "heads.bottleneck.0", "branches_0_classifier": "heads.classifier"}
    ours = model_with(cfg, start, patches(), backbone="backbone", pool="heads.pool_layer", **names)
    compare("sbs_resnet50, from the maps on", train(cfg, ours, data), seen, 1e-7)


@pytest.mark.parametrize("name", ["mlr_resnet50", "mlr_mobilenet_v2_sgd"])
def test_matrix_light_reid(name, tmp_path):
    """Its head and losses on the maps of a small backbone, without and with an embedding. Its head has as many classes
    as ours here; its 1x1 convolution refuses the two-dimensional feature that its neck gives, and is called as a linear
    layer."""
    root = unpacked(MLR, tmp_path / "mlr", "mmcls")
    cfg = small(name)
    data, seen = batches(cfg), []
    packages = ("mmcls", "mmcls.models", "mmcls.models.heads", "mmcls.models.losses")
    with imported(root, "mmcv", "mmcv.cnn", *packages, "mmcls.models.builder") as load:
        for package in packages:
            sys.modules[package].__path__ = [str(root / package.replace(".", "/"))]
        builder, kinds = sys.modules["mmcls.models.builder"], {}
        register = types.SimpleNamespace(register_module=lambda: lambda kind: kinds.setdefault(kind.__name__, kind))
        builder.HEADS = builder.LOSSES = register
        builder.build_loss = lambda made: kinds[made["type"]](**{k: v for k, v in made.items() if k != "type"})
        load("mmcls.models.losses.triplet_loss"), load("mmcls.models.losses.label_smooth_loss")
        smoothed = {"type": "LabelSmoothLoss", "label_smooth_val": 0.1, "num_classes": IDS, "loss_weight": 1.0}
        triplet = {"type": "TripletLoss", "loss_weight": 1.0, "margin": 0.3, "norm_feat": False}
        net = nn.Module()
        width = 2048 if name == "mlr_resnet50" else 1280
        net.backbone = patches(width)
        made = load("mmcls.models.heads.bot_head").BotHead(width, cfg.model.embedding_dim, IDS, smoothed, triplet)
        net.head = made
        start = weights(net)
        if cfg.model.embedding_dim:
            kernel = made.neck[0].weight
            made.neck[0] = nn.Linear(width, cfg.model.embedding_dim, bias=False)
            made.neck[0].weight = nn.Parameter(kernel.detach()[:, :, 0, 0].clone())
        if cfg.solver.optimizer == "sgd":
            optimizer = torch.optim.SGD(net.parameters(), lr=0.065, momentum=0.9, weight_decay=5e-4)
        else:
            optimizer = torch.optim.Adam(net.parameters(), lr=3.5e-4, weight_decay=5e-4)
        for step, (images, labels) in enumerate(data * EPOCHS):
            if cfg.solver.warmup_iters:  # mmcv's warm-up, not part of the repository
                optimizer.param_groups[0]["lr"] = cfg.solver.lr * (1 - (1 - step / 2000) * (1 - 0.01))
            optimizer.zero_grad()
            losses = made.forward_train(net.backbone(images).mean((2, 3)), labels)
            loss = losses["loss_ce"] + losses["loss_tri"]
            loss.backward()
            optimizer.step()
            seen.append((optimizer.param_groups[0]["lr"], loss.item()))
    number = len(made.neck) - 1
    start["head.classifier.weight"] = start.pop("head.weight")
    if number:  # its convolution has no bias, which the batch norm behind it would cancel
        start["head.neck.0.bias"] = torch.zeros(cfg.model.embedding_dim)
    names = {"branches_0_neck": f"head.neck.{number}", "branches_0_classifier": "head.classifier"}
    ours = model_with(cfg, start, patches(width), backbone="backbone", branches_0_fc="head.neck.0", **names)
    compare(f"{name}, from the maps on", train(cfg, ours, data), seen, 1e-7)
