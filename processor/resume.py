"""Going on with a run: its state from a checkpoint, where that goes with the settings and the data of today."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from config import Config
from config.config import option
from processor.checkpoint import LAST, MODEL, kept, load_weights, newest_valid
from solver import restore_optimizer
from utils.errors import UserError
from utils.logging import log

if TYPE_CHECKING:
    from processor.run import Run

TRAINING = ("criterion", "optimizers", "scaler", "rng")  # what a checkpoint holds that was not made for tests alone
PLACE = ("epoch", "step", "sums", "bad", "seconds", "history")  # how far it is
# Settings that may differ between a run and its continuation without a word.
FREE = {"resume", "device", "workers", "log_dir", "name", "log_every", "eval_first", "preset"}
FREE |= {"data_root", "cache_gb", "disk_gb", "cache_dir", "keep", "save_minutes", "bad_steps", "wandb"}
# What an epoch's batches follow from, beside the images.
BATCHES = ("sampler", "batch_size", "images_per_id", "seed", "accumulate")
# Settings that say what the optimizer keeps for which weight.
OPTIMIZER = ("optimizer", "backbone_lr_factor", "bias_lr_factor", "no_decay_norm_bias")


def restore(run: Run) -> None:
    """Go back to the state of last.pth, or of the one before where that is damaged; the damaged one is then renamed to
    last.damaged.pth, so that it takes nobody's place.

    Raises UserError where none can be read, or it belongs to another model, other data or another optimizer.
    """
    path, state = newest_valid(run.directory / LAST, (*MODEL, *TRAINING, *PLACE))
    restore_weights(run, path, state)
    run.scaler.load_state_dict(state["scaler"])
    if len(state["rng"]) == run.ranks.size:
        set_random_state(state["rng"][run.ranks.rank], run.device)
    else:
        log.warning("warning: resumed with %d processes, not %d as before", run.ranks.size, len(state["rng"]))
    for name in PLACE:
        setattr(run, name, state[name])
    tell_changes(run, state)
    if run.ranks.first:
        set_aside(run.directory, path)
    log.info("resumed %s after epoch %d and %d steps", path, run.epoch, run.step)


def restore_weights(run: Run, path: Path, state: dict[str, Any]) -> None:
    """Weights of the model, its average and the losses, and the moments of the optimizers. Raises UserError."""
    if state["labels"] != run.labels:
        raise UserError(f"{path} was trained on other identities than the data has now; resume with the same data")
    load_weights(run.model, state | {"model": state.get("training_model", state["model"])}, path, run.cfg)
    if run.average is not None:
        load_weights(run.average, state, path, run.cfg)
    stored = Config.from_dict(state["config"])
    for name in OPTIMIZER:
        if stored.get(name) != run.cfg.get(name):
            raise UserError(
                f"{path} was trained with {option(name)} {stored.get(name)}, not {run.cfg.get(name)}: "
                "the state of its optimizer goes with no other; leave the setting as it was"
            )
    try:
        run.criterion.load_state_dict(state["criterion"])
        for name, optimizer in run.optimizers.items():
            restore_optimizer(optimizer, state["optimizers"][name])
        groups = zip(run.optimizers["model"].param_groups, state["optimizers"]["model"]["param_groups"], strict=True)
        for group, before in groups:
            group["lr"] = before["lr"]  # each step sets it; but after the last one, the next checkpoint has it, too
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} has other losses or another optimizer than these settings; leave them as they were"
        ) from error


def tell_changes(run: Run, state: dict[str, Any]) -> None:
    """Warn of other settings and images than before; where the batches are others now, the epoch begins anew."""
    now, before = (json.loads(json.dumps(values)) for values in (run.cfg.to_dict(), state["config"]))
    changed = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if k not in FREE and before.get(k) != v]
    if changed:
        log.warning("warning: resumed with other settings than before: %s", ", ".join(changed))
    other_images = state.get("images", run.images) != run.images
    if other_images:
        log.warning("warning: the training images are not those of before")
    if run.step and (other_images or any(now[k] != before.get(k) for k in BATCHES)):
        log.warning("warning: epoch %d begins anew, as its batches are others now", run.epoch + 1)
        run.step, run.sums = 0, {}


def set_aside(directory: Path, path: Path) -> None:
    """Rename the checkpoints newer than `path`, which is the newest that could be read."""
    for damaged in kept(directory / LAST):
        if damaged == path:
            return
        aside = damaged.with_name(f"{damaged.stem}.damaged{damaged.suffix}")
        os.replace(damaged, aside)
        log.warning("warning: %s is now called %s", damaged, aside.name)


def seed_all(seed: int) -> None:
    """Start all random numbers that a checkpoint keeps the place of."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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
