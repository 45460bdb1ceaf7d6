"""Features of any pictures by a trained model: files, folders, arrays, PIL images."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F
from tqdm import tqdm

from config import Config
from datasets.augment import normalise
from datasets.folder import find_pictures
from datasets.images import read_image
from processor.checkpoint import find_checkpoint, read_checkpoint, rebuild_model
from processor.environment import pick_device
from utils.errors import UserError

PIL_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "La", "RGBa"}
# Settings that shape an embedding beside the weights.
SHAPING = ("height", "width", "backbone", "width_multiplier", "last_stride", "stride_in_1x1", "attention", "branches")
SHAPING += ("attention_stages", "pooling", "neck", "test_feature")

Picture = str | os.PathLike | np.ndarray | Image.Image


class FeatureExtractor:
    """Pictures to embeddings, as `test.py` computes them: `FeatureExtractor("log/demo")(["a.jpg", array, image])`.

    checkpoint: a file, a run's directory or name under `log_dir`; None: the newest run. device: as --device.
    batch_size: pictures at a time, which does not change the features beyond rounding. half: compute in float16 on a
    GPU, in bfloat16 on a CPU. flip: the mean of each picture's and its mirror image's feature. workers: threads that
    decode. progress: show a bar on a terminal. Raises UserError where there is no such checkpoint or device.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        device: str = "auto",
        batch_size: int = 64,
        half: bool = False,
        flip: bool = False,
        workers: int = 4,
        progress: bool = True,
        log_dir: str | Path = "log",
    ):
        for name, value in (("batch_size", batch_size), ("workers", workers)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        self.checkpoint = find_checkpoint(str(checkpoint) if checkpoint else None, log_dir)
        self.device = pick_device(device)
        state = read_checkpoint(self.checkpoint)
        self.cfg = Config.from_dict(state["config"])
        self.model = rebuild_model(state, self.checkpoint, self.cfg).to(self.device).eval()
        if self.cfg.loop.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.fingerprint = fingerprint(state["model"], self.cfg)
        self.batch_size, self.half, self.flip = batch_size, half, flip
        self.workers, self.progress = workers, progress

    @property
    def width(self) -> int:
        """D, the width of a feature."""
        return self.model.embedding_dim

    def __call__(self, pictures: Picture | Iterable[Picture]) -> torch.Tensor:
        """Features (N, D) float32 of length 1 on the CPU; `.numpy()` gives the same memory as an array.

        pictures: one or several (a list, a generator, mixed as you like) of: paths of image files; uint8 RGB arrays
        (H, W, 3) of any size; PIL images. Or the path of a folder, whose pictures come in the order of
        `datasets.folder.find_pictures`. Each is decoded, turned by its EXIF tag and resized as in a test.

        Raises UserError that names what cannot be read or is of another kind, where there is no picture at all, and for
        features that are not finite.
        """
        features = [rows for _, rows in self.batches(_listed(pictures))]
        if not features:
            raise UserError("there are no pictures to extract features of; the list is empty")
        return torch.cat(features)

    def batches(
        self, pictures: Iterable[Picture], bad: dict[int, str] | None = None
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """The same a batch at a time: places in `pictures`, counted from 0, and their features (B, D).

        bad: takes the places of pictures that cannot be read, with the reasons, and these are left out; None: the first
        of them is a UserError.
        """
        total = len(pictures) if hasattr(pictures, "__len__") else None
        hidden = None if self.progress else True  # None: hidden where no terminal is
        with tqdm(total=total, desc="features", unit="img", leave=False, disable=hidden) as bar:
            first = 0
            for block in self._read(pictures):
                reasons = {first + i: str(x) for i, x in enumerate(block) if isinstance(x, UserError)}
                if reasons and bad is None:
                    raise UserError(next(iter(reasons.values())))
                places = [place for place in range(first, first + len(block)) if place not in reasons]
                if places:
                    yield places, self._features([block[place - first] for place in places])
                if reasons:
                    bad.update(reasons)
                first += len(block)
                bar.update(len(block))

    def _read(self, pictures: Iterable[Picture]) -> Iterator[list[np.ndarray | UserError]]:
        """Arrays (height, width, 3) in blocks, or what is wrong with them; the next is read while one is used."""
        source = enumerate(pictures)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="read-pictures") as pool:

            def block() -> list[Future]:
                # Opened by this thread alone: PIL reads its files late, and one image may be in the list twice.
                some = [(i, _opened(picture)) for i, picture in islice(source, self.batch_size)]
                return [pool.submit(self._resized, *pair) for pair in some]

            coming = block()
            try:
                while coming:
                    now, coming = coming, block()
                    yield [future.result() for future in now]
            finally:
                pool.shutdown(cancel_futures=True)

    def _resized(self, number: int, picture: Any) -> np.ndarray | UserError:
        """A picture as the model wants it, or the error that says why not."""
        height, width = self.cfg.data.height, self.cfg.data.width
        if isinstance(picture, (str, os.PathLike)):
            try:
                return read_image(picture, height, width)
            except UserError as error:
                return error
        if isinstance(picture, UserError):
            return UserError(f"picture {number} of the list (from 0) {picture}")
        shrinks = picture.shape[0] > height or picture.shape[1] > width  # as read_image has it
        return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

    def _features(self, pictures: list[np.ndarray]) -> torch.Tensor:
        """(B, D) of a list of arrays (height, width, 3)."""
        images = normalise(torch.from_numpy(np.stack(pictures)).to(self.device))
        if not self.cfg.loop.channels_last:
            images = images.contiguous()
        kind = torch.bfloat16 if self.device.type == "cpu" else torch.float16
        half = torch.autocast(self.device.type, kind) if self.half else contextlib.nullcontext()
        with torch.no_grad(), half:
            features = self.model(images).float()
            if self.flip:
                features = (features + self.model(images.flip(3)).float()) / 2
        if not torch.isfinite(features).all():
            mend = "; try it without half precision" if self.half else "; it has diverged"
            raise UserError(f"{self.checkpoint} gives features that are NaN or infinite{mend}")
        return F.normalize(features.float()).cpu()


def fingerprint(weights: dict[str, torch.Tensor], cfg: Config) -> str:
    """16 hexadecimal digits of all weights and of the settings that shape an embedding: equal ones mean that features
    can be compared, wherever the checkpoint's file lies and whatever else it holds."""
    settings = {name: cfg.get(name) for name in SHAPING}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _listed(pictures: Any) -> Iterable[Any]:
    """One picture, several, or those of a folder, as something to go through. Raises UserError for anything else."""
    dims = getattr(pictures, "ndim", None)  # of an array: a picture, or a row or a batch of them
    if isinstance(pictures, (str, os.PathLike)) and Path(pictures).is_dir():
        found, others = find_pictures(pictures)
        if not found:
            raise UserError(f"{pictures} and the folders in it hold no picture, but {others} other files")
        return [Path(pictures, path) for path in found]
    if isinstance(pictures, (str, os.PathLike, Image.Image)) or dims == 3:
        return [pictures]
    if isinstance(pictures, bytes) or not isinstance(pictures, Iterable) or dims not in (None, 1, 4):
        raise UserError(f"pictures cannot be {_kind(pictures)}; give paths, (H, W, 3) arrays, PIL images or a folder")
    return pictures


def _opened(picture: Any) -> Any:
    """A path as it is, an image as an array (H, W, 3), and anything else as the UserError that refuses it."""
    if isinstance(picture, (str, os.PathLike)):
        return picture
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            return UserError(
                f"is an array of {picture.dtype} {picture.shape}; it must be uint8 (H, W, 3), in RGB order"
            )
        return np.ascontiguousarray(picture)
    if not isinstance(picture, Image.Image):
        return UserError(f"is {_kind(picture)}; give a path, a uint8 array (H, W, 3) in RGB order, or a PIL image")
    if picture.mode not in PIL_MODES:
        return UserError(f"is a PIL image of mode {picture.mode}; scale it to 0..255 and convert it to RGB")
    try:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        return UserError(f"is a PIL image that cannot be read: {error}")


def _kind(thing: Any) -> str:
    return f"a {type(thing).__name__}" + (f" of shape {tuple(thing.shape)}" if hasattr(thing, "shape") else "")
