"""Does the sum of blocks foretell the latency of a network: `tools/check_latency.py [--networks 30] [--batch 1]`.

Networks drawn by chance, none dearer than MobileNetV2 1.0, are measured whole, and their blocks each for itself, all in
turns, on `--device`. Spearman's rank correlation of the sums and the wholes says how far a search with `--max-latency`,
which adds up blocks, can be trusted on this machine. With OMP_NUM_THREADS=1 it also can on a busy one.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.cli import parse_settings
from model.backbones.searchable import Searched
from model.backbones.space import Space, Spec, mobilenet_v2, multiply_adds
from processor.environment import describe_environment, pick_device
from processor.latency_table import Part, measure, parts
from utils.errors import run
from utils.files import write_json
from utils.logging import log, setup_logging
from utils.pareto import spearman


@dataclass
class LatencyConfig(Config):
    networks: int = 30  # networks that are measured
    batch: int = 1  # images of a batch

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        if self.networks < 3 or self.batch < 1:
            yield f"--networks must be at least 3 and --batch at least 1, not {self.networks} and {self.batch}"


def drawn(cfg: LatencyConfig) -> list[Spec]:
    """Networks drawn by the seed."""
    most, rng = multiply_adds(mobilenet_v2(cfg.data.height, cfg.data.width)), np.random.default_rng(cfg.run.seed)
    space = Space(cfg.data.height, cfg.data.width, most)
    return [space.random(rng) for _ in range(cfg.networks)]


def check(specs: list[Spec], device: torch.device, batch: int) -> dict:
    """Seconds of each network whole, and as a sum of blocks; how well the sums, and multiply-adds, rank them."""
    some = {str(place): Part(partial(Searched, s), (3, s.height, s.width)) for place, s in enumerate(specs)}
    for spec in specs:
        some |= dict(parts(spec))
    seconds = measure(some, device, batch)
    wholes = [seconds[str(place)] for place in range(len(specs))]
    sums = [sum(seconds[key] for key, _ in parts(spec)) for spec in specs]
    ratio = np.divide(sums, wholes)
    rows = [{"whole": w, "sum": s, "spec": spec.to_dict()} for w, s, spec in zip(wholes, sums, specs, strict=True)]
    return {
        "spearman": spearman(sums, wholes),
        "spearman_of_multiply_adds": spearman([multiply_adds(spec) for spec in specs], wholes),
        "sum_by_whole": {"mean": float(ratio.mean()), "std": float(ratio.std())},
        "rows": rows,
    }


def main() -> None:
    cfg = parse_settings(LatencyConfig(), sys.argv[1:], os.environ, "tools/check_latency.py")
    setup_logging()
    device = pick_device(cfg.run.device)
    environment = describe_environment(device)
    result = check(drawn(cfg), device, cfg.batch)
    file = Path(cfg.run.log_dir) / f"latency_{cfg.data.height}x{cfg.data.width}_batch{cfg.batch}_{device.type}.json"
    write_json(file, environment | result)
    wholes = [row["whole"] * 1e3 for row in result["rows"]]
    log.info(
        "%d networks of %.1f to %.1f ms for %d images of at most %d x %d: Spearman's correlation with these is %.3f "
        "for sums of blocks, %.3f for multiply-adds; a sum is %.2f ± %.2f of the whole; %s",
        len(wholes), min(wholes), max(wholes), cfg.batch, cfg.data.height, cfg.data.width, result["spearman"],
        result["spearman_of_multiply_adds"], *result["sum_by_whole"].values(), environment["hardware"],
    )  # fmt: skip
    log.info("written to %s", file)


if __name__ == "__main__":
    run(main)
