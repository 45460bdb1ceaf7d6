"""The state of a training run, and what a checkpoint holds of it."""

import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import Config
from loss import Criterion
from model import ReIDModel
from processor.checkpoint import BEST, LAST, kept_checkpoints, save_checkpoint
from processor.precision import Scaler
from processor.ranks import Ranks
from processor.signals import StopSignals
from utils.files import write_atomically
from utils.logging import log

PROGRESS = ("epoch", "step", "sums", "bad", "seconds", "history")


@dataclass(frozen=True)
class Session:
    """Where and how a program trains, known before any data is read."""

    ranks: Ranks
    signals: StopSignals
    device: torch.device
    precision: str  # of training
    command: str = ""  # repeats the run


@dataclass
class TrainState:
    """A run between two steps."""

    cfg: Config
    session: Session
    directory: Path
    about: dict[str, Any]  # plain values stored with every checkpoint: command, notes, environment, labels, ...
    model: ReIDModel
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    scaler: Scaler
    average: ReIDModel | None  # moving average of the model's weights, with --ema-decay
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the current epoch
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)  # of the losses of these steps, and their number
    bad: int = 0  # consecutive steps with NaN or inf, up to the last one
    seconds: float = 0.0  # of training, in all sessions, without evaluation
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry per finished epoch
    test_seconds: float = 0.0  # of the latest evaluation in this session
    saved: tuple[int, int] = (0, 0)  # epoch and step of the last checkpoint, or where the session started
    saved_at: float = field(default_factory=time.perf_counter)  # when that was, and how many seconds it took
    save_seconds: float = 0.0

    @property
    def eval_model(self) -> ReIDModel:
        """The model that is evaluated, and that a checkpoint holds as `model`."""
        return self.model if self.average is None else self.average

    def summary(self) -> dict[str, Any]:
        """Return the plain values of a checkpoint."""
        return self.about | {name: getattr(self, name) for name in PROGRESS}

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values only, so that `torch.load(weights_only=True)` reads them. All processes must
        call it together."""
        training = {} if self.average is None else {"training_model": self.model.state_dict()}
        return training | self.summary() | {
            "model": self.eval_model.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizers": {"model": self.optimizer.state_dict()},
            "scaler": self.scaler.state_dict(),
            "rng": self.session.ranks.all_gather(random_state(self.session.device)),
            "config": self.cfg.to_dict(),
        }  # fmt: skip

    def save(self, best: bool = False) -> None:
        """Write last.pth (and best.pth), keep older ones, and write metrics.jsonl. All processes must call it together;
        the first one writes."""
        start = time.perf_counter()
        state, self.saved = self.state_dict(), (self.epoch, self.step)
        if not self.session.ranks.first:
            return
        if not self.directory.exists():
            log.warning("warning: %s is gone; it is created again, with this checkpoint", self.directory)
        if best:  # first: after a kill between the two, the evaluation that found it is repeated
            save_checkpoint(self.directory / BEST, state)
        if self.bad and self.epoch < self.cfg.solver.epochs and has_checkpoint(self.directory):
            return  # the weights may be diverging: keep the last good checkpoint until a step is finite again
        save_checkpoint(self.directory / LAST, state, self.cfg.loop.keep)
        self.write_history()
        self.saved_at = time.perf_counter()
        self.save_seconds = self.saved_at - start

    def write_history(self) -> None:
        """Write metrics.jsonl, one line per epoch."""
        lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
        write_atomically(self.directory / "metrics.jsonl", lambda temporary: temporary.write_text(lines))


def best_score(history: list[dict[str, Any]]) -> tuple[float, int]:
    """Return the highest plain mAP so far, and its epoch; -1 if there was no evaluation."""
    scores = [(h["scores"]["plain"]["mAP"], h["epoch"]) for h in history if "scores" in h]
    return max(scores, key=lambda pair: pair[0], default=(-1.0, 0))


def has_checkpoint(directory: Path) -> bool:
    """Whether a run has saved a checkpoint there."""
    return bool(kept_checkpoints(directory / LAST))


def seed_all(seed: int) -> None:
    """Seed all random generators whose state a checkpoint holds."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of all random generators, as plain values."""
    name, numbers, *position = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device).cpu() if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (name, numbers.tolist(), *position),
    }
