"""Start weights of a backbone, and a report of what was loaded."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.errors import UserError

# torchreid's checkpoints hold Rank-1 as a NumPy scalar, which torch does not load by itself; NumPy 2 moved its module
_SCALAR = np.float32(0).__reduce__()[0]
NUMPY_SCALARS = [(_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
NUMPY_SCALARS += [np.dtype, type(np.dtype("float32")), type(np.dtype("float64"))]


@dataclass
class LoadReport:
    """Names of the tensors that were loaded, that fit nothing in the model, and that the model lacks."""

    source: str
    loaded: list[str]
    skipped: list[str]
    missing: list[str]

    def __str__(self) -> str:
        text = f"weights from {self.source}: {len(self.loaded)} tensors loaded"
        for what in ("skipped", "missing"):
            names = getattr(self, what)
            text += f"; {len(names)} {what}: {', '.join(names)}" if names else ""
        return text


def load_backbone(backbone: nn.Module, source: str, fc: nn.Module | None = None) -> LoadReport | None:
    """Load `source` (imagenet, none, or a file) into `backbone`. Returns a report, None for `none`.

    A file may be a state dict, or a dict that holds one under `model` or `state_dict` (our own checkpoints and those of
    others), with or without `module.`, `backbone.` and `branches.0.` before the names; float16 is cast to float32. `fc`
    gets the names `fc.*`, where torchreid's files and ours have the embedding layer after the pooling.
    Raises UserError when it cannot be read or downloaded, or when nothing in it fits.
    """
    if source == "none":
        return None
    state = download(backbone) if source == "imagenet" else read_state(source)
    if hasattr(backbone, "rename"):
        state = backbone.rename(state)
    target = backbone.state_dict()
    if fc is not None:
        target |= {f"fc.{name}": tensor for name, tensor in fc.state_dict().items()}
    fits = {k: v for k, v in state.items() if k in target and v.shape == target[k].shape}
    report = LoadReport(source, sorted(fits), sorted(state.keys() - fits.keys()), sorted(target.keys() - fits.keys()))
    if not any(name in fits for name, _ in backbone.named_parameters()):
        found = f"it holds {', '.join(sorted(state)[:4])}, ..." if state else "it holds no tensor"
        raise UserError(f"nothing in {source} fits this backbone ({found}); is it for another --backbone?")
    backbone.load_state_dict(fits, strict=False)
    if fc is not None:
        fc.load_state_dict({k.removeprefix("fc."): v for k, v in fits.items() if k.startswith("fc.")}, strict=False)
    return report


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by plain name. Raises UserError; never runs code from the file."""
    content = load_plain(path)
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    plain = {}
    for name, tensor in content.items():
        if isinstance(tensor, torch.Tensor):
            name = str(name).removeprefix("module.").removeprefix("backbone.").removeprefix("branches.0.")
            plain[name] = tensor.float() if tensor.is_floating_point() else tensor
    return plain


def load_plain(path: str | Path) -> Any:
    """torch.load of tensors and plain values only. Raises UserError for any other file."""
    if not Path(path).is_file():
        raise UserError(f"{path} is not a file; give imagenet, none or the path of a weights file")
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or holds more than tensors and plain values and could run code when loaded; refused"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{path} is damaged or not a PyTorch file: {reason}") from error


def download(backbone: nn.Module) -> dict[str, torch.Tensor]:
    """The backbone's ImageNet weights. Raises UserError if it has none, without a network, or for a wrong hash."""
    if not hasattr(backbone, "imagenet"):
        raise UserError("this backbone has no ImageNet weights; give --weights none, or a file")
    weights = backbone.imagenet
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:  # URLError is one
        raise UserError(
            f"the ImageNet weights {weights} could not be downloaded ({error}); download {weights.url} elsewhere and "
            "give the file with --weights FILE, or train from scratch with --weights none"
        ) from error
    except RuntimeError as error:  # torch.hub: the file has another hash than its name says, or is truncated
        raise UserError(
            f"the ImageNet weights {weights} are damaged ({error}); delete that file from {torch.hub.get_dir()}"
            "/checkpoints, if it exists, and run the command again"
        ) from error
