"""Running time of functions."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def time_calls(
    calls: Sequence[Callable[[], Any]],
    device: torch.device,
    rounds: int = 50,
    warmup: int = 0,
    thread_time: bool = False,
) -> list[list[float]]:
    """Return the seconds of `rounds` calls of each function, after `warmup` calls that do not count.

    The functions run in turn, so that a disturbance affects all of them alike, and each finds the caches filled by the
    others. GPU work is waited for. The minimum is the time on a quiet machine, the median the usual time.
    thread_time: count only the time in which this thread runs, for work of one CPU thread on a busy machine.
    """
    clock = time.thread_time if thread_time else time.perf_counter
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(warmup + rounds):
        for call, times in zip(calls, seconds, strict=True):
            wait()
            start = clock()
            call()
            wait()
            times.append(clock() - start)
    return [times[warmup:] for times in seconds]
