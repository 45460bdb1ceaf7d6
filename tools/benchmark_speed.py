"""What the tasks `train` and `extract` of tools/benchmark.py share: options, the clock, and what the device can do."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torchvision

from config import Config
from tools.benchmark_tables import SPEED_COLUMNS, speed_rows
from tools.benchmark_task import Task
from tools.model_summary import count
from utils.errors import UserError

# Rows and columns of the product, and how often it is made at a time.
MATMUL = {"cpu": (2048, 1), "cuda": (8192, 20)}
MATMUL_REPEATS = 5


@dataclass
class Speed(Task):
    """Images a second through a model."""

    dataset: str = "market1501"  # a name or a folder as for train.py
    data_root: str = field(default_factory=lambda: os.environ.get("REID_DATA") or "data")  # default: REID_DATA, or data
    device: Literal["cpu", "cuda"] = "cpu"  # where all contenders run
    workers: int = min(16, os.cpu_count() or 1)  # that read images: processes of classic, threads of ours
    rounds: int = 1  # times that all contenders run, in turn; of each its fastest pass counts
    columns: ClassVar[tuple[str, ...]] = SPEED_COLUMNS
    table = staticmethod(speed_rows)
    unsaved: ClassVar[tuple[str, ...]] = (*Task.unsaved, "data_root")
    warmup: ClassVar[int]
    products: ClassVar[int]  # with the weights that an image takes

    def check(self) -> None:
        super().check()
        self.check_at_least_1("workers", "rounds", "steps")
        if self.warmup < 0:
            raise UserError(f"--warmup must be at least 0, not {self.warmup}")

    def versions(self) -> dict[str, str]:
        return {"torchvision": str(torchvision.__version__)}

    def bare_product(self, cfg: Config, device: torch.device) -> dict:
        """The row of `matmul`: the least time that an image can take, of the fastest product of two large matrices."""
        flops = self.products * 2 * count(cfg)["multiply-adds"]
        teraflops = matmul_teraflops(device)
        seconds = flops / (1e12 * max(teraflops.values()))
        return {"images": 1, "seconds": seconds, "gigaflops_an_image": flops / 1e9, "teraflops": teraflops}

    def found(self, read: Callable[[], Any]) -> Any:
        """What is read of the dataset. Raises UserError where it is not there, with what can be done about it here."""
        try:
            return read()
        except UserError as error:
            if self.dataset == "demo":
                raise
            what = str(error).splitlines()[0].partition(";")[0]
            mend = "name its place with --data-root or REID_DATA, or take --dataset demo, which needs no download"
            raise UserError(f"{what}; {mend}") from error


def matmul_teraflops(device: torch.device) -> dict[str, float]:
    """Precision to 10^12 operations a second (a multiply-add is two) of the product of two square matrices, the fastest
    of a few; TF32 on GPUs only."""
    side, times = MATMUL[device.type]
    speeds = {}
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    for name, dtype in {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}.items():
        if name == "tf32" and device.type != "cuda":
            continue
        products.allow_tf32 = name == "tf32"
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        seconds = []
        for _ in range(1 + MATMUL_REPEATS):
            seconds.append(seconds_of(lambda a=a, b=b: [torch.mm(a, b) for _ in range(times)], device))
        speeds[name] = 2e-12 * times * side**3 / min(seconds[1:])
    products.allow_tf32 = before
    return speeds


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Wall seconds, the work on the device included."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Sits between batches and the loop that takes them. The first `warmup` batches do not count, then every `steps` of
    them are a pass. It ends when the loop, done with its last batch, asks for the next."""

    def __init__(self, device: torch.device, warmup: int, steps: int):
        self.device, self.warmup, self.steps = device, warmup, steps
        self.batches = self.images = 0  # so far
        self.waited = 0.0  # seconds until batches were there
        self.marks: list[tuple[float, ...]] = []  # wall, CPU and waited seconds, and images, at the ends of passes

    def over(self, batches: Iterable) -> Iterator:
        """The batches, of tensors or of tuples whose first is one; those of several calls are one row."""
        source = iter(batches)
        while True:
            if self.batches >= self.warmup and (self.batches - self.warmup) % self.steps == 0:
                wait(self.device)
                self.marks.append((time.perf_counter(), cpu_seconds(), self.waited, self.images))
            before = time.perf_counter()
            batch = next(source, None)
            self.waited += time.perf_counter() - before
            if batch is None:
                return
            self.batches += 1
            self.images += len(batch if isinstance(batch, torch.Tensor) else batch[0])
            yield batch

    def fastest(self) -> dict[str, Any]:
        """Of the pass with the most images a second: these, its seconds, those of all threads and processes together,
        and those until its batches were there. Also the images a second of all passes.

        Raises UserError where no pass came to its end.
        """
        passes = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in pairwise(self.marks)]
        passes = [one for one in passes if one[-1]]  # nothing is between the end of one row and the start of another
        if not passes:
            raise UserError(f"{self.batches} batches are too few; take smaller ones, or fewer --steps or --warmup")
        seconds, cpu, waited, images = max(passes, key=lambda one: one[-1] / one[0])
        speeds = [one[-1] / one[0] for one in passes]
        return {"images": images, "seconds": seconds, "cpu_seconds": cpu, "waited": waited, "images_per_second": speeds}


def cpu_seconds() -> float:
    """Of all threads of this process, and of its children, those that still run only where /proc tells."""
    times = os.times()
    alive = sum(_cpu_seconds_of(child.pid) for child in multiprocessing.active_children())
    return time.process_time() + times.children_user + times.children_system + alive


def _cpu_seconds_of(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold blanks
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
