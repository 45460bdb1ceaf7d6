"""Training in several processes, started by `torchrun`: each has its share of every batch and of every evaluation.

The final weights are those of a single process, except for random numbers that each process draws itself (dropout,
stochastic depth) and for batch norm that is not synchronized. `batch_size` is that of all processes together, so no
setting depends on their number; the learning rate is usually raised in proportion to batch size (Goyal et al. 2017).
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from config import Config
from config.config import option
from processor.ranks import Ranks
from utils.errors import UserError, reason

TIMEOUT = timedelta(hours=2)  # others wait while one re-ranks a large gallery
SAY_AFTER, END_AFTER = 60.0, 20.0  # seconds that a process waits for others, see `Waits`
# Settings that may differ between machines: paths and the resources there.
LOCAL_SETTINGS = {"dataset", "test_dataset", "data_root", "weights", "log_dir", "cache_dir", "cache_gb", "disk_gb"}
LOCAL_SETTINGS |= {"device", "workers"}


@contextlib.contextmanager
def join_processes(cfg: Config, environ: Mapping[str, str]) -> Iterator[Ranks]:
    """Join the processes that torchrun started.

    Each process uses the GPU with its local number. If there are fewer GPUs, processes share them, with gloo. Raises
    UserError for settings that cannot work, and if another process ends early.
    """
    if dist.is_initialized():
        yield DistributedRanks(dist.get_rank(), dist.get_world_size())
        return
    size, backend = int(environ["WORLD_SIZE"]), choose_backend(cfg, environ)
    place = ":".join(environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    with Waits() as waits:
        try:
            with waits.on(f"all {size} processes to connect at {place}"):
                dist.init_process_group(backend, timeout=TIMEOUT)
        except (ValueError, dist.DistError) as error:
            raise UserError(
                f"the {size} processes of WORLD_SIZE could not connect at {place}: {reason(error)}; start them with "
                "torchrun, or unset WORLD_SIZE to train in one process"
            ) from error
        done = False
        try:
            yield DistributedRanks(dist.get_rank(), size, waits)
            done = True
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise UserError("another process has ended, so this one cannot continue; see its message") from error
        finally:
            if done or backend == "gloo":  # after an error NCCL would wait for the others, and torchrun for this one
                dist.destroy_process_group()


class Waits:
    """Watches waits of this process. Inside the `with` block, a thread reports a wait after SAY_AFTER seconds, and ends
    a waiting process END_AFTER seconds after a signal (not SIGUSR1, which asks for a checkpoint), or 5 after a second
    signal: Python handles none while torch waits. On Linux, the process also gets SIGTERM when torchrun ends."""

    def __init__(self):
        self.now: tuple[float, str] | None = None  # since when, and for what

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Record that this process waits for `what` inside the block."""
        self.now = time.monotonic(), what
        try:
            yield
        finally:
            self.now = None

    def __enter__(self) -> "Waits":
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
        read, self.write = os.pipe()
        os.set_blocking(self.write, False)
        signal.set_wakeup_fd(self.write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()
        return self

    def __exit__(self, *_error) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self.write)

    def _watch(self, read: int) -> None:
        signals: list[tuple[float, int]] = []
        said = None
        while True:
            if select.select([read], [], [], 0.5)[0]:
                number = os.read(read, 1)
                if not number:
                    return os.close(read)
                signals.append((time.monotonic(), number[0]))
            wait, now = self.now, time.monotonic()
            since, what = wait or (now, "")
            if wait and now - since > SAY_AFTER and wait is not said:
                said = wait
                os.write(2, f"waiting for {what} for {now - since:.0f} s; is a process stopped or slow?\n".encode())
            early = [at for at, number in signals if number != signal.SIGUSR1]
            if (signals[1:] and now - signals[1][0] > 5) or (early and now - max(since, early[0]) > END_AFTER and wait):
                os.write(2, f"stopped while waiting for {what or 'the other processes'}\n".encode())
                os._exit(128 + signals[-1][1])


