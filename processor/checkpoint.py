"""Checkpoints: one dict of tensors and plain values, written whole or not at all, read without running code from it."""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable
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
MODEL = ("model", "config", "labels")  # what every checkpoint holds, as dicts


def save_checkpoint(path: str | Path, state: dict[str, Any], keep: int = 1) -> None:
    """Write `state` under a temporary name, flush it to disk, rename it; the `keep` - 1 files before it stay, numbered
    from the newest: last.1.pth, last.2.pth, ...

    Raises UserError where it cannot be written; what was there before is as it was.
    """
    path = Path(path)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # not by torch, whose word for a full disk is "unexpected pos 640 vs 598"
            torch.save(state, file)

    def make_room() -> None:  # a kill in here leaves a gap in the numbers, which ends the row that moves on
        count = next(n for n in range(keep) if n == keep - 1 or not older(path, n).exists())
        for number in range(count, 0, -1):
            os.replace(older(path, number - 1), older(path, number))

    try:
        write_atomically(path, write, make_room)
        for old in kept(path)[1:]:
            if number_of(path, old) >= keep:
                old.unlink()
    except (OSError, RuntimeError) as error:
        refusal = error
        while refusal and not isinstance(refusal, OSError):
            refusal = refusal.__context__  # torch's RuntimeError came while it handled the system's
        if refusal is None:
            raise
        raise UserError(
            f"{path} could not be written ({refusal.strerror}); the checkpoints before it are as they were: mend that, "
            "then go on with --resume"
        ) from error


def older(path: Path, number: int) -> Path:
    """The name of the checkpoint that was `path` so many checkpoints ago."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}") if number else path


def number_of(path: Path, name: Path) -> int:
    """How many checkpoints ago `name` was `path`; -1 for a file that never was."""
    if name == path:
        return 0
    match = re.fullmatch(rf"{re.escape(path.stem)}\.([1-9]\d*){re.escape(path.suffix)}", name.name)
    return int(match[1]) if match else -1


def kept(path: Path) -> list[Path]:
    """`path` and those kept from before it, as far as they exist, the newest first. A kill between two renames may
    have left only the older ones. Not by their times, which a copy does not keep."""
    found = [name for name in path.parent.glob("*") if number_of(path, name) >= 0]
    return sorted(found, key=lambda name: number_of(path, name))


def newest_valid(path: Path, needs: Iterable[str] = MODEL) -> tuple[Path, dict[str, Any]]:
    """The newest of `path` and the ones kept from before it that can be read, and its dict; a word on each that cannot.

    Raises UserError, the newest one's, where none can be read.
    """
    errors = []
    for candidate in kept(path) or [path]:
        try:
            return candidate, read_plain(candidate, needs)
        except UserError as error:
            errors.append(error)
            log.warning("warning: %s; looking for the one before it", error)
    others = f"; nor can the {len(errors) - 1} before it be used" if errors[1:] else ""
    raise UserError(f"{errors[0]}{others}; start anew, without --resume") from errors[0]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dict of a checkpoint that this program wrote. Raises UserError for every other file, and runs none of it."""
    try:
        return read_plain(path, MODEL)
    except UserError as error:
        before = [name for name in kept(Path(path)) if name != Path(path)]
        mend = f"the one before it is {before[0]}" if before else "name another, or train one with python train.py"
        raise UserError(f"{error}; {mend}") from error


def read_plain(path: str | Path, needs: Iterable[str]) -> dict[str, Any]:
    """The dict of a checkpoint that holds what is needed. Raises UserError for every other file; runs none of it."""
    if not Path(path).exists():
        raise UserError(f"there is no checkpoint {path}")
    if not Path(path).is_file():
        raise UserError(f"{path} is a directory, not a checkpoint")
    refuse_damaged(path)
    state = load_plain(path)
    if not isinstance(state, dict) or not all(isinstance(state.get(name), dict) for name in MODEL):
        raise UserError(
            f"{path} is no checkpoint of PlainReID (a file of backbone weights is given with --weights and --backbone)"
        )
    missing = [name for name in needs if name not in state]
    if missing:
        raise UserError(f"{path} holds a model but not the state of its training: {', '.join(missing)}")
    return state


def refuse_damaged(path: str | Path) -> None:
    """Raises UserError for a file whose bytes are not those that were written: torch itself does not look."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch takes a part for a directory that has such an attribute, and fills its tensor with chance
            odd = [part.filename for part in archive.infolist() if part.external_attr or part.compress_type]
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is damaged or no checkpoint ({error})") from error
    if damaged or odd:
        raise UserError(f"{path} is damaged or no checkpoint (its part {damaged or odd[0]} is not as we write them)")


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
            f"{path} holds a {stored} model of {classes} identities, which does not fit a {cfg.model.backbone} model of "
            f"{model.num_classes}; leave the settings of the model and the data as they were in training"
        ) from error


def newest_run(log_dir: str | Path) -> Path:
    """The last checkpoint written under `log_dir`. Raises UserError when there is none."""
    found = [path for run in Path(log_dir).glob("*") for path in kept(run / LAST)[:1]]
    if not found:
        raise UserError(f"there is no run under {Path(log_dir).absolute()} yet; train one with python train.py")
    return max(found, key=lambda path: path.stat().st_mtime)


def find_checkpoint(name: str | None, log_dir: str | Path) -> Path:
    """A checkpoint from what a user types: a file, a run's directory, the name of a run, or nothing (the newest)."""
    if not name:
        return newest_run(log_dir)
    for path in (Path(name), Path(log_dir) / name):
        if path.is_file():
            return path
        for newest in kept(path / LAST):
            return newest
    raise UserError(f"{name} is neither a checkpoint nor a run with a {LAST}; without it, the newest run is taken")
