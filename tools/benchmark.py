"""Time evaluation and re-ranking, and measure their memory: `python tools/benchmark.py eval|rerank [--size msmt17]`.

Ours runs against the bare matrix product, the least that an exact method can do, and against plain NumPy. Every
contender has a process of its own, so that its peak memory is its own, and the same made features. OMP_NUM_THREADS
says how many threads each has. `published` is numpy with the copies of the authors' own re-ranking code.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import baselines
from tools.made_data import SIZES, Data, Ids, make_data
from tools.results_table import BENCHMARK_COLUMNS, benchmark_rows
from utils.errors import UserError, run
from utils.files import write_json
from utils.metrics import evaluate, evaluate_distance
from utils.rerank import k_reciprocal

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Options:
    size: Literal["market", "msmt17", "tiny"] = "market"  # dataset whose numbers of images are imitated
    device: Literal["cpu", "cuda"] = "cpu"  # where ours and matmul run; the others run on the CPU
    metric: Literal["cosine", "euclidean"] = "cosine"  # for rerank, cosine means rows of norm 1
    features: Literal["clustered", "random"] = "clustered"  # as of a trained model, or noise
    width: int = 2048  # of a feature
    repeats: int = 1  # calls of each contender, of which the fastest counts
    skip: tuple[str, ...] = ()  # contenders that are left out
    save: bool = False  # write the measurement for tools/results_table.py
    results: str = str(ROOT / "results")  # directory that --save writes to
    task: ClassVar[str]
    tolerance: ClassVar[dict[str, float]]  # score to the largest difference between ours and numpy


@dataclass
class Eval(Options):
    """CMC, mAP and mINP of features."""

    task: ClassVar[str] = "eval"
    # torch and NumPy multiply by different libraries, whose float32 sums differ in the last digit: images that are all
    # but equally far change places. That equal distances give equal scores is for the tests to show.
    tolerance: ClassVar[dict[str, float]] = {"mAP": 1e-5, "mINP": 1e-4, "rank1": 1e-3, "rank5": 1e-3, "rank10": 1e-3}


@dataclass
class Rerank(Options):
    """k-reciprocal re-ranking with (20, 6, 0.3)."""

    task: ClassVar[str] = "rerank"
    tolerance: ClassVar[dict[str, float]] = {"mAP": 1e-4}  # nearly equal neighbours fall either way in float32


COMMANDS = {kind.task: kind for kind in (Eval, Rerank)}
CONTENDERS: dict[str, dict[str, Callable[[Data, str], Any]]] = {
    "eval": {
        "matmul": lambda data, metric: baselines.product(data.query, data.gallery),
        "ours": lambda data, metric: evaluate(data.query, data.gallery, *data.ids, metric=metric),
        "numpy": lambda data, metric: baselines.evaluate(*data.arrays(), *data.ids, metric=metric),
    },
    "rerank": {
        "matmul": lambda data, metric: baselines.full_product(data.query, data.gallery),
        "ours": lambda data, metric: k_reciprocal(data.query, data.gallery),
        "numpy": lambda data, metric: torch.from_numpy(baselines.k_reciprocal(*data.arrays())),
        "published": lambda data, metric: torch.from_numpy(baselines.published_k_reciprocal(*data.arrays())),
    },
}
ON_CPU = {  # contenders that stay there, and the bytes that they need
    "eval": {"numpy": baselines.evaluation_bytes},
    "rerank": {"numpy": baselines.reranking_bytes, "published": baselines.published_bytes},
}


def from_proc(file: str, field: str) -> float:
    """MB that a file of Linux' /proc gives in kB. Raises OSError elsewhere."""
    for line in Path("/proc", file).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 2**10
    raise OSError(f"/proc/{file} has no {field}")


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


