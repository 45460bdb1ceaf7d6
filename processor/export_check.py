"""What an exported file does beside the model that it was made from: embeddings, scores, time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby, islice

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from config import Config
from datasets.augment import normalise
from datasets.images import decode, read_image
from datasets.loaders import TestLoader, readable
from datasets.make import make_dataset
from processor.evaluate import plain_settings, score_features, score_values
from processor.export_input import Preprocess
from processor.test import TestJob
from utils.errors import UserError

Run = Callable[[torch.Tensor], torch.Tensor]  # what a file takes to embeddings (B, D)

LEAST_COSINE = 0.9999  # between an embedding of a float32 file and PyTorch's
CROPS = 64  # of the test split, on which a file is compared
CALIBRATION_CROPS = 128  # of the training split
BATCH = 32
MOST_PIXELS = 2**22  # of pictures in a batch
LATENCY_BATCHES = (1, 16)
RUNS = 7  # that are timed, after two that are not


def spread(samples: list, count: int) -> list:
    """`count` of them at even distances; all, where there are no more."""
    return [samples[i] for i in np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)]


def crops_of(test: TestJob) -> list[str]:
    """Paths of the pictures of the test split that a file is compared on."""
    return [s.path for s in spread([*test.query.samples, *test.gallery.samples], CROPS)]


def calibration_crops(cfg: Config) -> np.ndarray:
    """(N, 3, height, width) float32 of the training split, as the model takes them. Raises UserError without one."""
    dataset = make_dataset(cfg)
    if not dataset.train:
        raise UserError(f"--int8 needs pictures of the training split, and {dataset.name} has none; leave it out")
    samples, images = readable(cfg.replace(disk_gb=0), spread(dataset.train, CALIBRATION_CROPS), "train")
    return normalise(images.read(range(len(samples)))).contiguous().numpy()


def batches(cfg: Config, paths: Sequence[str], preprocessing: bool) -> Iterator[torch.Tensor]:
    """What a file takes of these pictures in their order: normalised (B, 3, height, width), or with preprocessing uint8
    (B, H, W, 3) in their own size. Neighbours of one size make a batch."""
    load = decode if preprocessing else partial(read_image, height=cfg.data.height, width=cfg.data.width)
    for shape, pictures in groupby(map(load, paths), key=lambda picture: picture.shape):
        most = max(1, min(BATCH, MOST_PIXELS // (shape[0] * shape[1])))
        while batch := list(islice(pictures, most)):
            raw = torch.from_numpy(np.stack(batch))
            yield raw if preprocessing else normalise(raw)


def compare(test: TestJob, run: Run, preprocessing: bool) -> dict[str, float]:
    """How near a file's embeddings of test pictures are to those of the model after our own preprocessing.

    With preprocessing also how its pictures differ from ours: the largest difference in grey levels, and the share of
    the values that differ.
    """
    paths = crops_of(test)
    with torch.no_grad():
        reference = torch.cat([test.model(x).float() for x in batches(test.cfg, paths, False)])
        # The first picture also as a batch of one.
        given = chain(batches(test.cfg, paths[:1], preprocessing), batches(test.cfg, paths, preprocessing))
        embeddings = torch.cat([run(x).float() for x in given])
    found = {"crops": len(paths), "lowest_cosine": lowest_cosine(embeddings, torch.cat([reference[:1], reference]))}
    return found | (pixel_difference(test.cfg, paths) if preprocessing else {})


def lowest_cosine(embeddings: torch.Tensor, reference: torch.Tensor) -> float:
    """The smallest cosine of two rows (N, D) that belong together; NaN where one is not finite. Equal rows are at 1."""
    cosine = F.cosine_similarity(embeddings.double(), reference.double())
    return torch.where((embeddings == reference).all(1), 1.0, cosine).min().item()


def pixel_difference(cfg: Config, paths: Sequence[str]) -> dict[str, float]:
    """Of pictures that `Preprocess` and `read_image` resize."""
    resize, most, differing = Preprocess(cfg.data.height, cfg.data.width).resize, 0.0, 0.0
    for path in paths:
        ours = torch.from_numpy(read_image(path, cfg.data.height, cfg.data.width))
        difference = (resize(torch.from_numpy(decode(path))[None])[0] - ours).abs()
        most = max(most, difference.max().item())
        differing += (difference > 0).float().mean().item() / len(paths)
    return {"largest_difference_grey_levels": most, "share_of_values_that_differ": round(differing, 6)}


def refuse_unlike(found: dict[str, float], precision: str) -> None:
    """Raises UserError where `compare` found embeddings unlike PyTorch's; half precision and 8 bits may differ."""
    cosine = found["lowest_cosine"]
    if math.isnan(cosine):
        mend = (
            "leave --half or --int8 out" if precision != "float32" else "the model's own are not either; train it anew"
        )
        raise UserError(f"the file is not kept, because it gives embeddings that are not finite; {mend}")
    if precision == "float32" and cosine < LEAST_COSINE:
        raise UserError(
            f"the file is not kept, because its embeddings are not PyTorch's: of {found['crops']} test images, the "
            f"lowest cosine is {cosine:.6f}, below {LEAST_COSINE}"
        )


def score_both(test: TestJob, run: Run, preprocessing: bool) -> dict[str, dict[str, float]]:
    """Scores on the test split of PyTorch's features and of the file's, both without mirrored images."""

    def features(run: Run, loader: TestLoader, raw: bool) -> torch.Tensor:
        rows = (loader.rows[i : i + BATCH] for i in range(0, len(loader.rows), BATCH))
        read = (images for _, images in loader.images.batches(rows))
        return torch.cat([run(images if raw else normalise(images)).float() for images in read])

    ids = (test.query.pids, test.gallery.pids, test.query.camids, test.gallery.camids)
    scores = {}
    for name, run_one, raw in (("PyTorch", test.model, False), ("file", run, preprocessing)):
        with torch.no_grad():
            pair = tuple(features(run_one, loader, raw) for loader in (test.query, test.gallery))
        scores[name] = score_features(plain_settings(test.cfg), {"plain": pair}, ids).scores["plain"]
    return score_values(scores)


def latencies(test: TestJob, run: Run, preprocessing: bool) -> list[dict[str, float]]:
    """Median milliseconds of the file and of PyTorch's modules in float32, for pictures of the model's input size."""
    cfg = test.cfg
    raw = torch.from_numpy(read_image(crops_of(test)[0], cfg.data.height, cfg.data.width))[None]
    way, one = ([Preprocess(cfg.data.height, cfg.data.width)], raw) if preprocessing else ([], normalise(raw))
    rows = []
    for size in LATENCY_BATCHES:
        batch = one.repeat(size, 1, 1, 1)
        file, pytorch = (1e3 * s for s in median_seconds((run, nn.Sequential(*way, test.model)), batch))
        rows.append({"batch": size, "ms": round(file, 3), "pytorch_ms": round(pytorch, 3)})
        rows[-1]["ratio"] = round(file / pytorch, 3)
    return rows


def median_seconds(runs: Sequence[Run], batch: torch.Tensor) -> list[float]:
    """From a batch to its embeddings. They take turns, so that what else the machine does falls on all of them."""
    seconds: list[list[float]] = [[] for _ in runs]
    with torch.no_grad():
        for _ in range(2 + RUNS):
            for run, taken in zip(runs, seconds, strict=True):
                start = time.perf_counter()
                run(batch)
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken[2:]) for taken in seconds]
