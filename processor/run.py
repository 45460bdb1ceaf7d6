"""One training run: its directory, its state, and the signals that may stop it."""

from __future__ import annotations

import contextlib
import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from config import Config
from config.config import dashed
from datasets.make import short_name, train_names
from loss import Criterion
from model import ReIDModel
from processor.checkpoint import BEST, LAST, load_weights, read_checkpoint, save_checkpoint
from processor.environment import describe_environment
from solver import restore_optimizer
from utils.errors import Stopped, UserError
from utils.files import write_atomically
from utils.logging import log

# Settings that may differ between a run and its continuation without a word.
FREE = {"resume", "device", "workers", "log_dir", "name", "log_every", "eval_first", "preset"}
FREE |= {"data_root", "cache_gb", "disk_gb", "cache_dir"}
BATCHES = ("sampler", "batch_size", "images_per_id", "seed")  # what an epoch's batches follow from, beside the images
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
    command: str = ""
    note: str = ""  # what its scores must be read with
    train_note: str = ""  # the part of it that goes with the model, whatever it is tested on
    images: str = ""  # fingerprint of the training images
    environment: dict[str, str] = field(default_factory=dict)  # filled in from the device
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch after these
    sums: dict[str, float] = field(default_factory=dict)  # of losses over these steps
    seconds: float = 0.0  # spent on training, all sessions together, tests left out
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry a finished epoch
    average: ReIDModel | None = None  # of the model's weights over the last steps, with --ema-decay
    board: SummaryWriter | None = None

    def __post_init__(self):
        self.environment = self.environment or describe_environment(self.device)

    @property
    def tested(self) -> ReIDModel:
        """The model that is scored, and that others take from a checkpoint."""
        return self.model if self.average is None else self.average

    @property
    def best(self) -> float:
        """Highest plain mAP so far."""
        return max((h["scores"]["plain"]["mAP"] for h in self.history if "scores" in h), default=-1.0)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values only, so that `torch.load(weights_only=True)` reads it."""
        cuda = torch.cuda.get_rng_state_all() if self.device.type == "cuda" else []
        training = {} if self.average is None else {"training_model": self.model.state_dict()}
        return training | {
            "model": self.tested.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "rng": {"torch": torch.get_rng_state(), "cuda": cuda},
            "config": self.cfg.to_dict(),
            "labels": self.labels,
            "command": self.command,
            "note": self.note,
            "train_note": self.train_note,
            "images": self.images,
            "environment": self.environment,
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "seconds": self.seconds,
            "history": self.history,
        }

    def save(self, best: bool = False) -> None:
        """Write last.pth (and best.pth), and metrics.jsonl to match."""
        state = self.state()
        save_checkpoint(self.directory / LAST, state)
        if best:
            save_checkpoint(self.directory / BEST, state)
        lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
        write_atomically(self.directory / "metrics.jsonl", lambda temporary: temporary.write_text(lines))

    def plot(self, group: str, values: dict[str, float]) -> None:
        """Scalars of this epoch for TensorBoard, in the run's own directory."""
        if self.board is None:
            self.board = SummaryWriter(str(self.directory / "tensorboard"), purge_step=self.epoch)
        for name, value in values.items():
            self.board.add_scalar(f"{group}/{name}", value, self.epoch)
        self.board.flush()

    def restore(self) -> None:
        """Go back to the state of last.pth. Raises UserError when it belongs to another model or other data."""
        path = self.directory / LAST
        state = read_checkpoint(path)
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
        torch.set_rng_state(state["rng"]["torch"])
        if self.device.type == "cuda" and len(state["rng"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])
        for name in ("epoch", "step", "sums", "seconds", "history"):
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


def run_directory(cfg: Config) -> Path:
    """LOG_DIR/NAME, or NAME-2, NAME-3, ... where that is taken; with `resume` the newest of them.

    Makes it. Raises UserError when it cannot be written to.
    """
    base, name = Path(cfg.log_dir), cfg.name or cfg.preset or "+".join(map(short_name, train_names(cfg)))
    wanted = base / name
    for number in range(2, 10000):
        following = base / f"{name}-{number}"
        if not (wanted / LAST).exists() or (cfg.resume and not (following / LAST).exists()):
            break
        wanted = following
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        probe = wanted / ".probe.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{wanted} cannot be written to ({error.strerror}); choose a place with --log-dir") from error
    if cfg.resume and not (wanted / LAST).exists():
        log.info("nothing to resume in %s: this run starts anew", wanted)
    return wanted


class StopSignals:
    """Ctrl-C and SIGTERM, held back while a step is under way so that its state can be saved.

    Inside `with`, a signal raises Stopped at once, except in a `held` block: there `requested` tells, and only a
    second one raises.
    """

    def __init__(self):
        self.hold = False
        self.requested = 0

    def __enter__(self) -> StopSignals:
        self.before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
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
