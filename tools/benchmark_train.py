"""The task `train` of tools/benchmark.py: images a second of the training loop, from image files to moved weights.

`matmul` is the bare matrix product, the most that the device can do. `classic` is the usual loop; `ours` is
processor/train.py with the settings that it chooses for the device; the others are ours with one of them changed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from config import Config
from datasets.augment import normalise
from datasets.base import label_map
from datasets.loaders import TrainLoader
from datasets.make import make_dataset
from datasets.sampler import PKSampler
from model import find_backbone, make_model
from processor.environment import pick_device
from processor.precision import autocast, resolve_precision
from processor.setup import run_directory, start_session, start_state, training_criterion, training_data, training_model
from processor.state import TrainState
from processor.train import Network, train_one_epoch
from processor.watch import Watchers
from solver import make_optimizer
from tools import baseline_data, baseline_train
from tools.benchmark_speed import Speed, Stopwatch
from tools.benchmark_task import memory
from utils.errors import UserError

TOLERANCE = 0.1  # of the first batch's loss, as a share; bf16 changes it by 3 % at 32 × 16, by 0.6 % at 128 × 64


def classic(cfg: Config, device: torch.device, watch: Stopwatch, steps: int) -> float:
    """The usual loop. Gives the loss of the first batch before any step, without augmentation."""
    torch.backends.cudnn.benchmark = True
    samples = make_dataset(cfg).train
    of_pid = label_map(samples)
    labels, paths = [of_pid[s.pid] for s in samples], [s.path for s in samples]
    torch.manual_seed(cfg.run.seed)
    model = make_model(cfg, len(of_pid)).to(device)
    losses = baseline_train.Losses(cfg, len(of_pid), *model.feature_dims).to(device)
    sampler = PKSampler(labels, cfg.data.batch_size, cfg.data.images_per_id, cfg.run.seed)
    first = next(sampler.epoch(0))
    images = baseline_data.load(
        [paths[i] for i in first], baseline_data.plain_transform(cfg.data.height, cfg.data.width)
    )
    loss = baseline_train.loss_of(model, losses, images.to(device), torch.tensor(labels)[first].to(device))
    pictures = baseline_train.Pictures(paths, labels, baseline_data.training_transform(cfg.data.height, cfg.data.width))
    batches = baseline_train.batches(pictures, endless(sampler.epoch), cfg.data.workers)
    baseline_train.train(cfg, model, losses, watch.over(itertools.islice(batches, steps)), device)
    return loss


def ours(cfg: Config, device: torch.device, watch: Stopwatch, steps: int) -> float:
    """An epoch of the real loop, of so many steps. Gives the loss of the first batch likewise."""
    with start_session(cfg) as session:
        data = training_data(cfg, session)
        model = training_model(cfg, session, data)
        criterion, optimizer = training_criterion(cfg, session, data, model), make_optimizer(cfg, model)
        with run_directory(cfg) as directory:
            state = start_state(cfg, session, directory, data, model, criterion, optimizer)
            loss = first_loss(state, data.train)
            with contextlib.closing(Watchers(state)) as watchers:
                train_one_epoch(state, Network(state), Watched(data.train, watch, steps), watchers)
    return loss


def changed(**changes: Any) -> Callable[[Config, torch.device, Stopwatch, int], float]:
    return lambda cfg, device, watch, steps: ours(cfg.replace(**changes), device, watch, steps)


def first_loss(state: TrainState, loader: TrainLoader) -> float:
    """Of the first batch before any step, without augmentation."""
    first, device = next(loader.sampler.epoch(0)), state.session.device
    state.model.train()
    with torch.no_grad():
        with autocast(device, state.session.precision):
            logits, features = state.model(normalise(loader.images.read(first).to(device)))
        return state.criterion(logits, features, loader.labels[first].to(device))[0].item()


class Watched:
    """A training loader whose batches are counted, in an epoch of so many steps."""

    def __init__(self, loader: TrainLoader, watch: Stopwatch, steps: int):
        self.loader, self.watch, self.steps, self.files = loader, watch, steps, loader.files

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, device: torch.device, first_step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batches = endless(lambda number: self.loader.epoch(number, device))
        return self.watch.over(itertools.islice(batches, self.steps))


def endless(epoch: Callable[[int], Iterator]) -> Iterator:
    """The batches of one epoch after another."""
    return itertools.chain.from_iterable(map(epoch, itertools.count()))


@dataclass
class Train(Speed):
    """The training loop."""

    backbone: str = "resnet50"  # as for train.py; with random weights
    height: int = 256  # of an image, in pixels
    width: int = 128  # of an image, in pixels
    batch_size: int = 64  # images a batch, 4 of each identity
    warmup: int = 10  # steps at first that do not count: compilation, choice of kernels, cold caches
    steps: int = 30  # steps of a pass
    passes: int = 3  # of each contender, of which the fastest counts
    task: ClassVar[str] = "train"
    contenders: ClassVar[dict[str, Callable]] = {
        "matmul": Speed.bare_product,
        "classic": classic,
        "ours": ours,
        "float32": changed(precision="float32"),
        "bf16": changed(precision="bf16"),
        "contiguous": changed(channels_last=False),
        "unfused": changed(fused=False),
        "compiled": changed(compile=True),
    }
    products: ClassVar[int] = 3  # forward, and backward to the input and to the weights

    def config(self, scratch: Path) -> Config:
        """The usual settings with a test set of one identity, as no test is made."""
        where = {"dataset": self.dataset, "data_root": self.data_root, "log_dir": str(scratch), "test_ids": 1}
        size = {"height": self.height, "width": self.width, "batch_size": self.batch_size}
        how = {"backbone": self.backbone, "weights": "none", "device": self.device, "workers": self.workers}
        return Config(**where, **size, **how, ranked_lists=0)

    def check(self) -> None:
        super().check()
        self.check_at_least_1("passes")
        find_backbone(self.backbone)
        cfg = self.config(Path()).check()
        samples = self.found(lambda: make_dataset(cfg)).train
        PKSampler([s.pid for s in samples], cfg.data.batch_size, cfg.data.images_per_id)

    def describe(self) -> str:
        return (
            f"train, {self.backbone}, {self.dataset}: {self.height} × {self.width}, batches of {self.batch_size}, "
            f"{self.passes} × {self.steps} steps"
        )

    def reason_not_to_run(self, contender: str) -> str:
        if contender == resolve_precision(Config(), torch.device(self.device)):
            return f"as ours is in {contender} here"
        return "on GPUs only" if contender == "compiled" and self.device == "cpu" else ""

    def measure(self, contender: str, scratch: Path) -> dict:
        """Seconds of the fastest pass, memory, and the loss of the first batch."""
        cfg, device = self.config(scratch), pick_device(self.device)
        if contender == "matmul":
            return {"contender": contender, **self.bare_product(cfg, device)}
        watch = Stopwatch(device, self.warmup, self.steps)
        loss = self.contenders[contender](cfg, device, watch, self.warmup + self.passes * self.steps)
        return {"contender": contender, **watch.fastest(), "peak_mb": memory(device)[1], "loss": loss}

    def compare(self, rows: list[dict]) -> dict[str, float]:
        """By what share of it each loss of the first batch differs from classic's."""
        losses = {row["contender"]: row["loss"] for row in rows if "loss" in row}
        if "classic" not in losses:
            print("losses not compared: that takes classic")
            return {}
        expected = losses.pop("classic")
        apart = {name: abs(loss - expected) / expected for name, loss in losses.items()}
        print(f"first loss {expected:.4f} of classic; off by " + ", ".join(f"{n} {x:.2%}" for n, x in apart.items()))
        for name, share in apart.items():
            if not share <= TOLERANCE:
                raise UserError(f"the first loss of {name} is {share:.1%} off that of classic: one of them is wrong")
        return apart

    def file_name(self) -> str:
        """Task, dataset, backbone and device; size and batch where they are not the default."""
        values = {f"{self.height}x{self.width}": "256x128", f"b{self.batch_size}": "b64"}
        odd = [value for value, default in values.items() if value != default]
        names = (Path(self.dataset).name, self.backbone.replace("/", "_"), self.device)
        return "_".join(["benchmark", self.task, *names, *odd]) + ".json"
