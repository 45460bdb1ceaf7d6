"""`data`, `train` and `extract`: images per second, from files to training batches, and through a model.

`data` runs in one thread: `classic` and `streamed` do all of it, image by image and our way. `augmented` starts from
the cache of decoded images, as training does; `cache` and `jpeg` make batches without augmentation, from the cache and
from the files.

`train` and `extract`: `matmul` is the images per second that the multiply-adds of the network alone would allow.
`classic` is the usual loop, `ours` is train.py or test.py as they are, and the others are ours with one change.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks import classic
from benchmarks.task import Task, measure, memory
from config import Config
from datasets.augment import normalise
from datasets.base import label_map
from datasets.loaders import TestLoader, TrainLoader
from datasets.make import find_dataset, make_dataset, make_test_set
from datasets.sampler import PKSampler
from model import make_model
from processor import do_train, extract_features, load_model
from processor.environment import pick_device
from processor.precision import layout
from tools.model_summary import count
from utils.latency import time_calls
from utils.metrics import evaluate

CPU = torch.device("cpu")
MATMUL = {"cpu": (2048, 1), "cuda": (8192, 20)}  # rows and columns of the product, and how often it runs per call

CHANGES = {  # settings of the contenders that are ours
    "ours": {}, "float32": {"precision": "float32"}, "bf16": {"precision": "bf16"},
    "contiguous": {"channels_last": False}, "unfused": {"fused": False}, "compiled": {"compile": True},
}  # fmt: skip


@dataclass
class Data(Task):
    """Image files to training batches, by one thread"""

    dataset: str = "market1501"  # dataset whose training images are read: a name or a folder, as for train.py
    data_root: str = "data"  # directory of the datasets
    images: int = 4096  # number of images to read, the first ones by name
    height: int = 256  # in pixels
    width: int = 128  # in pixels
    batch_size: int = 64  # images per batch, 4 of each identity
    repeats: int = 3  # epochs of each contender after one warm-up epoch; the fastest counts

    task = "data"
    contenders = ("classic", "cache", "jpeg", "augmented", "streamed")
    # mean square of the pixels without augmentation; decoders and resizing differ by one or two of 255 levels
    compared, limits = "square", {"": 0.05}

    def measure(self, contender: str) -> dict:
        torch.set_num_threads(1)
        disk = {"disk_gb": 0.0} if contender in ("jpeg", "streamed") else {}
        cfg = self.config(cache_dir=self.scratch, workers=1, cache_gb=0.0, **disk)
        samples = find_dataset(self.dataset, cfg).train[: self.images]
        loader = TrainLoader(cfg, samples)
        rows, paths = list(loader.sampler.epoch(0)), [s.path for s in samples]
        random.seed(0), torch.manual_seed(0)

        def batches(transform: Callable) -> Iterator[torch.Tensor]:
            pictures = classic.Pictures(paths, [0] * len(paths), transform)
            return (images for images, _ in classic.batches(pictures, rows, 0))

        def epoch() -> int:
            if contender == "classic":
                return sum(map(len, batches(classic.training_transform(self.height, self.width))))
            if contender in ("cache", "jpeg"):
                return sum(len(images) for _, images in loader.images.batches(rows, CPU))
            return sum(len(images) for images, _ in loader.epoch(0, CPU))

        epoch()  # starts libraries, and lets the system cache the files
        row, images = measure(epoch, CPU, self.repeats)
        if contender == "classic":
            plain = next(batches(classic.plain_transform(self.height, self.width)))
        else:
            plain = normalise(loader.images.read(rows[0]))
        return row | {"images": images, "square": plain.square().mean().item()}


@dataclass
class Train(Task):
    """The training loop"""

    dataset: str = "market1501"  # a name or a folder, as for train.py
    data_root: str = "data"  # directory of the datasets
    train_ids: int = 200  # use the first n identities only, for short epochs (0: all)
    device: Literal["cpu", "cuda"] = "cpu"  # device of all contenders
    workers: int = 2  # processes (classic) or threads (ours) that read images
    backbone: str = "resnet50"  # as for train.py; with random weights
    height: int = 256  # in pixels
    width: int = 128  # in pixels
    batch_size: int = 64  # images per batch, 4 of each identity
    epochs: int = 4  # of each contender; the fastest counts, except for the first

    task = "train"
    contenders = ("matmul", "classic", *CHANGES)
    # the random augmentation differs, so the losses of two correct loops differ by a few percent
    compared, limits = "loss", {"": 0.25}

    def reason_not_to_run(self, contender: str) -> str:
        return "on GPUs only" if contender == "compiled" and self.device == "cpu" else ""

    def measure(self, contender: str) -> dict:
        """Images and seconds of the fastest epoch, share of waiting, memory, and the mean loss of the last epoch."""
        quick = {"eval_first": False, "eval_every": self.epochs, "test_ids": 1, "ranked_lists": 0, "rerank": False}
        cfg = self.config(weights="none", center_weight=0.0, log_dir=self.scratch, name=contender, **quick)
        cfg, device = cfg.replace(**CHANGES.get(contender, {})), pick_device(self.device)
        if contender == "matmul":
            return matmul(cfg, device, products=3)  # forward, and backward to the input and to the weights
        if contender == "classic":
            epochs, loss = classic_training(cfg, device)
        else:
            do_train(cfg)
            lines = Path(cfg.run.log_dir, contender, "metrics.jsonl").read_text().splitlines()
            epochs = [json.loads(line) for line in lines]
            loss = epochs[-1]["loss"]
        speeds = [epoch["images_per_second"] for epoch in epochs[1:]]
        best = max(epochs[1:], key=lambda epoch: epoch["images_per_second"])
        row = {"images": best["images_per_second"], "seconds": 1.0}
        row |= {"waited": best["data_wait"]} if "data_wait" in best else {}
        return row | {"images_per_second": speeds, "peak_mb": memory(device)[1], "loss": loss}


def classic_training(cfg: Config, device: torch.device) -> tuple[list[dict], float]:
    """Images per second of each epoch of the usual loop, and the mean loss of the last."""
    torch.backends.cudnn.benchmark = True
    samples = make_dataset(cfg).train
    of_pid = label_map(samples)
    labels = [of_pid[s.pid] for s in samples]
    torch.manual_seed(cfg.run.seed)
    model = make_model(cfg, len(of_pid)).to(device)
    lr = cfg.solver.lr * cfg.solver.warmup_factor
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=cfg.solver.weight_decay)
    sampler = PKSampler(labels, cfg.data.batch_size, cfg.data.images_per_id, cfg.run.seed)
    transform = classic.training_transform(cfg.data.height, cfg.data.width)
    pictures, epochs = classic.Pictures([s.path for s in samples], labels, transform), []
    for number in range(cfg.solver.epochs):
        rows, start = list(sampler.epoch(number)), time.perf_counter()
        batches = classic.batches(pictures, rows, cfg.data.workers)
        loss = classic.train_epoch(cfg, model, optimizer, batches, device)
        epochs.append({"images_per_second": sum(map(len, rows)) / (time.perf_counter() - start)})
    return epochs, loss


@dataclass
class Extract(Task):
    """Features of a test set by a trained model"""

    checkpoint: str = "log/demo/last.pth"  # trained model, with its settings
    dataset: str = "market1501"  # a name or a folder, as for test.py
    data_root: str = "data"  # directory of the datasets
    test_ids: int = 0  # use the first n identities only (0: all)
    device: Literal["cpu", "cuda"] = "cpu"  # device of all contenders
    workers: int = 2  # processes (classic) or threads (ours) that read images
    batch_size: int = 256  # images per batch

    task = "extract"
    contenders = ("matmul", "classic", "ours", "bf16")
    compared, limits = "mAP", {"ours": 5e-4, "bf16": 0.03}

    def load(self, contender: str) -> tuple[torch.nn.Module, Config, torch.device]:
        device = pick_device(self.device)
        model, cfg = load_model(self.checkpoint, device)
        where = {"dataset": self.dataset, "test_dataset": "", "data_root": self.data_root, "cache_dir": ""}
        how = {"workers": self.workers, "test_batch_size": self.batch_size, "test_ids": self.test_ids}
        precision = {"test_precision": "bf16" if contender == "bf16" else "float32"}
        return model, cfg.replace(**where, **how, **precision), device

    def facts(self) -> dict:
        _, cfg, _ = self.load("")
        return super().facts() | {name: cfg.get(name) for name in ("backbone", "height", "width", "metric")}

    def measure(self, contender: str) -> dict:
        """Images and seconds of the gallery, after the queries as a warm-up; memory, and scores."""
        model, cfg, device = self.load(contender)
        if contender == "matmul":
            return matmul(cfg, device, products=1)
        dataset = make_test_set(cfg)
        if contender == "classic":
            torch.backends.cudnn.benchmark = True
            query, gallery = dataset.query, dataset.gallery
        else:
            model = model.to(memory_format=layout(cfg))
            query, gallery = TestLoader(cfg, dataset.query, "query"), TestLoader(cfg, dataset.gallery, "gallery")

        def features(split) -> torch.Tensor:
            if contender != "classic":
                return extract_features(cfg, model, split, device)[0].cpu()
            transform = classic.plain_transform(cfg.data.height, cfg.data.width)
            pictures = classic.Pictures([s.path for s in split], [0] * len(split), transform)
            rows = torch.arange(len(split)).split(self.batch_size)
            return classic.extract(model, classic.batches(pictures, rows, self.workers), device)

        queries = features(query)
        row, found = measure(lambda: features(gallery), device)
        ids = [np.array([getattr(s, n) for s in x]) for n in ("pid", "camid") for x in (dataset.query, dataset.gallery)]
        return row | {"images": len(found), "mAP": evaluate(queries, found, *ids, metric=cfg.eval.metric).mAP}


def matmul(cfg: Config, device: torch.device, products: int) -> dict:
    """The row of `matmul`: seconds of one image's multiply-adds, at the speed of the fastest precision."""
    side, times = MATMUL[device.type]
    speeds, before = {}, torch.backends.cuda.matmul.allow_tf32
    for name, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "tf32" and device.type != "cuda":
            continue
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        (seconds,) = time_calls([lambda a=a, b=b: [torch.mm(a, b) for _ in range(times)]], device, rounds=5, warmup=1)
        speeds[name] = 2e-12 * times * side**3 / min(seconds)
    torch.backends.cuda.matmul.allow_tf32 = before
    flops = products * 2 * count(cfg)["multiply-adds"]
    return {"images": 1, "seconds": flops / (1e12 * max(speeds.values())), "teraflops": speeds}
