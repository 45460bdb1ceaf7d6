"""What all tasks have: options, and the measurement of time and peak memory."""

import os
import resource
import sys
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
    """A task: its options are the fields. `task` is its name, `contenders` what is compared, in this order."""

    skip: tuple[str, ...] = ()  # contenders to leave out
    save: str = ""  # JSON file for the measurement, such as results/benchmark_eval_market_cpu.json
    contender: str = ""  # measure only this one, in this process, and print one line of JSON
    scratch: str = ""  # directory of files that the contenders share

    task = ""
    contenders = ()
    device = "cpu"

    def reason_not_to_run(self, contender: str) -> str:
        """Why a contender cannot run here ("": it can)."""
        return ""

    def measure(self, contender: str) -> dict[str, Any]:
        """Time and memory of one contender, which has this process to itself, as plain values."""
        raise NotImplementedError

    def check(self, rows: dict[str, dict]) -> dict[str, float]:
        """Differences between the outcomes of the contenders. Raises UserError where one of them must be wrong."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What describes the measurement: the options, unless overridden."""
        return {k: v for k, v in asdict(self).items() if k not in Task.__dataclass_fields__ and k != "data_root"}


def check_close(rows: dict[str, dict], key: str, limits: dict[str, float], relative: bool) -> dict[str, float]:
    """Differences of a value from classic's. Raises UserError where one is above the limit of its contender."""
    values = {name: row[key] for name, row in rows.items() if key in row}
    if "classic" not in values:
        return {}
    classic = values.pop("classic")
    apart = {name: (value - classic) / (classic if relative else 1) for name, value in values.items()}
    for name, difference in apart.items():
        if not abs(difference) <= limits.get(name, limits.get("", 0)):
            raise UserError(f"{key} of {name} is {values[name]:.4f}, that of classic {classic:.4f}: one is wrong")
    return apart


def usual_config(options: Any, **settings: Any) -> Config:
    """The usual settings with those options that are settings too."""
    known = Config().to_dict()
    shared = {name: value for name, value in vars(options).items() if name in known and value != ""}
    return Config(**{**shared, **settings}).check()


def measure(call: Callable[[], Any], device: torch.device, repeats: int = 1) -> tuple[dict[str, float], Any]:
    """Wall and CPU seconds of the fastest of `repeats` calls, peak memory, and what the last call returned.

    peak_mb: of this process so far (resident, or allocated on the GPU); above_mb: that minus the memory before.
    """
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    before, times, outcome = memory(device)[0], [], None
    for _ in range(repeats):
        outcome = None  # frees the last one
        synchronize()
        start = time.perf_counter(), time.process_time()
        outcome = call()
        synchronize()
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    (seconds, cpu_seconds), peak = min(times), memory(device)[1]
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak, "above_mb": peak - before}, outcome


def memory(device: torch.device) -> tuple[float, float]:
    """MB of this process now and at its peak: resident memory, or what is allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated() / 2**20, torch.cuda.max_memory_allocated() / 2**20
    try:
        return from_proc("self/status", "VmRSS"), from_proc("self/status", "VmHWM")
    except OSError:  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        return peak, peak


def lacking_memory(needed: float) -> str:
    """ "needs N GB" if fewer bytes than `needed` are available, else ""."""
    try:
        available = from_proc("meminfo", "MemAvailable") * 2**20
    except OSError:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"needs {-(-needed // 2**30):.0f} GB" if needed > available else ""


def from_proc(file: str, field: str) -> float:
    """MB that a file of Linux' /proc gives in kB. Raises OSError on other systems."""
    for line in Path("/proc", file).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 2**10
    raise OSError(f"/proc/{file} has no {field}")
