"""Resume a run: load its last checkpoint into the state of training."""

import json
import os
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config.config import option
from processor.checkpoint import LAST, MODEL, kept_checkpoints, load_weights, read_dict, stored_config
from processor.state import PROGRESS, TrainState
from utils.errors import UserError
from utils.files import reading
from utils.logging import log

TRAINING = ("criterion", "optimizers", "scaler", "rng")  # keys that a checkpoint needs to be resumed
# Settings that may change when a run is resumed, without a warning.
FREE_SETTINGS = {"resume", "device", "workers", "log_dir", "name", "log_every", "eval_first", "preset", "preset_note"}
FREE_SETTINGS |= {"data_root", "cache_gb", "disk_gb", "cache_dir", "keep", "save_minutes", "bad_steps", "wandb"}
# Settings that determine the batches of an epoch, together with the images.
BATCH_SETTINGS = ("sampler", "batch_size", "images_per_id", "seed", "accumulate")
# Settings that determine what the optimizer stores for each weight.
OPTIMIZER_SETTINGS = ("optimizer", "backbone_lr_factor", "bias_lr_factor", "no_decay_norm_bias")


def restore(state: TrainState) -> None:
    """Load last.pth, or the checkpoint before it if it is damaged. The damaged file is renamed to last.damaged.pth, so
    that it does not count as a kept checkpoint.

    Raises UserError if none can be read, or if it belongs to another model, other data or another optimizer.
    """
    ranks, device = state.session.ranks, state.session.device
    path, stored = newest_valid(state.directory / LAST, (*MODEL, *TRAINING, *PROGRESS))
    restore_weights(state, path, stored)
    state.scaler.load_state_dict(stored["scaler"])
    if state.session.precision == "auto":  # on a CPU: as before, also on another CPU; older checkpoints used float32
        state.about["precision"] = stored.get("precision", "float32")
        state.session = replace(state.session, precision=state.about["precision"])
    if len(stored["rng"]) == ranks.size:
        set_random_state(stored["rng"][ranks.rank], device)
    else:
        log.warning("warning: resumed with %d processes, not %d as before", ranks.size, len(stored["rng"]))
    for name in PROGRESS:
        setattr(state, name, stored[name])
    log_changes(state, stored)
    state.saved = state.epoch, state.step
    if ranks.first:
        rename_damaged(state.directory, path)
    log.info("resumed %s after epoch %d and %d steps", path, state.epoch, state.step)


def newest_valid(path: Path, keys: Iterable[str] = MODEL) -> tuple[Path, dict[str, Any]]:
    """Return the newest readable checkpoint of `path` and the older ones, and its dict; warn of unreadable ones.

    Raises UserError with the reason for the newest one if none can be read.
    """
    errors = []
    for candidate in kept_checkpoints(path) or [path]:
        try:
            return candidate, read_dict(candidate, keys)
        except UserError as error:
            errors.append(error)
            log.warning("warning: %s; trying the one before it", error)
    others = f"; nor can the {len(errors) - 1} before it" if errors[1:] else ""
    raise UserError(f"{errors[0]}{others}; start again without --resume") from errors[0]


def restore_weights(state: TrainState, path: Path, stored: dict[str, Any]) -> None:
    """Restore the weights of model, average and losses, and the optimizer's state. Raises UserError."""
    if stored["labels"] != state.about["labels"]:
        raise UserError(f"{path} was trained on other identities than the data has now; resume with the same data")
    load_weights(state.model, stored | {"model": stored.get("training_model", stored["model"])}, path, state.cfg)
    if state.average is not None:
        load_weights(state.average, stored, path, state.cfg)
    before = stored_config(stored, path)
    with reading(path, "it has other losses or another optimizer; leave their settings as they were"):
        for name in OPTIMIZER_SETTINGS:
            if before.get(name) != state.cfg.get(name):
                raise ValueError(f"{option(name)} was {before.get(name)}")
        state.criterion.load_state_dict(stored["criterion"])
        # older checkpoints also have an optimizer of the centers, without any state
        restore_optimizer(state.optimizer, stored["optimizers"]["model"])


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load moments and learning rates from a checkpoint, but keep the current settings (weight decay, momentum)."""
    groups = zip(optimizer.param_groups, state["param_groups"], strict=True)
    groups = [now | {name: old[name] for name in ("params", "lr")} for now, old in groups]
    optimizer.load_state_dict(state | {"param_groups": groups})


def log_changes(state: TrainState, stored: dict[str, Any]) -> None:
    """Warn of changed settings and images; if the batches have changed, the epoch starts again."""
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


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
