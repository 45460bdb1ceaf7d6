"""Features of any pictures by a trained model: files, folders, arrays, PIL images."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F
from tqdm import tqdm

from config import Config
from config.config import SETTINGS
from datasets.augment import normalise
from datasets.folder import list_pictures
from datasets.images import read_input, resize
from processor.checkpoint import find_checkpoint, read_checkpoint, rebuild_model, stored_config
from processor.environment import pick_device
from processor.precision import layout
from utils.errors import UserError

PIL_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "La", "RGBa"}
# Settings that shape an embedding, besides the weights.
SHAPING = ("height", "width", "backbone", "width_multiplier", "last_stride", "stride_in_1x1", "attention", "branches")
SHAPING += ("stem", "embedding", "attention_stages", "pooling", "neck", "test_feature")

Picture = str | os.PathLike | np.ndarray | Image.Image


class FeatureExtractor:
    """Maps pictures to embeddings, as in `test.py`: `FeatureExtractor("log/demo")(["a.jpg", array, image])`.

    Arrays are uint8 (H, W, 3) in RGB order; OpenCV's are BGR, so convert them: `cv2.cvtColor(a, cv2.COLOR_BGR2RGB)`.

    checkpoint: a file, a run's directory or name under `log_dir`; None: the latest run. device: as --device.
    batch_size: pictures per batch, which changes features by rounding only. half: compute in float16 on a GPU, in
    bfloat16 on a CPU. flip: the mean of the features of each picture and its mirror image. workers: threads that
    decode. progress: show a bar on a terminal. settings: for a model in an .onnx or .xml file, such as file_colour.
    Raises UserError for a wrong checkpoint, device or number.
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
        **settings: Any,
    ):
        for name, value in (("batch_size", batch_size), ("workers", workers)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        self.checkpoint = find_checkpoint(str(checkpoint) if checkpoint else None, log_dir)
        self.device = pick_device(device)
        if self.device.type == "cpu":
            torch.set_flush_denormal(True)  # weights that decayed to denormal numbers make a CPU several times slower
        state = read_checkpoint(self.checkpoint)
        self.cfg = stored_config(state, self.checkpoint).replace(**settings).check()
        model = rebuild_model(state, self.checkpoint, self.cfg)
        self.model = model.to(self.device, memory_format=layout(self.cfg)).eval()
        self.fingerprint = fingerprint(state["model"], self.cfg)
        self.batch_size, self.half, self.flip = batch_size, half, flip
        self.workers, self.progress = workers, progress
        self.width = self.model.embedding_dim  # D, of a feature

    def __call__(self, pictures: Picture | Iterable[Picture]) -> torch.Tensor:
        """Return features (N, D) float32 of length 1 on the CPU; `.numpy()` shares their memory.

        pictures: one or several (a list, a generator, any mix) of: paths of image files; uint8 RGB arrays (H, W, 3) of
        any size; PIL images. Or the path of a folder, for its pictures in the order of `datasets.folder.find_pictures`.
        Each is decoded, rotated as its EXIF tag says and resized as in a test.

        Raises UserError for a picture that cannot be read or has another type (and names it), for no picture at all,
        and for features that are NaN or infinite.
        """
        features = [rows for _, rows in self.batches(as_iterable(pictures))]
        if not features:
            raise UserError("there are no pictures to extract features of; the list is empty")
        return torch.cat(features)

    def batches(
        self, pictures: Iterable[Picture], bad: dict[int, str] | None = None
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield features batch by batch: indices into `pictures`, from 0, and the features (B, D).

        bad: receives index and reason of each picture that cannot be read; these are left out. None: the first such
        picture raises UserError.
        """
        total = len(pictures) if hasattr(pictures, "__len__") else None
        hidden = None if self.progress else True  # None: hidden without a terminal
        with tqdm(total=total, desc="features", unit="img", leave=False, disable=hidden) as bar:
            for block in self._read(pictures):
                errors = {place: picture for place, picture in block.items() if isinstance(picture, UserError)}
                if errors and bad is None:
                    raise next(iter(errors.values()))
                places = [place for place in block if place not in errors]
                if places:
                    yield places, self._features(np.stack([block[place] for place in places]))
                for place, error in errors.items():
                    bad[place] = str(error)
                bar.update(len(block))

    def _read(self, pictures: Iterable[Picture]) -> Iterator[dict[int, np.ndarray | UserError]]:
        """Yield blocks of arrays (height, width, 3) or errors, by index; the next block is read while one is used."""
        source = enumerate(pictures)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="read-pictures") as pool:

            def start_block() -> dict[int, Future]:
                # Images are opened in this thread only: PIL reads files lazily, and an image may be listed twice.
                some = {place: as_array(picture, place) for place, picture in islice(source, self.batch_size)}
                return {place: pool.submit(self._resize, picture) for place, picture in some.items()}

            for now, _next in pairwise(chain(iter(start_block, {}), [None])):
                yield {place: future.result() for place, future in now.items()}

    def _resize(self, picture: Any) -> np.ndarray | UserError:
        data = self.cfg.data
        if isinstance(picture, UserError):
            return picture
        if isinstance(picture, (str, os.PathLike)):
            try:
                return read_input(picture, data)
            except UserError as error:
                return error
        return resize(picture, data.height, data.width, data.shrink)

    def _features(self, pictures: np.ndarray) -> torch.Tensor:
        """(B, height, width, 3) uint8 to (B, D)."""
        images = normalise(torch.from_numpy(pictures).to(self.device)).contiguous(memory_format=layout(self.cfg))
        dtype = torch.bfloat16 if self.device.type == "cpu" else torch.float16
        with torch.no_grad(), torch.autocast(self.device.type, dtype, enabled=self.half):
            features = self.model(images).float()
            if self.flip:
                features = (features + self.model(images.flip(3)).float()) / 2
        if not torch.isfinite(features).all():
            fix = "; try it without half precision" if self.half else "; it has diverged"
            raise UserError(f"{self.checkpoint} gives features that are NaN or infinite{fix}")
        return F.normalize(features).cpu()


def fingerprint(weights: dict[str, torch.Tensor], cfg: Config) -> str:
    """16 hex digits that identify all weights and settings behind an embedding: if equal, features can be compared."""
    settings = {name: cfg.get(name) for name in SHAPING}
    for name in ("shrink", "pixel_range", "file_colour", "file_scale", "file_mean", "file_std", "file_output"):
        if cfg.get(name) != SETTINGS[name].default:
            settings[name] = cfg.get(name)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def as_iterable(pictures: Any) -> Iterable[Any]:
    """Return one picture, several, or those of a folder, as an iterable. Raises UserError for anything else."""
    dims = getattr(pictures, "ndim", None)  # of an array: a picture, a row of paths, or a batch of pictures
    if isinstance(pictures, (str, os.PathLike)) and Path(pictures).is_dir():
        return list_pictures(pictures)
    if isinstance(pictures, (str, os.PathLike, Image.Image)) or dims == 3:
        return [pictures]
    if isinstance(pictures, bytes) or not isinstance(pictures, Iterable) or dims not in (None, 1, 4):
        raise UserError(f"pictures cannot be {kind_of(pictures)}; give paths, (H, W, 3) arrays, PIL images or a folder")
    return pictures


def as_array(picture: Any, place: int) -> Any:
    """Return an image as an array (H, W, 3), a path unchanged, and for anything else a UserError with its index."""
    if isinstance(picture, (str, os.PathLike)):
        return picture
    reason = f"is {kind_of(picture)}; give a path, a uint8 array (H, W, 3) in RGB order, or a PIL image"
    if isinstance(picture, np.ndarray):
        if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size:
            return np.ascontiguousarray(picture)
        reason = f"is an array of {picture.dtype} {picture.shape}, not of uint8 (H, W, 3) in RGB order"
    elif isinstance(picture, Image.Image) and picture.mode not in PIL_MODES:
        reason = f"is a PIL image of mode {picture.mode}; scale it to 0..255 and convert it to RGB"
    elif isinstance(picture, Image.Image):
        try:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            reason = f"is a PIL image that cannot be read: {error}"
    return UserError(f"picture {place} of the list (from 0) {reason}")


def kind_of(thing: Any) -> str:
    return f"a {type(thing).__name__}" + (f" of shape {tuple(thing.shape)}" if hasattr(thing, "shape") else "")
