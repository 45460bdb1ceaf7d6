"""The processes of a run: a single one, or several under torchrun (processor/distributed.py)."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from config import Config


class Ranks:
    """The only process: there is nothing to exchange. `distributed.DistributedRanks` documents the methods."""

    rank, size = 0, 1  # the index of this process, and the number of processes

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def command(self, command: str, environ: Mapping[str, str] = os.environ) -> str:
        return command

    def sync_errors(self, first_alone: bool = False) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def check_same(self, values: Mapping[str, Any]) -> None: ...

    def check_same_settings(self, cfg: Config) -> None: ...

    def all_gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None: ...

    def all_reduce_mean(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def gather_batch(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def parallel(self, model: nn.Module, criterion: nn.Module, device: torch.device) -> nn.Module:
        return model

    def sync_batch_norm(self, cfg: Config, model: nn.Module, device: torch.device) -> nn.Module:
        return model


ALONE = Ranks()


def init_distributed(cfg: Config, environ: Mapping[str, str] = os.environ) -> contextlib.AbstractContextManager[Ranks]:
    """Join the processes that torchrun started; without torchrun, there is only one. Raises UserError."""
    if int(environ.get("WORLD_SIZE", 1)) == 1:
        return contextlib.nullcontext(ALONE)
    from processor.distributed import join_processes

    return join_processes(cfg, environ)
