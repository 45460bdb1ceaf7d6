"""Files that `processor/export.py` makes, opened to be called; and the packages that this takes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError

INPUT, OUTPUT = "images", "embeddings"  # names in ONNX files
METADATA = "metadata.json"  # extra file in .pt2 files


class OnnxRunner:
    """An ONNX file (or its bytes) to call: a tensor in, embeddings (B, D) out. On the CPU, with PyTorch's threads."""

    def __init__(self, model: str | bytes):
        ort = load_package("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run([OUTPUT], {self.input: images.contiguous().numpy()})[0])


def open_pt2(path: str | Path) -> Any:
    """A .pt2 file to call: a tensor in, embeddings (B, D) out."""
    with open(path, "rb") as file, quiet():
        return torch.export.load(file).module()


def load_package(name: str) -> Any:
    """onnx or onnxruntime. Raises UserError when one of the three packages for ONNX is not installed."""
    try:
        import onnx
        import onnx.compose
        import onnxruntime
        import onnxscript  # noqa: F401  PyTorch writes ONNX with it
    except ImportError as error:
        raise UserError(f"ONNX files need more packages ({error}): pip install onnx onnxscript onnxruntime") from error
    return {"onnx": onnx, "onnxruntime": onnxruntime}[name]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what PyTorch and the ONNX packages say of their own inner affairs."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    """What the error under all others says, in a line."""
    while error.__cause__:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
