"""The task `extract` of tools/benchmark.py: images a second from the test images to the features of a trained model.

`matmul` is the bare matrix product, the most that the device can do. `classic` is the usual loop; `ours` is test.py
as it is, `bf16` is it with --test-precision bf16. Classic reads files, ours the cache. The mAP of all is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from config import Config
from datasets.loaders import TestLoader
from datasets.make import make_test_set
from processor.checkpoint import read_checkpoint, rebuild_model
from processor.environment import pick_device
from processor.evaluate import feature_batches
from processor.test import prepare_test
from tools import baseline_data, baseline_train
from tools.benchmark_speed import Speed, Stopwatch
from tools.benchmark_task import memory
from utils.errors import UserError
from utils.metrics import evaluate

# Of mAP, as fractions. Ours is to be equal to three decimals; bf16 costs a little, and how much the table says.
TOLERANCE = {"ours": 5e-4, "bf16": 0.03}
Features = tuple[torch.Tensor, torch.Tensor]  # of query and gallery


def classic(cfg: Config, checkpoint: Path, device: torch.device, watch: Stopwatch) -> Features:
    """The usual loop over query and gallery."""
    torch.backends.cudnn.benchmark = True
    dataset = make_test_set(cfg)
    paths = [s.path for s in (*dataset.query, *dataset.gallery)]
    model = rebuild_model(read_checkpoint(checkpoint), checkpoint, cfg).to(device)
    transform = baseline_data.plain_transform(cfg.data.height, cfg.data.width)
    pictures = baseline_train.Pictures(paths, [0] * len(paths), transform)
    starts = range(0, len(paths), cfg.data.test_batch_size)
    rows = (range(i, min(i + cfg.data.test_batch_size, len(paths))) for i in starts)
    features = baseline_train.extract(
        model, watch.over(baseline_train.batches(pictures, rows, cfg.data.workers)), device
    )
    return features[: len(dataset.query)], features[len(dataset.query) :]


def ours(cfg: Config, checkpoint: Path, device: torch.device, watch: Stopwatch, precision: str) -> Features:
    """As test.py extracts them, in this precision."""
    test = prepare_test(cfg.replace(test_precision=precision), (checkpoint, read_checkpoint(checkpoint)))
    parts = [feature_batches(test.cfg, test.model, Watched(x, watch), device) for x in (test.query, test.gallery)]
    query, gallery = (torch.cat([plain for plain, _ in part]).cpu() for part in parts)
    return query, gallery


class Watched:
    """A test loader whose batches are counted."""

    def __init__(self, loader: TestLoader, watch: Stopwatch):
        self.loader, self.watch = loader, watch
        self.samples, self.images = loader.samples, loader.images

    def batches(self, device: torch.device) -> Iterator[torch.Tensor]:
        return self.watch.over(self.loader.batches(device))


@dataclass
class Extract(Speed):
    """Features of a test set."""

    checkpoint: str = "log/demo/last.pth"  # trained model, with its settings
    test_ids: int = 0  # the first so many identities only; 0: all
    batch_size: int = 256  # images a batch
    warmup: int = 2  # batches at first that do not count
    steps: int = 10  # batches of a pass, of which there are as many as the images allow
    task: ClassVar[str] = "extract"
    contenders: ClassVar[dict[str, Callable]] = {
        "matmul": Speed.bare_product,
        "classic": classic,
        "ours": partial(ours, precision="float32"),
        "bf16": partial(ours, precision="bf16"),
    }
    products: ClassVar[int] = 1
    unsaved: ClassVar[tuple[str, ...]] = (*Speed.unsaved, "checkpoint")

    def config(self) -> Config:
        """Those of the checkpoint, on this data and device."""
        cfg = Config.from_dict(read_checkpoint(self.checkpoint)["config"])
        where = {"dataset": self.dataset, "test_dataset": "", "data_root": self.data_root, "cache_dir": ""}
        how = {"device": self.device, "workers": self.workers, "test_batch_size": self.batch_size}
        return cfg.replace(**where, **how, test_ids=self.test_ids)

    def check(self) -> None:
        super().check()
        self.check_at_least_1("batch_size")
        cfg = self.config().check()
        self.found(lambda: make_test_set(cfg))

    def describe(self) -> str:
        cfg, dataset = self.config(), make_test_set(self.config())
        size = f"{cfg.data.height} × {cfg.data.width}, batches of {self.batch_size}"
        images = len(dataset.query) + len(dataset.gallery)
        return f"extract, {cfg.model.backbone}, {self.dataset}: {images:,} images at {size}"

    def facts(self) -> dict[str, Any]:
        cfg = self.config()
        return {name: cfg.get(name) for name in ("backbone", "height", "width", "metric")}

    def measure(self, contender: str, scratch: Path) -> dict:
        """Images and seconds of the fastest pass, memory, and the scores of all features."""
        cfg, device = self.config(), pick_device(self.device)
        if contender == "matmul":
            return {"contender": contender, **self.bare_product(cfg, device)}
        watch = Stopwatch(device, self.warmup, self.steps)
        features = self.contenders[contender](cfg, Path(self.checkpoint), device, watch)
        row = {"contender": contender, **watch.fastest(), "peak_mb": memory(device)[1]}
        dataset = make_test_set(cfg)
        splits = (dataset.query, dataset.gallery)
        ids = [np.array([getattr(s, name) for s in split]) for name in ("pid", "camid") for split in splits]
        scores = evaluate(*features, *ids, metric=cfg.eval.metric)
        return row | {"scores": {"mAP": scores.mAP, "rank1": scores.rank(1)}}

    def compare(self, rows: list[dict]) -> dict[str, float]:
        """Differences of mAP from classic's, as fractions."""
        found = {row["contender"]: row["scores"]["mAP"] for row in rows if "scores" in row}
        if "classic" not in found:
            print("mAP not compared: that takes classic")
            return {}
        expected = found.pop("classic")
        apart = {name: mAP - expected for name, mAP in found.items()}
        print(f"mAP {expected:.5f} of classic; " + ", ".join(f"{name} {x:+.5f}" for name, x in apart.items()))
        for name, difference in apart.items():
            if not abs(difference) <= TOLERANCE[name]:
                raise UserError(f"the mAP of {name} is {difference:+.4f} beside that of classic: one of them is wrong")
        return apart

    def file_name(self) -> str:
        """Task, dataset, backbone, device and size; batch and identities where they are not the default."""
        cfg = self.config()
        odd = [f"b{self.batch_size}"] * (self.batch_size != 256) + [f"{self.test_ids}ids"] * (self.test_ids > 0)
        names = (
            Path(self.dataset).name,
            cfg.model.backbone.replace("/", "_"),
            self.device,
            f"{cfg.data.height}x{cfg.data.width}",
        )
        return "_".join(["benchmark", self.task, *names, *odd]) + ".json"
