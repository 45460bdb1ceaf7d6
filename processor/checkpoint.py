"""Checkpoints: one dict of tensors and plain values, written whole or not at all, read without running code from it."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from config import Config
from model import ReIDModel, build_model
from model.weights import load_plain
from utils.errors import UserError
from utils.files import write_atomically
from utils.logging import log

LAST, BEST = "last.pth", "best.pth"


def save_checkpoint(path: str | Path, state: dict[str, Any], keep: int = 1) -> None:
    """Write `state` under a temporary name, flush it to disk, rename it; the `keep` - 1 files before it stay, numbered
    from the newest: last.1.pth, last.2.pth, ...

    Raises UserError where it cannot be written; what was there before is as it was.
    """
    path = Path(path)

    def write(temporary: Path) -> None:
        torch.save(state, temporary)
        for number in range(keep - 1, 0, -1):  # only now, when the new one is whole
            younger = older(path, number - 1)
            if younger.exists():
                os.replace(younger, older(path, number))

    try:
        write_atomically(path, write)
    except (OSError, RuntimeError) as error:  # the second is torch's word for a full disk
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"{path} could not be written ({reason}); the checkpoints before it are as they were: make room, then go "
            "on with --resume"
        ) from error


def older(path: Path, number: int) -> Path:
    """The name of the checkpoint that was `path` so many checkpoints ago."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}") if number else path


def newest_valid(path: Path) -> tuple[Path, dict[str, Any]]:
    """The newest of `path` and the ones kept from before it that can be read, and its dict; a word on each that cannot.

    Raises the UserError of the newest where none can be read.
    """
    kept = sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"), key=lambda p: p.stat().st_mtime, reverse=True)
    candidates = [path] * path.exists() + [p for p in kept if p.name.split(".")[1].isdigit()]
    errors = []
    for candidate in candidates or [path]:
        try:
            return candidate, read_checkpoint(candidate)
        except UserError as error:
            errors.append(error)
            log.warning("warning: %s", error)
    raise errors[0]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dict of a checkpoint that this program wrote. Raises UserError for every other file, and runs none of it."""
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint {path}; train one with python train.py, or name another")
    refuse_damaged(path)
    state = load_plain(path)
    if not isinstance(state, dict) or not {"model", "config", "labels"} <= state.keys():
        raise UserError(
            f"{path} is no checkpoint of PlainReID; a file of backbone weights is given with --weights and --backbone"
        )
    return state


def refuse_damaged(path: str | Path) -> None:
    """Raises UserError for a file whose bytes are not those that were written: torch itself does not look."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is damaged or no checkpoint: {error}") from error
    if damaged:
        raise UserError(f"{path} is damaged: the checksum of its part {damaged} is not that of its bytes")


def load_model(checkpoint: str | Path, device: str | torch.device) -> tuple[ReIDModel, Config]:
    """The model of a checkpoint in evaluation mode on `device`, and the Config that it was trained with.

    Raises UserError for a file that is no checkpoint.
    """
    state = read_checkpoint(checkpoint)
    cfg = Config.from_dict(state["config"])
    return rebuild_model(state, checkpoint, cfg).to(device).eval(), cfg


def rebuild_model(state: dict[str, Any], path: str | Path, cfg: Config) -> ReIDModel:
    """The model of a checkpoint's dict, built as `cfg` says. Raises UserError where its weights do not fit that."""
    model = build_model(cfg, len(state["labels"]))
    load_weights(model, state, path, cfg)
    return model


def load_weights(model: ReIDModel, state: dict[str, Any], path: str | Path, cfg: Config) -> None:
    """Fill a model from a checkpoint's dict. Raises UserError that names both architectures when they differ."""
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        stored = state["config"].get("backbone")
        classes = len(state["labels"])
        raise UserError(
            f"{path} holds a {stored} model of {classes} identities, which does not fit a {cfg.backbone} model of "
            f"{model.num_classes}; leave --backbone and the data as they were in training"
        ) from error


def newest_run(log_dir: str | Path) -> Path:
    """The last checkpoint written under `log_dir`. Raises UserError when there is none."""
    found = sorted(Path(log_dir).glob(f"*/{LAST}"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UserError(f"there is no run under {Path(log_dir).absolute()} yet; train one with python train.py")
    return found[-1]


def find_checkpoint(name: str | None, log_dir: str | Path) -> Path:
    """A checkpoint from what a user types: a file, a run's directory, the name of a run, or nothing (the newest)."""
    if not name:
        return newest_run(log_dir)
    for path in (Path(name), Path(log_dir) / name):
        if (path / LAST).is_file():
            return path / LAST
        if path.is_file():
            return path
    raise UserError(f"{name} is neither a checkpoint nor a run with a {LAST}; without it, the newest run is taken")
