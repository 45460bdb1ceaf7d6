"""Latency of networks as the sum of the latencies of their blocks, each measured once."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import nn

from model.backbones.searchable import InvertedResidual, Spec, blocks, convolution
from utils.errors import UserError
from utils.files import reading, write_json
from utils.latency import time_calls

Part = tuple[Callable[[], nn.Module], tuple[int, int, int]]  # makes a module to measure; shape (C, H, W) of its input


class LatencyTable:
    """Seconds per block for one device and batch size, in float32 and channels last; kept in a file.

    Raises UserError for a file that is damaged or was measured on another machine.
    """

    def __init__(self, file: Path, device: torch.device, hardware: str, batch: int = 1):
        self.file, self.device, self.batch = file, device, batch
        self.about = {"device": str(device), "hardware": hardware, "batch": batch, "torch": str(torch.__version__)}
        self.seconds: dict[str, float] = {}
        if file.exists():
            with reading(file, "delete it; the latencies are measured again"):
                stored = json.loads(file.read_text())
                about, self.seconds = dict(stored["about"]), {k: float(v) for k, v in stored["seconds"].items()}
            if about != self.about:
                raise UserError(f"{file} was measured on {about}, not on {self.about}; delete it, or give another name")

    def total(self, spec: Spec) -> float:
        """Seconds of a network for one batch of images."""
        listed = parts(spec)
        seconds = self.look_up(dict(listed))
        return sum(seconds[key] for key, _ in listed)

    def look_up(self, some: dict[str, Part]) -> dict[str, float]:
        """Return seconds of each part. If one is new, all are run, so that caches are as in the whole network."""
        if not some.keys() <= self.seconds.keys():
            self.seconds = measure(some, self.device, self.batch) | self.seconds
            write_json(self.file, {"about": self.about, "seconds": self.seconds})
        return {key: self.seconds[key] for key in some}


@torch.no_grad()
def measure(some: dict[str, Part], device: torch.device, batch: int) -> dict[str, float]:
    """Seconds of each part for one batch of images: the fastest of 50 runs, as other programs only add to the time."""
    calls = []
    for make, shape in some.values():
        module = make().eval().to(device, memory_format=torch.channels_last)
        images = torch.randn(batch, *shape, device=device).contiguous(memory_format=torch.channels_last)
        calls.append(partial(module, images))
    one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    return dict(zip(some, map(min, time_calls(calls, device, thread_time=one_thread)), strict=True))


def parts(spec: Spec) -> list[tuple[str, Part]]:
    """Stem, blocks and head of a network in order, each under a key with all that its time depends on."""
    found = blocks(spec)
    rows, columns = found[-1].size_out
    stem: Part = partial(convolution, 3, spec.stem, 3, 2), (3, spec.height, spec.width)
    listed = [(f"stem {spec.stem} {spec.height} {spec.width}", stem)]
    for block in found:
        key = " ".join(str(value) for name, value in asdict(block).items() if name != "stage")
        listed.append((key, (partial(InvertedResidual, block), (block.c_in, block.rows, block.columns))))
    c_out = found[-1].c_out
    head = partial(convolution, c_out, spec.head, 1), (c_out, rows, columns)
    return [*listed, (f"head {c_out} {spec.head} {rows} {columns}", head)]
