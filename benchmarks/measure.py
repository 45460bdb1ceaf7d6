"""Time and peak memory of a function."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


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
