"""A trained model as a file for other programs: ONNX, or torch.export's .pt2; whole, in half precision or in 8 bits."""

from __future__ import annotations

import copy
import io
import json
import tempfile
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from model import ReIDModel
from processor.export_run import INPUT, METADATA, OUTPUT, first_line, load_package, quiet
from utils.errors import UserError

ONNX_BYTES = 2**31  # that one protobuf can hold
fused_attention = F.scaled_dot_product_attention

# What runs on 8 bits. The first convolutions do not: they are a small share of the work, and with them a MobileNetV2
# lost 3 points of mAP on a hundred people of Market-1501 (64.5 to 61.4; without them 64.4).
QUANTISED = ["Conv", "Gemm", "MatMul", "Add", "Clip", "Relu", "MaxPool", "AveragePool"]
FLOAT_CONVOLUTIONS = 4
CALIBRATION_BATCH = 8
SCOPES, BACKBONE = "pkg.torch.onnx.name_scopes", "'model.backbone'"  # where PyTorch notes the module of a node


class Embed(nn.Module):
    """Images (B, 3, H, W) float32, normalised, to embeddings (B, D) float32, with `normalise` of length 1.

    It holds a copy of the model, as it was made, on the CPU. half: in float16 up to the pooling, in float32 from there.
    """

    def __init__(self, model: ReIDModel, normalise: bool = False, half: bool = False):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
        self.normalise, self.half_precision = normalise, half
        if half:
            halve(self.model)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        embeddings = self.model(images.half() if self.half_precision else images).float()
        return F.normalize(embeddings) if self.normalise else embeddings


def halve(model: ReIDModel) -> None:
    """float16 weights in all that is before the branches; each layer there takes what it gets as float16."""

    def narrow(layer: nn.Module, inputs: tuple) -> tuple:
        return tuple(x.half() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)

    for name, part in model.named_children():
        if name != "branches":
            for layer in part.half().modules():
                if next(layer.children(), None) is None and next(layer.parameters(), None) is not None:
                    layer.register_forward_pre_hook(narrow)


def trace(module: nn.Module, inputs: torch.Tensor, dynamic: int, name: str) -> torch.export.ExportedProgram:
    """torch.export of a module, whose input may have any size along the first `dynamic` dimensions.

    `inputs` is an example with 2 or more along these. Raises UserError, naming `name`, where PyTorch cannot.
    """
    sizes = (dict.fromkeys(range(dynamic), torch.export.Dim.DYNAMIC),)
    for strict in (False, True):  # the first is faster; the second also follows len() of a tensor
        try:
            with quiet(), torch.no_grad():
                return torch.export.export(module, (inputs,), dynamic_shapes=sizes, strict=strict)
        except Exception as error:  # whatever a model's operations raise there
            reason = error
    raise UserError(f"PyTorch cannot export {name} ({first_line(reason)}); another --backbone or --attention may do")


def to_onnx(
    module: nn.Module, inputs: torch.Tensor, dynamic: int, name: str, input_name: str = INPUT, output_name: str = OUTPUT
) -> Any:
    """A module as an onnx.ModelProto, its input and output named so; the others are as in `trace`. Raises UserError,
    naming `name`, where that cannot be."""
    if sum(t.nbytes for t in module.state_dict().values()) >= ONNX_BYTES:
        raise UserError(f"{name} is beyond the 2 GB of an ONNX file; give --half, or --format export")
    with patch.object(F, "scaled_dot_product_attention", attention):
        program = trace(module, inputs, dynamic, name)
    names = {"input_names": [input_name], "output_names": [output_name]}
    try:
        with quiet(), torch.no_grad():
            return torch.onnx.export(program, (), dynamo=True, verbose=False, **names).model_proto
    except Exception as error:  # ConversionError and its like, which are of private modules
        raise UserError(
            f"{name} cannot be written as ONNX ({first_line(error)}); --format export may do, or another --backbone or "
            "--attention"
        ) from error


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **others) -> torch.Tensor:
    """F.scaled_dot_product_attention, spelled out where it has no mask: PyTorch writes it as ONNX for tensors of four
    dimensions only, and onnxruntime (1.31) ends with a segmentation fault on what that is in float16."""
    if attn_mask is not None or is_causal or dropout_p or others:
        return fused_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **others)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return (scale * query @ key.transpose(-2, -1)).softmax(-1) @ value


def quantise(model: Any, crops: np.ndarray) -> Any:
    """The same ONNX model with its backbone on 8 bits (static quantisation of weights by channel and of activations).

    model: from `to_onnx`, of an `Embed`. crops (N, 3, H, W) float32: what activations are like; their ranges are the
    mean of those of batches of 8. Weights are signed, activations unsigned, stored as QuantizeLinear and
    DequantizeLinear around float operations, which runtimes fuse.
    """
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        def __init__(self):
            self.batches = (crops[i : i + CALIBRATION_BATCH] for i in range(0, len(crops), CALIBRATION_BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {model.graph.input[0].name: batch}

    inside = [
        node for node in model.graph.node if any(p.key == SCOPES and BACKBONE in p.value for p in node.metadata_props)
    ]
    names = {node.name for node in inside}
    first = [node.name for node in inside if node.op_type == "Conv"][:FLOAT_CONVOLUTIONS]
    with tempfile.TemporaryDirectory() as folder, quiet():
        q.quantize_static(
            model,
            f"{folder}/int8.onnx",
            Reader(),
            quant_format=q.QuantFormat.QDQ,
            per_channel=True,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=[*first, *(node.name for node in model.graph.node if node.name not in names)],
            extra_options={"CalibMovingAverage": True},
        )
        return load_package("onnx").load(f"{folder}/int8.onnx")


def put_before(first: Any, second: Any) -> Any:
    """One ONNX model of two: the output of the first goes into the second, whose input has another name."""
    compose = load_package("onnx").compose
    first = compose.add_prefix(first, "preprocessing/", rename_inputs=False, rename_outputs=False)
    second.ir_version = first.ir_version
    return compose.merge_models(first, second, io_map=[(first.graph.output[0].name, second.graph.input[0].name)])


def finish(model: Any, metadata: dict[str, str]) -> bytes:
    """An ONNX model as the bytes of its file: with metadata, without the paths of this machine that PyTorch puts in."""
    onnx = load_package("onnx")
    graph = model.graph
    for thing in (*graph.node, *graph.input, *graph.output, *graph.initializer, graph, model):
        del thing.metadata_props[:]
    del graph.value_info[:]
    dims = graph.input[0].type.tensor_type.shape.dim
    sizes = ("batch",) if dims[1].HasField("dim_value") else ("batch", "height", "width")
    for dim, size in zip(dims, sizes, strict=False):
        dim.dim_param = size
    graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def pt2_bytes(program: torch.export.ExportedProgram, metadata: dict[str, str]) -> bytes:
    """A traced module as the bytes of a .pt2 file, with metadata in its extra file metadata.json."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})
    return file.getvalue()
