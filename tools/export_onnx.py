"""Write a model as a file for other programs: `python tools/export_onnx.py [CKPT] [--preprocessing] [--half | --int8]`.

The file takes a batch of any size and gives embeddings (B, D) float32, as the model does in tests:

    images float32 (B, 3, H, W), normalised, RGB                  without --preprocessing
    images uint8 (B, any height, any width, 3), RGB               with it: resized, as in our tests, and normalised

It is opened again and must give PyTorch's embeddings of test images, or it is not kept; if the dataset is not on this
machine, of random pictures. With --half and --int8, file and model are scored on the test split. The results also go
to FILE.json. `--format export` writes torch.export's .pt2 instead of ONNX. All of it runs on the CPU. docs/use.md shows
how to run a file without PyTorch.
"""

import io
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.cli import typed_command
from datasets.augment import MEAN, STD, normalise, to_pixels
from datasets.base import ReIDDataset, Sample
from datasets.images import decode, read_image
from datasets.loaders import TestLoader
from datasets.make import make_dataset, make_test_set
from processor.environment import describe_environment
from processor.evaluate import do_inference, plain_settings, score_table, score_values, scores_note
from processor.test import Stored, TestJob, parse_test, prepare_test
from tools.export import graph
from utils.errors import UserError, run
from utils.files import write_atomically, write_json
from utils.latency import time_calls
from utils.logging import log, setup_logging

Runner = Callable[[torch.Tensor], torch.Tensor]  # a file that was opened: images to embeddings (B, D)

SUFFIX = {"onnx": ".onnx", "export": ".pt2"}
LEAST_COSINE = 0.9999  # between an embedding of a float32 file and PyTorch's
CROPS = 64  # of the test split, on which a file is compared
RANDOM = 8  # pictures instead, if there is no test split
CALIBRATION_CROPS = 128  # of the training split
LATENCY_BATCHES = (1, 16)
RUNS = 7  # that are timed


@dataclass
class Options:
    output: str = ""  # the file (empty: named after the checkpoint and the options below, next to the checkpoint)
    format: Literal["onnx", "export"] = "onnx"  # ONNX, or torch.export's .pt2
    preprocessing: bool = False  # the file takes uint8 pictures of any size, and resizes and normalises them itself
    normalise: bool = False  # the file's embeddings have length 1
    half: bool = False  # float16 inside; inputs and outputs stay as they are
    int8: bool = False  # the backbone on 8 bits, with ranges from crops of the training split


def check_options(options: Options) -> None:
    """Raises UserError for options that do not go together."""
    if options.half and options.int8:
        raise UserError("give either --half or --int8: a file has one of them")
    if options.int8 and options.format == "export":
        raise UserError("--int8 is for ONNX only; leave --format export out, or give --half")
    suffix = SUFFIX[options.format]
    if options.output and (Path(options.output).suffix != suffix or Path(options.output).is_dir()):
        raise UserError(f"--output {options.output} must be a file that ends in {suffix} (see --format)")
    if options.format == "onnx":
        graph.load_package("onnx")


