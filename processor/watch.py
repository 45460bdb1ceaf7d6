"""What shows the progress of a run: TensorBoard, Weights & Biases, curves, ranked lists, and the progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from config import Config
from datasets.loaders import Loaders
from processor.evaluate import RANDOM_GALLERIES, Inference
from processor.state import TrainState
from utils.errors import UserError
from utils.logging import log


class Watchers:
    """Writes losses, scores and pictures to TensorBoard's events in the run's directory and, if asked for, to wandb; in
    the first process only.

    In a resumed run, events after its last checkpoint are removed, and the last entry of its history is logged again,
    because the program may have ended between the checkpoint and its events. If events cannot be written, a warning
    says so, and the run continues without them. Raises UserError if wandb cannot start.
    """

    def __init__(self, state: TrainState):
        self.board = self.wandb = None
        if not state.session.ranks.first:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(state.directory / "tensorboard"), purge_step=state.epoch + 1)
        self.wandb = start_wandb(state.cfg, state.directory) if state.cfg.loop.wandb else None
        for entry in state.history[-1:]:
            self.log_losses(entry)
            self.log_scores(entry)

    def log_losses(self, entry: dict[str, Any]) -> None:
        """The scalars of an epoch's entry in the history."""
        values = {k: v for k, v in entry.items() if k != "epoch" and isinstance(v, (int, float))}
        self._scalars("train", values, entry["epoch"])

    def log_scores(self, entry: dict[str, Any]) -> None:
        """The scores in it, if any."""
        for protocol, row in entry.get("scores", {}).items():
            values = {name: row[name] for name in ("mAP", "mINP", "rank1")}
            self._scalars(f"test_{protocol}", values, entry["epoch"])

    def log_evaluation(self, cfg: Config, state: TrainState, data: Loaders, inference: Inference) -> None:
        """Scores, curves.png, and ranked_lists.png if the settings ask for it and the protocol has ranked lists."""
        self.log_scores(state.history[-1])
        if state.epoch:
            from utils.plots import plot_curves

            plot_curves({state.directory.name: state.history}, state.directory / "curves.png")
        if cfg.loop.ranked_lists and cfg.eval.protocol not in RANDOM_GALLERIES:
            from processor.ranked_lists import draw_some

            path = state.directory / "ranked_lists.png"
            self.picture("ranked_lists", draw_some(cfg, inference, data.query, data.gallery, path), state.epoch)

    def picture(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        """pixels (H, W, 3) uint8 RGB."""
        self._write(lambda board: board.add_image(name, pixels, epoch, dataformats="HWC"))
        if self.wandb:
            import wandb

            self.wandb.log({name: wandb.Image(pixels), "epoch": epoch})

    def close(self) -> None:
        self._write(lambda board: board.close())
        if self.wandb:
            self.wandb.finish()

    def _scalars(self, group: str, values: dict[str, float], epoch: int) -> None:
        self._write(lambda board: [board.add_scalar(f"{group}/{name}", value, epoch) for name, value in values.items()])
        if self.wandb and values:
            self.wandb.log({f"{group}/{name}": value for name, value in values.items()} | {"epoch": epoch})

    def _write(self, write: Callable[[Any], None]) -> None:
        if self.board is None:
            return
        try:
            write(self.board)
            self.board.flush()
        except OSError as error:
            reason = error.strerror or error
            log.warning("warning: TensorBoard's events cannot be written (%s); continuing without them", reason)
            self.board = None


def start_wandb(cfg: Config, directory: Path) -> Any:
    """The run at Weights & Biases; a resumed one continues there. Raises UserError without the package or a login."""
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
    """Pictures (B, H, W, 3) side by side, `columns` per row, the last row filled up with black."""
    rows = -(-len(pictures) // columns)
    sheet = np.zeros((rows * columns, *pictures.shape[1:]), pictures.dtype)
    sheet[: len(pictures)] = pictures
    height, width = pictures.shape[1:3]
    return sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


class Progress:
    """The progress bar of an epoch, and the share of its time that is spent waiting for data."""

    def __init__(self, title: str, steps: int, batch: int, first_step: int, shown: bool):
        self.images, self.batch, self.steps, self.waited = steps * batch, batch, 0, 0.0
        self.started = self.lapped = time.perf_counter()
        options = {"unit": "img", "leave": False, "disable": None if shown else True}  # None: without a terminal
        self.bar = tqdm(total=self.images, initial=first_step * batch, desc=title, **options)

    def waiting(self, batches: Iterable) -> Iterator:
        """The batches; the time until each arrives counts as waiting."""
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

    def show(self, means: dict[str, float], lr: float) -> None:
        """Losses, learning rate, share of the time spent waiting for data, and memory, next to the bar."""
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
        """Images per second."""
        return self.steps * self.batch / (time.perf_counter() - self.started)

    @property
    def data_share(self) -> float:
        """Share of the time spent waiting for data."""
        return self.waited / (time.perf_counter() - self.started)

    def close(self) -> None:
        self.bar.close()


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
