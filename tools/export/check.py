"""What an exported file does compared with the model that it was made from: embeddings, scores, time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from config import Config
from datasets.augment import MEAN, STD, normalise
from datasets.images import decode, read_image
from datasets.loaders import TestLoader
from datasets.make import make_dataset
from processor.evaluate import do_inference, plain_settings, score_values
from processor.test import TestJob
from tools.export.graph import INPUT, OUTPUT, Preprocess, load_package, quiet
from utils.errors import UserError
from utils.latency import time_calls

Runner = Callable[[torch.Tensor], torch.Tensor]  # what a file takes to embeddings (B, D)

LEAST_COSINE = 0.9999  # between an embedding of a float32 file and PyTorch's
CROPS = 64  # of the test split, on which a file is compared
CALIBRATION_CROPS = 128  # of the training split
LATENCY_BATCHES = (1, 16)
RUNS = 7  # that are timed


def open_onnx(model: str | bytes) -> Runner:
    """An ONNX file, or its bytes, to be called on the CPU with PyTorch's number of threads."""
    ort = load_package("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.contiguous().numpy()})[0])


def open_pt2(path: str | Path) -> Runner:
    """A .pt2 file to be called."""
    with open(path, "rb") as file, quiet():
        module = torch.export.load(file).module()
    return lambda images: module(images)  # a function, as the module refuses to be a part of another


class FileModel(nn.Module):
    """A file in place of its model: normalised images (B, 3, H, W) to embeddings (B, D)."""

    def __init__(self, run: Runner, preprocessing: bool, width: int):
        super().__init__()
        self.run, self.preprocessing, self.embedding_dim = run, preprocessing, width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.run(to_pixels(images) if self.preprocessing else images)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Normalised images (B, 3, H, W) back to (B, H, W, 3) uint8."""
    return ((images.permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)) * 255).round().to(torch.uint8)


def spread(samples: list, count: int) -> list:
    """`count` of them at even distances; all, if there are no more."""
    return [samples[i] for i in np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)]


def calibration_crops(cfg: Config) -> torch.Tensor:
    """(N, 3, height, width) of the training split, normalised. Raises UserError without one."""
    dataset = make_dataset(cfg)
    if not dataset.train:
        raise UserError(f"--int8 needs pictures of the training split, and {dataset.name} has none; leave it out")
    loader = TestLoader(cfg.replace(disk_gb=0), spread(dataset.train, CALIBRATION_CROPS), "train")
    return torch.cat(list(loader.batches(torch.device("cpu"))))


@torch.no_grad()
def compare(test: TestJob, run: Runner, preprocessing: bool) -> dict[str, float]:
    """How near a file's embeddings of test pictures are to those of the model: in a batch, and one by one, with
    preprocessing then in their own size."""
    data = test.cfg.data
    paths = [s.path for s in spread([*test.query.samples, *test.gallery.samples], CROPS)]
    crops = torch.from_numpy(np.stack([read_image(path, data.height, data.width, data.pixel_range) for path in paths]))
    reference = test.model(normalise(crops)).float()
    batch = crops if preprocessing else normalise(crops)
    pictures = (
        [torch.from_numpy(decode(path, data.pixel_range))[None] for path in paths] if preprocessing else batch.split(1)
    )
    embeddings = torch.cat([run(batch), *map(run, pictures)]).float()
    return {"crops": len(paths), "lowest_cosine": lowest_cosine(embeddings, reference.repeat(2, 1))}


def lowest_cosine(embeddings: torch.Tensor, reference: torch.Tensor) -> float:
    """The smallest cosine of two rows (N, D) that belong together; NaN where one is not finite. Equal rows are at 1."""
    cosine = F.cosine_similarity(embeddings.double(), reference.double())
    return torch.where((embeddings == reference).all(1), 1.0, cosine).min().item()


def check_like(found: dict[str, float], precision: str) -> None:
    """Raises UserError where `compare` found embeddings unlike PyTorch's; half precision and 8 bits may differ."""
    cosine = found["lowest_cosine"]
    if math.isnan(cosine):
        fix = (
            "leave --half or --int8 out" if precision != "float32" else "the model's own are not either; train it again"
        )
        raise UserError(f"the file is not kept, because it gives embeddings that are not finite; {fix}")
    if precision == "float32" and cosine < LEAST_COSINE:
        raise UserError(
            f"the file is not kept, because its embeddings are not PyTorch's: of {found['crops']} test images, the "
            f"lowest cosine is {cosine:.6f}, below {LEAST_COSINE}; try another --format"
        )


def measure(test: TestJob, run: Runner, preprocessing: bool, precision: str) -> dict[str, Any]:
    """The check of a file, its scores on the test split where it is not float32, and its latency, each next to
    PyTorch's in float32. Raises UserError where its embeddings are not those of PyTorch."""
    cfg, found = test.cfg, {"check": compare(test, run, preprocessing)}
    check_like(found["check"], precision)
    if precision != "float32":
        scores = {}
        models = {"PyTorch": test.model, "file": FileModel(run, preprocessing, test.model.embedding_dim)}
        for name, model in models.items():
            plain = plain_settings(cfg).replace(test_precision="float32")
            scores[name] = do_inference(plain, model, test.query, test.gallery, test.device).scores["plain"]
        found["scores"] = score_values(scores)
        before, after = found["scores"].values()
        found["change"] = {key: round(after[key] - before[key], 4) for key in ("mAP", "rank1")}
    pixels = torch.from_numpy(
        read_image(test.query.samples[0].path, cfg.data.height, cfg.data.width, cfg.data.pixel_range)
    )[None]
    model, one = test.model, normalise(pixels)
    if preprocessing:
        model, one = nn.Sequential(Preprocess(cfg.data.height, cfg.data.width), model), pixels
    found["latency"] = []
    for size in LATENCY_BATCHES:
        batch = one.repeat(size, 1, 1, 1)
        with torch.no_grad():
            times = time_calls([lambda b=batch: run(b), lambda b=batch: model(b)], test.device, RUNS, warmup=3)
        file, pytorch = (1e3 * statistics.median(seconds) for seconds in times)
        row = {"batch": size, "ms": round(file, 3), "pytorch_ms": round(pytorch, 3), "ratio": round(file / pytorch, 3)}
        found["latency"].append(row)
    return found
