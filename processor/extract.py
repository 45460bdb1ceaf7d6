"""From images to features, in memory or, a batch at a time, in a file; by one process or by several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from config import Config
from datasets.loaders import TestLoader
from model import ReIDModel
from processor.distributed import ALONE, Ranks, gather_rows
from processor.numerics import autocast
from utils.files import write_rows


def feature_batches(
    cfg: Config, model: ReIDModel, loader: TestLoader, device: torch.device, flip: bool = False, shown: bool = True
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Embeddings (B, D) float32 of a split in its order; with `flip` also the mean with the mirror image's.

    The settings say in which precision and memory layout. The model is put into evaluation mode, and back into the mode
    that it was in.
    """
    was_training = model.training
    model.eval()
    progress = tqdm(
        total=len(loader.samples), desc=loader.images.name, unit="img", leave=False, disable=None if shown else True
    )
    try:
        with contextlib.closing(progress):
            for images in loader.batches(device):
                with torch.no_grad(), autocast(device, cfg.loop.test_precision):
                    if not cfg.loop.channels_last:
                        images = images.contiguous()
                    features = model(images).float()
                    mirrored = (features + model(images.flip(3)).float()) / 2 if flip else None
                yield features, mirrored
                progress.update(len(images))
    finally:
        model.train(was_training)


def extract_features(
    cfg: Config, model: ReIDModel, loader: TestLoader, device: torch.device, flip: bool = False, ranks: Ranks = ALONE
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings (N, D) float32 on `device` of a split in its order; with `flip` also the mean with the mirror image's.

    Several processes extract a part each, no image twice, and all get the whole. The model is put into evaluation mode,
    and back into the mode that it was in.
    """
    part = loader.part(ranks.rank, ranks.size)
    batches = list(feature_batches(cfg, model, part, device, flip, ranks.first))
    none = [torch.zeros(0, model.embedding_dim, device=device)]  # of more processes than images
    plain = gather_rows(ranks, torch.cat([plain for plain, _ in batches] or none))
    return plain, gather_rows(ranks, torch.cat([mirrored for _, mirrored in batches] or none)) if flip else None


def write_features(
    cfg: Config, path: str | Path, model: ReIDModel, loader: TestLoader, device: torch.device, flip: bool = False
) -> None:
    """The embeddings of a split (with `flip`, the mirrored ones) as a .npy file (N, D) float32.

    No more than a batch is held in memory, and the file appears when it is complete.
    """
    batches = feature_batches(cfg, model, loader, device, flip)
    rows = ((mirrored if flip else plain).cpu().numpy() for plain, mirrored in batches)
    with contextlib.closing(batches):  # puts the model back into its mode if writing fails
        write_rows(path, len(loader.samples), rows)
