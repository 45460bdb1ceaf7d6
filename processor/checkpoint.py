"""Checkpoint files: one dict of tensors and plain values, written atomically and read without running code."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from config import Config
from model import ReIDModel, build_model
from utils.errors import UserError
from utils.files import load_plain, reading, write_atomically
from utils.logging import log
from utils.lookup import load

LAST, BEST = "last.pth", "best.pth"
FILES = (".onnx", ".xml")  # models in files of other programs
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"  # models that come with the repository
SHIPPED = WEIGHTS / "mobilenet_v2_market1501.pth"  # used by programs that need a model before there is a run
MODEL = ("model", "config", "labels")  # dicts that every checkpoint holds
# plain values that are used, with their defaults for older checkpoints that lack them
ABOUT = {"history": [], "epoch": 0, "seconds": 0.0, "command": "", "environment": {}, "train_note": ""}


def save_checkpoint(path: str | Path, state: dict[str, Any], keep: int = 1) -> None:
    """Write `state` atomically; the `keep` - 1 files before it are kept as last.1.pth (the newest), last.2.pth, ...

    Raises UserError if it cannot be written; the existing files are then unchanged.
    """
    path = Path(path)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # torch's own message for a full disk is "unexpected pos 640 vs 598"
            torch.save(state, file)

    def keep_older() -> None:
        # if the program is killed here, a number is missing, perhaps `path` itself; the next renaming ends at that gap
        count = next(n for n in range(keep) if n == keep - 1 or not older(path, n).exists())
        for number in range(count, 0, -1):
            os.replace(older(path, number - 1), older(path, number))

    try:
        write_atomically(path, write, keep_older)
        for old in set(kept_checkpoints(path)).difference(older(path, number) for number in range(keep)):
            old.unlink()
    except (OSError, RuntimeError) as error:
        cause = error
        while cause and not isinstance(cause, OSError):
            cause = cause.__context__  # torch raises RuntimeError while it handles the system's error
        if cause is None:
            raise
        fix = "the checkpoints before it are unchanged: fix the cause, then continue with --resume"
        raise UserError(f"{path} could not be written ({cause.strerror}); {fix}") from error


def older(path: Path, number: int) -> Path:
    """Return the name of the checkpoint that was `path` `number` checkpoints ago."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}") if number else path


