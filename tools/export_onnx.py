"""Write a model as a file for other programs: `python tools/export_onnx.py [CKPT] [--preprocessing] [--half | --int8]`.

The file takes a batch of any size and gives embeddings (B, D) float32, as the model does in tests:

    images float32 (B, 3, H, W), normalised, RGB                  without --preprocessing
    images uint8 (B, any height, any width, 3), RGB               with it: resized, as our tests do, and normalised

It is opened again and must give PyTorch's embeddings of test images, or it is not kept. With --half and --int8, file
and model are scored on the test split. What is found goes to FILE.json, too. `--format export` writes torch.export's
.pt2 instead of ONNX. All of it runs on the CPU. examples/onnx_search.py runs a file without PyTorch.
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

from config import Config
from config.cli import typed_command
from datasets.augment import MEAN, STD
from processor.environment import describe_environment
from processor.evaluate import score_table, scores_note
from processor.export import Embed, finish, pt2_bytes, put_before, quantise, to_onnx, trace
from processor.export_check import RUNS, Run, calibration_crops, compare, latencies, refuse_unlike, score_both
from processor.export_input import Preprocess
from processor.export_run import INPUT, OnnxRunner, load_package, open_pt2
from processor.test import TestJob, parse_test, prepare_test
from utils.errors import run
from utils.files import write_atomically, write_json
from utils.logging import log

SUFFIX = {"onnx": ".onnx", "export": ".pt2"}
SOME_PICTURES = torch.zeros(2, 37, 41, 3, dtype=torch.uint8)  # to trace with; no two of the sizes are alike


@dataclass
class ExportConfig(Config):
    output: str = ""  # the file; empty: named after the checkpoint and the settings below, beside the checkpoint
    format: Literal["onnx", "export"] = "onnx"  # ONNX, or torch.export's .pt2
    preprocessing: bool = False  # the file takes uint8 pictures of any size, and resizes and normalises them itself
    normalise: bool = False  # the file's embeddings have length 1
    half: bool = False  # float16 inside; what goes in and comes out stays as it is
    int8: bool = False  # the backbone on 8 bits, ranges taken from crops of the training split

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        if self.half and self.int8:
            yield "give either --half or --int8: a file has one of them"
        if self.int8 and self.format == "export":
            yield "--int8 is there for ONNX only; leave --format export out, or give --half"
        if self.output and Path(self.output).suffix != SUFFIX[self.format]:
            yield f"--output {self.output} must end in {SUFFIX[self.format]}, as --format {self.format} does"
        if Path(self.output).is_dir() and self.output:
            yield f"--output {self.output} is a directory; name a file"

    @property
    def numbers(self) -> str:
        return "half" if self.half else "int8" if self.int8 else "float32"


def metadata(cfg: ExportConfig, test: TestJob, name: str, environment: dict[str, str]) -> dict[str, str]:
    """What a file says of itself."""
    pictures = "uint8 (batch, any height, any width, 3), RGB"
    floats = f"float32 (batch, 3, {cfg.data.height}, {cfg.data.width}), RGB from 0 to 1, less mean, divided by std"
    values = {
        "input": pictures if cfg.preprocessing else floats,
        "height": cfg.data.height,
        "width": cfg.data.width,
        "mean": MEAN,
        "std": STD,
        "preprocessing": cfg.preprocessing,
        "embedding_dim": test.model.embedding_dim,
        "normalised": cfg.normalise,
        "metric": cfg.eval.metric,
        "precision": cfg.numbers,
        "checkpoint": name,
        "epoch": test.state["epoch"],
        "backbone": cfg.model.backbone,
        "note": test.note,
        "made_by": f"PlainReID {environment['commit']}, torch {environment['torch']}",
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def onnx_file(cfg: ExportConfig, test: TestJob, name: str, about: dict[str, str]) -> bytes:
    """The bytes of an ONNX file. Raises UserError where the model, before it is put on 8 bits, is not PyTorch's."""
    inner = "preprocessed" if cfg.preprocessing else INPUT
    embed = Embed(test.model, cfg.normalise, cfg.half)
    model = to_onnx(embed, torch.zeros(2, 3, cfg.data.height, cfg.data.width), 1, name, inner)
    if cfg.int8:
        refuse_unlike(compare(test, OnnxRunner(model.SerializeToString()), preprocessing=False), "float32")
        model = quantise(model, calibration_crops(cfg))
    if cfg.preprocessing:
        before = Preprocess(cfg.data.height, cfg.data.width)
        model = put_before(to_onnx(before, SOME_PICTURES, 3, "the preprocessing", INPUT, "pictures"), model)
    return finish(model, about)


