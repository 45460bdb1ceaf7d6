"""What the steps of an epoch told: the sums of their losses, and how many in a row were not finite."""

from __future__ import annotations

import itertools
import math

import torch

from datasets.loaders import Loaders
from processor.distributed import mean_of_all, of_all, settle
from processor.run import Run
from utils.errors import UserError
from utils.logging import log


def add_up(run: Run, recent: list[dict[str, torch.Tensor]], loaders: Loaders) -> None:
    """Move the losses of the last steps into the run's sums, but for steps whose loss or gradient was not finite.

    Raises UserError when too many of these came in a row.
    """
    values = torch.stack([value.double() for parts in recent for value in parts.values()])
    values = iter(mean_of_all(run.ranks, values).tolist())  # the one place that waits for the device
    rows = [{name: next(values) for name in parts} for parts in recent]
    recent.clear()
    good = which_are_good(rows, run.cfg.loop.accumulate)
    for row in itertools.compress(rows, good):
        for name, value in row.items():
            if math.isfinite(value):  # a gradient's length may not be, though the loss is
                total, count = run.sums.get(name, (0.0, 0))
                run.sums[name] = (total + value, count + 1)
    count_bad(run, good, loaders)


def which_are_good(rows: list[dict[str, float]], accumulate: int) -> list[bool]:
    """Takes `finite` and `moved` out of the rows of whole groups. Not good is a step whose loss is not finite, and the
    last of a group that did not move though its losses were finite."""
    good = [row.pop("finite") == 1 for row in rows]
    moved = [row.pop("moved", 1.0) == 1 for row in rows]
    for start in range(0, len(good), accumulate):
        last = min(start + accumulate, len(good)) - 1
        if all(good[start : last + 1]):
            good[last] = moved[last]
    return good


def count_bad(run: Run, good: list[bool], loaders: Loaders) -> None:
    """Whether losses and gradients of the last steps were finite, added to the number of those in a row that were not.

    One that is not spoils the gradient of its whole group, so only a group without any ends the row. Raises UserError
    when the row is too long.
    """
    for start in range(0, len(good), run.cfg.loop.accumulate):
        group = good[start : start + run.cfg.loop.accumulate]
        run.bad = 0 if all(group) else run.bad + group.count(False)
        if run.bad >= run.cfg.loop.bad_steps:
            step = run.step - len(good) + start + max(place for place, fine in enumerate(group) if not fine)
            files = "; ".join(of_all(run.ranks, loaders.train.files(run.epoch, step)))
            sentence = (
                f"the loss or its gradient was not finite {run.bad} times in a row, the last time in epoch "
                f"{run.epoch + 1}, step {step + 1}, on {files}; the last good state is in {run.directory}; "
                f"lower --lr ({run.cfg.solver.lr}) or lengthen --warmup-epochs, then go on with --resume"
            )
            settle(run.ranks, UserError(sentence))
    if not all(good):
        count = good.count(False)
        usual = "; in fp16 the first few usually have none" if run.precision == "fp16" else ""
        what = "steps without effect, as their loss or gradient was not finite"
        log.warning("warning: epoch %d: %d %s%s", run.epoch + 1, count, what, usual)


def averages(run: Run) -> dict[str, float]:
    """Means over the steps of the epoch so far."""
    return {name: round(total / count, 5) for name, (total, count) in run.sums.items()}
