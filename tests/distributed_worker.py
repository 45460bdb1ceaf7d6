"""What each process of tests/test_distributed.py does."""

import contextlib
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import stop_at
from torch import nn

import processor.distributed
import processor.setup
import processor.train
from config import Config
from datasets.loaders import make_test_loaders
from datasets.make import make_test_set
from model import ReIDModel
from processor import do_train, load_model
from processor.distributed import DistributedRanks, Waits
from processor.evaluate import extract_features
from processor.ranks import ALONE, init_distributed
from processor.signals import StopSignals
from processor.state import TrainState
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
def exact() -> Iterator[None]:
    """Training that comes to the same for any number of processes on CPUs.

    Batch norm by its running statistics, which stay as they are, in training too: no other kind on CPUs is independent
    of how a batch is shared out. In float64: rounding differs with the number of images that are computed at a time,
    and after some steps it is all that one sees.
    """
    forward, make = ReIDModel.forward, processor.setup.make_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.modules.batchnorm._BatchNorm, "train", lambda self, mode=True: nn.Module.train(self, False))
        patch.setattr(ReIDModel, "forward", lambda self, images: forward(self, images.double()))
        patch.setattr(processor.setup, "make_model", lambda *args: make(*args).double())
        yield


def outcome(run: TrainState) -> tuple:
    """What is to be the same everywhere: all that training moves, the history but for times, the label map."""
    parts = {"model": run.model, "criterion": run.criterion} | ({"average": run.average} if run.average else {})
    weights = {f"{part}.{k}": v.cpu() for part, module in parts.items() for k, v in module.state_dict().items()}
    return weights, [{k: v for k, v in h.items() if k not in TIMES} for h in run.history], run.about["labels"]


def together(rank: int, *work: tuple[Callable, tuple]) -> None:
    """Several things one after the other, by processes that meet only once."""
    with init_distributed(Config(device="cpu")):
        for function, args in work:
            function(rank, *args)


def train_all(rank: int, cfgs: list[Config], out: Path) -> None:
    """Train by each of the settings; each process's outcome to OUT/NAME.RANK.pt. All but the first have a log directory
    of their own, where they must leave nothing."""
    with exact():
        for cfg in cfgs:
            trained = do_train(cfg.replace(log_dir=f"{cfg.run.log_dir}.{rank}" if rank else cfg.run.log_dir))
            torch.save(outcome(trained), out / f"{cfg.run.name}.{rank}.pt")


def train_one_log(rank: int, cfgs: list[Config]) -> None:
    """Train by each of the settings, with one log directory for all, as a program has."""
    for cfg in cfgs:
        do_train(cfg)


def refusals(rank: int, attempts: list[list[Config]], out: Path) -> None:
    """What this process says on each attempt to train by settings that each process has of its own: to OUT/RANK.json.
    None: it exits in silence. Where they go on with a run, only the first finds it."""
    said = []
    if rank:
        processor.setup.has_checkpoint = lambda directory: False
    for cfgs in attempts:
        try:
            do_train(cfgs[rank])
            said.append("trained")
        except UserError as error:
            said.append(str(error))
        except SystemExit as stop:
            assert stop.code == 2
            said.append(None)
    write_json(out / f"{rank}.json", said)


def extract(rank: int, cfgs: list[Config], checkpoint: Path, out: Path) -> None:
    """Features of query and gallery of each of the settings, with mirrored ones, to OUT/features.RANK.pt."""
    ranks, found = DistributedRanks(rank, dist.get_world_size()) if dist.is_initialized() else ALONE, []
    model, _ = load_model(checkpoint, "cpu")
    for cfg in cfgs:
        _, *loaders = make_test_loaders(cfg, make_test_set(cfg))
        found += [extract_features(cfg, model, loader, torch.device("cpu"), True, ranks) for loader in loaders]
    torch.save(found, out / f"features.{rank}.pt")


def program(rank: int, *argv: str) -> None:
    """As `python argv...`."""
    sys.argv = list(argv)
    runpy.run_path(argv[0], run_name="__main__")


def wait_for_a_sleeper(rank: int, number: int) -> None:
    """The first process waits for the second, which sleeps, and gets the signal."""
    processor.distributed.SAY_AFTER, processor.distributed.END_AFTER = 0.5, 1
    with StopSignals() as signals, init_distributed(Config(device="cpu")) as ranks, signals.held():
        ranks.all_gather(None)
        if rank == 1:
            time.sleep(5)
        else:
            threading.Timer(1, os.kill, (os.getpid(), number)).start()
        ranks.all_gather(None)


def leave_a_child(_rank: int, file: Path) -> None:
    """Die without a word and leave a process that waits for others, as torchrun does when it is killed."""
    child = os.fork()
    if child == 0:
        with Waits():
            time.sleep(60)
    file.write_text(str(child))
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def disturbed(rank: int, cfg: Config, whom: int, step: int, number: int) -> None:
    """Train; in that step, counted from 1, one process gets a signal or, where its number is 0, finds a bad file."""

    def disturb() -> None:
        if number == 0:
            raise UserError("a file has gone")
        os.kill(os.getpid(), number)

    if rank == whom:
        stop_at(pytest.MonkeyPatch(), "set_lr", step, disturb)
    try:
        do_train(cfg)
    except SystemExit:
        assert (Path(cfg.run.log_dir) / cfg.run.name / "last.pth").exists(), "left before the first had saved"
        raise
