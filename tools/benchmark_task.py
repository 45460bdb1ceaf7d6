"""What every task of tools/benchmark.py is: options and answers to the program's questions; and how time and memory
are measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Task:
    """The fields are the options on the command line, each with a default and all of them plain values. A task also has
    a `device`, an option or fixed."""

    skip: tuple[str, ...] = ()  # contenders that are left out
    save: bool = False  # write the measurement for tools/results_table.py
    results: str = str(ROOT / "results")  # directory that --save writes to
    task: ClassVar[str]  # its name on the command line
    contenders: ClassVar[dict[str, Callable]]  # in the order in which they run
    columns: ClassVar[tuple[str, ...]]  # heads of the table
    rounds: ClassVar[int] = 1  # times that all contenders run, in turn
    threads: ClassVar[int | None] = None  # that torch computes with; None: as many as OMP_NUM_THREADS says
    unsaved: ClassVar[tuple[str, ...]] = ("skip", "save", "results")  # options that do not describe a measurement

    def check(self) -> None:
        """Raises UserError for options that make no sense."""
        for name in self.skip:
            if name not in self.contenders:
                raise UserError(f"--skip {name}: no contender is called so; there are {', '.join(self.contenders)}")
        if set(self.skip) == set(self.contenders):
            raise UserError("--skip leaves no contender to run")

    def check_at_least_1(self, *names: str) -> None:
        """Raises UserError where one of these options is smaller."""
        for name in names:
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")

    def describe(self) -> str:
        """What is measured, to be printed above the table."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What describes a measurement beside the options."""
        return {}

    def versions(self) -> dict[str, str]:
        """Of libraries that matter here and that not every result is stored with."""
        return {}

    def reason_not_to_run(self, contender: str) -> str:
        """What keeps a contender from running on this machine; empty: nothing."""
        return ""

    def measure(self, contender: str, scratch: Path) -> dict:
        """Time and memory of one contender, which has this process to itself, as a row of plain values.

        scratch: a directory that the contenders of one run share, and that is removed after the last.
        """
        raise NotImplementedError

    def compare(self, rows: list[dict]) -> dict[str, float]:
        """How far apart the contenders' outcomes are, printed too. Raises UserError where one of them must be wrong."""
        raise NotImplementedError

    @staticmethod
    def table(result: dict) -> list[tuple[str, ...]]:
        """The cells under `columns` of every contender."""
        raise NotImplementedError

    def file_name(self) -> str:
        """Of the saved result: benchmark_..., and all that tells it from other results."""
        raise NotImplementedError


def timed(
    call: Callable[[], Any], repeats: int, device: torch.device
) -> tuple[list[tuple[float, float]], dict[str, float], Any]:
    """Wall and CPU seconds (of all threads) of each call; MB at the peak of this process, and above what it held before
    the calls; what the last call gave."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    before, _ = memory(device)
    times = []
    for _ in range(repeats):
        outcome = None  # that of the call before is not to count
        wait()
        start, cpu_start = time.perf_counter(), time.process_time()
        outcome = call()
        wait()
        times.append((time.perf_counter() - start, time.process_time() - cpu_start))
    _, peak = memory(device)
    return times, {"peak_mb": peak, "above_mb": peak - before}, outcome


def memory(device: torch.device) -> tuple[float, float]:
    """MB that this process holds now and held at most: resident memory, or what is allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated() / 2**20, torch.cuda.max_memory_allocated() / 2**20
    try:
        return from_proc("self/status", "VmRSS"), from_proc("self/status", "VmHWM")
    except OSError:  # not Linux, where this number would begin at what the parent process had
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        return peak, peak


def from_proc(file: str, field: str) -> float:
    """MB that a file of Linux' /proc gives in kB. Raises OSError elsewhere."""
    for line in Path("/proc", file).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 2**10
    raise OSError(f"/proc/{file} has no {field}")
