"""One training run: its directory, its state, and the signals that may stop it."""

from __future__ import annotations

import contextlib
import json
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from config import Config
from config.config import dashed
from datasets.make import short_name, train_names
from loss import Criterion
from model import ReIDModel
from processor.checkpoint import BEST, LAST, load_weights, newest_valid, older, save_checkpoint
from processor.distributed import ALONE, Ranks, in_parallel, of_all
from processor.environment import describe_environment
from processor.numerics import Scaler
from processor.watch import Watchers
from solver import restore_optimizer, set_frozen
from utils.errors import Stopped, UserError
from utils.files import write_atomically
from utils.logging import log

# Settings that may differ between a run and its continuation without a word.
FREE = {"resume", "device", "workers", "log_dir", "name", "log_every", "eval_first", "preset"}
FREE |= {"data_root", "cache_gb", "disk_gb", "cache_dir", "keep", "save_minutes", "bad_steps", "wandb"}
BATCHES = (
    "sampler",
    "batch_size",
    "images_per_id",
    "seed",
    "accumulate",
)  # what an epoch's batches follow from, beside the images
# Settings that say what the optimizer keeps for which weight.
OPTIMIZER = ("optimizer", "backbone_lr_factor", "bias_lr_factor", "no_decay_norm_bias")


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

    def __post_init__(self):
        self.environment = self.environment or describe_environment(self.device, self.ranks.size)

    def training_mode(self, frozen: bool) -> None:
        """The model ready for a step, its backbone only if that is not frozen."""
        set_frozen(self.model, self.optimizers["model"], frozen)
        if self.network is None or frozen != self.frozen:
            self.network, self.frozen = in_parallel(self.ranks, self.model, self.device), frozen
            if self.cfg.compile:
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
        save_checkpoint(self.directory / LAST, state, self.cfg.keep)
        if best:
            save_checkpoint(self.directory / BEST, state)
        lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
        write_atomically(self.directory / "metrics.jsonl", lambda temporary: temporary.write_text(lines))

    def restore(self) -> None:
        """Go back to the state of last.pth, or of the one before where that is damaged. Raises UserError when it
        belongs to another model or other data."""
        path, state = newest_valid(self.directory / LAST)
        if state["labels"] != self.labels:
            raise UserError(f"{path} was trained on other identities than the data has now; resume with the same data")
        load_weights(self.model, state | {"model": state.get("training_model", state["model"])}, path, self.cfg)
        if self.average is not None:
            load_weights(self.average, state, path, self.cfg)
        stored = Config.from_dict(state["config"])
        for name in OPTIMIZER:
            if getattr(stored, name) != getattr(self.cfg, name):
                raise UserError(
                    f"{path} was trained with --{dashed(name)} {getattr(stored, name)}, not {getattr(self.cfg, name)}: "
                    "the state of its optimizer goes with no other; leave the setting as it was"
                )
        try:
            self.criterion.load_state_dict(state["criterion"])
            for name, optimizer in self.optimizers.items():
                restore_optimizer(optimizer, state["optimizers"][name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{path} has other losses or another optimizer than these settings; leave them as they were"
            ) from error
        self.scaler.load_state_dict(state["scaler"])
        if len(state["rng"]) == self.ranks.size:
            set_random_state(state["rng"][self.ranks.rank], self.device)
        else:
            log.warning("warning: resumed with %d processes, not %d as before", self.ranks.size, len(state["rng"]))
        for name in ("epoch", "step", "sums", "bad", "seconds", "history"):
            setattr(self, name, state[name])
        now = json.loads(json.dumps(self.cfg.to_dict()))
        before = json.loads(json.dumps(state["config"]))
        changed = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if k not in FREE and before.get(k) != v]
        if changed:
            log.warning("warning: resumed with other settings than before: %s", ", ".join(changed))
        other_images = state.get("images", self.images) != self.images
        if other_images:
            log.warning("warning: the training images are not those of before")
        if self.step and (other_images or any(now[k] != before.get(k) for k in BATCHES)):
            log.warning("warning: epoch %d begins anew, as its batches are others now", self.epoch + 1)
            self.step, self.sums = 0, {}
        log.info("resumed %s after epoch %d and %d steps", path, self.epoch, self.step)


def random_state(device: torch.device) -> dict[str, Any]:
    """Where all random numbers stand, as plain values."""
    name, numbers, *place = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device).cpu() if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (name, numbers.tolist(), *place),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go back to what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))


def taken(directory: Path) -> bool:
    """Whether a run has left a checkpoint there; a kill between two renames may leave only the older one."""
    return any(older(directory / LAST, number).exists() for number in (0, 1))


def run_directory(cfg: Config) -> Path:
    """LOG_DIR/NAME, or NAME-2, NAME-3, ... where that is taken; with `resume` the newest of them.

    Makes it. Raises UserError when it cannot be written to.
    """
    base, name = Path(cfg.log_dir), cfg.name or cfg.preset or "+".join(map(short_name, train_names(cfg)))
    wanted = base / name
    for number in range(2, 10000):
        following = base / f"{name}-{number}"
        if not taken(wanted) or (cfg.resume and not taken(following)):
            break
        wanted = following
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        probe = wanted / ".probe.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{wanted} cannot be written to ({error.strerror}); choose a place with --log-dir") from error
    if cfg.resume and not taken(wanted):
        log.info("nothing to resume in %s: this run starts anew", wanted)
    return wanted


class StopSignals:
    """Ctrl-C, SIGTERM and SIGUSR1 (a cluster's warning), held back while a step is under way so that its state can be
    saved.

    Inside `with`, a signal raises Stopped at once, except in a `held` block: there `requested` tells, and only a
    second one raises.
    """

    def __init__(self):
        self.hold = False
        self.requested = 0

    def __enter__(self) -> StopSignals:
        self.before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, *_exc) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self):
        """Signals wait for `check` inside this block."""
        self.hold = True
        try:
            yield
        finally:
            self.hold = False

    def _handle(self, number: int, _frame) -> None:
        if self.hold and not self.requested:
            self.requested = number
        else:
            raise Stopped("stopped; --resume goes on from the last checkpoint, if there is one", 128 + number)

    def check(self, message: str) -> None:
        """Raise Stopped if a signal came."""
        if self.requested:
            raise Stopped(message, 128 + self.requested)