def pt2_file(cfg: ExportConfig, test: TestJob, name: str, about: dict[str, str]) -> bytes:
    """The bytes of a .pt2 file."""
    embed = Embed(test.model, cfg.normalise, cfg.half)
    if cfg.preprocessing:
        program = trace(nn.Sequential(Preprocess(cfg.data.height, cfg.data.width), embed), SOME_PICTURES, 3, name)
    else:
        program = trace(embed, torch.zeros(2, 3, cfg.data.height, cfg.data.width), 1, name)
    return pt2_bytes(program, about)


def measure(cfg: ExportConfig, test: TestJob, run: Run) -> dict:
    """All that is found of a file. Raises UserError where its embeddings are not those of PyTorch."""
    found = {"check": compare(test, run, cfg.preprocessing)}
    refuse_unlike(found["check"], cfg.numbers)
    if cfg.numbers != "float32":
        found["scores"] = score_both(test, run, cfg.preprocessing)
        found["note"] = scores_note(cfg, test.note)
        before, after = found["scores"].values()
        found["change"] = {key: round(after[key] - before[key], 4) for key in ("mAP", "rank1")}
    return found | {"latency": latencies(test, run, cfg.preprocessing)}


def tell(cfg: ExportConfig, path: Path, record: dict) -> None:
    """What was found, for people."""
    check = record["check"]
    log.info(
        "%s: %s, %.1f MB (PyTorch's weights in float32: %.1f MB)\n  takes %s\n  gives (batch, %s) float32%s",
        path, cfg.numbers, record["bytes"] / 1e6, record["pytorch_bytes"] / 1e6, record["metadata"]["input"],
        record["metadata"]["embedding_dim"], ", of length 1" if cfg.normalise else "",
    )  # fmt: skip
    log.info("lowest cosine to PyTorch's embeddings, of %d test images: %.6f", check["crops"], check["lowest_cosine"])
    if cfg.preprocessing:
        log.info(
            "its pictures differ from our own preprocessing's by %g grey levels at most, in %.2f %% of the values",
            check["largest_difference_grey_levels"], 100 * check["share_of_values_that_differ"],
        )  # fmt: skip
    if "scores" in record:
        log.info(score_table(record["scores"], record["note"]))
        log.info("change: mAP %+.2f, Rank-1 %+.2f", *record["change"].values())
    for row in record["latency"]:
        log.info("batch of %(batch)d: %(ms).1f ms, PyTorch %(pytorch_ms).1f ms, ratio %(ratio).2f", row)
    log.info("pictures of the input size, median of %d runs each, on %s", RUNS, record["hardware"])


def main() -> None:
    cfg, stored = parse_test(None, os.environ, "export_onnx.py [CKPT]", ExportConfig)
    if cfg.format == "onnx":
        load_package("onnx")
    test = prepare_test(cfg.replace(device="cpu"), stored)
    cfg, name = test.cfg, str(stored[0]) if stored else f"{cfg.model.backbone} with weights {cfg.model.weights}"
    extras = [word for word in ("preprocessing", "normalise", "half", "int8") if cfg.get(word)]
    path = Path(cfg.output or test.directory / ("_".join([test.what, *extras]) + SUFFIX[cfg.format]))
    environment = describe_environment(test.device)
    about = metadata(cfg, test, name, environment)
    content = (onnx_file if cfg.format == "onnx" else pt2_file)(cfg, test, name, about)
    record = {}

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)  # in place only once it has been measured
        run_file = OnnxRunner(str(temporary)) if cfg.format == "onnx" else open_pt2(temporary)
        record.update(measure(cfg, test, run_file))

    write_atomically(path, write)
    weights = {key: x for key, x in test.model.state_dict().items() if ".classifier." not in key}
    sizes = {"bytes": path.stat().st_size, "pytorch_bytes": sum(x.nbytes for x in weights.values())}
    command = typed_command()
    record |= {"file": str(path), "metadata": about, **sizes, "command": command, **environment}
    beside = path.with_name(path.name + ".json")
    write_json(beside, record)
    tell(cfg, path, record)
    log.info("written to %s and %s", path, beside)


if __name__ == "__main__":
    run(main)
