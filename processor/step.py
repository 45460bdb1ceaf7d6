"""One training step: from a batch to moved weights, in half precision, over several batches, on several processes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from processor.distributed import mean_of_all
from processor.numerics import autocast
from processor.parallel import gather_batch

if TYPE_CHECKING:
    from processor.run import Run


def train_step(
    run: Run, images: torch.Tensor, labels: torch.Tensor, place: int = 0, group: int = 1
) -> dict[str, torch.Tensor]:
    """The gradient of one batch and, where it is the last of a group, one step of all optimizers with the mean.

    images (B, 3, H, W) and labels (B,): this process's share of the batch, which has that `place` in a `group` of so
    many. The identity loss of a group is that of one large batch; metric losses mine, and batch norm counts, within
    each. Gives the losses as scalars on the device, so that nothing waits for it; `finite` is 0 for a loss that is not,
    `moved`, of the last of a group, where the gradient was not finite and no weight moved.
    """
    last = place == group - 1
    if place == 0:
        for optimizer in run.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
    if not run.cfg.loop.channels_last:
        images = images.contiguous()
    with contextlib.ExitStack() as stack:
        if not last and hasattr(run.network, "no_sync"):
            stack.enter_context(run.network.no_sync())  # processes exchange the gradients of a group only once
        with autocast(run.device, run.precision):
            logits, features = run.network(images)
        if run.cfg.loop.gather:
            logits, features = ([gather_batch(run.ranks, x) for x in rows] for rows in (logits, features))
            labels = gather_batch(run.ranks, labels)
        loss, parts = run.criterion(logits, features, labels)
        run.scaler.backward(loss / group)
    if last:
        parts |= move(run)
    accuracy = (logits[0].argmax(1) == labels).float().mean()
    values = {"loss": loss, **parts, "accuracy": accuracy, "finite": torch.isfinite(loss).float()}
    return {name: value.detach() for name, value in values.items()}


def move(run: Run) -> dict[str, torch.Tensor]:
    """One step of all optimizers with the gradients that there are; `moved` is 0 where one of them was not finite.

    Clipping is of the model's gradient alone, by its norm over all weights, which `grad_norm` tells as it was before.
    The centers have an optimizer of their own, at another rate: they neither count nor are scaled.
    """
    optimizers, told = list(run.optimizers.values()), {}
    for centers in run.criterion.parameters():  # which are not under DistributedDataParallel
        mean_of_all(run.ranks, centers.grad)
    run.scaler.unscale(optimizers)
    run.criterion.undo_center_weight()
    if run.cfg.solver.clip_grad > 0:
        told["grad_norm"] = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.cfg.solver.clip_grad)
    told["moved"] = run.scaler.step(optimizers)
    return told
