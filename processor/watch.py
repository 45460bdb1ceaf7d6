"""What a person sees of a run while it goes on: the progress bar, TensorBoard, Weights & Biases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from config import Config
from utils.errors import UserError
from utils.logging import log


class Watchers:
    """Everything that is plotted goes to TensorBoard's events in the run's directory and, if asked for, to wandb.

    Of a run that goes on, the events after its last checkpoint are taken back and the last entry of its history is
    told again: the program may have died between the checkpoint and its telling. Where events cannot be written, a
    warning says so, and the run goes on without them. Raises UserError where wandb cannot start.
    """

    def __init__(self, cfg: Config, directory: Path, epoch: int = 0, history: Sequence[dict[str, Any]] = ()):
        self.board: SummaryWriter | None = SummaryWriter(str(directory / "tensorboard"), purge_step=epoch + 1)
        self.wandb = start_wandb(cfg, directory) if cfg.loop.wandb else None
        for entry in history[-1:]:
            self.trained(entry)
            self.tested(entry)

    def trained(self, entry: dict[str, Any]) -> None:
        """The scalars of an epoch's entry in the history."""
        plain = {k: v for k, v in entry.items() if k != "epoch" and isinstance(v, (int, float))}
        self.numbers("train", plain, entry["epoch"])

    def tested(self, entry: dict[str, Any]) -> None:
        """The scores of it, where there are any."""
        for protocol, row in entry.get("scores", {}).items():
            named = {name: row[name] for name in ("mAP", "mINP", "rank1")}
            self.numbers(f"test_{protocol}", named, entry["epoch"])

    def numbers(self, group: str, values: dict[str, float], epoch: int) -> None:
        """Scalars of an epoch."""

        def scalars(board: SummaryWriter) -> None:
            for name, value in values.items():
                board.add_scalar(f"{group}/{name}", value, epoch)

        self._write(scalars)
        if self.wandb and values:
            self.wandb.log({f"{group}/{name}": value for name, value in values.items()} | {"epoch": epoch})

    def picture(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        """(H, W, 3) uint8 RGB."""
        self._write(lambda board: board.add_image(name, pixels, epoch, dataformats="HWC"))
        if self.wandb:
            import wandb

            self.wandb.log({name: wandb.Image(pixels), "epoch": epoch})

    def close(self) -> None:
        self._write(SummaryWriter.close)
        if self.wandb:
            self.wandb.finish()

    def _write(self, write: Callable[[SummaryWriter], None]) -> None:
        """Events, flushed. A full disk ends them, not the run; nothing is done where they have ended."""
        if self.board is None:
            return
        try:
            write(self.board)
            self.board.flush()
        except OSError as error:
            reason = error.strerror or error
            log.warning("warning: TensorBoard's events cannot be written (%s); the run goes on without them", reason)
            self.board = None


def start_wandb(cfg: Config, directory: Path) -> Any:
    """The run at Weights & Biases; a resumed one goes on under the same name. Raises UserError without the package, or
    where it refuses."""
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb needs the package wandb: pip install wandb; or leave it out") from error
    identity = f"{directory.name}-{cfg.run.seed}"
    settings = {"project": cfg.loop.wandb, "name": directory.name, "dir": str(directory), "config": cfg.to_dict()}
    try:
        return wandb.init(**settings, id=identity, resume="allow" if cfg.run.resume else None)
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--wandb {cfg.loop.wandb} cannot start ({reason}); or set WANDB_MODE=offline") from error


def tile(pictures: np.ndarray, columns: int = 8) -> np.ndarray:
    """Pictures (B, H, W, 3) side by side, `columns` a row, the last row filled up with black."""
    rows = -(-len(pictures) // columns)
    sheet = np.zeros((rows * columns, *pictures.shape[1:]), pictures.dtype)
    sheet[: len(pictures)] = pictures
    height, width = pictures.shape[1:3]
    return sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


class Progress:
    """The bar of an epoch, and how much of its time went by waiting for data."""

    def __init__(self, title: str, steps: int, batch: int, first_step: int, shown: bool):
        self.batch, self.steps, self.waited = batch, 0, 0.0
        self.started = self.lapped = time.perf_counter()
        self.bar = tqdm(
            total=steps * batch,
            initial=first_step * batch,
            desc=title,
            unit="img",
            leave=False,
            disable=None if shown else True,
        )

    def waiting(self, batches: Iterable) -> Iterator:
        """The batches, the time until each of them counted as waiting."""
        source = iter(batches)
        while True:
            before = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - before
            yield batch

    def step(self) -> None:
        self.steps += 1
        self.bar.update(self.batch)

    def lap(self) -> float:
        """Seconds since the last call, or since the start."""
        before, self.lapped = self.lapped, time.perf_counter()
        return self.lapped - before

    def tell(self, means: dict[str, float], lr: float) -> None:
        """Losses, learning rate, share of the time spent waiting for data, and memory, beside the bar."""
        parts = [f"{name} {value:.3f}" for name, value in means.items()]
        parts += [f"lr {lr:.1e}", f"data {100 * self.data_share:.0f} %"]
        if torch.cuda.is_available():
            parts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GB")
        self.bar.set_postfix_str(" ".join(parts), refresh=False)

    @property
    def since_saved(self) -> float:
        """Seconds since the last lap."""
        return time.perf_counter() - self.lapped

    @property
    def speed(self) -> float:
        """Images a second."""
        return self.steps * self.batch / (time.perf_counter() - self.started)

    @property
    def data_share(self) -> float:
        """Share of the time that went by waiting."""
        return self.waited / (time.perf_counter() - self.started)

    def close(self) -> None:
        self.bar.close()


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
