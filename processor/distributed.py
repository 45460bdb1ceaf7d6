"""Several processes that train one model, started by `torchrun`: each has its share of every batch and of the test.

They end up with the weights that one process would have, but for what each draws by itself (dropout, stochastic depth)
and batch norm that is not synchronised. `batch_size` is that of all together, so nothing else of the settings changes
with their number; who raises it usually raises the learning rate in proportion (Goyal et al. 2017).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from config import Config
from config.config import option
from utils.errors import UserError

PATIENCE = timedelta(hours=2)  # that others wait while one re-ranks a large gallery
MEETING = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # variables that torchrun sets beside WORLD_SIZE
# Settings that may differ from machine to machine: where things lie, and how much there is room for.
PLACES = {"dataset", "test_dataset", "data_root", "weights", "log_dir", "cache_dir", "cache_gb", "disk_gb"}
PLACES |= {"device", "workers"}


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
def joined(cfg: Config, environ: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """Meet the processes that torchrun started with this one; without torchrun, be alone.

    Each takes the GPU of its number on its machine; where there are fewer GPUs they share them, over gloo. Raises
    UserError for settings that cannot work, and where another process ends before this one.
    """
    size = int(environ.get("WORLD_SIZE", 1))
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if size == 1:
        yield ALONE
        return
    backend = take_gpu(cfg, environ)
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (ValueError, dist.DistError) as error:
        place = ":".join(environ[name] for name in MEETING[1:])
        raise UserError(f"the {size} processes could not meet at {place}: {str(error).splitlines()[0]}") from error
    try:
        yield Ranks(dist.get_rank(), size)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError("another process has ended, so this one cannot go on; see what that one said") from error
    # Not after an error: with NCCL that would wait for the others, and torchrun for this one.
    dist.destroy_process_group()


def take_gpu(cfg: Config, environ: Mapping[str, str]) -> str:
    """Make this process's GPU the current one, if there are any; the backend that the processes talk through.

    Raises UserError for settings or an environment that cannot work.
    """
    absent = [name for name in MEETING if name not in environ]
    if absent:
        raise UserError(
            f"WORLD_SIZE is {environ['WORLD_SIZE']}, so there should be other processes, but {' and '.join(absent)} "
            "is not set; start them with torchrun, or unset WORLD_SIZE to train alone"
        )
    if cfg.run.device.startswith("cuda:"):
        raise UserError(
            f"--device {cfg.run.device} is one GPU, and several processes need one each; give --device cuda"
        )
    local, on_this_machine = int(environ.get("LOCAL_RANK", 0)), int(environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = 0 if cfg.run.device == "cpu" else torch.cuda.device_count()
    if cfg.loop.backend == "nccl" and gpus < on_this_machine:
        raise UserError(
            f"--backend nccl needs a GPU for each of the {on_this_machine} processes and finds {gpus}; leave it out"
        )
    if gpus:
        torch.cuda.set_device(local % gpus)
    return cfg.loop.backend if cfg.loop.backend != "auto" else "nccl" if gpus >= on_this_machine else "gloo"


def started_as(ranks: Ranks, command: str, environ=os.environ) -> str:
    """The command that repeats the run: `python ...` as it was typed, or the torchrun that started the processes."""
    if ranks.size == 1:
        return command
    here = int(environ.get("LOCAL_WORLD_SIZE", ranks.size))
    nodes = f"--nnodes={ranks.size // here} " if ranks.size > here else ""
    return command.replace("python ", f"torchrun {nodes}--nproc-per-node={here} ", 1)


@contextlib.contextmanager
def together(ranks: Ranks, first_alone: bool = False) -> Iterator[None]:
    """What fails in the block of one process fails in all, so that none waits for another in vain: a UserError or an
    OSError is raised in the first, and the others exit in silence. In the block no process may wait for another.

    With `first_alone` the others wait until the first is through: what it leaves on the disk, they find there.
    """
    error = None
    if first_alone and not ranks.first:
        settle(ranks, None)
    try:
        yield
    except (UserError, OSError) as caught:
        error = caught
    if first_alone and ranks.first:
        settle(ranks, error)
    settle(ranks, error)


def settle(ranks: Ranks, error: Exception | None) -> None:
    """Tell the others of an error, and hear of theirs. Raises the first one in the first process."""
    said = [message for message in of_all(ranks, error and (ranks.rank, str(error))) if message]
    if said and not ranks.first:
        raise SystemExit(2)
    if error:
        raise error
    if said:
        raise UserError(f"process {said[0][0]}: {said[0][1]}")


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


def same_everywhere(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    """Raises UserError that names the facts of which a process has another value than the first."""
    first, *others = of_all(ranks, dict(facts))
    differ = ", ".join(name for name in first if any(other[name] != first[name] for other in others))
    if differ:
        settle(ranks, UserError(f"the processes do not agree on {differ}; give all the same data and settings"))


def same_settings(ranks: Ranks, cfg: Config) -> None:
    """Raises UserError that names the settings on which the processes do not agree, such as those of two machines."""
    same_everywhere(ranks, {f"{option(name)}": value for name, value in cfg.to_dict().items() if name not in PLACES})


@torch.no_grad()
def copy_first(ranks: Ranks, tensors: Iterable[torch.Tensor]) -> None:
    """Give these tensors the values that they have in the first process."""
    tensors = list(tensors)
    for dtype in dict.fromkeys(t.dtype for t in tensors if ranks.size > 1):
        some = [t for t in tensors if t.dtype == dtype]
        row = torch.cat([t.reshape(-1) for t in some])  # one message instead of hundreds
        dist.broadcast(row, 0)
        parts = row.split([t.numel() for t in some])
        torch._foreach_copy_(some, [part.view(t.shape) for part, t in zip(parts, some, strict=True)])


def mean_of_all(ranks: Ranks, values: torch.Tensor) -> torch.Tensor:
    """The mean of the processes' tensors of one shape, on all of them."""
    if ranks.size > 1:
        dist.all_reduce(values)
        values /= ranks.size
    return values


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