def kept_checkpoints(path: Path) -> list[Path]:
    """Return those of `path` and its older checkpoints that exist, newest first by number: a copy does not keep file
    times, and a kill between two renames may have left only older ones."""
    pattern = re.compile(rf"{re.escape(path.stem)}(?:\.([1-9]\d*))?{re.escape(path.suffix)}")
    matches = filter(None, (pattern.fullmatch(file.name) for file in path.parent.glob("*")))
    return [older(path, number) for number in sorted(int(match[1] or 0) for match in matches)]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read the dict of a checkpoint, or make an equivalent dict for a model file of another program (see
    `processor.model_file`). Raises UserError for any other file, and runs no code from it."""
    if Path(path).suffix in FILES:
        return load("processor.model_file:read_file")(Path(path))
    try:
        return read_dict(path, MODEL)
    except UserError as error:
        before = [name for name in kept_checkpoints(Path(path)) if name != Path(path)]
        fix = f"the one before it is {before[0]}" if before else "give another, or train one with python train.py"
        raise UserError(f"{error}; {fix}") from error


def read_dict(path: str | Path, keys: Iterable[str]) -> dict[str, Any]:
    """Read the dict of a checkpoint that has these keys. Raises UserError for any other file."""
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint {path}" + " (it is a directory)" * Path(path).exists())
    state = load_plain(path)
    if not isinstance(state, dict) or not all(isinstance(state.get(name), dict) for name in MODEL):
        raise UserError(
            f"{path} is not a checkpoint of PlainReID (give a file of backbone weights with --weights and --backbone)"
        )
    check_values(state, path)
    missing = [name for name in keys if name not in state]
    if missing:
        raise UserError(f"{path} holds a model but not its training state: {', '.join(missing)}")
    return state


def check_values(state: dict[str, Any], path: str | Path) -> None:
    """Raises UserError if a value of a checkpoint, other than weights and settings, has the wrong type."""
    with reading(path, "give a checkpoint as train.py wrote it"):
        for name, default in ABOUT.items():
            kinds = (int, float) if isinstance(default, float) else type(default)
            if not isinstance(state.get(name, default), kinds):
                raise ValueError(f"its {name} is {state[name]!r:.100}")
        for entry in state.get("history", []):
            scores = entry.get("scores", {})
            _ = 0.0 + entry["epoch"] + entry.get("images_per_second", 0)  # a TypeError, unless they are numbers
            _ = [0.0 + row[key] for row in scores.values() for key in ("mAP", "mINP", "rank1")]
            _ = scores["plain"] if scores else None


def stored_config(state: dict[str, Any], path: str | Path) -> Config:
    """Return the settings of a checkpoint's dict, checked like a command line. Raises UserError that names the file.

    Own pictures get the absolute path that they had in training, if it still exists: a relative path may lead elsewhere
    from another working directory.
    """
    try:
        cfg = Config.from_dict(state["config"]).check()
        places = state.get("places", {}).items()
        return cfg.replace(**{name: path for name, path in places if os.path.isabs(path) and Path(path).exists()})
    except UserError as error:
        raise UserError(f"the settings stored in {path} cannot be used: {error}") from error


def load_model(checkpoint: str | Path, device: str | torch.device) -> tuple[ReIDModel, Config]:
    """Load the model of a checkpoint in evaluation mode on `device`, and its settings. Raises UserError."""
    state = read_checkpoint(checkpoint)
    cfg = stored_config(state, checkpoint)
    return rebuild_model(state, checkpoint, cfg).to(device).eval(), cfg


def rebuild_model(state: dict[str, Any], path: str | Path, cfg: Config) -> ReIDModel:
    """Build the model of a checkpoint's dict with these settings. Raises UserError if its weights do not fit."""
    if Path(path).suffix in FILES:
        return load("processor.model_file:FileModel")(Path(path), cfg)
    model = build_model(cfg, max(1, len(state["labels"])))  # a published file has no classes
    load_weights(model, state, path, cfg)
    return model


def load_weights(model: ReIDModel, state: dict[str, Any], path: str | Path, cfg: Config) -> None:
    """Load a checkpoint's weights into a model. Raises UserError that names both architectures if they differ."""
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        stored = state["config"].get("backbone")
        raise UserError(
            f"{path} holds a {stored} model of {len(state['labels'])} identities, which does not fit a "
            f"{cfg.model.backbone} model of {model.num_classes}; leave the settings of model and data as in training"
        ) from error


def find_checkpoint(name: str | None, log_dir: str | Path) -> Path:
    """Find a checkpoint by its file, its run's directory or its run's name; None: the latest. If it is just being
    replaced, return the one before it.

    Without any run, return the model that comes with the repository. Raises UserError.
    """
    for path in (Path(name), Path(log_dir) / name) if name else ():
        for newest in (*kept_checkpoints(path), *kept_checkpoints(path / LAST)):
            if newest.is_file():
                return newest
    if name:
        raise UserError(f"{name} is neither a checkpoint nor a run with a {LAST}; leave it out for the latest run")
    found = [path for run in Path(log_dir).glob("*") for path in kept_checkpoints(run / LAST)[:1]]
    if not found and SHIPPED.is_file():
        log.warning(
            "there is no run in %s yet, so %s is used; read %s", log_dir, SHIPPED, SHIPPED.with_suffix(".md").name
        )
        return SHIPPED
    if not found:
        raise UserError(f"there is no run in {Path(log_dir).absolute()} yet; train one with python train.py")
    return max(found, key=lambda path: path.stat().st_mtime)


def results_directory(checkpoint: Path, log_dir: str | Path) -> Path:
    """Return the directory for results of a checkpoint: its own; or LOG_DIR/NAME for a model of the repository, and for
    a file of another program that is not in a run."""
    other = checkpoint.suffix in FILES and not (checkpoint.parent / LAST).exists()
    return Path(log_dir) / checkpoint.stem if other or checkpoint.resolve().parent == WEIGHTS else checkpoint.parent