def measure(options: Options, contender: str) -> dict:
    """Time, memory and scores of one contender, which has this process to itself."""
    call = CONTENDERS[options.task][contender]
    device = torch.device("cpu" if contender in ON_CPU[options.task] else options.device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    made = (options.features, options.width, options.task == "rerank" and options.metric == "cosine")
    call(make_data(SIZES["tiny"], *made).to(device), options.metric)  # starts libraries and threads
    data = make_data(SIZES[options.size], *made).to(device)
    before, _ = memory(device)
    times = []
    for _ in range(options.repeats):
        outcome = None  # that of the call before is not to count
        wait()
        start, cpu_start = time.perf_counter(), time.process_time()
        outcome = call(data, options.metric)
        wait()
        times.append((time.perf_counter() - start, time.process_time() - cpu_start))
    _, peak = memory(device)
    seconds, cpu_seconds = min(times)
    row = {"contender": contender, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak}
    return row | {"above_mb": peak - before, "scores": scores(outcome, data.ids)}


def scores(outcome: Any, ids: Ids) -> dict[str, float]:
    """Of what a contender found: nothing, scores, or re-ranked distances."""
    if outcome is None:
        return {}
    found = evaluate_distance(outcome, *ids) if isinstance(outcome, torch.Tensor) else outcome
    return {"mAP": found.mAP, "mINP": found.mINP} | {f"rank{k}": float(found.cmc[k - 1]) for k in (1, 5, 10)}


def work(job: dict) -> None:
    """The program's other half: measure one contender, and print the row as JSON."""
    if sys.platform == "linux":  # PR_SET_PDEATHSIG of prctl(2): however the parent ends, so does this process
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() == job["parent"]:
        print(json.dumps(measure(COMMANDS[job["task"]](**job["options"]), job["contender"])))


def in_fresh_process(options: Options, contender: str) -> dict:
    """`measure` in a process of its own, which does not outlive this one."""
    job = {"task": options.task, "contender": contender, "options": asdict(options), "parent": os.getpid()}
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)  # kills it on Ctrl-C
    if done.returncode == -9:
        raise UserError(f"{contender} was killed, most likely for want of memory; try --skip {contender}")
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise UserError(f"{contender} failed; what it said stands above")
    return json.loads(done.stdout.splitlines()[-1])


def reason_not_to_run(options: Options, contender: str) -> str:
    """What keeps a contender from running on this machine; empty: nothing."""
    if contender not in ON_CPU[options.task]:
        return ""
    size = SIZES[options.size]
    needed = ON_CPU[options.task][contender](size.queries, size.gallery, options.width) / 2**20
    try:
        available = from_proc("meminfo", "MemAvailable")
    except OSError:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    return f"needs {math.ceil(needed / 2**10)} GB" if needed > available else ""


def check(options: Options) -> None:
    """Raises UserError for options that make no sense."""
    contenders = CONTENDERS[options.task]
    for name in options.skip:
        if name not in contenders:
            raise UserError(f"--skip {name}: no contender is called so; there are {', '.join(contenders)}")
    if set(options.skip) == set(contenders):
        raise UserError("--skip leaves no contender to run")
    for name in ("width", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(options, name)}")


def differences(options: Options, rows: list[dict]) -> dict[str, float]:
    """Score to |ours - numpy|; empty where one of them has not run. Raises UserError where they disagree."""
    scored = {row["contender"]: row["scores"] for row in rows if "scores" in row}
    if not {"ours", "numpy"} <= set(scored):
        print("scores not compared: that takes ours and numpy")
        return {}
    ours, other = scored["ours"], scored["numpy"]
    apart = {name: abs(ours[name] - other[name]) for name in ours}
    print("|ours - numpy|: " + ", ".join(f"{name} {value:.1e}" for name, value in apart.items()))
    for name, limit in options.tolerance.items():
        if not apart[name] <= limit:
            raise UserError(f"{name} is {ours[name]:.8f} by ours and {other[name]:.8f} by numpy: one of them is wrong")
    return apart


def as_text(result: dict) -> str:
    table = [BENCHMARK_COLUMNS, *benchmark_rows(result)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table)


def file_name(options: Options) -> str:
    """Task, size and device; metric, features and width where they are not the default."""
    odd = [str(x) for x in (options.metric, options.features, options.width) if x not in ("cosine", "clustered", 2048)]
    return "_".join(["benchmark", options.task, options.size, options.device, *odd]) + ".json"


def compete(options: Options) -> None:
    """Run the contenders one after another, print the table, compare the scores, and save all on demand."""
    from processor.environment import describe_environment, pick_device  # too large to be in the contenders' memory

    check(options)
    environment = describe_environment(pick_device(options.device)) | {"threads": torch.get_num_threads()}
    settings = {name: value for name, value in asdict(options).items() if name not in ("skip", "save", "results")}
    size = SIZES[options.size]
    print(f"{options.task}, {options.metric}: {size.queries:,} queries, {size.gallery:,} gallery images")
    print(f"{options.features} features of width {options.width:,}; torch {environment['torch']}")
    print(f"{environment['hardware']}; threads: {environment['threads']}", flush=True)
    rows = []
    for name in CONTENDERS[options.task]:
        if name not in options.skip:
            reason = reason_not_to_run(options, name)
            print(f"{name}: not run, {reason}" if reason else f"{name} ...", flush=True)
            rows.append({"contender": name, "not_run": reason} if reason else in_fresh_process(options, name))
    result = {"task": options.task, **settings, "command": shlex.join(["python", *sys.argv]), **environment}
    result["rows"] = rows
    print(as_text(result))
    result["differences"] = differences(options, rows)
    if options.save:
        path = Path(options.results) / file_name(options)
        write_json(path, result)
        print(f"{path} written; python tools/results_table.py puts it into the README")


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return work(json.loads(sys.argv[2]))
    compete(tyro.extras.subcommand_cli_from_dict(COMMANDS, description=__doc__))


if __name__ == "__main__":
    run(main)
