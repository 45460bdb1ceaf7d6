"""Default settings for own pictures: a training that the machine can do in an evening, in the shape of the pictures."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from config import Config
from datasets.base import check_train, identities
from datasets.image_size import measure_ratio
from datasets.make import DATASETS, train_set
from utils.errors import UserError

RATIOS = (2, 4 / 3, 1, 3 / 4, 1 / 2)  # height : width of the input
# Without a GPU: images of 128 x 64 pixels in all epochs, about an hour at 40 a second, the speed of one slow core
IMAGES = 150_000
SMALL = {"backbone": "mobilenet_v2", "last_stride": 2, "pad": 5, "schedule": "cosine"}


def choose_settings(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Differences from the defaults of `Config` for own pictures, {} for a dataset by name; `typed` settings stay."""
    cfg = Config(**typed).check()
    if cfg.data.dataset in DATASETS or not Path(cfg.data.dataset).exists():
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # like the error, it comes again when training reads the pictures
        try:
            train = check_train(train_set(cfg)).train
        except UserError:
            return {}
    people, ratio = len(identities(train)), measure_ratio([s.path for s in train])
    gpu = cfg.run.device != "cpu" and torch.cuda.is_available()
    side, shape = 256 if gpu else 128, min(RATIOS, key=lambda r: abs(math.log(r / ratio)))
    size = {"height": round(side * min(shape, 1)), "width": round(side * min(1 / shape, 1))}
    size |= {name: typed[name] for name in size if name in typed}
    chosen = size | {"batch_size": cfg.data.images_per_id * max(2, min(16, people // 2))}
    recipe = "a GPU: the full recipe"
    if not gpu:
        share = 128 * 64 / (size["height"] * size["width"])
        epochs = typed.get("epochs", min(max(round(IMAGES * share / len(train)), 5), 60))
        chosen |= SMALL | {"epochs": epochs, "warmup_epochs": epochs / 10}
        recipe = "no GPU: a small backbone, small images and few epochs"
    about = f"{len(train)} pictures of {people} identities, height:width {ratio:.2f}"
    return chosen | {"preset_note": f"chosen for {about}; {recipe}; typed settings and presets take precedence"}