def metadata(options: Options, test: TestJob, name: str, environment: dict[str, str]) -> dict[str, str]:
    """What a file says about itself."""
    cfg, precision = test.cfg, "half" if options.half else "int8" if options.int8 else "float32"
    pictures = "uint8 (batch, any height, any width, 3), RGB"
    floats = f"float32 (batch, 3, {cfg.data.height}, {cfg.data.width}), RGB from 0 to 1, less mean, divided by std"
    values = {
        "input": pictures if options.preprocessing else floats,
        "height": cfg.data.height, "width": cfg.data.width, "mean": MEAN, "std": STD,
        "preprocessing": options.preprocessing, "embedding_dim": test.model.embedding_dim,
        "normalised": options.normalise, "metric": cfg.eval.metric, "precision": precision,
        "checkpoint": name, "epoch": test.state["epoch"], "backbone": cfg.model.backbone, "note": test.note,
        "made_by": f"PlainReID {environment['commit']}, torch {environment['torch']}",
    }  # fmt: skip
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def make_file(options: Options, test: TestJob, name: str, about: dict[str, str]) -> tuple[bytes, Runner]:
    """The bytes of the file, and the same opened. Raises UserError where the model cannot be exported, or, before it is
    put on 8 bits, does not give PyTorch's embeddings."""
    data = test.cfg.data
    module: nn.Module = graph.Embed(test.model, options.normalise, options.half)
    example, dynamic = torch.zeros(2, 3, data.height, data.width), 1
    if options.preprocessing:
        module = nn.Sequential(graph.Preprocess(data.height, data.width), module)
        example, dynamic = torch.zeros(2, 37, 41, 3, dtype=torch.uint8), 3  # no two of the sizes are alike
    if options.format == "export":
        content = graph.pt2_bytes(graph.trace(module, example, dynamic, name), about)
        with graph.quiet():
            loaded = torch.export.load(io.BytesIO(content)).module()
        return content, lambda images: loaded(images)  # a function, as the module refuses to be a part of another
    model = graph.to_onnx(module, example, dynamic, name)
    if options.int8:
        check_like(compare(test, open_onnx(model.SerializeToString()), options.preprocessing), "float32")
        crops = calibration_crops(test.cfg)
        model = graph.quantise(model, to_pixels(crops) if options.preprocessing else crops.contiguous().numpy())
    content = graph.onnx_bytes(model, about)
    return content, open_onnx(content)


def open_onnx(model: bytes) -> Runner:
    """An ONNX file, to be called on the CPU with PyTorch's number of threads."""
    ort = graph.load_package("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([graph.OUTPUT], {graph.INPUT: images.contiguous().numpy()})[0])


class FileModel(nn.Module):
    """A file in place of its model: normalised images (B, 3, H, W) to embeddings (B, D)."""

    def __init__(self, run: Runner, preprocessing: bool, width: int):
        super().__init__()
        self.run, self.preprocessing, self.embedding_dim = run, preprocessing, width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.run(torch.from_numpy(to_pixels(images)) if self.preprocessing else images)


def spread(samples: list, count: int) -> list:
    """`count` of them at even distances; all, if there are no more."""
    return [samples[i] for i in np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)]


def test_images(cfg: Config, directory: str, needed: bool) -> ReIDDataset:
    """The test split, or random pictures in `directory` if it cannot be read and is not needed for scores."""
    try:
        return make_test_set(cfg)
    except UserError as error:
        if needed:
            raise
        log.warning("warning: %s; without it, the file is checked on %d random pictures", error, RANDOM)
    rng, samples = np.random.default_rng(0), []
    for number in range(RANDOM):
        coarse = rng.integers(0, 256, (6, 3, 3), dtype=np.uint8)
        path = Path(directory, f"{number}.png")
        cv2.imwrite(str(path), cv2.resize(coarse, (40 + 9 * number, 100 + 9 * number), interpolation=cv2.INTER_CUBIC))
        samples.append(Sample(str(path), 1, number))
    return ReIDDataset("random pictures", query=samples[:1], gallery=samples[1:])


def calibration_crops(cfg: Config) -> torch.Tensor:
    """(N, 3, height, width) of the training split, normalised. Raises UserError without one."""
    dataset = make_dataset(cfg)
    if not dataset.train:
        raise UserError(f"--int8 needs pictures of the training split, and {dataset.name} has none; leave it out")
    loader = TestLoader(cfg.replace(disk_gb=0), spread(dataset.train, CALIBRATION_CROPS), "train")
    return torch.cat(list(loader.batches(torch.device("cpu"))))