def choose_backend(cfg: Config, environ: Mapping[str, str]) -> str:
    """Return the communication backend, and make this process's GPU, if any, the current one. Raises UserError."""
    if not cfg.loop.gather and cfg.data.sampler in ("pk", "pk_cameras"):
        share = cfg.data.batch_size // int(environ["WORLD_SIZE"])
        if share < 2 * cfg.data.images_per_id:
            raise UserError(
                f"--no-gather leaves each process a batch of {share}, fewer than two identities of "
                f"{cfg.data.images_per_id} images; raise --batch-size, or leave out --no-gather"
            )
    if cfg.run.device.startswith("cuda:"):
        raise UserError(
            f"--device {cfg.run.device} is one GPU, but several processes need one each; give --device cuda"
        )
    local_rank, local_size = int(environ.get("LOCAL_RANK", 0)), int(environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = 0 if cfg.run.device == "cpu" else torch.cuda.device_count()
    if cfg.loop.backend == "nccl" and gpus < local_size:
        raise UserError(f"--backend nccl needs a GPU for each of the {local_size} processes, not {gpus}; leave it out")
    if gpus:
        torch.cuda.set_device(local_rank % gpus)
    return cfg.loop.backend if cfg.loop.backend != "auto" else "nccl" if gpus >= local_size else "gloo"


@dataclass(frozen=True)
class DistributedRanks(Ranks):
    """One of several processes. All processes must call each method together."""

    rank: int
    size: int
    waits: Waits = field(default_factory=Waits)

    def command(self, command: str, environ: Mapping[str, str] = os.environ) -> str:
        """Return the command that repeats the run: `python ...` becomes torchrun with the same number of processes."""
        local_size = int(environ.get("LOCAL_WORLD_SIZE", self.size))
        nodes = f"--nnodes={self.size // local_size} " if self.size > local_size else ""
        return command.replace("python ", f"torchrun {nodes}--nproc-per-node={local_size} ", 1)

    @contextlib.contextmanager
    def sync_errors(self, first_alone: bool = False) -> Iterator[None]:
        """Let an error in the block of one process end all, so that none waits for another forever: the first process
        raises it (UserError or OSError), the others exit silently. No process may wait for another inside the block.

        first_alone: the others wait until the first is done, and can use the files that it has written.
        """
        error = None
        if first_alone and not self.first:
            self._raise_any(None)
        try:
            yield
        except (UserError, OSError) as caught:
            error = caught
        if first_alone and self.first:
            self._raise_any(error)
        self._raise_any(error)

    def _raise_any(self, error: Exception | None) -> None:
        messages = [message for message in self.all_gather(error and (self.rank, str(error))) if message]
        if messages and not self.first:
            raise SystemExit(2)
        if error:
            raise error
        if messages:
            raise UserError(f"process {messages[0][0]}: {messages[0][1]}")

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Raises UserError with the names of the values that are not the same in all processes."""
        first, *others = self.all_gather(dict(values))
        differ = ", ".join(name for name in first if any(other[name] != first[name] for other in others))
        if differ:
            self._raise_any(UserError(f"the processes do not agree on {differ}; give all the same data and settings"))

    def check_same_settings(self, cfg: Config) -> None:
        """Raises UserError with the names of the settings that are not the same in all processes."""
        self.check_same({option(name): value for name, value in cfg.to_dict().items() if name not in LOCAL_SETTINGS})

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in order, in every process; tensors in them must be on the CPU."""
        values = [None] * self.size
        with self.waits.on("values of the other processes"):
            dist.all_gather_object(values, value)
        return values

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite these tensors with those of the first process."""
        tensors = list(tensors)
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            some = [t for t in tensors if t.dtype == dtype]
            row = torch.cat([t.reshape(-1) for t in some])  # one message instead of hundreds
            with self.waits.on("tensors of the first process"):
                dist.broadcast(row, 0)
            parts = row.split([t.numel() for t in some])
            torch._foreach_copy_(some, [part.view(t.shape) for part, t in zip(parts, some, strict=True)])

    def all_reduce_mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of the processes' tensors (of one shape) in every process; `values` is overwritten."""
        with self.waits.on("losses of the other processes"):
            dist.all_reduce(values)
        return values.div_(self.size)

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Concatenate the rows (N, D) of all processes, without gradients; N may differ."""
        lengths = self.all_gather(len(rows))
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in lengths]
        with self.waits.on("features of the other processes"):
            dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def gather_batch(self, rows: torch.Tensor) -> torch.Tensor:
        """Concatenate the rows (B, ...) of one batch from all processes, the same number from each, with gradients."""
        return _GatherBatch.apply(rows, self)

    def parallel(self, model: nn.Module, criterion: nn.Module, device: torch.device) -> nn.Module:
        """Wrap the model so that its gradients are averaged over the processes."""
        logits = criterion.cfg.loss.id_weight > 0
        options = {"device_ids": [device] if device.type == "cuda" else None, "find_unused_parameters": not logits}
        options["broadcast_buffers"] = False  # batch norm's statistics are broadcast after each step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 renames that option
            return nn.parallel.DistributedDataParallel(model if logits else DetachedLogits(model), **options)

    def sync_batch_norm(self, cfg: Config, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the model with batch norm over the images of all processes, if set in the settings; not on CPUs."""
        if not cfg.loop.sync_bn or device.type != "cuda":
            return model
        if cfg.model.backbone.startswith("timm/"):
            from timm.layers import convert_sync_batchnorm  # keeps the activation inside timm's batch norm

            return convert_sync_batchnorm(model)
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)


class _GatherBatch(torch.autograd.Function):
    """Gathers rows with gradients. All processes compute the same loss of the gathered rows, so each takes the gradient
    of its own rows, times the number of processes: DistributedDataParallel averages the gradients of weights, but a
    loss over the whole batch needs their sum."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, ranks: DistributedRanks) -> torch.Tensor:
        ctx.ranks, ctx.length = ranks, len(rows)
        parts = [torch.empty_like(rows) for _ in range(ranks.size)]
        with ranks.waits.on("the batches of the other processes"):
            dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        start = ctx.ranks.rank * ctx.length
        return gradient[start : start + ctx.length] * ctx.ranks.size, None


class DetachedLogits(nn.Module):
    """A model whose logits, which no loss uses, are detached: DistributedDataParallel follows the outputs to find the
    weights whose gradients it must wait for, and the weights of the classifiers get none."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        logits, features = self.model(images)
        return [x.detach() for x in logits], features
