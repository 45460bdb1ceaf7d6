"""The base of all tasks: options, and the measurement of time and peak memory."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from config import Config
from utils.errors import UserError


@dataclass
class Task:
    """A task, whose fields are its options. `task` is its name; `contenders` are compared in this order."""

    skip: tuple[str, ...] = ()  # contenders to leave out
    save: str = ""  # JSON file for the measurement, such as results/benchmark_eval_market_cpu.json

    scratch = ""  # directory of files that the contenders share
    task = ""
    contenders = ()
    device = "cpu"
    compared, limits = "", {}  # the row's key that is compared, and the largest relative difference per contender

    def reason_not_to_run(self, contender: str) -> str:
        """Return why a contender cannot run here ("": it can)."""
        return ""

    def measure(self, contender: str) -> dict[str, Any]:
        """Measure one contender, which has this process to itself; return time and memory as plain values."""
        raise NotImplementedError

    def check(self, rows: dict[str, dict]) -> dict[str, float]:
        """Return relative differences of the outcomes to the usual code's. Raises UserError if one must be wrong."""
        values = {name: row[self.compared] for name, row in rows.items() if self.compared in row}
        usual = next((values.pop(name) for name in ("classic", "numpy", "exact") if name in values), None)
        apart = {name: value / usual - 1 for name, value in values.items()} if usual else {}
        for name, difference in apart.items():
            if not abs(difference) <= self.limits.get(name, self.limits.get("", 0)):
                raise UserError(f"{self.compared} of {name} is {values[name]:.6f}, not {usual:.6f}: one is wrong")
        return apart

    def facts(self) -> dict[str, Any]:
        """Return what describes the measurement: the options, unless overridden."""
        return {k: v for k, v in asdict(self).items() if k not in Task.__dataclass_fields__ and k != "data_root"}

    def config(self, **settings: Any) -> Config:
        """Return the default settings, changed by the options that are also settings."""
        known = Config().to_dict()
        return Config(**{k: v for k, v in vars(self).items() if k in known and v != ""} | settings).check()


def measure(call: Callable[[], Any], device: torch.device, repeats: int = 1) -> tuple[dict[str, float], Any]:
    """Return wall and CPU seconds of the fastest of `repeats` calls, peak memory, and the outcome of the last call.

    peak_mb: of this process so far (resident, or allocated on the GPU); above_mb: that minus the memory before.
    """
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    before, times, outcome = memory(device)[0], [], None
    for _ in range(repeats):
        outcome = None  # frees the previous one
        synchronize()
        start = time.perf_counter(), time.process_time()
        outcome = call()
        synchronize()
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    (seconds, cpu_seconds), peak = min(times), memory(device)[1]
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak, "above_mb": peak - before}, outcome


def memory(device: torch.device) -> tuple[float, float]:
    """MB of this process now and at its peak: resident memory (Linux only), or what is allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated() / 2**20, torch.cuda.max_memory_allocated() / 2**20
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(lines[field].split()[0]) / 2**10 for field in ("VmRSS", "VmHWM"))
    return now, peak


def lacking_memory(needed: float) -> str:
    """ "needs N GB" if this machine has fewer bytes than `needed`, else ""."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"needs {-(-needed // 2**30):.0f} GB" if needed > total else ""
