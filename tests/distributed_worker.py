"""What each process of tests/test_distributed.py does; and a program that compares the weights after some steps with
those of another number of processes, which is how SyncBatchNorm is checked where there is a GPU:

    python tests/distributed_worker.py FILE STEPS DTYPE [PRESET] [--setting value ...]
    torchrun --nproc-per-node=2 tests/distributed_worker.py FILE STEPS DTYPE [PRESET] [--setting value ...]

The first writes its weights to FILE, the second to FILE.json how far its own are from these. DTYPE is float64, where
nothing but mistakes can be seen, or float32. On a CPU, where batch norm cannot be synchronised, it rests.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from helpers import start_training
from torch import nn

import processor.setup
import processor.train
from config import Config
from config.cli import parse_train
from datasets.loaders import make_test_loaders
from datasets.make import make_test_set
from model import ReIDModel
from processor import do_train, load_model
from processor.distributed import DistributedRanks
from processor.evaluate import extract_features
from processor.ranks import ALONE, Ranks, init_distributed
from processor.state import TrainState
from processor.train import train_step
from solver import set_lr
from utils.errors import UserError, run
from utils.files import write_json

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("images_per_second", "data_wait")


def enter(rank: int, size: int, port: int, said: Path, work: Callable, args: tuple) -> None:
    """Be one of `size` processes as torchrun or srun would start it, with all that it says in the file `said`."""
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{size}", "LOCAL_RANK": f"{rank}", "LOCAL_WORLD_SIZE": f"{size}"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    file = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    os.dup2(file, 1), os.dup2(file, 2)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    run(lambda: work(rank, *args))


@contextlib.contextmanager
def fixed_batch_norm() -> Iterator[None]:
    """Batch norm by its running statistics, which stay as they are, in training too: the only kind on CPUs whose result
    does not depend on how a batch is shared out."""
    kind = nn.modules.batchnorm._BatchNorm
    kind.train = lambda self, mode=True: nn.Module.train(self, False)
    try:
        yield
    finally:
        del kind.train


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Models compute in float64: rounding differs with the number of images that are computed at a time, and after some
    steps it is all that one sees."""
    forward, make = ReIDModel.forward, processor.setup.make_model
    ReIDModel.forward = lambda self, images: forward(self, images.double())
    processor.setup.make_model = lambda *args: make(*args).double()
    try:
        yield
    finally:
        ReIDModel.forward, processor.setup.make_model = forward, make


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Training that comes to the same for any number of processes on CPUs."""
    with fixed_batch_norm(), in_float64():
        yield


def weights(run: TrainState) -> dict[str, torch.Tensor]:
    """All that training moves."""
    parts = {"model": run.model, "criterion": run.criterion} | ({"average": run.average} if run.average else {})
    return {f"{part}.{k}": v.cpu() for part, module in parts.items() for k, v in module.state_dict().items()}


def outcome(run: TrainState) -> tuple:
    """What is to be the same everywhere: weights, history but for times, label map."""
    return weights(run), [{k: v for k, v in h.items() if k not in TIMES} for h in run.history], run.about["labels"]


def together(rank: int, *work: tuple[Callable, tuple]) -> None:
    """Several things one after the other, by processes that meet only once."""
    with init_distributed(Config(device="cpu")):
        for function, args in work:
            function(rank, *args)


def train_all(rank: int, cfgs: list[Config], out: Path) -> None:
    """Train by each of the settings; each process's outcome to OUT/NAME.RANK.pt. All but the first have a log directory
    of their own, where they must leave nothing."""
    for cfg in cfgs:
        trained = do_train(cfg.replace(log_dir=f"{cfg.run.log_dir}.{rank}" if rank else cfg.run.log_dir))
        torch.save(outcome(trained), out / f"{cfg.run.name}.{rank}.pt")


def train_exactly(rank: int, cfgs: list[Config], out: Path) -> None:
    """The same, such that all numbers of processes must come to the same."""
    with exact():
        train_all(rank, cfgs, out)


def train_one_log(rank: int, cfgs: list[Config]) -> None:
    """Train by each of the settings, with one log directory for all, as a program has."""
    for cfg in cfgs:
        do_train(cfg)


def refusals(rank: int, attempts: dict[str, list[Config]], out: Path) -> None:
    """What this process says on each attempt to train by settings that each process has of its own: to OUT/RANK.json.
    None: it exits in silence. Where they go on with a run, only the first finds it."""
    said = {}
    if rank:
        processor.setup.has_checkpoint = lambda directory: False
    for name, cfgs in attempts.items():
        try:
            do_train(cfgs[rank])
            said[name] = "trained"
        except UserError as error:
            said[name] = str(error)
        except SystemExit as stop:
            assert stop.code == 2
            said[name] = None
    write_json(out / f"{rank}.json", said)


def extract(rank: int, cfgs: list[Config], checkpoint: Path, out: Path) -> None:
    """Features of query and gallery of each of the settings, with mirrored ones, to OUT/features.RANK.pt."""
    ranks, found = DistributedRanks(rank, dist.get_world_size()) if dist.is_initialized() else ALONE, []
    model, _ = load_model(checkpoint, "cpu")
    for cfg in cfgs:
        _, *loaders = make_test_loaders(cfg, make_test_set(cfg))
        found += [extract_features(cfg, model, loader, torch.device("cpu"), True, ranks) for loader in loaders]
    torch.save(found, out / f"features.{rank}.pt")


def exchange(rank: int, out: Path) -> None:
    """What becomes of tensors that processes send each other, to OUT/exchange.RANK.pt."""
    ranks = DistributedRanks(rank, dist.get_world_size())
    found = {"gradients": shared_gradients(ranks)}
    half = torch.full((2, 3), rank + 0.5, dtype=torch.bfloat16, requires_grad=True)
    rows = ranks.gather_batch(half)
    rows.sum().backward()
    found["half"] = (rows.detach(), half.grad)
    found["uneven"] = ranks.gather_rows(torch.arange(3.0 * rank).view(rank, 3) + 10 * rank)
    mixed = [torch.arange(6.0).view(2, 3).T + rank, torch.tensor(rank), torch.ones(2, 3, 1, 1) * rank]
    mixed[2] = mixed[2].to(memory_format=torch.channels_last)
    ranks.broadcast(mixed)
    found["copied"] = mixed
    found["mean"] = ranks.all_reduce_mean(torch.tensor([1.0, rank]))
    torch.save(found, out / f"exchange.{rank}.pt")


def shared_gradients(ranks: Ranks) -> dict[str, torch.Tensor]:
    """Gradients (float64) of a loss over a whole batch that mixes all its rows, of weights before and after the place
    where the rows are gathered, as training exchanges them."""
    images, first, second, labels = problem()
    first.requires_grad_(), second.requires_grad_()
    share = len(images) // ranks.size
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    features = ranks.gather_batch((images[mine] @ first).tanh())
    mixed_loss(features @ second, ranks.gather_batch(labels[mine])).backward()
    return {"before": ranks.all_reduce_mean(first.grad), "after": ranks.all_reduce_mean(second.grad)}


def problem() -> tuple[torch.Tensor, ...]:
    """Images (12, 5), weights (5, 4) and (4, 3), labels (12,)."""
    generator = torch.Generator().manual_seed(0)
    images, first, second = (
        torch.randn(*s, dtype=torch.float64, generator=generator) for s in ((12, 5), (5, 4), (4, 3))
    )
    return images, first, second, torch.arange(12) % 3


def mixed_loss(rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Depends on each pair of rows."""
    distance = (rows[:, None] - rows).square().sum(2)
    return torch.where(labels[:, None] == labels, distance, (-distance).exp()).logsumexp(1).mean()


