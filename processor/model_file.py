"""Model files of any program, in ONNX or OpenVINO format, used in place of a checkpoint."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from config import Config
from datasets.augment import MEAN, STD, to_pixels
from datasets.base import Sample
from datasets.loaders import TestLoader
from datasets.subsets import spread
from processor.evaluate import Inference, do_inference, plain_settings
from utils.errors import UserError, reason
from utils.files import reading
from utils.logging import log
from utils.lookup import package

RT_INFO = "plainreid"  # section in .xml files
LOW = 0.5  # mAP below which other preprocessing is tried in any case
TRIED_QUERIES, TRIED_IMAGES = 50, 150  # number of queries; images each of their and of other identities
NONE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # neither mean nor deviation
TRIED = (("rgb", 1.0, MEAN, STD), ("bgr", 255.0, *NONE), ("rgb", 255.0, *NONE), ("rgb", 1.0, *NONE))
TRIED += (("rgb", 1.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ("bgr", 1.0, MEAN, STD))


Input = tuple[str, float, tuple[float, ...], tuple[float, ...]]  # color order, scale, mean and standard deviation


class Network(NamedTuple):
    """An opened model file."""

    run: Callable[[np.ndarray], Sequence[Any]]  # a batch to all outputs
    dims: Sequence[Any]  # shape of the input; a dimension that is no int may have any length
    kind: np.dtype  # type of the input
    outputs: list[str]  # their names
    about: Mapping[str, str]  # metadata


def open_onnx(path: Path | bytes, precision: str = "float32") -> Network:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    kind = np.dtype({"tensor(float)": "f4", "tensor(float16)": "f2", "tensor(uint8)": "u1"}[images.type])
    outputs, about = [x.name for x in session.get_outputs()], session.get_modelmeta().custom_metadata_map
    return Network(lambda x: session.run(None, {images.name: x}), images.shape, kind, outputs, about)


def open_openvino(path: Path, precision: str = "float32") -> Network:
    import openvino

    core = openvino.Core()
    network = core.read_model(path)
    (images,) = network.inputs
    with contextlib.suppress(RuntimeError):  # it is for batches of one size only
        network.reshape([-1, *list(images.partial_shape)[1:]])
    hint = {"float32": "f32", "fp16": "f16"}.get(precision, precision)
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": hint}
    compiled = core.compile_model(network, "CPU", options)
    dims = [n.get_length() if n.is_static else None for n in images.partial_shape]
    outputs = [x.any_name if x.names else str(place) for place, x in enumerate(network.outputs)]
    about = network.rt_info[RT_INFO] if network.has_rt_info(RT_INFO) else {}
    about = {name: value.astype(str) for name, value in about.items()}
    kind = np.dtype(images.element_type.to_dtype())
    return Network(lambda x: list(compiled(x).values()), dims, kind, outputs, about)


# by the suffix of a file: the function that opens it, and the package that this needs
OPEN = {".onnx": (open_onnx, "onnxruntime"), ".xml": (open_openvino, "openvino")}


def open_file(path: Path, precision: str) -> Network:
    """Open a model file. Raises UserError if it is damaged or does not take images, or if its runtime is missing."""
    function, runtime = OPEN[path.suffix]
    package(runtime, str(path))
    fix = f"give an undamaged {path.suffix} file of a network with one input, images (B, 3, H, W) or (B, H, W, 3)"
    with reading(path, fix):
        try:
            network = function(path, precision)
        except Exception as error:  # each runtime has its own error types
            raise ValueError(reason(error)) from error
        if len(network.dims) != 4:
            raise ValueError(f"its input has {len(network.dims)} dimensions, not 4")
    return network


def read_file(path: Path) -> dict[str, Any]:
    """Make a dict like that of a checkpoint: the file's bytes as weights, and settings from its metadata, or from
    `metadata` in FILE.json next to it; other settings have their default."""
    network, record = open_file(path, "float32"), Path(f"{path}.json")
    with reading(record, "give a JSON file that holds metadata, or remove it"):
        about = network.about or (json.loads(record.read_text())["metadata"] if record.is_file() else {})
    with reading(path, "its metadata is not as tools/export_onnx.py writes it"):
        keys = ("settings", "colour", "scale", "mean", "std", "height", "width", "epoch")
        about = dict(about) | {key: plain_value(about[key]) for key in keys if key in about}
        settings = dict(about.get("settings", {}))
        settings |= {f"file_{key}": about[key] for key in keys[1:5] if key in about}
        settings |= {key: about[key] for key in keys[5:7] if key in about}
    sizes = zip(("height", "width"), sides(network), strict=True)
    settings |= {name: size for name, size in sizes if isinstance(size, int)}
    settings |= {"backbone": path.name, "weights": "none"}
    weights = {
        p.suffix: torch.from_numpy(np.fromfile(p, np.uint8)) for p in (path, path.with_suffix(".bin")) if p.is_file()
    }
    about = {"epoch": about.get("epoch", 0), "train_note": about.get("train_note", "")}
    return {"model": weights, "config": settings, "labels": {}, **about}


def plain_value(value: Any) -> Any:
    """Parse a metadata value as JSON; anything else is returned unchanged."""
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def channels_last(network: Network) -> bool:
    return network.dims[3] == 3 and network.dims[1] != 3


def sides(network: Network) -> Sequence[Any]:
    """Return height and width of the images that the network takes."""
    return network.dims[1:3] if channels_last(network) else network.dims[2:4]


def input_of(cfg: Config, zoo: bool = False) -> Input:
    """Return the input of a file: color order and scale of its pixels (0 to scale), their mean and standard deviation.

    Empty settings mean RGB from 0 to 1 with ImageNet's mean and deviation, as usual in the field; with `zoo`, BGR from
    0 to 255 without them, as in the Open Model Zoo. With a scale other than 1, they are left out unless given.
    """
    data = cfg.data
    colour = data.file_colour if data.file_colour != "auto" else "bgr" if zoo else "rgb"
    scale = data.file_scale or (255.0 if zoo else 1.0)
    mean, std = (MEAN, STD) if scale == 1 else NONE
    return colour, scale, tuple(data.file_mean or mean), tuple(data.file_std or std)


def input_settings(values: Input) -> dict[str, Any]:
    """Return the settings for such an input."""
    return dict(zip(("file_colour", "file_scale", "file_mean", "file_std"), values, strict=True))


class FileModel(nn.Module):
    """A file as a model: maps normalized images (B, 3, H, W) to embeddings (B, D)."""

    def __init__(self, path: Path, cfg: Config, network: Network | None = None):
        super().__init__()
        data, self.path, self.loaded = cfg.data, path, None
        self.network = network or open_file(path, cfg.loop.test_precision)
        fixed = [size for size in sides(self.network) if isinstance(size, int)]
        if fixed and fixed != [data.height, data.width][-len(fixed) :]:
            raise UserError(f"{path} takes images of {fixed} pixels; leave --height and --width out")
        self.colour, self.scale, self.mean, self.std = input_of(cfg, path.suffix == ".xml")
        if self.network.kind == np.uint8:
            self.scale, (self.mean, self.std) = 255.0, NONE
        outputs = self.network.outputs
        if data.file_output and data.file_output not in outputs:
            raise UserError(f"{path} has no output {data.file_output}; it has {', '.join(outputs)}")
        if len(outputs) > 1 and not data.file_output:
            log.info("%s: the first of its outputs %s is tested (see --file-output)", path, ", ".join(outputs))
        self.output = outputs.index(data.file_output) if data.file_output else 0
        with reading(path, "give another --height, --width or --file-output"):
            try:
                self.embedding_dim = self(torch.zeros(1, 3, data.height, data.width)).shape[1]
            except Exception as error:
                raise ValueError(reason(error)) from error

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.prepared(images)
        size = self.network.dims[0] if isinstance(self.network.dims[0], int) else len(x)
        parts = []
        for start in range(0, len(x), size):  # if the batch size is fixed, the last batch is filled up
            part = x[start : start + size]
            rows = self.network.run(np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)]))[self.output]
            parts.append(torch.as_tensor(rows).flatten(1)[: len(part)])
        return torch.cat(parts).to(images.device)

    def prepared(self, images: torch.Tensor) -> np.ndarray:
        """Convert images to the input of the file."""
        if (self.colour, self.scale, self.mean, self.std) == ("rgb", 1.0, MEAN, STD):
            x = images.float().cpu().numpy()  # bit-equal to PyTorch's input
        else:
            x = to_pixels(images)[..., :: -1 if self.colour == "bgr" else 1].astype(np.float32)
            x = ((x * (self.scale / 255) - np.float32(self.mean)) / np.float32(self.std)).transpose(0, 3, 1, 2)
        x = x.transpose(0, 2, 3, 1) if channels_last(self.network) else x
        return np.ascontiguousarray(x.round() if self.network.kind == np.uint8 else x, self.network.kind)


def check_input(cfg: Config, model: FileModel, query: TestLoader, gallery: TestLoader, found: Inference) -> None:
    """Warn if other preprocessing gives better scores on some test images. Nothing is tried if preprocessing is given,
    by the file or by --file-colour, and the scores are not low."""
    scores, *_ = found.scores.values()
    given = cfg.data.file_colour != "auto" and scores.mAP >= LOW
    if given or model.network.kind == np.uint8 or len(scores.ap) != len(query.samples):
        return
    chosen, some = few_images(query.samples, gallery.samples, TRIED_QUERIES, TRIED_IMAGES)
    few = plain_settings(cfg).replace(disk_gb=0, protocol="standard", file_output=model.network.outputs[model.output])
    loaders = TestLoader(few, chosen, "queries"), TestLoader(few, some, "images")
    ap, now = {}, (model.colour, model.scale, model.mean, model.std)
    for values in dict.fromkeys((now, *TRIED)):
        tried = FileModel(model.path, few.replace(**input_settings(values)))
        ap[values] = do_inference(few, tried, *loaders, torch.device("cpu")).scores["plain"].ap
    best = max(ap, key=lambda values: np.nanmean(ap[values]))
    better = (ap[best] - ap[now])[~np.isnan(ap[now])]
    if better.mean() > 2 * better.std() / len(better) ** 0.5:
        hint = "--file-colour {} --file-scale {:g} --file-mean {:g} {:g} {:g} --file-std {:g} {:g} {:g}"
        log.warning(
            "warning: on %d queries and %d images, mAP is %.1f, but %.1f with %s",
            len(chosen), len(some), 100 * np.nanmean(ap[now]), 100 * np.nanmean(ap[best]),
            hint.format(*best[:2], *best[2], *best[3]),
        )  # fmt: skip


def few_images(
    query: Sequence[Sample], gallery: Sequence[Sample], queries: int, images: int
) -> tuple[list[Sample], list[Sample]]:
    """Choose at most `queries` queries with a match, and at most `images` images each of their and other identities."""
    cameras: dict[int, set[int]] = {}
    for sample in gallery:
        cameras.setdefault(sample.pid, set()).add(sample.camid)
    chosen = spread([x for x in query if cameras.get(x.pid, set()) - {x.camid}], queries)
    pids = {sample.pid for sample in chosen}
    own, others = ([x for x in gallery if (x.pid in pids) == inside] for inside in (True, False))
    return chosen, spread(own, images) + spread(others, images)
