"""Measure speed and memory against the usual ways: `python tools/benchmark.py TASK [--save]`.

`eval` and `rerank` score made features, `data` turns image files into training batches, `train` trains on them,
`extract` has a trained model make features of the test images, and `search` finds the nearest of a million vectors.
Every contender has a process of its own, so that its peak memory is its own, and the same data as the others.
OMP_NUM_THREADS says how many threads each has; for `data` it is always one.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch
import tyro

from config.cli import typed_command

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.benchmark_task import Task
from utils.errors import UserError, run
from utils.files import write_json

# Imported by name when needed, as what the other tasks import is not to be in a contender's memory.
TASKS = {"eval": "benchmark_scoring.Eval", "rerank": "benchmark_scoring.Rerank", "data": "benchmark_data.InputPath"}
TASKS |= {"train": "benchmark_train.Train", "extract": "benchmark_extract.Extract"}
TASKS |= {"search": "benchmark_search.Search"}


def task_class(name: str) -> type[Task]:
    module, kind = TASKS[name].split(".")
    return getattr(import_module(f"tools.{module}"), kind)


def work(job: dict) -> None:
    """The program's other half: measure one contender, and print the row as JSON."""
    if sys.platform == "linux":  # PR_SET_PDEATHSIG of prctl(2): however the parent ends, so does this process
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() == job["parent"]:
        task = task_class(job["task"])(**job["options"])
        limit_threads(task)
        print(json.dumps(task.measure(job["contender"], Path(job["scratch"]))))


def limit_threads(task: Task) -> None:
    if task.threads:
        torch.set_num_threads(task.threads)


def in_fresh_process(task: Task, contender: str, scratch: Path) -> dict:
    """`task.measure` in a process of its own, which does not outlive this one."""
    job = {"task": task.task, "contender": contender, "options": asdict(task)}
    job |= {"scratch": str(scratch), "parent": os.getpid()}
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)  # kills it on Ctrl-C
    if done.returncode == -9:
        raise UserError(f"{contender} was killed, most likely for want of memory; try --skip {contender}")
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise UserError(f"{contender} failed; what it said stands above")
    return json.loads(done.stdout.splitlines()[-1])


def measure_all(task: Task) -> list[dict]:
    """A row for each contender, one after another, the fastest of its rounds; those that cannot run say why."""
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        for _ in range(task.rounds):
            for name in task.contenders:
                if name in task.skip or "not_run" in rows.get(name, {}):
                    continue
                reason = task.reason_not_to_run(name)
                print(f"{name}: not run, {reason}" if reason else f"{name} ...", flush=True)
                not_run = {"contender": name, "not_run": reason}
                row = not_run if reason else in_fresh_process(task, name, Path(scratch))
                rows[name] = min(rows.get(name, row), row, key=time_an_image)
    return list(rows.values())


def time_an_image(row: dict) -> float:
    """Seconds, of tasks whose rows count images an image's."""
    return row.get("seconds", 0.0) / row.get("images", 1)


def compete(task: Task) -> None:
    """Run the contenders, print the table, compare the outcomes, and save all on demand."""
    from processor.environment import describe_environment, pick_device

    task.check()
    limit_threads(task)
    environment = describe_environment(pick_device(task.device)) | {"threads": torch.get_num_threads()}
    settings = {name: value for name, value in asdict(task).items() if name not in task.unsaved}
    versions = {"torch": environment["torch"]} | task.versions()
    print(f"{task.describe()}; {', '.join(f'{name} {version}' for name, version in versions.items())}")
    print(f"{environment['hardware']}; threads: {environment['threads']}", flush=True)
    result = {"task": task.task, **settings, "command": typed_command()}
    result |= task.facts() | environment | versions
    result["rows"] = measure_all(task)
    print(as_text([task.columns, *task.table(result)]))
    result["differences"] = task.compare(result["rows"])
    if task.save:
        path = Path(task.results) / task.file_name()
        write_json(path, result)
        print(f"{path} written; python tools/results_table.py puts it into docs/benchmarks.md")


def as_text(table: list[tuple[str, ...]]) -> str:
    """Lines with columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return work(json.loads(sys.argv[2]))
    compete(tyro.extras.subcommand_cli_from_dict({name: task_class(name) for name in TASKS}, description=__doc__))


if __name__ == "__main__":
    run(main)
