"""Show the progress of a run: TensorBoard, Weights & Biases, curves, ranked lists, and the progress bar."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torchvision.utils import make_grid
from tqdm import tqdm

from config import Config
from datasets.augment import to_pixels
from datasets.loaders import Loaders
from processor.evaluate import RANDOM_GALLERIES, Inference
from processor.state import Session, TrainState
from utils.logging import log
from utils.lookup import load


class Watchers:
    """Writes losses, scores and pictures to TensorBoard's events in the run's directory and, if asked for, to wandb; in
    the first process only.

    In a resumed run, events after its last checkpoint are removed. If events cannot be written, a warning says so, and
    the run continues without them. Raises UserError if wandb cannot start.
    """

    def __init__(self, state: TrainState):
        self.board = self.wandb = None
        self.estimated = not state.session.ranks.first  # whether the time left was logged
        if not state.session.ranks.first:
            return
        from torch.utils.tensorboard import SummaryWriter

        try:
            self.board = SummaryWriter(str(state.directory / "tensorboard"), purge_step=state.epoch + 1)
        except UnicodeError as error:  # TensorBoard takes no path that is not UTF-8
            log.warning("warning: no events for TensorBoard (%s)", error)
        if state.cfg.loop.wandb:
            self.wandb = load("processor.wandb_run:start_wandb")(state.cfg, state.directory)

    def log_entry(self, entry: dict[str, Any]) -> None:
        """Log the numbers of an epoch's entry in the history: its losses and, after an evaluation, the scores."""
        epoch, scores = entry["epoch"], entry.get("scores", {})
        values = {f"train/{k}": v for k, v in entry.items() if k != "epoch" and isinstance(v, (int, float))}
        values |= {f"test_{name}/{k}": row[k] for name, row in scores.items() for k in ("mAP", "mINP", "rank1")}
        self._write(lambda board: [board.add_scalar(name, value, epoch) for name, value in values.items()])
        if self.wandb:
            self.wandb.log(values | {"epoch": epoch})

    def draw_evaluation(self, cfg: Config, state: TrainState, data: Loaders, inference: Inference) -> None:
        """Draw curves.png, and ranked_lists.png if the settings ask for it and the protocol has ranked lists."""
        if state.epoch:
            load("utils.plots:plot_curves")({state.directory.name: state.history}, state.directory / "curves.png")
        if cfg.loop.ranked_lists and cfg.eval.protocol not in RANDOM_GALLERIES:
            draw_some, path = load("processor.ranked_lists:draw_some"), state.directory / "ranked_lists.png"
            self.picture("ranked_lists", draw_some(cfg, inference, data.query, data.gallery, path), state.epoch)

    def show_first(self, batches: Iterator) -> Iterator:
        """Return the batches; draw the images of the first one as the network gets them."""
        first = next(batches)
        pixels = torch.from_numpy(to_pixels(first[0][:32])).movedim(3, 1)
        self.picture("train_batch", make_grid(pixels, padding=0).movedim(0, 2).numpy(), 0)
        return itertools.chain([first], batches)

    def picture(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        """Log a picture: pixels (H, W, 3) uint8 RGB."""
        self._write(lambda board: board.add_image(name, pixels, epoch, dataformats="HWC"))
        if self.wandb:
            self.wandb.log({name: load("wandb:Image")(pixels), "epoch": epoch})

    def close(self) -> None:
        self._write(lambda board: board.close())
        if self.wandb:
            self.wandb.finish()

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


def _finished() -> float:
    """Wait until the device has finished all work, and return the time."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Progress:
    """The progress bar of an epoch, and the share of its time that is spent waiting for data."""

    def __init__(self, title: str, steps: int, batch: int, first_step: int, session: Session):
        self.batch, self.steps, self.timed, self.waited = batch, 0, 0, 0.0
        self.started = self.lapped = time.perf_counter()
        hidden = None if session.ranks.first else True  # None: hidden without a terminal
        options = {"initial": first_step * batch, "unit": "img", "leave": False, "disable": hidden}
        self.bar = tqdm(total=steps * batch, desc=title, **options)

    def waiting(self, batches: Iterable) -> Iterator:
        """Yield the batches; the time until each arrives counts as waiting."""
        before = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - before
            yield batch
            before = time.perf_counter()

    def step(self, batches: int) -> None:
        """Count an optimizer step on `batches` batches."""
        if self.steps:
            self.timed += batches
        else:  # the first step also waits for images, and may choose kernels or compile
            self.first_done = _finished()
        self.steps += batches
        self.bar.update(batches * self.batch)

    def lap(self) -> float:
        """Return the seconds since the last call, or since the start."""
        before, self.lapped = self.lapped, time.perf_counter()
        return self.lapped - before

    @property
    def speed(self) -> float:
        """Images per second."""
        return self.steps * self.batch / (time.perf_counter() - self.started)

    @property
    def step_seconds(self) -> float:
        """Seconds per batch, without those of the first step."""
        return (_finished() - self.first_done) / self.timed

    @property
    def data_share(self) -> float:
        """Share of the time spent waiting for data."""
        return self.waited / (time.perf_counter() - self.started)

    def show(self, means: dict[str, float], lr: float) -> None:
        """Show losses, learning rate, share of the time spent waiting for data, and memory next to the bar."""
        parts = [f"{name} {value:.3f}" for name, value in means.items()]
        parts += [f"lr {lr:.1e}", f"data {100 * self.data_share:.0f} %"]
        if torch.cuda.is_available():
            parts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GB")
        self.bar.set_postfix_str(" ".join(parts), refresh=False)

    def close(self) -> None:
        self.bar.close()