@torch.no_grad()
def compare(test: TestJob, run: Runner, preprocessing: bool) -> dict[str, float]:
    """The lowest cosine between a file's and the model's embeddings of test pictures: in a batch, and one by one, with
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
        fix = "leave --half or --int8 out" if precision != "float32" else "the model's are not either; train it again"
        raise UserError(f"the file is not kept, because it gives embeddings that are not finite; {fix}")
    if precision == "float32" and cosine < LEAST_COSINE:
        raise UserError(
            f"the file is not kept, because the lowest cosine of its embeddings to PyTorch's, of {found['crops']} "
            f"pictures, is {cosine:.6f}, below {LEAST_COSINE}; try another --format"
        )


def measure(test: TestJob, run: Runner, preprocessing: bool, precision: str) -> dict[str, Any]:
    """The check of a file, its scores on the test split where it is not float32, and its latency, each next to
    PyTorch's in float32. Raises UserError where its embeddings are not those of PyTorch."""
    cfg, model, found = test.cfg, test.model, {"check": compare(test, run, preprocessing)}
    check_like(found["check"], precision)
    if precision != "float32":
        plain, scores = plain_settings(cfg).replace(test_precision="float32"), {}
        for name, scored in (("PyTorch", model), ("file", FileModel(run, preprocessing, model.embedding_dim))):
            scores[name] = do_inference(plain, scored, test.query, test.gallery, test.device).scores["plain"]
        found["scores"] = score_values(scores)
        before, after = found["scores"].values()
        found["change"] = {key: round(after[key] - before[key], 4) for key in ("mAP", "rank1")}
    pixels = torch.from_numpy(
        read_image(test.query.samples[0].path, cfg.data.height, cfg.data.width, cfg.data.pixel_range)
    )[None]
    if preprocessing:
        model = nn.Sequential(graph.Preprocess(cfg.data.height, cfg.data.width), model)
    found["latency"] = []
    for size in LATENCY_BATCHES:
        batch = (pixels if preprocessing else normalise(pixels)).repeat(size, 1, 1, 1)
        with torch.no_grad():
            times = time_calls([lambda b=batch: run(b), lambda b=batch: model(b)], test.device, RUNS, warmup=3)
        file, pytorch = (1e3 * statistics.median(seconds) for seconds in times)
        row = {"batch": size, "ms": round(file, 3), "pytorch_ms": round(pytorch, 3), "ratio": round(file / pytorch, 3)}
        found["latency"].append(row)
    return found


def log_results(record: dict) -> None:
    """The results as text."""
    about, check = record["metadata"], record["check"]
    log.info(
        "%s: %s, %.1f MB (PyTorch's weights in float32: %.1f MB)\n  takes %s\n  gives (batch, %s) float32%s\n"
        "lowest cosine to PyTorch's embeddings, of %d pictures: %.6f",
        record["file"], about["precision"], record["bytes"] / 1e6, record["pytorch_bytes"] / 1e6, about["input"],
        about["embedding_dim"], ", of length 1" if about["normalised"] == "true" else "", *check.values(),
    )  # fmt: skip
    if "scores" in record:
        log.info(score_table(record["scores"], record["note"]))
        log.info("change: mAP %+.2f, Rank-1 %+.2f", *record["change"].values())
    for row in record["latency"]:
        log.info("batch of %(batch)d: %(ms).1f ms, PyTorch %(pytorch_ms).1f ms, ratio %(ratio).2f", row)
    log.info("pictures of the input size, median of %d runs each, on %s", RUNS, record["hardware"])


def main() -> None:
    cfg, options, stored = parse_test(None, os.environ, __doc__, Options)
    check_options(options)
    setup_logging()
    with tempfile.TemporaryDirectory() as directory:
        dataset = test_images(cfg, directory, needed=options.half or options.int8)
        write_file(prepare_test(cfg.replace(device="cpu"), stored, dataset=dataset), options, stored)


def write_file(test: TestJob, options: Options, stored: Stored | None) -> None:
    """Make, check and measure the file, and write it with its JSON."""
    cfg = test.cfg
    name = str(stored[0]) if stored else f"{cfg.model.backbone} with weights {cfg.model.weights}"
    extras = [word for word in ("preprocessing", "normalise", "half", "int8") if getattr(options, word)]
    path = Path(options.output or test.directory / ("_".join([test.what, *extras]) + SUFFIX[options.format]))
    environment = describe_environment(test.device)
    about = metadata(options, test, name, environment)
    content, runner = make_file(options, test, name, about)
    record = measure(test, runner, options.preprocessing, about["precision"])
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    weights = [x for key, x in test.model.state_dict().items() if ".classifier." not in key]
    record |= {"note": scores_note(test.cfg, test.note), "file": str(path), "metadata": about}
    record |= {"bytes": len(content), "pytorch_bytes": sum(x.nbytes for x in weights)}
    write_json(f"{path}.json", record | {"command": typed_command(), **environment})
    log_results(record | environment)
    log.info("written to %s and %s.json", path, path)


if __name__ == "__main__":
    run(main)