def program(rank: int, *argv: str) -> None:
    """As `python argv...`."""
    sys.argv = list(argv)
    runpy.run_path(argv[0], run_name="__main__")


def disturbed(rank: int, cfg: Config, whom: int, step: int, number: int) -> None:
    """Train; in that step, counted from 1, one process gets a signal or, where its number is 0, finds a bad file."""
    real, steps = processor.train.set_lr, []

    def set_lr_and_disturb(*args):
        steps.append(args)
        if rank == whom and len(steps) == step:
            if number == 0:
                raise UserError("a file has gone")
            os.kill(os.getpid(), number)
        return real(*args)

    processor.train.set_lr = set_lr_and_disturb
    try:
        do_train(cfg)
    except SystemExit:
        assert (Path(cfg.run.log_dir) / cfg.run.name / "last.pth").exists(), "left before the first had saved"
        raise


def train_steps(cfg: Config, count: int) -> tuple[TrainState, dict[str, torch.Tensor], list[float]]:
    """A run after so many steps, its weights before them, and its losses."""
    state, network, data = start_training(cfg)
    before = {k: v.clone() for k, v in weights(state).items()}
    network.train(frozen=False)
    losses, steps = [], len(data.train)
    while len(losses) < count:
        epoch = len(losses) // steps
        for images, labels in data.train.epoch(epoch, state.session.device):
            if len(losses) < count:
                set_lr(cfg, state.optimizer, len(losses) / steps, steps)
                losses.append(train_step(state, network, images, labels)["loss"])
    return state, before, state.session.ranks.all_reduce_mean(torch.stack(losses)).tolist()


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> tuple[float, str]:
    """Of the two weights that are farthest apart: how far, and their name."""
    assert a.keys() == b.keys()
    return max(((a[k].double() - b[k].double()).abs().max().item(), k) for k in a if a[k].is_floating_point())


def main() -> None:
    file, steps, dtype, *args = sys.argv[1:]
    cfg = parse_train(args, os.environ)
    with contextlib.ExitStack() as patches:
        if cfg.run.device == "cpu" or not torch.cuda.is_available():
            patches.enter_context(fixed_batch_norm())
        if dtype == "float64":
            patches.enter_context(in_float64())
        ranks = patches.enter_context(init_distributed(cfg))
        trained, before, losses = train_steps(cfg, int(steps))
    after = weights(trained)
    if ranks.size == 1:
        torch.save((after, losses), file)
    elif ranks.first:
        alone, alone_losses = torch.load(file)
        far, name = difference(after, alone)
        found = {"processes": ranks.size, "steps": len(losses), "dtype": dtype, "difference": far, "of": name}
        found |= {"moved": difference(after, before)[0], "loss": losses[-1]}
        found["loss_difference"] = max(abs(a - b) for a, b in zip(losses, alone_losses, strict=True))
        layers = sum(isinstance(m, nn.SyncBatchNorm) for m in trained.model.modules())
        about = {"synchronised_layers": layers, "backbone": cfg.model.backbone, "batch_size": cfg.data.batch_size}
        write_json(f"{file}.json", found | about | trained.about["environment"])
        print(json.dumps(found | about))


if __name__ == "__main__":
    run(main)
