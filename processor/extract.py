"""From images to features, in memory or, a batch at a time, in a file; by one process or by several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from datasets.loaders import TestLoader
from model import ReIDModel
from utils.files import write_rows


def feature_batches(
    model: ReIDModel, loader: TestLoader, device: torch.device, flip: bool = False, channels_last: bool = True
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Embeddings (B, D) float32 of a split in its order; with `flip` also the mean with the mirror image's.

    The model is put into evaluation mode, and back into the mode that it was in.
    """
    was_training = model.training
    model.eval()
    progress = tqdm(total=len(loader.samples), desc=loader.images.name, unit="img", leave=False, disable=None)
    try:
        with contextlib.closing(progress):
            for images in loader.batches(device):
                with torch.no_grad():
                    if not channels_last:
                        images = images.contiguous()
                    features = model(images).float()
                    mirrored = (features + model(images.flip(3)).float()) / 2 if flip else None
                yield features, mirrored
                progress.update(len(images))
    finally:
        model.train(was_training)


def extract_features(
    model: ReIDModel, loader: TestLoader, device: torch.device, flip: bool = False, channels_last: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings (N, D) float32 on `device` of a split in its order; with `flip` also the mean with the mirror image's.

    The model is put into evaluation mode, and back into the mode that it was in.
    """
    plain, flipped = zip(*feature_batches(model, loader, device, flip, channels_last), strict=True)
    return torch.cat(plain), torch.cat(flipped) if flip else None


def write_features(
    path: str | Path,
    model: ReIDModel,
    loader: TestLoader,
    device: torch.device,
    flip: bool = False,
    channels_last: bool = True,
) -> None:
    """The embeddings of a split (with `flip`, the mirrored ones) as a .npy file (N, D) float32.

    No more than a batch is held in memory, and the file appears when it is complete.
    """
    batches = feature_batches(model, loader, device, flip, channels_last)
    rows = ((mirrored if flip else plain).cpu().numpy() for plain, mirrored in batches)
    with contextlib.closing(batches):  # puts the model back into its mode if writing fails
        write_rows(path, len(loader.samples), rows)
