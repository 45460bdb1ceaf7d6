"""Write a model as a file for other programs: `python tools/export_onnx.py [CKPT] [--preprocessing] [--half | --int8]`.

The file takes a batch of any size and gives embeddings (B, D) float32, as the model does in tests:

    images float32 (B, 3, H, W), normalised, RGB                  without --preprocessing
    images uint8 (B, any height, any width, 3), RGB               with it: resized, as in our tests, and normalised

It is opened again and must give PyTorch's embeddings of test images, or it is not kept. With --half and --int8, file
and model are scored on the test split. The results also go to FILE.json. `--format export` writes torch.export's .pt2
instead of ONNX. All of it runs on the CPU. docs/use.md shows how to run a file without PyTorch.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config.cli import typed_command
from datasets.augment import MEAN, STD
from processor.environment import describe_environment
from processor.evaluate import score_table, scores_note
from processor.test import TestJob, parse_test, prepare_test
from tools.export.check import RUNS, calibration_crops, check_like, compare, measure, open_onnx, open_pt2, to_pixels
from tools.export.graph import Embed, Preprocess, load_package, onnx_bytes, pt2_bytes, quantise, to_onnx, trace
from utils.errors import UserError, run
from utils.files import write_atomically, write_json
from utils.logging import log

SUFFIX = {"onnx": ".onnx", "export": ".pt2"}


@dataclass
class Options:
    output: str = ""  # the file (empty: named after the checkpoint and the options below, next to the checkpoint)
    format: Literal["onnx", "export"] = "onnx"  # ONNX, or torch.export's .pt2
    preprocessing: bool = False  # the file takes uint8 pictures of any size, and resizes and normalises them itself
    normalise: bool = False  # the file's embeddings have length 1
    half: bool = False  # float16 inside; inputs and outputs stay as they are
    int8: bool = False  # the backbone on 8 bits, with ranges from crops of the training split

    @property
    def precision(self) -> str:
        return "half" if self.half else "int8" if self.int8 else "float32"


def check_options(options: Options) -> None:
    """Raises UserError for options that do not go together."""
    if options.half and options.int8:
        raise UserError("give either --half or --int8: a file has one of them")
    if options.int8 and options.format == "export":
        raise UserError("--int8 is for ONNX only; leave --format export out, or give --half")
    if options.output and Path(options.output).suffix != SUFFIX[options.format]:
        raise UserError(
            f"--output {options.output} must end in {SUFFIX[options.format]} with --format {options.format}"
        )
    if options.output and Path(options.output).is_dir():
        raise UserError(f"--output {options.output} is a directory; name a file")
    if options.format == "onnx":
        load_package("onnx")


def metadata(options: Options, test: TestJob, name: str, environment: dict[str, str]) -> dict[str, str]:
    """What a file says about itself."""
    data = test.cfg.data
    pictures = "uint8 (batch, any height, any width, 3), RGB"
    floats = f"float32 (batch, 3, {data.height}, {data.width}), RGB from 0 to 1, less mean, divided by std"
    values = {
        "input": pictures if options.preprocessing else floats,
        "height": data.height,
        "width": data.width,
        "mean": MEAN,
        "std": STD,
        "preprocessing": options.preprocessing,
        "embedding_dim": test.model.embedding_dim,
        "normalised": options.normalise,
        "metric": test.cfg.eval.metric,
        "precision": options.precision,
        "checkpoint": name,
        "epoch": test.state["epoch"],
        "backbone": test.cfg.model.backbone,
        "note": test.note,
        "made_by": f"PlainReID {environment['commit']}, torch {environment['torch']}",
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def make_file(options: Options, test: TestJob, name: str, about: dict[str, str]) -> bytes:
    """The bytes of the file. Raises UserError where the model cannot be exported, or, before it is put on 8 bits, does
    not give PyTorch's embeddings."""
    data = test.cfg.data
    module: nn.Module = Embed(test.model, options.normalise, options.half)
    example, dynamic = torch.zeros(2, 3, data.height, data.width), 1
    if options.preprocessing:
        module = nn.Sequential(Preprocess(data.height, data.width), module)
        example, dynamic = torch.zeros(2, 37, 41, 3, dtype=torch.uint8), 3  # no two of the sizes are alike
    if options.format == "export":
        return pt2_bytes(trace(module, example, dynamic, name), about)
    model = to_onnx(module, example, dynamic, name)
    if options.int8:
        check_like(compare(test, open_onnx(model.SerializeToString()), options.preprocessing), "float32")
        crops = calibration_crops(test.cfg)
        model = quantise(model, (to_pixels(crops) if options.preprocessing else crops).contiguous().numpy())
    return onnx_bytes(model, about)


def log_results(record: dict) -> None:
    """The results as text."""
    about, check = record["metadata"], record["check"]
    log.info(
        "%s: %s, %.1f MB (PyTorch's weights in float32: %.1f MB)\n  takes %s\n  gives (batch, %s) float32%s\n"
        "lowest cosine to PyTorch's embeddings, of %d test images: %.6f",
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
    test = prepare_test(cfg.replace(device="cpu"), stored)
    name = str(stored[0]) if stored else f"{cfg.model.backbone} with weights {cfg.model.weights}"
    extras = [word for word in ("preprocessing", "normalise", "half", "int8") if getattr(options, word)]
    path = Path(options.output or test.directory / ("_".join([test.what, *extras]) + SUFFIX[options.format]))
    environment = describe_environment(test.device)
    about = metadata(options, test, name, environment)
    content = make_file(options, test, name, about)
    record = {}

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)  # renamed only once it has been measured
        runner = open_onnx(str(temporary)) if options.format == "onnx" else open_pt2(temporary)
        record.update(measure(test, runner, options.preprocessing, options.precision))

    write_atomically(path, write)
    weights = [x for key, x in test.model.state_dict().items() if ".classifier." not in key]
    record |= {"note": scores_note(test.cfg, test.note), "file": str(path), "metadata": about}
    record |= {"bytes": path.stat().st_size, "pytorch_bytes": sum(x.nbytes for x in weights)}
    record |= {"command": typed_command(), **environment}
    json_path = path.with_name(path.name + ".json")
    write_json(json_path, record)
    log_results(record)
    log.info("written to %s and %s", path, json_path)


if __name__ == "__main__":
    run(main)
