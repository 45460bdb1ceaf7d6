"""A trained model as an ONNX graph or a torch.export program: in full or half precision, or in 8 bits."""

import copy
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from datasets.augment import MEAN, STD
from model import ReIDModel
from processor.model_file import RT_INFO
from utils.errors import UserError
from utils.lookup import package

INPUT, OUTPUT = "images", "embeddings"  # names in ONNX files
METADATA = "metadata.json"  # extra file in .pt2 files
ONNX_BYTES = 2**31  # the most that one protobuf can hold
fused_attention = F.scaled_dot_product_attention

# Operators that run in 8 bits. The first convolutions do not: they are little work, and with them a MobileNetV2
# lost 3 points of mAP on a hundred people of Market-1501 (64.5 to 61.4; without them 64.4).
QUANTISED = ["Conv", "Gemm", "MatMul", "Add", "Clip", "Relu", "MaxPool", "AveragePool"]
FLOAT_CONVOLUTIONS = 4
CALIBRATION_BATCH = 8
SCOPES, BACKBONE = "pkg.torch.onnx.name_scopes", "model.backbone'"  # where PyTorch stores the module of a node


class Embed(nn.Module):
    """Map normalized images (B, 3, H, W) float32 to embeddings (B, D) float32, of length 1 with `normalise`.

    It holds a copy of the model on the CPU. half: float16 up to the pooling, float32 after it.
    """

    def __init__(self, model: ReIDModel, normalise: bool = False, half: bool = False):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
        self.normalise, self.half_precision = normalise, half
        for name, part in self.model.named_children() if half else ():
            if name != "branches":
                for layer in part.half().modules():
                    if next(layer.children(), None) is None and next(layer.parameters(), None) is not None:
                        layer.register_forward_pre_hook(half_inputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        embeddings = self.model(images.half() if self.half_precision else images).float()
        return F.normalize(embeddings) if self.normalise else embeddings


def half_inputs(layer: nn.Module, inputs: tuple) -> tuple:
    return tuple(x.half() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)


class Normalise(nn.Module):
    """Map pixels (B, 3, H, W) float32 from a program (see `processor.model_file.input_of`) to normalized images.

    With the values of our own normalization, nothing changes and no operation is added.
    """

    def __init__(self, colour: str, scale: float, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        given, ours = (torch.tensor(x)[:, None, None] for x in (std, STD))
        self.flip, self.same = colour == "bgr", (scale, tuple(mean), tuple(std)) == (1.0, MEAN, STD)
        order = [2, 1, 0] if self.flip else [0, 1, 2]
        self.register_buffer("factor", given[order] / scale / ours)
        self.register_buffer(
            "shift", (torch.tensor(mean)[order, None, None] / scale - torch.tensor(MEAN)[:, None, None]) / ours
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.flip(1) if self.flip else images
        return images if self.same else images * self.factor + self.shift


class Preprocess(nn.Module):
    """Map pictures (B, H, W, 3) uint8 RGB, all of one size, to normalized images (B, 3, height, width) float32.

    They are resized as by cv2 in `datasets.images.read_image`, up to one gray level: with INTER_AREA, the mean of the
    area behind a pixel, if the picture shrinks and no side grows; otherwise, and with shrink "bilinear", linearly
    between two neighbors per side.
    """

    def __init__(self, height: int, width: int, shrink: str = "area"):
        super().__init__()
        self.height, self.width, self.by_area = height, width, shrink == "area"
        self.register_buffer("mean", 255 * torch.tensor(MEAN))
        self.register_buffer("std", 255 * torch.tensor(STD))

    def resize(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) to (B, height, width, 3), whole gray levels as float32."""
        # Sizes are compared as tensors, because an `if` would be fixed to the traced size.
        old = [torch.full((), n, dtype=torch.float64, device=pictures.device) for n in pictures.shape[1:3]]
        shrinks = ((old[0] > self.height) | (old[1] > self.width)) & self.by_area
        area = shrinks & (old[0] >= self.height) & (old[1] >= self.width)
        down = resize_weights(pictures.shape[1], self.height, old[0], shrinks, area)
        across = resize_weights(pictures.shape[2], self.width, old[1], shrinks, area)
        rows = down @ pictures.float().flatten(2)
        return (across @ rows.unflatten(2, pictures.shape[2:]) + 0.5).floor()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return ((self.resize(pictures) - self.mean) / self.std).permute(0, 3, 1, 2)


def resize_weights(old: int, new: int, size: torch.Tensor, shrinks: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """Return the weights (new, old) float32 of each old row or column in each new one. size: `old` as a tensor.

    With `area`, a weight is a share of the new one's area. Otherwise, weights interpolate linearly at the center, or if
    the picture `shrinks`, at the position that INTER_AREA uses (OpenCV 4 and 5, modules/imgproc/src/resize.cpp).
    """
    pixel = torch.arange(old, dtype=torch.float64, device=size.device)
    i = torch.arange(new, dtype=torch.float64, device=size.device)[:, None]
    scale = size / new
    common = torch.minimum(pixel + 1, (i + 1) * scale) - torch.maximum(pixel, i * scale)
    start = (i * scale).floor()
    share = i + 1 - (start + 1) / scale
    position = torch.where(
        shrinks, start + torch.where(share <= 0, 0.0, share - share.floor()), (i + 0.5) * scale - 0.5
    )
    linear = 1 - (position.clamp(min=0).minimum(size - 1) - pixel).abs()
    return torch.where(area, common / scale, linear).clamp(min=0).float()


def trace(module: nn.Module, inputs: torch.Tensor, dynamic: int, name: str) -> torch.export.ExportedProgram:
    """Export a module with torch.export; its input may have any size along the first `dynamic` dimensions.

    inputs: an example with size 2 or more along these. Raises UserError that names `name` if PyTorch cannot export it.
    """
    sizes = (dict.fromkeys(range(dynamic), torch.export.Dim.DYNAMIC),)
    for strict in (False, True):  # the first is faster; the second also follows len() of a tensor
        try:
            with quiet(), torch.no_grad():
                return torch.export.export(module, (inputs,), dynamic_shapes=sizes, strict=strict)
        except Exception as error:  # a model's operations may raise anything
            reason = error
    raise UserError(f"PyTorch cannot export {name} ({first_line(reason)}); try another --backbone or --attention")


def to_onnx(module: nn.Module, inputs: torch.Tensor, dynamic: int, name: str) -> Any:
    """Export a module as an onnx.ModelProto; arguments and errors as in `trace`."""
    if sum(t.nbytes for t in module.state_dict().values()) >= ONNX_BYTES:
        raise UserError(f"{name} exceeds the 2 GB of an ONNX file; give --half, or --format export")
    with patch.object(F, "scaled_dot_product_attention", attention):
        program = trace(module, inputs, dynamic, name)
    names = {"input_names": [INPUT], "output_names": [OUTPUT]}
    try:
        with quiet(), torch.no_grad():
            return torch.onnx.export(program, (), dynamo=True, verbose=False, **names).model_proto
    except Exception as error:  # ConversionError and others, defined in private modules
        raise UserError(
            f"{name} cannot be written as ONNX ({first_line(error)}); try --format export, or another --backbone or "
            "--attention"
        ) from error


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **others) -> torch.Tensor:
    """F.scaled_dot_product_attention, written out if it has no mask: PyTorch exports it to ONNX for four-dimensional
    tensors only, and onnxruntime (1.31) ends with a segmentation fault on its float16 version."""
    if attn_mask is not None or is_causal or dropout_p or others:
        return fused_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **others)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return (scale * query @ key.transpose(-2, -1)).softmax(-1) @ value


def quantise(model: Any, crops: np.ndarray) -> Any:
    """Quantize the backbone of an ONNX model to 8 bits (static quantization, weights per channel, and activations).

    model: from `to_onnx`, with an `Embed` in it. crops: calibration inputs; the ranges of activations are the mean
    over batches of 8. Weights are signed, activations unsigned. They are stored as QuantizeLinear and DequantizeLinear
    around float operations, which runtimes fuse.
    """
    from onnxruntime import quantization as q

    batches = iter([{INPUT: batch} for batch in np.array_split(crops, -(-len(crops) // CALIBRATION_BATCH))])
    reader = type("Reader", (q.CalibrationDataReader,), {"get_next": lambda self: next(batches, None)})()

    inside = [n for n in model.graph.node if any(p.key == SCOPES and BACKBONE in p.value for p in n.metadata_props)]
    names = {node.name for node in inside}
    first = [node.name for node in inside if node.op_type == "Conv"][:FLOAT_CONVOLUTIONS]
    with tempfile.TemporaryDirectory() as folder, quiet():
        q.quantize_static(
            model, f"{folder}/int8.onnx", reader, quant_format=q.QuantFormat.QDQ, per_channel=True,
            activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8, op_types_to_quantize=QUANTISED,
            nodes_to_exclude=[*first, *(node.name for node in model.graph.node if node.name not in names)],
            extra_options={"CalibMovingAverage": True},
        )  # fmt: skip
        return load_onnx().load(f"{folder}/int8.onnx")


def onnx_bytes(model: Any, metadata: dict[str, str]) -> bytes:
    """Return an ONNX model as the bytes of its file, with metadata, without the local paths that PyTorch adds."""
    onnx = load_onnx()
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer, graph, model):
        del part.metadata_props[:]
    del graph.value_info[:]
    dims = graph.input[0].type.tensor_type.shape.dim
    sizes = ("batch",) if dims[1].HasField("dim_value") else ("batch", "height", "width")
    for dim, size in zip(dims, sizes, strict=False):
        dim.dim_param = size
    graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def openvino_bytes(onnx_file: bytes, metadata: dict[str, str], half: bool) -> dict[str, bytes]:
    """Convert an ONNX file to OpenVINO's two files, .xml and .bin, with metadata. half: weights in float16."""
    openvino = package("openvino", "--format openvino")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "it.onnx")
        path.write_bytes(onnx_file)
        model = openvino.convert_model(path)
        for name, value in metadata.items():
            model.set_rt_info(value, [RT_INFO, name])
        openvino.save_model(model, path.with_suffix(".xml"), compress_to_fp16=half)
        return {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin")}


def pt2_bytes(program: torch.export.ExportedProgram, metadata: dict[str, str]) -> bytes:
    """Return a traced module as the bytes of a .pt2 file, with metadata in its extra file metadata.json."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})
    return file.getvalue()


def load_onnx() -> Any:
    """Import onnx. Raises UserError if one of the three packages for ONNX is not installed."""
    use, install = "--format onnx or openvino", "onnx onnxscript onnxruntime"
    for name in ("onnxruntime", "onnxscript"):  # PyTorch writes ONNX with the second
        package(name, use, install)
    return package("onnx", use, install)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings and log of PyTorch's and ONNX's exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    """Return the message of the first cause of an error, in one line."""
    while error.__cause__:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
