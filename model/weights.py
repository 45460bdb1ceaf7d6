"""Initial weights of a model: find them in a weight file of any project, and report what was loaded."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.hub import HASH_REGEX, get_dir, load_state_dict_from_url

from config import Config
from utils.errors import UserError
from utils.files import load_plain
from utils.logging import log

# torchreid's checkpoints hold Rank-1 as a NumPy scalar, which torch does not load by itself; NumPy 2 moved its module
SCALAR = np.float32(0).__reduce__()[0]
NUMPY_SCALARS = [(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
NUMPY_SCALARS += [np.dtype, type(np.dtype("float32")), type(np.dtype("float64"))]
# note on the scores of a model if the file lacks these layers
ABSENT = {"fc": "the embedding layer is random", "neck": "scores are of the feature before the neck"}


@dataclass
class LoadReport:
    """Which tensors of a file were loaded, and which tensors of the model were not."""

    source: str
    found: dict[str, str]  # loaded part (backbone, pool, fc, neck): the prefix of its names in the file
    loaded: list[str]  # tensors of the backbone that were loaded
    missing: list[str]  # tensors of the backbone that stay random, apart from attention
    skipped: list[str]  # tensors of the file without a place in the model
    note: str = ""  # caveat of the scores of a model with these weights

    def __str__(self) -> str:
        places = ", ".join(f"{part} from {prefix}*" if prefix else part for part, prefix in self.found.items())
        text = f"weights from {self.source}: {len(self.loaded)} tensors of the backbone loaded ({places})"
        for what, names in (("skipped", self.skipped), ("missing", self.missing)):
            text += f"; {len(names)} {what}: {shorten(names)}" if names else ""
        return text


def load_initial_weights(cfg: Config, model: nn.Module) -> LoadReport:
    """Load the weights of the settings into a model: its backbone, and the layers after it if the file has them."""
    first, *others = model.branches
    head = {"fc": model.branches} if others else {"pool": model.pool, "fc": first.fc, "neck": first.neck}
    report = load_backbone(model.backbone, cfg.model.weights, head, cfg.model.allow_missing)
    if "caffe" in cfg.model.weights and not cfg.model.stride_in_1x1:
        log.warning("Caffe weights usually need --stride-in-1x1: without it they load, but the features are worse")
    return report


def load_backbone(
    backbone: nn.Module, source: str, head: Mapping[str, nn.Module] = {}, allow_missing: bool = False
) -> LoadReport:
    """Load `source` (imagenet, or a file; see `locate`) into `backbone`.

    head: layers after the backbone (pool, fc, neck); each is loaded if exactly one place in the file fits. Raises
    UserError if `source` cannot be read or downloaded, if nothing in it fits, or if it leaves a part of the backbone
    random (unless `allow_missing`).
    """
    state = download(backbone) if source == "imagenet" else read_state(source)
    (prefix, fits), *copies = locate(state, backbone) or [("", {})]
    if not fits:
        found = f"it holds {shorten(list(state))}" if state else "it holds no tensor"
        raise UserError(f"nothing in {source} fits this backbone ({found}); is it for another --backbone?")
    missing = [name for name in weights_of(backbone) if name not in fits and "attention" not in name.split(".")]
    if missing and not allow_missing:
        raise UserError(
            f"{source} lacks {len(missing)} tensors of this backbone, or has other shapes ({shorten(missing)}); give "
            "the --backbone that it is for, or leave them random with --allow-missing"
        )
    report = LoadReport(source, {"backbone": prefix}, sorted(fits), missing, [])
    notes = [f"{len(missing)} tensors of the backbone are random"] if missing else []
    load = [(backbone, fits)]
    # if the file has several copies of a model, such as its moving average, the head must be of the backbone's copy
    alike = [len(os.path.commonprefix([prefix, other])) for other, _ in copies]  # noqa: RUF071
    others = tuple(other[: other.index(".", start) + 1] for start, (other, _) in zip(alike, copies, strict=True))
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(others)}
    for part, module in head.items():
        rest = {name: tensor for name, tensor in rest.items() if name not in load[-1][1].values()}
        needed = {name for name in weights_of(module) if not name.endswith("bias")}  # a missing bias stays 0
        options = [place for place in locate(rest, module) if needed and needed <= place[1].keys()]
        if part == "neck" and any(t.ndim > 1 and len(t) == module.num_features for t in rest.values() if needed):
            options = []  # a layer of this width that the model lacks may come between the backbone and the neck
        if len(options) == 1:
            report.found[part], names = options[0]
            load.append((module, names))
        elif needed and part in ABSENT:
            notes.append(f"{ABSENT[part]}: {Path(source).name} has none that fits")
    for module, names in load:
        for name, target in module.state_dict().items():
            if name in names:
                target.copy_(state[names[name]].reshape(target.shape))  # float16 becomes float32
    used = {name for _, names in load for name in names.values()}
    report.skipped = [name for name in state if name not in used]
    extra = [name for name in rest if name in report.skipped and name.startswith(prefix) and state[name].ndim == 4]
    notes += [f"the backbone lacks {len(extra)} convolutions of the file ({shorten(extra)})"] if extra else []
    report.note = "; ".join(notes)
    return report


def locate(state: Mapping[str, torch.Tensor], module: nn.Module) -> list[tuple[str, dict[str, str]]]:
    """Find a module in a file. Returns the prefixes under which most of its tensors have the right name and shape, the
    shortest first, each with a dict from the module's names to the file's names.

    This one rule unwraps a backbone from dicts (state_dict), modules (module., backbone.) or both: all prefixes of the
    paths in the file are tried. A 1 × 1 convolution fits a linear layer.
    """
    groups: dict[str, dict[str, str]] = {}
    for name in state:
        parts = name.split(".")
        for depth in range(min(len(parts), 16)):
            groups.setdefault("".join(f"{p}." for p in parts[:depth]), {})[".".join(parts[depth:])] = name
    target, rename, found = module.state_dict(), getattr(module, "rename", dict), []
    for prefix, group in groups.items():
        names = {name: old for name, old in rename(group).items() if name in target}
        found.append((prefix, {name: old for name, old in names.items() if kind(state[old]) == kind(target[name])}))
    most = max((len(fits) for _, fits in found), default=0)
    return sorted((place for place in found if most and len(place[1]) == most), key=lambda place: len(place[0]))


def kind(tensor: torch.Tensor) -> tuple[bool, torch.Size]:
    return tensor.is_floating_point(), tensor.squeeze().shape


def weights_of(module: nn.Module) -> list[str]:
    """Names of parameters and statistics, without counters and tables of integers."""
    return [name for name, tensor in module.state_dict().items() if tensor.is_floating_point()]


def shorten(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if names[4:] else "")


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Read all tensors in a file's nested dicts, by path. Raises UserError; never runs code from the file."""
    found, todo, seen = {}, [("", load_plain(path, NUMPY_SCALARS))], set()
    while todo:
        path, value = todo.pop()
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu":
            found[path] = value
        elif isinstance(value, dict) and id(value) not in seen and len(path) < 1000:
            seen.add(id(value))  # a dict may contain itself
            texts = [key for key in value if isinstance(key, str)]  # an optimizer's state has integer keys
            todo += [(f"{path}.{key}" if path else key, value[key]) for key in reversed(texts)]
    return found


def download(backbone: nn.Module) -> dict[str, torch.Tensor]:
    """Download the backbone's ImageNet weights. Raises UserError if there are none, or no network, or a wrong hash."""
    source = getattr(backbone, "imagenet", "")
    if not source:
        raise UserError("this backbone has no ImageNet weights; give --weights none, or a file")
    if callable(source):  # timm's
        return source()
    elsewhere = f"download {source} elsewhere and give --weights FILE, or train from scratch with --weights none"
    if not HASH_REGEX.search(source):
        raise UserError(f"the ImageNet weights have no hash to check a download by; {elsewhere}")
    try:
        return load_state_dict_from_url(source, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # URLError; RuntimeError of torch.hub for a wrong hash
        raise UserError(
            f"the ImageNet weights could not be downloaded, or are damaged ({error}); delete the file from "
            f"{get_dir()}/checkpoints if it is there, {elsewhere}"
        ) from error
