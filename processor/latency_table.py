"""What networks of the search space take on a device: the sum of what their blocks take, each measured once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from model.backbones.searchable import InvertedResidual, convolution
from model.backbones.space import HEAD, STEM, Spec, blocks
from utils.errors import UserError
from utils.files import write_json
from utils.latency import shortest


class Part(NamedTuple):
    """Something to be measured, and the shape (C, H, W) of what it gets."""

    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]


class LatencyTable:
    """Seconds of every block that was asked for, in float32 and with channels last, for one device and batch size.

    They are kept in a file, so that a search that goes on finds what it found. Raises UserError for a file that is
    damaged or was measured elsewhere.
    """

    def __init__(self, file: Path, device: torch.device, hardware: str, batch: int = 1):
        self.file, self.device, self.batch = file, device, batch
        self.about = {"device": str(device), "hardware": hardware, "batch": batch, "torch": str(torch.__version__)}
        self.seconds: dict[str, float] = {}
        if file.exists():
            try:
                stored = json.loads(file.read_text())
                about, self.seconds = dict(stored["about"]), {k: float(v) for k, v in stored["seconds"].items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{file} is no table of latencies ({error!r}); delete it") from error
            if about != self.about:
                raise UserError(f"{file} was measured on {about}, not on {self.about}; delete it, or give another name")

    def of(self, spec: Spec) -> float:
        """Seconds of a batch of images, from images to map."""
        listed = parts(spec)
        seconds = self.look_up(dict(listed))
        return sum(seconds[key] for key, _ in listed)

    def look_up(self, some: dict[str, Part]) -> dict[str, float]:
        """Seconds of each of these. Where one is new, all are measured, for it shall find the caches as they are when
        the others run before it."""
        if not some.keys() <= self.seconds.keys():
            self.seconds = measure(some, self.device, self.batch) | self.seconds
            write_json(self.file, {"about": self.about, "seconds": self.seconds})
        return {key: self.seconds[key] for key in some}


def measure(some: dict[str, Part], device: torch.device, batch: int) -> dict[str, float]:
    """Seconds that each of these takes for a batch of images, run in turns."""
    ready = []
    for part in some.values():
        module = part.make().to(device, memory_format=torch.channels_last)
        images = torch.randn(batch, *part.shape, device=device)
        ready.append((module, images.contiguous(memory_format=torch.channels_last)))
    return dict(zip(some, shortest(ready), strict=True))


def parts(spec: Spec) -> list[tuple[str, Part]]:
    """Stem, blocks and head of a network in the order in which they run, by what their time follows from."""
    found = blocks(spec)
    rows, columns = found[-1].size_out
    listed = [
        (f"stem {spec.height} {spec.width}", Part(partial(convolution, 3, STEM, 3, 2), (3, spec.height, spec.width)))
    ]
    for block in found:
        key = " ".join(str(value) for name, value in asdict(block).items() if name != "stage")
        listed.append((key, Part(partial(InvertedResidual, block), (block.c_in, block.rows, block.columns))))
    c_out = found[-1].c_out
    head = Part(partial(convolution, c_out, HEAD, 1), (c_out, rows, columns))
    return [*listed, (f"head {c_out} {rows} {columns}", head)]
