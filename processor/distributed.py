"""Several processes that train one model, started by `torchrun`: each has its share of every batch and of the test.

They end up with the weights that one process would have. `batch_size` is that of all together, so nothing else of the
settings changes with their number; who raises it usually raises the learning rate in proportion (Goyal et al. 2017).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from config import Config
from utils.errors import UserError

PATIENCE = timedelta(hours=2)  # that others wait while one re-ranks a large gallery


@dataclass(frozen=True)
class Ranks:
    """Which process this is, counted from 0, and of how many. Alone, every function here does nothing."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """The process that writes files and logs."""
        return self.rank == 0


ALONE = Ranks()


@contextlib.contextmanager
def joined(cfg: Config, environ=os.environ) -> Iterator[Ranks]:
    """Meet the processes that torchrun started with this one; without torchrun, be alone.

    Each takes the GPU of its number on its machine; where there are fewer GPUs they share them, over gloo. Raises
    UserError for a backend that cannot work.
    """
    size = int(environ.get("WORLD_SIZE", 1))
    if size == 1 or dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE
        return
    local, on_this_machine = int(environ.get("LOCAL_RANK", 0)), int(environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = 0 if cfg.device == "cpu" else torch.cuda.device_count()
    if cfg.backend == "nccl" and gpus < on_this_machine:
        raise UserError(
            f"--backend nccl needs a GPU for each of the {on_this_machine} processes and finds {gpus}; leave it out"
        )
    if gpus:
        torch.cuda.set_device(local % gpus)
    backend = cfg.backend if cfg.backend != "auto" else "nccl" if gpus >= on_this_machine else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def started_as(ranks: Ranks, command: str, environ=os.environ) -> str:
    """The command that repeats the run: `python ...` as it was typed, or the torchrun that started the processes."""
    if ranks.size == 1:
        return command
    here = int(environ.get("LOCAL_WORLD_SIZE", ranks.size))
    nodes = f"--nnodes={ranks.size // here} " if ranks.size > here else ""
    return command.replace("python ", f"torchrun {nodes}--nproc-per-node={here} ", 1)


@contextlib.contextmanager
def first_alone(ranks: Ranks) -> Iterator[None]:
    """The first process goes through the block alone, then all others: what it leaves on the disk, they find there."""
    if not ranks.first:
        dist.barrier()
    yield
    if ranks.first and ranks.size > 1:
        dist.barrier()


def from_first(ranks: Ranks, value: Any) -> Any:
    """The first process's value, on all of them; tensors in it must lie on the CPU."""
    if ranks.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def of_all(ranks: Ranks, value: Any) -> list[Any]:
    """The values of all processes, in their order, on all of them."""
    if ranks.size == 1:
        return [value]
    values = [None] * ranks.size
    dist.all_gather_object(values, value)
    return values


def same_everywhere(ranks: Ranks, value: Any, what: str) -> None:
    """Raises UserError where a process has another value than the first."""
    if any(other != value for other in of_all(ranks, value)):
        raise UserError(f"the processes do not agree on {what}; give all machines the same data and settings")


class _Gather(torch.autograd.Function):
    """Rows (B, ...) of all processes, one below the other.

    All compute the same loss of them, so the gradient of the whole is at hand everywhere and nobody need send any: a
    process takes that of its own rows. Times the number of processes, because gradients of weights are averaged later,
    where a loss over the whole batch wants their sum.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        ctx.ranks, ctx.length = ranks, len(rows)
        parts = [torch.empty_like(rows) for _ in range(ranks.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        start = ctx.ranks.rank * ctx.length
        return gradient[start : start + ctx.length] * ctx.ranks.size, None


def gather_batch(ranks: Ranks, rows: torch.Tensor) -> torch.Tensor:
    """The rows (B, ...) that all processes have of one batch, equally many each, as one tensor with gradients."""
    return rows if ranks.size == 1 else _Gather.apply(rows, ranks)


def gather_rows(ranks: Ranks, rows: torch.Tensor) -> torch.Tensor:
    """The rows (N, D) of all processes one below the other, no gradients; N may differ."""
    if ranks.size == 1:
        return rows
    lengths = of_all(ranks, len(rows))
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def average_gradients(ranks: Ranks, parameters: Iterable[nn.Parameter]) -> None:
    """Mean over the processes, for parameters that are few and not under DistributedDataParallel."""
    if ranks.size > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= ranks.size


def any_of(ranks: Ranks, flag: bool) -> bool:
    """Whether the flag is up in any process. Everyone waits for everyone."""
    return any(of_all(ranks, flag))


def in_parallel(ranks: Ranks, model: nn.Module, device: torch.device) -> nn.Module:
    """The model such that its gradients are averaged over the processes, as they become known.

    Batch norm's statistics are those of the first process, unless its layers are synchronised.
    """
    if ranks.size == 1 or not any(p.requires_grad for p in model.parameters()):
        return model
    ids = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)


def synchronised(cfg: Config, ranks: Ranks, model: nn.Module, device: torch.device) -> tuple[nn.Module, str]:
    """The model with batch norm over the images of all processes, and a warning where that cannot be had."""
    if ranks.size == 1 or not cfg.sync_bn:
        return model, ""
    if device.type != "cuda":
        return model, "torch has no SyncBatchNorm on CPUs: each process normalises over its own share of a batch"
    return nn.SyncBatchNorm.convert_sync_batchnorm(model), ""
