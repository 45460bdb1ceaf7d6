"""One training run: its directory, its state, and the signals that may stop it."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from config import Config
from datasets.make import short_name, train_names
from loss import Criterion
from model import ReIDModel
from processor.batchnorm import FiniteStatistics
from processor.checkpoint import BEST, LAST, kept, save_checkpoint
from processor.distributed import ALONE, Ranks, of_all
from processor.environment import describe_environment
from processor.numerics import Scaler
from processor.parallel import in_parallel
from processor.resume import random_state
from processor.watch import Watchers
from solver import set_frozen
from utils.errors import Stopped, UserError
from utils.files import write_atomically
from utils.logging import log


@dataclass
class Run:
    """What a checkpoint holds and a resumed run needs."""

    cfg: Config
    directory: Path
    device: torch.device
    model: ReIDModel
    criterion: Criterion
    optimizers: dict[str, torch.optim.Optimizer]
    labels: dict[int, int]
    scaler: Scaler
    precision: str = "float32"  # that training computes in
    ranks: Ranks = ALONE
    command: str = ""
    note: str = ""  # what its scores must be read with
    train_note: str = ""  # the part of it that goes with the model, whatever it is tested on
    images: str = ""  # fingerprint of the training images
    environment: dict[str, str] = field(default_factory=dict)  # filled in from the device
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch after these
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)  # of finite losses over these, and their number
    bad: int = 0  # losses in a row, up to the last one, that were not finite
    seconds: float = 0.0  # spent on training, all sessions together, tests left out
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry a finished epoch
    average: ReIDModel | None = None  # of the model's weights over the last steps, with --ema-decay
    watchers: Watchers | None = None  # in the process that writes
    network: nn.Module | None = None  # the model as training calls it: compiled, its gradients shared
    frozen: bool | None = None  # whether the network was made for a backbone that is not trained
    statistics: FiniteStatistics | None = None  # batch norm's, of the model

    def __post_init__(self):
        self.environment = self.environment or describe_environment(self.device, self.ranks.size)

    def training_mode(self, frozen: bool) -> None:
        """The model ready for a step, its backbone only if that is not frozen."""
        set_frozen(self.model, self.optimizers["model"], frozen)
        self.statistics = FiniteStatistics(self.model)
        if self.network is None or frozen != self.frozen:
            self.network, self.frozen = in_parallel(self.ranks, self.model, self.criterion, self.device), frozen
            if self.cfg.loop.compile:
                self.network = torch.compile(self.network)

    @property
    def tested(self) -> ReIDModel:
        """The model that is scored, and that others take from a checkpoint."""
        return self.model if self.average is None else self.average

    @property
    def best(self) -> float:
        """Highest plain mAP so far."""
        return max((h["scores"]["plain"]["mAP"] for h in self.history if "scores" in h), default=-1.0)

    def summary(self) -> dict[str, Any]:
        """The plain values of a checkpoint: what was run, where, how far it is and what came out."""
        names = ("command", "note", "train_note", "images", "environment", "epoch", "step", "sums", "bad", "seconds")
        return {name: getattr(self, name) for name in (*names, "history")}

    def state(self) -> dict[str, Any]:
        """Tensors and plain values only, so that `torch.load(weights_only=True)` reads it. All processes must call it
        together."""
        training = {} if self.average is None else {"training_model": self.model.state_dict()}
        return (
            training
            | self.summary()
            | {
                "model": self.tested.state_dict(),
                "criterion": self.criterion.state_dict(),
                "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
                "scaler": self.scaler.state_dict(),
                "rng": of_all(self.ranks, random_state(self.device)),
                "config": self.cfg.to_dict(),
                "labels": self.labels,
            }
        )

    def save(self, best: bool = False) -> None:
        """Write last.pth (and best.pth), and metrics.jsonl to match; those before last.pth are kept as the settings
        say. All processes must call it together; the first one writes."""
        state = self.state()
        if not self.ranks.first:
            return
        if not self.directory.exists():
            log.warning("warning: %s is gone; it is made anew, with this checkpoint in it", self.directory)
        if best:  # first, as a kill between the two then has the test that found it repeated
            save_checkpoint(self.directory / BEST, state)
        save_checkpoint(self.directory / LAST, state, self.cfg.loop.keep)
        self.write_history()

    def write_history(self) -> None:
        """metrics.jsonl: a line an epoch, as a checkpoint has them."""
        lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
        write_atomically(self.directory / "metrics.jsonl", lambda temporary: temporary.write_text(lines))


def taken(directory: Path) -> bool:
    """Whether a run has left a checkpoint there."""
    return bool(kept(directory / LAST))


def run_directory(cfg: Config, at_end: contextlib.ExitStack | None = None) -> Path:
    """LOG_DIR/NAME, or NAME-2, NAME-3, ... where that is taken; with `resume` the newest of them.

    Makes it. With `at_end`, other programs are kept from training there until that closes. Raises UserError when it
    cannot be written to, or another program trains there that `resume` would go on with.
    """
    base, name = Path(cfg.run.log_dir), cfg.run.name or cfg.run.preset or "+".join(map(short_name, train_names(cfg)))
    places = (base / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    if not cfg.run.resume:
        return next(place for place in places if not taken(place) and prepared(place, at_end))
    runs = list(itertools.takewhile(taken, places)) or [base / name]
    if not prepared(runs[-1], at_end):
        raise UserError(f"another program is training in {runs[-1]}; wait until it has ended, or stop it, to --resume")
    if not taken(runs[-1]):
        log.info("nothing to resume in %s: this run starts anew", runs[-1])
    return runs[-1]


def prepared(directory: Path, at_end: contextlib.ExitStack | None) -> bool:
    """Make a run's directory, claim it, and remove what a killed run left half written; False where another program
    has claimed it. Raises UserError when it cannot be written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if at_end is not None and not claimed(directory, at_end):
            return False
        for half in directory.glob(".*.tmp"):
            half.unlink()
        probe = directory / ".probe.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{directory} cannot be written to ({error.strerror}); choose a place with --log-dir"
        ) from error
    return True


def claimed(directory: Path, at_end: contextlib.ExitStack) -> bool:
    """Keep other programs from training there until `at_end` closes or this program dies; False where one does."""
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except NotImplementedError:  # a file system without locks
        return True
    at_end.callback(lock.release)
    return True


class StopSignals:
    """Ctrl-C, SIGTERM and SIGUSR1 (a cluster's warning), held back while a step is under way so that its state can be
    saved.

    A signal ends the `with` block at once, and that raises Stopped; except in a `held` block: there `requested` tells,
    and only a second one does so.
    """

    def __init__(self):
        self.hold = False
        self.requested = 0

    def __enter__(self) -> StopSignals:
        self.before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, _kind, error: BaseException | None, _traceback) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if isinstance(error, KeyboardInterrupt) and self.requested:
            sentence = "stopped; --resume goes on from the last checkpoint, if there is one"
            raise Stopped(sentence, 128 + self.requested) from None

    @contextlib.contextmanager
    def held(self):
        """Signals wait until `requested` is looked at inside this block."""
        self.hold = True
        try:
            yield
        finally:
            self.hold = False

    def _handle(self, number: int, _frame) -> None:
        at_once = self.requested or not self.hold
        self.requested = number
        if at_once:
            raise KeyboardInterrupt  # no Exception, which torch's load_state_dict takes for a mistake in the weights
