"""What networks of the search space take on a device: the sum of what their blocks take, each measured once."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from model.backbones.searchable import InvertedResidual, Searched, convolution
from model.backbones.space import HEAD, STEM, Spec, blocks
from utils.errors import UserError
from utils.files import write_json
from utils.latency import fastest


class LatencyTable:
    """Seconds of every block that was asked for, kept in a file, for one device and batch size.

    Raises UserError for a file that was measured elsewhere.
    """

    def __init__(self, file: Path, device: torch.device, hardware: str, batch: int = 1):
        self.file, self.device, self.batch = file, device, batch
        self.about = {"device": str(device), "hardware": hardware, "batch": batch, "torch": str(torch.__version__)}
        self.seconds: dict[str, float] = {}
        if file.exists():
            stored = json.loads(file.read_text())
            if stored["about"] != self.about:
                raise UserError(
                    f"{file} was measured on {stored['about']}, not on {self.about}; delete it or name another"
                )
            self.seconds = stored["seconds"]

    def of(self, spec: Spec) -> float:
        """Seconds of a batch of images, from images to map."""
        found = blocks(spec)
        rows, columns = found[-1].size_out
        parts = {f"stem {spec.height} {spec.width}": (lambda: convolution(3, STEM, 3, 2), (3, spec.height, spec.width))}
        for block in found:
            shape = (block.c_in, block.rows, block.columns)
            key = " ".join(str(value) for name, value in asdict(block).items() if name != "stage")
            parts[key] = (lambda block=block: InvertedResidual(block), shape)
        c_out = found[-1].c_out
        parts[f"head {c_out} {rows} {columns}"] = (lambda: convolution(c_out, HEAD, 1), (c_out, rows, columns))
        new = {key: self._measure(make(), shape) for key, (make, shape) in parts.items() if key not in self.seconds}
        self.seconds |= new
        counts = dict.fromkeys(parts, 0)
        for block in found:
            counts[" ".join(str(value) for name, value in asdict(block).items() if name != "stage")] += 1
        return sum(self.seconds[key] * max(counts[key], 1) for key in parts)

    def whole(self, spec: Spec) -> float:
        """Seconds of the whole network, measured."""
        return self._measure(Searched(spec), (3, spec.height, spec.width))

    def save(self) -> None:
        write_json(self.file, {"about": self.about, "seconds": self.seconds})

    def _measure(self, module: nn.Module, shape: tuple[int, int, int]) -> float:
        module = module.to(self.device, memory_format=torch.channels_last)
        images = torch.randn(self.batch, *shape, device=self.device).contiguous(memory_format=torch.channels_last)
        return fastest(module, images)
