"""A model that several processes train together, and the batch that they share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from config import Config
from loss import Criterion
from model import ReIDModel
from processor.distributed import Ranks


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


class Judged(nn.Module):
    """A model whose outputs that no loss looks at are cut off. What leads there alone gets no gradient, as in one
    process: DistributedDataParallel follows the outputs to know which gradients to wait for."""

    def __init__(self, model: ReIDModel, identity: bool, metric: bool):
        super().__init__()
        self.model, self.identity, self.metric = model, identity, metric

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        logits, features = self.model(images)
        return _cut(logits, self.identity), _cut(features, self.metric)


def _cut(rows: Sequence[torch.Tensor], judged: bool) -> list[torch.Tensor]:
    return [x if judged else x.detach() for x in rows]


def in_parallel(ranks: Ranks, model: ReIDModel, criterion: Criterion, device: torch.device) -> nn.Module:
    """The model such that its gradients are averaged over the processes, as they become known."""
    if ranks.size == 1:
        return model
    identity, metric = criterion.cfg.loss.id_weight > 0, bool(criterion.metric or criterion.centers)
    whole = identity and (metric or len(model.heads) == len(model.branches))
    options = {"device_ids": [device] if device.type == "cuda" else None, "find_unused_parameters": not whole}
    options["broadcast_buffers"] = False  # batch norm's statistics are sent after each step
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 has another name for that option
        return nn.parallel.DistributedDataParallel(model if whole else Judged(model, identity, metric), **options)


def synchronised(cfg: Config, ranks: Ranks, model: nn.Module, device: torch.device) -> tuple[nn.Module, str]:
    """The model with batch norm over the images of all processes, and a warning where that cannot be had."""
    if ranks.size == 1 or not cfg.loop.sync_bn:
        return model, ""
    if device.type != "cuda":
        return model, "torch has no SyncBatchNorm on CPUs: each process normalises over its own share of a batch"
    if cfg.model.backbone.startswith("timm/"):
        from timm.layers import convert_sync_batchnorm  # keeps the activation that timm puts into its batch norm

        return convert_sync_batchnorm(model), ""
    return nn.SyncBatchNorm.convert_sync_batchnorm(model), ""
