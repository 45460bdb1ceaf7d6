"""The state of a training run: what a checkpoint holds, and how a resumed run gets it back."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import Config
from config.config import option
from loss import Criterion
from model import ReIDModel
from processor.checkpoint import (
    BEST,
    LAST,
    MODEL,
    kept_checkpoints,
    load_weights,
    newest_valid,
    save_checkpoint,
    stored_config,
)
from processor.distributed import Ranks, all_gather
from processor.precision import Scaler
from processor.signals import StopSignals
from solver import restore_optimizer
from utils.errors import UserError
from utils.files import write_atomically
from utils.logging import log

TRAINING = ("criterion", "optimizers", "scaler", "rng")  # keys that a checkpoint needs to be resumed
PROGRESS = ("epoch", "step", "sums", "bad", "seconds", "history")
# Settings that may change when a run is resumed, without a warning.
FREE_SETTINGS = {"resume", "device", "workers", "log_dir", "name", "log_every", "eval_first", "preset"}
FREE_SETTINGS |= {"data_root", "cache_gb", "disk_gb", "cache_dir", "keep", "save_minutes", "bad_steps", "wandb"}
# Settings that determine the batches of an epoch, together with the images.
BATCH_SETTINGS = ("sampler", "batch_size", "images_per_id", "seed", "accumulate")
# Settings that determine what the optimizer stores for each weight.
OPTIMIZER_SETTINGS = ("optimizer", "backbone_lr_factor", "bias_lr_factor", "no_decay_norm_bias")


@dataclass(frozen=True)
class Session:
    """Where and how a program trains, known before any data is read."""

    ranks: Ranks
    signals: StopSignals
    device: torch.device
    precision: str  # of training
    numerics: str  # precision and torch's switches, as a sentence for the log
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

    @property
    def eval_model(self) -> ReIDModel:
        """The model that is evaluated, and that a checkpoint holds as `model`."""
        return self.model if self.average is None else self.average

    @property
    def best(self) -> float:
        """Highest plain mAP so far."""
        return max((h["scores"]["plain"]["mAP"] for h in self.history if "scores" in h), default=-1.0)

    def summary(self) -> dict[str, Any]:
        """The plain values of a checkpoint."""
        return self.about | {name: getattr(self, name) for name in PROGRESS}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that `torch.load(weights_only=True)` reads them. All processes must call it
        together."""
        training = {} if self.average is None else {"training_model": self.model.state_dict()}
        return training | self.summary() | {
            "model": self.eval_model.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizers": {"model": self.optimizer.state_dict()},
            "scaler": self.scaler.state_dict(),
            "rng": all_gather(self.session.ranks, random_state(self.session.device)),
            "config": self.cfg.to_dict(),
        }  # fmt: skip

    def save(self, best: bool = False) -> None:
        """Write last.pth (and best.pth), keep older ones, and write metrics.jsonl. All processes must call it together;
        the first one writes."""
        state = self.state_dict()
        if not self.session.ranks.first:
            return
        if not self.directory.exists():
            log.warning("warning: %s is gone; it is created again, with this checkpoint", self.directory)
        if best:  # first: after a kill between the two, the evaluation that found it is repeated
            save_checkpoint(self.directory / BEST, state)
        save_checkpoint(self.directory / LAST, state, self.cfg.loop.keep)
        self.write_history()

    def write_history(self) -> None:
        """metrics.jsonl: one line per epoch."""
        lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
        write_atomically(self.directory / "metrics.jsonl", lambda temporary: temporary.write_text(lines))


def has_checkpoint(directory: Path) -> bool:
    """Whether a run has saved a checkpoint there."""
    return bool(kept_checkpoints(directory / LAST))


def restore(state: TrainState) -> None:
    """Load last.pth, or the one before if it is damaged; the damaged one is renamed to last.damaged.pth, so that it is
    not counted among the kept ones.

    Raises UserError if none can be read, or if it is of another model, other data or another optimizer.
    """
    ranks, device = state.session.ranks, state.session.device
    path, stored = newest_valid(state.directory / LAST, (*MODEL, *TRAINING, *PROGRESS))
    restore_weights(state, path, stored)
    state.scaler.load_state_dict(stored["scaler"])
    if len(stored["rng"]) == ranks.size:
        set_random_state(stored["rng"][ranks.rank], device)
    else:
        log.warning("warning: resumed with %d processes, not %d as before", ranks.size, len(stored["rng"]))
    for name in PROGRESS:
        setattr(state, name, stored[name])
    log_changes(state, stored)
    if ranks.first:
        rename_damaged(state.directory, path)
    log.info("resumed %s after epoch %d and %d steps", path, state.epoch, state.step)


def restore_weights(state: TrainState, path: Path, stored: dict[str, Any]) -> None:
    """Weights of the model, its average and the losses, and the optimizer's state. Raises UserError."""
    if stored["labels"] != state.about["labels"]:
        raise UserError(f"{path} was trained on other identities than the data has now; resume with the same data")
    load_weights(state.model, stored | {"model": stored.get("training_model", stored["model"])}, path, state.cfg)
    if state.average is not None:
        load_weights(state.average, stored, path, state.cfg)
    before = stored_config(stored, path)
    for name in OPTIMIZER_SETTINGS:
        if before.get(name) != state.cfg.get(name):
            raise UserError(
                f"{path} was trained with {option(name)} {before.get(name)}, not {state.cfg.get(name)}, and the state "
                "of its optimizer fits no other; leave the setting as it was"
            )
    try:
        state.criterion.load_state_dict(stored["criterion"])
        optimizer = stored["optimizers"]["model"]  # older checkpoints also have one of the centers, without any state
        restore_optimizer(state.optimizer, optimizer)
        for group, stored_group in zip(state.optimizer.param_groups, optimizer["param_groups"], strict=True):
            group["lr"] = stored_group["lr"]  # set at each step, but a run that is resumed after its end takes none
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} has other losses or another optimizer than these settings; leave them as they were"
        ) from error


def log_changes(state: TrainState, stored: dict[str, Any]) -> None:
    """Warn of settings and images that have changed; if the batches have, the epoch starts again."""
    now, before = (json.loads(json.dumps(values)) for values in (state.cfg.to_dict(), stored["config"]))
    changed = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if k not in FREE_SETTINGS and before.get(k) != v]
    if changed:
        log.warning("warning: resumed with changed settings: %s", ", ".join(changed))
    other_images = stored.get("images", state.about["images"]) != state.about["images"]
    if other_images:
        log.warning("warning: the training images have changed")
    if state.step and (other_images or any(now[k] != before.get(k) for k in BATCH_SETTINGS)):
        log.warning("warning: epoch %d starts again, as its batches have changed", state.epoch + 1)
        state.step, state.sums = 0, {}


def rename_damaged(directory: Path, path: Path) -> None:
    """Rename the checkpoints newer than `path`, which is the newest that could be read."""
    for damaged in kept_checkpoints(directory / LAST):
        if damaged == path:
            return
        renamed = damaged.with_name(f"{damaged.stem}.damaged{damaged.suffix}")
        os.replace(damaged, renamed)
        log.warning("warning: %s is renamed to %s", damaged, renamed.name)


def seed_all(seed: int) -> None:
    """Seed all random generators whose state a checkpoint holds."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of all random generators, as plain values."""
    name, numbers, *position = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device).cpu() if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (name, numbers.tolist(), *position),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
